"""
What a query costs in the triggerer: CPU and connections, with a thousand waiting, over TLS.

Every kind does the same work in turn in a process of its own on the same processor: each of the waiting is asked for
every ten seconds. CPU is that of the process, counted by the kernel.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.crowd import BARE, DBT_CLOUD, HTTP, KLING, Order, run
from benchmarks.endpoint import endpoint
from benchmarks.report import Check, Report, figure

MOST_OF_THE_BETTER_PEER = 1 / 8
MOST_OF_THE_BARE_LOOP = 1.6


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queries", description=__doc__)
    parser.add_argument("--waiting", type=int, default=1000, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="of each measurement (default: %(default)s)"
    )
    given = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="kling-benchmark-") as directory, endpoint(Path(directory)) as at:
        runs = {
            kind: run(Order(kind, given.waiting, seconds=given.seconds), at)
            for kind in (BARE, KLING, HTTP, DBT_CLOUD)
        }
    cost = {kind: each.cpu_per_query for kind, each in runs.items()}
    better_peer = min(cost[HTTP], cost[DBT_CLOUD])
    report = Report(
        name="queries",
        title=f"A query in the triggerer, {given.waiting:,} waiting, TLS",
        columns=("", "queries", "CPU a query, ms", "of the bare loop", "of Kling", "connections"),
        rows=[
            (
                kind,
                f"{each.queries:,}",
                f"{1000 * cost[kind]:.3f}",
                f"{cost[kind] / cost[BARE]:.2f} x",
                f"{cost[kind] / cost[KLING]:.2f} x",
                f"{each.connections:,}",
            )
            for kind, each in runs.items()
        ],
        checks=[
            Check(
                "Kling, CPU a query of the better peer's",
                _ratio(cost[KLING], better_peer),
                MOST_OF_THE_BETTER_PEER,
            ),
            Check(
                "Kling, CPU a query of the bare loop's",
                _ratio(cost[KLING], cost[BARE]),
                MOST_OF_THE_BARE_LOOP,
            ),
        ],
        figures={kind: each.figures() for kind, each in runs.items()},
        notes=[
            f"Measured for {figure(given.seconds)} s each, after all had been asked once. Connections: since the start."
        ],
    )
    return 0 if report.publish(load) else 1


def _ratio(one: float, other: float) -> float:
    return one / other if other else math.nan


if __name__ == "__main__":
    sys.exit(main())
