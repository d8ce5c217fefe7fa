from __future__ import annotations

import posixpath
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_kling.output_path import (
    MAX_NAME_BYTES,
    MAX_VALUE_BYTES,
    PLACEHOLDERS,
    Coordinates,
    OutputPath,
    check_output_path,
    safe_value,
)

RUN_ID = "scheduled__2026-11-22T06:30:00.5+00:00"
PLAIN = Coordinates("daily", RUN_ID, "make")
MAPPED = Coordinates("daily", RUN_ID, "make", 7)


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("s3://bucket", "s3://bucket/k-1.mp4"),
        ("s3://bucket/", "s3://bucket/k-1.mp4"),
        ("s3://bucket/films", "s3://bucket/films/k-1.mp4"),
        ("s3://aws@bucket/films//./new/", "s3://aws@bucket/films/new/k-1.mp4"),
        ("/data/films", "/data/films/k-1.mp4"),
        ("file:///data/films/", "file:///data/films/k-1.mp4"),
        ("/data/kite.mp4", "/data/kite.mp4"),
        ("/data/kite.MP4", "/data/kite.MP4"),
        ("/data/kite.mp4/", "/data/kite.mp4/k-1.mp4"),
        ("/data/v1.2", "/data/v1.2/k-1.mp4"),
        ("gs://b/{dag_id}/{task_id}.{ext}", "gs://b/daily/make.mp4"),
        ("/d/{run_id}", "/d/scheduled__2026-11-22T06-30-00.5+00-00/k-1.mp4"),
        ("/d/{index}_{kling_task_id}.webm", "/d/0_k-1.webm"),
        ("/d/{map_index}.{ext}", "/d/-1.mp4"),
        ("/films of 2026/{dag_id}", "/films of 2026/daily/k-1.mp4"),
    ],
)
def test_a_template_says_where_a_video_goes(template: str, name: str) -> None:
    check_output_path(template)
    assert OutputPath(template).name(PLAIN, "k-1") == name


def test_all_placeholders_are_known() -> None:
    template = "/d/" + "+".join(f"{{{name}}}" for name in PLACEHOLDERS)
    assert OutputPath(template).name(MAPPED, "k-1", 2, "mov") == (
        "/d/daily+scheduled__2026-11-22T06-30-00.5+00-00+make+7+k-1+2+mov"
    )


@pytest.mark.parametrize(
    ("template", "names"),
    [
        ("/d/kite.mp4", ["/d/kite.mp4", "/d/kite_1.mp4", "/d/kite_2.mp4"]),
        ("/d/{index}.mp4", ["/d/0.mp4", "/d/1.mp4", "/d/2.mp4"]),
        ("/d", ["/d/k-1.mp4", "/d/k-1_1.mp4", "/d/k-1_2.mp4"]),
        ("/d/{index}/", ["/d/0/k-1.mp4", "/d/1/k-1.mp4", "/d/2/k-1.mp4"]),
    ],
)
def test_the_videos_of_one_kling_task_have_names_of_their_own(template: str, names: list[str]) -> None:
    assert [OutputPath(template).name(PLAIN, "k-1", index) for index in range(3)] == names


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("/d/kite.mp4", "/d/kite_7.mp4"),
        ("/d/kite.{ext}", "/d/kite_7.mp4"),
        ("/d/{map_index}.mp4", "/d/7.mp4"),
        ("/d/{map_index}/kite.mp4", "/d/7/kite.mp4"),
        ("/d/{kling_task_id}.mp4", "/d/k-1.mp4"),
        ("/d", "/d/k-1.mp4"),
    ],
)
def test_no_two_mapped_tasks_write_one_file(template: str, name: str) -> None:
    assert OutputPath(template).name(MAPPED, "k-1") == name


def test_a_mapped_task_with_several_videos_names_both() -> None:
    names = {
        OutputPath("/d/kite.mp4").name(Coordinates("d", "r", "t", map_index), "k", index)
        for map_index in range(12)
        for index in range(12)
    }
    assert len(names) == 144


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("", "path or URI"),
        (None, "path or URI"),
        (7, "path or URI"),
        ("films", "absolute path"),
        ("./films", "absolute path"),
        ("~/films", "absolute path"),
        ("//films", "absolute path"),
        ("s3:/bucket", "absolute path"),
        ("s3:///films", "no bucket"),
        ("s3://aws@/films", "no bucket"),
        ("s3://../films", "belongs"),
        ("file://data/films", "three slashes"),
        ("https://bucket/films", "web address"),
        ("s3://key:secret@bucket", "Airflow connection"),
        ("s3://bucket/../other", "'..'"),
        ("/data/..", "'..'"),
        ("/data/%2e%2E/x", "'..'"),
        ("/data/a\0b", "control character"),
        ("/data/a\nb", "control character"),
        (" /data", "blank"),
        ("/data/\ud800", "control character"),
        ("/data\\films", "backslash"),
        ("s3://b/x?versionId=1", "?"),
        ("s3://b/*.mp4", "*"),
        ("/data/[x]", "[ ]"),
        ("/data/#1", "#"),
        ("s3://{dag_id}/films", "behind it only"),
        ("s3://b/{ds}", "{ds}, which there is not. There are {dag_id}, {run_id}"),
        ("s3://b/{}", "which there is not"),
        ("s3://b/{task_id!r}", "which there is not"),
        ("s3://b/{dag_id.__class__}", "which there is not"),
        ("s3://b/{{ ds }}", "which there is not"),
        ("s3://b/{dag_id", "brace"),
        ("s3://b/dag_id}", "brace"),
        ("/data/" + "x" * 201, "201 bytes"),
    ],
)
def test_what_cannot_be_an_output_path_is_refused_with_the_reason(template: Any, said: str) -> None:
    with pytest.raises(ValueError) as raised:
        check_output_path(template)
    assert said in str(raised.value)


def test_a_password_in_the_template_is_not_repeated() -> None:
    with pytest.raises(ValueError) as raised:
        check_output_path("s3://key:hunter2@bucket/x")
    assert "hunter2" not in str(raised.value)


def test_the_connection_stands_in_the_uri() -> None:
    assert OutputPath("s3://bucket/x", "aws").name(PLAIN, "k") == "s3://aws@bucket/x/k.mp4"
    assert OutputPath("s3://aws@bucket/x", "aws").conn_id == "aws"
    path = ObjectStoragePath(OutputPath("/data/x", "disk").name(PLAIN, "k"))
    assert path.path == "/data/x/k.mp4"
    with pytest.raises(ValueError, match="one of them only"):
        OutputPath("s3://aws@bucket/x", "other")


@pytest.mark.parametrize(("map_index", "read"), [(3, 3), (-1, -1), (None, -1)])
def test_coordinates_come_from_the_tasks_context(map_index: int | None, read: int) -> None:
    ti = SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=map_index)
    assert Coordinates.of({"ti": ti}) == Coordinates("d", "r", "t", read)  # type: ignore[typeddict-item]


# Whatever the values are

TEMPLATES = (
    "s3://bucket/base",
    "s3://bucket/base/{dag_id}/{run_id}/{task_id}/{map_index}/",
    "/base/{run_id}.mp4",
    "/base/{dag_id}{run_id}/{task_id}_{kling_task_id}_{index}.{ext}",
    "/base/.{dag_id}/{task_id}.{ext}",
    "/base/{dag_id}",
    "file:///base/{kling_task_id}",
)
VALUES = st.text(max_size=300) | st.sampled_from(
    [
        "",
        ".",
        "..",
        "../..",
        "/",
        "/etc/passwd",
        "..\\..",
        "%2e%2e%2f",
        "a\0b",
        "\u2024\u2024/",
        "\uff0e\uff0e\uff0f",
        "~",
        "C:",
        "\ud800",
    ]
)


@given(VALUES, VALUES, VALUES, VALUES, st.sampled_from(TEMPLATES), st.integers(-1, 9), st.integers(0, 3))
@example("..", "../..", "/", "..", TEMPLATES[1], -1, 0)
def test_a_name_stays_in_the_authors_directory(
    dag_id: str, run_id: str, task_id: str, kling_task_id: str, template: str, map_index: int, index: int
) -> None:
    output = OutputPath(template)
    name = output.name(Coordinates(dag_id, run_id, task_id, map_index), kling_task_id, index, kling_task_id)
    prefix = template.partition("base")[0] + "base/"
    assert name.startswith(prefix)
    rest = name.removeprefix(prefix)
    assert rest
    assert rest.count("/") == OutputPath(template).name(Coordinates("d", "r", "t"), "k").removeprefix(
        prefix
    ).count("/")
    for part in rest.split("/"):
        assert part not in ("", ".", "..")
        assert len(part.encode()) <= MAX_NAME_BYTES
        assert part.isprintable()
        assert not set(part) & set("\\:?*[]#%~ ")
    assert posixpath.normpath(urlsplit(name).path) == urlsplit(name).path
    opened = ObjectStoragePath(name.replace("s3://", "memory://"))
    assert opened.path.endswith(rest)


@given(VALUES, VALUES)
@example("a:b", "a-b")
@example("T10:00:00", "T10-00-00")
@example("T10:00:00+00-00", "T10-00-00+00:00")
@example("x" * 121, "x" * 122)
@example("ﬁ", "fi")
@example(".a", "_a")
@example("a b", safe_value("a b"))
def test_two_values_never_meet(one: str, other: str) -> None:
    assert (safe_value(one) == safe_value(other)) is (one == other)


@given(VALUES)
def test_a_value_fits_and_needs_nothing_done_again(value: str) -> None:
    safe = safe_value(value)
    assert 0 < len(safe.encode()) <= MAX_VALUE_BYTES
    assert not safe.startswith(".")


@pytest.mark.parametrize(
    "value", ["daily", "kite-2", "a.b_c+d=e@f", "Größe", "日本", "manual__2026-11-22T00:00:00+00:00"]
)
def test_what_is_harmless_stays_readable(value: str) -> None:
    assert safe_value(value) == value.replace(":", "-")


def test_long_names_are_cut_and_stay_apart() -> None:
    output = OutputPath("/d/{dag_id}_{run_id}_{task_id}_{map_index}.{ext}")
    names = {
        output.name(Coordinates("d" * 110, "r" * 110, "t" * 110, map_index), "k", 1, "mov")
        for map_index in range(3)
    }
    assert len(names) == 3
    assert all(name.endswith("_1.mov") and len(name) <= MAX_NAME_BYTES + 3 for name in names)
