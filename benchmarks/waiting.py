"""
Ten thousand videos that wait in one process, and how what they take grows: CPU, memory, stalls, late queries.

The videos wait in Airflow's own ``TriggerRunner``, over TLS, each asked for every ten seconds. Memory of Airflow itself
is that of as many triggers that only sleep. The event loop is watched in a run of its own, because watching costs CPU.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.crowd import EMPTY, KLING, Order, Run, run
from benchmarks.endpoint import endpoint
from benchmarks.report import Check, Report, figure

MOST_STALL = 0.050
MOST_KILOBYTES = 8.0
MOST_GROWTH = 1.15
LATE_BY = 2.0
_SIZES = (100, 1_000, 10_000)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.waiting", description=__doc__)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=_SIZES, help="how many wait, ascending (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="of each measurement (default: %(default)s)"
    )
    given = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    most = given.sizes[-1]
    with tempfile.TemporaryDirectory(prefix="kling-benchmark-") as directory, endpoint(Path(directory)) as at:
        ours = [run(Order(KLING, size, seconds=given.seconds), at) for size in given.sizes]
        empty = [run(Order(EMPTY, size, settling=1.0, seconds=2.0), at) for size in given.sizes]
        watched = run(Order(KLING, most, seconds=given.seconds, watch_stalls=True), at)
        idle = run(Order(EMPTY, most, settling=2.0, seconds=5.0, watch_stalls=True), at)
    above = [one.rss_per_waiting - none.rss_per_waiting for one, none in zip(ours, empty, strict=True)]
    stall = watched.taken.longest_stall or math.nan
    report = Report(
        name="waiting",
        title=f"Waiting in one process: up to {most:,} videos, each asked for every 10 s, TLS",
        columns=(
            "waiting",
            "queries a second",
            "of one processor",
            "CPU a query, ms",
            "KB a video",
            "above an empty trigger, KB",
            "connections",
            f"queries late by {LATE_BY:g} s",
        ),
        rows=[
            (
                f"{each.order.waiting:,}",
                figure(each.queries / given.seconds),
                f"{100 * each.cpu_share:.1f}%",
                f"{1000 * each.cpu_per_query:.3f}",
                f"{each.rss_per_waiting / 1024:.1f}",
                f"{more / 1024:.1f}",
                f"{each.connections:,}",
                f"{each.late(LATE_BY):,}",
            )
            for each, more in zip(ours, above, strict=True)
        ],
        checks=[
            Check(f"longest stall of the event loop, {most:,} waiting, ms", 1000 * stall, 1000 * MOST_STALL),
            Check(
                f"memory a video above an empty trigger, {most:,} waiting, KB",
                above[-1] / 1024,
                MOST_KILOBYTES,
            ),
            Check(
                f"queries late by more than {LATE_BY:g} s, in all runs",
                sum(each.late(LATE_BY) for each in [*ours, watched]),
                0,
            ),
            *(
                Check(
                    f"{what} a waiting video, {more.order.waiting:,} of {less.order.waiting:,}",
                    ratio,
                    MOST_GROWTH,
                )
                for less, more in itertools.pairwise(ours)
                for what, ratio in (
                    ("CPU", _cpu_each(more) / _cpu_each(less)),
                    ("memory", more.rss_per_waiting / less.rss_per_waiting),
                )
            ),
        ],
        figures={
            "kling": [each.figures() for each in ours],
            "empty": [each.figures() for each in empty],
            "watched": watched.figures(),
            "idle": idle.figures(),
        },
        notes=[
            f"Stalls count from the start of the first trigger on, when {most:,} are started one after the other.",
            *(_about_stalls(what, each) for what, each in (("Kling", watched), ("empty triggers", idle))),
            "Growth has to be no faster than linear; what a video costs may fall with their number.",
        ],
    )
    return 0 if report.publish(load) else 1


def _about_stalls(what: str, one: Run) -> str:
    taken = one.taken
    stall, of_start, other, collection = (
        1000 * (seconds or 0.0)
        for seconds in (
            taken.longest_stall,
            taken.stall_of_start,
            taken.longest_stall_but_collection,
            taken.longest_collection,
        )
    )
    return (
        f"{one.order.waiting:,} of {what}: longest stall {stall:.0f} ms ({of_start:.0f} ms while they were started); "
        f"without the time of Python's garbage collector {other:.0f} ms; longest run of the collector, which looks "
        f"through all of Airflow's objects too, {collection:.0f} ms."
    )


def _cpu_each(one: Run) -> float:
    return one.cpu_share / one.order.waiting


if __name__ == "__main__":
    sys.exit(main())
