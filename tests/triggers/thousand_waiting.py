"""
Lets many triggers wait in one event loop, and measures for how long that loop stalls at the longest.

Run as a process of its own: no more is loaded than in a triggerer that has just started, and neither test runner nor
coverage takes part in what is measured.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import selectors
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import airflow.jobs.triggerer_job_runner  # noqa: F401 - so much is loaded in every triggerer

from airflow_provider_kling.triggers.kling import KlingVideoTrigger
from tests.machine import slowness


class StallWatch(selectors.DefaultSelector):
    """
    Measures each turn of an event loop, from one wait for news to the next.

    That others use the CPU is no fault of ours. So of the time in which the thread did not run, only that counts for
    which it gave up the CPU by itself, that is blocked, and without what it then spent in the queue for a CPU.
    """

    longest = 0.0
    """Seconds."""
    _began: tuple[float, float, float, int] | None = None

    def __init__(self) -> None:
        super().__init__()
        self._queue = os.open("/proc/thread-self/schedstat", os.O_RDONLY)

    def close(self) -> None:
        os.close(self._queue)
        super().close()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._began is not None:
            began = self._began
            wall, cpu, queued, waits = (now - then for now, then in zip(self._now(), began, strict=True))
            blocked = max(0.0, wall - cpu - queued) if waits else 0.0
            self.longest = max(self.longest, cpu + blocked)
        events = super().select(timeout)
        self._began = self._now()
        return events

    def _now(self) -> tuple[float, float, float, int]:
        return (
            time.perf_counter(),
            time.thread_time(),
            int(os.pread(self._queue, 100, 0).split()[1]) / 1e9,
            resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw,
        )


async def wait_for_all(name: str, count: int, poll_interval: float) -> list[dict[str, Any]]:
    now = time.time()
    triggers = [
        KlingVideoTrigger(
            kling_conn_id="kling_default",
            kling_task_id=f"{name}-{number}",
            deadline=now + 3600,
            submitted_at=now,
            poll_interval=poll_interval,
        )
        for number in range(count)
    ]

    async def fire(trigger: KlingVideoTrigger) -> Any:
        [payload] = [event.payload async for event in trigger.run()]
        return payload

    running = []
    for trigger in triggers:
        running.append(asyncio.create_task(fire(trigger)))
        await asyncio.sleep(0)  # as Airflow's triggerer does
    return await asyncio.gather(*running)


def main(arguments: Sequence[str]) -> None:
    report, count, poll_interval = Path(arguments[0]), int(arguments[1]), float(arguments[2])
    watch = StallWatch()
    asyncio.run(
        wait_for_all("first", 10, 0.1)
    )  # with the first queries modules are loaded, once in a triggerer's life
    # Looking through all that Airflow has loaded takes a tenth of a second, whoever's turn it is when that happens.
    gc.collect()
    gc.freeze()
    slow_before, cpu = slowness(), time.process_time()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(watch)) as runner:
        payloads = runner.run(wait_for_all("task", count, poll_interval))
    cpu = time.process_time() - cpu
    report.write_text(
        json.dumps(
            {
                "completed": sum(payload["outcome"] == "completed" for payload in payloads),
                "longest_stall": watch.longest,
                "slowness": (slow_before + slowness()) / 2,
                "cpu": cpu,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
