"""
Virtual environments with one Airflow each, under ``.venv/`` in the checkout.

``uv`` makes them in seconds. Where it is missing it is fetched through pip into ``.venv/uv``; where even that does not
work, ``venv`` and pip do the same more slowly. Standard library only, since this runs before anything is installed.

    python -m dev.environments            the newest Airflow
    python -m dev.environments 2.11.2 lowest
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = CHECKOUT / ".venv"

AIRFLOW_VERSIONS = ("2.11.2", "3.0.6", "3.1.8", "3.2.2", "3.3.2")
"""The last release of every minor version that is supported, oldest first: what ``make matrix`` runs on."""

OLDEST, NEWEST = AIRFLOW_VERSIONS[0], AIRFLOW_VERSIONS[-1]
WITH_PAGE = AIRFLOW_VERSIONS[2:]
"""Those whose UI shows the page of videos (3.1 and later): what ``make browser`` runs on."""

LOWEST = "lowest"
"""In place of an Airflow version: the lowest version that ``pyproject.toml`` allows of every direct dependency."""

CLUSTER = "cluster"
"""In place of an Airflow version: the newest one, with what it needs to run on several workers."""

BENCHMARKS = "benchmarks"
"""In place of an Airflow version: the newest one on PostgreSQL, with the providers that this one is measured beside."""

_PEERS = (
    "apache-airflow-providers-dbt-cloud==4.11.1",
    "apache-airflow-providers-http==6.3.0",
)
"""Pinned, so that figures of different days can be compared."""

EXTRAS = ("emulator",)
GROUPS = ("test", "lint")

_NEWEST_PYTHON = {"2.11": (3, 12), "3.0": (3, 12), "3.1": (3, 13)}
"""Newest Python that a minor version of Airflow runs on, where that is not every one in use (Airflow's own table)."""

_HELD_BACK = {
    LOWEST: ("universal-pathlib<0.3",),
    "3.0": ("cadwyn<6", "fastapi<0.118", "pyjwt<2.11", "universal-pathlib<0.3"),
    "3.2": ("cadwyn<8", "fastapi<0.137", "svcs<26"),
}
"""What an old Airflow does not bear in its newest form. Airflow's own constraint files say it too, but they would hold
back our dependencies as well, and the matrix has to run with the newest of these."""

_STAMP = "ready.json"
_LINES_SHOWN = 25


class SetupError(Exception):
    """An environment could not be made. The text is for a person and says what to do."""


@dataclass(frozen=True)
class Environment:
    """One virtual environment: this package, editable, beside one Airflow."""

    airflow: str
    """An Airflow version, ``LOWEST``, ``CLUSTER`` or ``BENCHMARKS``."""

    @property
    def directory(self) -> Path:
        """Where it is, made or not."""
        return ENVIRONMENTS / f"airflow-{self.airflow}"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.directory / "bin" / "python"

    @property
    def requirements(self) -> list[str]:
        """What is installed, as requirement strings; the package itself comes first and editable."""
        pyproject = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
        # What fuzzes is held to the newest: it brings libraries that an old Airflow does not bear.
        fuzz = ("fuzz",) if self.airflow == NEWEST else ()
        browser = ("browser",) if self.airflow in (*WITH_PAGE, BENCHMARKS) else ()
        names = (*GROUPS, *fuzz, *browser)
        groups = [spec for group in names for spec in pyproject["dependency-groups"][group]]
        if self.airflow == LOWEST:
            airflow = [*_HELD_BACK[LOWEST]]
        elif self.airflow == CLUSTER:
            airflow = [f"apache-airflow[celery,postgres]=={NEWEST}", "asyncpg"]
        elif self.airflow == BENCHMARKS:
            airflow = [f"apache-airflow[postgres]=={NEWEST}", "asyncpg", "trustme>=1.2", *_PEERS]
        else:
            airflow = [f"apache-airflow=={self.airflow}", *_HELD_BACK.get(self._minor, ())]
        return ["--editable", f"{CHECKOUT}[{','.join(EXTRAS)}]", *airflow, *groups]

    @property
    def _minor(self) -> str:
        version = {LOWEST: OLDEST, CLUSTER: NEWEST, BENCHMARKS: NEWEST}.get(self.airflow, self.airflow)
        return ".".join(version.split(".")[:2])

    def is_ready(self) -> bool:
        """Whether it was made to the end, from what ``pyproject.toml`` says now."""
        try:
            stamp = json.loads((self.directory / _STAMP).read_text())
        except (OSError, ValueError):
            return False
        return stamp == self._stamp() and self.python.exists()

    def _stamp(self) -> dict[str, str]:
        version = re.search(r'^__version__ = "(.+)"', _package_init(), re.MULTILINE)
        return {
            "checkout": str(CHECKOUT),
            "pyproject": hashlib.sha256((CHECKOUT / "pyproject.toml").read_bytes()).hexdigest(),
            "requirements": " ".join(self.requirements),
            "version": version[1] if version else "",
        }

    def prepare(self) -> bool:
        """
        Make it, unless it is ready.

        The stamp that says "ready" is written last: what was interrupted is made anew the next time.

        :return: whether there was anything to do.
        :raises SetupError: something is missing on this machine, or the package index could not be reached.
        """
        if self.is_ready():
            return False
        ENVIRONMENTS.mkdir(exist_ok=True)
        with _lock(ENVIRONMENTS / f"airflow-{self.airflow}.lock"):
            if self.is_ready():
                return False
            shutil.rmtree(self.directory, ignore_errors=True)
            uv = find_uv() or fetch_uv()
            if uv:
                self._install_with_uv(uv)
            else:
                self._install_with_pip()
            (self.directory / _STAMP).write_text(json.dumps(self._stamp(), indent=2))
        return True

    def _install_with_uv(self, uv: Path) -> None:
        self._run(uv, "venv", "--quiet", "--python", self._interpreter(), self.directory)
        resolution = ["--resolution", "lowest-direct"] if self.airflow == LOWEST else []
        self._run(uv, "pip", "install", "--quiet", "--python", self.python, *resolution, *self.requirements)

    def _install_with_pip(self) -> None:
        if self.airflow == LOWEST:
            raise SetupError(
                "The lowest allowed versions can be worked out only with uv, and it could not be fetched.\n"
                "Install it by hand (https://docs.astral.sh/uv/), then run the same command again."
            )
        if not self._python_fits(sys.version_info[:2]):
            raise SetupError(
                f"Airflow {self.airflow} does not run on Python {sys.version_info[0]}.{sys.version_info[1]}, and uv,\n"
                "which could bring another Python, could not be fetched. Install Python 3.11 or 3.12 and name it:\n"
                "  make test PYTHON=python3.12"
            )
        try:
            import ensurepip  # noqa: F401  Debian splits it off, and venv without it fails half-way
        except ImportError:
            raise SetupError(
                f"This Python ({sys.executable}) cannot make virtual environments, and uv could not be fetched.\n"
                "On Debian and Ubuntu: sudo apt install python3-venv. Or install uv (https://docs.astral.sh/uv/).\n"
                "Then run the same command again."
            ) from None
        self._run(sys.executable, "-m", "venv", self.directory)
        pip = (self.python, "-m", "pip", "--disable-pip-version-check")
        self._run(*pip, "install", "--quiet", *self.requirements)

    def _python_fits(self, python: tuple[int, ...]) -> bool:
        return python <= _NEWEST_PYTHON.get(self._minor, python)

    def _interpreter(self) -> str:
        # uv takes a version as well, finds such a Python on the machine, and downloads it where there is none.
        return sys.executable if self._python_fits(sys.version_info[:2]) else "3.12"

    def _run(self, *command: str | Path) -> None:
        result = subprocess.run(
            command,
            cwd=CHECKOUT,
            env=_clean(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if result.returncode:
            said = (result.stdout + result.stderr).strip().splitlines()[-_LINES_SHOWN:]
            fits = self._python_fits(sys.version_info[:2])
            python = (
                f"Airflow {self.airflow} needs Python 3.12 or 3.11: install one of them, so that uv finds it."
            )
            raise SetupError(
                "\n".join(
                    [
                        f"Could not make the environment for Airflow {self.airflow} in {self.directory}.",
                        f"{Path(command[0]).name} said:",
                        *(f"  {line}" for line in said),
                        *([] if fits else [python]),
                        "If a package could not be fetched: is there a network, and can it reach the package index?",
                        "Behind a proxy set HTTPS_PROXY; for a mirror set UV_DEFAULT_INDEX and PIP_INDEX_URL.",
                        "What was made so far will not be used: run the same command again.",
                    ]
                )
            )


def find_uv() -> Path | None:
    """Return the ``uv`` of this machine, or the one fetched earlier, if it works."""
    candidates = [shutil.which("uv"), ENVIRONMENTS / "uv" / "bin" / "uv"]
    return next((Path(uv) for uv in candidates if uv and _works(uv)), None)


def fetch_uv() -> Path | None:
    """Fetch ``uv`` through pip into ``.venv/uv``; ``None`` where pip is missing or has no uv for this machine."""
    target = ENVIRONMENTS / "uv"
    with _lock(ENVIRONMENTS / "uv.lock"):
        if not _works(target / "bin" / "uv"):
            shutil.rmtree(target, ignore_errors=True)
            # --target needs no virtual environment and is allowed where the system's Python is managed by the system.
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
            limits = ["--retries", "3", "--timeout", "20", "--only-binary", "uv"]
            subprocess.run(
                [*pip, *limits, "--target", str(target), "uv"],
                env=_clean(os.environ),
                stdin=subprocess.DEVNULL,
                capture_output=True,
            )
    return find_uv()


def _works(uv: str | Path) -> bool:
    try:
        return subprocess.run([uv, "--version"], capture_output=True).returncode == 0
    except OSError:
        return False


def _package_init() -> str:
    return (CHECKOUT / "airflow_provider_kling" / "__init__.py").read_text()


def _clean(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what would lead an installer to another Python than the one named."""
    misleading = {
        "PYTHONPATH",
        "PYTHONHOME",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "PIP_TARGET",
        "PIP_USER",
        "PIP_PREFIX",
    }
    return {name: value for name, value in environment.items() if name not in misleading}


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Let one process at a time make an environment; the others wait and then find it ready."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the environments that are named."""
    parser = argparse.ArgumentParser(
        prog="python -m dev.environments",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "airflow", nargs="*", default=[NEWEST], help=f"a version, or {LOWEST!r} (default: {NEWEST})"
    )
    parser.add_argument(
        "--run",
        nargs=argparse.REMAINDER,
        metavar="MODULE",
        help="then run this module, with the arguments that follow it, in the last of them",
    )
    given = parser.parse_args(arguments)
    for airflow in given.airflow:
        environment = Environment(airflow)
        if not environment.is_ready():
            print(f"Making {environment.directory} (once; a minute or two)", flush=True)
        try:
            environment.prepare()
        except SetupError as error:
            print(error, file=sys.stderr)
            return 1
    if given.run:
        os.chdir(CHECKOUT)
        os.execv(environment.python, [str(environment.python), "-m", *given.run])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted; what was made so far will not be used", file=sys.stderr)
        sys.exit(130)
