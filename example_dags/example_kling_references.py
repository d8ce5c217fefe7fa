"""
References: frames that a video begins and ends with, subjects that appear in it, a clip that is edited.

A prompt names its references by kind and number, counted from 1.
"""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG, Param

from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator

with DAG(
    dag_id="example_kling_references",
    schedule=None,
    catchup=False,
    tags=["kling", "example"],
    params={
        "first_frame": Param("https://example.com/door-closed.png", type="string"),
        "end_frame": Param("https://example.com/door-open.png", type="string"),
        "clip": Param("https://example.com/street.mp4", type="string"),
    },
    doc_md=__doc__,
) as dag:
    KlingGenerateVideoOperator(
        task_id="from_frame_to_frame",
        prompt="The door of <<<image_1>>> opens slowly until it looks like <<<image_2>>>",
        image_list=[
            {"image_url": "{{ params.first_frame }}", "type": "first_frame"},
            {"image_url": "{{ params.end_frame }}", "type": "end_frame"},
        ],
        deferrable=True,
    )

    KlingGenerateVideoOperator(
        task_id="with_subjects",
        prompt="<<<element_1>>> and <<<element_2>>> meet in front of <<<image_1>>>",
        element_list=[160, 161],
        image_list=["{{ params.first_frame }}"],
        mode="pro",
        deferrable=True,
    )

    KlingGenerateVideoOperator(
        task_id="edit_a_clip",
        prompt="Make it snow in <<<video_1>>>",
        video_list=[
            {"video_url": "{{ params.clip }}", "refer_type": "base", "keep_original_sound": "yes"},
        ],
        deferrable=True,
    )
