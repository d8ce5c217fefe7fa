"""What is started in the background ends with whoever started it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dev.environments import CHECKOUT
from dev.processes import GuardedProcess, free_port, inherited_environment, is_free

# Like Airflow's scheduler: it has a child that has left for a process group of its own and does not give up.
STUBBORN_FAMILY = """
import os, signal, time
if os.fork() == 0:
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(600)
"""

OWNER = f"""
import sys, time
from pathlib import Path
from dev.processes import GuardedProcess
GuardedProcess("family", [sys.executable, "-c", {STUBBORN_FAMILY!r}], environment={{}}, directory=Path(sys.argv[1]),
    log=Path(sys.argv[1]) / "log").start()
time.sleep(600)
"""


@pytest.fixture
def family(tmp_path: Path) -> Iterator[GuardedProcess]:
    process = GuardedProcess(
        "family",
        [sys.executable, "-c", STUBBORN_FAMILY],
        environment={},
        directory=tmp_path,
        log=tmp_path / "log",
    )
    yield process
    process.kill()


def members(log: Path) -> list[int]:
    """Return the ids of parent and child, once both have told them."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if log.exists() and len(found := log.read_text().split()) == 2:
            return [int(pid) for pid in found]
        time.sleep(0.05)
    raise AssertionError(f"The processes did not start: {log.read_text() if log.exists() else 'no log'}")


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def all_gone(pids: list[int]) -> bool:
    """Wait until they are, for a minute at most."""
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(alive(pid) for pid in pids)


def test_it_ends_with_all_that_it_started_when_its_owner_is_killed(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], cwd=CHECKOUT)
    pids = members(tmp_path / "log")
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert all_gone(pids)


def test_killing_it_leaves_no_process_that_it_started(family: GuardedProcess, tmp_path: Path) -> None:
    family.start()
    pids = members(tmp_path / "log")
    assert sorted(family.pids) == sorted(pids)
    family.kill()
    assert not family.is_running
    assert family.exit_code == 128 + signal.SIGKILL
    assert not any(alive(pid) for pid in pids)


def test_stopping_it_waits_until_the_last_process_is_gone(family: GuardedProcess, tmp_path: Path) -> None:
    family.start()
    pids = members(tmp_path / "log")
    family.stop()
    assert not any(alive(pid) for pid in pids)


def test_it_can_be_started_again_after_it_was_killed(family: GuardedProcess, tmp_path: Path) -> None:
    family.start()
    members(tmp_path / "log")
    family.kill()
    (tmp_path / "log").unlink()
    family.start()
    assert len(members(tmp_path / "log")) == 2
    with pytest.raises(RuntimeError, match="runs already"):
        family.start()


def test_the_exit_code_is_that_of_the_command_and_the_tail_is_what_it_said(tmp_path: Path) -> None:
    process = GuardedProcess(
        "short",
        [sys.executable, "-c", "import sys; print('one'); print('two', file=sys.stderr); sys.exit(3)"],
        environment={},
        directory=tmp_path,
        log=tmp_path / "log",
    )
    process.start()
    deadline = time.monotonic() + 60
    while process.is_running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.exit_code == 3
    assert sorted(process.tail().split()) == ["one", "two"]


def test_settings_secrets_and_proxies_of_the_developer_are_not_handed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AIRFLOW__CORE__EXECUTOR", "AIRFLOW_HOME", "KLING_API_KEY", "https_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("LANGUAGE", "de")
    environment = inherited_environment()
    assert environment["LANGUAGE"] == "de"
    assert not {
        "AIRFLOW__CORE__EXECUTOR",
        "AIRFLOW_HOME",
        "KLING_API_KEY",
        "https_proxy",
        "HTTP_PROXY",
    } & set(environment)
    assert "127.0.0.1" in environment["NO_PROXY"]


def test_a_port_is_free_until_something_listens_on_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free(port)
    assert is_free(port)


def test_a_port_that_was_returned_as_free_is_given_to_nobody_else_by_chance() -> None:
    ports = [free_port() for _ in range(20)]
    assert len(set(ports)) == 20
    lowest = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if lowest.exists():
        assert max(ports) < int(lowest.read_text().split()[0])
