"""
Kills a real Airflow at random moments while it makes videos, and judges what was paid: ``make chaos``.

    python -m tests.cluster.run                    PostgreSQL, Redis, Celery, two of everything; ten minutes
    python -m tests.cluster.run --short            SQLite and the LocalExecutor; about two minutes in all
    python -m tests.cluster.run --without-ledger   the control: an operator that remembers nothing has to pay twice

``MINUTES`` and ``SEED`` in the environment are the defaults of ``--minutes`` and ``--seed``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import requests

from dev.airflow_api import ApiError
from dev.environments import CHECKOUT
from dev.local_airflow import AirflowFailedError
from tests.cluster.evidence import airflow_side, service_side
from tests.cluster.faults import Fault, Kind, Saboteur, schedule
from tests.cluster.judge import Verdict, judge, key_of
from tests.cluster.stack import HEARTBEAT_TIMEOUT, Cluster, SingleNode, Stack, StackError

RUNS = CHECKOUT / ".chaos"
FREEZE_SECONDS = HEARTBEAT_TIMEOUT + 12.0
LONGEST = 2.0
"""How much longer than planned the faults may go on where they have to wait for something to strike."""
CONTROL_MINUTES = 3.0
"""How long the control goes on at the most, in the plan: it ends with the first double payment."""


@dataclass(frozen=True)
class Plan:
    """
    One way to run it.

    :param minutes: how long faults go on, unless told otherwise.
    :param interval: mean seconds between two faults.
    :param deck: how many of each kind come in a row of faults; see :func:`~tests.cluster.faults.schedule`.
    :param once: kinds that come exactly once.
    :param busy: how many Dag runs are under way at the most, with four videos each.
    :param run_out: seconds that everything is given to end when the faults are over: what is stuck stays so, what is
        slow does not.
    """

    stack: type[Stack]
    minutes: float
    interval: float
    deck: Mapping[Kind, int]
    once: Sequence[Kind]
    busy: int
    run_out: float


FULL = Plan(
    stack=Cluster,
    minutes=10,
    interval=1.8,
    deck={
        Kind.TASK: 34,
        Kind.CALL: 30,
        Kind.SUPERVISOR: 12,
        Kind.WORKER: 5,
        Kind.SCHEDULER: 4,
        Kind.TRIGGERER: 6,
        Kind.API_SERVER: 4,
        Kind.DAG_PROCESSOR: 1,
        Kind.SERVICE: 3,
    },
    once=(Kind.FREEZE_WORKER, Kind.DATABASE),
    busy=10,
    run_out=1800,
)
SHORT = Plan(
    stack=SingleNode,
    minutes=1,
    interval=1.5,
    deck={
        Kind.TASK: 14,
        Kind.CALL: 10,
        Kind.SUPERVISOR: 4,
        Kind.SCHEDULER: 1,
        Kind.TRIGGERER: 2,
        Kind.API_SERVER: 1,
        Kind.SERVICE: 1,
    },
    once=(Kind.FREEZE_TASK,),
    busy=8,
    run_out=1800,
)

SERVICE = (
    # Seconds to tens of seconds for a video, and the same spread as the real service.
    *("--latency", "lognormal:8:0.8", "--scale", "0.05", "--balance", "1000000"),
    *(
        argument
        for fault in (
            # Creates that take their time are creates that something can be killed in.
            "slow:call=create,seconds=1.5,rate=0.6",
            "answer:call=create,status=429,retry_after=1,rate=0.05",
            "answer:call=create,status=503,rate=0.01",
            "answer:call=create,status=500,handled=true,rate=0.01",
            "lost_answer:call=create,rate=0.02",
            "reset:call=create,rate=0.01",
            "drift:call=create,shape=task_id+status+top_level,rate=0.1",
            "fail:fail_code=CONTENT_MODERATION,rate=0.02",
            "fail:fail_code=UPSTREAM_BUSY,rate=0.04",
            "fail:fail_code=INTERNAL_ERROR,at_once=true,rate=0.01",
            "no_link:queries=2,rate=0.1",
            "answer:call=query,status=503,rate=0.05",
            "answer:call=query,status=429,retry_after=1,rate=0.03",
            "answer:call=query,status=200,code=500,rate=0.02",
            "answer:call=query,status=502,body=html,rate=0.02",
            "reset:call=query,rate=0.03",
            "cut:call=query,rate=0.01",
            "slow:call=query,seconds=1,rate=0.05",
            "drift:call=query,shape=task_id+status+videos,rate=0.1",
            "drift:call=query,shape=result_json_string,rate=0.05",
            "drift:call=query,shape=unknown_state,rate=0.02",
            "drop:call=callback,rate=0.1",
            "duplicate:call=callback,copies=3,rate=0.2",
            "slow:call=callback,seconds=3,rate=0.1",
        )
        for argument in ("--fault", fault)
    ),
)


class Demand(threading.Thread):
    """
    Asks for videos all the time: starts runs of the Dags in turn, as long as not too many are under way.

    :param busy: how many that is.
    """

    def __init__(self, stack: Stack, dag_ids: Sequence[str], busy: int) -> None:
        super().__init__(daemon=True, name="demand")
        self._stack = stack
        self._dag_ids = dag_ids
        self._busy = busy
        self._enough = threading.Event()

    def run(self) -> None:
        """Start runs until told to stop."""
        number = 0
        while not self._enough.wait(0.5):
            try:
                if unfinished_runs(self._stack) < self._busy:
                    self._stack.airflow.api.trigger(self._dag_ids[number % len(self._dag_ids)])
                    number += 1
            except (requests.RequestException, ApiError, AirflowFailedError):
                time.sleep(1)  # the API server was killed, or its database

    def stop(self) -> None:
        """Start no more."""
        self._enough.set()
        self.join()


def unfinished_runs(stack: Stack) -> int:
    """Return how many Dag runs are not over."""
    (row,) = stack.query("SELECT COUNT(*) AS runs FROM dag_run WHERE state IN ('queued', 'running')")
    return int(row["runs"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it. Return 0 if nothing was paid twice, lost or stuck; for the control if something was paid twice."""
    given = _parser().parse_args(arguments)
    plan = SHORT if given.short else FULL
    seconds = 60 * (given.minutes or (CONTROL_MINUTES if given.without_ledger else plan.minutes))
    seed = random.SystemRandom().randrange(1_000_000) if given.seed is None else given.seed
    home = RUNS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{seed}"
    home.mkdir(parents=True)
    again = f"{'--short ' if given.short else ''}{'--without-ledger ' if given.without_ledger else ''}"
    print(f"seed {seed}; to repeat the schedule: python -m tests.cluster.run {again}--seed {seed}")
    print(f"logs and databases: {home}", flush=True)
    faults = schedule(
        seed,
        seconds=seconds,
        interval=plan.interval,
        deck=plan.deck,
        once=plan.once,
        freeze=FREEZE_SECONDS,
    )
    try:
        with plan.stack(
            home, service_arguments=SERVICE, seed=seed, without_ledger=given.without_ledger
        ) as stack:
            result = _run(
                stack, plan, faults, limit=LONGEST * seconds, stop_at_first_double=given.without_ledger
            )
    except (StackError, AirflowFailedError, TimeoutError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    verdict = result["verdict"]
    _print(result, is_control=given.without_ledger)
    (home / "result.json").write_text(
        json.dumps(
            {
                "seed": seed,
                "without_ledger": given.without_ledger,
                "seconds": seconds,
                "faults": dict(result["struck"]),
                "tries": result["tries"],
                "cleared": result["cleared"],
                "killed_in_submit": verdict.killed_in_submit,
                **verdict.as_json(),
            },
            indent=2,
            default=str,
        )
    )
    print(f"\n{home / 'result.json'}")
    if given.without_ledger:
        good = verdict.paid_twice > 0
        print(_told_of_control(verdict))
    else:
        good = verdict.is_clean
        print("Nothing was paid twice, lost or stuck." if good else "FAILED")
    if good and not given.keep:
        shutil.rmtree(home / "airflow", ignore_errors=True)
    return 0 if good else 1


def _run(
    stack: Stack, plan: Plan, faults: Sequence[Fault], *, limit: float, stop_at_first_double: bool
) -> dict[str, Any]:
    log = (stack.home / "faults.log").open("w", buffering=1)
    demand = Demand(stack, stack.dag_ids(), plan.busy)
    saboteur = Saboteur(stack, faults, say=lambda line: print(line, file=log), limit=limit)
    print(f"{len(faults)} faults in the schedule", flush=True)
    demand.start()
    is_enough = _double_payment(stack) if stop_at_first_double else lambda: False
    saboteur.run(until=is_enough)
    demand.stop()
    stack.service.ask("faults", "DELETE")
    cleared = 0
    if not is_enough():
        print("the faults are over; everything is let run out", flush=True)
        _let_run_out(stack, plan.run_out, until=is_enough)
        cleared = _clear_what_airflow_failed(stack, say=lambda line: print(line, file=log))
        if cleared:
            _let_run_out(stack, plan.run_out, until=is_enough)
    tasks = airflow_side(stack)
    return {
        "verdict": judge(tasks, service_side(stack.service)),
        "struck": saboteur.struck,
        "missed": saboteur.missed,
        "revived": sum(stack.ended_by_themselves.values()),
        "cleared": cleared,
        "tries": sum(task.tries for task in tasks),
    }


def _let_run_out(stack: Stack, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
    deadline = time.monotonic() + seconds
    while unfinished_runs(stack) and time.monotonic() < deadline and not until():
        time.sleep(2)
        stack.revive()


def _clear_what_airflow_failed(stack: Stack, say: Callable[[str], None]) -> int:
    found = [task for task in airflow_side(stack) if task.was_failed_by_airflow]
    for task in found:
        say(f"cleared: {task}")
        stack.clear(*key_of(task.mark))
    return len(found)


def _double_payment(stack: Stack) -> Callable[[], bool]:
    def seen() -> bool:
        return any(side.bills > 1 for side in service_side(stack.service).values())

    def check() -> bool:
        try:
            return seen()
        except requests.RequestException:
            return False  # killed just now

    return check


def _print(result: Mapping[str, Any], *, is_control: bool) -> None:
    verdict: Verdict = result["verdict"]
    struck: Mapping[Kind, int] = result["struck"]
    _rule()
    for kind in Kind:
        if struck.get(kind):
            _row(kind, struck[kind])
    _row("faults in all", sum(struck.values()))
    _row("processes that ended because of them", result["revived"])
    _row("found nothing to strike", sum(result["missed"].values()))
    _rule()
    if is_control:
        # It ends with its first double payment: what else was under way is cut off then, and no fault.
        _row("videos asked for", verdict.asked)
        _row("tasks that the service made for them", verdict.made)
        _row("paid twice", verdict.paid_twice)
    else:
        for name, count in verdict.rows():
            _row(name, count)
        _rule()
        _row("attempts for them", result["tries"])
        _row("unknown because a kill hit the submit itself", verdict.killed_in_submit)
        _row("failed by Airflow with retries left, cleared then", result["cleared"])
    _rule()
    for finding in verdict.findings:
        if finding.paid_twice:
            print(f"PAID TWICE: {finding.mark}\n    {finding.service}")
        elif finding.is_fault and not is_control:
            print(f"{finding.outcome.value}: {finding.mark}\n    {finding.why}\n    {finding.service}")


def _told_of_control(verdict: Verdict) -> str:
    if verdict.paid_twice:
        return "The control paid twice, and the judge saw it."
    if not verdict.made:
        return "The control asked the service for nothing: its operator fails before that. See the logs of its tasks."
    return "The control paid nothing twice: this run proves nothing."


def _row(name: str, count: int) -> None:
    print(f"{name:<60}{count:>6}")


def _rule() -> None:
    print("-" * 66)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--short", action="store_true", help="one node, about two minutes")
    parser.add_argument(
        "--without-ledger", action="store_true", help="the control; ends at the first double payment"
    )
    parser.add_argument("--minutes", type=float, default=os.environ.get("MINUTES") or None)
    parser.add_argument("--seed", type=int, default=os.environ.get("SEED") or None)
    parser.add_argument(
        "--keep", action="store_true", help="keep Airflow's logs where nothing is wrong as well"
    )
    return parser


def _end_orderly(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end_orderly)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted; everything has been stopped", file=sys.stderr)
        sys.exit(130)
