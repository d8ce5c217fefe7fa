"""
When to ask for a task again and when to stop asking: pure decisions, no I/O.

The operator, the sensor and the trigger feed what they learnt into :class:`Waiting` and do what it says, so that
they cannot behave differently.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any, Protocol

import pendulum

from airflow_provider_kling.api.errors import (
    KlingError,
    LostContactError,
    NoResultError,
    RateLimitedError,
    TaskTimeoutError,
)
from airflow_provider_kling.api.task import TaskState, VideoTask

DEFAULT_POLL_INTERVAL = 10.0
"""Seconds between two queries. For this service no schedule is more than 8% better than a fixed interval."""
DEFAULT_TIMEOUT = 3600.0
"""Seconds from the submission to giving up. One video in ten takes more than 8 minutes."""
MAX_FAILURES = 5
"""Failed queries in a row after which contact counts as lost."""
MAX_ASKS_FOR_LINK = 12
"""Queries that may find a task completed but without a link, which the service is still writing."""
JITTER = 0.1
"""Share of the interval by which each wait is longer or shorter, so that tasks started together spread out."""
DEFER_NET = timedelta(minutes=10)
"""How long after the deadline the net behind a deferral lies."""
NOTE_INTERVAL = 60.0
"""Seconds between two log lines about a task whose state does not change."""
EXECUTION_TIMEOUT_MARGIN = 10.0
"""Seconds, at most a tenth of ``execution_timeout``, by which a wait ends before Airflow would end it."""


Uploads = Mapping[str, tuple[str, float]]
"""By a file's SHA-256: the address under which the service has it, and since when, epoch seconds."""


class Outcome(StrEnum):
    """How a wait ends. These are the reason codes in the trigger's event."""

    COMPLETED = "completed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    LOST_CONTACT = "lost_contact"
    REFUSED = "refused"
    NO_RESULT = "no_result"


def end_of_attempt(execution_timeout: timedelta | None, *, now: float) -> float:
    """
    Return when an attempt stops waiting by itself, epoch seconds; infinity where nothing limits it.

    :param execution_timeout: Airflow's limit for the attempt.
    :param now: when the attempt begins, epoch seconds.
    """
    if not execution_timeout:
        return math.inf
    # Airflow's own clock started earlier, and what it does at the end tells nobody of the video.
    seconds = execution_timeout.total_seconds()
    return now + seconds - min(EXECUTION_TIMEOUT_MARGIN, seconds / 10)


@dataclass(frozen=True)
class Note:
    """Something worth a line in the task's log."""

    text: str
    level: int = logging.INFO


@dataclass(frozen=True)
class AskAgain:
    """
    The wait goes on.

    :param at: when to ask next, epoch seconds.
    :param note: what to log, None for nothing.
    """

    at: float
    note: Note | None = None


@dataclass(frozen=True)
class Over:
    """
    The wait is over.

    :param outcome: how it ended.
    :param task: the task as last seen.
    :param error: what to raise; None exactly where the outcome is :attr:`Outcome.COMPLETED`.
    """

    outcome: Outcome
    task: VideoTask | None = None
    error: KlingError | None = None


class PollPolicy:
    """
    When to ask the service again, and how much trouble with that to bear. It is the same for all that is waited for.

    :param what: what is asked for, as the beginning of a sentence.
    :param deadline: when to give up, epoch seconds.
    :param poll_interval: seconds between two questions.
    :param max_failures: failed questions in a row after which contact counts as lost.
    :param failures: failed questions in a row so far.
    """

    __slots__ = ("_failures", "_max_failures", "_noted_trouble_at", "_what", "deadline", "poll_interval")

    def __init__(
        self, what: str, *, deadline: float, poll_interval: float, max_failures: int, failures: int
    ) -> None:
        self.deadline = deadline
        self.poll_interval = poll_interval
        self._what = what
        self._max_failures = max_failures
        self._failures = failures
        self._noted_trouble_at = -math.inf

    def net(self, now: float) -> timedelta:
        """Return the time from now after which Airflow itself ends a deferred task whose trigger never fires."""
        return timedelta(seconds=max(0.0, self.deadline - now)) + DEFER_NET

    def begin(self, now: float, *, since: float | None = None) -> AskAgain:
        """
        Decide when to ask first: one interval from now, or at the deadline where that is earlier.

        :param since: when the intervals began, epoch seconds, where that was before now: the next of them counts.
        """
        if since is None or since >= now:
            return self._ask_again(now)
        interval = self._interval()
        return AskAgain(max(now, min(now + interval - (now - since) % interval, self.deadline)))

    def _bear(self, error: KlingError, now: float) -> AskAgain | None:
        """
        Decide when to ask again after a failed question; None where too many in a row have failed.

        A service that asks for patience (429) is not out of contact, so that does not count as a failure.
        """
        if not isinstance(error, RateLimitedError):
            self._failures += 1
        if self._failures >= self._max_failures:
            return None
        again = self._ask_again(now, at_least=error.retry_after or 0)
        if now - self._noted_trouble_at < NOTE_INTERVAL:
            return again
        self._noted_trouble_at = now
        text = f"{self._what} could not be asked for: {error} Asking again in {again.at - now:.0f} s."
        return replace(again, note=Note(text, logging.WARNING))

    def _ask_again(self, now: float, *, at_least: float = 0) -> AskAgain:
        at = now + max(self._interval(), at_least)
        # The last query is at the deadline itself, so that a video completed just before it is not given up.
        return AskAgain(max(now, min(at, self.deadline)))

    def _interval(self) -> float:
        return self.poll_interval * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311


class Waiting(PollPolicy):
    """
    Decides what follows from each answer about one task.

    :param task_id: the service's task id.
    :param deadline: when to give up, epoch seconds.
    :param poll_interval: seconds between two queries.
    :param started: when the wait began, epoch seconds; times in the log count from here.
    :param max_failures: failed queries in a row after which contact counts as lost.
    :param failures: failed queries in a row so far.
    :param asks_for_link: queries so far that found the task completed but without a link.
    """

    __slots__ = (
        "_asks_for_link",
        "_noted_at",
        "_noted_state",
        "_warned_of_state",
        "started",
        "task_id",
    )

    def __init__(
        self,
        task_id: str,
        *,
        deadline: float,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
        started: float,
        max_failures: int = MAX_FAILURES,
        failures: int = 0,
        asks_for_link: int = 0,
    ) -> None:
        super().__init__(
            f"Task {task_id}",
            deadline=deadline,
            poll_interval=poll_interval,
            max_failures=max_failures,
            failures=failures,
        )
        self.task_id = task_id
        self.started = started
        self._asks_for_link = asks_for_link
        self._warned_of_state = False
        self._noted_state: str | None = None
        self._noted_at = started

    @classmethod
    def resumed(cls, event: WaitEvent, *, poll_interval: float, max_failures: int = MAX_FAILURES) -> Waiting:
        """
        Take up the wait that a trigger ended. What made it give up needs to happen only once more.

        :param poll_interval: seconds between two queries.
        :param max_failures: failed queries in a row after which contact counts as lost.
        """
        return cls(
            event.kling_task_id,
            deadline=event.deadline,
            poll_interval=poll_interval,
            started=event.submitted_at,
            max_failures=max_failures,
            failures=max_failures - 1 if event.outcome is Outcome.LOST_CONTACT else 0,
            asks_for_link=MAX_ASKS_FOR_LINK - 1 if event.outcome is Outcome.NO_RESULT else 0,
        )

    def on_task(self, task: VideoTask, now: float) -> AskAgain | Over:
        """Decide what follows from an answer."""
        self._failures = 0
        if task.state is TaskState.FAILED:
            return Over(Outcome.FAILED, task, task.failure())
        if task.state is TaskState.COMPLETED:
            return self._on_completed(task, now)
        if now >= self.deadline:
            return self._timed_out(task)
        return replace(self._ask_again(now), note=self._note_of_progress(task, now))

    def on_error(self, error: KlingError, now: float) -> AskAgain | Over:
        """Decide what follows from a failed query: it is not a failed video."""
        if not error.retryable:
            return Over(Outcome.REFUSED, error=error)
        error.take_back_that_nothing_was_sent()
        if now >= self.deadline:
            return self._timed_out(None, last_error=error)
        return self._bear(error, now) or Over(
            Outcome.LOST_CONTACT,
            error=LostContactError(
                f"{self._what}: {self._failures} queries in a row failed, the last with: {error}",
                task_id=self.task_id,
            ),
        )

    def _on_completed(self, task: VideoTask, now: float) -> AskAgain | Over:
        if task.result_urls:
            return Over(Outcome.COMPLETED, task)
        self._asks_for_link += 1
        if self._asks_for_link >= MAX_ASKS_FOR_LINK:
            return Over(
                Outcome.NO_RESULT,
                task,
                NoResultError(
                    f"Task {self.task_id} is completed, but {self._asks_for_link} answers held no link",
                    task_id=self.task_id,
                ),
            )
        # The deadline is for the video, and that is made. A long interval would only outlast the net behind a deferral.
        return AskAgain(
            now + min(self._interval(), DEFAULT_POLL_INTERVAL),
            Note(f"Task {self.task_id} is completed; its link is not there yet.")
            if self._asks_for_link == 1
            else None,
        )

    def _timed_out(self, task: VideoTask | None, last_error: KlingError | None = None) -> Over:
        until = pendulum.from_timestamp(self.deadline).to_iso8601_string()
        what = f"Task {self.task_id} was not over at its deadline, {until}"
        if task is not None:
            what += f"; its state is {task.service_state or task.state}"
        if last_error is not None:
            what += f"; the last query failed: {last_error.what}"
        return Over(Outcome.TIMED_OUT, task, TaskTimeoutError(what, task_id=self.task_id))

    def _note_of_progress(self, task: VideoTask, now: float) -> Note | None:
        state = task.service_state or task.state.value
        elapsed = pendulum.duration(seconds=max(1, int(now - self.started))).in_words()
        if not task.has_known_state and not self._warned_of_state:
            self._warned_of_state = True
            note = Note(
                f"Task {self.task_id} is in state {state!r}, which this package does not know; it counts as running.",
                logging.WARNING,
            )
        elif state != self._noted_state:
            note = Note(f"Task {self.task_id} is {state} ({elapsed} so far).")
        elif now - max(self._noted_at, self._noted_trouble_at) >= NOTE_INTERVAL:
            note = Note(f"Task {self.task_id} is still {state} ({elapsed} so far).")
        else:
            return None
        self._noted_state, self._noted_at = state, now
        return note


@dataclass(frozen=True, kw_only=True)
class WaitEvent:
    """
    What the trigger tells the task that waits: which task is over, and how, as a reason code.

    It is a hint. Whoever receives it asks the service again.

    :param unrecorded: where the ledger had not taken the task's id before the wait: the submission that it belongs to.
    """

    kling_task_id: str
    outcome: Outcome
    deadline: float
    submitted_at: float
    unrecorded: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the event's payload: plain JSON."""
        told = {
            "kling_task_id": self.kling_task_id,
            "outcome": self.outcome.value,
            "deadline": self.deadline,
            "submitted_at": self.submitted_at,
        }
        return told if self.unrecorded is None else {**told, "unrecorded": self.unrecorded}

    @classmethod
    def from_dict(cls, payload: Any) -> WaitEvent:
        """
        Read an event's payload.

        :raises ValueError: where it names no task or no known outcome: a missing event is not a success.
        """
        try:
            task_id, outcome = payload["kling_task_id"], Outcome(payload["outcome"])
            deadline, submitted_at = float(payload["deadline"]), float(payload["submitted_at"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not an event of KlingVideoTrigger: {str(payload)[:200]}") from error
        if not isinstance(task_id, str) or not task_id:
            raise ValueError(f"not an event of KlingVideoTrigger: {str(payload)[:200]}")
        unrecorded = payload.get("unrecorded")
        return cls(
            kling_task_id=task_id,
            outcome=outcome,
            deadline=deadline,
            submitted_at=submitted_at,
            unrecorded=None if unrecorded is None else str(unrecorded),
        )


@dataclass(frozen=True, kw_only=True)
class PauseEvent:
    """
    What a task that pauses for a busy service tells itself.

    :param deadline: until when the video is waited for, epoch seconds.
    :param attempt_ends_at: when Airflow's ``execution_timeout`` for this attempt is over, epoch seconds.
    :param uploads: by the file's SHA-256, the address under which the service has it, and since when, epoch seconds.
    """

    deadline: float
    attempt_ends_at: float = math.inf
    uploads: Uploads = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the event's payload: plain JSON, which knows no infinity."""
        ends_at = None if math.isinf(self.attempt_ends_at) else self.attempt_ends_at
        payload: dict[str, Any] = {"deadline": self.deadline, "attempt_ends_at": ends_at}
        if self.uploads:
            payload["uploads"] = {digest: list(upload) for digest, upload in self.uploads.items()}
        return payload

    @classmethod
    def from_dict(cls, payload: Any) -> PauseEvent:
        """
        Read an event's payload.

        :raises ValueError: where it is none.
        """
        try:
            ends_at = payload["attempt_ends_at"]
            return cls(
                deadline=float(payload["deadline"]),
                attempt_ends_at=math.inf if ends_at is None else float(ends_at),
                uploads=_uploads_in(payload.get("uploads")),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not an event of KlingPauseTrigger: {str(payload)[:200]}") from error


def _uploads_in(told: Any) -> Uploads:
    """Read what was uploaded; where that cannot be, nothing is lost but the time to do it once more."""
    if not isinstance(told, Mapping):
        return {}
    return {
        digest: (upload[0], float(upload[1]))
        for digest, upload in told.items()
        if isinstance(upload, (list, tuple))
        and len(upload) == 2
        and isinstance(upload[0], str)
        and isinstance(upload[1], (int, float))
    }


class TaskLog(Protocol):
    """What both the standard library's loggers and Airflow's can do."""

    def log(self, level: int, msg: str, /, *args: Any) -> Any:
        """Write a line."""


def note_to(log: TaskLog, decision: object) -> None:
    """Write the note of a decision to go on, if it has one."""
    if isinstance(decision, AskAgain) and decision.note is not None:
        log.log(decision.note.level, "%s", decision.note.text)
