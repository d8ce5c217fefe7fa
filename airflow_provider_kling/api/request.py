"""
What can be asked of the service: the request's fields, each model's limits, the rules between fields.

A request is checked as a whole before anything is sent, and all its faults are told together.
"""

from __future__ import annotations

import ast
import base64
import binascii
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, StrictStr, ValidationError

from airflow_provider_kling.api.errors import InvalidRequestError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

DEFAULT_MODEL = "kling-v3-omni"
DEFAULT_MODE = "std"
"""The service's own default where a request names no mode."""
DEFAULT_DURATION_SECONDS = 5
"""The service's own default where a request names no duration."""
BASE_VIDEO_SECONDS = (3, 10)
"""The shortest and the longest reference video that the service takes, seconds."""

MAX_PROMPT_CHARACTERS = 2500
MAX_SHOTS = 6
MAX_SHOT_PROMPT_CHARACTERS = 512
MAX_REFERENCES = 7
MAX_REFERENCES_WITH_VIDEO = 4
MAX_ELEMENTS_WITH_FRAME = 3
MAX_IMAGE_BYTES = 10 * 1024 * 1024

_MODES = ("std", "pro")
_ASPECT_RATIOS = ("16:9", "9:16", "1:1")
_REFERENCE = re.compile(r"<<<(.*?)>>>", re.DOTALL)
_REFERENCE_NAME = re.compile(r"(image|element|video)_([1-9][0-9]*)")
_SHOWN_CHARACTERS = 80
_MOST_SECONDS = 9999
"""What is longer is no duration of any model, known or not."""
_MISSING = ("", "none", "null")
_MOST_PATH_CHARACTERS = 4096
_PATH_BEGINNINGS = ("/", "./", "../", "~")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.*[^/]", re.DOTALL)
_PICTURES_IN_BASE64 = re.compile(r"(/9j/|iVBORw0KGg)[A-Za-z0-9+/=\s]*")
"""What the Base64 of a jpg and of a png looks like. That of a jpg begins as an absolute path does."""


@dataclass(frozen=True)
class ModelLimits:
    """
    What one model takes, beyond what holds for all.

    :param min_seconds: shortest video, seconds.
    :param max_seconds: longest video, seconds.
    :param multi_shot: whether it cuts a video into several shots.
    :param max_images_with_end_frame: most images in a request with an end frame, None for no limit of its own.
    :param max_elements_with_end_frame: most elements in a request with a first and an end frame.
    """

    min_seconds: int
    max_seconds: int
    multi_shot: bool
    max_images_with_end_frame: int | None
    max_elements_with_end_frame: int


MODEL_LIMITS: Mapping[str, ModelLimits] = {
    "kling-video-o1": ModelLimits(3, 10, False, 2, 0),
    "kling-v3-omni": ModelLimits(3, 15, True, None, 3),
}


@dataclass(frozen=True)
class Fault:
    """
    One thing that is wrong with a request.

    :param field: the field, with its place in a list, such as ``image_list[1].type``.
    :param value: what was given.
    :param allowed: what is allowed, and for which model where models differ.
    """

    field: str
    value: Any
    allowed: str

    def __str__(self) -> str:
        try:
            shown = repr(self.value)
        except (ValueError, RecursionError):  # an integer of thousands of digits; endless nesting
            shown = f"this {type(self.value).__name__}"
        # Whoever has the address that the service calls can pretend to be the service, and a card shows this.
        if "callback" in self.field.lower() or "callback_url" in shown:
            shown = "<hidden>"
        if len(shown) > _SHOWN_CHARACTERS:
            shown = f"{shown[: _SHOWN_CHARACTERS - 1]}…"
        return f"{self.field}: {shown} is not allowed: {self.allowed}"


@dataclass(frozen=True)
class LocalReference:
    """
    A reference that the service cannot fetch itself: a file here, or in object storage.

    :param field: where it stands, such as ``image_list[1].image_url``.
    :param reference: the path or URI, as it was given.
    :param kind: what it has to be.
    """

    field: str
    reference: str
    kind: Literal["image", "video"]


def _structure(value: Any) -> Any:
    """Read a list or mapping out of text: Jinja renders one as JSON or as Python writes it."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.lower() in _MISSING:
        return None
    if text[0] in "[{":
        for read in (json.loads, ast.literal_eval):
            try:
                return read(text)
            except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                continue
    return text


def _list_of(name: str) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        value = _structure(value)
        if value is None:
            return None
        if (isinstance(value, (str, int, Mapping)) and not isinstance(value, bool)) or _is_path(value):
            value = [value]
        if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
            # An iterator too: the request is read twice, and the second time it would be empty.
            raise ValueError("a list")  # noqa: TRY004 - pydantic makes a fault of it
        return [
            {name: item} if isinstance(item, (str, int)) or _is_path(item) else item for item in value
        ] or None

    return convert


def _text_or_none(value: Any) -> Any:
    if isinstance(value, str):
        value = value.strip()
        return None if value.lower() in _MISSING else value
    return value


def _is_path(value: Any) -> bool:
    """Tell paths apart. Those of object storage are no :class:`os.PathLike` in every version of their library."""
    return isinstance(value, os.PathLike) or callable(getattr(type(value), "as_uri", None))


def _address(value: Any) -> Any:
    if not _is_path(value):
        return _text_or_none(value)
    # A path object forgets that it was written with ./ in front.
    return str(value) if _is_meant_as_file(str(value)) else f"./{value}"


def _model(value: Any) -> Any:
    value = _text_or_none(value)
    if value is None:
        raise ValueError(f"the id of a model, such as {' or '.join(MODEL_LIMITS)}")
    return value


def _whole(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a whole number")  # noqa: TRY004 - pydantic makes a fault of it
    return value


def _prompt(value: Any) -> Any:
    if isinstance(value, str):
        if value.strip() in ("None", "null"):
            raise ValueError("a prompt in words; this is what a template makes of a value that is missing")
        return value if value.strip() else None
    return value


def _seconds(value: Any) -> Any:
    value = _text_or_none(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_SECONDS:
        return str(value)
    if isinstance(value, str) and re.fullmatch(r"\d{1,4}(\.0+)?", value, re.ASCII):
        return str(int(float(value)))
    if value is not None:
        raise ValueError("a whole number of seconds")
    return value


def _switch(on: str, off: str) -> Callable[[Any], Any]:
    words = {on: on, "true": on, off: off, "false": off}

    def convert(value: Any) -> Any:
        if isinstance(value, bool):
            return on if value else off
        value = _text_or_none(value)
        return words.get(value.lower(), value) if isinstance(value, str) else value

    return convert


def _watermark(value: Any) -> Any:
    value = _structure(value)
    if isinstance(value, bool) or (isinstance(value, str) and value.lower() in ("true", "false")):
        return {"enabled": value}
    return value


Text = Annotated[StrictStr, BeforeValidator(_text_or_none)]
Address = Annotated[StrictStr, BeforeValidator(_address)]
OptionalText = Annotated[StrictStr | None, BeforeValidator(_text_or_none)]
Seconds = Annotated[str, BeforeValidator(_seconds)]
WholeNumber = Annotated[int, BeforeValidator(_whole)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class ImageReference(_Part):
    """
    A reference image.

    :param image_url: URL of a jpg or png; or the file's bytes in Base64 without a ``data:`` prefix; or where the
        file is: a path (absolute, or beginning with ``./``, ``../`` or ``~``) or a URI such as ``s3://bucket/key``,
        as text or as a path object. Text that can be both is Base64.
    :param type: ``first_frame``, ``end_frame``, or None for a plain reference.
    """

    image_url: Address
    type: Annotated[Literal["first_frame", "end_frame"] | None, BeforeValidator(_text_or_none)] = None

    @property
    def content(self) -> bytes | None:
        """The image itself where the request holds it in Base64, else None."""
        return base64.b64decode(self.image_url) if _is_meant_as_base64(self.image_url) else None


class ElementReference(_Part):
    """A subject registered with the service, by its integer id."""

    element_id: WholeNumber


class VideoReference(_Part):
    """
    A reference video.

    :param video_url: URL of an mp4 or mov, 3 to 10 seconds long; or where the file is, as for an image.
    :param refer_type: ``base`` to edit this video (the service's default), ``feature`` for its style or camera.
    :param keep_original_sound: ``yes`` or ``no``; a bool is accepted.
    """

    video_url: Address
    refer_type: Annotated[Literal["base", "feature"] | None, BeforeValidator(_text_or_none)] = None
    keep_original_sound: Annotated[Literal["yes", "no"] | None, BeforeValidator(_switch("yes", "no"))] = None

    @property
    def is_base(self) -> bool:
        """Whether this video is the one to be edited."""
        return self.refer_type in (None, "base")


class Shot(_Part):
    """
    One shot of a storyboard.

    :param index: its place, from 1; left out, shots are numbered as they stand.
    :param prompt: what it shows, up to 512 characters.
    :param duration: its length in whole seconds.
    """

    index: WholeNumber | None = None
    prompt: Text
    duration: Seconds


class WatermarkInfo(_Part):
    """Whether the service draws its watermark."""

    enabled: bool


class _RequestFields(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    model: Annotated[StrictStr, BeforeValidator(_model)] = DEFAULT_MODEL
    prompt: Annotated[StrictStr | None, BeforeValidator(_prompt)] = None
    mode: OptionalText = None
    duration: Annotated[str | None, BeforeValidator(_seconds)] = None
    aspect_ratio: OptionalText = None
    sound: Annotated[Literal["on", "off"] | None, BeforeValidator(_switch("on", "off"))] = None
    image_list: Annotated[tuple[ImageReference, ...] | None, BeforeValidator(_list_of("image_url"))] = None
    element_list: Annotated[tuple[ElementReference, ...] | None, BeforeValidator(_list_of("element_id"))] = (
        None
    )
    video_list: Annotated[tuple[VideoReference, ...] | None, BeforeValidator(_list_of("video_url"))] = None
    multi_shot: Annotated[bool | None, BeforeValidator(_text_or_none)] = None
    shot_type: Annotated[Literal["customize", "intelligence"] | None, BeforeValidator(_text_or_none)] = None
    multi_prompt: Annotated[tuple[Shot, ...] | None, BeforeValidator(_list_of("prompt"))] = None
    watermark_info: Annotated[WatermarkInfo | None, BeforeValidator(_watermark)] = None
    callback_url: OptionalText = None
    extra_body: Annotated[dict[str, Any] | None, BeforeValidator(_structure)] = None


class VideoRequest(_RequestFields):
    """
    A request for one video, checked against the rules of its model.

    Fields bear the service's names. Each accepts native values and the strings that templates render to;
    an empty string or list counts as left out, and what is left out is not sent.

    :param model: ``kling-v3-omni`` or ``kling-video-o1``. Another id is passed on, with neither its limits
        nor its price known.
    :param prompt: up to 2,500 characters; may name references as ``<<<image_1>>>``, ``<<<element_1>>>``,
        ``<<<video_1>>>``, counted from 1.
    :param mode: ``std`` (720p, the service's default) or ``pro`` (1080p).
    :param duration: whole seconds, 3 to 10 for ``kling-video-o1``, 3 to 15 for ``kling-v3-omni``; the
        service's default is 5. Ignored with a ``base`` video: the result is as long as that.
    :param aspect_ratio: ``16:9``, ``9:16`` or ``1:1``.
    :param sound: ``on`` or ``off``; a bool is accepted. Off with a reference video.
    :param image_list: reference images; a plain URL or path stands for a plain reference.
    :param element_list: subjects; a plain integer stands for its ``element_id``.
    :param video_list: at most one reference video; a plain URL or path stands for a ``base`` video.
    :param multi_shot: whether the video has several shots (``kling-v3-omni``).
    :param shot_type: ``customize`` (the shots are in ``multi_prompt``) or ``intelligence`` (the model cuts
        the prompt).
    :param multi_prompt: 1 to 6 shots, whose durations add up to ``duration``.
    :param watermark_info: ``{"enabled": bool}``; a bool is accepted.
    :param callback_url: where the service posts the task when it is over.
    :param extra_body: fields that this package does not know, merged last and sent as given.
    :raises InvalidRequestError: with every fault found.
    """

    def __init__(self, **fields: Any) -> None:
        faults = find_faults(fields)
        if faults:
            raise InvalidRequestError(faults)
        super().__init__(**fields)

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> Self:
        """
        Read a request out of the JSON that :meth:`to_body` makes; fields not known go to ``extra_body``.

        :raises InvalidRequestError: with every fault found.
        """
        known = {
            name: value for name, value in body.items() if name in cls.model_fields and name != "extra_body"
        }
        extra = {name: value for name, value in body.items() if name not in known}
        return cls(**known, **({"extra_body": extra} if extra else {}))

    def to_body(self) -> dict[str, Any]:
        """
        Return the JSON that is sent: what was left out is left out, ``extra_body`` is merged last.

        Local references stay as they were given: see :meth:`with_references`.
        """
        body = self.model_dump(mode="json", exclude={"extra_body"}, exclude_none=True)
        for place, shot in enumerate(body.get("multi_prompt", ()), start=1):
            shot.setdefault("index", place)
        return {**body, **(self.extra_body or {})}

    @property
    def limits(self) -> ModelLimits | None:
        """The model's limits, None for a model that this package does not know."""
        return MODEL_LIMITS.get(self.model)

    @property
    def base_video(self) -> VideoReference | None:
        """The video that is to be edited, if there is one."""
        return next((video for video in self.video_list or () if video.is_base), None)

    def local_references(self) -> list[LocalReference]:
        """Return the references that have to be uploaded before the service can use them, as the fields stand."""
        images = [
            LocalReference(f"image_list[{i}].image_url", image.image_url, "image")
            for i, image in enumerate(self.image_list or ())
            if _is_file(image.image_url)
        ]
        videos = [
            LocalReference(f"video_list[{i}].video_url", video.video_url, "video")
            for i, video in enumerate(self.video_list or ())
            if _is_file(video.video_url)
        ]
        return images + videos

    def check_sendable(self) -> None:
        """
        Make sure that the service can use the request as it is.

        :raises InvalidRequestError: where a reference is a file, which has to be uploaded first.
        """
        faults = [
            Fault(local.field, local.reference, "a file has to be uploaded first, by KlingHook.upload_file")
            for local in self.local_references()
        ]
        if faults:
            raise InvalidRequestError(faults)

    def with_references(self, addresses: Mapping[str, str]) -> Self:
        """
        Return the same request with other addresses for its references.

        :param addresses: the new one by the one that stands there; what is not named stays.
        """
        fields: dict[str, Any] = {}
        if self.image_list is not None:
            fields["image_list"] = tuple(
                image.model_copy(update={"image_url": addresses.get(image.image_url, image.image_url)})
                for image in self.image_list
            )
        if self.video_list is not None:
            fields["video_list"] = tuple(
                video.model_copy(update={"video_url": addresses.get(video.video_url, video.video_url)})
                for video in self.video_list
            )
        return self.model_copy(update=fields)

    def warnings(self) -> list[str]:
        """Return what is allowed but probably not meant, a sentence each."""
        found = []
        if self.limits is None:
            known = ", ".join(MODEL_LIMITS)
            found.append(
                f"Model {self.model!r} is not known here (known: {known}): neither its limits nor its price "
                "can be checked before the service answers."
            )
        if self.duration is not None and self.base_video is not None:
            found.append(
                f"duration {self.duration!r} is ignored: the video in video_list is edited, and the result is "
                "as long as that. Use refer_type 'feature' to take only its style or camera."
            )
        if self.prompt is not None and self.multi_shot and self.shot_type == "customize":
            found.append("prompt is ignored: with shot_type 'customize' the shots are those of multi_prompt.")
        return found


def find_faults(fields: Mapping[str, Any], *, unknown: frozenset[str] = frozenset()) -> list[Fault]:
    """
    Find all that is wrong with a request's fields.

    :param fields: the arguments of :class:`VideoRequest`.
    :param unknown: names of fields whose values come later, such as templates; rules that read them are left out.
    """
    told = {name: value for name, value in fields.items() if name not in unknown}
    faults: list[Fault] = []
    unsound: set[str] = set()
    try:
        parsed = _RequestFields(**told)
    except ValidationError as error:
        found = error.errors(include_url=False)
        faults = [_fault_of_shape(details) for details in found]
        unsound = {str(details["loc"][0]) for details in found}
        parsed = _RequestFields(**{name: value for name, value in told.items() if name not in unsound})
    for reads, rule in _RULES:
        if not reads & (unsound | unknown):
            faults.extend(rule(parsed))
    return faults


_SHAPES = {
    "missing": "it is needed",
    "extra_forbidden": "no such field; newer fields of the service go into extra_body",
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}


def _fault_of_shape(details: ErrorDetails) -> Fault:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in details["loc"])
    kind, context = details["type"], details.get("ctx", {})
    if kind == "literal_error":
        allowed = f"one of {context['expected']}"
    elif kind == "value_error":
        allowed = str(context["error"])
    else:
        allowed = _SHAPES.get(kind, details["msg"])
    return Fault(path.removeprefix("."), None if kind == "missing" else details["input"], allowed)


_Rule = Callable[[_RequestFields], Iterator[Fault]]
_RULES: list[tuple[frozenset[str], _Rule]] = []


def _rule(*reads: str) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        _RULES.append((frozenset(reads), rule))
        return rule

    return register


def _one_of(allowed: Sequence[str], model: str) -> str:
    return f"{model} takes {' or '.join(allowed) if len(allowed) < 3 else ', '.join(allowed)}"


@_rule("prompt", "multi_shot", "shot_type")
def _prompt_is_there(request: _RequestFields) -> Iterator[Fault]:
    if request.prompt is None and not (request.multi_shot and request.shot_type == "customize"):
        yield Fault(
            "prompt",
            None,
            "it is needed, unless multi_shot is on with shot_type 'customize' and its multi_prompt",
        )


@_rule("model", "prompt")
def _prompt_is_short_enough(request: _RequestFields) -> Iterator[Fault]:
    if request.model in MODEL_LIMITS and len(request.prompt or "") > MAX_PROMPT_CHARACTERS:
        yield Fault(
            "prompt",
            request.prompt,
            f"{request.model} takes up to {MAX_PROMPT_CHARACTERS} characters, this has {len(request.prompt or '')}",
        )


@_rule("prompt", "multi_prompt", "image_list", "element_list", "video_list")
def _references_exist(request: _RequestFields) -> Iterator[Fault]:
    counts = {
        "image": len(request.image_list or ()),
        "element": len(request.element_list or ()),
        "video": len(request.video_list or ()),
    }
    texts = {"prompt": request.prompt or ""}
    texts |= {f"multi_prompt[{i}].prompt": shot.prompt for i, shot in enumerate(request.multi_prompt or ())}
    for field, text in texts.items():
        for written in dict.fromkeys(_REFERENCE.findall(text)):
            name = _REFERENCE_NAME.fullmatch(written)
            if name is None:
                allowed = "references are named image_N, element_N or video_N, with N from 1"
            elif int(name[2][:9]) > counts[name[1]]:
                allowed = f"{name[1]}_list has {counts[name[1]] or 'no'} entr{'y' if counts[name[1]] == 1 else 'ies'}"
            else:
                continue
            yield Fault(field, f"<<<{written}>>>", allowed)


@_rule("model", "mode")
def _mode_is_known(request: _RequestFields) -> Iterator[Fault]:
    if request.model in MODEL_LIMITS and request.mode not in (None, *_MODES):
        yield Fault("mode", request.mode, _one_of(_MODES, request.model))


@_rule("model", "aspect_ratio")
def _aspect_ratio_is_known(request: _RequestFields) -> Iterator[Fault]:
    if request.model in MODEL_LIMITS and request.aspect_ratio not in (None, *_ASPECT_RATIOS):
        yield Fault("aspect_ratio", request.aspect_ratio, _one_of(_ASPECT_RATIOS, request.model))


@_rule("model", "duration")
def _duration_is_within_limits(request: _RequestFields) -> Iterator[Fault]:
    limits = MODEL_LIMITS.get(request.model)
    if limits and request.duration and not limits.min_seconds <= int(request.duration) <= limits.max_seconds:
        yield Fault(
            "duration",
            request.duration,
            f"{request.model} takes {limits.min_seconds} to {limits.max_seconds} seconds",
        )


@_rule("sound", "video_list")
def _sound_is_off_with_a_video(request: _RequestFields) -> Iterator[Fault]:
    if request.sound == "on" and request.video_list:
        yield Fault(
            "sound",
            "on",
            "with a reference video it must be off; keep_original_sound keeps that video's own sound",
        )


@_rule("image_list")
def _images_can_be_used(request: _RequestFields) -> Iterator[Fault]:
    for i, image in enumerate(request.image_list or ()):
        allowed = _why_no_image(image.image_url)
        if allowed:
            yield Fault(f"image_list[{i}].image_url", image.image_url, allowed)


@_rule("image_list")
def _frames_are_single_and_in_order(request: _RequestFields) -> Iterator[Fault]:
    types = [image.type for image in request.image_list or ()]
    for kind in ("first_frame", "end_frame"):
        if types.count(kind) > 1:
            yield Fault(
                "image_list", f"{types.count(kind)} times {kind}", f"at most one image of type {kind}"
            )
    if "end_frame" in types and "first_frame" not in types:
        yield Fault("image_list", "end_frame", "an end_frame needs a first_frame beside it")


@_rule("image_list", "video_list", "multi_shot")
def _frames_stand_alone(request: _RequestFields) -> Iterator[Fault]:
    frames = _frames(request)
    for frame in frames:
        if any(video.is_base for video in request.video_list or ()):
            yield Fault("image_list", frame, "no first or end frame beside a base video in video_list")
        if request.multi_shot:
            yield Fault("image_list", frame, "no first or end frame with multi_shot")


@_rule("model", "image_list", "element_list")
def _frames_leave_room(request: _RequestFields) -> Iterator[Fault]:
    limits, frames = MODEL_LIMITS.get(request.model), _frames(request)
    if limits is None or not frames:
        return
    images, elements = len(request.image_list or ()), len(request.element_list or ())
    if "end_frame" in frames:
        most_images = limits.max_images_with_end_frame
        if most_images is not None and images > most_images:
            yield Fault(
                "image_list",
                f"{images} images",
                f"{request.model} takes at most {most_images} with an end_frame",
            )
        most_elements = limits.max_elements_with_end_frame
        beside = "an end_frame"
    else:
        most_elements, beside = MAX_ELEMENTS_WITH_FRAME, "a first_frame"
    if elements > most_elements:
        yield Fault(
            "element_list",
            f"{elements} elements",
            f"{request.model} takes {f'at most {most_elements}' if most_elements else 'none'} beside {beside}",
        )


@_rule("model", "image_list", "element_list", "video_list")
def _references_are_few_enough(request: _RequestFields) -> Iterator[Fault]:
    if request.model not in MODEL_LIMITS:
        return
    images, elements = len(request.image_list or ()), len(request.element_list or ())
    most = MAX_REFERENCES_WITH_VIDEO if request.video_list else MAX_REFERENCES
    if images + elements > most:
        yield Fault(
            "image_list" if images else "element_list",
            f"{images} images and {elements} elements",
            f"{request.model} takes at most {most} together"
            + (" beside a video" if request.video_list else ""),
        )


@_rule("model", "video_list")
def _videos_can_be_used(request: _RequestFields) -> Iterator[Fault]:
    videos = request.video_list or ()
    if len(videos) > 1 and request.model in MODEL_LIMITS:
        yield Fault("video_list", f"{len(videos)} videos", f"{request.model} takes at most 1")
    for i, video in enumerate(videos):
        allowed = _why_no_video(video.video_url)
        if allowed:
            yield Fault(f"video_list[{i}].video_url", video.video_url, allowed)


@_rule("model", "multi_shot", "shot_type", "multi_prompt")
def _shots_are_for_models_that_cut(request: _RequestFields) -> Iterator[Fault]:
    limits = MODEL_LIMITS.get(request.model)
    if limits is None or limits.multi_shot:
        return
    able = ", ".join(model for model, its in MODEL_LIMITS.items() if its.multi_shot)
    for field, value in (
        ("multi_shot", request.multi_shot),
        ("shot_type", request.shot_type),
        ("multi_prompt", request.multi_prompt),
    ):
        if value:
            shown = f"{len(value)} shots" if isinstance(value, tuple) else value
            yield Fault(field, shown, f"{request.model} makes one shot only; {able} takes several")


@_rule("multi_shot", "shot_type", "multi_prompt")
def _shots_are_told_in_one_way(request: _RequestFields) -> Iterator[Fault]:
    if request.multi_shot and request.shot_type is None:
        yield Fault("shot_type", None, "multi_shot needs 'customize' or 'intelligence'")
    if request.shot_type and not request.multi_shot:
        yield Fault("shot_type", request.shot_type, "it needs multi_shot=True")
    if request.multi_prompt and not (request.multi_shot and request.shot_type == "customize"):
        yield Fault(
            "multi_prompt",
            f"{len(request.multi_prompt)} shots",
            "it needs multi_shot=True and shot_type='customize'",
        )


@_rule("model", "multi_shot", "shot_type", "multi_prompt", "duration")
def _shots_fill_the_video(request: _RequestFields) -> Iterator[Fault]:
    if not request.multi_shot or request.shot_type != "customize":
        return
    shots = request.multi_prompt or ()
    if not shots:
        yield Fault("multi_prompt", None, "shot_type 'customize' needs at least one shot")
        return
    if len(shots) > MAX_SHOTS and request.model in MODEL_LIMITS:
        yield Fault("multi_prompt", f"{len(shots)} shots", f"{request.model} takes 1 to {MAX_SHOTS}")
    for i, shot in enumerate(shots):
        if len(shot.prompt) > MAX_SHOT_PROMPT_CHARACTERS and request.model in MODEL_LIMITS:
            yield Fault(
                f"multi_prompt[{i}].prompt",
                shot.prompt,
                f"{request.model} takes up to {MAX_SHOT_PROMPT_CHARACTERS} characters a shot, "
                f"this has {len(shot.prompt)}",
            )
        if int(shot.duration) < 1:
            yield Fault(f"multi_prompt[{i}].duration", shot.duration, "each shot lasts at least 1 second")
    numbers = [i if shot.index is None else shot.index for i, shot in enumerate(shots, start=1)]
    if sorted(numbers) != list(range(1, len(shots) + 1)):
        yield Fault(
            "multi_prompt", f"index {numbers}", f"shots are numbered from 1 to {len(shots)}, each once"
        )
    total, whole = (
        sum(int(shot.duration) for shot in shots),
        int(request.duration or DEFAULT_DURATION_SECONDS),
    )
    if total != whole:
        told = "" if request.duration else " (the service's default, as duration is left out)"
        yield Fault(
            "multi_prompt",
            f"{total} seconds in all",
            f"the shots add up to the video's duration, {whole} seconds{told}",
        )


@_rule("callback_url")
def _callback_can_be_reached(request: _RequestFields) -> Iterator[Fault]:
    if request.callback_url is not None and not _is_url(request.callback_url):
        yield Fault("callback_url", request.callback_url, "an http or https URL")


@_rule("extra_body")
def _extra_body_can_be_sent(request: _RequestFields) -> Iterator[Fault]:
    try:
        json.dumps(request.extra_body, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        yield Fault("extra_body", request.extra_body, f"only what JSON can hold ({error})")


def _frames(request: _RequestFields) -> list[str]:
    return list(dict.fromkeys(image.type for image in request.image_list or () if image.type))


def _is_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and value.isprintable()
            and " " not in value
        )
    except ValueError:
        return False


def _is_file(value: str) -> bool:
    """Tell whether an address that is allowed is that of a file, which the service cannot fetch itself."""
    return not _is_url(value) and not _is_meant_as_base64(value) and _is_meant_as_file(value)


def _is_meant_as_base64(value: str) -> bool:
    return _PICTURES_IN_BASE64.fullmatch(value) is not None


def _is_meant_as_file(value: str) -> bool:
    if value[:8].lower().startswith(("http:", "https:", "data:")):
        return False
    return value.startswith(_PATH_BEGINNINGS) or _URI.fullmatch(value) is not None


def _why_no_file(value: str) -> str | None:
    if not value.isprintable():
        return "a path without control characters"
    if len(value) > _MOST_PATH_CHARACTERS:
        return f"a path of at most {_MOST_PATH_CHARACTERS} characters, this has {len(value)}"
    return None


_A_FILE = "the file itself: a path (/…, ./… or ~/…) or a URI such as s3://bucket/key"


def _why_no_video(value: str) -> str | None:
    if _is_url(value):
        return None
    if _is_meant_as_file(value):
        return _why_no_file(value)
    return f"an http or https URL of an mp4 or mov, or {_A_FILE}"


def _why_no_image(value: str) -> str | None:
    if _is_url(value):
        return None
    if value.startswith("data:"):
        return "Base64 without the data: prefix: leave out all up to and including the comma"
    if not _is_meant_as_base64(value):
        if _is_meant_as_file(value):
            return _why_no_file(value)
        return f"an http or https URL, the Base64 of a jpg or png, or {_A_FILE}"
    try:
        content = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        content = b""
    if not content.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        return "the whole Base64 of a jpg or png on one line: this begins as such and cannot be decoded"
    if len(content) > MAX_IMAGE_BYTES:
        return f"at most {MAX_IMAGE_BYTES} bytes, this has {len(content)}"
    return None
