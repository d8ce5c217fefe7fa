"""Tells Airflow's assets of a video, so that Dags which are scheduled on them start."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowSkipException, Asset, AssetAlias

from airflow_provider_kling.exceptions import going_on

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_kling.storage import StoredFile
    from airflow_provider_kling.waiting import TaskLog

_TOLD = (
    "task_id",
    "model",
    "path",
    "duration_seconds",
    "generation_seconds",
    "estimated_cost_usd",
    "recorded_cost_usd",
    "request",
)
"""Of a result. The service's links are no part of it: whoever has one has the video."""


def tell_outlets(
    context: Context,
    outlets: Sequence[Any],
    result: Mapping[str, Any],
    files: Sequence[StoredFile],
    *,
    log: TaskLog,
) -> None:
    """
    Give the events of a task's outlets what they tell of its video.

    An asset's event gets an extra; an asset alias becomes each stored file, as an asset of its own.

    :param result: what the task returns.
    :param files: where the video was stored.
    """
    events: Any = context.get("outlet_events")
    if events is None:
        return
    told = told_of(result)
    for outlet in _outlets(outlets):
        with going_on(log, f"The event of {outlet!r} could not be given its extra"):
            if isinstance(outlet, AssetAlias):
                for file in files:
                    events[outlet].add(Asset(file.uri), extra=told | file.to_dict())
            else:
                events[outlet].extra = told | {"files": [file.to_dict() for file in files]}


def tell_outlets_of_many(
    context: Context,
    outlets: Sequence[Any],
    told: Mapping[str, Any],
    files: Collection[tuple[str, Mapping[str, Any]]],
    *,
    log: TaskLog,
) -> None:
    """
    Give the events of a task's outlets what they tell of its many videos.

    An asset's event gets the sum of them; an asset alias becomes each stored file, as an asset of its own.

    :param told: the sum.
    :param files: of each stored file its URI, and what its event tells.
    """
    events: Any = context.get("outlet_events")
    if events is None:
        return
    for outlet in _outlets(outlets):
        with going_on(log, f"The event of {outlet!r} could not be given its extra"):
            if isinstance(outlet, AssetAlias):
                for uri, extra in files:
                    events[outlet].add(Asset(uri), extra=dict(extra))
            else:
                events[outlet].extra = dict(told)


def after_rehearsal(context: Context, outlets: Sequence[Any], result: dict[str, Any]) -> dict[str, Any]:
    """
    Return what a dry run tells, and leave the task's outlets as they are.

    :param result: what goes to XCom.
    :raises AirflowSkipException: where there are outlets: Airflow updates those of each task that succeeds, and there
        is nothing new.
    """
    if not outlets:
        return result
    context["ti"].xcom_push(key="return_value", value=result)
    raise AirflowSkipException("This was a dry run, so the outlets are not updated")


def told_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an asset's event tells of a result."""
    return {name: result[name] for name in _TOLD}


def tell_later(outlets: Sequence[Any]) -> list[dict[str, str]]:
    """
    Return which assets are to be told when the video is there, as plain JSON.

    Outlets that are for lineage alone are left out; see :func:`not_told_later` for the others.
    """
    return [{"name": each.name, "uri": each.uri} for each in _outlets(outlets) if isinstance(each, Asset)]


def not_told_later(outlets: Sequence[Any]) -> list[Any]:
    """
    Return which outlets no callback can tell, though Airflow would at the end of a task.

    An asset alias becomes stored files, and who does not wait stores none. A reference is looked up by Airflow when it
    ends a task. Outlets that are for lineage alone are told of nothing anyway.
    """
    if not outlets:
        return []
    # Imported here: Airflow before 3.0 has none, and no callbacks either.
    from airflow.sdk.definitions.asset import BaseAsset

    return [each for each in outlets if isinstance(each, BaseAsset) and not isinstance(each, Asset)]


def _outlets(outlets: Sequence[Any]) -> Iterator[Any]:
    return (outlet for outlet in outlets if isinstance(outlet, (Asset, AssetAlias)))
