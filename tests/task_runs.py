"""
Runs operators in this process the way Airflow does: deferrals included, each resumption in a fresh operator.

Only Airflow's own part is stood in for here; the service is the emulator.
"""

from __future__ import annotations

import asyncio
import copy
import importlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.page_address import page_address
from airflow_provider_kling.triggers import watch
from tests.conftest import AIRFLOW


@dataclass
class TaskInstance:
    """As much of Airflow's task instance as operators use."""

    dag_id: str = "dag"
    run_id: str = "manual__2026-11-22"
    task_id: str = "task"
    map_index: int = -1
    try_number: int = 1
    id: UUID = field(default_factory=uuid4)
    xcoms: dict[str, Any] = field(default_factory=dict)

    def xcom_push(self, key: str, value: Any, **_: Any) -> None:
        self.xcoms[key] = json.loads(json.dumps(value))

    def xcom_pull(self, task_ids: str, key: str = "return_value", map_indexes: int = -1, **_: Any) -> Any:
        assert (task_ids, map_indexes) == (self.task_id, self.map_index), "another task's XCom"
        return copy.deepcopy(self.xcoms.get(key))


@dataclass
class TaskRun:
    """What came of one attempt."""

    ti: TaskInstance
    result: Any = None
    error: BaseException | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    deferrals: list[TaskDeferred] = field(default_factory=list)

    def value(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.result


class OutletEvents:
    """As much of Airflow's outlet events as a task uses."""

    def __init__(self) -> None:
        # By its text: not every Airflow's asset can be a key.
        self.of: defaultdict[str, Any] = defaultdict(lambda: SimpleNamespace(extra={}, added=[]))

    def __getitem__(self, outlet: Any) -> Any:
        event = self.of[repr(outlet)]
        event.add = lambda asset, extra: event.added.append((asset.uri, extra))
        return event


def run_task(
    make: Callable[[], Any],
    *,
    ti: TaskInstance | None = None,
    context: dict[str, Any] | None = None,
    between: Callable[[], Any] | None = None,
    when_it_waits: Callable[[], Any] | None = None,
) -> TaskRun:
    """
    Run one attempt of a task to its end.

    :param make: makes the operator; called anew for each resumption, as Airflow does.
    :param between: called while the task is deferred, before its trigger runs.
    :param when_it_waits: called so, and before each sleep on the worker. What is to happen to a task that waits is
        done here and not after a time: a machine that stalls would be late for it.
    """
    run = TaskRun(ti or TaskInstance())
    run.ti.xcoms.clear()
    full_context = {"ti": run.ti, "task_instance": run.ti, **(context or {})}
    operator = make()
    call: Callable[..., Any] = operator.execute
    kwargs: dict[str, Any] = {}
    try:
        while True:
            try:
                try:
                    with _sleep_told(when_it_waits):
                        run.result = call(full_context, **kwargs)
                finally:
                    _store_links(operator, run.ti)
                return run
            except TaskDeferred as deferral:
                run.deferrals.append(deferral)
                for told in (between, when_it_waits):
                    if told:
                        told()
                event = fire(deferral.trigger)
                run.events.append(event)
                operator = make()
                call = getattr(operator, deferral.method_name)
                kwargs = {"event": event, **(deferral.kwargs or {})}
    except Exception as error:
        run.error = error
        return run


def rendered(make: Callable[..., Any], arguments: Mapping[str, Any] | None = None, **values: Any) -> Any:
    """
    Return an operator with templates as they are when it runs, which need not be what a Dag may hold.

    :param make: makes the operator.
    :param arguments: those that are no templates.
    :param values: what the others render to.
    """
    made = make(**{**(arguments or {}), **dict.fromkeys(values, "{{ params.of_this_run }}")})
    for name, value in values.items():
        setattr(made, name, value)
    return made


@contextmanager
def _sleep_told(told: Callable[[], Any] | None) -> Iterator[None]:
    if told is None:
        yield
        return
    sleep, worker = time.sleep, threading.get_ident()

    def sleep_and_tell(seconds: float) -> None:
        if threading.get_ident() == worker:
            told()
        sleep(seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", sleep_and_tell)
        yield


def finish_videos(emulator: KlingEmulator) -> None:
    """Complete all videos that the service is making."""
    for task in emulator.ledger.tasks():
        if task.state in ("pending", "processing"):
            emulator.complete(task.task_id)


def _store_links(operator: Any, ti: TaskInstance) -> None:
    """Store the links of an operator, as Airflow 3 does by itself whenever a process of a task ends."""
    if AIRFLOW >= (3, 1):
        for link in operator.operator_extra_links:
            ti.xcoms[link.xcom_key] = link.get_link(operator, ti_key=ti)


def link_to(ti: TaskInstance, *, at_service: str | None) -> str | None:
    """Return where the link of a task leads: to its page, or before Airflow 3.1 to somewhere at the service."""
    if AIRFLOW < (3, 1):
        return at_service
    return page_address(dag_id=ti.dag_id, run_id=ti.run_id, task_id=ti.task_id, map_index=ti.map_index)


def fire(trigger: Any) -> Any:
    """Run a trigger as the triggerer does: made anew from what is stored of it, to its first event."""
    path, arguments = trigger.serialize()
    module, _, name = path.rpartition(".")
    revived = getattr(importlib.import_module(module), name)(**copy.deepcopy(arguments))

    async def first_event() -> Any:
        async for event in revived.run():
            return event.payload
        raise AssertionError("the trigger ended without an event")

    with no_slots():
        return asyncio.run(first_event())


@contextmanager
def no_slots() -> Iterator[None]:
    """Let triggers ask when they are due, and not at the next half second, which only many tasks together gain from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "SLOT", 0.001)
        yield


@dataclass
class TaskStateStore:
    """Airflow's task state store (3.3) as one attempt sees it; attempts of a task instance share ``values``."""

    values: dict[str, Any] = field(default_factory=dict)
    is_superseded: bool = False
    is_down: bool = False

    def get(self, key: str, default: Any = None) -> Any:
        if self.is_down:
            raise RuntimeError("API_SERVER_ERROR")
        # Airflow answers the read of a superseded attempt as if there were nothing.
        return default if self.is_superseded else copy.deepcopy(self.values.get(key, default))

    def set(self, key: str, value: Any, *, retention: Any = None) -> None:
        if self.is_down or self.is_superseded:
            raise RuntimeError("API_SERVER_ERROR: 404")
        self.values[key] = json.loads(json.dumps(value))

    def delete(self, key: str) -> None:
        self.values.pop(key, None)
