"""
What a video costs in a whole Airflow: CPU of all its processes, those that ended included.

A real Airflow on PostgreSQL with the LocalExecutor makes the same number of videos in three ways: mapped tasks of this
package's operator, one task of its operator for many videos, and mapped pairs of ``HttpOperator`` and deferrable
``HttpSensor``. All talk to the same TLS endpoint, where every job takes the same time. Mapped tasks that do nothing but
go to the triggerer and come back show what of it is Airflow's.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.airflow import MeasuredAirflow, Spent, measured_airflow, run_dag
from benchmarks.endpoint import endpoint, http_connection, kling_connection
from benchmarks.report import Check, Report, figure

LIST, MAPPED, PAIR, BARE = "kling_batch", "kling_mapped", "http_pair", "bare_defer"
WAYS = {
    LIST: "Kling: one task for all",
    MAPPED: "Kling: mapped tasks",
    PAIR: "HTTP: mapped operator, then sensor",
    BARE: "Airflow alone: mapped tasks that defer once",
}
MOST_OF_THE_PAIR = {LIST: 1 / 15, MAPPED: 0.6}
WARM_UP = ("kling_warm_up", "kling_list_warm_up", "http_warm_up")
_TIMEOUT = 900.0
_IDLE_SECONDS = 20.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole_airflow", description=__doc__)
    parser.add_argument("--videos", type=int, default=200, help="default: %(default)s")
    parser.add_argument(
        "--job-seconds", type=float, default=30.0, help="how long each takes (default: %(default)s)"
    )
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), help="default: all")
    given = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    spent: dict[str, Spent] = {}
    seconds: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory(prefix="kling-benchmark-") as directory,
        endpoint(Path(directory), job_seconds=given.job_seconds) as at,
        measured_airflow(
            Path(directory) / "home",
            connections={
                "kling_default": kling_connection(at.port, at.certificates),
                "http_default": http_connection(at.port),
            },
            environment={
                **at.trust,
                "BENCHMARK_VIDEOS": str(given.videos),
                "BENCHMARK_JOB_SECONDS": str(given.job_seconds),
                "BENCHMARK_LEDGER_PATH": f"file://{directory}/ledger",
            },
        ) as airflow,
    ):
        # What a process loads once, for its first task, is no cost of a video.
        for dag_id in WARM_UP:
            run_dag(airflow, dag_id, timeout=_TIMEOUT)
        idle = _idle(airflow)
        for way in given.ways:
            _, spent[way], seconds[way] = run_dag(airflow, way, timeout=_TIMEOUT)
            print(f"{WAYS[way]}: {spent[way].airflow / given.videos:.3f} s of CPU a video", flush=True)
    each = {way: used.airflow / given.videos for way, used in spent.items()}
    components = list(next(iter(spent.values())).by_component)
    report = Report(
        name="whole_airflow",
        title=f"A whole Airflow (PostgreSQL, LocalExecutor): CPU a video, {given.videos} videos",
        columns=(
            "",
            "CPU a video, s",
            "of the HTTP pair",
            *(f"{name}, s" for name in components),
            "PostgreSQL, s",
            "wall, s",
        ),
        rows=[
            (
                WAYS[way],
                figure(each[way]),
                f"1/{each[PAIR] / each[way]:.1f}" if PAIR in each else "-",
                *(figure(used.by_component[name] / given.videos) for name in components),
                figure(used.database / given.videos),
                figure(round(seconds[way])),
            )
            for way, used in spent.items()
        ],
        checks=[
            Check(f"{WAYS[way]}, of the HTTP pair", each[way] / each[PAIR], most)
            for way, most in MOST_OF_THE_PAIR.items()
            if way in each and PAIR in each
        ],
        figures={
            "videos": given.videos,
            "job_seconds": given.job_seconds,
            "cpu_seconds": {way: dict(used.by_component) for way, used in spent.items()},
            "database_cpu_seconds": {way: used.database for way, used in spent.items()},
            "wall_seconds": seconds,
            "idle_cpu_seconds_a_second": idle,
        },
        notes=[
            (
                f"Each job takes {given.job_seconds:g} s. Tasks run below the scheduler, whose column has their CPU. "
                f"Counted from the Dag run's start to its end; an idle Airflow's CPU for that time, {figure(idle)} s a "
                "second, is included. The database is not part of the sum. Each kind of task ran once before, so that "
                "all is loaded."
            )
        ],
    )
    return 0 if report.publish(load) else 1


def _idle(airflow: MeasuredAirflow) -> float:
    before = airflow.spent()
    time.sleep(_IDLE_SECONDS)
    return (airflow.spent() - before).airflow / _IDLE_SECONDS


if __name__ == "__main__":
    sys.exit(main())
