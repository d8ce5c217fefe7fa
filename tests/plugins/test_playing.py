"""Playing a stored file through Airflow's API server: all of HTTP that a player uses, and who may."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from airflow_provider_kling.manifest import Manifest
from airflow_provider_kling.output_path import Coordinates
from airflow_provider_kling.plugins import gallery, stored_videos
from airflow_provider_kling.storage import Place
from tests.plugins.conftest import Waiter
from tests.plugins.viewing import Viewer, address, card, describe, store, whose
from tests.s3 import S3Server

FILM = random.Random(1).randbytes(1_500_000)
TAG = f'"{hashlib.sha256(FILM).hexdigest()}"'


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest) -> str:
    """Return a directory to store in."""
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        return server.uri("films")
    path: Path = request.getfixturevalue("tmp_path")
    return str(path)


@pytest.fixture
def film(waiter: Waiter, place: str) -> str:
    """Store a video for a task; return where it can be played."""
    waiter.push("kling_video", card(store(whose(waiter), f"{place}/film.mp4", FILM)))
    return address(waiter)


def test_the_whole_file_is_played(viewer: Viewer, film: str) -> None:
    answer = viewer.get(film)

    assert answer.status_code == 200, answer.text
    assert answer.content == FILM
    assert answer.headers["Content-Type"] == "video/mp4"
    assert answer.headers["Content-Length"] == str(len(FILM))
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["ETag"] == TAG
    assert answer.headers["Content-Disposition"] == "inline; filename=\"film.mp4\"; filename*=UTF-8''film.mp4"
    assert "private" in answer.headers["Cache-Control"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Security-Policy"] == "sandbox"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-99", 0, 100),
        ("bytes=700000-", 700_000, 1_500_000),
        ("bytes=-1000", 1_499_000, 1_500_000),
        ("bytes=131071-131072", 131_071, 131_073),
    ],
)
def test_a_part_of_the_file_is_played(viewer: Viewer, film: str, asked: str, start: int, stop: int) -> None:
    answer = viewer.get(film, Range=asked)

    assert answer.status_code == 206
    assert answer.content == FILM[start:stop]
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(FILM)}"
    assert answer.headers["Content-Length"] == str(stop - start)
    assert answer.headers["ETag"] == TAG


def test_what_begins_beyond_the_end_cannot_be_played(viewer: Viewer, film: str) -> None:
    answer = viewer.get(film, Range="bytes=1500000-")
    assert (answer.status_code, answer.content) == (416, b"")
    assert answer.headers["Content-Range"] == "bytes */1500000"


def test_several_parts_at_once_are_answered_with_the_whole(viewer: Viewer, film: str) -> None:
    answer = viewer.get(film, Range="bytes=0-1,5-6")
    assert (answer.status_code, answer.content) == (200, FILM)


def test_a_head_request_tells_all_but_the_bytes(viewer: Viewer, film: str) -> None:
    answer = viewer.request("HEAD", film, Range="bytes=0-9")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Length"] == str(len(FILM))
    assert answer.headers["ETag"] == TAG
    assert answer.headers["Accept-Ranges"] == "bytes"


def test_what_the_player_has_already_is_not_sent_again(viewer: Viewer, film: str) -> None:
    answer = viewer.get(film, If_None_Match=TAG)
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["ETag"] == TAG
    assert viewer.get(film, If_None_Match='"other"').status_code == 200


def test_a_player_that_knows_another_file_gets_the_whole(viewer: Viewer, film: str) -> None:
    assert viewer.get(film, Range="bytes=0-9", If_Range=TAG).status_code == 206
    answer = viewer.get(film, Range="bytes=0-9", If_Range='"of yesterday"')
    assert (answer.status_code, answer.content) == (200, FILM)


def test_a_download_has_the_files_name(viewer: Viewer, waiter: Waiter, tmp_path: Path) -> None:
    waiter.push("kling_video", card(store(whose(waiter), f"{tmp_path}/über \"x\"; y='z'.mp4", FILM)))
    answer = viewer.get(address(waiter) + "?download=1")
    assert answer.content == FILM
    assert answer.headers["Content-Disposition"] == (
        "attachment; filename=\"_ber__x___y=_z_.mp4\"; filename*=UTF-8''%C3%BCber%20%22x%22%3B%20y%3D%27z%27.mp4"
    )


def test_it_is_not_compressed_on_its_way(viewer: Viewer, film: str) -> None:
    for asked in ({}, {"Range": "bytes=0-99999"}):
        answer = viewer.get(film, Accept_Encoding="gzip, deflate, br", **asked)
        assert answer.headers.get("Content-Encoding", "identity") == "identity"
        assert int(answer.headers["Content-Length"]) == len(answer.content)
        assert FILM.startswith(answer.content)


def test_a_task_with_several_files_has_each_of_them(viewer: Viewer, waiter: Waiter, place: str) -> None:
    files = [store(whose(waiter), f"{place}/film_{n}.mp4", bytes([n]) * 50, index=n) for n in range(3)]
    waiter.push("kling_video", card(*files))
    for n in range(3):
        assert viewer.get(address(waiter, f"files/{n}")).content == bytes([n]) * 50
    assert viewer.get(address(waiter, "files/3")).status_code == 404


def test_an_empty_file_is_played_as_such(viewer: Viewer, waiter: Waiter, tmp_path: Path) -> None:
    waiter.push("kling_video", card(store(whose(waiter), f"{tmp_path}/film.mp4", b"")))
    assert viewer.get(address(waiter)).status_code == 200
    assert viewer.get(address(waiter), Range="bytes=0-").status_code == 416


def test_a_run_id_with_every_character_that_airflow_allows_is_found(
    viewer: Viewer, make_waiter: Callable[..., Waiter], tmp_path: Path
) -> None:
    waiter = make_waiter("manual__2026-11-22T10:00:00.123456+00:00_~.aZ")
    waiter.push("kling_video", card(store(whose(waiter), f"{tmp_path}/film.mp4", FILM)))
    assert viewer.get(address(waiter)).content == FILM
    assert viewer.get(address(waiter).replace("%3A", ":").replace("%2B", "+")).content == FILM


# Who may


def test_who_is_not_logged_in_gets_nothing(people: Any, film: str, waiter: Waiter) -> None:
    nobody = Viewer(people, {})
    for url in (film, film + "?download=1", address(waiter, "videos"), address(waiter, "kling-tasks")):
        answer = nobody.get(url)
        assert answer.status_code == 401
        assert FILM[:100] not in answer.content
    assert nobody.request("HEAD", film).status_code == 401
    forged = Viewer(people, {"Cookie": "_token=forged.token.here"})
    assert forged.get(film).status_code in (401, 403)


def test_who_may_not_read_the_dag_gets_nothing(
    page: Callable[[str], Viewer], rights: Callable[..., None], film: str, waiter: Waiter
) -> None:
    rights(bob=["another_dag"], carol=[waiter.dag_id])
    for url in (film, address(waiter, "videos"), address(waiter, "kling-tasks")):
        answer = page("bob").get(url)
        assert answer.status_code == 403
        assert FILM[:100] not in answer.content
        assert page("carol").get(url).status_code == 200
    # Nor does a right for another Dag open this one's by way of the query.
    assert page("bob").get(f"{film}?dag_id=another_dag").status_code == 403
    assert page("bob").get(film.replace(waiter.dag_id, "~", 1)).status_code in (403, 404)


# What XComs may name


@pytest.mark.parametrize("missing", ["nothing", "no files", "an odd card", "an old card", "no list"])
def test_what_a_task_does_not_name_is_not_there(viewer: Viewer, waiter: Waiter, missing: str) -> None:
    cards: dict[str, Any] = {
        "no files": card(),
        "an odd card": [1, "two", None],
        "an old card": {"task_id": "k-1", "request": {}},
        "no list": card() | {"files": {"0": {"path": "/etc/passwd"}}},
    }
    if missing in cards:
        waiter.push("kling_video", cards[missing])
    answer = viewer.get(address(waiter))
    assert answer.status_code == 404
    assert answer.json()["reason"] == "not_stored"


def test_another_dags_video_is_refused(viewer: Viewer, make_waiter: Callable[[], Waiter], place: str) -> None:
    theirs, mine = make_waiter(), make_waiter()
    stored = card(store(whose(theirs), f"{place}/secret.mp4", FILM))
    mine.push("kling_video", stored)

    for asked in ({}, {"Range": "bytes=0-10"}, {"If_None_Match": TAG}):
        answer = viewer.get(address(mine), **asked)
        assert (answer.status_code, answer.json()["reason"]) == (404, "refused")
    theirs.push("kling_video", stored)
    assert viewer.get(address(theirs)).content == FILM


def test_a_video_that_another_task_of_the_dag_stored_is_played(
    viewer: Viewer, waiter: Waiter, tmp_path: Path
) -> None:
    other = Coordinates(waiter.dag_id, "manual__yesterday", "make_video", 3)
    waiter.push("kling_video", card(store(other, f"{tmp_path}/film.mp4", FILM)))
    assert viewer.get(address(waiter)).content == FILM


def test_a_video_that_no_dag_stored_is_refused(viewer: Viewer, waiter: Waiter, tmp_path: Path) -> None:
    from airflow_provider_kling.output_path import NOWHERE

    waiter.push("kling_video", card(store(NOWHERE, f"{tmp_path}/film.mp4", FILM)))
    assert viewer.get(address(waiter)).json()["reason"] == "refused"


def test_a_file_that_was_replaced_is_not_taken_for_the_video(
    viewer: Viewer, waiter: Waiter, place: str
) -> None:
    old = store(whose(waiter), f"{place}/film.mp4", FILM, kling_task_id="k-1")
    waiter.push("kling_video", card(old, kling_task_id="k-1"))
    store(whose(waiter), f"{place}/film.mp4", FILM[::-1], kling_task_id="k-2")
    answer = viewer.get(address(waiter))
    assert (answer.status_code, answer.json()["reason"]) == (404, "replaced")


def test_a_file_of_another_size_than_its_manifest_says_is_not_played(
    viewer: Viewer, waiter: Waiter, place: str
) -> None:
    waiter.push("kling_video", card(store(whose(waiter), f"{place}/film.mp4", FILM)))
    ObjectStoragePath(f"{place}/film.mp4").write_bytes(FILM + b"more")
    assert viewer.get(address(waiter)).json()["reason"] == "replaced"
    ObjectStoragePath(f"{place}/film.mp4").unlink()
    assert viewer.get(address(waiter)).json()["reason"] == "gone"


def test_a_file_without_its_manifest_is_not_played(viewer: Viewer, waiter: Waiter, place: str) -> None:
    waiter.push("kling_video", card(store(whose(waiter), f"{place}/film.mp4", FILM)))
    for damaged in (b"", b"{}", b"[" * 100_000, b"not json", b"\xff\xfe"):
        ObjectStoragePath(f"{place}/film.mp4.json").write_bytes(damaged)
        assert viewer.get(address(waiter)).json()["reason"] == "gone"
    ObjectStoragePath(f"{place}/film.mp4.json").unlink()
    assert viewer.get(address(waiter)).json()["reason"] == "gone"


@pytest.mark.parametrize(
    "media_type",
    ["text/html", "image/svg+xml", "video/mp4\r\nX-Evil: 1", "video/mp4; charset=x", "video/", "VIDEO/MP4\0"],
)
def test_what_is_no_video_by_its_manifest_is_refused(
    viewer: Viewer, waiter: Waiter, tmp_path: Path, media_type: str
) -> None:
    content = b"<script>alert(1)</script>"
    stored = store(whose(waiter), f"{tmp_path}/film.mp4", content, media_type=media_type)
    waiter.push("kling_video", card(stored))
    answer = viewer.get(address(waiter))
    assert (answer.status_code, answer.json()["reason"]) == (404, "refused")
    assert b"script" not in answer.content
    assert "X-Evil" not in answer.headers


def test_a_manifest_of_another_file_is_refused(viewer: Viewer, waiter: Waiter, tmp_path: Path) -> None:
    stored = store(whose(waiter), f"{tmp_path}/film.mp4", FILM)
    (tmp_path / "salaries.csv").write_bytes(FILM)
    (tmp_path / "salaries.csv.json").write_bytes((tmp_path / "film.mp4.json").read_bytes())
    told = card(stored)
    told["files"][0]["path"] = f"{tmp_path}/salaries.csv"
    waiter.push("kling_video", told)
    assert viewer.get(address(waiter)).json()["reason"] == "refused"


_FILES_OF_OTHERS = [
    "/etc/passwd",
    "/proc/self/environ",
    "/dev/zero",
    "file:///etc/passwd",
    "memory://film.mp4",
    "nosuchscheme://x/film.mp4",
    "s3://no_such_connection@bucket/film.mp4",
    "/",
]
_NO_PATHS = [
    "../../etc/passwd",
    "/tmp/../etc/passwd",
    "/tmp/%2e%2e/etc/passwd",
    "file://host/etc/passwd",
    "http://169.254.169.254/latest/meta-data",
    "https://example.com/film.mp4",
    "s3://user:password@bucket/film.mp4",
    "/tmp/*.mp4",
    "/tmp/{no_such}/film.mp4",
    "/tmp/fil\0m.mp4",
    "\\\\server\\share\\film.mp4",
    "",
    " ",
    "x" * 100_000,
    None,
    7,
    [],
    {"path": "/etc/passwd"},
]


@pytest.mark.parametrize("path", _FILES_OF_OTHERS + _NO_PATHS, ids=lambda path: repr(path)[:40])
def test_an_xcom_that_names_anything_else_opens_nothing(
    viewer: Viewer, waiter: Waiter, monkeypatch: pytest.MonkeyPatch, path: Any
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    waiter.push("kling_video", card() | {"files": [{"path": path}], "task_id": "k-1"})
    for asked in ({}, {"Range": "bytes=0-"}):
        answer = viewer.get(address(waiter), **asked)
        assert answer.status_code in (404, 503)
        assert answer.headers["Content-Type"] == "application/json"
        assert b"root:" not in answer.content
        assert "password" not in answer.text
        assert "PATH=" not in answer.text
        if path in _NO_PATHS:
            assert answer.json()["reason"] == "refused", "no storage is asked for what no task writes"


@pytest.mark.parametrize(
    "tricky",
    [
        "files/0%00",
        "files/-1",
        "files/1001",
        "files/99999999999999999999999999",
        "files/x",
        "files/..%2f0",
        "files/%2e%2e/%2e%2e/etc/passwd",
        "files//etc/passwd",
        "files/0?item=-1",
        "files/0?item=99999999999999999999",
        "files/0?item=x",
        "videos?offset=-1",
        "videos?limit=0",
        "videos?limit=101",
        "videos?offset=99999999999999999999",
    ],
)
def test_an_odd_address_opens_nothing(viewer: Viewer, waiter: Waiter, tmp_path: Path, tricky: str) -> None:
    waiter.push("kling_video", card(store(whose(waiter), f"{tmp_path}/film.mp4", FILM)))
    answer = viewer.get(address(waiter, tricky))
    assert answer.status_code in (404, 422)
    assert FILM[:100] not in answer.content
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("part", ["runs/%00", "tasks/%00/-1", "tasks/make/99999999999", "runs/a%2Fb"])
def test_odd_coordinates_open_nothing(viewer: Viewer, waiter: Waiter, part: str) -> None:
    start, _, rest = address(waiter).partition(part.partition("/")[0] + "/")
    answer = viewer.get(f"{start}{part}/{rest.partition('/')[2]}")
    assert answer.status_code in (404, 422)


_headers = st.dictionaries(
    st.sampled_from(["Range", "If-Range", "If-None-Match", "If-Match", "Accept-Encoding"]),
    st.one_of(
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40),
        st.tuples(st.integers(-5, 10**25), st.integers(-5, 10**25)).map(
            lambda pair: f"bytes={pair[0]}-{pair[1]}"
        ),
        st.just(TAG),
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_headers)
@example({"Range": "bytes=" + "9" * 5000 + "-"})
@example({"Range": "bytes=0-0," * 500})
def test_no_header_makes_it_fail(viewer: Viewer, hypothesis_film: str, headers: dict[str, str]) -> None:
    answer = viewer.get(hypothesis_film, **headers)
    assert answer.status_code in (200, 206, 304, 412, 416)
    if answer.status_code == 206:
        start, _, stop = (
            answer.headers["Content-Range"].removeprefix("bytes ").partition("/")[0].partition("-")
        )
        assert answer.content == FILM[int(start) : int(stop) + 1]


@pytest.fixture
def hypothesis_film(waiter: Waiter, tmp_path: Path) -> str:
    waiter.push("kling_video", card(store(whose(waiter), f"{tmp_path}/film.mp4", FILM)))
    return address(waiter)


def test_a_storage_that_cannot_be_read_is_told_without_its_secrets(
    viewer: Viewer, waiter: Waiter, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    bucket = "s3://kling_s3@no-such-bucket-here"
    waiter.push("kling_video", card() | {"files": [{"path": f"{bucket}/film.mp4"}]})
    answer = viewer.get(address(waiter))
    assert answer.status_code in (404, 503)
    waiter.push("kling_video", card() | {"files": [{"path": "s3://not_defined@bucket/film.mp4"}]})
    answer = viewer.get(address(waiter))
    assert (answer.status_code, answer.json()["reason"]) == (503, "unavailable")
    assert "not_defined" not in answer.text


def test_the_description_alone_does_not_play(viewer: Viewer, waiter: Waiter, tmp_path: Path) -> None:
    waiter.push("kling_video", card(describe(whose(waiter), f"{tmp_path}/film.mp4", size=5)))
    assert viewer.get(address(waiter)).json()["reason"] == "gone"


@pytest.mark.parametrize("which", ["film.mp4", "film.mp4.json"])
def test_a_link_to_another_file_is_not_played(
    viewer: Viewer, waiter: Waiter, tmp_path: Path, which: str
) -> None:
    films = tmp_path / "films"
    films.mkdir()
    waiter.push("kling_video", card(store(whose(waiter), f"{films}/film.mp4", FILM)))
    elsewhere = (films / which).rename(tmp_path / "secret")
    (films / which).symlink_to(elsewhere)

    answer = viewer.get(address(waiter))

    assert (answer.status_code, answer.json()["reason"]) == (404, "refused")


@pytest.mark.parametrize("turns_into", ["link", "pipe"])
def test_what_becomes_a_link_or_a_pipe_after_it_was_looked_at_is_not_opened(
    waiter: Waiter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turns_into: str
) -> None:
    path = tmp_path / "film.mp4"
    waiter.push("kling_video", card(store(whose(waiter), str(path), FILM)))
    video = stored_videos.find_video(whose(waiter), 0)
    monkeypatch.setattr(Place, "check_plain", lambda place: None)
    elsewhere = path.rename(tmp_path / "secret")
    if turns_into == "link":
        path.symlink_to(elsewhere)
    else:
        os.mkfifo(path)

    with pytest.raises(stored_videos.NotPlayedError):
        stored_videos.open_video(video)


@dataclass(frozen=True)
class Swapped:
    """A directory that a video was stored through, and that leads elsewhere when it is swapped."""

    video: Path
    secret: Path

    def swap(self) -> None:
        self.video.parent.unlink()
        self.video.parent.symlink_to(self.secret.parent)


@pytest.fixture
def swapped(waiter: Waiter, tmp_path: Path) -> Swapped:
    mine, theirs, way = tmp_path / "mine", tmp_path / "theirs", tmp_path / "way"
    mine.mkdir()
    theirs.mkdir()
    way.symlink_to(mine)
    (theirs / "film.mp4").write_bytes(FILM[::-1])
    waiter.push("kling_video", card(store(whose(waiter), f"{way}/film.mp4", FILM)))
    return Swapped(way / "film.mp4", theirs / "film.mp4")


def test_a_directory_that_leads_elsewhere_after_the_file_was_found_opens_nothing(
    viewer: Viewer, waiter: Waiter, swapped: Swapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert viewer.get(address(waiter)).content == FILM

    def find(*arguments: Any) -> Any:
        video = stored_videos.find_video(*arguments)
        swapped.swap()
        return video

    monkeypatch.setattr(gallery, "find_video", find)
    answer = viewer.get(address(waiter))
    assert (answer.status_code, answer.json()["reason"]) == (404, "replaced")
    assert FILM[::-1][:100] not in answer.content


def test_a_directory_that_leads_elsewhere_between_manifest_and_file_opens_nothing(
    viewer: Viewer, waiter: Waiter, swapped: Swapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Manifest.read
    reads = []

    def read_and_swap(content: bytes) -> Any:
        reads.append(content)
        swapped.swap()
        return read(content)

    monkeypatch.setattr(Manifest, "read", read_and_swap)
    answer = viewer.get(address(waiter))
    assert reads
    assert FILM[::-1][:100] not in answer.content
    assert (answer.status_code, answer.json()["reason"]) == (404, "replaced")
