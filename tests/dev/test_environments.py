"""Environments are made once, and never believed when they were not made to the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dev import environments
from dev.environments import AIRFLOW_VERSIONS, LOWEST, Environment, SetupError

# Stands at the edge to the network: does what uv does on disk, and notes that it was called.
UV = """#!/bin/sh
echo "$@" >> {calls}
case "$1" in
    --version) ;;
    venv) for last; do :; done; mkdir -p "$last/bin" && ln -sf {python} "$last/bin/python" ;;
    *) {install} ;;
esac
"""


class Uv:
    """A ``uv`` on the PATH."""

    def __init__(self, folder: Path) -> None:
        self._program = folder / "uv"
        self._calls = folder / "calls"
        self.installing("true")

    def installing(self, command: str) -> None:
        """Let ``uv pip install`` run this shell command."""
        self._program.write_text(UV.format(calls=self._calls, python=sys.executable, install=command))
        self._program.chmod(0o755)

    @property
    def installs(self) -> list[str]:
        calls = self._calls.read_text().splitlines() if self._calls.exists() else []
        return [call for call in calls if call.startswith("pip install")]


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Uv:
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path / ".venv")
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return Uv(folder)


def test_an_environment_is_made_once(uv: Uv) -> None:
    assert Environment("3.3.2").prepare()
    assert Environment("3.3.2").is_ready()
    assert not Environment("3.3.2").prepare()
    assert len(uv.installs) == 1


def test_each_airflow_has_an_environment_of_its_own(uv: Uv) -> None:
    Environment("3.3.2").prepare()
    assert not Environment("2.11.2").is_ready()
    Environment("2.11.2").prepare()
    assert [("==3.3.2" in call, "==2.11.2" in call) for call in uv.installs] == [(True, False), (False, True)]


def test_without_a_network_the_error_says_what_to_do_and_nothing_counts_as_made(uv: Uv) -> None:
    uv.installing("echo 'error sending request for url' >&2; exit 2")
    with pytest.raises(SetupError, match="error sending request for url") as told:
        Environment("3.3.2").prepare()
    assert "is there a network" in str(told.value)
    assert not Environment("3.3.2").is_ready()

    uv.installing("true")
    assert Environment("3.3.2").prepare()


def test_one_that_was_interrupted_half_way_is_made_anew(uv: Uv) -> None:
    uv.installing("kill -9 $PPID")
    program = "from dev import environments; from pathlib import Path; import sys\n"
    program += "environments.ENVIRONMENTS = Path(sys.argv[1])\nenvironments.Environment('3.3.2').prepare()"
    ended = subprocess.run(
        [sys.executable, "-c", program, str(environments.ENVIRONMENTS)], cwd=environments.CHECKOUT
    ).returncode
    assert ended == -9
    assert Environment("3.3.2").python.exists()
    assert not Environment("3.3.2").is_ready()

    uv.installing("true")
    assert Environment("3.3.2").prepare()


def test_a_change_of_what_is_required_makes_it_anew(
    uv: Uv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = tmp_path / "checkout"
    (changed / "airflow_provider_kling").mkdir(parents=True)
    for name in ("pyproject.toml", "airflow_provider_kling/__init__.py"):
        (changed / name).write_text((environments.CHECKOUT / name).read_text())
    monkeypatch.setattr(environments, "CHECKOUT", changed)
    Environment("3.3.2").prepare()

    (changed / "pyproject.toml").write_text((changed / "pyproject.toml").read_text() + "\n# changed\n")
    assert not Environment("3.3.2").is_ready()
    assert Environment("3.3.2").prepare()


def test_the_lowest_versions_are_those_that_are_allowed_and_not_one_airflow(uv: Uv) -> None:
    Environment(LOWEST).prepare()
    (install,) = uv.installs
    assert "--resolution lowest-direct" in install
    assert "apache-airflow==" not in install


def test_the_checks_of_each_version_name_that_version(uv: Uv) -> None:
    for airflow in AIRFLOW_VERSIONS:
        assert f"apache-airflow=={airflow}" in Environment(airflow).requirements
