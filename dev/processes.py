"""Processes that never outlive whoever started them, and the ports that they listen on."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dev import guard
from dev.guard import GRACE, kill_session, session_members

LOOPBACK = "127.0.0.1"

_GUARD = Path(guard.__file__)
_PATIENCE = 60.0
"""Seconds for which a guard may take longer than the ``GRACE`` that it gives: a busy machine does not harm it."""
_given: set[int] = set()


class GuardedProcess:
    """
    A command that runs in the background, its output in a file, under a guard (``dev.guard``).

    :param name: what messages call it.
    :param command: the command and its arguments.
    :param environment: its whole environment.
    :param directory: where it runs.
    :param log: the file that its output is appended to.
    :param held: file descriptors that stay open for as long as its guard lives (say, that of a lock).
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        directory: Path,
        log: Path,
        held: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.command = list(command)
        self.environment = dict(environment)
        self.directory = directory
        self.log = log
        self.held = tuple(held)
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._guard is not None and self._guard.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How it ended; ``None`` if it runs or was never started."""
        return None if self._guard is None else self._guard.poll()

    @property
    def pids(self) -> list[int]:
        """The ids of its processes: its own and those of everything that it started."""
        return session_members(self._guard.pid) if self._guard is not None and self.is_running else []

    def start(self) -> None:
        """
        Start it.

        :raises RuntimeError: it runs already.
        """
        if self.is_running:
            raise RuntimeError(f"{self.name} runs already")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._guard = subprocess.Popen(
                [sys.executable, str(_GUARD), *self.command],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=self.held,
            )

    def ask_to_stop(self) -> None:
        """Ask it to end, and do not wait. It is killed if it takes longer than ``GRACE`` seconds."""
        if self._guard is not None and self.is_running:
            with contextlib.suppress(ProcessLookupError):
                self._guard.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """End it with all that it started, and wait until it is gone."""
        self.ask_to_stop()
        self._wait_until_gone()

    def kill(self) -> None:
        """End it with all that it started as a crash of its machine would: SIGKILL, with no time to tidy up."""
        if self._guard is not None and self.is_running:
            kill_session(self._guard.pid)  # the guard ends when it has nothing left to guard
        self._wait_until_gone()

    def _wait_until_gone(self) -> None:
        if self._guard is not None:
            try:
                self._guard.wait(GRACE + _PATIENCE)
            except subprocess.TimeoutExpired:
                kill_session(self._guard.pid)
                self._guard.kill()
                self._guard.wait()
            if self._guard.stdin:
                self._guard.stdin.close()

    def tail(self, lines: int = 20) -> str:
        """Return the last lines of its output."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""


def free_port() -> int:
    """
    Return a port of the loopback interface that nothing listens on at the moment.

    It is none of those that the system gives to outgoing connections and to whoever asks for any port: until its
    server has started, nobody takes it by chance. It is returned once only.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        if port not in _given and is_free(port):
            _given.add(port)
            return port


def is_free(port: int) -> bool:
    """Return whether something could listen on this port of the loopback interface."""
    with socket.socket() as probe:
        probe.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # as servers do: a port in TIME_WAIT is free
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def inherited_environment() -> dict[str, str]:
    """
    Return this process's environment without what would change how an Airflow of ours behaves.

    Airflow's own settings, secrets of the service and proxies stay out: everything that is started here talks to
    loopback only, unless its caller says otherwise. ``PYTHONDONTWRITEBYTECODE`` stays out because it makes each of a
    dozen processes compile all of Airflow again.
    """
    unwanted_starts = ("AIRFLOW", "_AIRFLOW", "KLING_", "PYTEST_", "COVERAGE_", "PYTHONDONTWRITEBYTECODE")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(unwanted_starts) and not name.lower().endswith("_proxy")
    }
    environment["NO_PROXY"] = environment["no_proxy"] = f"{LOOPBACK},localhost"
    return environment
