"""Dags whose videos are told of by callbacks. Prompts are the run's id, by which the service's ledger knows them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Asset, task

from airflow_provider_kling.operators.batch import KlingGenerateVideoBatchOperator
from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator

MARK = "{{ run_id }}"
CALLED_BACK: dict[str, Any] = {"prompt": MARK, "duration": 3, "callback": True}

with DAG(
    "kling_called_back", schedule=None, default_args={"retries": 3, "retry_delay": timedelta(seconds=1)}
):
    KlingGenerateVideoOperator(task_id="make", deferrable=True, **CALLED_BACK)

with DAG("kling_called_back_often", schedule=None):
    KlingGenerateVideoOperator.partial(task_id="make", deferrable=True, **CALLED_BACK).expand(
        mode=["std"] * 6
    )

# What is lost is looked for again only after the worker's own time limits.
with DAG(
    "kling_called_back_lost", schedule=None, default_args={"retries": 20, "retry_delay": timedelta(seconds=2)}
):
    KlingGenerateVideoOperator(task_id="make", deferrable=True, **CALLED_BACK)

LISTS = {"kling_called_back_list": 6, "kling_called_back_waves": 3}

for dag_id, max_in_flight in LISTS.items():
    with DAG(dag_id, schedule=None, default_args={"retries": 20, "retry_delay": timedelta(seconds=2)}):
        KlingGenerateVideoBatchOperator(
            task_id="make",
            requests=[f"{MARK} scene {number}" for number in range(6)],
            duration=3,
            callback=True,
            deferrable=True,
            max_in_flight=max_in_flight,
        )

FILM = Asset("kling_film_that_nobody_waited_for")

with DAG("kling_submit_and_forget", schedule=None):
    KlingGenerateVideoOperator(task_id="make", wait_for_completion=False, outlets=[FILM], **CALLED_BACK)

with DAG("kling_after_the_film", schedule=[FILM]):

    @task
    def received(**context: Any) -> list[dict[str, Any]]:
        return [event.extra for events in context["triggering_asset_events"].values() for event in events]

    received()
