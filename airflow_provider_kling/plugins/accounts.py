"""The service's accounts as the receiver uses them: their keys check tokens, and their clients ask about videos."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_provider_kling.api.errors import ConnectionSettingsError
from airflow_provider_kling.callbacks import CallbackToken
from airflow_provider_kling.hooks.async_client import AsyncKlingClient
from airflow_provider_kling.hooks.kling import KlingHook
from airflow_provider_kling.hooks.settings import CONN_TYPE, ConnectionSettings

if TYPE_CHECKING:
    from airflow_provider_kling.plugins.admission import Strangers

FRESH_SECONDS = 15.0
"""How long a connection counts as looked up; a key that was replaced is good for so long."""
KEPT_SECONDS = 60.0
"""The same while strangers are guessing keys: their tokens are no reason to look whether there is a new one."""
_MOST = 256
_T = TypeVar("_T")


class InThread(Protocol):
    """Runs a function that blocks."""

    async def __call__(self, function: Callable[[], _T], /) -> _T:
        """Run it in a thread and return what it returns."""


class UnavailableError(Exception):
    """Something that has to be asked cannot be asked now; the callback may come again."""


@dataclass
class _Account:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    settings: ConnectionSettings | None = None
    looked_up_at: float | None = None
    client: AsyncKlingClient | None = None

    def is_looked_up_within(self, seconds: float) -> bool:
        return self.looked_up_at is not None and time.monotonic() - self.looked_up_at < seconds


class Accounts:
    """
    Looks connections up, remembers them for a moment, and keeps one client for each.

    :param in_thread: runs a function that blocks.
    :param strangers: limits look-ups of connections that were not found yet, and that the metadata database does not
        hold: strangers who make ids up must not keep out who names one that is there.
    """

    def __init__(self, in_thread: InThread, strangers: Strangers) -> None:
        self._in_thread = in_thread
        self._strangers = strangers
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._ids_in_database: frozenset[str] = frozenset()
        self._ids_asked_at: float | None = None
        self._ids_lock = asyncio.Lock()

    async def whose_key_signed(
        self, text: str, token: CallbackToken, *, address: str
    ) -> ConnectionSettings | None:
        """
        Return the connection that a token names, if its key signed the token.

        None says nothing of why not: no such connection, one of another type, another key, or too many of these asked
        about already. Who could tell them apart would learn which connections there are.

        :param text: the token as it came.
        :param address: of the client that brought it.
        :raises UnavailableError: where the connection could not be looked up.
        """
        account = self._accounts.get(token.conn_id)
        if account is None or account.settings is None:
            account = await self._meet(token.conn_id, account, address)
        elif not account.is_looked_up_within(FRESH_SECONDS):
            is_trusted = CallbackToken.is_signed(text, account.settings.key)
            if is_trusted or not self._strangers.are_guessing(address):
                await self._refresh(token.conn_id, account, FRESH_SECONDS)
            else:
                await self._refresh(token.conn_id, account, KEPT_SECONDS)
        settings = None if account is None else account.settings
        if settings is None:
            return None
        if not CallbackToken.is_signed(text, settings.key):
            self._strangers.note_failed_signature(address)
            return None
        return settings

    async def _meet(self, conn_id: str, account: _Account | None, address: str) -> _Account | None:
        """Look a connection up that was not found yet; None where that is not worth it any more."""
        if account is not None and account.is_looked_up_within(FRESH_SECONDS):
            return account
        is_there, unavailable = False, None
        try:
            is_there = conn_id in await self._in_database()
        except UnavailableError as error:
            # It may be kept elsewhere, and its key tells a forged token from a genuine one all the same.
            unavailable = error
        if not is_there and not self._strangers.may_look_up(address):
            if unavailable is not None:
                raise unavailable
            return None
        account = self._accounts.get(conn_id)  # another callback may have made it meanwhile
        if account is None:
            account = self._accounts[conn_id] = _Account()
            await self._forget()
        await self._refresh(conn_id, account, FRESH_SECONDS)
        return account

    async def _refresh(self, conn_id: str, account: _Account, seconds: float) -> None:
        async with account.lock:
            if not account.is_looked_up_within(seconds):
                await self._look_up(conn_id, account)

    async def _in_database(self) -> frozenset[str]:
        # All of them at once: so made-up ids cost no query each, and take no longer to refuse than others.
        async with self._ids_lock:
            if self._ids_asked_at is None or time.monotonic() - self._ids_asked_at >= FRESH_SECONDS:
                self._ids_in_database = await self._in_thread(_kling_conn_ids)
                self._ids_asked_at = time.monotonic()
            return self._ids_in_database

    async def client(self, settings: ConnectionSettings) -> AsyncKlingClient:
        """
        Return the client for a connection.

        :raises UnavailableError: where there can be none.
        """
        account = self._accounts.setdefault(settings.conn_id, _Account(settings=settings))
        async with account.lock:
            if account.client is not None and account.client.settings != settings:
                await account.client.close()
                account.client = None
            if account.client is None:
                try:
                    account.client = AsyncKlingClient(settings, await self._in_thread(settings.tls))
                except ConnectionSettingsError as error:
                    raise UnavailableError(error.what) from error
            return account.client

    async def close(self) -> None:
        """Close all clients."""
        for account in self._accounts.values():
            if account.client is not None:
                await account.client.close()
        self._accounts.clear()

    async def _look_up(self, conn_id: str, account: _Account) -> None:
        try:
            account.settings = await self._in_thread(lambda: _read(conn_id))
        except UnavailableError as error:
            if account.settings is None:
                self._accounts.pop(conn_id, None)
            raise UnavailableError(f"connection {conn_id!r} could not be looked up") from error
        account.looked_up_at = time.monotonic()

    async def _forget(self) -> None:
        # Those that were not found go first: strangers make them up.
        while len(self._accounts) > _MOST:
            conn_id = next(
                (
                    each
                    for each, account in self._accounts.items()
                    if account.settings is None and not account.lock.locked()
                ),
                next(iter(self._accounts)),
            )
            dropped = self._accounts.pop(conn_id)
            if dropped.client is not None:
                with suppress(Exception):
                    await dropped.client.close()


def _kling_conn_ids() -> frozenset[str]:
    # Imported here: that module needs this one.
    from airflow_provider_kling.plugins.database import kling_conn_ids

    return kling_conn_ids()


def _read(conn_id: str) -> ConnectionSettings | None:
    """
    Look a connection up. None where there is none that can be used, or it is of another type.

    A token may name any connection. What it is signed with is tried against the key, so this must not be the password
    of a database: the answer would tell strangers whether they guessed it.

    :raises UnavailableError: where Airflow could not be asked.
    """
    try:
        connection = KlingHook.get_connection(conn_id)
    except AirflowNotFoundException:
        # Airflow says "not defined" also where its database is down.
        from airflow_provider_kling.plugins.database import check_database

        check_database()
        return None
    except Exception as error:
        raise UnavailableError(f"{type(error).__name__}") from error
    if connection.conn_type != CONN_TYPE:
        return None
    try:
        return ConnectionSettings.from_connection(connection, connection.extra_dejson)
    except ConnectionSettingsError:
        return None
