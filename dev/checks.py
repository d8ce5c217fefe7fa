"""
What ``make test`` and its kin run: each stage in the environment that it belongs to, side by side.

    python -m dev.checks test | acceptance | matrix [--rest] | lint | format
    python -m dev.checks unit | integration | browser [ARGUMENT OF PYTEST...]

One line a stage, with pytest's own closing line below it, and the whole output of a stage that fails. Standard library
only, as this runs before anything is installed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from types import FrameType
from typing import IO, Self

from dev.environments import (
    AIRFLOW_VERSIONS,
    CHECKOUT,
    LOWEST,
    NEWEST,
    OLDEST,
    WITH_PAGE,
    Environment,
    SetupError,
)

MIN_BRANCH_COVERAGE = 95
"""Percent of the package's lines and branches that the unit tests have to reach on the newest Airflow."""

_LANES = max(2, os.cpu_count() or 2)
_SILENCE_LIMIT = (
    20 * 60.0
)  # seconds; a command that says nothing for longer hangs, one that takes long does not
_LOOK_INTERVAL = 5.0
_TEARDOWN_LIMIT = 30.0  # seconds that an interrupted stage gets to tear down what it has set up
_LINTED = ("airflow_provider_kling", "benchmarks", "dev", "example_dags", "tests")
_TYPED = ("airflow_provider_kling", "dev")
_UNIT = ("-m", "pytest", "--ignore=tests/integration", "--ignore=tests/browser")
_MEET_AIRFLOW = (
    *(
        "tests/decorators",
        "tests/links",
        "tests/operators",
        "tests/sensors",
        "tests/storage",
        "tests/triggers",
    ),
    *("tests/hooks/test_kling.py", "tests/hooks/test_settings.py"),
    *(
        "tests/test_config.py",
        "tests/test_example_dags.py",
        "tests/test_metrics.py",
        "tests/test_pay_once.py",
    ),
    *("tests/test_provider_info.py", "tests/test_retry_policy.py"),
)
"""The tests of what Airflow calls and of what calls Airflow: on another Airflow they are the first to end otherwise."""
# Schemathesis takes a second to load, and only the long tests need it.
_QUICK = ("-m", "not acceptance", "-p", "no:schemathesis")
_INTEGRATION = ("-m", "pytest", "tests/integration")
_HOSTILE_INPUTS = "5000"  # for each of two tests
_CALLBACKS = "tests/integration/test_callback*"


@dataclass(frozen=True)
class Stage:
    """One check: commands that run one after the other in an environment until one fails."""

    name: str
    airflow: str
    commands: tuple[tuple[str, ...], ...]
    """Arguments of the environment's Python."""


@dataclass
class Outcome:
    """How a stage went."""

    stage: Stage
    failed: bool
    seconds: float
    output: str
    closing_lines: list[str] = field(default_factory=list)


def lint() -> list[Stage]:
    """Return the stages that read the code and do not run it."""
    return [
        Stage("types (mypy, strict)", NEWEST, (("-m", "mypy", *_TYPED),)),
        Stage("lint (ruff)", NEWEST, (("-m", "ruff", "check", *_LINTED),)),
        Stage("format (ruff)", NEWEST, (("-m", "ruff", "format", "--check", *_LINTED),)),
    ]


def formatting() -> Stage:
    """Return the stage that changes the code: format, and mend what ruff can mend by itself."""
    return Stage(
        "format", NEWEST, (("-m", "ruff", "check", "--fix", *_LINTED), ("-m", "ruff", "format", *_LINTED))
    )


def unit(airflow: str, arguments: Sequence[str] = ()) -> Stage:
    """Return the stage that runs the unit tests on one Airflow."""
    return Stage(
        f"unit tests on Airflow {airflow}",
        airflow,
        ((*_UNIT, *_processes(2), *_own_cache(airflow), *arguments),),
    )


def quick_unit(airflow: str) -> Stage:
    """Return the stage that runs on one more Airflow the quick unit tests that meet it; ``matrix`` runs all."""
    return unit(airflow, (*_QUICK, *_MEET_AIRFLOW))


def quick_unit_with_coverage() -> Stage:
    """Return the stage that runs the quick unit tests on the newest Airflow and measures what they reach."""
    # Not by pytest-cov: pytest loads the package's own plugin before that begins to measure.
    erase = ("-m", "coverage", "erase")
    run = ("-m", "coverage", "run", *_UNIT, *_processes(3), *_own_cache(NEWEST), *_QUICK)
    combine = ("-m", "coverage", "combine", "--quiet")
    report = ("-m", "coverage", "report", f"--fail-under={MIN_BRANCH_COVERAGE}")
    name = f"unit tests on Airflow {NEWEST}, branch coverage"
    return Stage(name, NEWEST, (erase, run, combine, report))


def integration(arguments: Sequence[str] = ()) -> Stage:
    """Return the stage that runs all tests which start a real Airflow."""
    return Stage(f"integration tests on Airflow {NEWEST}", NEWEST, ((*_INTEGRATION, *arguments),))


def integration_without_callbacks() -> Stage:
    """Return the stage that runs those of them which are done in minutes."""
    return integration((f"--ignore-glob={_CALLBACKS}",))


def callbacks() -> Stage:
    """Return the stage that runs the others: what calls back is late, doubled, forged, and comes by the thousand."""
    files = sorted(str(path.relative_to(CHECKOUT)) for path in CHECKOUT.glob(_CALLBACKS))
    return Stage(
        f"callbacks on Airflow {NEWEST}", NEWEST, (("-m", "pytest", *files, *_own_cache("callbacks")),)
    )


def long_unit() -> Stage:
    """Return the stage that runs the other unit tests: loads, kills at every step, hostile input, processes."""
    return Stage(
        f"long unit tests on Airflow {NEWEST}",
        NEWEST,
        ((*_UNIT, *_processes(2), *_own_cache("long"), "-m", "acceptance"),),
    )


def browser(airflow: str, arguments: Sequence[str] = ()) -> Stage:
    """Return the stage that looks at the page of videos in one Airflow's UI."""
    return Stage(
        f"browser tests on Airflow {airflow}",
        airflow,
        (("-m", "pytest", "tests/browser", *_own_cache(airflow), *arguments),),
    )


def _processes(count: int) -> tuple[str]:
    # A third of a unit test's time is waiting: the stage that takes longest has one more, as it runs alone at last.
    return (f"--numprocesses={count}",)


def _own_cache(airflow: str) -> tuple[str, str]:
    return ("-o", f"cache_dir=.pytest_cache/airflow-{airflow}")  # what runs side by side must not share one


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the first argument names. Return 0 if every stage went well."""
    match list(sys.argv[1:] if arguments is None else arguments):
        case ["unit", *rest]:
            return _run_in_view(unit(NEWEST, rest))
        case ["integration", *rest]:
            return _run_in_view(integration(rest))
        case ["browser", *rest]:
            # One after the other: an Airflow and a browser are enough for a small machine.
            return max([_run_in_view(browser(airflow, rest)) for airflow in WITH_PAGE])
        case ["lint"]:
            return _run_side_by_side(lint())
        case ["format"]:
            return _run_in_view(formatting())
        case ["test"]:
            # The longest first, so that the lanes end at about the same time.
            return _run_side_by_side(
                [
                    quick_unit_with_coverage(),
                    integration_without_callbacks(),
                    quick_unit(OLDEST),
                    *lint(),
                ],
                lanes=_LANES + 1,  # the stage with a real Airflow waits for half of its time
            )
        case ["acceptance"]:
            os.environ.setdefault("FUZZ_INPUTS", _HOSTILE_INPUTS)
            return _run_side_by_side([callbacks(), browser(NEWEST), long_unit()])
        case ["matrix"]:
            return _run_side_by_side([unit(airflow) for airflow in (*AIRFLOW_VERSIONS, LOWEST)])
        case ["matrix", "--rest"]:
            # All of them have run on the newest: by "test" and by "acceptance", on the same tree.
            rest = [airflow for airflow in AIRFLOW_VERSIONS if airflow != NEWEST]
            return _run_side_by_side([unit(airflow) for airflow in (*rest, LOWEST)])
        case _:
            print(__doc__, file=sys.stderr)
            return 2


def _run_in_view(stage: Stage) -> int:
    try:
        _prepare(stage.airflow)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    python = Environment(stage.airflow).python
    return max(
        subprocess.run([python, *command], cwd=CHECKOUT, env=_environment()).returncode
        for command in stage.commands
    )


def _run_side_by_side(stages: Sequence[Stage], lanes: int = _LANES) -> int:
    began = time.monotonic()
    failed = []
    with ThreadPoolExecutor(lanes) as threads, _Processes() as processes:
        try:
            list(threads.map(_prepare, dict.fromkeys(stage.airflow for stage in stages)))
        except SetupError as error:
            print(error, file=sys.stderr)
            return 1
        for done in as_completed([threads.submit(_run, stage, processes) for stage in stages]):
            outcome = done.result()
            _tell(outcome)
            if outcome.failed:
                failed.append(outcome.stage.name)
    took = _duration(time.monotonic() - began)
    if failed:
        passed = f"{len(stages) - len(failed)} of {len(stages)} stages passed"
        print(f"\nFailed: {', '.join(failed)} ({passed}, {took})")
        return 1
    print(f"\nAll {len(stages)} stages passed in {took}.")
    return 0


def _prepare(airflow: str) -> None:
    environment = Environment(airflow)
    if not environment.is_ready():
        began = time.monotonic()
        environment.prepare()
        # Compiles what tests load. Else each of a dozen processes that start together would compile it for itself.
        collect = [str(environment.python), *_UNIT, "--collect-only", "--quiet"]
        subprocess.run(
            collect, cwd=CHECKOUT, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True
        )
        print(f"ok     environment with Airflow {airflow}  {_duration(time.monotonic() - began)}", flush=True)


def _run(stage: Stage, processes: _Processes) -> Outcome:
    began = time.monotonic()
    output, closing_lines = "", []
    for command in stage.commands:
        code, said = processes.run([str(Environment(stage.airflow).python), *command])
        output += said
        lines = [line for line in said.splitlines() if line.strip()]
        if "pytest" in command:
            # An old Airflow goes on to warn while its process ends.
            closing_lines += [line for line in lines if line.startswith("=")][-1:]
        elif "report" in command:
            closing_lines += [line for line in lines if line.startswith("TOTAL")]
        if code:
            break
    return Outcome(stage, code != 0, time.monotonic() - began, output, closing_lines)


def _tell(outcome: Outcome) -> None:
    if outcome.failed:
        rule = "-" * 100
        print(f"{rule}\n{outcome.output.rstrip()}\n{rule}")
    print(f"{'FAILED' if outcome.failed else 'ok':6} {outcome.stage.name}  {_duration(outcome.seconds)}")
    if not outcome.failed and outcome.closing_lines:
        print("\n".join(outcome.closing_lines))
    sys.stdout.flush()


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def _environment() -> dict[str, str]:
    # Without the files of compiled code every process would compile Airflow again: 15 s instead of 3.
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class _Processes:
    """The commands that run at the moment; leaving the context by an exception ends them."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._interrupted = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        with self._lock:
            self._interrupted = kind is not None
            left = list(self._running)
        for process in left:
            process.send_signal(signal.SIGINT)  # on which pytest tears down what it has set up
        deadline = time.monotonic() + _TEARDOWN_LIMIT
        while any(process.poll() is None for process in left) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in left:
            _kill(process)

    def run(self, command: Sequence[str]) -> tuple[int, str]:
        """Run a command to its end; return its exit code and all that it said."""
        with tempfile.TemporaryFile() as output:
            with self._lock:
                if self._interrupted:
                    return 1, "not run: interrupted"
                process = subprocess.Popen(
                    command,
                    cwd=CHECKOUT,
                    env=_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a Ctrl-C reaches it once, through us
                )
                self._running.add(process)
            hangs = not _ends(process, output)
            if hangs:
                _abort(process)
            with self._lock:
                self._running.discard(process)
            output.seek(0)
            said = output.read().decode(errors="replace")
        if hangs:
            said += f"\nEnded after {_duration(_SILENCE_LIMIT)} without a word: it hangs. Above is where."
        return process.returncode, said


def _ends(process: subprocess.Popen[bytes], output: IO[bytes]) -> bool:
    """Wait until a process ends; False where it says nothing more and goes on."""
    size, heard = 0, time.monotonic()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LOOK_INTERVAL)
            return True
        size_now = os.fstat(output.fileno()).st_size
        if size_now != size:
            size, heard = size_now, time.monotonic()
        elif time.monotonic() - heard > _SILENCE_LIMIT:
            return False


def _abort(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGABRT)  # on which pytest says where each of its threads is
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_TEARDOWN_LIMIT)
    _kill(process)
    process.wait()


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it has started may hold its output open


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
