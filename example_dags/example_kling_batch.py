"""
Many videos in one task.

A list of requests becomes a list of videos: at most twenty at the service at a time, one task run for all of them, and
no worker held while they are made. A retry asks only for what is not paid for. Whatever happened to each is in the
result and, for long lists, in a document beside the videos.
"""

from __future__ import annotations

import tempfile
from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_kling.operators.batch import KlingGenerateVideoBatchOperator

CITIES = ("Lisbon", "Kyoto", "Marrakesh", "Reykjavik", "Valparaíso", "Hanoi")
FORMATS = {"feed": "1:1", "story": "9:16"}

with DAG(
    dag_id="example_kling_batch",
    schedule=None,
    params={"folder": f"{tempfile.gettempdir()}/kling-studio"},
    tags=["kling", "example"],
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
    doc_md=__doc__,
) as dag:

    @task
    def write_requests() -> list[dict[str, Any]]:
        return [
            {"prompt": f"A drone flight over {city} at dawn, cinematic", "aspect_ratio": aspect_ratio}
            for city in CITIES
            for aspect_ratio in FORMATS.values()
        ]

    videos = KlingGenerateVideoBatchOperator(
        task_id="make_videos",
        requests=write_requests(),
        duration=3,
        output_path="{{ params.folder }}/{dag_id}/{run_id}/{kling_task_id}.{ext}",
        max_in_flight=20,
        max_cost_usd=5,
        fail_on="all",
        deferrable=True,
    )

    @task
    def stored(made: dict[str, Any]) -> list[str]:
        return [video["path"] for video in made["results"] if video["outcome"] == "completed"]

    stored(videos.output)
