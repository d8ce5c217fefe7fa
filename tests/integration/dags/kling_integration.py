"""Dags for the tests of this folder. Prompts are the run's id, by which the service's ledger knows them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Asset, AssetAlias, task

from airflow_provider_kling.operators.batch import KlingGenerateVideoBatchOperator
from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator
from airflow_provider_kling.retry_policy import KlingRetryPolicy
from airflow_provider_kling.sensors.kling import KlingVideoSensor

MARK = "{{ run_id }}"
# Each waits ten seconds in the triggerer, unless its test holds the video: a task that comes back sooner can be failed
# by Airflow, whose scheduler may not have heard yet that its first worker ended.
RETRIES = {"retries": 3, "retry_delay": timedelta(seconds=1)}

with DAG("kling_deferred", schedule=None, default_args=RETRIES):
    KlingGenerateVideoOperator(
        task_id="make", prompt=MARK, deferrable=True, poll_interval=10, retry_policy=KlingRetryPolicy()
    )

# The videos of these are held until the scheduler knows that the task has left its worker.
for dag_id, connection in (("kling_held", "kling_default"), ("kling_stored_connection", "kling_stored")):
    with DAG(dag_id, schedule=None, default_args=RETRIES):
        KlingGenerateVideoOperator(
            task_id="make", prompt=MARK, kling_conn_id=connection, deferrable=True, poll_interval=1
        )

with DAG("kling_on_the_worker", schedule=None, default_args=RETRIES):
    KlingGenerateVideoOperator(task_id="make", prompt=MARK, poll_interval=1)

# What comes back within a few seconds of leaving its worker can meet the executor's own event for that, and is failed
# by a scheduler that has other things to do: these wait as long as users' tasks do.
with DAG("kling_sensor_modes", schedule=None):
    submit = KlingGenerateVideoOperator(task_id="submit", prompt=MARK, wait_for_completion=False)
    for mode in ("poke", "reschedule"):
        KlingVideoSensor(
            task_id=mode, kling_task_id=submit.output["task_id"], mode=mode, poke_interval=10, timeout=3600
        )
    KlingVideoSensor(
        task_id="deferred",
        kling_task_id=submit.output["task_id"],
        deferrable=True,
        poke_interval=10,
        timeout=3600,
    )

with DAG("kling_sensor_from_trigger", schedule=None):
    first = KlingGenerateVideoOperator(task_id="submit", prompt=MARK, wait_for_completion=False)
    for task_id, limit in (("waits", 3600), ("gives_up", 15)):
        KlingVideoSensor(
            task_id=task_id,
            kling_task_id=first.output["task_id"],
            deferrable=True,
            start_from_trigger=True,
            poke_interval=1,
            timeout=limit,
            soft_fail=True,
        )

with DAG("kling_soft_fail", schedule=None):
    never = KlingGenerateVideoOperator(task_id="submit", prompt=MARK, wait_for_completion=False)
    for deferrable in (False, True):
        KlingVideoSensor(
            task_id="deferred" if deferrable else "poke",
            kling_task_id=never.output["task_id"],
            deferrable=deferrable,
            soft_fail=True,
            poke_interval=1,
            timeout=30,
        )

for dag_id, deferrable, interval in (("kling_batch", True, 10), ("kling_batch_on_the_worker", False, 1)):
    with DAG(dag_id, schedule=None, default_args=RETRIES, params={"folder": ""}):
        KlingGenerateVideoBatchOperator(
            task_id="make",
            requests=[f"{MARK} scene {number}" for number in range(6)],
            duration=3,
            max_in_flight=3,
            deferrable=deferrable,
            poll_interval=interval,
            output_path="{{ params.folder }}/{kling_task_id}.{ext}",
        )

TRAILER = Asset("kling_trailer")

with DAG("kling_stored_on_s3", schedule=None, params={"bucket": "s3://"}):
    KlingGenerateVideoOperator(
        task_id="make",
        prompt=MARK,
        duration=3,
        deferrable=True,
        poll_interval=10,
        output_path="{{ params.bucket }}/{dag_id}/{run_id}/{task_id}.{ext}",
        outlets=[TRAILER, AssetAlias("kling_new_files")],
    )

with DAG("kling_after_the_trailer", schedule=[TRAILER], is_paused_upon_creation=False):

    @task
    def received(**context: Any) -> list[dict[str, Any]]:
        return [event.extra for events in context["triggering_asset_events"].values() for event in events]

    received()

with DAG("kling_over_budget", schedule=None, default_args=RETRIES):
    KlingGenerateVideoOperator(task_id="make", prompt=MARK, duration="{{ 15 }}", mode="pro", max_cost_usd=1)
