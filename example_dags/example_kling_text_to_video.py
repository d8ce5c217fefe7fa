"""
Text to video: ask for a video, wait for it without holding a worker, keep the file.

The service deletes its results after 7 days; with ``output_path`` the file stays, with a manifest beside it.
"""

from __future__ import annotations

import tempfile

from airflow.providers.common.compat.sdk import DAG, Param

from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator

with DAG(
    dag_id="example_kling_text_to_video",
    schedule=None,
    catchup=False,
    tags=["kling", "example"],
    params={
        "prompt": Param("A girl dancing on the beach at sunset, cinematic lighting", type="string"),
        "seconds": Param(5, type="integer", minimum=3, maximum=15),
        "folder": Param(
            f"{tempfile.gettempdir()}/kling_videos",
            type="string",
            description="Where the file is kept: a directory or a URI such as s3://conn_id@bucket/videos.",
        ),
    },
    doc_md=__doc__,
) as dag:
    make_video = KlingGenerateVideoOperator(
        task_id="make_video",
        prompt="{{ params.prompt }}",
        duration="{{ params.seconds }}",
        aspect_ratio="16:9",
        sound=True,
        output_path="{{ params.folder }}",
        deferrable=True,
    )
