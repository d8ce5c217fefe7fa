"""Reads the arguments of operators and sensors, and tells what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Any, TypeVar

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_kling.airflow_versions import AIRFLOW_V_3_1_PLUS, AIRFLOW_VERSION
from airflow_provider_kling.output_path import OutputPath, check_ledger_path

_Choice = TypeVar("_Choice", bound=StrEnum)


def comes_later(value: Any) -> bool:
    """Whether a value is known only when the task runs: a template, an XCom argument, or something that holds one."""
    if isinstance(value, str):
        return "{{" in value or "{%" in value
    if isinstance(value, Mapping):
        return any(comes_later(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(comes_later(item) for item in value)
    return hasattr(value, "iter_references")


def is_made_from_mapped(operator: Any) -> bool:
    """Whether Airflow makes this operator for one index of a mapped task, right before that runs."""
    return bool(getattr(operator, "_BaseOperator__from_mapped", False))


def text_of(path: Any) -> Any:
    """Return a path as text; text, None and what is known only when the task runs as it is."""
    return path if path is None or isinstance(path, str) or comes_later(path) else str(path)


def seconds_above_zero(name: str, value: float | timedelta) -> float:
    """
    Read an interval or a limit.

    :raises ValueError: where it is not a number of seconds or a timedelta above zero.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
        raise ValueError(f"{name} must be a number of seconds above 0, or a timedelta; got {value!r}")
    return float(seconds)


def one_of(name: str, value: str, choices: type[_Choice]) -> _Choice:
    """
    Read a choice.

    :raises ValueError: where it is none of those that there are.
    """
    try:
        return choices(value)
    except ValueError:
        allowed = " or ".join(repr(choice.value) for choice in choices)
        raise ValueError(f"{name} must be {allowed}; got {value!r}") from None


def task_id_in(value: Any) -> str:
    """
    Read a task id of the service out of a template field.

    :raises AirflowFailException: where it is none.
    """
    if not isinstance(value, str) or value.strip() in ("", "None"):
        raise AirflowFailException(
            f"kling_task_id is {value!r}, not a task id of the service. Does the task that submits push one?"
        )
    return value.strip()


def read_output_path(template: Any, conn_id: str | None) -> OutputPath:
    """
    Read where files go, when templates are rendered; one may have rendered to nothing.

    :raises ValueError: where they cannot go there.
    """
    return OutputPath(text_of(template) or "", conn_id)


def output_or_fault(template: Any, conn_id: str | None) -> OutputPath | ValueError:
    """Read where files go, or what is wrong with that place: a video may be paid for by then, and comes first."""
    try:
        return read_output_path(template, conn_id)
    except ValueError as error:
        return error


def ledger_at(path: Any) -> str:
    """
    Read where the ledger is, when the task runs.

    :raises AirflowFailException: where it cannot be there.
    """
    text = str(path)
    try:
        check_ledger_path(text)
    except ValueError as error:
        raise AirflowFailException(f"{error} Nothing more is sent.") from error
    return text


def check_callback(*, callback_url: Any, waits_on_worker: bool, instead: str = "") -> None:
    """
    See whether a task can be called back.

    :param callback_url: the author's own, None where there is none.
    :param waits_on_worker: whether the task would hold its worker, where nobody can resume it.
    :param instead: what else than ``deferrable=True`` would do.
    :raises ValueError: where it cannot.
    """
    if not AIRFLOW_V_3_1_PLUS:
        raise ValueError(
            f"callback=True needs Airflow 3.1 or later, and this is {AIRFLOW_VERSION}. Leave it out: the task asks "
            "the service every poll_interval seconds instead."
        )
    if callback_url is not None:
        raise ValueError(
            "Give callback=True or a callback_url of your own, not both: the service calls one address."
        )
    if waits_on_worker:
        raise ValueError(
            "callback=True resumes a task that is deferred, and this one would wait on its worker. Set "
            f"deferrable=True{instead}."
        )
