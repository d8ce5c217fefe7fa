from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.hooks.conftest import KEY
from tests.hooks.loopback import Answer, Loopback, Received, task_answer

pytestmark = [
    pytest.mark.acceptance,
    pytest.mark.skipif(
        not Path("/proc/thread-self/schedstat").exists(),
        reason="the measure needs what Linux tells of a thread",
    ),
]

WAITING = 1000
QUERIES = 2
POLL_INTERVAL = 2.0
"""Seconds. Many more queries come together than with the usual interval of 10."""
LONGEST_STALL = 0.05
"""
Seconds for which a trigger may hold up the others in its triggerer, on a machine of the usual speed: one that is
slower at that moment, which it tells by other work, has so much longer.
"""


def test_a_thousand_waiting_videos_do_not_hold_up_the_event_loop(tmp_path: Path) -> None:
    asked: Counter[str] = Counter()

    def script(request: Received) -> Answer:
        task_id = request.target.rpartition("task_id=")[2]
        asked[task_id] += 1
        if asked[task_id] < QUERIES:
            return task_answer("processing", task_id=task_id)
        return task_answer("completed", "https://r2.example/v.mp4", task_id=task_id)

    figures = []
    with Loopback(script=script) as service:
        for attempt in range(12):  # what blocks, blocks each time; a busy machine does not
            asked.clear()
            report = tmp_path / f"report-{attempt}.json"
            subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "tests.triggers.thousand_waiting",
                    str(report),
                    str(WAITING),
                    str(POLL_INTERVAL),
                ],
                env=os.environ | {"AIRFLOW_CONN_KLING_DEFAULT": connection(service.url)},
                cwd=Path(__file__).parents[2],
                stdout=subprocess.DEVNULL,
                check=True,
            )
            figures.append(json.loads(report.read_text()))
            assert figures[-1]["completed"] == WAITING
            assert set(asked.values()) == {QUERIES}
            if stall_at_usual_speed(figures[-1]) < LONGEST_STALL:
                break
    for figure in figures:
        print(
            f"{WAITING} waiting videos: longest stall {figure['longest_stall'] * 1000:.0f} ms "
            f"on a machine {figure['slowness']:.1f} times as slow, "
            f"CPU {figure['cpu'] / WAITING / QUERIES * 1000:.2f} ms a query"
        )
    assert min(map(stall_at_usual_speed, figures)) < LONGEST_STALL


def stall_at_usual_speed(figure: Mapping[str, float]) -> float:
    return figure["longest_stall"] / figure["slowness"]


def connection(url: str) -> str:
    return json.dumps(
        {"conn_type": "kling", "password": KEY, "host": url, "extra": {"max_queries_per_second": 10_000}}
    )


def stall_of(*, blocking: float = 0, computing: float = 0) -> float:
    from .thousand_waiting import StallWatch

    watch = StallWatch()

    async def hold_up() -> None:
        await asyncio.sleep(0.01)
        if blocking:
            threading.Event().wait(blocking)
        until = time.thread_time() + computing
        while time.thread_time() < until:
            pass
        await asyncio.sleep(0.01)

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(watch)) as runner:
        runner.run(hold_up())
    return watch.longest


def test_the_measure_sees_what_blocks_and_what_computes() -> None:
    assert stall_of(blocking=0.1) >= 0.1
    assert stall_of(computing=0.1) >= 0.1
