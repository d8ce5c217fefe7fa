"""
Run one command, and end it with all that it started as soon as whoever asked for it is gone.

    python dev/guard.py COMMAND ARGUMENT...

Standard input is a pipe whose other end only the owner holds: its end is the owner's end, however that came about, an
orderly exit or kill -9. The guard leads a session of its own; a process that is in this session belongs to the command,
also when its parent has died or it has moved to a process group of its own, as Airflow's task processes do.

Exits with the command's exit code (128 + the signal's number if a signal ended it).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import psutil

GRACE = 5.0
"""Seconds between the polite signal and the one that cannot be refused."""

_OWNER = 0  # standard input


def session_members(session: int) -> list[int]:
    """Return the ids of the live processes of a session, without its leader."""
    members = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if pid != session and os.getsid(pid) == session:
                members.append(pid)
    return members


def kill_session(session: int) -> None:
    """Kill (SIGKILL) every process of a session but its leader, until none is left."""
    while members := [pid for pid in session_members(session) if not _is_zombie(pid)]:
        for pid in members:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def run(command: Sequence[str]) -> int:
    """Run the command until it ends, the owner is gone, or a signal asks to stop. Return the exit code."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    stop_asked = False

    def ask_to_stop(_signal: int, _frame: object) -> None:
        nonlocal stop_asked
        stop_asked = True

    signal.signal(signal.SIGTERM, ask_to_stop)
    signal.signal(signal.SIGINT, ask_to_stop)
    signal.signal(signal.SIGCHLD, lambda _signal, _frame: None)

    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while child.poll() is None and not stop_asked:
        readable, _, _ = select.select([_OWNER, wake_read], [], [])
        if wake_read in readable:
            os.read(wake_read, 512)
        if _OWNER in readable and not os.read(_OWNER, 512):
            break
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
    kill_session(os.getpid())
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
