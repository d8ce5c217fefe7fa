"""Dags for the tests of this folder. Prompts are the run's id, by which the service's ledger knows them."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator
from airflow_provider_kling.retry_policy import KlingRetryPolicy
from airflow_provider_kling.sensors.kling import KlingVideoSensor

MARK = "{{ run_id }}"
RETRIES = {"retries": 3, "retry_delay": timedelta(seconds=1)}

with DAG("kling_deferred", schedule=None, default_args=RETRIES):
    KlingGenerateVideoOperator(
        task_id="make", prompt=MARK, deferrable=True, poll_interval=2, retry_policy=KlingRetryPolicy()
    )

with DAG("kling_stored_connection", schedule=None, default_args=RETRIES):
    KlingGenerateVideoOperator(
        task_id="make", prompt=MARK, kling_conn_id="kling_stored", deferrable=True, poll_interval=2
    )

with DAG("kling_on_the_worker", schedule=None, default_args=RETRIES):
    KlingGenerateVideoOperator(task_id="make", prompt=MARK, poll_interval=1)

# What comes back within a few seconds of leaving its worker can meet the executor's own event for that, and is failed
# by a scheduler that has other things to do: these wait as long as users' tasks do.
with DAG("kling_sensor_modes", schedule=None):
    submit = KlingGenerateVideoOperator(task_id="submit", prompt=MARK, wait_for_completion=False)
    for mode in ("poke", "reschedule"):
        KlingVideoSensor(
            task_id=mode, kling_task_id=submit.output["task_id"], mode=mode, poke_interval=10, timeout=300
        )
    KlingVideoSensor(
        task_id="deferred",
        kling_task_id=submit.output["task_id"],
        deferrable=True,
        poke_interval=10,
        timeout=300,
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
            timeout=15,
        )
