"""What the tests of ``api`` draw their examples from."""

from __future__ import annotations

import base64
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

THOROUGH = settings(max_examples=300)
BRIEF = settings(max_examples=100)

O1 = "kling-video-o1"
V3 = "kling-v3-omni"
NEWER = "kling-v4-omni"
"""A model that the package does not know."""

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(40)).decode()
JPEG = base64.b64encode(b"\xff\xd8\xff\xe0" + bytes(40)).decode()

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(0, 20),
    st.integers(1_700_000_000_000, 1_800_000_000_000),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        [
            *("", " ", "None", "null", "true", "False", "on", "off", "yes", "no"),
            *("5", "5.0", "\u0665", "-1", "NaN", "1303"),
            *("[", "[]", "{}", "{{}}", "{[]: 1}", "[[[", "{1, 2}", "[NaN]", "<<<image_1>>>", "<<<"),
            *("https://example.com/a.png", "http://[x", "https://", "ftp://example.com/a", "https://a/\nb"),
            *("first_frame", "end_frame", "base", "feature", "customize", "intelligence", "std", O1, V3, PNG),
            *("completed", "FAILED", "pending", "queueing", "success", "now", "12:30", "202401015:"),
            *("2024-01-13T05:24:10Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00"),
        ]
    ),
)


def json_like(*names: str) -> st.SearchStrategy[Any]:
    """Anything that JSON can hold, whose mappings often bear the given names."""
    keys = st.one_of(st.sampled_from(names), st.text(max_size=5))
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=8,
    )


def mostly(good: st.SearchStrategy[Any], bad: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The good one most of the time, so that enough requests have no fault or just one."""
    return st.integers(0, 15).flatmap(lambda die: bad if die == 7 else good)


def _some(good: list[Any], bad: list[Any]) -> st.SearchStrategy[Any]:
    return st.sampled_from(good * (1 + 15 * len(bad) // len(good)) + bad)


_prompts = _some(
    ["a cat", "x" * 2500, "\U0001f408" * 2500, "<< image_1 >>", "None of them"],
    [
        *("", "  ", "x" * 2501, "<<<image_1>>> walks", "<<<element_1>>>", "as in <<<video_1>>>"),
        *("<<<image_0>>>", "<<<image_01>>>", "<<<picture_1>>>", "<<<Image_1>>>", "<<<>>>"),
    ],
)
_GOOD_IMAGES = ["https://example.com/a.png", "http://example.com/b.jpg", PNG, JPEG]
_BAD_IMAGES = ["", "cat.png", "https://", "data:image/png;base64," + PNG, "YWJj", "https://a/b c"]
_FRAMES = [["first_frame"], ["first_frame", "end_frame"], [], [], ["end_frame"], ["first_frame"] * 2]
_FRAMES += [["first_frame", "end_frame", "end_frame"], ["last_frame"]]


@st.composite
def _images(draw: st.DrawFn) -> list[dict[str, Any]]:
    types: list[str | None] = [*draw(_some(_FRAMES[:4], _FRAMES[4:]))]
    types += [None] * draw(st.sampled_from([0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8]))
    if draw(st.booleans()):
        types.reverse()
    images = [
        {"image_url": _GOOD_IMAGES[i % 4]} | ({"type": kind} if kind else {}) for i, kind in enumerate(types)
    ]
    if images:
        images[-1]["image_url"] = draw(_some(_GOOD_IMAGES, _BAD_IMAGES))
    return images


_elements = st.sampled_from([0, 1, 1, 2, 3, 3, 4, 5, 7, 8]).map(
    lambda count: [{"element_id": 800 + i} for i in range(count)]
)
_videos = st.lists(
    st.fixed_dictionaries(
        {"video_url": _some(["https://example.com/v.mp4"], ["v.mp4", "", "https://"])},
        optional={
            "refer_type": _some(["base", "feature"], ["style"]),
            "keep_original_sound": _some(["yes", "no"], ["maybe"]),
        },
    ),
    min_size=1,
    max_size=2,
).filter(lambda videos: len(videos) < 2 or videos[0] == videos[1])


@st.composite
def _shots(draw: st.DrawFn, seconds: int) -> list[dict[str, Any]]:
    count = draw(st.sampled_from([1, 1, 2, 2, 3, 5, 6, 7]))
    durations = [1] * (count - 1) + [max(seconds - count + 1, 0)]
    durations[0] += draw(_some([0], [1, -1]))
    numbered = draw(st.booleans())
    shots = []
    for i in range(count):
        shot: dict[str, Any] = {
            "prompt": draw(_some(["a cat", "x" * 512], ["", "x" * 513, "<<<image_1>>>", "<<<video_1>>>"])),
            "duration": draw(st.sampled_from([str, int]))(durations[i]),
        }
        if numbered:
            shot["index"] = draw(mostly(st.just(i + 1), st.integers(0, 7)))
        shots.append(shot)
    return shots


@st.composite
def request_fields(draw: st.DrawFn) -> dict[str, Any]:
    """The fields of a request in the service's own form, right and wrong ones mixed."""
    fields: dict[str, Any] = {"model": draw(st.sampled_from([O1, V3, V3, V3, NEWER]))}
    seconds = draw(_some([3, 4, 5, 7, 10, 11, 15], [0, 1, 2, 16, 30, 10_000]))

    def maybe(name: str, values: st.SearchStrategy[Any], *, likely: int = 3) -> None:
        if draw(st.integers(0, 9)) < likely:
            fields[name] = draw(values)

    maybe("prompt", _prompts, likely=9)
    maybe("mode", _some(["std", "pro"], ["4k", "STD"]))
    maybe("duration", st.sampled_from([seconds, str(seconds)]), likely=5)
    if draw(mostly(st.just(False), st.just(True))):
        fields["duration"] = draw(st.sampled_from(["five", 5.5, True, "-5", "5s", -3]))
    maybe("aspect_ratio", _some(["16:9", "9:16", "1:1"], ["4:3", "16x9"]))
    maybe("sound", _some(["on", "off", True, False], ["loud", 1]), likely=2)
    scenes = ["plain", "references", "references", "references", "shots", "shots", "all"]
    scene = draw(st.sampled_from(scenes[:-2] if fields["model"] == O1 else scenes))
    if scene in ("references", "all"):
        maybe("image_list", _images(), likely=7)
        maybe("element_list", _elements, likely=6)
        maybe("video_list", _videos, likely=3)
        if draw(st.integers(0, 9)) < 3:
            kind = draw(st.sampled_from(["image", "element", "video"]))
            fields["prompt"] = f"<<<{kind}_1>>> and <<<{kind}_{draw(st.integers(1, 7))}>>>"
    if scene in ("shots", "all"):
        maybe("multi_shot", _some([True], [False]), likely=9)
        maybe("shot_type", _some(["customize", "intelligence"], ["auto"]), likely=9)
        wanted = fields.get("shot_type") == "customize"
        maybe("multi_prompt", _shots(seconds if "duration" in fields else 5), likely=9 if wanted else 1)
    maybe("watermark_info", st.builds(lambda enabled: {"enabled": enabled}, st.booleans()), likely=1)
    maybe("callback_url", _some(["https://airflow.example.com/kling"], ["airflow", "ftp://h/x"]), likely=1)
    return fields
