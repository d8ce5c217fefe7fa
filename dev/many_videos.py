"""A thousand videos without making them: rows of one that was made, written anew into the database."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

if TYPE_CHECKING:
    from dev.local_airflow import LocalAirflow


def put_many(
    airflow: LocalAirflow,
    dag_id: str,
    run_id: str,
    task_id: str,
    *,
    into: str,
    many: int,
    newest: datetime | None = None,
) -> None:
    """
    Write as many runs with a task like a given one into the (SQLite) database of an Airflow, an hour apart.

    Each has its own stored video, which is the given one's under another name.

    :param into: id of the Dag that they are of, which is made as well.
    :param newest: when the last of them ended; a year ago if not given, so that they are in nobody's way.
    """
    newest = newest or datetime.now(UTC) - timedelta(days=365)
    with contextlib.closing(sqlite3.connect(airflow.database, timeout=60)) as connection:
        connection.row_factory = sqlite3.Row
        (dag,) = _rows(connection, "dag", dag_id=dag_id)
        (run,) = _rows(connection, "dag_run", dag_id=dag_id, run_id=run_id)
        own = {"dag_id": dag_id, "run_id": run_id, "task_id": task_id}
        (task,) = _rows(connection, "task_instance", **own)
        xcoms = _rows(connection, "xcom", **own)
        (card,) = (json.loads(xcom["value"]) for xcom in xcoms if xcom["key"] == "kling_video")
        file = Path(card["files"][0]["path"])
        manifest = file.with_name(f"{file.name}.json").read_text()
        runs: list[dict[str, Any]] = []
        tasks: list[dict[str, Any]] = []
        values: list[list[dict[str, Any]]] = []
        # Files first: while the rows are written, nobody else can write to the database.
        for number in range(many):
            at = newest - timedelta(hours=number)
            stamp = at.strftime("%Y-%m-%d %H:%M:%S.%f")
            name = f"manual__{at.isoformat()}"
            # Its own name at the service, which is in the file's name too: what has the same one is one video.
            kling_task_id = f"{into.replace('_', '')}{number:06}"

            def renamed(text: str, to: str = kling_task_id, run: str = name) -> str:
                told = text.replace(card["task_id"], to).replace(run_id, run)
                return told.replace(f'"dag_id": "{dag_id}"', f'"dag_id": "{into}"')

            copy = Path(renamed(str(file)))
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.hardlink_to(file)
            copy.with_name(f"{copy.name}.json").write_text(renamed(manifest))

            new = {"dag_id": into, "run_id": name}
            when = dict.fromkeys(("logical_date", "run_after", "queued_at", "start_date", "end_date"), stamp)
            runs.append({**run, **new, **when})
            tasks.append({**task, **new, "id": uuid4().hex})
            values.append([])
            for xcom in xcoms:
                value = xcom["value"] and renamed(xcom["value"])
                if xcom["key"] == "kling_video":
                    value = _dated(value, at, number)
                values[-1].append({**xcom, **new, "timestamp": stamp, "value": value})
        with connection:
            _insert(connection, "dag", {**dag, "dag_id": into, "is_paused": 1, "next_dagrun": None})
            first = connection.execute("SELECT max(id) + 1 FROM dag_run").fetchone()[0]
            for number, (its_run, its_task, its_xcoms) in enumerate(
                zip(runs, tasks, values, strict=True), first
            ):
                _insert(connection, "dag_run", {**its_run, "id": number})
                _insert(connection, "task_instance", its_task)
                for xcom in its_xcoms:
                    _insert(connection, "xcom", {**xcom, "dag_run_id": number})


def _dated(card: str, at: datetime, number: int) -> str:
    value = json.loads(card)
    value |= {"submitted_at": at.isoformat(), "completed_at": at.isoformat()}
    value["request"]["prompt"] = f"{value['request']['prompt']}, take {number + 1}"
    return json.dumps(value)


def _rows(connection: sqlite3.Connection, table: str, **where: str) -> list[dict[str, Any]]:
    conditions = " AND ".join(f"{name} = ?" for name in where)
    found = connection.execute(f"SELECT * FROM {table} WHERE {conditions}", tuple(where.values()))
    return [dict(row) for row in found]


def _insert(connection: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    names = ", ".join(row)
    values = ", ".join("?" * len(row))
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({values})", tuple(row.values()))
