"""What a Dag gets to know of a video: the JSON that operator and sensor return."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow_provider_kling.api.pricing import CostRange, estimate
from airflow_provider_kling.api.request import DEFAULT_DURATION_SECONDS, DEFAULT_MODE, VideoRequest

if TYPE_CHECKING:
    import pendulum

    from airflow_provider_kling.api.task import VideoTask

_LONGEST_TEXT = 4096
"""Characters from which a text in the request is a file in Base64, too large for XCom."""
_PROMPT_IN_LOG = 120


def video_result(task: VideoTask, request: VideoRequest | None = None) -> dict[str, Any]:
    """
    Return what is known of a task, as plain JSON.

    :param task: as the service told it.
    :param request: what was asked for, where this process asked.
    :return: ``task_id``, ``model``, ``state``, ``video_url``, ``result_urls``, ``duration_seconds``,
        ``created_at`` and ``completed_at`` (ISO 8601), ``generation_seconds``, ``estimated_cost_usd`` and
        ``request``; None for what is not known.
    """
    return {
        "task_id": task.task_id,
        "model": request.model if request else task.model,
        "state": task.state.value,
        "video_url": task.video_url,
        "result_urls": list(task.result_urls),
        "duration_seconds": _duration(task, request),
        "created_at": _iso(task.created_at),
        "completed_at": _iso(task.completed_at),
        "generation_seconds": task.generation_seconds,
        "estimated_cost_usd": _cost(estimate(request)) if request else None,
        "request": _without_files(request.to_body()) if request else None,
    }


def describe_request(request: VideoRequest) -> str:
    """Return what is asked for and what it will cost, in one line for the log."""
    parts = [
        f"model {request.model}",
        f"mode {request.mode or DEFAULT_MODE}",
        "as long as its base video"
        if request.base_video
        else f"{request.duration or DEFAULT_DURATION_SECONDS} s",
        f"sound {request.sound or 'off'}",
    ]
    for count, kind in (
        (len(request.image_list or ()), "image"),
        (len(request.element_list or ()), "element"),
        (len(request.video_list or ()), "reference video"),
        (len(request.multi_prompt or ()), "shot"),
    ):
        if count:
            parts.append(f"{count} {kind}{'s' if count > 1 else ''}")
    prompt = " ".join((request.prompt or (request.multi_prompt or ())[0].prompt).split())
    if len(prompt) > _PROMPT_IN_LOG:
        prompt = prompt[: _PROMPT_IN_LOG - 1] + "…"
    return f"{', '.join(parts)}; {_describe_cost(estimate(request))}. Prompt: {prompt!r}"


def _describe_cost(cost: Decimal | CostRange | None) -> str:
    if cost is None:
        return "cost not known"
    if isinstance(cost, CostRange):
        return f"estimated cost {cost.low:.2f} to {cost.high:.2f} USD"
    return f"estimated cost {cost:.2f} USD"


def _cost(cost: Decimal | CostRange | None) -> float | None:
    # Of a range it is the upper end: whoever adds up estimates should not find the bill to be higher.
    if isinstance(cost, CostRange):
        cost = cost.high
    return None if cost is None else float(cost)


def _duration(task: VideoTask, request: VideoRequest | None) -> float | None:
    if task.duration_seconds is not None:
        return task.duration_seconds
    if request is None or request.base_video is not None:
        return None
    return float(request.duration or DEFAULT_DURATION_SECONDS)


def _iso(time: pendulum.DateTime | None) -> str | None:
    return None if time is None else time.to_iso8601_string()


def _without_files(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_files(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_files(item) for item in value]
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        return f"<{len(value)} characters of Base64>"
    return value
