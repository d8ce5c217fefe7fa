"""Collects what the judge compares: from the emulator, from Airflow's database, from the logs of the tasks."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.cluster.judge import AirflowSide, ServiceSide, ServiceTask, mark_in, mark_of
from tests.cluster.stack import Service, Stack

_TASKS = """
    SELECT ti.dag_id, ti.run_id, ti.task_id, ti.map_index, ti.state, ti.try_number, xcom.value
    FROM task_instance ti LEFT JOIN xcom
      ON xcom.dag_id = ti.dag_id AND xcom.run_id = ti.run_id AND xcom.task_id = ti.task_id
     AND xcom.map_index = ti.map_index AND xcom.key = 'return_value'
"""
_REFUSED_FOR_GOOD = (400, 401, 402, 403)
_UNCLEAR_FAULTS = frozenset({"lost_answer", "reset", "cut", "stall"})


def airflow_side(stack: Stack) -> list[AirflowSide]:
    """Return every task instance with what it returned, or the errors that it ended with."""
    found = []
    for row in stack.query(_TASKS):
        key = (row["dag_id"], row["run_id"], row["task_id"], row["map_index"])
        found.append(
            AirflowSide(
                mark=mark_of(*key),
                state=row["state"],
                tries=row["try_number"],
                returned=_decoded(row["value"]),
                errors=last_errors(log_file(stack.airflow.logs, *key, row["try_number"])),
            )
        )
    return found


def service_side(service: Service) -> dict[str, ServiceSide]:
    """Return what the emulator's ledger has, by mark."""
    tasks: defaultdict[str, list[ServiceTask]] = defaultdict(list)
    refusals: defaultdict[str, list[int]] = defaultdict(list)
    unclear: Counter[str] = Counter()
    for task in service.ask("tasks"):
        tasks[mark_in(task["prompt"])].append(
            ServiceTask(task["task_id"], task["state"], task["times_billed"], task["fail_code"])
        )
    for create in service.ask("creates"):
        if create["status"] in _REFUSED_FOR_GOOD:
            refusals[mark_in(create["prompt"])].append(create["status"])
        unclear[mark_in(create["prompt"])] += _is_unclear(create)
    return {
        mark: ServiceSide(tuple(tasks[mark]), tuple(refusals[mark]), unclear[mark])
        for mark in dict.fromkeys([*tasks, *unclear])
    }


def _is_unclear(create: Mapping[str, Any]) -> bool:
    status = create["status"]
    return status is None or status >= 500 or not _UNCLEAR_FAULTS.isdisjoint(create["faults"])


def log_file(logs: Path, dag_id: str, run_id: str, task_id: str, map_index: int, attempt: int) -> Path:
    """Return where Airflow writes the log of an attempt."""
    folder = logs / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}"
    if map_index >= 0:
        folder /= f"map_index={map_index}"
    return folder / f"attempt={attempt}.log"


def last_errors(log: Path) -> tuple[tuple[str, str], ...]:
    """Return the classes and texts of the last error in an attempt's log, its causes after it."""
    if not log.exists():
        return ()
    found: tuple[tuple[str, str], ...] = ()
    for line in log.read_text(errors="replace").splitlines():
        entry = _entry(line)
        if entry.get("error_detail"):
            found = tuple((part["exc_type"], part["exc_value"]) for part in entry["error_detail"])
    return found


def _entry(line: str) -> Mapping[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _decoded(value: Any) -> Mapping[str, Any] | None:
    # SQLite has JSON as text; PostgreSQL has it decoded already.
    while isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {"unreadable": value}
    return value if isinstance(value, dict) else None
