"""
One process in which many triggers wait, as in a triggerer, and what it takes.

Triggers run in Airflow's own ``TriggerRunner``, with its logging; only its database is left out. The same program runs
this package's trigger, the peers', one that only sleeps (Airflow's own part), and a bare ``aiohttp`` loop that knows
neither Airflow nor errors (the physical limit).
"""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.endpoint import ACCOUNT, MEASURED_ON, Counted, Endpoint, run_on
from dev.processes import inherited_environment

if TYPE_CHECKING:
    from airflow.triggers.base import BaseTrigger

KLING, HTTP, DBT_CLOUD, BARE, EMPTY = "Kling", "HttpSensor", "dbt Cloud", "bare aiohttp loop", "empty trigger"
_PROBE_INTERVAL = 0.005
_FIRST, _FIRST_POLL_INTERVAL = 999_999, 0.2

Start = Callable[[int, float], Awaitable[asyncio.Task[None]]]
"""Lets one more wait: its number, seconds between two queries."""


@dataclass(frozen=True)
class Order:
    """
    What a crowd does.

    :param kind: whose trigger.
    :param waiting: how many of them.
    :param poll_interval: seconds between two queries of one.
    :param settling: seconds from the start of the last one to the beginning of the measurement.
    :param seconds: length of the measurement.
    :param watch_stalls: whether the event loop is watched, which costs CPU of its own.
    """

    kind: str
    waiting: int
    poll_interval: float = 10.0
    settling: float = 12.0
    seconds: float = 20.0
    watch_stalls: bool = False


@dataclass(frozen=True)
class Taken:
    """
    What it took.

    :param began: when the first began to wait, seconds of the machine's monotonic clock.
    :param since: the beginning of the measurement, the same.
    :param until: its end.
    :param cpu_seconds: CPU of the whole process between them, all threads, user and system.
    :param rss_before: resident bytes with everything loaded, before anyone waits.
    :param rss: resident bytes at the end, while all wait.
    :param longest_stall: longest time that the event loop did nothing else while it ran a callback, from the start of
        the first trigger on, seconds; None where it was not watched.
    :param stall_of_start: the same while the triggers were started.
    :param longest_stall_but_collection: the longest without the time that Python's garbage collector ran, which looks
        through all objects of the process, Airflow's too.
    :param longest_collection: longest run of the garbage collector, seconds.
    :param ended: triggers that ended though nothing was over: has to be 0.
    """

    began: float
    since: float
    until: float
    cpu_seconds: float
    rss_before: int
    rss: int
    longest_stall: float | None
    stall_of_start: float | None
    longest_stall_but_collection: float | None
    longest_collection: float | None
    ended: int


@dataclass(frozen=True)
class Run:
    """One crowd: what it was to do, what it took, what the endpoint saw."""

    order: Order
    taken: Taken
    counted: Counted

    @property
    def queries(self) -> int:
        """Queries during the measurement."""
        return self.counted.queries(self.taken.since, self.taken.until)

    @property
    def connections(self) -> int:
        """Connections opened since the first began to wait."""
        return sum(at >= self.taken.began for at in self.counted.connections)

    @property
    def cpu_per_query(self) -> float:
        """CPU seconds a query."""
        return self.taken.cpu_seconds / self.queries if self.queries else math.nan

    @property
    def cpu_share(self) -> float:
        """Share of one processor."""
        return self.taken.cpu_seconds / (self.taken.until - self.taken.since)

    @property
    def rss_per_waiting(self) -> float:
        """Resident bytes for each that waits."""
        return (self.taken.rss - self.taken.rss_before) / self.order.waiting

    def late(self, by: float) -> int:
        """
        Count the queries that came too late, or not at all.

        :param by: seconds behind the longest interval that jitter allows.
        """
        longest = self.order.poll_interval * 1.1 + by
        late = 0
        for times in self.counted.asked.values():
            seen = [at for at in times if at < self.taken.until]
            gaps = [later - at for at, later in zip(seen, [*seen[1:], self.taken.until], strict=True)]
            late += sum(gap > longest for gap in gaps)
        never = self.order.waiting - len(self.counted.asked)
        return late + (never if self.taken.until - self.taken.since + self.order.settling > longest else 0)

    def figures(self) -> dict[str, Any]:
        """Return it all as plain JSON."""
        return {
            **asdict(self.order),
            **asdict(self.taken),
            "queries": self.queries,
            "connections": self.connections,
            "cpu_seconds_per_query": self.cpu_per_query,
            "rss_bytes_per_waiting": self.rss_per_waiting,
        }


def run(order: Order, at: Endpoint) -> Run:
    """
    Let a crowd wait in a fresh process.

    :raises SystemExit: it ended without an answer, or its triggers ended.
    """
    at.reset()
    with tempfile.TemporaryDirectory(prefix="kling-benchmark-") as home:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.crowd"],
            env={
                **inherited_environment(),
                **at.environment,
                "AIRFLOW_HOME": home,
                "BENCHMARK_ORDER": json.dumps(asdict(order)),
            },
            stdout=subprocess.PIPE,
            text=True,
        )
    if done.returncode:
        raise SystemExit(f"The process with {order.kind} failed; what it says is above.")
    taken = Taken(**json.loads(done.stdout.splitlines()[-1]))
    if taken.ended:
        raise SystemExit(
            f"{taken.ended} of {order.waiting} triggers of {order.kind} ended: nothing was over."
        )
    counted = at.counted()
    asked = {job: times for job, times in counted.asked.items() if not job.endswith(str(_FIRST))}
    return Run(order, taken, Counted(counted.connections, asked))


# What runs in the measured process


def main() -> None:
    """Do what the order in the environment says, and print what it took."""
    run_on(MEASURED_ON)
    order = Order(**json.loads(os.environ["BENCHMARK_ORDER"]))
    answer = os.dup(1)
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)  # where the triggerer's log goes
    _log_as_the_triggerer_does()
    taken = asyncio.run(_wait(order))
    os.write(answer, json.dumps(asdict(taken)).encode() + b"\n")


def _log_as_the_triggerer_does() -> None:
    from airflow.sdk.log import configure_logging

    configure_logging(json_output=True)


async def _wait(order: Order) -> Taken:
    start = _bare_loop() if order.kind == BARE else _triggers(order)
    loop = asyncio.get_running_loop()
    # Loads libraries, looks the connection up, opens a session: no cost of those that wait.
    first = await start(_FIRST, _FIRST_POLL_INTERVAL)
    await asyncio.sleep(10 * _FIRST_POLL_INTERVAL)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    rss_before = _rss()
    began = time.monotonic()
    stalls = _Stalls()
    watching = asyncio.create_task(stalls.watch()) if order.watch_stalls else None
    tasks = [await start(number, order.poll_interval) for number in range(order.waiting)]
    await asyncio.sleep(0)
    stall_of_start = stalls.longest if watching else None
    await asyncio.sleep(order.settling)
    since, spent = time.monotonic(), _cpu()
    await asyncio.sleep(order.seconds)
    until, spent = time.monotonic(), _cpu() - spent
    ended = sum(task.done() for task in tasks)
    taken = Taken(
        began=began,
        since=since,
        until=until,
        cpu_seconds=spent,
        rss_before=rss_before,
        rss=_rss(),
        longest_stall=stalls.longest if watching else None,
        stall_of_start=stall_of_start,
        longest_stall_but_collection=stalls.longest_but_collection if watching else None,
        longest_collection=stalls.longest_collection if watching else None,
        ended=ended,
    )
    if watching:
        watching.cancel()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await loop.shutdown_default_executor()
    return taken


def _triggers(order: Order) -> Start:
    from airflow.jobs.triggerer_job_runner import TriggerRunner

    make = _MAKERS[order.kind]
    runner: Any = TriggerRunner()  # type: ignore[no-untyped-call]

    async def start(number: int, poll_interval: float) -> asyncio.Task[None]:
        # As TriggerRunner.create_triggers does it, between reading a trigger from the database and the next.
        await asyncio.sleep(0)
        trigger: Any = make(number, poll_interval)
        trigger.trigger_id, trigger.triggerer_job_id, trigger.task_instance = number, 1, None
        await asyncio.sleep(0)
        name = f"ID {number}"
        task = asyncio.create_task(runner.run_trigger(number, trigger, None, None), name=name)
        runner.triggers[number] = {"task": task, "is_watcher": False, "name": name, "events": 0}
        return task

    return start


def _kling(number: int, poll_interval: float) -> BaseTrigger:
    from airflow_provider_kling.triggers.kling import KlingVideoTrigger

    now = time.time()
    return KlingVideoTrigger(
        kling_conn_id="kling_default",
        kling_task_id=f"task-{number:06}",
        deadline=now + 86_400,
        submitted_at=now,
        poll_interval=poll_interval,
    )


def _http(number: int, poll_interval: float) -> BaseTrigger:
    from airflow.providers.http.triggers.http import HttpSensorTrigger

    return HttpSensorTrigger(endpoint=f"/jobs/task-{number:06}", poke_interval=poll_interval)


def _dbt_cloud(number: int, poll_interval: float) -> BaseTrigger:
    from airflow.providers.dbt.cloud.triggers.dbt import DbtCloudRunJobTrigger

    return DbtCloudRunJobTrigger(
        conn_id="dbt_cloud_default",
        run_id=number,
        end_time=time.time() + 86_400,
        poll_interval=poll_interval,
        account_id=ACCOUNT,
    )


def _empty(number: int, poll_interval: float) -> BaseTrigger:
    made: BaseTrigger = _empty_trigger()(f"task-{number:06}", time.time() + 86_400, poll_interval)
    return made


@functools.cache
def _empty_trigger() -> type[Any]:
    from airflow.triggers.base import BaseTrigger, TriggerEvent

    class EmptyTrigger(BaseTrigger):
        """Asks nobody; has the arguments that any trigger that waits for a job has."""

        def __init__(self, task_id: str, deadline: float, poll_interval: float) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.task_id, self.deadline, self.poll_interval = task_id, deadline, poll_interval

        def serialize(self) -> tuple[str, dict[str, Any]]:
            return (
                "benchmarks.crowd.EmptyTrigger",
                {
                    "task_id": self.task_id,
                    "deadline": self.deadline,
                    "poll_interval": self.poll_interval,
                },
            )

        async def run(self) -> AsyncIterator[TriggerEvent]:
            await asyncio.sleep(self.deadline - time.time())
            yield TriggerEvent(None)  # type: ignore[no-untyped-call]

    return EmptyTrigger


_MAKERS: dict[str, Callable[[int, float], BaseTrigger]] = {
    KLING: _kling,
    HTTP: _http,
    DBT_CLOUD: _dbt_cloud,
    EMPTY: _empty,
}


def _bare_loop() -> Start:
    import aiohttp

    url = os.environ["BENCHMARK_URL"] + "/api/v1/video/generations"
    session = aiohttp.ClientSession()

    async def wait(number: int, poll_interval: float) -> None:
        while True:
            await asyncio.sleep(poll_interval * random.uniform(0.9, 1.1))
            async with session.get(url, params={"task_id": f"task-{number:06}"}) as answer:
                if (await answer.json())["data"]["state"] == "completed":
                    await session.close()
                    return

    async def start(number: int, poll_interval: float) -> asyncio.Task[None]:
        return asyncio.create_task(wait(number, poll_interval))

    return start


class _Stalls:
    """Notes how much later than asked for the event loop comes back, seconds, and why."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.longest_but_collection = 0.0
        self.longest_collection = 0.0
        self._collecting_since = 0.0
        self._collected = 0.0

    async def watch(self) -> None:
        gc.callbacks.append(self._collecting)
        while True:
            began, self._collected = time.perf_counter(), 0.0
            await asyncio.sleep(_PROBE_INTERVAL)
            late = time.perf_counter() - began - _PROBE_INTERVAL
            self.longest = max(self.longest, late)
            self.longest_but_collection = max(self.longest_but_collection, late - self._collected)

    def _collecting(self, phase: str, _info: object) -> None:
        now = time.perf_counter()
        if phase == "start":
            self._collecting_since = now
        else:
            took = now - self._collecting_since
            self._collected += took
            self.longest_collection = max(self.longest_collection, took)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _rss() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
