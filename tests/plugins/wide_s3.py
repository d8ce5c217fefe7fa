"""An S3-compatible server with a file of any size that nobody has to store. It counts what it sends."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

CONN_ID = "kling_wide"
BUCKET = "wide"
FILM = "film.mp4"
_BLOCK = 4096


def film(start: int, stop: int) -> bytes:
    """Return bytes of the file: in each block stands, again and again, which one it is."""
    first = start // _BLOCK
    blocks = b"".join(block.to_bytes(8) * (_BLOCK // 8) for block in range(first, -(-stop // _BLOCK)))
    return blocks[start - first * _BLOCK : stop - first * _BLOCK]


class WideS3(ThreadingHTTPServer):
    """
    Serves ``wide/film.mp4``, and what is put beside it.

    :param size: how large the film is, bytes.
    """

    daemon_threads = True
    request_queue_size = 512

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.size = 1024**3
        self.beside: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.sent = 0
        self.lock = threading.Lock()
        self.hangs_from: int | None = None
        self.goes_on = threading.Event()

    @property
    def uri(self) -> str:
        """The film's URI."""
        return f"s3://{CONN_ID}@{BUCKET}/{FILM}"

    def count(self, method: str, name: str = FILM) -> int:
        """Return how many requests of a kind came."""
        with self.lock:
            return sum(each[:2] == (method, name) for each in self.requests)

    def forget(self) -> None:
        """Begin to count anew."""
        with self.lock:
            self.requests.clear()
            self.sent = 0


class _Handler(BaseHTTPRequestHandler):
    server: WideS3
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(None)

    def do_GET(self) -> None:
        self._answer(self.headers.get("Range"))

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.beside[self._name] = body
        self._send(200, b"", {"ETag": '"put"'})

    @property
    def _name(self) -> str:
        return self.path.partition("?")[0].removeprefix(f"/{BUCKET}/")

    def _answer(self, asked: str | None) -> None:
        name = self._name
        with self.server.lock:
            self.server.requests.append((self.command, name, asked or ""))
        size = self.server.size if name == FILM else len(self.server.beside.get(name, b""))
        if name != FILM and name not in self.server.beside:
            self._send(404, b"", {})
            return
        start, stop, status = 0, size, 200
        headers = {
            "ETag": '"wide"',
            "Last-Modified": "Sun, 22 Nov 2026 10:00:00 GMT",
            "Accept-Ranges": "bytes",
        }
        if asked is not None:
            found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
            assert found is not None, asked
            start, stop, status = int(found[1]), min(size, int(found[2] or size) + 1), 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        hangs_from = self.server.hangs_from
        if self.command == "GET" and name == FILM and hangs_from is not None and start >= hangs_from:
            self.server.goes_on.wait()
        if self.command == "HEAD":
            self._send(200, None, headers | {"Content-Length": str(size)})
        else:
            content = film(start, stop) if name == FILM else self.server.beside[name][start:stop]
            self._send(status, content, headers)

    def _send(self, status: int, content: bytes | None, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if content is not None:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if content:
            with self.server.lock:
                self.server.sent += len(content)
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def wide_server() -> Iterator[WideS3]:
    server = WideS3()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def wide_s3(wide_server: WideS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[WideS3]:
    """Return the server, with the Airflow connection that leads to it."""
    endpoint = f"http://127.0.0.1:{wide_server.server_address[1]}"
    connection = {
        "conn_type": "aws",
        "login": "testing",
        "password": "testing",
        "extra": {"region_name": "us-east-1", "endpoint_url": endpoint},
    }
    monkeypatch.setenv(f"AIRFLOW_CONN_{CONN_ID.upper()}", json.dumps(connection))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    wide_server.beside.clear()
    wide_server.forget()
    wide_server.goes_on.clear()
    yield wide_server
    wide_server.hangs_from = None
    wide_server.goes_on.set()
