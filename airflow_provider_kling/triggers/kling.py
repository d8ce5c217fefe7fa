"""The trigger that waits for a video in the triggerer, without holding a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_kling.config import bearable_failures
from airflow_provider_kling.triggers.ended import state_if_ended
from airflow_provider_kling.triggers.watch import watching
from airflow_provider_kling.waiting import WaitEvent, Waiting


class KlingVideoTrigger(BaseTrigger):
    """
    Wait for a task of the service, and tell by one event how its wait ended.

    It only asks: it never submits and never downloads. What it is made of is stored in the metadata database
    in clear text, so it holds no secret.

    Where a task starts in the triggerer, nobody knows its deadline beforehand. What its scheduler fixes and stores is
    when Airflow itself ends it. The deadline is counted back from there, so that a restarted triggerer gets no new one.

    :param kling_conn_id: id of a connection of type ``kling``.
    :param kling_task_id: the service's task id.
    :param deadline: when to give up, epoch seconds: a restarted triggerer gets no new one.
    :param submitted_at: when the wait began, epoch seconds.
    :param poll_interval: seconds between two queries.
    :param timeout: in place of ``deadline`` and ``submitted_at``, for a task that starts in the triggerer: seconds from
        its start to giving up.
    :param net: with ``timeout``: seconds from giving up to when Airflow ends the task.
    :param unrecorded: handed back in the event: the submission whose id the ledger has not taken.
    :param unknown: arguments of a newer release, tolerated so that a rolling upgrade breaks no waiting task.
    """

    def __init__(
        self,
        *,
        kling_conn_id: str,
        kling_task_id: str,
        deadline: float | None = None,
        submitted_at: float | None = None,
        poll_interval: float,
        timeout: float | None = None,
        net: float = 0.0,
        unrecorded: str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if timeout is None and (deadline is None or submitted_at is None):
            raise TypeError("KlingVideoTrigger needs either deadline and submitted_at, or timeout")
        self.kling_conn_id = kling_conn_id
        self.kling_task_id = kling_task_id
        self.deadline = deadline
        self.submitted_at = submitted_at
        self.poll_interval = poll_interval
        self.timeout = timeout
        self.net = net
        self.unrecorded = unrecorded
        if unknown:
            self.log.debug("Arguments of a newer release are left out: %s.", ", ".join(sorted(unknown)))

    @classmethod
    def of(cls, waiting: Waiting, *, kling_conn_id: str, unrecorded: str | None = None) -> KlingVideoTrigger:
        """Make the trigger that goes on with a wait."""
        return cls(
            kling_conn_id=kling_conn_id,
            kling_task_id=waiting.task_id,
            deadline=waiting.deadline,
            submitted_at=waiting.started,
            poll_interval=waiting.poll_interval,
            unrecorded=unrecorded,
        )

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments to make this trigger again elsewhere."""
        arguments = {
            "kling_conn_id": self.kling_conn_id,
            "kling_task_id": self.kling_task_id,
            "deadline": self.deadline,
            "submitted_at": self.submitted_at,
            "poll_interval": self.poll_interval,
        }
        if self.timeout is not None:
            arguments |= {"timeout": self.timeout, "net": self.net}
        if self.unrecorded is not None:
            arguments["unrecorded"] = self.unrecorded
        return "airflow_provider_kling.triggers.kling.KlingVideoTrigger", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Ask until the wait is over, then yield one event."""
        started, deadline = self._period()
        waiting = Waiting(
            str(self.kling_task_id),
            deadline=deadline,
            poll_interval=self.poll_interval,
            started=started,
            max_failures=bearable_failures(self.log),
        )
        async with watching(self.kling_conn_id) as watch:
            # A worker that deferred has asked just before.
            over = await watch.until_over(waiting, log=self.log, ask_now=self.deadline is None)
        if over.error is not None:
            self.log.warning("The triggerer stops asking; the task goes on from here. %s", over.error)
        yield TriggerEvent(  # type: ignore[no-untyped-call]
            WaitEvent(
                kling_task_id=waiting.task_id,
                outcome=over.outcome,
                deadline=deadline,
                submitted_at=started,
                unrecorded=self.unrecorded,
            ).to_dict()
        )

    def _period(self) -> tuple[float, float]:
        if self.deadline is not None and self.submitted_at is not None:
            return self.submitted_at, self.deadline
        assert self.timeout is not None  # noqa: S101 - one or the other is there
        ended_by_airflow: datetime | None = getattr(self, "timeout_after", None)
        if ended_by_airflow is None:
            started = time.time()
        else:
            if ended_by_airflow.tzinfo is None:
                ended_by_airflow = ended_by_airflow.replace(tzinfo=UTC)
            started = ended_by_airflow.timestamp() - self.net - self.timeout
        return started, started + self.timeout

    async def on_kill(self) -> None:
        """
        Say what becomes of the video where a person ended the deferred task (Airflow 3.3 and later).

        Airflow also calls this where the trigger moves to another triggerer or the task is resumed, so the
        task's state decides, and where that cannot be learnt nothing is said.
        """
        state = await state_if_ended(self.task_instance)
        if state is not None:
            self.log.warning(
                "The Airflow task was ended (%s), but the service has no cancel: Kling task %s goes on and will be "
                "billed when it is completed.",
                state,
                self.kling_task_id,
            )


class KlingPauseTrigger(BaseTrigger):
    """
    Let a task pause that was told to come again, without holding a worker. It asks nobody.

    :param until: when to go on, epoch seconds.
    :param deadline: handed back in the event: until when the video is waited for, epoch seconds.
    :param attempt_ends_at: handed back in the event: when the attempt has to end, epoch seconds; None for never.
    :param uploads: handed back in the event: what was uploaded before the pause.
    :param unknown: arguments of a newer release, tolerated so that a rolling upgrade breaks no waiting task.
    """

    def __init__(
        self,
        *,
        until: float,
        deadline: float,
        attempt_ends_at: float | None = None,
        uploads: Mapping[str, Any] | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.until = until
        self.deadline = deadline
        self.attempt_ends_at = attempt_ends_at
        self.uploads = uploads
        if unknown:
            self.log.debug("Arguments of a newer release are left out: %s.", ", ".join(sorted(unknown)))

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments to make this trigger again elsewhere."""
        return (
            "airflow_provider_kling.triggers.kling.KlingPauseTrigger",
            {"until": self.until, **self._handed_back()},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Sleep until it is time, then yield one event."""
        await asyncio.sleep(max(0.0, self.until - time.time()))
        yield TriggerEvent(self._handed_back())  # type: ignore[no-untyped-call]

    def _handed_back(self) -> dict[str, Any]:
        kept: dict[str, Any] = {"deadline": self.deadline, "attempt_ends_at": self.attempt_ends_at}
        if self.uploads:
            kept["uploads"] = self.uploads
        return kept
