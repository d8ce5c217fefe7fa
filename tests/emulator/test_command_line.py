"""``python -m airflow_provider_kling.emulator``."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest
import requests

from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.emulator import __main__ as command
from tests.emulator.caller import Caller
from tests.emulator.certificate import make_certificate
from tests.emulator.command_line import COMMAND, run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_prints_what_is_needed_and_ends_cleanly_on_a_signal(number: signal.Signals) -> None:
    with run("--port", "0", "--latency", "0", "--fault", "answer:call=models,status=503") as running:
        caller = Caller(running)
        caller.create()
        assert caller.get("/models").status_code == 503
        assert (
            f"export AIRFLOW_CONN_KLING_DEFAULT='kling://:{running.api_key}@http%3A%2F%2F127.0.0.1"
            in running.printed
        )
        assert f"{running.origin}/_emulator/ledger" in running.printed
        assert requests.get(f"{running.origin}/_emulator/ledger", timeout=120).status_code == 200
        running.process.send_signal(number)
        assert running.process.stdout is not None
        rest = running.process.stdout.read()
        assert running.process.wait(120) == 0
    assert rest == "Ended. 1 videos were paid, 0.3165 USD.\n"


def test_it_speaks_tls_with_a_certificate(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    files = "--tls-cert", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem")
    with run("--port", "0", *files) as running:
        assert running.base_url.startswith("https://")
        caller = Caller(running)
        caller.session.verify = str(tmp_path / "cert.pem")
        assert caller.get("/models").status_code == 200


def test_a_busy_port_is_told_in_a_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = subprocess.run(
            [*COMMAND, "--port", str(port)], capture_output=True, text=True, check=False, timeout=60
        )
    assert ended.returncode == 1
    assert f"Port {port} on 127.0.0.1 is in use" in ended.stderr
    assert "Traceback" not in ended.stderr


def in_process(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run it here, and end it as Ctrl-C does as soon as it waits for that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    try:
        status = command.main(arguments)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return status, capsys.readouterr().out


def test_its_options_are_settings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []
    start = KlingEmulator.start

    def remember(self: KlingEmulator) -> KlingEmulator:
        seen.append(self)
        return start(self)

    monkeypatch.setattr(KlingEmulator, "start", remember)
    status, printed = in_process(
        capsys,
        *("--port", "0", "--api-key", "sk_mine", "--balance", "7.5", "--latency", "lognormal:10:0.5"),
        *("--time-scale", "0.5", "--seed", "x", "--scale", "0.1", "--max-running-tasks", "3"),
        *("--when-full", "fail", "--max-requests-per-second", "9", "--ledger", str(tmp_path / "ledger")),
        *("--result-host", "files.example", "--fault", "reset:rate=0.5", "--fault", "fail"),
    )
    assert status == 0
    assert "sk_mine" in printed
    (emulator,) = seen
    settings = emulator.service.settings.model_dump(mode="json")
    assert {name: settings[name] for name in command._SETTINGS} == {
        "balance": "7.5",
        "latency": "lognormal:10:0.5",
        "time_scale": 0.5,
        "seed": "x",
        "scale": 0.1,
        "max_running_tasks": 3,
        "when_full": "fail",
        "max_requests_per_second": 9.0,
    }
    assert [fault["kind"] for fault in emulator.faults.describe()] == ["reset", "fail"]
    assert emulator._result_host == "files.example"
    assert (tmp_path / "ledger").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--latency", "soon"], 1, "could not be started: latency: 'soon' is no latency"),
        (["--fault", "explode"], 1, "kind: Input should be 'answer'"),
        (["--fault", "{"], 1, "could not be started"),
        (["--tls-cert", "x"], 2, "--tls-cert and --tls-key go together"),
        (["--tls-cert", "x", "--tls-key", "y"], 1, "No such file"),
        (["--ledger", "/nowhere/at/all"], 1, "/nowhere/at/all"),
        (["--colour"], 2, "unrecognized arguments: --colour"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, told: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--port", "0", *arguments])
    assert ended.value.code == status
    assert told in capsys.readouterr().err


def test_without_its_packages_it_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        command.main(["--port", "0"])
    assert ended.value.code == 1
    assert "pip install 'airflow-provider-kling[emulator]'" in capsys.readouterr().err


def test_its_help_shows_how_to_set_faults_and_where_the_ledger_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for part in ("--ledger FILE", "--fault answer:call=query,status=503,rate=0.05", "/_emulator/ledger"):
        assert part in printed
