"""
From the moment a video is made to the success of its Airflow task.

A real Airflow on PostgreSQL makes mapped videos at the emulator, which says when each was completed and when a query
first told so; the task's end is Airflow's. Between the two lies the schedule's lag, half an interval in the middle, and
behind that what Airflow needs to take the event up and to start a worker.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import requests

from benchmarks.airflow import measured_airflow, run_dag
from benchmarks.endpoint import KEY, certificates, kling_connection
from benchmarks.report import Check, Report
from dev.processes import LOOPBACK, GuardedProcess, free_port, inherited_environment

DAG_ID, TASK_ID = "kling_mapped", "make"
POLL_INTERVAL = 10.0
"""What the Dag says."""
MOST_BEHIND_THE_SCHEDULE = 3.0
_LATENCY = "lognormal:60:0.5"
_START_TIMEOUT = 60.0
_TIMEOUT = 900.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reaction", description=__doc__)
    parser.add_argument("--videos", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--latency", default=_LATENCY, help="as the emulator takes it (default: %(default)s)")
    given = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="kling-benchmark-") as name:
        directory = Path(name)
        with (
            _emulator(directory, given.latency) as (port, authority),
            measured_airflow(
                directory / "home",
                connections={"kling_default": kling_connection(port, authority)},
                environment={
                    "REQUESTS_CA_BUNDLE": authority,
                    "BENCHMARK_VIDEOS": str(given.videos),
                    "BENCHMARK_JOB_SECONDS": "0",
                    "BENCHMARK_LEDGER_PATH": f"file://{directory}/ledger",
                },
            ) as airflow,
        ):
            run_id, _, _ = run_dag(airflow, DAG_ID, timeout=_TIMEOUT)
            ended = {
                airflow.api.xcom(DAG_ID, run_id, TASK_ID, "task_id", task.map_index): datetime.fromisoformat(
                    task.details["end_date"]
                ).timestamp()
                for task in airflow.api.task_instances(DAG_ID, run_id)
            }
            made = {task["task_id"]: task for task in _ask(port, authority, "tasks")}
    lags = {
        "made → a query tells": [made[each]["told_at"] - made[each]["ends_at"] for each in ended],
        "a query tells → success": [at - made[each]["told_at"] for each, at in ended.items()],
        "made → success": [at - made[each]["ends_at"] for each, at in ended.items()],
    }
    report = Report(
        name="reaction",
        title=f"From a video's completion to the success of its task: {len(ended)} videos, polling",
        columns=("seconds", "median", "nine in ten within", "longest"),
        rows=[
            (
                what,
                f"{statistics.median(each):.1f}",
                f"{statistics.quantiles(each, n=10)[-1]:.1f}",
                f"{max(each):.1f}",
            )
            for what, each in lags.items()
        ],
        checks=[
            Check(
                "made → success, median, s",
                statistics.median(lags["made → success"]),
                POLL_INTERVAL / 2 + MOST_BEHIND_THE_SCHEDULE,
            )
        ],
        figures=lags,
        notes=[
            (
                f"Asked for every {POLL_INTERVAL:g} s, so the schedule's own lag is {POLL_INTERVAL / 2:g} s in the "
                f"middle. The videos take {given.latency} seconds."
            )
        ],
    )
    return 0 if report.publish(load) else 1


@contextlib.contextmanager
def _emulator(directory: Path, latency: str) -> Iterator[tuple[int, str]]:
    authority, certificate, key = certificates(directory)
    port = free_port()
    process = GuardedProcess(
        "emulator",
        [
            *(sys.executable, "-m", "airflow_provider_kling.emulator", "--port", str(port), "--api-key", KEY),
            *("--latency", latency, "--seed", "1", "--scale", "0.1"),
            *("--tls-cert", str(certificate), "--tls-key", str(key)),
        ],
        environment=inherited_environment(),
        directory=directory,
        log=directory / "emulator.log",
    )
    process.start()
    try:
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            with contextlib.suppress(requests.RequestException):
                _ask(port, str(authority), "settings")
                break
            if time.monotonic() > deadline or not process.is_running:
                raise SystemExit(f"The emulator did not start:\n{process.tail()}")
            time.sleep(0.2)
        yield port, str(authority)
    finally:
        process.stop()


def _ask(port: int, authority: str, path: str) -> Any:
    answer = requests.get(f"https://{LOOPBACK}:{port}/_emulator/{path}", verify=authority, timeout=60)
    answer.raise_for_status()
    return answer.json()


if __name__ == "__main__":
    sys.exit(main())
