"""Dags whose videos are looked at in a browser."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, Param

from airflow_provider_kling.operators.batch import KlingGenerateVideoBatchOperator
from airflow_provider_kling.operators.kling import KlingDownloadVideoOperator, KlingGenerateVideoOperator

FOLDER = "{{ params.folder }}/{dag_id}/{kling_task_id}.{ext}"
STORED: dict[str, Any] = {"output_path": FOLDER, "poll_interval": 1}
PARAMS = {"folder": Param("/nonexistent", type="string")}

with DAG("kling_studio", schedule=None, params=PARAMS):
    KlingGenerateVideoOperator(
        task_id="beach",
        prompt="A girl dancing on the beach at sunset, cinematic lighting, the camera circling her slowly. "
        "Waves roll in behind her and gulls cross the sky, and nothing else moves but her scarf in the wind.",
        duration=5,
        sound=True,
        **STORED,
    )
    KlingGenerateVideoOperator(
        task_id="portrait",
        prompt="A lighthouse in fog",
        mode="pro",
        aspect_ratio="9:16",
        duration=3,
        **STORED,
    )
    KlingGenerateVideoOperator(
        task_id="market",
        prompt="<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\"> a market",
        duration=3,
        **STORED,
    )
    KlingGenerateVideoOperator(task_id="boat", prompt="A paper boat in the rain", duration=3, poll_interval=1)
    KlingGenerateVideoOperator.partial(task_id="kites", duration=3, **STORED).expand(
        prompt=["A red kite over the dunes", "A blue kite over the sea"]
    )

with DAG("kling_series", schedule=None, params=PARAMS):
    KlingGenerateVideoBatchOperator(
        task_id="scenes",
        requests=[f"Scene number {number} of a journey by train" for number in range(1, 6)],
        duration=3,
        max_in_flight=5,
        fail_on="none",
        **STORED,
    )

with DAG("kling_fetched", schedule=None, params=PARAMS | {"kling_task_id": Param("", type="string")}):
    KlingDownloadVideoOperator(
        task_id="fetch", kling_task_id="{{ params.kling_task_id }}", output_path=FOLDER, poll_interval=1
    )

with DAG("kling_refused", schedule=None, params=PARAMS):
    KlingGenerateVideoOperator(task_id="refused", prompt="A scene that nobody may see", duration=3, **STORED)

with DAG("kling_secret", schedule=None, params=PARAMS):
    KlingGenerateVideoOperator(task_id="vault", prompt="The inside of the vault", duration=3, **STORED)

with DAG("kling_waiting", schedule=None, params=PARAMS | {"prompt": Param("A snail", type="string")}):
    KlingGenerateVideoOperator(
        task_id="slow",
        prompt="{{ params.prompt }}",
        duration=3,
        deferrable=True,
        poll_interval=2,
        output_path=FOLDER,
    )
