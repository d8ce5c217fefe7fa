"""A storyboard: one video of several shots, whose durations add up to the video's."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator

with DAG(
    dag_id="example_kling_storyboard",
    schedule=None,
    catchup=False,
    tags=["kling", "example"],
    doc_md=__doc__,
) as dag:
    KlingGenerateVideoOperator(
        task_id="three_shots",
        model="kling-v3-omni",
        multi_shot=True,
        shot_type="customize",
        multi_prompt=[
            {"prompt": "Wide shot: a lighthouse in a storm at night", "duration": 3},
            {"prompt": "Close-up: the keeper lights the lamp", "duration": 3},
            {"prompt": "Aerial shot: the beam sweeps over the waves", "duration": 4},
        ],
        duration=10,
        aspect_ratio="16:9",
        deferrable=True,
    )

    KlingGenerateVideoOperator(
        task_id="cut_by_the_model",
        model="kling-v3-omni",
        prompt="A day at a fish market, from the first boats at dawn to the last customer",
        multi_shot=True,
        shot_type="intelligence",
        duration=10,
        deferrable=True,
    )
