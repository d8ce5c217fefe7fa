"""The same with what Airflow offers for any HTTP service: one task that submits, one that waits in the triggerer."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import Any

from airflow.providers.http.operators.http import HttpOperator
from airflow.providers.http.sensors.http import HttpSensor
from airflow.sdk import DAG, task_group

PROMPTS = [f"A paper boat on a river, take {number}" for number in range(int(os.environ["BENCHMARK_VIDEOS"]))]

# The sensor's trigger may fire in its first second, which a busy scheduler takes for a failure of the task.
RETRIES = {"retries": 2, "retry_delay": timedelta(seconds=1)}


def path_of(response: Any) -> str:
    """Take from a submit's answer where to ask for the job."""
    return f"jobs/{response.json()['data']['taskId']}"


@task_group
def make(data: str) -> None:
    """Submit a job and wait for it."""
    submit = HttpOperator(
        task_id="submit",
        endpoint="jobs",
        method="POST",
        data=data,
        headers={"Content-Type": "application/json"},
        response_filter=path_of,
    )
    HttpSensor(task_id="wait", endpoint=submit.output, deferrable=True, poke_interval=10, timeout=20 * 60)


with DAG("http_warm_up", schedule=None, catchup=False, default_args=RETRIES):
    make(json.dumps({"prompt": "A paper boat to warm up"}))

with DAG("http_pair", schedule=None, catchup=False, default_args=RETRIES):
    make.expand(data=[json.dumps({"prompt": prompt}) for prompt in PROMPTS])
