"""What came of a list of requests: each video's outcome, their sum, the table in the log, and why the task fails."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from airflow_provider_kling import metrics
from airflow_provider_kling.api.errors import KlingError, Paid
from airflow_provider_kling.result import error_text, link_to_keep

if TYPE_CHECKING:
    from airflow_provider_kling.output_path import Coordinates

MOST_IN_XCOM = 100
"""Results that XCom holds. A longer list goes into a document on storage."""
MOST_IN_TABLE = 100
"""Lines of the table in the log; of more, those without a video come first."""
MOST_NAMED = 10
"""Videos that an error names one by one."""
MOST_ERROR_CHARACTERS = 400
"""Of each video's error: one XCom may hold :data:`MOST_IN_XCOM` of them, so it is cut shorter than a card's."""


class FailOn(StrEnum):
    """Which videos that are not there fail the task."""

    ANY = "any"
    ALL = "all"
    NONE = "none"


class Ended(StrEnum):
    """How a video of the list ended, by what it means for the bill."""

    COMPLETED = "completed"
    FAILED = "failed"
    """There is none, and nothing was billed."""
    UNRESOLVED = "unresolved"
    """It may still be completed and billed: it took too long, contact was lost, or its submission is unknown."""
    UNDELIVERED = "undelivered"
    """It was billed, and could not be fetched or stored."""
    NOT_SUBMITTED = "not_submitted"
    """It was not asked for."""


WITHOUT_VIDEO = {Paid.NO: Ended.FAILED, Paid.MAYBE: Ended.UNRESOLVED, Paid.YES: Ended.UNDELIVERED}
"""How a video that is not there ended, by what its error means for the bill."""


class VideosFailedError(KlingError):
    """Videos of a list are not there. What is there was stored, and the task's results tell of all of them."""


def completed(result: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return what is kept of a delivered video.

    :param result: what :func:`~airflow_provider_kling.result.video_result` returned.
    """
    files = result["files"]
    told = {
        "outcome": Ended.COMPLETED.value,
        "task_id": result["task_id"],
        "model": result["model"],
        "path": result["path"],
        "files": [file["path"] for file in files] if len(files) > 1 else None,
        "size_bytes": files[0]["size_bytes"] if files else None,
        "video_url": link_to_keep(result),
        "duration_seconds": result["duration_seconds"],
        "completed_at": result["completed_at"],
        "generation_seconds": result["generation_seconds"],
        "estimated_cost_usd": result["estimated_cost_usd"],
        "recorded_cost_usd": result["recorded_cost_usd"],
    }
    return {name: value for name, value in told.items() if value is not None}


def failed(
    error: KlingError,
    *,
    paid: Paid,
    kling_task_id: str | None = None,
    estimated_cost_usd: float | None = None,
) -> dict[str, Any]:
    """
    Return what is kept of a video that is not there.

    :param error: why it is not there.
    :param paid: what that means for the bill.
    :param kling_task_id: the service's task id, where the error does not name it.
    :param estimated_cost_usd: what it is or may be billed, USD; left out where it is not billed.
    """
    told = {
        "outcome": WITHOUT_VIDEO[paid].value,
        "task_id": error.task_id or kling_task_id,
        "reason": metrics.reason_of(error),
        "error": error_text(error, most_characters=MOST_ERROR_CHARACTERS),
        "estimated_cost_usd": None if paid is Paid.NO else estimated_cost_usd,
        "retryable": error.retryable,
    }
    return {name: value for name, value in told.items() if value is not None}


_RESULT = (
    "outcome",
    "task_id",
    "model",
    "path",
    "files",
    "video_url",
    "duration_seconds",
    "completed_at",
    "generation_seconds",
    "estimated_cost_usd",
    "recorded_cost_usd",
    "reason",
    "error",
)


def video_results(ended: Sequence[Mapping[str, Any] | None]) -> list[dict[str, Any]]:
    """
    Return the outcome of each video in the list's order.

    :param ended: what was kept of each; None where it was not asked for.
    """
    return [
        {"index": index, **{name: (its or {}).get(name) for name in _RESULT}}
        | ({} if its else {"outcome": Ended.NOT_SUBMITTED.value})
        for index, its in enumerate(ended)
    ]


def summary(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how many ended how, and what they cost: ``estimated_cost_usd`` is that of all that is or may be billed."""
    counts = {ended.value: 0 for ended in Ended}
    for result in results:
        counts[result["outcome"]] += 1
    return {
        "total": len(results),
        **counts,
        "estimated_cost_usd": _sum(results, "estimated_cost_usd"),
        "recorded_cost_usd": _sum(results, "recorded_cost_usd"),
    }


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as text for the log; of a long list, those without a video and then the first others."""
    shown = list(results)
    if len(shown) > MOST_IN_TABLE:
        shown.sort(key=lambda result: (result["outcome"] == Ended.COMPLETED, result["index"]))
        shown = sorted(shown[:MOST_IN_TABLE], key=lambda result: int(result["index"]))
    rows = [("#", "outcome", "seconds", "USD", "where")]
    rows += [
        (
            str(result["index"]),
            str(result["outcome"]),
            _number(result["generation_seconds"], "{:.0f}"),
            _number(
                result["recorded_cost_usd"]
                if result["recorded_cost_usd"] is not None
                else result["estimated_cost_usd"],
                "{:.4f}",
            ),
            _where(result),
        )
        for result in shown
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[4]])
        for row in rows
    ]
    if len(shown) < len(results):
        lines.append(f"… and {len(results) - len(shown)} more, all of them completed or like those above")
    return "\n".join(lines)


def failure(
    results: Sequence[Mapping[str, Any]],
    ended: Sequence[Mapping[str, Any] | None],
    *,
    stopped: str | None,
    may_retry: bool,
    is_kept: bool,
    results_at: str,
) -> VideosFailedError:
    """
    Return the error for a list whose task fails.

    :param ended: what was kept of each video.
    :param stopped: why no more of them were asked for, None where all were.
    :param may_retry: whether another attempt can help with what stopped it.
    :param is_kept: whether the next attempt will know what is paid for.
    :param results_at: where the outcome of each is.
    """
    counts = summary(results)
    told = [f"{counts[name]} {name.replace('_', ' ')}" for name in list(Ended)[1:] if counts[name]]
    what = (
        f"Of {counts['total']} videos {counts['completed']} are completed; {', '.join(told) or 'none failed'}"
    )
    named = [result for result in results if result["outcome"] not in (Ended.COMPLETED, Ended.NOT_SUBMITTED)]
    if named:
        shown = ", ".join(f"requests[{its['index']}] ({its['reason']})" for its in named[:MOST_NAMED])
        more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
        what += f": {shown}{more}. The first says: {named[0]['error']}"
    if stopped:
        what = f"{what.rstrip('.')}. No more were asked for: {stopped}"
    paid = any(its["outcome"] not in (Ended.FAILED, Ended.NOT_SUBMITTED) for its in results)
    can_help = may_retry or any(its and its.get("retryable") for its in ended)
    spent = f"Estimated cost of all that is or may be billed: {counts['estimated_cost_usd'] or 0:.2f} USD. "
    spent += f"The outcome of each is in {results_at}."
    if not is_kept and paid:
        can_help = False
        spent += (
            " These submissions are not remembered, so a retry would buy all of them again and is not made. Use "
            "Airflow 3.3 or later, or set [kling] ledger_path or the argument ledger_path."
        )
    elif can_help:
        spent += " A retry takes up what is paid for and asks only for what is not."
    else:
        spent += (
            " A retry cannot help. Correct what is wrong, then clear the task: it takes up what is paid for and asks "
            "only for what is not."
        )
    return VideosFailedError(
        what,
        next_step=spent,
        retryable=can_help,
        paid=Paid.MAYBE if counts[Ended.UNRESOLVED] else Paid.YES if paid else Paid.NO,
    )


def document(
    results: Sequence[Mapping[str, Any]], counts: Mapping[str, Any], coordinates: Coordinates
) -> str:
    """
    Return all results as JSON for people and programs.

    :param coordinates: whose they are.
    """
    told = {**asdict(coordinates), **counts, "results": list(results)}
    return json.dumps(told, indent=2, ensure_ascii=False) + "\n"


def paths_in(ended: Sequence[Mapping[str, Any] | None]) -> Iterator[tuple[int, Mapping[str, Any], str]]:
    """Return each stored file, with its video's place in the list and what was kept of that."""
    for index, its in enumerate(ended):
        if its and its.get("path"):
            for path in its.get("files") or [its["path"]]:
                yield index, its, path


def _sum(results: Sequence[Mapping[str, Any]], name: str) -> float | None:
    known = [result[name] for result in results if result[name] is not None]
    return round(sum(known), 6) if known else None


def _number(value: Any, form: str) -> str:
    return "" if value is None else form.format(value)


def _where(result: Mapping[str, Any]) -> str:
    if result["outcome"] == Ended.COMPLETED:
        return str(result["path"] or (result["video_url"] or "").partition("?")[0] or result["task_id"])
    return " ".join(str(part) for part in (result["task_id"], result["reason"]) if part)
