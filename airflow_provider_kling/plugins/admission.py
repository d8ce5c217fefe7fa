"""How much work strangers may cause: an endpoint on the Internet must not become a lever against Airflow."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

MOST_AT_A_TIME = 1024
"""Callbacks under way at once, in one process. A callback that waits costs a few KB."""
MOST_OF_ONE_ADDRESS = 768
"""Callbacks under way at once from one address, in one process. The service may call from a single one."""
STRANGE_LOOKUPS_A_MINUTE = 60
"""Look-ups a minute, in one process, of connections that were not found yet and are not in the metadata database."""
STRANGE_LOOKUPS_OF_ONE_ADDRESS = 20
"""The same for one address."""
FAILED_SIGNATURES_A_MINUTE = 60
"""Tokens a minute, in one process, that no key signed, before one more is no reason to look for a new key."""
FAILED_SIGNATURES_OF_ONE_ADDRESS = 20
"""The same for one address."""
_ADDRESSES = 4096


class BusyError(Exception):
    """There is no room for this callback now; it may come again."""


class Admission:
    """Counts the callbacks under way."""

    def __init__(self) -> None:
        self._of_address: Counter[str] = Counter()
        self._under_way = 0

    @contextmanager
    def enter(self, address: str) -> Iterator[None]:
        """
        Let a callback in.

        :param address: the client's.
        :raises BusyError: where there are too many already.
        """
        if self._under_way >= MOST_AT_A_TIME or self._of_address[address] >= MOST_OF_ONE_ADDRESS:
            raise BusyError
        self._under_way += 1
        self._of_address[address] += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self._of_address[address] -= 1
            if not self._of_address[address]:
                del self._of_address[address]


class MinuteCount:
    """Counts what strangers do in a minute, by address."""

    def __init__(self) -> None:
        self._since = -60.0
        self._all = 0
        self._of_address: OrderedDict[str, int] = OrderedDict()

    def of(self, address: str) -> tuple[int, int]:
        """Return how much was counted in this minute: of all, and of one address."""
        now = time.monotonic()
        if now - self._since >= 60:
            self._since, self._all = now, 0
            self._of_address.clear()
        return self._all, self._of_address.get(address, 0)

    def add(self, address: str) -> None:
        """Count one."""
        _, of_address = self.of(address)
        self._all += 1
        self._of_address[address] = of_address + 1
        while len(self._of_address) > _ADDRESSES:
            self._of_address.popitem(last=False)


class Strangers:
    """
    Limits what callers who have proved nothing can make this process look up.

    It never stands between a genuine callback and the check of its token, however many strangers share its address.
    """

    def __init__(self) -> None:
        self._lookups = MinuteCount()
        self._failed_signatures = MinuteCount()

    def may_look_up(self, address: str) -> bool:
        """
        Pay for the look-up of a connection that was not found yet. False where this minute's are used up.

        It can ask a secrets backend over the network.
        """
        of_all, of_address = self._lookups.of(address)
        if of_all >= STRANGE_LOOKUPS_A_MINUTE or of_address >= STRANGE_LOOKUPS_OF_ONE_ADDRESS:
            return False
        self._lookups.add(address)
        return True

    def note_failed_signature(self, address: str) -> None:
        """Count a token that names a connection whose key has not signed it."""
        self._failed_signatures.add(address)

    def are_guessing(self, address: str) -> bool:
        """Tell whether there were so many of these that another one says nothing about the connection."""
        of_all, of_address = self._failed_signatures.of(address)
        return of_all >= FAILED_SIGNATURES_A_MINUTE or of_address >= FAILED_SIGNATURES_OF_ONE_ADDRESS
