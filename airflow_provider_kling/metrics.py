"""
What this provider counts, through Airflow's ``Stats``; ``docs/metrics.md`` describes each name and tag.

A metric never stops a video: whatever goes wrong in here is a line in the debug log. Tags have few values each, and
nothing that an author or the service wrote becomes one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from datetime import timedelta
from decimal import ROUND_HALF_UP, Decimal
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, Protocol

from airflow.providers.common.compat.sdk import Stats

from airflow_provider_kling.api.errors import FAIL_CODES, KlingError, TaskFailedError
from airflow_provider_kling.api.pricing import PRICES, Estimate, highest
from airflow_provider_kling.api.request import DEFAULT_MODE
from airflow_provider_kling.budget import CURRENCY

if TYPE_CHECKING:
    from airflow_provider_kling.api.task import RecordedCost, VideoTask

SUBMITTED = "kling.videos.submitted"
COMPLETED = "kling.videos.completed"
FAILED = "kling.videos.failed"
ESTIMATED = "kling.usd_micros.estimated"
RECORDED = "kling.usd_micros.recorded"
GENERATION = "kling.generation_duration"
DETECTION = "kling.detection_duration"
CALLBACKS = "kling.callbacks"

OTHER = "other"
"""The tag's value for what is not one of the few."""
_MODELS = frozenset(model for model, _ in PRICES)
_MODES = frozenset(mode for _, mode in PRICES)
_MICRO = 1_000_000
_OF_CAPITALS = re.compile(r"(?<!^)(?=[A-Z])")

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")


def _never_raising(record: Callable[_P, None]) -> Callable[_P, None]:
    @wraps(record)
    def recorded(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            record(*args, **kwargs)
        except Exception:  # noqa: BLE001 - by then a video is paid for, which a metric must not lose
            _log.debug("A metric could not be recorded.", exc_info=True)

    return recorded


class ModelAndMode(Protocol):
    """What a metric tells of a request: a :class:`~airflow_provider_kling.api.request.VideoRequest` has it."""

    @property
    def model(self) -> str | None:
        """The model that was asked for."""

    @property
    def mode(self) -> str | None:
        """The mode that was asked for; None where it was left to the service."""


@_never_raising
def submitted(asked: ModelAndMode, cost: Estimate) -> None:
    """
    Count a video that the service has just accepted, once for each POST that it took.

    :param asked: what was asked for.
    :param cost: what it is expected to cost, USD. Of a range the upper end counts; an unknown cost counts nothing.
    """
    tags = _tags(asked)
    Stats.incr(SUBMITTED, tags=tags)
    most = highest(cost)
    if most is not None:
        _count_money(ESTIMATED, most, tags)


@_never_raising
def completed(
    task: VideoTask,
    asked: ModelAndMode | None = None,
    recorded: RecordedCost | None = None,
    *,
    noticed_at: float | None = None,
) -> None:
    """
    Count a completed video, what it did cost, and how long its making and its detection took.

    :param task: as the service told it. What it does not tell is not measured.
    :param asked: what was asked for; None where that is not known.
    :param recorded: the service's record. One that is not settled, or not in USD, counts nothing.
    :param noticed_at: when a worker first saw that it is completed, epoch seconds; None to leave that out.
    """
    tags = _tags(asked, task)
    Stats.incr(COMPLETED, tags=tags)
    if recorded is not None and recorded.settled and recorded.currency.upper() == CURRENCY:
        _count_money(RECORDED, recorded.amount, tags)
    if task.generation_seconds is not None:
        Stats.timing(GENERATION, timedelta(seconds=task.generation_seconds), tags=tags)
    if task.completed_at is not None and noticed_at is not None:
        # The service's clock may be ahead of ours.
        seconds = max(0.0, noticed_at - task.completed_at.timestamp())
        Stats.timing(DETECTION, timedelta(seconds=seconds), tags=tags)


@_never_raising
def failed(error: BaseException, asked: ModelAndMode | None = None) -> None:
    """
    Count an attempt that ended without its video.

    :param error: why; it gives the tag ``reason``, see :func:`reason_of`.
    :param asked: what was asked for; None where that is not known.
    """
    reason = reason_of(error)
    tags = {**_tags(asked), "reason": reason}
    Stats.incr(FAILED, tags=tags)
    # Plain StatsD drops the tags, so the reason is in a name too, as Airflow itself does it.
    Stats.incr(f"{FAILED}.{reason}", tags=tags)


@_never_raising
def called_back(outcome: str) -> None:
    """
    Count a callback that reached Airflow's API server.

    :param outcome: what became of it, as one of a few words: ``resumed``, ``noted``, ``recorded``, ``announced``,
        ``needless``, ``check``, ``refused`` or ``later``.
    """
    Stats.incr(CALLBACKS, tags={"outcome": outcome})
    # Plain StatsD drops the tags.
    Stats.incr(f"{CALLBACKS}.{outcome}")


def reason_of(error: BaseException) -> str:
    """
    Return why there is no video, as one of a few words.

    :return: the service's ``failCode`` in small letters where it is a documented one; else the name of our error's
        class (``lost_contact`` for ``LostContactError``); ``other`` for an error that is not ours.
    """
    # What a task raises may be Airflow's own error with ours as its cause.
    for each in (error, error.__cause__):
        if not isinstance(each, KlingError):
            continue
        if isinstance(each, TaskFailedError) and str(each.code).upper() in FAIL_CODES:
            return str(each.code).lower()
        ours = next(kind for kind in type(each).__mro__ if _is_public_and_ours(kind))
        return _OF_CAPITALS.sub("_", ours.__name__.removesuffix("Error")).lower()
    return OTHER


def _is_public_and_ours(kind: type) -> bool:
    return kind.__module__.startswith(f"{__package__}.") and not kind.__name__.startswith("_")


def _tags(asked: ModelAndMode | None, task: VideoTask | None = None) -> dict[str, str]:
    if asked is not None:
        model, mode = asked.model or "", asked.mode or DEFAULT_MODE
    else:
        # The service's own name for it has the vendor in front: kling-video/kling-video-o1.
        model, mode = ((task.model if task else None) or "").rpartition("/")[2], ""
    return {"model": model if model in _MODELS else OTHER, "mode": mode if mode in _MODES else OTHER}


def _count_money(name: str, amount: Decimal, tags: dict[str, str]) -> None:
    # Counters are whole numbers: several collectors cut off what comes after the point.
    micros = int((amount * _MICRO).quantize(Decimal(1), ROUND_HALF_UP))
    if micros > 0:
        Stats.incr(name, micros, tags=tags)
