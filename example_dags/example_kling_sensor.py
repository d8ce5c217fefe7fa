"""Submit in one task, wait in another: the second could as well be in another Dag or wait for a task made by hand."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator
from airflow_provider_kling.sensors.kling import KlingVideoSensor

with DAG(
    dag_id="example_kling_sensor",
    schedule=None,
    catchup=False,
    tags=["kling", "example"],
    doc_md=__doc__,
) as dag:
    submit = KlingGenerateVideoOperator(
        task_id="submit",
        prompt="A paper boat on a rain puddle, macro",
        wait_for_completion=False,
    )

    KlingVideoSensor(
        task_id="wait",
        kling_task_id=submit.output["task_id"],
        deferrable=True,
        timeout=60 * 60,
    )
