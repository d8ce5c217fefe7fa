"""Dags that make videos: one task for each, and one task for all."""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.sdk import DAG

from airflow_provider_kling.operators.batch import KlingGenerateVideoBatchOperator
from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator

VIDEOS = int(os.environ["BENCHMARK_VIDEOS"])
PROMPTS = [f"A paper boat on a river, take {number}" for number in range(VIDEOS)]
WAITING = {"deferrable": True, "poll_interval": 10, "timeout": timedelta(minutes=20)}
RETRIES = {"retries": 2, "retry_delay": timedelta(seconds=1)}

with DAG("kling_warm_up", schedule=None, catchup=False, default_args=RETRIES):
    KlingGenerateVideoOperator(task_id="one", prompt="A paper boat to warm up", **WAITING)
    KlingGenerateVideoBatchOperator(
        task_id="list", requests=[{"prompt": "Two paper boats to warm up"}], **WAITING
    )

with DAG("kling_mapped", schedule=None, catchup=False, default_args=RETRIES):
    KlingGenerateVideoOperator.partial(task_id="make", **WAITING).expand(prompt=PROMPTS)

with DAG("kling_batch", schedule=None, catchup=False, default_args=RETRIES):
    KlingGenerateVideoBatchOperator(
        task_id="make",
        requests=[{"prompt": prompt} for prompt in PROMPTS],
        max_in_flight=max(1, VIDEOS // 2),
        ledger_path=os.environ["BENCHMARK_LEDGER_PATH"],
        **WAITING,
    )
