"""
Text to video: ask for a video, wait for it without holding a worker, keep the file.

The service deletes its results after 7 days, so the last task fetches the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import DAG, Param, task

from airflow_provider_kling.hooks.kling import KlingHook
from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator

with DAG(
    dag_id="example_kling_text_to_video",
    schedule=None,
    catchup=False,
    tags=["kling", "example"],
    params={
        "prompt": Param("A girl dancing on the beach at sunset, cinematic lighting", type="string"),
        "seconds": Param(5, type="integer", minimum=3, maximum=15),
        "folder": Param("kling_videos", type="string", description="Where the file is kept."),
    },
    doc_md=__doc__,
) as dag:
    make_video = KlingGenerateVideoOperator(
        task_id="make_video",
        prompt="{{ params.prompt }}",
        duration="{{ params.seconds }}",
        aspect_ratio="16:9",
        sound=True,
        deferrable=True,
    )

    @task
    def keep_file(video: dict[str, Any], folder: str) -> str:
        path = Path(folder).absolute() / f"{video['task_id']}.mp4"
        return str(KlingHook().download(video["video_url"], path))

    keep_file(make_video.output, "{{ params.folder }}")
