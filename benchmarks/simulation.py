"""
Which schedule of queries suits the service's latency: a simulation.

A schedule is judged by queries a video x mean lag, seconds between the video's completion and the query that sees it.
For a fixed interval that product does not depend on the interval, as long as it is short beside the latency: asking
twice as often halves the lag. So it is what cleverness can improve; no schedule gets below the bound beside it.

The bound. A schedule that asks at time t at the rate r(t) makes the expected lag E[1/(2 r(T))] with E[∫ r dt up to T]
queries. By the Cauchy-Schwarz inequality their product is at least ½ (∫ √(f(t) S(t)) dt)², for the latency's density f
and survival S; it is reached by the rate ∝ √(f/S), the root of the hazard.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist

from airflow_provider_kling.waiting import DEFAULT_POLL_INTERVAL
from benchmarks.report import Check, Report, figure

MEDIAN, SIGMA = 142.0, 0.96
"""The service's latency, lognormal, seconds: a week of its production."""
DRAWS = 100_000
SEED = 142
HORIZON = 50_000.0
"""Seconds; of a hundred million videos one takes longer."""
MOST_ABOVE_THE_BOUND = 1.10

_NORMAL = NormalDist()

Schedule = Callable[[], Iterator[float]]
"""Gives the seconds from the submission to each query, ascending, past the horizon."""


def density(t: float) -> float:
    """Return the latency's probability density at t seconds."""
    return _NORMAL.pdf(math.log(t / MEDIAN) / SIGMA) / (SIGMA * t)


def survival(t: float) -> float:
    """Return the share of videos that take longer than t seconds."""
    return _NORMAL.cdf(-math.log(t / MEDIAN) / SIGMA)


def lower_bound(steps: int = 200_000) -> float:
    """Return the least that queries a video x mean lag can be, seconds, for any schedule."""
    # In the logarithm of time, where the integrand is smooth and falls off to both sides.
    low, high = math.log(1e-3), math.log(1e7)
    width = (high - low) / steps
    root = 0.0
    for step in range(steps):
        t = math.exp(low + (step + 0.5) * width)
        root += math.sqrt(density(t) * survival(t)) * t * width
    return 0.5 * root * root


def latencies(draws: int) -> list[float]:
    """Return the latencies of as many videos, seconds, always the same ones."""
    luck = random.Random(SEED)
    return [MEDIAN * math.exp(luck.gauss(0.0, SIGMA)) for _ in range(draws)]


def fixed(interval: float) -> Schedule:
    """Ask every so many seconds."""

    def schedule() -> Iterator[float]:
        count = 1
        while (at := count * interval) < HORIZON:
            yield at
            count += 1

    return schedule


def late_start(interval: float, first: float) -> Schedule:
    """Ask every so many seconds, but not before some time."""

    def schedule() -> Iterator[float]:
        at = first
        while at < HORIZON:
            yield at
            at += interval

    return schedule


def growing(first: float, factor: float, most: float) -> Schedule:
    """Wait longer each time, up to a limit: exponential backoff."""

    def schedule() -> Iterator[float]:
        pause, at = first, first
        while at < HORIZON:
            yield at
            pause = min(most, pause * factor)
            at += pause

    return schedule


def proportional(least: float, share: float) -> Schedule:
    """Wait a share of the time that has passed, but no less than some seconds."""

    def schedule() -> Iterator[float]:
        at = least
        while at < HORIZON:
            yield at
            at += max(least, share * at)

    return schedule


def best(scale: float) -> Schedule:
    """Ask at a rate ∝ the root of the hazard, which is what reaches the bound."""

    def schedule() -> Iterator[float]:
        at, due, step = 0.5, 1.0, 0.25
        asked = 0.0
        while at < HORIZON:
            asked += step * math.sqrt(density(at) / survival(at)) / scale
            at += step
            if asked >= due:
                due += 1.0
                yield at

    return schedule


def judge(schedule: Schedule, made_after: Sequence[float]) -> tuple[float, float]:
    """
    Return queries a video, the one that sees it completed included, and mean lag, seconds.

    Each video meets the schedule's pauses at another moment by its own latency, so no jitter is drawn.
    """
    times = list(schedule())
    seen = [bisect_left(times, latency) for latency in made_after]
    lag = statistics.fmean(times[at] - latency for at, latency in zip(seen, made_after, strict=True))
    return statistics.fmean(at + 1 for at in seen), lag


SCHEDULES: dict[str, Schedule] = {
    **{f"every {interval:g} s": fixed(interval) for interval in (2.0, 5.0, 10.0, 20.0, 30.0)},
    "every 10 s, from 60 s on": late_start(10.0, 60.0),
    "backoff: 5 s, times 1.5 each, up to 60 s": growing(5.0, 1.5, 60.0),
    "backoff: 5 s, times 1.1 each, up to 30 s": growing(5.0, 1.1, 30.0),
    "a tenth of the time passed, at least 5 s": proportional(5.0, 0.1),
    "by the root of the hazard (the best there is)": best(0.85),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation", description=__doc__)
    parser.add_argument("--draws", type=int, default=DRAWS, help="videos (default: %(default)s)")
    given = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    bound = lower_bound()
    made_after = latencies(given.draws)
    judged = {name: judge(schedule, made_after) for name, schedule in SCHEDULES.items()}
    ours = judged[f"every {DEFAULT_POLL_INTERVAL:g} s"]
    report = Report(
        name="simulation",
        title=f"Schedules of queries for the service's latency: {given.draws:,} videos drawn",
        columns=("", "queries a video", "mean lag, s", "queries x lag, s", "above the bound"),
        rows=[
            (
                name,
                f"{queries:.1f}",
                f"{lag:.2f}",
                f"{queries * lag:.1f}",
                f"{100 * (queries * lag / bound - 1):.0f}%",
            )
            for name, (queries, lag) in judged.items()
        ]
        + [("lower bound of all schedules", "", "", f"{bound:.1f}", "")],
        checks=[
            Check(
                f"every {DEFAULT_POLL_INTERVAL:g} s, the default: queries x lag, of the bound",
                ours[0] * ours[1] / bound,
                MOST_ABOVE_THE_BOUND,
            )
        ],
        figures={
            "bound": bound,
            "schedules": {name: {"queries": q, "lag_seconds": lag} for name, (q, lag) in judged.items()},
        },
        notes=[
            (
                f"Latency: lognormal, median {figure(MEDIAN)} s, sigma {SIGMA:g}, seed {SEED}. The bound is of rates, "
                "queries without end: what a long interval pays above it is the query that sees the video completed."
            )
        ],
    )
    return 0 if report.publish(load) else 1


if __name__ == "__main__":
    sys.exit(main())
