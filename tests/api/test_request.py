"""What a request may be: each rule on both sides of its limit, for each model."""

from __future__ import annotations

import base64
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_kling.api.errors import InvalidRequestError
from airflow_provider_kling.api.request import (
    MAX_IMAGE_BYTES,
    MODEL_LIMITS,
    Fault,
    LocalReference,
    VideoRequest,
    find_faults,
)

from .strategies import JPEG, NEWER, O1, PNG, V3

KNOWN = [O1, V3]
OPTIONAL = sorted(set(VideoRequest.model_fields) - {"model", "prompt"})
URL = "https://example.com/a.png"
CLIP = "https://example.com/v.mp4"


def faults_of(**fields: Any) -> list[Fault]:
    return find_faults({"prompt": "a cat", **fields})


def only_fault_of(**fields: Any) -> Fault:
    (fault,) = faults_of(**fields)
    return fault


def is_taken(**fields: Any) -> bool:
    return not faults_of(**fields)


def body_of(**fields: Any) -> dict[str, Any]:
    body = VideoRequest(**{"prompt": "a cat", "model": V3, **fields}).to_body()
    del body["model"]
    if "prompt" not in fields:
        del body["prompt"]
    return body


def images(count: int, *types: str) -> list[dict[str, str]]:
    return [{"image_url": URL, "type": kind} for kind in types] + [{"image_url": URL}] * (count - len(types))


def elements(count: int) -> list[dict[str, int]]:
    return [{"element_id": 800 + i} for i in range(count)]


def shots(*durations: int | str, prompt: str = "a shot") -> list[dict[str, Any]]:
    return [{"prompt": prompt, "duration": duration} for duration in durations]


def storyboard(*durations: int | str, **fields: Any) -> dict[str, Any]:
    total = str(sum(int(duration) for duration in durations))
    return {
        "model": V3,
        "multi_shot": True,
        "shot_type": "customize",
        "multi_prompt": shots(*durations),
        "duration": total,
        **fields,
    }


# What is sent


def test_a_prompt_alone_is_a_request_and_nothing_else_is_sent() -> None:
    assert VideoRequest(prompt="a cat").to_body() == {"model": V3, "prompt": "a cat"}


def test_everything_that_is_given_is_sent_under_the_services_names() -> None:
    request = VideoRequest(
        model=V3,
        prompt="<<<image_1>>> beside <<<element_1>>> as in <<<video_1>>>",
        mode="pro",
        duration=7,
        aspect_ratio="9:16",
        sound=False,
        image_list=[URL, {"image_url": PNG}],
        element_list=[829836802793406551],
        video_list=[{"video_url": CLIP, "refer_type": "feature", "keep_original_sound": True}],
        multi_shot=False,
        watermark_info=True,
        callback_url="https://airflow.example.com/kling",
        extra_body={"seed": 5},
    )

    assert json.loads(json.dumps(request.to_body())) == {
        "model": "kling-v3-omni",
        "prompt": "<<<image_1>>> beside <<<element_1>>> as in <<<video_1>>>",
        "mode": "pro",
        "duration": "7",
        "aspect_ratio": "9:16",
        "sound": "off",
        "image_list": [{"image_url": URL}, {"image_url": PNG}],
        "element_list": [{"element_id": 829836802793406551}],
        "video_list": [{"video_url": CLIP, "refer_type": "feature", "keep_original_sound": "yes"}],
        "multi_shot": False,
        "watermark_info": {"enabled": True},
        "callback_url": "https://airflow.example.com/kling",
        "seed": 5,
    }


@pytest.mark.parametrize("name", ["prompt", *OPTIONAL])
@pytest.mark.parametrize("nothing", [None, "", "  "])
def test_a_field_that_is_none_or_empty_text_is_left_out(name: str, nothing: str | None) -> None:
    rest = storyboard(5) if name == "prompt" else {"prompt": "a cat"}

    assert name not in VideoRequest(**{**rest, name: nothing}).to_body()


@pytest.mark.parametrize("name", OPTIONAL)
@pytest.mark.parametrize("rendered", ["None", "null", " None "])
def test_what_a_template_makes_of_none_is_left_out(name: str, rendered: str) -> None:
    assert body_of(**{name: rendered}) == {}


@pytest.mark.parametrize("name", ["image_list", "element_list", "video_list", "multi_prompt"])
@pytest.mark.parametrize("empty", [[], (), "[]", " [ ] "])
def test_an_empty_list_is_left_out(name: str, empty: Any) -> None:
    assert body_of(**{name: empty}) == {}


def test_off_and_false_are_sent_and_not_taken_for_left_out() -> None:
    fields = {"sound": "off", "multi_shot": False, "watermark_info": False}

    assert body_of(**fields) == {"sound": "off", "multi_shot": False, "watermark_info": {"enabled": False}}


def test_extra_fields_are_merged_last_and_sent_as_given() -> None:
    extra = {"duration": 99, "mode": None, "newer": {"deep": [1, None, "x"]}}

    assert VideoRequest(prompt="a cat", duration=5, mode="pro", extra_body=extra).to_body() == {
        "model": V3,
        "prompt": "a cat",
        "duration": 99,
        "mode": None,
        "newer": {"deep": [1, None, "x"]},
    }


@pytest.mark.parametrize("extra", ['{"seed": 5, "newer": null}', "{'seed': 5, 'newer': None}"])
def test_extra_fields_can_be_text_that_a_template_rendered(extra: str) -> None:
    assert body_of(extra_body=extra) == {"seed": 5, "newer": None}


@pytest.mark.parametrize("extra", ["seed", "[1]", 5, ["seed"], {"seed": {1, 2}}, {"seed": float("nan")}])
def test_extra_fields_that_no_json_can_hold_are_told_before_anything_is_sent(extra: Any) -> None:
    fault = only_fault_of(extra_body=extra)

    assert fault.field == "extra_body"
    assert fault.allowed.startswith(("a mapping", "only what JSON can hold"))


def test_a_field_that_the_package_does_not_know_is_pointed_to_extra_body() -> None:
    fault = only_fault_of(seed=5)

    assert (fault.field, fault.value) == ("seed", 5)
    assert "extra_body" in fault.allowed


@pytest.mark.parametrize("name", ["a.b", ".a", "[0]", "", "image_list[0]"])
def test_a_field_with_an_odd_name_is_a_fault_like_any_other(name: str) -> None:
    assert only_fault_of(**{name: 1}).field == name


def test_a_request_can_be_read_back_from_what_is_sent() -> None:
    body = {**storyboard(2, 3), "prompt": "for the record", "seed": 5, "extra_body": {"odd": 1}}
    request = VideoRequest.from_body(body)

    assert request.extra_body == {"seed": 5, "extra_body": {"odd": 1}}
    assert VideoRequest.from_body(request.to_body()).to_body() == request.to_body()


def test_reading_back_checks_the_rules_as_well() -> None:
    with pytest.raises(InvalidRequestError, match="duration"):
        VideoRequest.from_body({"model": O1, "prompt": "a cat", "duration": "15"})


def test_a_request_cannot_be_changed_after_the_check() -> None:
    request = VideoRequest(prompt="a cat")

    with pytest.raises(ValueError, match="frozen"):
        request.prompt = None


def test_pydantics_own_way_in_checks_the_rules_as_well() -> None:
    with pytest.raises(ValueError, match="duration"):
        VideoRequest.model_validate({"model": O1, "prompt": "a cat", "duration": "15"})


def test_a_request_survives_pickling() -> None:
    request = VideoRequest(**storyboard(2, 3))

    assert pickle.loads(pickle.dumps(request)) == request


# How faults are told


def test_all_faults_are_told_together_with_field_value_and_what_is_allowed() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        VideoRequest(
            model=O1,
            prompt="<<<image_3>>>",
            mode="4k",
            duration="15",
            aspect_ratio="4:3",
            sound="loud",
            image_list=[{"image_url": URL, "type": "last_frame"}],
            element_list=["cat"],
            multi_shot=True,
            seed=5,
        )

    told = str(caught.value)
    assert {fault.field for fault in caught.value.faults} == {
        *("mode", "duration", "aspect_ratio", "sound", "image_list[0].type", "element_list[0].element_id"),
        *("multi_shot", "shot_type", "seed"),
    }
    for words in (
        "mode: '4k' is not allowed: kling-video-o1 takes std or pro",
        "duration: '15' is not allowed: kling-video-o1 takes 3 to 10 seconds",
        "aspect_ratio: '4:3' is not allowed: kling-video-o1 takes 16:9, 9:16, 1:1",
        "sound: 'loud' is not allowed: one of 'on' or 'off'",
        "image_list[0].type: 'last_frame' is not allowed: one of 'first_frame' or 'end_frame'",
        "element_list[0].element_id: 'cat' is not allowed: a whole number",
        "multi_shot: True is not allowed: kling-video-o1 makes one shot only; kling-v3-omni takes several",
        "9 faults",
        "Nothing was sent and nothing was billed",
    ):
        assert words in told


def test_a_rule_that_reads_a_malformed_field_keeps_silent_until_that_is_mended() -> None:
    assert [fault.field for fault in faults_of(image_list=5.5, prompt="<<<image_1>>>")] == ["image_list"]


def test_a_long_value_is_cut_in_the_message() -> None:
    fault = only_fault_of(model=V3, prompt="x" * 9000)

    assert len(str(fault)) < 250
    assert "has 9000" in str(fault)


def test_a_value_that_cannot_be_shown_does_not_break_the_message() -> None:
    assert "duration: this int is not allowed" in str(only_fault_of(duration=10**5000))


def test_nothing_is_a_fault_of_its_own_kind() -> None:
    assert [fault.field for fault in find_faults({})] == ["prompt"]


# model


@pytest.mark.parametrize("model", KNOWN)
def test_a_known_model_has_limits_and_no_warning(model: str) -> None:
    request = VideoRequest(model=model, prompt="a cat")

    assert request.limits is MODEL_LIMITS[model]
    assert request.warnings() == []


def test_an_unknown_model_is_passed_on_with_a_warning_and_without_its_limits() -> None:
    fields = {
        "model": NEWER,
        "prompt": "x" * 2501,
        "mode": "4k",
        "aspect_ratio": "21:9",
        "duration": "60",
        "image_list": images(9),
        "video_list": [{"video_url": CLIP, "refer_type": "feature"}] * 2,
    }
    request = VideoRequest(**fields)

    assert request.to_body() == fields
    assert request.limits is None
    (warning,) = request.warnings()
    assert NEWER in warning
    assert "price" in warning


def test_an_unknown_model_may_take_more_shots_and_longer_ones() -> None:
    board = storyboard(*[9] * 7, model=NEWER)
    board["multi_prompt"][0]["prompt"] = "x" * 513

    assert is_taken(**board)


def test_rules_between_fields_hold_for_an_unknown_model_too() -> None:
    assert only_fault_of(model=NEWER, sound="on", video_list=[CLIP]).field == "sound"
    assert only_fault_of(model=NEWER, image_list=images(1, "end_frame")).field == "image_list"


@pytest.mark.parametrize("model", [None, "", " ", "None", 5, b""])
def test_a_model_without_an_id_is_a_fault_and_never_the_default(model: Any) -> None:
    assert only_fault_of(model=model).field == "model"


# prompt


@pytest.mark.parametrize("model", KNOWN)
def test_a_prompt_has_2500_characters_and_not_one_more(model: str) -> None:
    assert is_taken(model=model, prompt="x" * 2500)
    assert is_taken(model=model, prompt="\U0001f408" * 2500)

    fault = only_fault_of(model=model, prompt="x" * 2501)
    assert fault.field == "prompt"
    assert model in fault.allowed
    assert "2501" in fault.allowed


@pytest.mark.parametrize(
    "fields",
    [{}, {"model": V3, "multi_shot": True, "shot_type": "intelligence"}, {"multi_shot": False}],
)
@pytest.mark.parametrize("prompt", [None, "", " \n"])
def test_a_prompt_is_needed(fields: dict[str, Any], prompt: str | None) -> None:
    assert only_fault_of(prompt=prompt, **fields).field == "prompt"


def test_a_storyboard_needs_no_prompt() -> None:
    assert is_taken(**storyboard(2, 3, prompt=None))


@pytest.mark.parametrize("prompt", ["None", "null", " None\n"])
def test_a_prompt_that_a_template_made_of_a_missing_value_is_a_fault(prompt: str) -> None:
    fault = only_fault_of(prompt=prompt)

    assert fault.field == "prompt"
    assert "template" in fault.allowed


@pytest.mark.parametrize("prompt", ["None of them", "[a cat]", '{"a": 1}', " padded ", "true", "5"])
def test_a_prompt_is_sent_letter_by_letter(prompt: str) -> None:
    assert body_of(prompt=prompt) == {"prompt": prompt}


@pytest.mark.parametrize("prompt", [5, True, ["a cat"], {"a": "cat"}, b"a cat"])
def test_a_prompt_is_text(prompt: Any) -> None:
    assert only_fault_of(prompt=prompt) == Fault("prompt", prompt, "text")


@pytest.mark.parametrize("kind", ["image", "element", "video"])
def test_a_prompt_can_name_what_is_there_and_nothing_more(kind: str) -> None:
    lists: dict[str, list[Any]] = {
        "image_list": [URL] * 2,
        "element_list": [1] * 2,
        "video_list": [{"video_url": CLIP, "refer_type": "feature"}],
    }
    there = len(lists[f"{kind}_list"])

    assert is_taken(prompt=f"<<<{kind}_1>>> and <<<{kind}_{there}>>>", **lists)
    fault = only_fault_of(prompt=f"<<<{kind}_1>>> and <<<{kind}_{there + 1}>>>", **lists)
    assert (fault.field, fault.value) == ("prompt", f"<<<{kind}_{there + 1}>>>")
    assert f"{kind}_list has {there} entr" in fault.allowed


def test_a_name_with_no_list_at_all_says_so() -> None:
    assert only_fault_of(prompt="<<<video_1>>>").allowed == "video_list has no entries"


def test_each_wrong_name_in_a_prompt_is_told_once() -> None:
    prompt = "<<<image_8>>> <<<image_9>>> <<<image_8>>>"

    assert [fault.value for fault in faults_of(prompt=prompt)] == ["<<<image_8>>>", "<<<image_9>>>"]


@pytest.mark.parametrize(
    "name",
    [
        "image_0",
        "image_01",
        "image_",
        "image",
        "Image_1",
        " image_1 ",
        "picture_1",
        "",
        "image_1\n",
        "image_\u0663",
    ],
)
def test_a_name_that_is_no_reference_is_a_fault(name: str) -> None:
    fault = only_fault_of(prompt=f"<<<{name}>>>", image_list=[URL] * 3)

    assert fault.value == f"<<<{name}>>>"
    assert "image_N" in fault.allowed


def test_a_reference_number_beyond_all_bounds_is_a_fault_like_any_other() -> None:
    prompt = f"<<<image_{'1' * 5000}>>>"

    assert only_fault_of(model=NEWER, prompt=prompt, image_list=[URL]).field == "prompt"


def test_a_shot_can_name_references_too() -> None:
    board = storyboard(2, 3, image_list=[URL])
    board["multi_prompt"][1]["prompt"] = "<<<image_1>>>"
    assert is_taken(**board)

    board["multi_prompt"][1]["prompt"] = "<<<image_2>>>"
    assert only_fault_of(**board).field == "multi_prompt[1].prompt"


# mode, aspect_ratio


@pytest.mark.parametrize("model", KNOWN)
@pytest.mark.parametrize(
    ("field", "allowed", "refused"),
    [
        ("mode", ["std", "pro"], ["4k", "STD", "standard"]),
        ("aspect_ratio", ["16:9", "9:16", "1:1"], ["4:3", "16x9", "16:9:1"]),
    ],
)
def test_a_word_of_a_fixed_set_is_taken_and_another_is_not(
    model: str, field: str, allowed: list[str], refused: list[str]
) -> None:
    for word in allowed:
        assert is_taken(**{"model": model, field: word})
        assert body_of(**{"model": model, field: f" {word} "}) == {field: word}
    for word in refused:
        fault = only_fault_of(**{"model": model, field: word})
        assert (fault.field, fault.value) == (field, word)
        assert model in fault.allowed
        for other in allowed:
            assert other in fault.allowed


# duration


@pytest.mark.parametrize(("model", "longest"), [(O1, 10), (V3, 15)])
def test_a_duration_is_within_its_models_limits(model: str, longest: int) -> None:
    for seconds in (3, longest):
        assert is_taken(model=model, duration=seconds)
        assert is_taken(model=model, duration=str(seconds))
    for seconds in (0, 1, 2, longest + 1, 100):
        fault = only_fault_of(model=model, duration=seconds)
        assert (fault.field, fault.value) == ("duration", str(seconds))
        assert fault.allowed == f"{model} takes 3 to {longest} seconds"


@pytest.mark.parametrize("given", [5, 5.0, "5", " 5 ", "05", "5.0", "5.00"])
def test_a_duration_is_sent_as_a_string_of_whole_seconds(given: Any) -> None:
    assert body_of(duration=given) == {"duration": "5"}


@pytest.mark.parametrize(
    "given",
    [5.5, "5.5", "five", "5s", -5, "-5", "1e1", "\u0665", True, [5], {}, b"5", 10_000, "10000", float("inf")],
)
def test_a_duration_that_is_no_whole_seconds_is_a_fault(given: Any) -> None:
    fault = only_fault_of(duration=given)

    assert (fault.field, fault.allowed) == ("duration", "a whole number of seconds")


# sound


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (True, "on"),
        (False, "off"),
        ("on", "on"),
        ("off", "off"),
        ("True", "on"),
        ("false", "off"),
        ("ON", "on"),
    ],
)
def test_sound_is_a_bool_or_a_word(given: Any, sent: str) -> None:
    assert body_of(sound=given) == {"sound": sent}


@pytest.mark.parametrize("given", ["loud", 1, 0, ["on"]])
def test_sound_of_another_kind_is_a_fault(given: Any) -> None:
    assert only_fault_of(sound=given).field == "sound"


@pytest.mark.parametrize("model", KNOWN)
@pytest.mark.parametrize("refer_type", ["base", "feature", None])
def test_sound_is_off_beside_a_reference_video(model: str, refer_type: str | None) -> None:
    video_list = [{"video_url": CLIP, "refer_type": refer_type}]

    assert is_taken(model=model, sound="off", video_list=video_list)
    assert is_taken(model=model, sound="on")
    fault = only_fault_of(model=model, sound="on", video_list=video_list)
    assert (fault.field, fault.value) == ("sound", "on")
    assert "keep_original_sound" in fault.allowed


# image_list


@pytest.mark.parametrize(
    "given",
    [
        URL,
        [URL],
        (URL,),
        {"image_url": URL},
        [{"image_url": f" {URL} "}],
        json.dumps([URL]),
        json.dumps([{"image_url": URL}]),
        json.dumps({"image_url": URL}),
        repr([URL]),
        repr([{"image_url": URL, "type": None}]),
        f" {URL}\n",
    ],
)
def test_an_image_can_be_a_url_a_mapping_or_what_a_template_makes_of_them(given: Any) -> None:
    assert body_of(image_list=given) == {"image_list": [{"image_url": URL}]}


@pytest.mark.parametrize(
    "given", [5.5, True, b"x", {URL}, (url for url in [URL]), [None], [[URL]], [5], "[1, 2"]
)
def test_an_image_list_of_another_kind_is_a_fault(given: Any) -> None:
    (field,) = {fault.field.split("[")[0] for fault in faults_of(image_list=given)}

    assert field == "image_list"


def test_a_generator_is_not_silently_taken_for_an_empty_list() -> None:
    given = ({"image_url": url} for url in [URL])

    assert only_fault_of(image_list=given).allowed == "a list"


@pytest.mark.parametrize("content", [PNG, JPEG])
def test_an_image_can_be_base64(content: str) -> None:
    assert body_of(image_list=[content]) == {"image_list": [{"image_url": content}]}


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("cat.png", "URL"),
        ("cat.png", "a path"),
        ("s3://", "URL"),
        ("images/cat.png", "URL"),
        ("https://", "URL"),
        ("https://example.com/a b.png", "URL"),
        ("https://example.com/a\nb.png", "URL"),
        ("http://[1", "URL"),
        ("https://example.com:port]/", "URL"),
        (base64.b64encode(b"GIF89a").decode(), "jpg or png"),
        ("data:image/png;base64," + PNG, "without the data: prefix"),
        ("\u00e4", "URL"),
        ("HTTP:/example.com/a.png", "URL"),
        ("/9j/4AAQSkZJRgAB\nAQAA", "one line"),
        ("/9j/4AAQSkZJRgABAQA", "cannot be decoded"),
        (PNG + "A", "cannot be decoded"),
        ("/data/cat\0.png", "without control characters"),
        ("/data/cat\n.png", "without control characters"),
        ("/" + "x" * 4096, "at most 4096 characters, this has 4097"),
    ],
)
def test_an_image_that_is_neither_url_nor_base64_is_a_fault(url: str, why: str) -> None:
    fault = only_fault_of(image_list=[URL, url])

    assert (fault.field, fault.value) == ("image_list[1].image_url", url)
    assert why in fault.allowed


def test_an_inline_image_has_10_megabytes_at_the_most() -> None:
    magic = b"\x89PNG\r\n\x1a\n"
    allowed = base64.b64encode(magic + bytes(MAX_IMAGE_BYTES - len(magic))).decode()
    refused = base64.b64encode(magic + bytes(MAX_IMAGE_BYTES - len(magic) + 1)).decode()

    assert MAX_IMAGE_BYTES == 10 * 1024 * 1024
    assert is_taken(image_list=[allowed])
    assert f"{MAX_IMAGE_BYTES + 1}" in only_fault_of(image_list=[refused]).allowed


@pytest.mark.parametrize("empty", ["", None])
def test_an_image_without_an_address_is_a_fault(empty: str | None) -> None:
    assert only_fault_of(image_list=[{"image_url": empty}]).field == "image_list[0].image_url"
    assert only_fault_of(image_list=[{"type": "first_frame"}]) == Fault(
        "image_list[0].image_url", None, "it is needed"
    )


def test_a_misspelt_key_of_an_image_is_a_fault() -> None:
    assert only_fault_of(image_list=[{"image_url": URL, "kind": "first_frame"}]).field == "image_list[0].kind"


@pytest.mark.parametrize("model", KNOWN)
def test_there_is_one_first_frame_and_one_end_frame_at_the_most(model: str) -> None:
    assert is_taken(model=model, image_list=images(1, "first_frame"))
    assert is_taken(model=model, image_list=images(2, "first_frame", "end_frame"))
    assert is_taken(model=model, image_list=images(2, "end_frame", "first_frame"))

    assert (
        only_fault_of(model=model, image_list=images(2, "first_frame", "first_frame")).field == "image_list"
    )
    fault = only_fault_of(model=V3, image_list=images(3, "first_frame", "end_frame", "end_frame"))
    assert "end_frame" in fault.allowed


@pytest.mark.parametrize("model", KNOWN)
def test_an_end_frame_needs_a_first_frame(model: str) -> None:
    fault = only_fault_of(model=model, image_list=images(2, "end_frame"))

    assert (fault.field, fault.value) == ("image_list", "end_frame")


@pytest.mark.parametrize("model", KNOWN)
@pytest.mark.parametrize("types", [["first_frame"], ["first_frame", "end_frame"]])
def test_frames_do_not_stand_beside_a_video_that_is_edited(model: str, types: list[str]) -> None:
    frames = images(len(types), *types)

    assert is_taken(model=model, image_list=frames, video_list=[{"video_url": CLIP, "refer_type": "feature"}])
    assert is_taken(model=model, image_list=images(1), video_list=[CLIP])
    for video in (CLIP, {"video_url": CLIP, "refer_type": "base"}):
        found = faults_of(model=model, image_list=frames, video_list=[video])
        assert [fault.value for fault in found] == types


@pytest.mark.parametrize("types", [["first_frame"], ["first_frame", "end_frame"]])
def test_frames_do_not_go_with_several_shots(types: list[str]) -> None:
    frames = images(len(types), *types)
    several = {"model": V3, "multi_shot": True, "shot_type": "intelligence"}

    assert is_taken(**several, image_list=images(2))
    assert is_taken(model=V3, multi_shot=False, image_list=frames)
    assert [fault.value for fault in faults_of(**several, image_list=frames)] == types


def test_o1_takes_two_images_with_an_end_frame_and_v3_omni_takes_more() -> None:
    three = images(3, "first_frame", "end_frame")

    assert is_taken(model=O1, image_list=images(2, "first_frame", "end_frame"))
    assert is_taken(model=O1, image_list=images(7, "first_frame"))
    assert is_taken(model=V3, image_list=three)
    fault = only_fault_of(model=O1, image_list=three)
    assert (fault.field, fault.value) == ("image_list", "3 images")
    assert O1 in fault.allowed


# element_list


@pytest.mark.parametrize(
    "given", [7, [7], ["7"], "[7]", {"element_id": 7}, [{"element_id": "7"}], '[{"element_id": 7}]', "7"]
)
def test_an_element_can_be_a_number_a_mapping_or_what_a_template_makes_of_them(given: Any) -> None:
    assert body_of(element_list=given) == {"element_list": [{"element_id": 7}]}


@pytest.mark.parametrize(
    "given", [["cat"], [True], [{"element_id": True}], [7.5], [{"element_id": 7.5}], [None], 7.5]
)
def test_an_element_without_a_whole_number_is_a_fault(given: Any) -> None:
    assert only_fault_of(element_list=given).field.startswith("element_list")


@pytest.mark.parametrize("model", KNOWN)
def test_three_elements_stand_beside_a_first_frame(model: str) -> None:
    first = images(1, "first_frame")

    assert is_taken(model=model, image_list=first, element_list=elements(3))
    assert is_taken(model=model, image_list=images(1), element_list=elements(4))
    fault = only_fault_of(model=model, image_list=first, element_list=elements(4))
    assert (fault.field, fault.value) == ("element_list", "4 elements")
    assert fault.allowed == f"{model} takes at most 3 beside a first_frame"


def test_with_an_end_frame_v3_omni_takes_three_elements_and_o1_none() -> None:
    both = images(2, "first_frame", "end_frame")

    assert is_taken(model=V3, image_list=both, element_list=elements(3))
    assert only_fault_of(model=V3, image_list=both, element_list=elements(4)).field == "element_list"
    assert is_taken(model=O1, image_list=both)
    fault = only_fault_of(model=O1, image_list=both, element_list=elements(1))
    assert fault.allowed == f"{O1} takes none beside an end_frame"


# video_list


@pytest.mark.parametrize(
    "given", [CLIP, [CLIP], {"video_url": CLIP}, [{"video_url": CLIP, "refer_type": ""}], json.dumps([CLIP])]
)
def test_a_plain_url_stands_for_a_video_to_be_edited(given: Any) -> None:
    request = VideoRequest(prompt="a cat", video_list=given)

    assert request.to_body()["video_list"] == [{"video_url": CLIP}]
    assert request.base_video is not None


def test_a_video_taken_for_its_style_is_not_edited() -> None:
    request = VideoRequest(prompt="a cat", video_list=[{"video_url": CLIP, "refer_type": "feature"}])

    assert request.base_video is None
    assert VideoRequest(prompt="a cat").base_video is None


@pytest.mark.parametrize("model", KNOWN)
def test_there_is_one_video_at_the_most(model: str) -> None:
    fault = only_fault_of(model=model, video_list=[CLIP, CLIP])

    assert (fault.field, fault.value) == ("video_list", "2 videos")
    assert model in fault.allowed


@pytest.mark.parametrize(
    "url", ["v.mp4", "https://", "AAAA", "http://[", "https://a/\tb", "/data/v\t.mp4", "s3://"]
)
def test_a_video_is_a_url_or_a_file(url: str) -> None:
    assert only_fault_of(video_list=[url]).field == "video_list[0].video_url"


# Files: what the service cannot fetch itself

FILES = [
    "/data/cat",
    "./cat",
    "../cat",
    "~/cat",
    "~someone/cat",
    "file:///data/cat",
    "s3://bucket/cat",
    "s3://my_conn@bucket/a b/cat",
    "gs://bucket/cat",
    "abfs://container@account/cat",
    "ftp://example.com/cat",
    "/9j/photos/my cat",
    "/9j/photos/cat.jpg",
    "/data/Kätzchen",
]


@pytest.mark.parametrize("file", FILES)
def test_a_path_or_a_uri_is_a_file_to_be_uploaded(file: str) -> None:
    request = VideoRequest(prompt="a cat", image_list=[URL, f"{file}.png"], video_list=[f"{file}.mp4"])

    assert request.local_references() == [
        LocalReference("image_list[1].image_url", f"{file}.png", "image"),
        LocalReference("video_list[0].video_url", f"{file}.mp4", "video"),
    ]


@pytest.mark.parametrize("address", [URL, "HTTPS://example.com/a.png", PNG, JPEG])
def test_what_the_service_can_use_as_it_is_is_no_file(address: str) -> None:
    assert VideoRequest(prompt="a cat", image_list=[address]).local_references() == []
    VideoRequest(prompt="a cat", image_list=[address]).check_sendable()


def test_text_that_can_be_base64_and_a_path_is_base64() -> None:
    text = base64.b64encode(b"\xff\xd8\xff\xe0" + bytes(8)).decode()
    assert text.startswith("/9j/")

    assert VideoRequest(prompt="a cat", image_list=[text]).local_references() == []
    assert len(VideoRequest(prompt="a cat", image_list=[f"file://{text}"]).local_references()) == 1


def test_an_image_in_the_request_can_be_taken_out() -> None:
    request = VideoRequest(prompt="a cat", image_list=[PNG, URL, "/data/cat.png"])

    contents = [image.content for image in request.image_list or ()]
    assert contents == [base64.b64decode(PNG), None, None]


class StoragePath:
    """As a path of object storage: not an ``os.PathLike``."""

    def __str__(self) -> str:
        return "s3://my_conn@bucket/cat"

    def as_uri(self) -> str:
        return "s3://bucket/cat"


@pytest.mark.parametrize(
    ("path", "written"),
    [(Path("/data/cat"), "/data/cat"), (StoragePath(), "s3://my_conn@bucket/cat")],
)
@pytest.mark.parametrize("wrap", [lambda path: path, lambda path: [path]])
def test_path_objects_are_files_too(path: Any, written: str, wrap: Any) -> None:
    request = VideoRequest(prompt="a cat", image_list=wrap(path), video_list=wrap({"video_url": path}))

    assert [local.reference for local in request.local_references()] == [written, written]
    assert json.loads(json.dumps(request.to_body()))["image_list"] == [{"image_url": written}]


def test_a_relative_path_object_is_a_file_though_such_a_text_is_none() -> None:
    [local] = VideoRequest(prompt="a cat", image_list=[Path("./cats/1.png")]).local_references()
    assert local.reference == "./cats/1.png"
    assert "a path" in only_fault_of(image_list=["cats/1.png"]).allowed


def test_files_are_replaced_by_their_urls_and_nothing_else_changes() -> None:
    fields: dict[str, Any] = {
        "prompt": "a cat",
        "image_list": [{"image_url": "/data/a.png"}, {"image_url": PNG}, {"image_url": "/data/a.png"}],
        "video_list": [{"video_url": "s3://b/v.mp4", "refer_type": "feature", "keep_original_sound": "yes"}],
        "extra_body": {"seed": 7},
    }
    before = VideoRequest(**fields)
    after = before.with_references(
        {"/data/a.png": URL, "s3://b/v.mp4": CLIP, "/elsewhere": "https://x.org/x"}
    )

    assert after.to_body() == {
        **before.to_body(),
        "image_list": [{"image_url": URL}, {"image_url": PNG}, {"image_url": URL}],
        "video_list": [{"video_url": CLIP, "refer_type": "feature", "keep_original_sound": "yes"}],
    }
    assert after.local_references() == []
    assert [local.reference for local in before.local_references()] == ["/data/a.png"] * 2 + ["s3://b/v.mp4"]
    assert VideoRequest.from_body(after.to_body()) == after


def test_a_request_without_references_stays_as_it_is() -> None:
    request = VideoRequest(prompt="a cat")
    assert request.with_references({"/data/a.png": URL}) == request
    assert request.with_references({}).to_body() == request.to_body()


def test_a_request_with_files_cannot_be_sent() -> None:
    request = VideoRequest(prompt="a cat", image_list=[URL, "/data/a.png"], video_list=["s3://b/v.mp4"])
    with pytest.raises(InvalidRequestError) as raised:
        request.check_sendable()
    assert [fault.field for fault in raised.value.faults] == [
        "image_list[1].image_url",
        "video_list[0].video_url",
    ]
    assert "uploaded first" in str(raised.value)


@pytest.mark.parametrize(
    ("given", "sent"), [("yes", "yes"), ("no", "no"), (True, "yes"), (False, "no"), ("True", "yes")]
)
def test_keeping_the_original_sound_is_a_bool_or_a_word(given: Any, sent: str) -> None:
    body = body_of(video_list=[{"video_url": CLIP, "keep_original_sound": given}])

    assert body["video_list"] == [{"video_url": CLIP, "keep_original_sound": sent}]


@pytest.mark.parametrize(("key", "value"), [("refer_type", "style"), ("keep_original_sound", "on")])
def test_a_video_with_another_word_is_a_fault(key: str, value: str) -> None:
    fault = only_fault_of(video_list=[{"video_url": CLIP, key: value}])

    assert (fault.field, fault.value) == (f"video_list[0].{key}", value)


def test_a_duration_beside_a_video_that_is_edited_is_warned_about() -> None:
    (warning,) = VideoRequest(prompt="a cat", duration=7, video_list=[CLIP]).warnings()

    assert "'7'" in warning
    assert "feature" in warning
    feature = {"video_url": CLIP, "refer_type": "feature"}
    assert VideoRequest(prompt="a cat", duration=7, video_list=[feature]).warnings() == []
    assert VideoRequest(prompt="a cat", video_list=[CLIP]).warnings() == []


# images and elements together


@pytest.mark.parametrize("model", KNOWN)
@pytest.mark.parametrize(("image_count", "element_count"), [(7, 0), (0, 7), (3, 4)])
def test_seven_images_and_elements_go_together_and_not_one_more(
    model: str, image_count: int, element_count: int
) -> None:
    lists: dict[str, list[Any]] = {
        "image_list": images(image_count),
        "element_list": elements(element_count),
    }
    assert is_taken(model=model, **lists)

    more = "image_list" if image_count else "element_list"
    lists[more] = lists[more] + lists[more][:1]
    fault = only_fault_of(model=model, **lists)
    assert fault.field == more
    assert fault.allowed == f"{model} takes at most 7 together"


@pytest.mark.parametrize("model", KNOWN)
@pytest.mark.parametrize("refer_type", ["base", "feature"])
@pytest.mark.parametrize(("image_count", "element_count"), [(4, 0), (0, 4), (1, 3)])
def test_four_images_and_elements_go_beside_a_video_and_not_one_more(
    model: str, refer_type: str, image_count: int, element_count: int
) -> None:
    video_list = [{"video_url": CLIP, "refer_type": refer_type}]
    lists = {"image_list": images(image_count), "element_list": elements(element_count)}
    assert is_taken(model=model, video_list=video_list, **lists)

    lists["element_list"] = elements(element_count + 1)
    fault = only_fault_of(model=model, video_list=video_list, **lists)
    assert fault.allowed == f"{model} takes at most 4 together beside a video"


# several shots


def test_o1_makes_one_shot_only() -> None:
    assert is_taken(model=O1, multi_shot=False)
    assert [fault.field for fault in faults_of(**storyboard(2, 3, model=O1))] == [
        *("multi_shot", "shot_type", "multi_prompt"),
    ]


def test_several_shots_need_a_shot_type() -> None:
    assert is_taken(model=V3, multi_shot=True, shot_type="intelligence")
    assert only_fault_of(model=V3, multi_shot=True).field == "shot_type"


@pytest.mark.parametrize("multi_shot", [None, False])
def test_a_shot_type_needs_several_shots(multi_shot: bool | None) -> None:
    assert only_fault_of(model=V3, multi_shot=multi_shot, shot_type="intelligence").field == "shot_type"


@pytest.mark.parametrize("given", [True, "true", "True"])
def test_several_shots_can_be_asked_for_by_a_template(given: Any) -> None:
    assert body_of(multi_shot=given, shot_type="intelligence")["multi_shot"] is True


@pytest.mark.parametrize(
    ("field", "value"), [("multi_shot", "several"), ("shot_type", "auto"), ("multi_shot", 2)]
)
def test_another_word_for_several_shots_is_a_fault(field: str, value: Any) -> None:
    assert only_fault_of(**{"multi_shot": True, "shot_type": "intelligence", field: value}).field == field


@pytest.mark.parametrize(
    ("fields", "at_fault"),
    [
        ({}, ["multi_prompt"]),
        ({"multi_shot": True, "shot_type": "intelligence"}, ["multi_prompt"]),
        ({"multi_shot": False, "shot_type": "customize"}, ["shot_type", "multi_prompt"]),
    ],
)
def test_shots_need_customize(fields: dict[str, Any], at_fault: list[str]) -> None:
    found = faults_of(model=V3, multi_prompt=shots(5), **fields)

    assert [fault.field for fault in found] == at_fault


def test_customize_needs_shots() -> None:
    assert only_fault_of(model=V3, multi_shot=True, shot_type="customize").field == "multi_prompt"


def test_a_prompt_that_a_storyboard_does_not_use_is_warned_about() -> None:
    (warning,) = VideoRequest(prompt="a cat", **storyboard(5)).warnings()

    assert "prompt is ignored" in warning
    assert VideoRequest(**storyboard(5)).warnings() == []
    intelligence = {"model": V3, "multi_shot": True, "shot_type": "intelligence"}
    assert VideoRequest(prompt="a cat", **intelligence).warnings() == []


def test_a_storyboard_has_six_shots_and_not_one_more() -> None:
    assert is_taken(**storyboard(1, 1, 1, 1, 1, 1))
    fault = only_fault_of(**storyboard(1, 1, 1, 1, 1, 1, 1))
    assert (fault.field, fault.value) == ("multi_prompt", "7 shots")
    assert V3 in fault.allowed


def test_a_shot_has_512_characters_and_not_one_more() -> None:
    assert is_taken(**storyboard(2, 3, multi_prompt=shots(2, 3, prompt="x" * 512)))

    found = faults_of(**storyboard(2, 3, multi_prompt=shots(2, 3, prompt="x" * 513)))
    assert [fault.field for fault in found] == ["multi_prompt[0].prompt", "multi_prompt[1].prompt"]
    assert "513" in found[0].allowed
    assert V3 in found[0].allowed


def test_a_shot_lasts_a_second_or_more() -> None:
    assert is_taken(**storyboard(1, 4))
    assert only_fault_of(**storyboard(0, 5)).field == "multi_prompt[0].duration"


@pytest.mark.parametrize("durations", [(2, 2), (2, 4)])
def test_shots_add_up_to_the_videos_duration(durations: tuple[int, ...]) -> None:
    fault = only_fault_of(**storyboard(*durations, duration="5"))

    assert (fault.field, fault.value) == ("multi_prompt", f"{sum(durations)} seconds in all")
    assert "5 seconds" in fault.allowed


def test_shots_add_up_to_the_default_where_no_duration_is_given() -> None:
    assert is_taken(**storyboard(2, 3, duration=None))
    assert "default" in only_fault_of(**storyboard(2, 4, duration=None)).allowed


def test_shots_are_numbered_as_they_stand() -> None:
    board = storyboard(2, "3")

    assert VideoRequest(**board).to_body()["multi_prompt"] == [
        {"index": 1, "prompt": "a shot", "duration": "2"},
        {"index": 2, "prompt": "a shot", "duration": "3"},
    ]


def test_the_authors_own_numbers_of_shots_are_kept() -> None:
    board = storyboard(2, 3)
    for shot, index in zip(board["multi_prompt"], [2, 1], strict=True):
        shot["index"] = index

    assert [shot["index"] for shot in VideoRequest(**board).to_body()["multi_prompt"]] == [2, 1]


@pytest.mark.parametrize("numbers", [(1, 1), (0, 1), (1, 3), (2, 2)])
def test_each_number_of_a_shot_is_there_once(numbers: tuple[int, int]) -> None:
    board = storyboard(2, 3)
    for shot, index in zip(board["multi_prompt"], numbers, strict=True):
        shot["index"] = index

    fault = only_fault_of(**board)
    assert fault.field == "multi_prompt"
    assert str(list(numbers)) in str(fault.value)


@pytest.mark.parametrize(
    ("shot", "field"),
    [
        ({"duration": 5}, "multi_prompt[0].prompt"),
        ({"prompt": "", "duration": 5}, "multi_prompt[0].prompt"),
        ({"prompt": "x"}, "multi_prompt[0].duration"),
        ({"prompt": "x", "duration": None}, "multi_prompt[0].duration"),
        ({"prompt": "x", "duration": "two"}, "multi_prompt[0].duration"),
        ({"prompt": "x", "duration": 5, "index": True}, "multi_prompt[0].index"),
        ({"prompt": "x", "duration": 5, "sound": "on"}, "multi_prompt[0].sound"),
        ("x", "multi_prompt[0].duration"),
    ],
)
def test_a_shot_that_lacks_something_or_has_too_much_is_a_fault(shot: Any, field: str) -> None:
    assert only_fault_of(**storyboard(5, multi_prompt=[shot])).field == field


@pytest.mark.parametrize("render", [json.dumps, repr])
def test_a_storyboard_can_be_text_that_a_template_rendered(render: Any) -> None:
    board = storyboard(2, 3)
    rendered = {**board, "multi_prompt": render(board["multi_prompt"]), "multi_shot": "True"}

    assert VideoRequest(**rendered).to_body() == VideoRequest(**board).to_body()


# watermark_info, callback_url


@pytest.mark.parametrize(
    ("given", "enabled"),
    [
        (True, True),
        ("false", False),
        ({"enabled": True}, True),
        ('{"enabled": false}', False),
        ("True", True),
    ],
)
def test_a_watermark_is_a_bool_or_the_services_mapping(given: Any, enabled: bool) -> None:
    assert body_of(watermark_info=given) == {"watermark_info": {"enabled": enabled}}


@pytest.mark.parametrize(
    "given", ["bottom", 5, [True], {}, {"enabled": "maybe"}, {"enabled": True, "text": "x"}]
)
def test_a_watermark_of_another_kind_is_a_fault(given: Any) -> None:
    assert only_fault_of(watermark_info=given).field.startswith("watermark_info")


def test_a_callback_goes_to_a_url() -> None:
    assert body_of(callback_url="http://airflow:8080/kling") == {"callback_url": "http://airflow:8080/kling"}
    for url in ("airflow", "/kling", "ftp://airflow/kling", "https://", 5):
        assert only_fault_of(callback_url=url).field == "callback_url"


# Values that come later


def test_a_rule_waits_for_the_values_that_it_reads() -> None:
    fields = {"model": O1, "prompt": "a cat", "duration": "15", "mode": "4k"}

    assert [fault.field for fault in find_faults(fields)] == ["mode", "duration"]
    assert [fault.field for fault in find_faults(fields, unknown=frozenset({"duration"}))] == ["mode"]
    assert find_faults(fields, unknown=frozenset({"model"})) == []


def test_a_template_in_place_of_a_value_is_not_read() -> None:
    fields = {"prompt": "{{ params.prompt }}", "duration": "{{ params.seconds }}", "sound": "maybe"}

    found = find_faults(fields, unknown=frozenset({"prompt", "duration"}))
    assert [fault.field for fault in found] == ["sound"]


def test_a_prompt_that_comes_later_is_not_missed() -> None:
    assert find_faults({"prompt": ""}, unknown=frozenset({"prompt"})) == []
    assert find_faults({"prompt": None}, unknown=frozenset({"multi_shot"})) == []


FULL: list[dict[str, Any]] = [
    storyboard(2, 6, image_list=images(2), element_list=elements(5), mode="pro", sound=True, prompt=None),
    {
        "model": V3,
        "prompt": "<<<image_2>>>, <<<element_2>>>, <<<video_1>>>",
        "image_list": images(2, "first_frame", "end_frame"),
        "element_list": elements(2),
        "video_list": [{"video_url": CLIP, "refer_type": "feature"}],
        "sound": "off",
        "multi_shot": False,
    },
    {"model": V3, "prompt": "x" * 2500, "multi_shot": True, "shot_type": "intelligence", "duration": 15},
    {"model": O1, "prompt": "a cat", "image_list": images(7, "first_frame"), "duration": 10},
    {"model": O1, "prompt": "a cat", "video_list": [CLIP], "element_list": elements(4)},
    {"model": NEWER, "prompt": "x" * 3000, "mode": "4k", "aspect_ratio": "21:9", "element_list": elements(9)},
    {
        "model": NEWER,
        "prompt": "a cat",
        "image_list": images(1, "first_frame"),
        "element_list": elements(4),
        "video_list": [{"video_url": CLIP, "refer_type": "feature"}] * 2,
        "duration": 60,
    },
    storyboard(1, 1, 1, 1, 1, 1, 1, model=NEWER),
]


@pytest.mark.parametrize("fields", FULL)
def test_a_right_request_stays_right_while_some_of_its_values_are_still_to_come(
    fields: dict[str, Any],
) -> None:
    assert find_faults(fields) == []

    for later in [{one, other} for one in fields for other in fields]:
        left = {name: value for name, value in fields.items() if name not in later}
        assert find_faults(left, unknown=frozenset(later)) == [], later
