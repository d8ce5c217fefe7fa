"""The trigger that waits for many videos of one task in the triggerer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_kling.config import bearable_failures
from airflow_provider_kling.triggers.ended import state_if_ended
from airflow_provider_kling.triggers.watch import watching
from airflow_provider_kling.waiting import NOTE_INTERVAL, Outcome, Over, Waiting


class KlingVideosTrigger(BaseTrigger):
    """
    Wait until enough of many videos are over, and tell by one event which.

    It only asks: it never submits and never downloads. What it is made of is stored in the metadata database
    in clear text, so it holds no secret.

    :param kling_conn_id: id of a connection of type ``kling``.
    :param videos: of each its Kling task id, its deadline and when it was submitted, both epoch seconds.
    :param poll_interval: seconds between two queries about one video.
    :param enough: how many have to be over.
    :param wake_at: when to fire even if fewer are over, epoch seconds; None for never.
    :param state: handed back in the event: what the task tells itself.
    :param submissions: of each video what the service's callback calls its submission; None where there will be no
        callback. The receiver of callbacks resumes the task once it knows of enough videos, with the event that this
        trigger would send. This trigger learns nothing of that: it asks, if rarely.
    :param callback_poll_interval: seconds between two queries about a video that will be called back.
    :param unknown: arguments of a newer release, tolerated so that a rolling upgrade breaks no waiting task.
    """

    def __init__(
        self,
        *,
        kling_conn_id: str,
        videos: Sequence[Sequence[Any]],
        poll_interval: float,
        enough: int,
        wake_at: float | None = None,
        state: Mapping[str, Any] | None = None,
        submissions: Sequence[str | None] = (),
        callback_poll_interval: float | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kling_conn_id = kling_conn_id
        self.videos = [list(video) for video in videos]
        self.poll_interval = poll_interval
        self.enough = enough
        self.wake_at = wake_at
        self.state = dict(state or {})
        self.submissions = list(submissions)
        self.callback_poll_interval = callback_poll_interval
        self._noted_at = time.time()
        if unknown:
            self.log.debug("Arguments of a newer release are left out: %s.", ", ".join(sorted(unknown)))

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments to make this trigger again elsewhere."""
        arguments = {
            "kling_conn_id": self.kling_conn_id,
            "videos": self.videos,
            "poll_interval": self.poll_interval,
            "enough": self.enough,
            "wake_at": self.wake_at,
            "state": self.state,
        }
        if self.submissions:
            arguments["submissions"] = self.submissions
            arguments["callback_poll_interval"] = self.callback_poll_interval
        return "airflow_provider_kling.triggers.batch.KlingVideosTrigger", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Ask until enough are over, then yield one event."""
        over = await self._wait()
        self.log.info("%d of %d videos are over; the task goes on.", len(over), len(self.videos))
        payload = {"over": {kling_task_id: outcome.value for kling_task_id, outcome in over.items()}}
        yield TriggerEvent(payload | {"state": self.state})  # type: ignore[no-untyped-call]

    async def on_kill(self) -> None:
        """Say what becomes of the videos where a person ended the deferred task (Airflow 3.3 and later)."""
        state = await state_if_ended(self.task_instance)
        if state is not None:
            self.log.warning(
                "The Airflow task was ended (%s), but the service has no cancel: these Kling tasks go on and will be "
                "billed when they are completed: %s.",
                state,
                ", ".join(str(kling_task_id) for kling_task_id, *_ in self.videos),
            )

    async def _wait(self) -> dict[str, Outcome]:
        over: dict[str, Outcome] = {}
        if not self.videos:
            await asyncio.sleep(max(0.0, (self.wake_at or 0) - time.time()))
            return over
        async with watching(self.kling_conn_id) as watch:
            failures = bearable_failures(self.log)
            waits: dict[asyncio.Task[Over], str] = {}
            try:
                for number, (kling_task_id, deadline, submitted_at) in enumerate(self.videos):
                    rarely = self._callback_interval(number)
                    waiting = Waiting(
                        kling_task_id,
                        deadline=deadline,
                        poll_interval=rarely or self.poll_interval,
                        started=submitted_at,
                        max_failures=failures,
                    )
                    # A list goes through many waits, each of which may be shorter than this interval.
                    since = None if rarely is None else submitted_at
                    log = _WarningsOnly(self.log)
                    task = asyncio.create_task(watch.until_over(waiting, log=log, since=since))
                    waits[task] = kling_task_id
                while len(over) < min(self.enough, len(self.videos)):
                    done, _ = await asyncio.wait(
                        [task for task, kling_task_id in waits.items() if kling_task_id not in over],
                        timeout=self._patience(),
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    for task in done:
                        over[waits[task]] = _outcome(task)
                    self._note(len(over))
                    if not done and self.wake_at is not None and time.time() >= self.wake_at:
                        break
            finally:
                for task in waits:
                    task.cancel()
                await asyncio.gather(*waits, return_exceptions=True)
        return over

    def _callback_interval(self, number: int) -> float | None:
        is_called_back = number < len(self.submissions) and self.submissions[number] is not None
        return self.callback_poll_interval if is_called_back else None

    def _patience(self) -> float:
        until_note = max(0.0, self._noted_at + NOTE_INTERVAL - time.time())
        return until_note if self.wake_at is None else min(until_note, max(0.0, self.wake_at - time.time()))

    def _note(self, over: int) -> None:
        if time.time() >= self._noted_at + NOTE_INTERVAL:
            self._noted_at = time.time()
            self.log.info("%d of %d videos are over; waiting for %d.", over, len(self.videos), self.enough)


def _outcome(task: asyncio.Task[Over]) -> Outcome:
    # A trigger that raises fails its task, but not the videos.
    return Outcome.LOST_CONTACT if task.exception() else task.result().outcome


class _WarningsOnly:
    """Of many videos, only what is wrong is worth a line each."""

    def __init__(self, log: Any) -> None:
        self._log = log

    def log(self, level: int, msg: str, /, *args: Any) -> None:
        if level >= logging.WARNING:
            self._log.log(level, msg, *args)
