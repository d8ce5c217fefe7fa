"""
The asynchronous client for the triggerer, shared by all waiting videos of a connection.

``aiohttp`` is imported where it is used: operators import this module too, by way of the trigger, and it takes
a quarter of a second to import.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from airflow.providers.common.compat.connection import get_async_connection, get_async_extra_dejson

from airflow_provider_kling.api.errors import (
    KeyRefusedError,
    ServiceError,
    UnreachableError,
    UnreadableAnswerError,
    error_for_transport,
)
from airflow_provider_kling.api.protocol import (
    ApiAnswer,
    ApiCall,
    balance_call,
    query_call,
    read_balance,
    read_task,
)
from airflow_provider_kling.hooks.settings import ConnectionSettings, lookup_error, user_agent

if TYPE_CHECKING:
    from airflow_provider_kling.api.task import Balance, VideoTask

MAX_CONNECTIONS = 100
"""Queries under way at once, each on a connection of its own. The others wait for their turn."""

_T = TypeVar("_T")


class AsyncKlingClient:
    """
    Asks the service from an event loop, over one HTTP session.

    :param settings: how to reach the service.
    :param tls: what checks the service's certificate, made from the settings.
    """

    def __init__(self, settings: ConnectionSettings, tls: ssl.SSLContext | bool) -> None:
        import aiohttp

        self.settings = settings
        self.may_be_outdated = False
        """True once the service answered as it does where the connection is wrong."""
        self._proxy = settings.proxy
        # The session has such a limit too, but counts the wait for a turn as time that the service takes.
        self._turns = asyncio.Semaphore(MAX_CONNECTIONS)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=MAX_CONNECTIONS),
            headers={"User-Agent": user_agent(), "Authorization": f"Bearer {settings.key}"},
            timeout=aiohttp.ClientTimeout(
                total=settings.connect_timeout + settings.read_timeout,
                sock_connect=settings.connect_timeout,
                sock_read=settings.read_timeout,
            ),
        )

    @classmethod
    async def from_connection(cls, conn_id: str) -> AsyncKlingClient:
        """
        Look the connection up and make a client of it.

        :raises ConnectionSettingsError: where there is no such connection or it cannot be used.
        :raises ConnectionLookupError: where Airflow could not be asked.
        """
        return await cls.of(await look_up(conn_id))

    @classmethod
    async def of(cls, settings: ConnectionSettings) -> AsyncKlingClient:
        """
        Make a client of a connection that was looked up.

        :raises ConnectionSettingsError: where its CA bundle cannot be read.
        """
        # Not in the event loop: a CA bundle is read from a file.
        return cls(settings, await asyncio.to_thread(settings.tls))

    async def get_task(self, task_id: str) -> VideoTask:
        """
        Ask for a task's state, once.

        :raises ServiceError: where there was no usable answer.
        """
        return await self._ask(query_call(task_id), read_task)

    async def get_balance(self) -> Balance | None:
        """
        Ask for the money left, once.

        :return: None where the service does not tell.
        :raises ServiceError: where there was no usable answer.
        """
        return await self._ask(balance_call(), read_balance)

    async def close(self) -> None:
        """Close the session."""
        await self._session.close()

    async def _ask(self, call: ApiCall, read: Callable[[ApiCall, ApiAnswer], _T]) -> _T:
        try:
            return read(call, await self._send(call))
        except (KeyRefusedError, UnreachableError, UnreadableAnswerError):
            self.may_be_outdated = True
            raise

    async def _send(self, call: ApiCall) -> ApiAnswer:
        import aiohttp

        try:
            async with (
                self._turns,
                self._session.request(
                    call.method,
                    self.settings.base_url + call.path,
                    params=dict(call.params),
                    proxy=self._proxy,
                ) as response,
            ):
                body = await response.read()
                return ApiAnswer(response.status, response.headers, body, self.settings.key)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            failure = _error_for(call, error)
        raise failure


def _error_for(call: ApiCall, error: Exception) -> ServiceError:
    import aiohttp

    never_connected = (
        aiohttp.ClientConnectorError,
        aiohttp.ConnectionTimeoutError,
        aiohttp.ClientHttpProxyError,
        aiohttp.InvalidURL,
        UnicodeError,  # a host that can be no name
    )
    detail = str(error) or type(error).__name__
    cause: Exception | None = error
    if isinstance(error, aiohttp.ClientResponseError):
        # Its text may hold a proxy's password, and its arguments hold the request's headers: the key.
        detail, cause = f"{type(error).__name__} {error.status} {error.message}".rstrip(), None
    failure = error_for_transport(
        call.operation,
        detail,
        sent=not isinstance(error, never_connected),
        tls=isinstance(error, aiohttp.ClientSSLError),
        task_id=call.task_id,
    )
    failure.__cause__ = cause
    return failure


def _load_libraries() -> None:
    # Not in the event loop: it takes long. The second is what Airflow looks a connection up with.
    import aiohttp  # noqa: F401
    import asgiref.sync  # noqa: F401
    import requests.utils  # noqa: F401


async def look_up(conn_id: str) -> ConnectionSettings:
    """
    Look a connection up from an event loop.

    :raises ConnectionSettingsError: where there is no such connection or it cannot be used.
    :raises ConnectionLookupError: where Airflow could not be asked.
    """
    await asyncio.to_thread(_load_libraries)
    try:
        connection = await get_async_connection(conn_id)
        extra = await get_async_extra_dejson(connection)
    except Exception as error:
        raise lookup_error(conn_id, error) from error
    # Not in the event loop: a proxy's password is masked by a call to Airflow.
    return await asyncio.to_thread(ConnectionSettings.from_connection, connection, extra)


@dataclass
class _Shared:
    users: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    client: AsyncKlingClient | None = None


_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Shared]] = WeakKeyDictionary()


@asynccontextmanager
async def shared_client(conn_id: str) -> AsyncIterator[AsyncKlingClient]:
    """
    Give the client of a connection that all users in this event loop share.

    The first one in looks the connection up, the last one out closes the session. Where the service answers as if
    the connection were wrong, it is looked up again for those who come next: it may have been corrected.

    :raises ConnectionSettingsError: where there is no such connection or it cannot be used.
    :raises ConnectionLookupError: where Airflow could not be asked.
    """
    of_loop = _shared.setdefault(asyncio.get_running_loop(), {})
    entry = of_loop.get(conn_id)
    if entry is None or (entry.client is not None and entry.client.may_be_outdated):
        entry = of_loop[conn_id] = _Shared()
    entry.users += 1
    try:
        async with entry.lock:
            if entry.client is None:
                entry.client = await AsyncKlingClient.from_connection(conn_id)
        yield entry.client
    finally:
        entry.users -= 1
        if entry.users == 0:
            if of_loop.get(conn_id) is entry:
                del of_loop[conn_id]
            if entry.client is not None:
                await entry.client.close()
