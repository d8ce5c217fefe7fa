"""
From a content calendar to published videos.

Every morning the calendar's entries for the day become videos, stored with a manifest each. Then a person looks at
them (Airflow 3.1 and later: *Required actions* in the UI). What is approved updates an asset, and that starts the Dag
which publishes.
"""

from __future__ import annotations

import csv
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import DAG, Asset, ObjectStoragePath, task

from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator

try:
    from airflow.providers.standard.operators.hitl import ApprovalOperator
except Exception:  # noqa: BLE001 - Airflow before 3.1 has none, and says so in a class of its own
    ApprovalOperator = None

CALENDAR = Path(__file__).with_name("content_calendar.csv")
APPROVED = Asset("kling_approved_videos")

with DAG(
    dag_id="example_kling_content_calendar",
    schedule="0 6 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    params={"folder": f"{tempfile.gettempdir()}/kling-studio"},
    tags=["kling", "example"],
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5)},
    doc_md=__doc__,
) as dag:

    @task
    def entries_of_the_day(dag_run: Any = None, params: Any = None) -> list[dict[str, Any]]:
        day = getattr(dag_run, "run_after", None) or dag_run.logical_date
        with CALENDAR.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [
            {
                "prompt": row["prompt"],
                "duration": row["duration"],
                "aspect_ratio": row["aspect_ratio"],
                "sound": row["sound"],
                # Each entry has a name of its own, so that people find it in the folder.
                "output_path": f"{params['folder']}/{{run_id}}/{row['name']}_{{kling_task_id}}.{{ext}}",
            }
            for row in rows
            if row["weekday"] in ("every", f"{day:%A}".lower())
        ]

    videos = KlingGenerateVideoOperator.partial(
        task_id="make_video",
        deferrable=True,
        max_cost_usd=1,
        max_active_tis_per_dag=8,
    ).expand_kwargs(entries_of_the_day())

    @task(outlets=[APPROVED])
    def release(made: list[dict[str, Any]], outlet_events: Any = None) -> list[str]:
        paths = [video["path"] for video in made]
        outlet_events[APPROVED].extra = {"videos": paths}
        return paths

    released = release(videos.output)

    if ApprovalOperator is not None:
        approve = ApprovalOperator(
            task_id="approve",
            subject="Publish the videos of the day?",
            body=(
                "{% for video in ti.xcom_pull(task_ids='make_video') %}"
                "* {{ video['request']['prompt'] }}: `{{ video['path'] }}`\n"
                "{% endfor %}"
            ),
        )
        videos >> approve >> released

with DAG(
    dag_id="example_kling_publish",
    schedule=[APPROVED],
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    tags=["kling", "example"],
) as publish_dag:

    @task
    def publish(**context: Any) -> list[str]:
        """Copy what was approved to where the world sees it."""
        events = context.get("triggering_asset_events") or context.get("triggering_dataset_events") or {}
        published = []
        for asset_events in events.values():
            for event in asset_events:
                for path in event.extra["videos"]:
                    stored = ObjectStoragePath(path)
                    target = stored.parent.parent / "published" / stored.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    stored.copy(target)
                    published.append(str(target))
        return published

    publish()
