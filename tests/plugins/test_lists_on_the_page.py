"""The videos of a list, told to the page: from the task's own results, and from the manifests beside the files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_kling.api.errors import ModerationError, Paid
from airflow_provider_kling.batch_result import completed, document, failed, summary, video_results
from airflow_provider_kling.card import CardState, list_card
from airflow_provider_kling.plugins import stored_videos
from airflow_provider_kling.result import Asked, video_result
from tests.plugins.conftest import Waiter
from tests.plugins.viewing import ASKED, Viewer, address, made, store, whose
from tests.s3 import S3Server

LONG_PROMPT = "A tide comes in. " * 150


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest) -> str:
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        return server.uri("films")
    path: Path = request.getfixturevalue("tmp_path")
    return str(path)


def stored_ones(waiter: Waiter, place: str, count: int) -> list[dict[str, Any]]:
    """Store so many videos; return what is kept of each."""
    kept = []
    for n in range(count):
        asked = Asked({"model": "kling-v3-omni", "prompt": f"{n}: {LONG_PROMPT}"}, 5.0, 0.32)
        file = store(
            whose(waiter), f"{place}/{n}.mp4", b"%d" % n * 9, kling_task_id=f"k-{n}", asked=asked, width=1280
        )
        kept.append(completed(video_result(made(f"k-{n}"), asked, files=[file])))
    return kept


def leave(waiter: Waiter, ended: list[dict[str, Any] | None], results_path: str | None = None) -> None:
    """Leave what the operator leaves of a list."""
    results = video_results(ended)
    counts = summary(results)
    waiter.push("kling_video", list_card(counts, state=CardState.COMPLETED, results_path=results_path))
    if results_path is not None:
        text = document(results, counts, whose(waiter))
        ObjectStoragePath(results_path).write_bytes(text.encode())
    waiter.push(
        "return_value",
        {**counts, "results": None if results_path else results, "results_path": results_path},
    )


def test_each_video_of_a_list_is_told_as_a_card(viewer: Viewer, waiter: Waiter, place: str) -> None:
    refused = failed(ModerationError("It was refused", task_id="k-9"), paid=Paid.NO)
    link_only = completed(video_result(made("k-8"), ASKED))
    leave(waiter, [*stored_ones(waiter, place, 2), refused, link_only, None])

    told = viewer.get(address(waiter, "videos")).json()

    assert told["total"] == 5
    states = [(each["item"], each["state"], each["task_id"]) for each in told["videos"]]
    assert states == [
        (0, "completed", "k-0"),
        (1, "completed", "k-1"),
        (2, "failed", "k-9"),
        (3, "completed", "k-8"),
        (4, "not_submitted", None),
    ]
    first, _, failure, link, _ = told["videos"]
    assert first["request"]["prompt"] == f"0: {LONG_PROMPT}", "the whole prompt"
    [file] = first["files"]
    assert (file["name"], file["size_bytes"], file["media_type"], file["width"]) == (
        "0.mp4",
        9,
        "video/mp4",
        1280,
    )
    assert "video_url" not in first, "it is stored, and whoever has the link has the video"
    assert failure["error"].startswith("It was refused")
    assert failure["files"] == []
    assert link["video_url"] == "https://r2.apimodels.app/k-8.mp4"
    assert "expires_at" not in link, "the service did not say when it was completed"


def test_each_stored_video_of_a_list_is_played(viewer: Viewer, waiter: Waiter, place: str) -> None:
    leave(waiter, [*stored_ones(waiter, place, 3), None])
    for n in range(3):
        answer = viewer.get(address(waiter, f"files/0?item={n}"), Range="bytes=0-3")
        assert (answer.status_code, answer.content) == (206, b"%d" % n * 4)
    for nothing in ("files/0?item=3", "files/0?item=4", "files/1?item=0", "files/0"):
        assert viewer.get(address(waiter, nothing)).json()["reason"] == "not_stored"


def test_a_long_list_is_told_page_by_page_from_its_document(
    viewer: Viewer, waiter: Waiter, place: str
) -> None:
    kept = stored_ones(waiter, place, 7)
    leave(waiter, [*kept, *[None] * 243], f"{place}/list.results.json")

    seen = []
    for offset in range(0, 250, 100):
        page = viewer.get(address(waiter, f"videos?offset={offset}&limit=100")).json()
        assert (page["total"], page["offset"]) == (250, offset)
        seen += [each["item"] for each in page["videos"]]
    assert seen == list(range(250))
    assert viewer.get(address(waiter, "videos?offset=250")).json()["videos"] == []
    assert len(viewer.get(address(waiter, "videos")).json()["videos"]) == 50
    assert viewer.get(address(waiter, "files/0?item=6")).content == b"6" * 9


@pytest.mark.parametrize("in_document", [False, True])
def test_a_list_tells_which_kling_tasks_are_its_own_and_which_it_stored(
    viewer: Viewer, waiter: Waiter, place: str, in_document: bool
) -> None:
    refused = failed(ModerationError("It was refused", task_id="k-9"), paid=Paid.NO)
    link_only = completed(video_result(made("k-8"), ASKED))
    kept = [*stored_ones(waiter, place, 2), refused, link_only, None]
    leave(waiter, kept, f"{place}/list.results.json" if in_document else None)

    answer = viewer.get(address(waiter, "kling-tasks"))

    assert answer.json() == {"stored": ["k-0", "k-1"], "others": ["k-9", "k-8"]}
    assert answer.headers["Cache-Control"] == "private, no-store"


def test_what_is_no_kling_task_id_is_not_told_as_one(viewer: Viewer, waiter: Waiter) -> None:
    odd = [{"task_id": 7}, {"task_id": ["k"]}, {}, None, "k-1", {"task_id": "k-2", "files": "x"}]
    waiter.push("return_value", {"results": odd})
    assert viewer.get(address(waiter, "kling-tasks")).json() == {"stored": [], "others": ["k-2"]}


def test_a_task_that_pushes_no_result_is_told_from_its_document(
    viewer: Viewer, waiter: Waiter, place: str
) -> None:
    kept = stored_ones(waiter, place, 2)
    path = f"{place}/list.results.json"
    results = video_results(kept)
    ObjectStoragePath(path).write_bytes(document(results, summary(results), whose(waiter)).encode())
    waiter.push("kling_video", list_card(summary(results), state=CardState.COMPLETED, results_path=path))
    assert [each["task_id"] for each in viewer.get(address(waiter, "videos")).json()["videos"]] == [
        "k-0",
        "k-1",
    ]


def test_a_list_that_is_not_over_has_no_videos_yet(viewer: Viewer, waiter: Waiter) -> None:
    waiter.push("kling_video", list_card({"total": 9}, state=CardState.SUBMITTED))
    answer = viewer.get(address(waiter, "videos"))
    assert (answer.status_code, answer.json()["videos"]) == (200, [])


def test_another_dags_videos_are_not_told_of(
    viewer: Viewer, make_waiter: Callable[..., Waiter], place: str
) -> None:
    theirs, mine = make_waiter(), make_waiter()
    kept = stored_ones(theirs, place, 1)
    leave(mine, list(kept))
    [told] = viewer.get(address(mine, "videos")).json()["videos"]
    assert told["files"] == []
    assert "request" not in told
    assert viewer.get(address(mine, "files/0?item=0")).json()["reason"] == "refused"

    # Nor is their document.
    path = f"{place}/list.results.json"
    leave(theirs, list(kept), path)
    mine.push("return_value", {"results": None, "results_path": path})
    mine.push("kling_video", list_card({}, state=CardState.COMPLETED, results_path=path))
    for kind in ("videos", "kling-tasks", "files/0?item=0"):
        answer = viewer.get(address(mine, kind))
        assert (answer.status_code, answer.json()["reason"]) == (404, "refused")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no json",
        b"[]",
        b"[" * 50_000,
        b'{"results": [{"task_id": "secret"}]}',
        b'{"dag_id": "another", "results": [{"task_id": "secret"}]}',
        b"\xff",
    ],
)
def test_a_document_that_is_not_the_dags_results_is_refused(
    viewer: Viewer, waiter: Waiter, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "films.json"
    path.write_bytes(content)
    waiter.push("kling_video", list_card({}, state=CardState.COMPLETED, results_path=str(path)))
    answer = viewer.get(address(waiter, "videos"))
    assert (answer.status_code, answer.json()["reason"]) == (404, "refused")
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../list.json", "http://169.254.169.254/x.json", 7, "/no/such.json"]
)
def test_a_place_that_holds_no_results_opens_nothing(viewer: Viewer, waiter: Waiter, path: Any) -> None:
    waiter.push("kling_video", {"kind": "list", "results_path": path})
    answer = viewer.get(address(waiter, "videos"))
    assert answer.status_code == 404
    assert "root:" not in answer.text


def test_a_document_that_is_too_large_is_not_read(
    viewer: Viewer, waiter: Waiter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_videos, "MOST_DOCUMENT_BYTES", 1000)
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"dag_id": waiter.dag_id, "results": [], "more": "x" * 1000}))
    waiter.push("kling_video", {"kind": "list", "results_path": str(path)})
    assert viewer.get(address(waiter, "videos")).json()["reason"] == "refused"


@pytest.mark.parametrize("kind", ["pipe", "device", "link"])
def test_what_is_no_plain_file_is_not_waited_for(
    viewer: Viewer, waiter: Waiter, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "list.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        (tmp_path / "secret.json").write_text(json.dumps({"dag_id": waiter.dag_id, "results": [{}]}))
        path.symlink_to(tmp_path / "secret.json")
    else:
        path = Path("/dev/zero")
    waiter.push("kling_video", {"kind": "list", "results_path": str(path)})
    answer = viewer.get(address(waiter, "videos"))
    assert (answer.status_code, answer.json()["reason"]) == (404, "refused")


def test_a_document_is_parsed_once_for_all_parts_of_its_videos_and_again_once_it_changes(
    viewer: Viewer, waiter: Waiter, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = []
    parse = stored_videos._Document.of
    monkeypatch.setattr(
        stored_videos._Document, "of", lambda content: parsed.append(len(content)) or parse(content)
    )
    kept = stored_ones(waiter, place, 3)
    path = f"{place}/list.results.json"
    leave(waiter, kept[:2], path)

    for n in (0, 1, 0, 1):
        for start in range(4):
            answer = viewer.get(address(waiter, f"files/0?item={n}"), Range=f"bytes={start}-{start}")
            assert (answer.status_code, answer.content) == (206, b"%d" % n)
    assert len(parsed) == 1

    leave(waiter, kept, path)
    assert viewer.get(address(waiter, "videos")).json()["total"] == 3
    assert viewer.get(address(waiter, "files/0?item=2")).content == b"2" * 9
    assert len(parsed) == 2


def test_only_the_documents_that_were_read_last_are_kept(
    viewer: Viewer, waiter: Waiter, tmp_path: Path
) -> None:
    for n in range(stored_videos._KEPT_DOCUMENTS + 3):
        leave(waiter, [None], f"{tmp_path}/{n}.json")
        assert viewer.get(address(waiter, "videos")).json()["total"] == 1
    assert len(stored_videos._KEPT._kept) == stored_videos._KEPT_DOCUMENTS


@pytest.mark.parametrize(
    "results",
    [
        [1, None, "x", []],
        [{"outcome": "<script>", "path": 7, "files": "x", "task_id": {}, "video_url": 5}],
        [{"outcome": ["completed"], "path": {"a": 1}, "completed_at": "never", "video_url": "https://x"}],
        [{"outcome": {}, "files": [None, 3]}],
    ],
)
def test_odd_results_are_told_without_failing(viewer: Viewer, waiter: Waiter, results: list[Any]) -> None:
    waiter.push("return_value", {"results": results})
    answer = viewer.get(address(waiter, "videos"))
    assert answer.status_code == 200
    for each in answer.json()["videos"]:
        assert each["state"] == "unresolved"
        assert each["files"] == []
