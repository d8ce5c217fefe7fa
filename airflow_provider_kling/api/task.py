"""
What comes back from the service about a task.

One reader serves create answers, query answers and callback bodies. It accepts every shape that was seen in
the field, and believes none of it more than it must: links are http or https, times are plausible or absent.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

import pendulum

from airflow_provider_kling.api.errors import TaskFailedError, error_for_failed_task

_MS_FROM = 100_000_000_000
"""Epoch numbers from here on are milliseconds: as seconds they would lie beyond the year 5000."""
_MOST_MONEY = 1_000_000_000
"""An amount beyond this is none."""
_DATE_AND_TIME = re.compile(r"[0-9]{4}-[^/]*")
"""What pendulum may read: without a date it takes today's ("now", "12:30"), and it stumbles over odd intervals."""


class TaskState(StrEnum):
    """The states of a task at the service."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        """Whether the service will not change this state any more."""
        return self in (TaskState.COMPLETED, TaskState.FAILED)


@dataclass(frozen=True, kw_only=True)
class VideoTask:
    """
    A task as the service last told it.

    :param task_id: the service's id.
    :param state: the state; one never heard of counts as :attr:`TaskState.PROCESSING`.
    :param service_state: the state in the service's own word, None where the answer names none.
    :param model: the model as the service names it, such as ``kling-video/kling-video-o1``.
    :param result_urls: links to the results; the service deletes them after 7 days.
    :param created_at: when the service took the task.
    :param completed_at: when the task reached its last state.
    :param fail_code: why it failed, as a code.
    :param fail_message: why it failed, in the service's words.
    :param retryable: the service's own word on whether asking again can help.
    :param duration_seconds: length of the video, seconds, where the service tells it.
    :param generation_seconds: how long the service worked on it, seconds.
    """

    task_id: str
    state: TaskState
    service_state: str | None = None
    model: str | None = None
    result_urls: tuple[str, ...] = ()
    created_at: pendulum.DateTime | None = None
    completed_at: pendulum.DateTime | None = None
    fail_code: str | None = None
    fail_message: str | None = None
    retryable: bool | None = None
    duration_seconds: float | None = None
    generation_seconds: float | None = None

    @property
    def has_known_state(self) -> bool:
        """Whether the service's word for the state is one that this package knows."""
        return self.service_state is None or self.service_state.lower() in tuple(TaskState)

    @property
    def video_url(self) -> str | None:
        """The link to the first result."""
        return self.result_urls[0] if self.result_urls else None

    def failure(self) -> TaskFailedError:
        """Return the error that a failed task stands for."""
        return error_for_failed_task(
            self.task_id,
            fail_code=self.fail_code,
            fail_message=self.fail_message,
            retryable=self.retryable,
        )

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any], *, task_id: str | None = None) -> VideoTask | None:
        """
        Read a task out of an answer's payload (its ``data``, or the answer itself).

        :param task_id: the id that was asked for, used where the answer does not repeat it.
        :return: None where the payload is not about a task: it has no id, or nothing beside it.
        """
        told_id = _text(_first(payload, "taskId", "task_id"))
        found_id = told_id or task_id
        service_state = _text(_first(payload, "state", "status"))
        result_urls = _result_urls(payload)
        if found_id is None or (told_id is None and service_state is None and not result_urls):
            return None
        state = _state(service_state, has_links=bool(result_urls))
        result = _as_mapping(payload.get("resultJson"))
        created_at = _time(_first(payload, "createTime", "create_time"))
        completed_at = _time(_first(payload, "completeTime", "complete_time"))
        cost_time = _number(payload.get("costTime"))
        generation_seconds = cost_time / 1000 if cost_time is not None else None
        if generation_seconds is None and created_at and completed_at and completed_at >= created_at:
            generation_seconds = (completed_at - created_at).total_seconds()
        return cls(
            task_id=found_id,
            state=state,
            service_state=service_state,
            model=_text(payload.get("model")),
            result_urls=result_urls,
            created_at=created_at,
            completed_at=completed_at,
            fail_code=_text(_first(payload, "failCode", "fail_code")),
            fail_message=_text(_first(payload, "failMsg", "fail_msg"))
            or (_error_text(payload) if state is TaskState.FAILED else None),
            retryable=_boolean(payload.get("retryable")),
            duration_seconds=_number(_first(result, "videoDuration", "duration")),
            generation_seconds=generation_seconds,
        )


@dataclass(frozen=True, kw_only=True)
class RecordedCost:
    """
    What the service says a task really cost.

    :param task_id: the service's id.
    :param settled: whether the amount is final.
    :param amount: the cost in ``currency``.
    :param currency: ISO code, ``USD`` unless the service says otherwise.
    """

    task_id: str
    settled: bool
    amount: Decimal
    currency: str = "USD"

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any], *, task_id: str) -> RecordedCost | None:
        """Read the answer of ``GET /records/{taskId}``; None where it has another shape."""
        amount, settled = _amount(payload.get("credits")), _boolean(payload.get("settled"))
        if amount is None or amount < 0 or settled is None:
            return None
        return cls(
            task_id=task_id,
            settled=settled,
            amount=amount,
            currency=_text(payload.get("currency")) or "USD",
        )


@dataclass(frozen=True, kw_only=True)
class Balance:
    """
    The account's money.

    :param available: what can be spent now, in ``currency``.
    :param total: all that the account holds, where the service tells it.
    :param frozen: what is held for tasks that run, where the service tells it.
    :param currency: ISO code, ``USD`` unless the service says otherwise.
    """

    available: Decimal
    total: Decimal | None = None
    frozen: Decimal | None = None
    currency: str = "USD"

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any]) -> Balance | None:
        """Read the answer of ``GET /balance``; None where it has another shape."""
        available = _amount(payload.get("balance"))
        if available is None:
            return None
        return cls(
            available=available,
            total=_amount(payload.get("total")),
            frozen=_amount(payload.get("frozen")),
            currency=_text(payload.get("currency")) or "USD",
        )


def _first(payload: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if payload.get(name) is not None:
            return payload[name]
    return None


def _text(value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    return str(value).strip() or None


def _boolean(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _amount(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        return None
    return amount if amount.is_finite() and -_MOST_MONEY <= amount <= _MOST_MONEY else None


def _time(value: Any) -> pendulum.DateTime | None:
    number = _number(value)
    try:
        if number is not None:
            return (
                pendulum.from_timestamp(number / 1000 if number >= _MS_FROM else number) if number else None
            )
        if isinstance(value, str) and _DATE_AND_TIME.fullmatch(value):
            parsed = pendulum.parse(value)
            return parsed if isinstance(parsed, pendulum.DateTime) else None
    except (ValueError, OverflowError, OSError):
        pass
    return None


def _state(service_state: str | None, *, has_links: bool) -> TaskState:
    if service_state is None:
        return TaskState.COMPLETED if has_links else TaskState.PENDING
    try:
        return TaskState(service_state.lower())
    except ValueError:
        return TaskState.PROCESSING


def _error_text(payload: Mapping[str, Any]) -> str | None:
    error = payload.get("error")
    nested = error.get("message") if isinstance(error, Mapping) else error
    for value in (nested, payload.get("message"), payload.get("msg")):
        text = _text(value)
        if text is not None and text.lower() not in ("success", "ok"):  # these are about the query
            return text
    return None


def _as_mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, Mapping) else {}


def _result_urls(payload: Mapping[str, Any]) -> tuple[str, ...]:
    for source in (payload, _as_mapping(payload.get("resultJson"))):
        for name in ("resultUrls", "videos", "video_url", "url"):
            urls = tuple(dict.fromkeys(_links(source.get(name))))
            if urls:
                return urls
    return ()


def _links(value: Any) -> list[str]:
    links = []
    for item in value if isinstance(value, list) else [value]:
        link = _first(item, "url", "video_url") if isinstance(item, Mapping) else item
        if isinstance(link, str) and _is_link(link):
            links.append(link)
    return links


def _is_link(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and value.isprintable()
    except ValueError:
        return False
