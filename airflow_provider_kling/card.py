"""
What a task leaves for the page "Kling videos": one XCom that tells all that a card shows. Plain JSON, and small.

It is written when a video is asked for and again when that is over. Nothing that a video hangs on reads it but the
request and its cost, which a task that goes on in another process and the receiver of callbacks take from it.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from airflow_provider_kling import metrics
from airflow_provider_kling.api.errors import KlingError, Paid, TaskFailedError
from airflow_provider_kling.batch_result import WITHOUT_VIDEO, Ended
from airflow_provider_kling.exceptions import going_on
from airflow_provider_kling.result import error_text, link_to_keep, without_secrets

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_kling.result import Asked
    from airflow_provider_kling.waiting import TaskLog

XCOM_VIDEO = "kling_video"
"""XCom key of the card."""
SCHEMA = 1
"""Version of the card's form."""
RESULT_KEPT = timedelta(days=7)
"""How long the service keeps a result, by its own page."""
MOST_ERROR_CHARACTERS = 600
"""Of the error on a card. There is one, so it may be longer than each of those in a list's results."""
MOST_FILES = 20
"""Files of one Kling task that a card names. The service makes one, as far as was seen."""

_OF_A_FILE = (
    "path",
    "size_bytes",
    "sha256",
    "media_type",
    "duration_seconds",
    "width",
    "height",
    "has_sound",
)


class CardState(StrEnum):
    """
    How it stands with a video, or with a list of them, as far as its own task could tell.

    A video that is over has the words of :class:`~airflow_provider_kling.batch_result.Ended`.
    """

    QUEUED = "queued"
    """The service has too much to do; it is asked again."""
    SUBMITTED = "submitted"
    """It is asked for."""
    COMPLETED = Ended.COMPLETED.value
    FAILED = Ended.FAILED.value
    """The same. Of a list: its task failed."""
    UNRESOLVED = Ended.UNRESOLVED.value
    UNDELIVERED = Ended.UNDELIVERED.value
    DRY_RUN = "dry_run"
    """It was checked and not asked for."""


def asked_card(
    asked: Asked | None,
    *,
    kling_task_id: str | None,
    state: CardState,
    submitted_at: float | None = None,
    waits: bool = True,
    keeps_secrets: bool = False,
) -> dict[str, Any]:
    """
    Return the card of a video that is not over.

    :param asked: what was asked for; without it the card does not tell of it.
    :param submitted_at: when the service took it, epoch seconds.
    :param waits: whether the task waits for it.
    :param keeps_secrets: whether signed addresses in the request stay as they are: a task that goes on from its XCom
        needs them.
    """
    told: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "video",
        "state": state.value,
        "task_id": kling_task_id,
        "submitted_at": _iso(submitted_at),
        "waits": waits,
    }
    if asked is not None:
        told |= asked.to_dict()
        told["model"] = asked.model
        if not keeps_secrets:
            told["request"] = without_secrets(asked.request)
    return told


def result_card(
    result: Mapping[str, Any], *, submitted_at: float | None = None, waits: bool = True
) -> dict[str, Any]:
    """
    Return the card of a completed video.

    The service's link is in it only where the video was not stored: whoever has the link has the video.

    :param result: what :func:`~airflow_provider_kling.result.video_result` returned.
    :param submitted_at: when the service took it, epoch seconds; else its own word for that.
    """
    told = {
        "schema": SCHEMA,
        "kind": "video",
        "state": CardState.COMPLETED.value,
        "submitted_at": _iso(submitted_at) or result["created_at"],
        "waits": waits,
        **{
            name: result[name]
            for name in (
                "task_id",
                "model",
                "duration_seconds",
                "estimated_cost_usd",
                "recorded_cost_usd",
                "completed_at",
                "generation_seconds",
            )
        },
        "files": [file_on_card(file) for file in result["files"][:MOST_FILES]],
    }
    if result["request"] is not None:
        told["request"] = result["request"]
    if link := link_to_keep(result):
        told |= {"video_url": link, "expires_at": expires_at(result["completed_at"])}
    return told


def error_card(
    error: BaseException,
    asked: Asked | None = None,
    *,
    kling_task_id: str | None = None,
    submitted_at: float | None = None,
    waits: bool = True,
    is_submitting: bool = False,
) -> dict[str, Any]:
    """
    Return the card of a video that is not there.

    :param error: why the attempt ends.
    :param asked: what was asked for; without it the card does not tell of it.
    :param kling_task_id: the service's task id, where there is one that the error does not name.
    :param submitted_at: when the service took it, epoch seconds.
    :param waits: whether the task waits for it.
    :param is_submitting: whether its request was on its way when this happened.
    """
    told = asked_card(
        asked,
        kling_task_id=getattr(error, "task_id", None) or kling_task_id,
        state=CardState.FAILED,
        submitted_at=submitted_at,
        waits=waits,
    )
    return told | why(error, is_bought=told["task_id"] is not None or is_submitting)


def list_card(
    counts: Mapping[str, Any],
    *,
    state: CardState,
    submitted_at: float | None = None,
    estimated_cost_usd: float | None = None,
    results_path: str | None = None,
    error: BaseException | None = None,
) -> dict[str, Any]:
    """
    Return the card of a list of videos.

    :param counts: how many there are and how many ended how, as :func:`~airflow_provider_kling.batch_result.summary`
        counts them.
    :param submitted_at: when the first of them was taken by the service, epoch seconds.
    :param estimated_cost_usd: of all of them, USD, while that is not known from what became of each.
    :param results_path: the document with all results.
    :param error: why the task fails.
    """
    told = {
        "schema": SCHEMA,
        "kind": "list",
        "state": state.value,
        "submitted_at": _iso(submitted_at),
        **counts,
        "results_path": results_path,
    }
    if estimated_cost_usd is not None:
        told["estimated_cost_usd"] = estimated_cost_usd
    if error is not None:
        told |= why(error, is_bought=False) | {"state": CardState.FAILED.value}
    return told


def why(error: BaseException, *, is_bought: bool) -> dict[str, Any]:
    """
    Return what a card says of an error: ``state``, ``reason`` and ``error``.

    The text of what is no error of this package is left out: nobody knows what is in it. Addresses in the text of one
    that is stand there without what may give access.

    :param is_bought: whether the service has the task that it is about, or may have it.
    """
    if not isinstance(error, KlingError):
        state = CardState.UNRESOLVED if is_bought else CardState.FAILED
        text = f"{type(error).__name__}. The task's log tells more."
        return {"state": state.value, "reason": "other", "error": text}
    paid = error.paid
    if paid is Paid.NO and is_bought and not isinstance(error, TaskFailedError):
        # One that the service has is billed when it is completed, whatever keeps us from it.
        paid = Paid.MAYBE
    return {
        "state": WITHOUT_VIDEO[paid].value,
        "reason": metrics.reason_of(error),
        "error": error_text(error, most_characters=MOST_ERROR_CHARACTERS),
    }


def file_on_card(file: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a card tells of a stored file, from what results tell of it."""
    return {"name": posixpath.basename(file["path"]), **{name: file.get(name) for name in _OF_A_FILE}}


def expires_at(completed_at: str | None) -> str | None:
    """
    Return when the service deletes a result, ISO 8601; None where what is told is no time.

    :param completed_at: when it was completed; None where the service does not say, which counts as just now.
    """
    try:
        completed = datetime.now(UTC) if completed_at is None else datetime.fromisoformat(completed_at)
        return (completed + RESULT_KEPT).isoformat()
    except (TypeError, ValueError, OverflowError):
        return None


def leave_card(context: Context, make: Callable[[], Mapping[str, Any]], *, log: TaskLog) -> None:
    """
    Push a card. Where that fails the task goes on: a video is paid for, and this is not worth losing it.

    :param make: returns the card.
    """
    with going_on(log, f"XCom {XCOM_VIDEO!r} could not be written"):
        context["ti"].xcom_push(key=XCOM_VIDEO, value=dict(make()))


def _iso(time: float | None) -> str | None:
    return None if time is None else datetime.fromtimestamp(time, UTC).isoformat()
