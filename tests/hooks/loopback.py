"""
A server on loopback whose answers a test writes, down to the single byte.

The emulator behaves like the service; this one also does what no service would: it cuts, resets, keeps silent,
and counts connections.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cache
from http import HTTPStatus
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, Self


class Fault(Enum):
    """What happens to a connection in place of an answer."""

    SLAMMED = auto()
    """Closed as soon as it is accepted; nothing is read."""
    GREETING = auto()
    """Greeted as servers of other protocols do, then closed; nothing is read."""
    CLOSED = auto()
    """Closed after the request was read to its end."""
    RESET = auto()
    """Reset after the request was read to its end."""
    SILENT = auto()
    """Kept open, without a byte of an answer."""


@dataclass(frozen=True)
class Answer:
    """
    An HTTP answer.

    :param body: bytes as they are, or something to be written as JSON.
    :param promised: the Content-Length, where it shall differ from the body's; -1 for none at all.
    """

    status: int = 200
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    promised: int | None = None

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()

    @property
    def is_cut(self) -> bool:
        return self.promised is not None and self.promised != len(self.content)

    def to_bytes(self) -> bytes:
        headers = dict(self.headers)
        headers.setdefault(
            "Content-Type", "text/plain" if isinstance(self.body, bytes) else "application/json"
        )
        if self.promised != -1:
            headers["Content-Length"] = str(len(self.content) if self.promised is None else self.promised)
        phrase = HTTPStatus(self.status).phrase if self.status in list(HTTPStatus) else "Odd"
        lines = [f"HTTP/1.1 {self.status} {phrase}", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode() + self.content


Reply = Answer | Fault | bytes
"""Bytes are sent as they are, and the connection closed after them."""


@dataclass(frozen=True)
class Received:
    """A request that arrived to its last byte."""

    method: str
    target: str
    headers: Mapping[str, str]
    """Names in small letters."""
    body: bytes

    @property
    def key(self) -> str | None:
        return self.headers.get("authorization")

    def json(self) -> Any:
        return json.loads(self.body)


class Loopback:
    """
    Serves until the ``with`` block ends.

    :param replies: one for each request, the last of them for all that follow; or what makes a reply of a request.
    :param delay: seconds before each answer.
    :param tls: what to speak TLS with.
    """

    def __init__(
        self,
        *replies: Reply,
        script: Callable[[Received], Reply] | None = None,
        delay: float = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._replies: Sequence[Reply] = replies or (Answer(body={"code": 200, "data": {}}),)
        self._script = script or self._next
        self._delay = delay
        self._tls = tls
        self.received: list[Received] = []
        self.connections = 0
        self.open = 0
        self.most_open = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def replies_from_now_on(self, *replies: Reply) -> None:
        self._replies = replies
        self._script = self._next
        self.received.clear()

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> asyncio.Server:
        # What a handshake of TLS comes to is the client's affair here, and no news for this loop.
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        return await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls, backlog=2000)

    async def _stop(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            if self._replies[0] is Fault.GREETING:
                writer.write(b"220 mail.example ESMTP\r\n")
            elif self._replies[0] is not Fault.SLAMMED:
                while await self._exchange(reader, writer):
                    pass
        self.open -= 1
        writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])
        }
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        request = Received(method, target, headers, body)
        self.received.append(request)
        reply = self._script(request)
        await asyncio.sleep(self._delay)
        if reply is Fault.SILENT:
            await asyncio.sleep(3600)
        elif reply is Fault.RESET:
            connection = writer.get_extra_info("socket")
            connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        elif isinstance(reply, bytes):
            writer.write(reply)
        elif isinstance(reply, Answer):
            writer.write(reply.to_bytes())
            await writer.drain()
            return not reply.is_cut
        return False

    def _next(self, _: Received) -> Reply:
        return self._replies[min(len(self.received), len(self._replies)) - 1]


def task_answer(state: str = "pending", *links: str, task_id: str = "task-1", **more: Any) -> Answer:
    """Answer a query in the service's documented form."""
    data = {
        "taskId": task_id,
        "state": state,
        "model": "kling-video/kling-v3-omni",
        "resultUrls": list(links),
        **more,
    }
    return Answer(body={"code": 200, "msg": "success", "data": data})


def of_asked_task(state: str = "pending", *links: str) -> Callable[[Received], Answer]:
    """Answer each query with the task that it asks for."""
    return lambda request: task_answer(state, *links, task_id=request.target.rpartition("task_id=")[2])


def refused_port() -> int:
    """Return a port of loopback that nothing listens on, and nothing else can be given while this process lives."""
    port: int = _unused().getsockname()[1]
    return port


@cache
def _unused() -> socket.socket:
    unused = socket.socket()
    unused.bind(("127.0.0.1", 0))
    return unused
