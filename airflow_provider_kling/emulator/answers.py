"""The JSON that the service answers with, in its documented form and in the others that were seen in the field."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from airflow_provider_kling.api.task import TaskState

if TYPE_CHECKING:
    from collections.abc import Collection

    from airflow_provider_kling.emulator.service import Failure, Task

UNKNOWN_STATE = "rendering_v2"
"""A state that the service does not document."""

_LINK_PLACES = ("videos", "video_url", "url", "result_json_string", "result_json_object")


def created(task: Task, now: float) -> dict[str, Any]:
    """Return the ``data`` of the answer to a create."""
    data: dict[str, Any] = {"taskId": task.id, "state": str(TaskState.PENDING), "model": task.model}
    if task.failure is not None and task.state(now) is TaskState.FAILED:
        data["state"] = str(TaskState.FAILED)
        data |= _failure(task.failure)
    return data


def queried(task: Task, now: float, links: list[str]) -> dict[str, Any]:
    """Return the ``data`` of the answer to a query."""
    state = task.state(now)
    data: dict[str, Any] = {"taskId": task.id, "state": str(state), "model": task.model}
    if state is TaskState.COMPLETED and links:
        data["resultUrls"] = links
    if task.failure is not None and state is TaskState.FAILED:
        data |= _failure(task.failure)
    data["createTime"] = _milliseconds(task.created_at)
    if state.is_terminal:
        data["completeTime"] = _milliseconds(task.ends_at)
    return data


def called_back(task: Task, links: list[str]) -> dict[str, Any]:
    """Return the body of a callback."""
    failed = task.failure
    seconds = int(task.film.seconds) if task.film.seconds.is_integer() else task.film.seconds
    result = {"resultUrls": links, "videoDuration": seconds} if failed is None else None
    data = {
        "taskId": task.id,
        "model": task.model,
        "state": str(TaskState.COMPLETED if failed is None else TaskState.FAILED),
        "param": json.dumps(dict(task.body)),
        "resultJson": None if result is None else json.dumps(result),
        "failCode": failed.code if failed else None,
        "failMsg": failed.message if failed else None,
        "costTime": _milliseconds(task.ends_at - task.created_at),
        "completeTime": _milliseconds(task.ends_at),
        "createTime": _milliseconds(task.created_at),
    }
    return {"code": 200, "msg": "success", "data": data}


def success(data: Any, shape: Collection[str] = ()) -> Any:
    """
    Return the body of an answer that is no error.

    :param shape: the ways in which it differs from the documented form.
    """
    for name, other in (("data_is_null", None), ("data_is_list", [data]), ("data_is_text", "ok")):
        if name in shape:
            return {"code": 200, "msg": "success", "data": other}
    if "no_data" in shape:
        return {"code": 200, "msg": "success"}
    if shape and isinstance(data, dict):
        data = _drifted(data, shape)
    if "top_level" in shape:
        return {"code": 200, "msg": "success", **data} if isinstance(data, dict) else data
    return {"code": 200, "msg": "success", "data": data}


def error(code: int | str, message: str, *, at: str = "msg") -> dict[str, Any]:
    """
    Return the body of an error.

    :param at: where its text is: ``msg``, ``message``, ``error`` or ``error.message``.
    """
    if at == "error.message":
        return {"code": code, "error": {"message": message}}
    return {"code": code, at: message}


def _failure(failed: Failure) -> dict[str, Any]:
    told: dict[str, Any] = {"failMsg": failed.message}
    if failed.code is not None:
        told["failCode"] = failed.code
    if failed.retryable is not None:
        told["retryable"] = failed.retryable
    return told


def _drifted(data: dict[str, Any], shape: Collection[str]) -> dict[str, Any]:
    data = dict(data)
    if "task_id" in shape and "taskId" in data:
        data = {"task_id": data.pop("taskId"), **data}
    if "unknown_state" in shape and "state" in data:
        data["state"] = UNKNOWN_STATE
    if "status" in shape and "state" in data:
        data["status"] = data.pop("state")
    places = [place for place in _LINK_PLACES if place in shape]
    links = data.pop("resultUrls", None) if places else None
    if links:
        elsewhere: dict[str, Any] = {
            "videos": {"videos": links},
            "video_url": {"video_url": links[0]},
            "url": {"url": links[0]},
            "result_json_string": {"resultJson": json.dumps({"resultUrls": links})},
            "result_json_object": {"resultJson": {"resultUrls": links}},
        }
        for place in places:
            data |= elsewhere[place]
    return data


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
