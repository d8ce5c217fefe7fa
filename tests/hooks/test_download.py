"""Fetching a result over a line that breaks, from servers that do what they should not."""

from __future__ import annotations

import gzip
import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_kling.api.errors import DownloadError, ResultExpiredError
from airflow_provider_kling.hooks.download import MAX_CUTS, MAX_STARTS, InBackground, fetch, whole_file
from airflow_provider_kling.hooks.kling import KlingHook
from tests.hooks.conftest import Clock, Connect
from tests.hooks.loopback import Answer, Fault, Loopback, Received, Reply

FILM = b"\0\0\0\x18ftypmp42" + os.urandom(3_000_000)
VIDEO = {"Content-Type": "video/mp4"}


class Film:
    """
    Serves a film in parts, and cuts the line after so many bytes of each answer.

    :param cuts: bytes until the cut, one for each answer; answers after these are whole.
    :param headers: of each answer.
    """

    def __init__(self, *cuts: int, content: bytes = FILM, **headers: str) -> None:
        self.cuts = list(cuts)
        self.content = content
        self.headers = {
            **VIDEO,
            "ETag": '"one"',
            **{name.replace("_", "-"): v for name, v in headers.items()},
        }
        self.ranges: list[tuple[str | None, str | None]] = []

    def __call__(self, request: Received) -> Reply:
        asked, condition = request.headers.get("range"), request.headers.get("if-range")
        self.ranges.append((asked, condition))
        tells = (self.headers.get("ETag"), self.headers.get("Last-Modified"))
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and condition in tells else 0
        return self.answer(start)

    def answer(self, start: int) -> Answer:
        part = self.content[start:]
        cut = self.cuts.pop(0) if self.cuts else len(part)
        headers = dict(self.headers)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        return Answer(206 if start else 200, part[:cut], headers, promised=len(part))


@pytest.fixture
def hook(connect: Connect, clock: Clock) -> KlingHook:
    connect("http://127.0.0.1:9")
    return KlingHook()


def left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*") if path.is_file())


def test_a_download_goes_on_where_it_was_cut(hook: KlingHook, tmp_path: Path) -> None:
    film = Film(1_000_000, 700_000)
    with Loopback(script=film) as service:
        path = hook.download(f"{service.url}/v.mp4", tmp_path / "v.mp4")
    assert path.read_bytes() == FILM
    assert film.ranges == [(None, None), ("bytes=1000000-", '"one"'), ("bytes=1700000-", '"one"')]


def test_what_was_fetched_is_told_by_its_hash_over_all_cuts(hook: KlingHook, tmp_path: Path) -> None:
    with Loopback(script=Film(10, 1_000_000)) as service:
        fetched = fetch(hook.get_conn(), f"{service.url}/v", lambda _: whole_file(tmp_path / "v"))
    assert (fetched.size_bytes, fetched.sha256) == (len(FILM), hashlib.sha256(FILM).hexdigest())


def test_a_date_tells_a_file_where_its_tag_is_weak(hook: KlingHook, tmp_path: Path) -> None:
    date = "Sun, 22 Nov 2026 10:00:00 GMT"
    film = Film(1_000_000, ETag='W/"one"', Last_Modified=date)
    with Loopback(script=film) as service:
        assert hook.download(f"{service.url}/v.mp4", tmp_path / "v").read_bytes() == FILM
    assert film.ranges[1] == ("bytes=1000000-", date)


class Replaced(Film):
    """Serves another film from the second answer on."""

    def __call__(self, request: Received) -> Reply:
        if self.ranges:
            self.content, self.headers["ETag"] = FILM[::-1], '"two"'
        return super().__call__(request)


class Deaf(Film):
    """Serves all of the film, whatever range is asked for."""

    def answer(self, start: int) -> Answer:
        return super().answer(0)


class Shifted(Film):
    """Serves another range than was asked for."""

    def answer(self, start: int) -> Answer:
        if not start or len(self.ranges) > 2:
            return super().answer(0)
        answer = super().answer(start + 1)
        return Answer(answer.status, answer.body, answer.headers)


class Grown(Film):
    """Says in the second answer that the file is larger than it was."""

    def answer(self, start: int) -> Answer:
        answer = super().answer(start if len(self.ranges) < 3 else 0)
        if start:
            headers = {**answer.headers, "Content-Range": f"bytes {start}-{len(FILM)}/{len(FILM) + 1}"}
            return Answer(answer.status, answer.body, headers)
        return answer


@pytest.mark.parametrize("kind", [Replaced, Deaf, Shifted, Grown])
def test_no_file_is_sewn_together_from_two(hook: KlingHook, tmp_path: Path, kind: type[Film]) -> None:
    film = kind(1_000_000)
    with Loopback(script=film) as service:
        path = hook.download(f"{service.url}/v.mp4", tmp_path / "v.mp4")
    assert path.read_bytes() == film.content
    assert left_in(tmp_path) == ["v.mp4"]


def test_without_a_tag_a_cut_download_begins_anew(hook: KlingHook, tmp_path: Path) -> None:
    film = Film(1_000_000, ETag="")
    with Loopback(script=film) as service:
        assert hook.download(f"{service.url}/v.mp4", tmp_path / "v").read_bytes() == FILM
    assert film.ranges == [(None, None)] * 2


def test_a_line_that_breaks_again_and_again_is_given_up(
    hook: KlingHook, tmp_path: Path, clock: Clock
) -> None:
    film = Film(2_000_000, *[0] * 50)
    with (
        Loopback(script=film) as service,
        pytest.raises(DownloadError, match="cut after 2000000 of 3000012 bytes"),
    ):
        hook.download(f"{service.url}/v.mp4?X-Signature=s1gned", tmp_path / "v.mp4")
    assert len(film.ranges) == MAX_CUTS + 1
    assert left_in(tmp_path) == []
    assert sum(clock.naps) < 60


def test_a_line_that_breaks_but_gets_on_is_not_given_up(hook: KlingHook, tmp_path: Path) -> None:
    content = os.urandom(20_000_000)
    film = Film(*[1_100_000] * 15, content=content)
    with Loopback(script=film) as service:
        assert hook.download(f"{service.url}/v.mp4", tmp_path / "v.mp4").read_bytes() == content
    assert len(film.ranges) == 16


def test_a_server_that_can_never_go_on_is_given_up(hook: KlingHook, tmp_path: Path) -> None:
    film = Deaf(*[1_000_000] * 50)
    with Loopback(script=film) as service, pytest.raises(DownloadError, match="does not go on from there"):
        hook.download(f"{service.url}/v.mp4", tmp_path / "v.mp4")
    assert len(film.ranges) == MAX_STARTS * 2
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    "fault", [Answer(503, b"busy"), Answer(206, FILM, VIDEO), Fault.RESET, Fault.SLAMMED]
)
def test_passing_faults_while_going_on_are_borne(hook: KlingHook, tmp_path: Path, fault: Reply) -> None:
    film = Film(1_000_000)

    def script(request: Received) -> Reply:
        return fault if len(service.received) == 2 else film(request)

    with Loopback(script=script) as service:
        assert hook.download(f"{service.url}/v.mp4", tmp_path / "v.mp4").read_bytes() == FILM


def test_a_link_that_dies_meanwhile_is_told_as_dead(hook: KlingHook, tmp_path: Path) -> None:
    film = Film(1_000_000)

    def script(request: Received) -> Reply:
        return Answer(403) if service.received[1:] else film(request)

    with Loopback(script=script) as service, pytest.raises(ResultExpiredError):
        hook.download(f"{service.url}/v.mp4", tmp_path / "v.mp4")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Answer(200, b"<html><h1>Sign in</h1>", {"Content-Type": "text/html"}), "<html><h1>Sign in</h1>"),
        (Answer(200, b" \n<!DOCTYPE html>", VIDEO), "<!DOCTYPE html>"),
        (Answer(200, b'{"error": "gone"}', VIDEO), '{"error": "gone"}'),
        (Answer(200, {"error": "gone"}), '{"error": "gone"}'),
        (Answer(200, b"\x89PNG\r\n", {"Content-Type": "image/png"}), "image/png"),
        (Answer(500, b"<h1>Oops</h1>" + b"!" * 9999, VIDEO), "<h1>Oops</h1>"),
        (Answer(200, gzip.compress(FILM), {**VIDEO, "Content-Encoding": "gzip"}), "compressed (gzip)"),
    ],
)
def test_what_is_no_video_is_quoted_by_its_beginning(
    hook: KlingHook, tmp_path: Path, reply: Reply, said: str
) -> None:
    with Loopback(reply) as service, pytest.raises(DownloadError) as raised:
        hook.download(f"{service.url}/v.mp4", tmp_path / "v.mp4")
    assert said in str(raised.value)
    assert len(str(raised.value)) < 600
    assert left_in(tmp_path) == []


def test_an_error_page_that_repeats_the_signature_does_not_carry_it_on(
    hook: KlingHook, tmp_path: Path
) -> None:
    def script(request: Received) -> Reply:
        return Answer(200, f"<p>{request.target}</p>".encode(), {"Content-Type": "text/html"})

    with Loopback(script=script) as service, pytest.raises(DownloadError) as raised:
        hook.download(f"{service.url}/v.mp4?X-Signature=s1gned", tmp_path / "v.mp4")
    assert "/v.mp4?…" in str(raised.value)
    assert "s1gned" not in str(raised.value)


def test_nothing_compressed_is_asked_for(hook: KlingHook, tmp_path: Path) -> None:
    with Loopback(Answer(200, FILM, VIDEO)) as service:
        hook.download(f"{service.url}/v.mp4", tmp_path / "v.mp4")
    assert service.received[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("beginning", "media_type", "link", "extension", "told"),
    [
        (b"\0\0\0\x14ftypqt  ", "video/mp4", "v.mp4", "mov", "video/mp4"),
        (b"\0\0\0\x18ftypisom", "", "v.mov", "mp4", "video/mp4"),
        (b"\x1aE\xdf\xa3........", "application/octet-stream", "v", "webm", "video/webm"),
        (b"????????????", "video/quicktime; x=1", "v.mp4", "mov", "video/quicktime"),
        (b"????????????", "application/octet-stream", "v.MOV?x=1", "mov", "video/quicktime"),
        (b"?", "video/x-new", "v.avi", "mp4", "video/x-new"),
    ],
)
def test_the_kind_of_video_is_read_from_what_tells_it_best(
    hook: KlingHook, beginning: bytes, media_type: str, link: str, extension: str, told: str
) -> None:
    with (
        Loopback(Answer(200, beginning, {"Content-Type": media_type})) as service,
        hook.get_conn().open_result(f"{service.url}/{link}") as stream,
    ):
        assert (stream.extension, stream.media_type) == (extension, told)
        assert b"".join(stream) == beginning


def test_a_full_disk_ends_the_download_and_leaves_nothing(
    hook: KlingHook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with Loopback(Answer(200, FILM, VIDEO)) as service, pytest.raises(DownloadError, match="No space left"):
        hook.download(f"{service.url}/v.mp4", tmp_path / "v.mp4")
    assert left_in(tmp_path) == []


def test_a_file_is_on_the_disk_before_it_has_its_name(
    hook: KlingHook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (steps.append("sync"), sync(fd)))
    monkeypatch.setattr(Path, "replace", lambda one, other: (steps.append("name"), replace(one, other))[1])
    with Loopback(Answer(200, FILM, VIDEO)) as service:
        hook.download(f"{service.url}/v.mp4", tmp_path / "v.mp4")
    assert steps == ["sync", "name", "sync"]


# What is done in a thread beside the reading


def test_all_chunks_are_done_in_order_when_the_block_ends() -> None:
    done: list[bytes] = []
    chunks = [bytes([number]) for number in range(200)]
    with InBackground(done.append) as work:
        for chunk in chunks:
            work(chunk)
    assert done == chunks


def failing(_: bytes) -> Any:
    raise PermissionError("refused")


def work_on(chunks: int, *, then: Exception | None = None) -> None:
    with InBackground(failing) as work:
        for _ in range(chunks):
            work(b"x")
        if then is not None:
            raise then


@pytest.mark.parametrize("chunks", [1, 500])
def test_an_error_of_the_thread_is_raised_to_whom_it_concerns(chunks: int) -> None:
    with pytest.raises(PermissionError, match="refused"):
        work_on(chunks)
    assert not [each for each in threading.enumerate() if "_run" in each.name]


def test_an_error_of_the_block_is_not_covered_by_one_of_the_thread() -> None:
    with pytest.raises(KeyError):
        work_on(1, then=KeyError("mine"))
