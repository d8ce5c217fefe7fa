"""
How many connections to the service are opened while a thousand videos wait for ten minutes.

Time is scaled: half a second between two queries of a video stands for ten. What counts is how often each is asked.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from airflow_provider_kling.hooks.async_client import MAX_CONNECTIONS
from benchmarks.crowd import KLING, Order, run
from benchmarks.endpoint import endpoint
from benchmarks.report import Check, Report

POLL_INTERVAL = 10.0
WAIT = 600.0
SCALE = 20.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.connections", description=__doc__)
    parser.add_argument("--waiting", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--scale", type=float, default=SCALE, help="how much faster (default: %(default)s)")
    given = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    order = Order(
        KLING,
        given.waiting,
        poll_interval=POLL_INTERVAL / given.scale,
        settling=0.0,
        seconds=WAIT / given.scale,
    )
    with tempfile.TemporaryDirectory(prefix="kling-benchmark-") as directory, endpoint(Path(directory)) as at:
        one = run(order, at)
    report = Report(
        name="connections",
        title=f"Connections opened while {given.waiting:,} videos wait for ten minutes (scaled {given.scale:g}:1)",
        columns=("", "queries", "connections", "queries a connection"),
        rows=[
            (
                KLING,
                f"{one.queries:,}",
                f"{one.connections:,}",
                f"{one.queries / max(1, one.connections):,.0f}",
            )
        ],
        checks=[Check("connections opened, of the session's limit", one.connections, MAX_CONNECTIONS)],
        figures=one.figures(),
        notes=["The peers open one for each query: see the table of queries."],
    )
    return 0 if report.publish(load) else 1


if __name__ == "__main__":
    sys.exit(main())
