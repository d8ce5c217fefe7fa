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


class LookupBudget:
    """
    Limits look-ups of connections for callers who have proved nothing.

    A look-up can ask a secrets backend over the network. One that found a connection is not paid for again, and that of
    one in the metadata database not at all.
    """

    def __init__(self) -> None:
        self._since = -60.0
        self._spent = 0
        self._of_address: OrderedDict[str, int] = OrderedDict()

    def spend(self, address: str) -> None:
        """
        Pay for a look-up.

        :raises BusyError: where this minute's are used up.
        """
        now = time.monotonic()
        if now - self._since >= 60:
            self._since, self._spent = now, 0
            self._of_address.clear()
        of_address = self._of_address.get(address, 0)
        if self._spent >= STRANGE_LOOKUPS_A_MINUTE or of_address >= STRANGE_LOOKUPS_OF_ONE_ADDRESS:
            raise BusyError
        self._spent += 1
        self._of_address[address] = of_address + 1
        while len(self._of_address) > _ADDRESSES:
            self._of_address.popitem(last=False)
