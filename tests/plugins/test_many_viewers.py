"""Large files and many viewers: what is read of the storage, what is kept in memory, and who has to wait for whom."""

from __future__ import annotations

import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from airflow_provider_kling.plugins import gallery
from tests.plugins.conftest import Waiter
from tests.plugins.viewing import People, Viewer, address, card, describe, whose
from tests.plugins.wide_s3 import FILM, WideS3, film, wide_s3, wide_server

__all__ = ["wide_s3", "wide_server"]

pytestmark = pytest.mark.acceptance

TIMEOUT = 60.0
MEGABYTE = 1024**2


@pytest.fixture
def wide_film(waiter: Waiter, wide_s3: WideS3) -> str:
    """Put a task's video of 1 GB onto the server; return where it can be played."""
    wide_s3.size = 1024 * MEGABYTE
    waiter.push("kling_video", card(describe(whose(waiter), wide_s3.uri, size=wide_s3.size)))
    wide_s3.forget()
    return address(waiter)


class Server:
    """Airflow's API server, on a port."""

    def __init__(self, people: People, port: int) -> None:
        self._login = people.log_in("anne")
        self._port = port

    def ask(self, path: str, **headers: str) -> socket.socket:
        """Send a request and leave the answer in the socket."""
        viewer = socket.create_connection(("127.0.0.1", self._port), timeout=TIMEOUT)
        told = {"Host": "airflow", "Connection": "close", **self._login, **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
        viewer.sendall(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode())
        return viewer

    def status(self, path: str, **headers: str) -> int:
        """Return the status of an answer, and read it to its end."""
        with closing(self.ask(path, **headers)) as viewer:
            answer = b""
            while piece := viewer.recv(65536):
                answer += piece
        return int(answer.split(b" ", 2)[1])


@pytest.fixture
def serve(people: People) -> Iterator[Callable[[], Server]]:
    """Return a function that runs Airflow's API server, in an event loop of its own."""
    import uvicorn

    with ExitStack() as running:

        def start() -> Server:
            config = uvicorn.Config(people.app, port=0, lifespan="off", log_level="error")
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run)
            thread.start()

            def stop() -> None:
                server.should_exit = server.force_exit = True
                thread.join(TIMEOUT)

            running.callback(stop)
            wait_for(lambda: server.started)
            return Server(people, server.servers[0].sockets[0].getsockname()[1])

        yield start


def wait_for(happened: Callable[[], Any]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not happened():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def head_of(viewer: socket.socket) -> bytes:
    answer = b""
    while b"\r\n\r\n" not in answer:
        piece = viewer.recv(1)
        assert piece, answer
        answer += piece
    return answer


def test_a_seek_in_a_large_file_reads_what_is_played_and_nothing_else(
    viewer: Viewer, wide_film: str, wide_s3: WideS3
) -> None:
    start = 700_000_000
    answer = viewer.get(wide_film, Range=f"bytes={start}-{start + 99_999}")

    assert answer.status_code == 206
    assert answer.content == film(start, start + 100_000)
    of_manifest = len(wide_s3.beside[f"{FILM}.json"])
    assert wide_s3.sent == 100_000 + of_manifest
    assert wide_s3.count("GET") == 1
    assert len(wide_s3.requests) <= 6


def test_a_long_part_is_read_piece_by_piece_and_each_byte_once(
    viewer: Viewer, wide_film: str, wide_s3: WideS3
) -> None:
    start, length = 1024 * MEGABYTE - 5_000_000, 5_000_000
    answer = viewer.get(wide_film, Range=f"bytes={start}-")

    assert answer.content == film(start, start + length)
    assert wide_s3.sent == length + len(wide_s3.beside[f"{FILM}.json"])
    assert wide_s3.count("GET") <= 2 + length // gallery.MOST_PIECE_BYTES + 2


def test_to_ask_for_the_headers_reads_nothing_of_the_file(
    viewer: Viewer, wide_film: str, wide_s3: WideS3
) -> None:
    assert viewer.request("HEAD", wide_film).headers["Content-Length"] == str(1024 * MEGABYTE)
    assert viewer.get(wide_film, If_None_Match=f'"{"ab" * 32}"').status_code == 304
    assert viewer.get(wide_film, Range="bytes=2000000000-").status_code == 416
    assert wide_s3.count("GET") == 0


def test_a_viewer_who_leaves_ends_the_reading(
    serve: Callable[[], Server], wide_film: str, wide_s3: WideS3
) -> None:
    server = serve()
    with closing(server.ask(wide_film, Range="bytes=0-")) as viewer:
        assert b" 206 " in head_of(viewer)
        read = 0
        while read < 500_000:
            read += len(viewer.recv(65536))
        # As much is read as the network holds, and then no more until the viewer takes it.
        wait_for(lambda: is_quiet(wide_s3))
        assert wide_s3.sent < 64 * MEGABYTE
    wait_for(lambda: is_quiet(wide_s3))
    assert wide_s3.sent < 64 * MEGABYTE


def is_quiet(server: WideS3) -> bool:
    before = server.sent
    time.sleep(0.5)
    return server.sent == before


def test_many_slow_viewers_keep_nobody_waiting(
    serve: Callable[[], Server], wide_film: str, wide_s3: WideS3
) -> None:
    server = serve()
    with ExitStack() as watching:
        slow = [watching.enter_context(closing(server.ask(wide_film))) for _ in range(120)]
        for viewer in slow:
            assert b" 200 " in head_of(viewer)
        assert server.status("/api/v2/monitor/health") == 200
        assert server.status("/api/v2/dags") == 200
        assert server.status(wide_film, Range="bytes=5-9") == 206
        # All of them are still being sent what they do not take.
        for viewer in slow:
            assert viewer.recv(16)


@pytest.mark.parametrize("hangs_from", [0, 1], ids=["from its first byte on", "in the middle"])
def test_a_storage_that_hangs_keeps_nobody_waiting_but_its_viewers(
    serve: Callable[[], Server], wide_film: str, wide_s3: WideS3, hangs_from: int
) -> None:
    server = serve()
    wide_s3.hangs_from = hangs_from
    with ExitStack() as watching:
        for _ in range(60):
            watching.enter_context(closing(server.ask(wide_film)))
        wait_for(lambda: wide_s3.count("GET") >= gallery.THREADS)
        # More of them than the threads with which Airflow answers its own requests, and one of those is this.
        for _ in range(3):
            assert server.status("/api/v2/dags") == 200
        wide_s3.goes_on.set()
        wide_s3.hangs_from = None
    assert server.status(wide_film, Range="bytes=5-9") == 206


def test_there_is_an_end_to_how_many_watch_at_once(
    serve: Callable[[], Server], wide_film: str, wide_s3: WideS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "MOST_STREAMS", 3)
    server = serve()
    with ExitStack() as watching:
        for _ in range(3):
            head_of(watching.enter_context(closing(server.ask(wide_film))))
        with closing(server.ask(wide_film)) as one_more:
            answer = head_of(one_more).lower()
            assert b" 503 " in answer
            assert b"retry-after" in answer
        assert server.status("/api/v2/monitor/health") == 200
    wait_for(lambda: server.status(wide_film, Range="bytes=0-9") == 206)


def test_a_large_file_takes_little_memory(
    serve: Callable[[], Server], wide_film: str, wide_s3: WideS3, waiter: Waiter
) -> None:
    length = 96 * MEGABYTE
    server = serve()
    assert server.status(wide_film, Range="bytes=0-9") == 206
    tracemalloc.start()
    try:
        with closing(server.ask(wide_film, Range=f"bytes=0-{length - 1}")) as viewer:
            head_of(viewer)
            read = 0
            buffer = bytearray(65536)
            while got := viewer.recv_into(buffer):
                read += got
        assert read == length
        assert tracemalloc.get_traced_memory()[1] < 24 * MEGABYTE
    finally:
        tracemalloc.stop()


def test_a_file_that_gets_shorter_meanwhile_cuts_the_answer_short(
    serve: Callable[[], Server], wide_film: str, wide_s3: WideS3
) -> None:
    server = serve()
    with closing(server.ask(wide_film, Range="bytes=0-")) as viewer:
        answer = head_of(viewer)
        assert b"content-length: 1073741824" in answer.lower()
        wide_s3.size = 0
        read = 0
        while piece := viewer.recv(65536):
            read += len(piece)
        assert read < 1024 * MEGABYTE
    wide_s3.size = 1024 * MEGABYTE
    assert server.status(wide_film, Range="bytes=0-9") == 206
