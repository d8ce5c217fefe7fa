"""
A content pipeline: every morning a list of ideas becomes videos, and a summary says what was made.

Each idea is a mapped task of its own. ``max_active_tis_per_dag`` bounds how many are with the service at a time (from
Airflow 3.2 on; before that take a pool with *Include deferred*).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator

with DAG(
    dag_id="example_kling_content_pipeline",
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    tags=["kling", "example"],
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
    doc_md=__doc__,
) as dag:

    @task
    def todays_ideas() -> list[dict[str, Any]]:
        return [
            {"prompt": "A cat wakes up in a sunny window", "duration": 5, "aspect_ratio": "9:16"},
            {"prompt": "Coffee is poured in slow motion", "duration": 3, "aspect_ratio": "1:1"},
            {"prompt": "A tram passes through an autumn park", "duration": "5", "sound": "on"},
        ]

    make_videos = KlingGenerateVideoOperator.partial(
        task_id="make_videos",
        model="kling-v3-omni",
        deferrable=True,
        max_active_tis_per_dag=8,
    ).expand_kwargs(todays_ideas())

    @task
    def summarise(videos: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "videos": [video["video_url"] for video in videos],
            "seconds": sum(video["duration_seconds"] for video in videos),
            "estimated_cost_usd": round(sum(video["estimated_cost_usd"] for video in videos), 4),
        }

    summarise(make_videos.output)
