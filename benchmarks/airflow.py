"""A real Airflow to measure: PostgreSQL, the LocalExecutor, one of each process, with the benchmarks' Dags."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cpu import adopt_orphans, cpu_seconds, tree
from dev.local_airflow import LocalAirflow
from tests.cluster.stack import Postgres

if TYPE_CHECKING:
    from dev.airflow_api import AirflowApi

DAGS = Path(__file__).parent / "dags"
_PARALLEL_TASKS = 8
"""More than a small machine has processors: after a task's end Airflow holds its slot for up to five seconds."""
_POLL = 3.0


@dataclass(frozen=True)
class Spent:
    """
    CPU seconds.

    :param by_component: of Airflow's processes, by component, with all that they started.
    :param database: of PostgreSQL's.
    """

    by_component: Mapping[str, float]
    database: float

    @property
    def airflow(self) -> float:
        """Of all of Airflow's processes."""
        return sum(self.by_component.values())

    def __sub__(self, earlier: Spent) -> Spent:
        return Spent(
            {name: spent - earlier.by_component[name] for name, spent in self.by_component.items()},
            self.database - earlier.database,
        )


class MeasuredAirflow:
    """
    A running Airflow whose CPU can be read.

    :param airflow: it.
    :param postgres: its database.
    """

    def __init__(self, airflow: LocalAirflow, postgres: Postgres) -> None:
        self._airflow = airflow
        self._postgres = postgres

    @property
    def api(self) -> AirflowApi:
        """Its REST API. Each call costs the API server CPU, which is counted."""
        return self._airflow.api

    def spent(self) -> Spent:
        """Return what all processes have used so far, also those that have ended."""
        return Spent(
            {name: cpu_seconds(tree(process.pids)) for name, process in self._airflow.components.items()},
            cpu_seconds(tree(self._postgres.pids)),
        )


@contextlib.contextmanager
def measured_airflow(
    home: Path, *, connections: Mapping[str, Mapping[str, Any]], environment: Mapping[str, str]
) -> Iterator[MeasuredAirflow]:
    """
    Start it and wait until it is healthy and has read the Dags; it ends with its owner.

    :param connections: stored in its database, by id, as most people have theirs.
    :param environment: further environment variables of its processes.
    """
    adopt_orphans()
    home.mkdir(parents=True, exist_ok=True)
    postgres = Postgres(home)
    with contextlib.ExitStack() as running:
        running.callback(postgres.remove)
        postgres.create()
        airflow = running.enter_context(
            LocalAirflow(
                home / "airflow",
                dags=[DAGS],
                environment=environment,
                config={
                    "core": {"parallelism": str(_PARALLEL_TASKS), "max_active_tasks_per_dag": "1000"},
                    "database": {"sql_alchemy_conn": postgres.url},
                    "dag_processor": {"min_file_process_interval": "600", "refresh_interval": "600"},
                    "scheduler": {"scheduler_idle_sleep_time": "1"},
                },
            )
        )
        for conn_id, connection in connections.items():
            extra = {"extra": json.dumps(connection["extra"])} if "extra" in connection else {}
            airflow.api.call("POST", "connections", json={**connection, **extra, "connection_id": conn_id})
        yield MeasuredAirflow(airflow, postgres)


def run_dag(airflow: MeasuredAirflow, dag_id: str, *, timeout: float) -> tuple[str, Spent, float]:
    """
    Let a Dag run once.

    :param timeout: seconds.
    :return: the run's id, what was used from its start to its end, and the seconds between them.
    :raises SystemExit: it failed or was not over in time.
    """
    api = airflow.api
    api.wait_for_dag(dag_id)
    api.unpause(dag_id)
    before, began = airflow.spent(), time.monotonic()
    run_id = api.trigger(dag_id)
    while (state := api.run_state(dag_id, run_id)) not in {"success", "failed"}:
        if time.monotonic() - began > timeout:
            raise SystemExit(f"{dag_id} was not over after {timeout:.0f} s: it is {state}.")
        time.sleep(_POLL)
    spent, seconds = airflow.spent() - before, time.monotonic() - began
    if state != "success":
        failed = [ti for ti in api.task_instances(dag_id, run_id) if ti.state != "success"]
        first = failed[0]
        log = api.task_log(dag_id, run_id, first.task_id, first.try_number, first.map_index)
        raise SystemExit(
            f"{len(failed)} tasks of {dag_id} did not succeed; {first.label} ({first.state}):\n{log}"
        )
    return run_id, spent, seconds
