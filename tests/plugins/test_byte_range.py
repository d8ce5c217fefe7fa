"""Which bytes a request asks for, by RFC 9110, whatever it says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_kling.plugins.byte_range import Wanted, wanted

TAG = '"abc"'
WHOLE = Wanted(200, 0, 1000)


def asked(value: str | None, *, size: int = 1000, method: str = "GET", **headers: str) -> Wanted:
    told = {name.replace("_", "-"): text for name, text in headers.items()}
    if value is not None:
        told["range"] = value
    return wanted(method, told, size=size, tag=TAG)


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("bytes=0-0", Wanted(206, 0, 1)),
        ("bytes=0-", Wanted(206, 0, 1000)),
        ("bytes=500-599", Wanted(206, 500, 600)),
        ("bytes=999-", Wanted(206, 999, 1000)),
        ("bytes=990-5000", Wanted(206, 990, 1000)),
        ("bytes=-1", Wanted(206, 999, 1000)),
        ("bytes=-5000", Wanted(206, 0, 1000)),
        ("BYTES=1-2", Wanted(206, 1, 3)),
        ("bytes= 1-2 ", Wanted(206, 1, 3)),
        (f"bytes=0-{'9' * 5000}", Wanted(206, 0, 1000)),
        (f"bytes={'0' * 5000}1-2", Wanted(206, 1, 3)),
    ],
)
def test_a_range_within_the_file_is_answered(value: str, part: Wanted) -> None:
    assert asked(value) == part


@pytest.mark.parametrize("value", ["bytes=1000-", "bytes=1000-1001", "bytes=-0", f"bytes={'9' * 5000}-"])
def test_a_range_beyond_the_file_cannot_be_had(value: str) -> None:
    assert asked(value).status == 416


@pytest.mark.parametrize(
    "value",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=5-4",
        "bytes=--5",
        "bytes=-5-",
        "bytes=+1-2",
        "bytes=1.0-2",
        "bytes=0x1-2",
        "bytes=1-2;",
        "bytes=1-2,",
        "bytes=0-0,2-3",
        "items=0-1",
        "bytes=\u0661-\u0662",
        "bytes=1-2\r\nX-Evil: 1",
    ],
)
def test_a_range_that_is_none_counts_as_none(value: str) -> None:
    assert asked(value) == WHOLE


def test_without_a_range_the_whole_file_is_answered() -> None:
    assert asked(None) == WHOLE


def test_a_head_request_knows_no_ranges() -> None:
    assert asked("bytes=0-1", method="HEAD") == WHOLE


@pytest.mark.parametrize("value", ["bytes=0-", "bytes=-5", "bytes=0-0"])
def test_of_an_empty_file_there_is_no_part(value: str) -> None:
    assert asked(value, size=0).status == 416


@pytest.mark.parametrize("known", [TAG, f"W/{TAG}", f'"other", {TAG}', "*", f'"a,b" ,{TAG}'])
def test_what_the_viewer_has_is_not_sent_again(known: str) -> None:
    assert asked("bytes=0-1", if_none_match=known).status == 304


@pytest.mark.parametrize("known", ['"other"', "abc", '""', "", '"*"'])
def test_what_the_viewer_does_not_have_is_sent(known: str) -> None:
    assert asked(None, if_none_match=known) == WHOLE


def test_a_part_is_answered_only_of_the_file_that_the_viewer_knows() -> None:
    assert asked("bytes=0-1", if_range=TAG).status == 206
    for other in ('"other"', f"W/{TAG}", "Sat, 29 Oct 1994 19:43:31 GMT", ""):
        assert asked("bytes=0-1", if_range=other) == WHOLE


def test_a_file_that_has_changed_is_told() -> None:
    assert asked(None, if_match='"other"').status == 412
    assert asked(None, if_match=f"W/{TAG}").status == 412
    assert asked("bytes=0-1", if_match=f'"other", {TAG}').status == 206
    assert asked(None, if_match="*") == WHOLE


_number = st.one_of(st.just(""), st.integers(0, 10**30).map(str), st.text("0123456789", max_size=50))
_any_range = st.one_of(
    st.text(max_size=60),
    st.tuples(st.sampled_from(["bytes=", "Bytes=", "bytes ", ""]), _number, _number).map(
        lambda parts: f"{parts[0]}{parts[1]}-{parts[2]}"
    ),
)


@given(_any_range, st.integers(0, 10**12), st.text(max_size=20), st.text(max_size=20))
def test_whatever_is_asked_the_answer_lies_within_the_file(
    value: str, size: int, if_range: str, if_none_match: str
) -> None:
    for headers in ({}, {"if_range": if_range}, {"if_none_match": if_none_match}):
        part = asked(value, size=size, **headers)
        assert part.status in (200, 206, 304, 416)
        assert 0 <= part.start <= part.stop <= size
        assert part.status != 206 or part.length > 0
        assert part.status != 200 or part.length == size


@given(st.integers(1, 10**12), st.data())
def test_a_well_formed_range_gives_just_these_bytes(size: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, size - 1))
    last = data.draw(st.integers(first, size - 1))
    assert asked(f"bytes={first}-{last}", size=size) == Wanted(206, first, last + 1)
