"""Counts the connections to the emulator, by what they were opened for."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from typing import TYPE_CHECKING, Literal

from airflow_provider_kling.emulator.ledger import Connections

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.web_protocol import RequestHandler

Purpose = Literal["api", "download", "control"]

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def reset_connection(transport: asyncio.BaseTransport | None) -> None:
    """Cut a connection so that the other side sees a reset, without a farewell."""
    if isinstance(transport, asyncio.Transport):
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.abort()


class ConnectionCounter:
    """Counts connections. Used from the event loop only, but for :meth:`now`."""

    def __init__(self) -> None:
        self._server: web.Server | None = None
        self._opened = 0
        self._most_open = 0
        self._purposes: Counter[Purpose] = Counter()
        self._known: dict[RequestHandler, Purpose] = {}

    def accept(self, server: web.Server) -> RequestHandler:
        """Return what serves a connection that was just opened."""
        self._server = server
        self._opened += 1
        open_now = server.connections
        self._most_open = max(self._most_open, len(open_now) + 1)
        if len(self._known) > 2 * len(open_now) + 64:
            still_open = set(open_now)
            self._known = {its: purpose for its, purpose in self._known.items() if its in still_open}
        return server()

    def saw(self, request: web.Request, purpose: Purpose) -> None:
        """Note what a request is for; the first one of a connection counts."""
        if request.protocol not in self._known:
            self._known[request.protocol] = purpose
            self._purposes[purpose] += 1

    def open_to_users(self) -> list[asyncio.Transport]:
        """Return the open connections, those to the emulator's own paths left out."""
        protocols = self._server.connections if self._server else []
        users = [its.transport for its in protocols if self._known.get(its) != "control"]
        return [transport for transport in users if isinstance(transport, asyncio.Transport)]

    def now(self) -> Connections:
        """Return the counts."""
        purposes = self._purposes
        return Connections(
            api=purposes["api"],
            download=purposes["download"],
            control=purposes["control"],
            silent=max(0, self._opened - sum(purposes.values())),
            open=len(self._server.connections) if self._server else 0,
            most_open=self._most_open,
        )
