"""Tells Airflow's assets of a video, so that Dags which are scheduled on them start."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import Asset, AssetAlias

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_kling.storage import StoredFile

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
    context: Context, outlets: Sequence[Any], result: Mapping[str, Any], files: Sequence[StoredFile]
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
        if isinstance(outlet, AssetAlias):
            for file in files:
                events[outlet].add(Asset(file.uri), extra=told | file.to_dict())
        else:
            events[outlet].extra = told | {"files": [file.to_dict() for file in files]}


def told_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an asset's event tells of a result."""
    return {name: result[name] for name in _TOLD}


def tell_later(outlets: Sequence[Any]) -> list[dict[str, str]]:
    """
    Return which assets are to be told when the video is there, as plain JSON.

    An asset alias is left out: it becomes stored files, and who does not wait stores none.
    """
    return [{"name": each.name, "uri": each.uri} for each in _outlets(outlets) if isinstance(each, Asset)]


def _outlets(outlets: Sequence[Any]) -> Iterator[Any]:
    return (outlet for outlet in outlets if isinstance(outlet, (Asset, AssetAlias)))
