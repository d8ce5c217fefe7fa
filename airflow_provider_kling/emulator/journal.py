"""Keeps the ledger on disk, so that what was paid is known after the emulator itself was killed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORM = 1
"""Number of the file's form; another one is refused."""


class JournalError(RuntimeError):
    """The ledger's file cannot be used."""


class Journal:
    """
    A file of JSON lines, one for each event, written before the event's answer goes out.

    What was written survives the death of the process, though not of the machine: lines are flushed, not synced.

    :param path: the file; it is created if need be. Its directory must exist.
    :raises JournalError: where the file is no journal, or another emulator has it open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise JournalError(f"Another emulator is using {path}: give each its own ledger file") from None

    def replay(self) -> Iterator[dict[str, Any]]:
        """
        Yield the events of earlier runs. A last line that was being written when the emulator died is cut off.

        :raises JournalError: where the file holds something else.
        """
        end = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if end and not line.endswith(b"\n"):
                    os.truncate(self.path, end)
                    return
                event = _read(line)
                if event is None or (number == 1 and event["event"] != "start"):
                    raise JournalError(
                        f"{self.path}, line {number}: this is no ledger of this version of the emulator. "
                        "Move the file away, or give another one."
                    )
                end += len(line)
                yield event

    def write(self, event: str, **facts: Any) -> None:
        """
        Append an event.

        :raises OSError: where the disk is full, or is gone.
        """
        line = json.dumps({"event": event, **facts}, separators=(",", ":")).encode() + b"\n"
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, f"{self.path} could not be written to its end")

    def close(self) -> None:
        """Close the file and let others have it."""
        self._file.close()


def _read(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    if not (isinstance(event, dict) and isinstance(event.get("event"), str)):
        return None
    return None if event["event"] == "start" and event.get("form") != FORM else event
