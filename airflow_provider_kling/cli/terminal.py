"""What a command shows: results on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO, cast

from rich import filesize
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from airflow_provider_kling.api.errors import DownloadError
from airflow_provider_kling.storage import ResultStorage

if TYPE_CHECKING:
    from rich.progress import TaskID

    from airflow_provider_kling.hooks.download import ResultStream, Write

LINE_INTERVAL = 10.0
"""Seconds between two lines about a download, where there is no terminal to draw a bar on."""
_WIDE = 10_000


class Terminal:
    """Standard output and standard error of one command, which may be terminals or not."""

    def __init__(self) -> None:
        self.is_live = sys.stderr.isatty()
        self._out = _console(sys.stdout)
        self._err = _console(sys.stderr)

    def result(self, text: str) -> None:
        """Print a line of the command's result."""
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def result_as_json(self, value: Any) -> None:
        """Print the command's result as JSON."""
        self.result(json.dumps(value, indent=2, ensure_ascii=False))

    def result_as_table(
        self, rows: Sequence[Sequence[str]], *, headings: Sequence[str] = (), right: Sequence[int] = ()
    ) -> None:
        """
        Print the command's result as a table.

        :param right: places of the columns that hold numbers.
        """
        table = Table(box=None, show_header=bool(headings), pad_edge=False, padding=(0, 2, 0, 0))
        for place in range(max(len(row) for row in rows)):
            heading = headings[place] if headings else ""
            table.add_column(heading, justify="right" if place in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self._out.print(table, markup=False)

    def note(self, text: str) -> None:
        """Tell something that is not the result."""
        self._err.print(text, markup=False, highlight=False, soft_wrap=True)

    def log(self, level: int, text: str, *arguments: object) -> None:
        """Tell what other parts of the package log for a person."""
        if level >= logging.INFO:
            self.note(text % arguments if arguments else text)

    def info(self, text: str, *arguments: object) -> None:
        """Tell what is worth a line."""
        self.log(logging.INFO, text, *arguments)

    def warning(self, text: str, *arguments: object) -> None:
        """Tell what somebody should know."""
        self.log(logging.WARNING, text, *arguments)

    def asks(self, question: str) -> bool:
        """Ask a person for a yes; everything else is a no."""
        sys.stderr.write(f"{question} [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    @contextlib.contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Show for how long something goes on, where there is a terminal."""
        if not self.is_live:
            yield
            return
        with self._progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()) as shown:
            shown.add_task(text, total=None)
            yield

    @contextlib.contextmanager
    def downloading(self) -> Iterator[Arriving]:
        """Show how much of each file has come."""
        if not self.is_live:
            yield Lines(self)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with self._progress(*columns) as shown:
            yield Bars(shown)

    def _progress(self, *columns: ProgressColumn) -> Progress:
        # What is printed meanwhile stays above it, and when it is over nothing of it is left.
        return Progress(*columns, console=self._err, transient=True, redirect_stdout=False)


class Arriving:
    """Shows how files arrive."""

    def begins(self, index: int, total: int | None) -> None:
        """
        Note that a file begins, maybe once more.

        :param index: which of the results, from 0.
        :param total: its size in bytes, where the server tells it.
        """

    def arrived(self, index: int, count: int) -> None:
        """Note that so many bytes of it came."""


class Bars(Arriving):
    """Draws a bar for each file."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._bars: dict[int, TaskID] = {}

    def begins(self, index: int, total: int | None) -> None:
        """Draw an empty bar."""
        if index in self._bars:
            self._progress.reset(self._bars[index], total=total)
        else:
            self._bars[index] = self._progress.add_task(f"Video {index + 1}", total=total)

    def arrived(self, index: int, count: int) -> None:
        """Draw a longer bar."""
        self._progress.advance(self._bars[index], count)


class Lines(Arriving):
    """Tells in lines what a bar would show."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._totals: dict[int, int | None] = {}
        self._come: dict[int, int] = {}
        self._told_at: dict[int, float] = {}

    def begins(self, index: int, total: int | None) -> None:
        """Tell how much there is to come."""
        self._totals[index], self._come[index] = total, 0
        self._told_at[index] = time.monotonic()
        size = "" if total is None else f": {filesize.decimal(total)}"
        self._terminal.note(f"Fetching video {index + 1}{size}.")

    def arrived(self, index: int, count: int) -> None:
        """Tell from time to time how much has come."""
        self._come[index] += count
        now = time.monotonic()
        if now - self._told_at[index] >= LINE_INTERVAL:
            self._told_at[index] = now
            total = self._totals[index]
            of_all = "" if total is None else f" of {filesize.decimal(total)}"
            self._terminal.note(f"Video {index + 1}: {filesize.decimal(self._come[index])}{of_all}.")


class ShownStorage(ResultStorage):
    """
    A storage that shows how its results arrive.

    :param arriving: shows it.
    """

    def __init__(self, *arguments: Any, arriving: Arriving, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._arriving = arriving
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Let the downloads that run end without a file: the process cannot end before its threads do."""
        self._stopped.set()

    def writer(self, index: int, stream: ResultStream, write: Write) -> Write:
        """Show each chunk, and stop where that is wanted."""
        self._arriving.begins(index, stream.size_bytes)

        def write_and_show(chunk: bytes) -> None:
            if self._stopped.is_set():
                raise DownloadError("The download was interrupted")
            write(chunk)
            self._arriving.arrived(index, len(chunk))

        return write_and_show


@contextlib.contextmanager
def logs_to_stderr() -> Iterator[None]:
    """Send what Airflow logs on standard output to standard error: that is for results."""
    replaced: list[tuple[logging.Logger, logging.Handler, logging.Handler]] = []
    others = [
        found for found in logging.root.manager.loggerDict.values() if isinstance(found, logging.Logger)
    ]
    for logger in (logging.root, *others):
        for handler in list(logger.handlers):
            if not isinstance(handler, logging.StreamHandler) or handler.stream is not sys.stdout:
                continue
            # Airflow 2's own handler cannot be given another stream.
            other = _LogLines(cast("TextIO", _StandardError()))
            other.setLevel(max(handler.level, logging.WARNING))
            other.setFormatter(handler.formatter)
            other.filters = list(handler.filters)
            logger.handlers[logger.handlers.index(handler)] = other
            replaced.append((logger, handler, other))
    try:
        yield
    finally:
        for logger, handler, in_its_place in replaced:
            if in_its_place in logger.handlers:
                logger.handlers[logger.handlers.index(in_its_place)] = handler


class _LogLines(logging.StreamHandler[TextIO]):
    """Writes what is logged without tracebacks: Airflow 2 logs one where its database is not there."""

    def emit(self, record: logging.LogRecord) -> None:
        record = copy.copy(record)
        record.exc_info = record.exc_text = record.stack_info = None
        super().emit(record)


class _StandardError:
    """Standard error as it is when something is written: while progress is drawn it is another one."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _console(file: TextIO) -> Console:
    is_terminal = file.isatty()
    # Whoever reads a file or a pipe gets whole lines.
    return Console(file=file, force_terminal=is_terminal, width=None if is_terminal else _WIDE)
