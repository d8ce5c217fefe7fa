"""What holds for every request, drawn by hypothesis and judged by the rules as written in ``contract.py``."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, note
from hypothesis import strategies as st

from airflow_provider_kling.api.errors import InvalidRequestError
from airflow_provider_kling.api.pricing import estimate
from airflow_provider_kling.api.request import Fault, VideoRequest, find_faults

from .contract import misshapen_in, rules_broken_by
from .strategies import BRIEF, NEWER, O1, PNG, THOROUGH, V3, json_like, request_fields

pytestmark = pytest.mark.untraced

FIELDS = sorted(VideoRequest.model_fields)
INNER = [
    *("image_url", "type", "element_id", "video_url", "refer_type", "keep_original_sound"),
    *("index", "prompt", "duration", "enabled"),
]
junk = json_like(*FIELDS, *INNER)
junk_fields = st.dictionaries(
    st.one_of(st.sampled_from(FIELDS), st.sampled_from(FIELDS), st.text(max_size=6)), junk, max_size=8
)
RIGHT: list[dict[str, Any]] = [
    {"model": V3, "prompt": "a cat"},
    {"model": O1, "prompt": "a cat", "duration": "5"},
    {"model": NEWER, "prompt": "a cat", "mode": "pro", "sound": "off"},
    {
        "model": V3,
        "prompt": "<<<image_1>>>",
        "image_list": [{"image_url": PNG}],
        "element_list": [{"element_id": 7}],
    },
    {
        "model": V3,
        "multi_shot": True,
        "shot_type": "customize",
        "multi_prompt": [{"prompt": "x", "duration": "5"}],
    },
]
tempting = st.sampled_from(
    [
        *(True, False, 0, 1, 5, 5.0, 7.5, b"", b"x", "", " ", "5 ", "5.0", "true", "on", "yes", "None"),
        *([], (), {}, [""], [None], [7], [True], ["7"], [7.0], {7}, "[7]", "[True]", '{"element_id": true}'),
        ["https://example.com/a"],
        "https://example.com/a",
        "{'https://example.com/a'}",
        [b"https://example.com/a"],
        *([{"image_url": PNG, "type": ""}], [{"video_url": "https://example.com/a", "refer_type": None}]),
        *({"enabled": 1}, {"enabled": "no"}, '{"enabled": null}', {"seed": 1}),
        [{"prompt": "x", "duration": 5.0}],
        [{"prompt": b"", "duration": True}],
        '[{"prompt": "x", "duration": 5}]',
    ]
)


def in_the_services_form(fields: dict[str, Any]) -> dict[str, Any]:
    """Write the fields as they should go over the wire; nothing that is empty is there."""
    body = {name: value for name, value in fields.items() if value != [] and value != ""}
    if not str(body.get("prompt", "x")).strip():
        del body["prompt"]
    if "duration" in body:
        body["duration"] = str(body["duration"])
    if isinstance(body.get("sound"), bool):
        body["sound"] = "on" if body["sound"] else "off"
    if "multi_prompt" in body:
        body["multi_prompt"] = [
            {"index": place, **shot, "duration": str(shot["duration"])}
            for place, shot in enumerate(body["multi_prompt"], start=1)
        ]
    return body


@THOROUGH
@given(request_fields())
def test_a_request_is_taken_exactly_when_it_keeps_the_services_rules(fields: dict[str, Any]) -> None:
    broken, faults = rules_broken_by(fields), find_faults(fields)
    note(f"by the rules: {broken}; found: {[str(fault) for fault in faults]}")

    assert bool(broken) == bool(faults)
    if broken:
        with pytest.raises(InvalidRequestError) as caught:
            VideoRequest(**fields)
        assert caught.value.faults == tuple(faults)
    else:
        assert VideoRequest(**fields).to_body() == in_the_services_form(fields)


@THOROUGH
@given(request_fields())
def test_what_is_taken_goes_over_the_wire_in_the_services_form_and_can_be_read_back(
    fields: dict[str, Any],
) -> None:
    if rules_broken_by(fields):
        return
    body = VideoRequest(**fields).to_body()

    assert rules_broken_by(body) == []
    assert misshapen_in(body) == []
    assert VideoRequest.from_body(json.loads(json.dumps(body))).to_body() == body


@BRIEF
@given(request_fields(), st.dictionaries(st.text(max_size=4), json_like("a"), max_size=3))
def test_extra_fields_survive_the_wire_beside_the_others(
    fields: dict[str, Any], extra: dict[str, Any]
) -> None:
    extra = {name: value for name, value in extra.items() if name not in FIELDS and _is_json(value)}
    if rules_broken_by(fields):
        return
    body = VideoRequest(**fields, extra_body=extra).to_body()

    assert body == {**in_the_services_form(fields), **extra}
    assert VideoRequest.from_body(body).to_body() == body


@BRIEF
@given(request_fields(), st.sampled_from([json.dumps, repr]))
def test_what_a_template_renders_means_the_same_as_the_value_itself(
    fields: dict[str, Any], render: Any
) -> None:
    rendered = {
        name: value if isinstance(value, str) else render(value) if name != "duration" else str(value)
        for name, value in fields.items()
    }
    if rules_broken_by(fields):
        return

    assert VideoRequest(**rendered).to_body() == VideoRequest(**fields).to_body()


@BRIEF
@given(request_fields(), st.sets(st.sampled_from(FIELDS)), st.data())
def test_what_comes_later_is_neither_reported_nor_read(
    fields: dict[str, Any], later: set[str], data: st.DataObject
) -> None:
    unknown = frozenset(later)
    faults = find_faults(fields, unknown=unknown)

    assert not {_root(fault) for fault in faults} & unknown
    replaced = {**fields, **{name: data.draw(junk) for name in sorted(later)}}
    assert find_faults(replaced, unknown=unknown) == faults
    if not rules_broken_by(fields):
        assert faults == []


@THOROUGH
@given(junk_fields, st.sets(st.sampled_from(FIELDS)))
@example({"prompt": "x", "image_list": "{{}}"}, set())
@example({"prompt": "x", "duration": None}, set())
@example({"prompt": "x", "a.b": 1}, set())
@example({"prompt": "x", "extra_body": "{1: 2}"}, set())
@example({"prompt": "x", "image_list": [PNG, "[" * 5000], "extra_body": "[" * 5000}, set())
def test_whatever_is_asked_for_faults_are_told_and_nothing_is_raised(
    fields: dict[str, Any], later: set[str]
) -> None:
    faults = find_faults(fields)

    assert all(isinstance(fault, Fault) and str(fault) for fault in faults)
    assert not {_root(fault) for fault in find_faults(fields, unknown=frozenset(later))} & later


@THOROUGH
@given(
    st.sampled_from(RIGHT), st.dictionaries(st.sampled_from(FIELDS), tempting | junk, min_size=1, max_size=1)
)
def test_whatever_is_asked_for_nothing_against_the_rules_reaches_the_wire(
    fields: dict[str, Any], odd: dict[str, Any]
) -> None:
    odd.pop("extra_body", None)

    try:
        request = VideoRequest(**{**fields, **odd})
    except InvalidRequestError:
        return
    uploaded = {local.reference: "https://example.com/uploaded" for local in request.local_references()}
    request = request.with_references(uploaded)
    request.check_sendable()
    body = request.to_body()
    assert misshapen_in(body) == []
    assert rules_broken_by(body) == []


@BRIEF
@given(junk_fields)
def test_whatever_extra_fields_say_the_cost_can_be_estimated(extra: dict[str, Any]) -> None:
    extra = {name: value for name, value in extra.items() if _is_json(value)}
    request = VideoRequest(prompt="a cat", model=V3, extra_body=extra)

    assert request.to_body() == {"model": V3, "prompt": "a cat", **extra}
    estimate(request)


def test_the_rules_written_twice_are_not_empty_words() -> None:
    """Guard the guard: a body with everything wrong breaks many rules, a plain one none."""
    image = {"image_url": "https://example.com/a.png", "type": "end_frame"}
    wrong = {
        "model": "kling-video-o1",
        "duration": "20",
        "sound": "on",
        "image_list": [image] * 9,
        "video_list": [{"video_url": "v.mp4"}],
        "multi_shot": True,
    }

    assert len(set(rules_broken_by(wrong))) > 10
    assert rules_broken_by({"model": V3, "prompt": "a cat"}) == []


def _root(fault: Fault) -> str:
    return fault.field.split("[")[0].split(".")[0]


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


@given(
    st.text(max_size=60)
    | st.sampled_from(["/", "./", "~", "s3://", "http://", "/9j/", "iVBORw0KGgo", "data:"]).flatmap(
        lambda beginning: st.text(max_size=60).map(lambda rest: beginning + rest)
    )
)
def test_an_address_is_refused_or_is_one_thing_of_three(address: str) -> None:
    fields = {"prompt": "a cat", "image_list": [{"image_url": address}]}
    if find_faults(fields):
        return
    request = VideoRequest(**fields)
    [image] = request.image_list or ()
    is_file, is_inline = bool(request.local_references()), image.content is not None
    is_url = image.image_url.lower().startswith(("http://", "https://"))
    assert is_file + is_inline + is_url == 1
    uploaded = request.with_references(
        {local.reference: "https://r2.example/x" for local in request.local_references()}
    )
    assert uploaded.local_references() == []
    assert (uploaded == request) is not is_file
