"""How slow this machine is at this moment, so that a limit on work judges the work and not the machine."""

from __future__ import annotations

import time
import zlib

_MIXED = bytes(range(256)) * 64 + bytes(number * number % 251 for number in range(16_384))
_REFERENCE = 0.03
"""Seconds of CPU that :func:`_work` takes on the machine for which limits are written down, when it is quiet."""


def slowness() -> float:
    """
    Return how many times as much CPU as on the machine of the limits a fixed piece of work takes now; 1 at least.

    CPU time depends on who else is there: what shares a core's caches and units with this thread slows it down
    without taking its time away.
    """
    before = time.thread_time()
    _work()
    return max(1.0, (time.thread_time() - before) / _REFERENCE)


def _work() -> None:
    # Of both kinds that are measured here: the interpreter's, and that of a library that goes through memory.
    total = 0
    for number in range(200_000):
        total += number * number & 7
    for _ in range(70):
        zlib.compress(_MIXED, 9)
