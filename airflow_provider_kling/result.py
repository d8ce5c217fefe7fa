"""What a Dag gets to know of a video: the JSON that operators and sensors return."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_kling.api.pricing import CostRange, Estimate, highest
from airflow_provider_kling.api.request import DEFAULT_DURATION_SECONDS, DEFAULT_MODE, VideoRequest
from airflow_provider_kling.api.task import TaskState, VideoTask
from airflow_provider_kling.budget import CURRENCY

if TYPE_CHECKING:
    import pendulum

    from airflow_provider_kling.api.errors import KlingError
    from airflow_provider_kling.api.task import RecordedCost
    from airflow_provider_kling.storage import StoredFile

_LONGEST_LINK = 2000
"""Characters of the longest link of the service that is kept in XCom."""
_LONGEST_TEXT = 4096
"""Characters from which a text in the request is a file in Base64, too large for XCom."""
_LEFT_OUT = "<a file in Base64"
_PROMPT_IN_LOG = 120
_ADDRESS = re.compile(r"""(https?://\S*?)(['")\]}>,.;:]*(?:\s|$))""", re.IGNORECASE)


@dataclass(frozen=True)
class Asked:
    """
    What was asked for, as far as results tell of it. It is plain data, so that it survives a deferral in XCom.

    :param request: the request's JSON with references as the author gave them; files in Base64 are left out.
    :param duration_seconds: length of the video, seconds; None where it is that of a ``base`` video not looked at.
    :param estimated_cost_usd: USD; the upper end where it is a range, None where no price is known.
    """

    request: Mapping[str, Any]
    duration_seconds: float | None = None
    estimated_cost_usd: float | None = None

    @classmethod
    def of(cls, request: VideoRequest, cost: Estimate, *, base_video_seconds: float | None = None) -> Asked:
        """Keep what results tell of a request."""
        duration = base_video_seconds
        if request.base_video is None:
            duration = float(request.duration or DEFAULT_DURATION_SECONDS)
        body = request.to_body()
        body.pop("callback_url", None)  # whoever has it can pretend to be the service
        return cls(
            _without_files(body), duration, float(most) if (most := highest(cost)) is not None else None
        )

    @property
    def model(self) -> str | None:
        """The model that was asked for."""
        return self.request.get("model")

    @property
    def mode(self) -> str | None:
        """The mode that was asked for; None where it was left to the service."""
        return self.request.get("mode")

    @property
    def is_whole(self) -> bool:
        """Whether the request can be made again from this: nothing was left out."""
        return _LEFT_OUT not in str(self.request)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Any) -> Asked | None:
        """Read it; None where it is not there or not in this form."""
        if not isinstance(value, Mapping) or not isinstance(value.get("request"), Mapping):
            return None
        return cls(value["request"], value.get("duration_seconds"), value.get("estimated_cost_usd"))


def video_result(
    task: VideoTask,
    asked: Asked | None = None,
    *,
    files: Sequence[StoredFile] = (),
    recorded: RecordedCost | None = None,
) -> dict[str, Any]:
    """
    Return what is known of a task, as plain JSON.

    :param task: as the service told it.
    :param asked: what was asked for, where that is known.
    :param files: where the results were stored.
    :param recorded: what the service recorded as its cost.
    :return: ``task_id``, ``model``, ``state``, ``video_url``, ``result_urls``, ``path`` (of the first file), ``files``,
        ``duration_seconds``, ``created_at`` and ``completed_at`` (ISO 8601), ``generation_seconds``,
        ``estimated_cost_usd``, ``recorded_cost_usd`` and ``request``; None for what is not known.
    """
    return {
        "task_id": task.task_id,
        "model": (asked.model if asked else None) or task.model,
        "state": task.state.value,
        "video_url": task.video_url,
        "result_urls": list(task.result_urls),
        "path": files[0].path if files else None,
        "files": [file.to_dict() for file in files],
        "duration_seconds": _duration(task, asked, files),
        "created_at": iso(task.created_at),
        "completed_at": iso(task.completed_at),
        "generation_seconds": task.generation_seconds,
        "estimated_cost_usd": asked.estimated_cost_usd if asked else None,
        "recorded_cost_usd": recorded_usd(recorded),
        "request": without_secrets(asked.request) if asked else None,
    }


def link_to_keep(result: Mapping[str, Any]) -> str | None:
    """
    Return the service's link where it is worth keeping; None where the video was stored, or the link is too long.

    It dies after 7 days, and until then whoever has it has the video.

    :param result: what :func:`video_result` returned.
    """
    link: str | None = result["video_url"]
    return link if link and not result["files"] and len(link) <= _LONGEST_LINK else None


def recorded_usd(recorded: RecordedCost | None) -> float | None:
    """Return what the service recorded as a task's cost; None where that is not final, or not in USD."""
    if recorded is None or not recorded.settled or recorded.currency.upper() != CURRENCY:
        return None
    return float(recorded.amount)


def without_secrets(value: Any) -> Any:
    """Return a request's JSON with the addresses in it without what may give access: passwords and signatures."""
    if isinstance(value, Mapping):
        return {
            name: address_without_secrets(item)
            if name.endswith("_url") and isinstance(item, str)
            else without_secrets(item)
            for name, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_secrets(item) for item in value]
    return value


def address_without_secrets(address: str) -> str:
    """Return an http address without user, password, query and fragment; everything else as it is."""
    if not address.lower().startswith(("http://", "https://")):
        return address
    scheme, _, rest = address.partition("://")
    netloc, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{netloc.rpartition('@')[2]}{slash}{path}"


def error_text(error: KlingError, *, most_characters: int) -> str:
    """
    Return an error's text on one line, its addresses without what may give access, cut where it is too long.

    :param most_characters: of the text that is returned, with the sign that it was cut.
    """
    text = " ".join(_ADDRESS.sub(_found_without_secrets, str(error)).split())
    return text if len(text) <= most_characters else text[: most_characters - 1] + "…"


def _found_without_secrets(found: re.Match[str]) -> str:
    address = address_without_secrets(found[1])
    # A value that was cut short may end within a password, before the @ that would tell.
    host = address.split("/", 3)[2]
    return f"{address.replace(host, '…', 1) if '…' in host else address}{found[2]}"


def dry_result(asked: Asked) -> dict[str, Any]:
    """Return what a task tells that asked for nothing: what :func:`video_result` tells, in state ``dry_run``."""
    nothing = VideoTask(task_id="", state=TaskState.PENDING)
    return video_result(nothing, asked) | {"task_id": None, "state": "dry_run"}


def describe_request(request: VideoRequest, cost: Estimate) -> str:
    """Return what is asked for and what it will cost, in one line for the log."""
    parts = [
        f"model {request.model}",
        f"mode {request.mode or DEFAULT_MODE}",
        "as long as its base video"
        if request.base_video
        else f"{request.duration or DEFAULT_DURATION_SECONDS} s",
        f"sound {request.sound or 'off'}",
    ]
    for count, kind in (
        (len(request.image_list or ()), "image"),
        (len(request.element_list or ()), "element"),
        (len(request.video_list or ()), "reference video"),
        (len(request.multi_prompt or ()), "shot"),
    ):
        if count:
            parts.append(f"{count} {kind}{'s' if count > 1 else ''}")
    prompt = " ".join((request.prompt or (request.multi_prompt or ())[0].prompt).split())
    if len(prompt) > _PROMPT_IN_LOG:
        prompt = prompt[: _PROMPT_IN_LOG - 1] + "…"
    return f"{', '.join(parts)}; {_describe_cost(cost)}. Prompt: {prompt!r}"


def _describe_cost(cost: Estimate) -> str:
    if cost is None:
        return "cost not known"
    if isinstance(cost, CostRange):
        return f"estimated cost {cost.low:.2f} to {cost.high:.2f} USD"
    return f"estimated cost {cost:.2f} USD"


def _duration(task: VideoTask, asked: Asked | None, files: Sequence[StoredFile]) -> float | None:
    measured = files[0].duration_seconds if files else None
    if measured is not None:
        return measured
    if task.duration_seconds is not None:
        return task.duration_seconds
    return asked.duration_seconds if asked else None


def iso(time: pendulum.DateTime | None) -> str | None:
    """Return a time as ISO 8601, as results and manifests tell it."""
    return None if time is None else time.to_iso8601_string()


def _without_files(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_files(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_files(item) for item in value]
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        return f"{_LEFT_OUT} of {len(value)} characters>"
    return value
