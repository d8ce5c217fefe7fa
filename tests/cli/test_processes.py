"""The command line as processes of their own, as people start it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_kling.emulator import KlingEmulator
from tests.conftest import AIRFLOW

pytestmark = pytest.mark.acceptance

OURS = [sys.executable, "-m", "airflow_provider_kling"]
AIRFLOWS = [str(Path(sys.executable).with_name("airflow")), "kling"]
from_3_2 = pytest.mark.skipif(AIRFLOW < (3, 2), reason="this Airflow takes no commands of providers")
both = pytest.mark.parametrize(
    "program", [OURS, pytest.param(AIRFLOWS, marks=from_3_2)], ids=["python -m", "airflow kling"]
)


def run(command: list[str], **how: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=os.environ | how,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@both
def test_both_offer_the_same_commands(program: list[str]) -> None:
    done = run([*program, "--help"])
    assert done.returncode == 0
    for name in ("check", "estimate", "generate", "status", "download"):
        assert name in done.stdout


@both
def test_both_print_nothing_but_the_result(kling_emulator: KlingEmulator, program: list[str]) -> None:
    done = run([*program, "estimate", "--prompt", "a kite", "--json"])
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0)
    assert json.loads(done.stdout)["estimated_cost_usd"] == 0.3165


@both
def test_both_end_with_the_same_status(kling_emulator: KlingEmulator, program: list[str]) -> None:
    assert run([*program, "check"]).returncode == 0
    refused = run([*program, "estimate", "--prompt", "a kite", "--duration", "99"])
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "Traceback" not in refused.stderr
    assert run([*program, "generate", "--prompt", "a kite"]).returncode == 2
    assert run([*program, "estimate", "--nonsense"]).returncode == 2
    assert kling_emulator.ledger.creates() == []


@both
def test_both_find_a_connection_in_airflows_database(
    kling_emulator: KlingEmulator, airflow_db: None, program: list[str]
) -> None:
    from airflow.models import Connection
    from airflow.utils.session import create_session

    (uri,) = kling_emulator.connection_env.values()
    with create_session() as session:
        session.query(Connection).filter(Connection.conn_id == "in_database").delete()
        session.add(Connection(conn_id="in_database", uri=uri))
    done = run([*program, "check", "--conn-id", "in_database"])
    assert done.returncode == 0, done.stderr
    assert "takes the key" in done.stdout


@pytest.mark.kling_emulator(latency="never")
def test_ctrl_c_ends_the_wait_with_the_command_that_fetches_the_video(
    kling_emulator: KlingEmulator, tmp_path: Path
) -> None:
    command = [*OURS, "generate", "--prompt", "a kite", "--yes", "--output-path", str(tmp_path)]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # What runs in the background of a shell ignores the signal, and hands that down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "so far" in line:
                process.send_signal(signal.SIGINT)
                break
        out, rest = process.communicate(timeout=60)
    (task,) = kling_emulator.ledger.tasks()
    assert process.returncode == 130
    assert out == ""
    assert f"download {task.task_id} --output-path {tmp_path}" in rest
    assert "Traceback" not in rest


@from_3_2
def test_every_airflow_command_loads_it_for_nothing() -> None:
    code = (
        "import json, sys; before = set(sys.modules); import airflow_provider_kling.cli.definition;"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    loaded = json.loads(run([sys.executable, "-c", code]).stdout)
    assert {name.partition(".")[0] for name in loaded} <= {"airflow_provider_kling", *sys.stdlib_module_names}


def test_the_command_line_is_the_same_for_both() -> None:
    """Airflow sorts the flags, so it is asked for what it takes and not for how it shows that."""
    cli_config = pytest.importorskip("airflow.cli.cli_config")
    from airflow_provider_kling.cli.definition import COMMANDS, airflow_commands

    (group,) = airflow_commands()
    assert isinstance(group, cli_config.GroupCommand)
    assert [command.name for command in group.subcommands] == [command.name for command in COMMANDS]
    for theirs, ours in zip(group.subcommands, COMMANDS, strict=True):
        assert [tuple(arg.flags) for arg in theirs.args] == [option.flags for option in ours.options]
