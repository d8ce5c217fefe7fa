"""
Puts deferred task instances into Airflow's database, one for each video; run in that Airflow's environment.

Reads the Kling task ids from standard input, as a JSON list, and writes the task instances' ids, in the same order.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
from airflow.models.dagbag import DBDagBag
from airflow.models.trigger import Trigger
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState
from airflow.utils.types import DagRunTriggeredByType, DagRunType

DAG_ID = "kling_crowd"
TASKS_OF_A_RUN = 100


def main() -> None:
    """Make the runs and their task instances."""
    kling_task_ids = json.load(sys.stdin)
    with DAG(DAG_ID, schedule=None) as dag:
        for number in range(TASKS_OF_A_RUN):
            EmptyOperator(task_id=f"make_{number:03}")
    DagBundlesManager().sync_bundles_to_db()
    bag = DagBag(os.devnull)
    bag.bag_dag(dag)
    sync_bag_to_db(bag, bundle_name="dags-1", bundle_version=None)
    made: list[Any] = []
    for start in range(0, len(kling_task_ids), TASKS_OF_A_RUN):
        made += _run(start, kling_task_ids[start : start + TASKS_OF_A_RUN])
    json.dump([str(ti_id) for ti_id in made], sys.stdout)


def _run(number: int, kling_task_ids: list[str]) -> list[Any]:
    now = datetime.now(UTC)
    with create_session() as session:
        run = (
            DBDagBag()
            .get_latest_version_of_dag(DAG_ID, session=session)
            .create_dagrun(
                run_id=f"manual__{number}",
                logical_date=None,
                data_interval=None,
                run_after=now,
                run_type=DagRunType.MANUAL,
                triggered_by=DagRunTriggeredByType.TEST,
                state=DagRunState.RUNNING,
                session=session,
            )
        )
        tis = sorted(run.get_task_instances(session=session), key=lambda ti: ti.task_id)
        for ti, kling_task_id in zip(tis, kling_task_ids, strict=False):
            trigger = Trigger(
                classpath="airflow_provider_kling.triggers.kling.KlingVideoTrigger",
                kwargs={
                    "kling_conn_id": "kling_default",
                    "kling_task_id": kling_task_id,
                    "deadline": time.time() + 3600,
                    "submitted_at": time.time(),
                    "poll_interval": 300.0,
                },
                created_date=now - timedelta(minutes=1),
            )
            session.add(trigger)
            session.flush()
            ti.state, ti.trigger_id = "deferred", trigger.id
            ti.next_method, ti.next_kwargs = "execute_complete", {}
        return [ti.id for ti in tis[: len(kling_task_ids)]]


if __name__ == "__main__":
    main()
