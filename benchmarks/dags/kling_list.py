"""A Dag that makes all videos in one task."""

from __future__ import annotations

import os
from datetime import timedelta

from airflow.sdk import DAG

from airflow_provider_kling.operators.batch import KlingGenerateVideoBatchOperator

VIDEOS = int(os.environ["BENCHMARK_VIDEOS"])
WAITING = {"deferrable": True, "poll_interval": 10, "timeout": timedelta(minutes=20)}
RETRIES = {"retries": 2, "retry_delay": timedelta(seconds=1)}

with DAG("kling_list_warm_up", schedule=None, catchup=False, default_args=RETRIES):
    KlingGenerateVideoBatchOperator(
        task_id="list", requests=[{"prompt": "Two paper boats to warm up"}], **WAITING
    )

with DAG("kling_batch", schedule=None, catchup=False, default_args=RETRIES):
    KlingGenerateVideoBatchOperator(
        task_id="make",
        requests=[{"prompt": f"A paper boat on a river, take {number}"} for number in range(VIDEOS)],
        max_in_flight=VIDEOS,  # as many at a time as the mapped tasks have
        ledger_path=os.environ["BENCHMARK_LEDGER_PATH"],
        **WAITING,
    )
