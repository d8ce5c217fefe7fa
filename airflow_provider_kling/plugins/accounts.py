"""The service's accounts as the receiver uses them: their keys check tokens, and their clients ask about videos."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar

from airflow_provider_kling.api.errors import ConnectionLookupError, ConnectionSettingsError
from airflow_provider_kling.hooks.async_client import AsyncKlingClient
from airflow_provider_kling.hooks.kling import KlingHook

if TYPE_CHECKING:
    from airflow_provider_kling.hooks.settings import ConnectionSettings
    from airflow_provider_kling.plugins.admission import LookupBudget

FRESH_SECONDS = 15.0
"""How long a connection counts as looked up; a key that was replaced is good for so long."""
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

    @property
    def is_fresh(self) -> bool:
        return self.looked_up_at is not None and time.monotonic() - self.looked_up_at < FRESH_SECONDS


class Accounts:
    """
    Looks connections up, remembers them for a moment, and keeps one client for each.

    :param in_thread: runs a function that blocks.
    :param budget: limits look-ups of connections that were not found yet, and that the metadata database does not
        hold: strangers who make ids up must not keep out who names one that is there.
    """

    def __init__(self, in_thread: InThread, budget: LookupBudget) -> None:
        self._in_thread = in_thread
        self._budget = budget
        self._accounts: OrderedDict[str, _Account] = OrderedDict()

    async def settings(self, conn_id: str, *, address: str) -> ConnectionSettings | None:
        """
        Return what a connection says; None where there certainly is none that can be used.

        :param address: of the client that named it.
        :raises UnavailableError: where it could not be looked up.
        :raises BusyError: where too many that the database does not hold were named.
        """
        account = self._accounts.get(conn_id)
        if account is None or not account.is_fresh:
            is_strange = account is None or account.settings is None
            if is_strange and not await self._in_thread(lambda: _is_in_database(conn_id)):
                self._budget.spend(address)
            account = self._accounts.get(conn_id)  # another callback may have made it meanwhile
            if account is None:
                account = self._accounts[conn_id] = _Account()
                await self._forget()
            async with account.lock:
                if not account.is_fresh:
                    await self._look_up(conn_id, account)
        return account.settings

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
        except (ConnectionLookupError, UnavailableError) as error:
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


def _is_in_database(conn_id: str) -> bool:
    # Imported here: that module needs this one.
    from airflow_provider_kling.plugins.database import is_in_database

    return is_in_database(conn_id)


def _read(conn_id: str) -> ConnectionSettings | None:
    """
    Look a connection up.

    :raises UnavailableError: where the metadata database could not be asked.
    """
    hook = KlingHook(conn_id)
    try:
        return hook.settings
    except ConnectionSettingsError:
        # Airflow says "not defined" also where its database is down.
        from airflow_provider_kling.plugins.database import check_database

        check_database()
        return None
