"""A Dag that makes each video in a task of its own."""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.sdk import DAG

from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator

PROMPTS = [f"A paper boat on a river, take {number}" for number in range(int(os.environ["BENCHMARK_VIDEOS"]))]
WAITING = {"deferrable": True, "poll_interval": 10, "timeout": timedelta(minutes=20)}
RETRIES = {"retries": 2, "retry_delay": timedelta(seconds=1)}

with DAG("kling_warm_up", schedule=None, catchup=False, default_args=RETRIES):
    KlingGenerateVideoOperator(task_id="one", prompt="A paper boat to warm up", **WAITING)

with DAG("kling_mapped", schedule=None, catchup=False, default_args=RETRIES):
    KlingGenerateVideoOperator.partial(task_id="make", **WAITING).expand(prompt=PROMPTS)
