"""What a task instance finds of its own in XCom: left by its receiver, or by itself before it was deferred."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_provider_kling.output_path import Coordinates

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context


def own_xcom(context: Context, key: str) -> Any:
    """
    Return what was left for this task instance under a key.

    :return: None where there is nothing.
    """
    ti: Any = context["ti"]
    return ti.xcom_pull(task_ids=ti.task_id, key=key, map_indexes=Coordinates.of(context).map_index)
