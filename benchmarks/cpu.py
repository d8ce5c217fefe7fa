"""The CPU that processes have used, with all that they started, also what has ended since."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterable

import psutil

_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


def cpu_seconds(pids: Iterable[int]) -> float:
    """
    Return the CPU seconds, user and system, of processes and of the children that they have waited for.

    A process that ended is part of its parent's figure once that has noticed, and has one of its own until then: give
    the ids of a whole tree, take it twice at quiet moments, and the difference is what the tree used in between.
    """
    total = 0.0
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def tree(pids: Iterable[int]) -> set[int]:
    """Return the ids of processes and of all that descend from them, also in sessions of their own."""
    found = set(pids)
    for pid in tuple(found):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.update(child.pid for child in psutil.Process(pid).children(recursive=True))
    return found


def adopt_orphans() -> None:
    """
    Let this process become the parent of descendants whose parent dies, so that their CPU is not lost.

    They are not waited for, and so stay visible, and counted, until this process ends.

    :raises OSError: where the system cannot do that; only Linux can.
    """
    if not sys.platform.startswith("linux"):
        raise OSError("Only Linux lets a process adopt orphans: run this benchmark there.")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
