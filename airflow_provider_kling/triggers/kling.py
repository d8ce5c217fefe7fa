"""The trigger that waits for a video in the triggerer, without holding a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_kling.api.errors import KlingError
from airflow_provider_kling.config import max_failed_queries
from airflow_provider_kling.waiting import AskAgain, Over, WaitEvent, Waiting, note_to


class KlingVideoTrigger(BaseTrigger):
    """
    Wait for a task of the service, and tell by one event how its wait ended.

    It only asks: it never submits and never downloads. What it is made of is stored in the metadata database
    in clear text, so it holds no secret.

    :param kling_conn_id: id of a connection of type ``kling``.
    :param kling_task_id: the service's task id.
    :param deadline: when to give up, epoch seconds: a restarted triggerer gets no new one.
    :param submitted_at: when the wait began, epoch seconds.
    :param poll_interval: seconds between two queries.
    :param unknown: arguments of a newer release, tolerated so that a rolling upgrade breaks no waiting task.
    """

    def __init__(
        self,
        *,
        kling_conn_id: str,
        kling_task_id: str,
        deadline: float,
        submitted_at: float,
        poll_interval: float,
        **unknown: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kling_conn_id = kling_conn_id
        self.kling_task_id = kling_task_id
        self.deadline = deadline
        self.submitted_at = submitted_at
        self.poll_interval = poll_interval
        if unknown:
            self.log.debug("Arguments of a newer release are left out: %s.", ", ".join(sorted(unknown)))

    @classmethod
    def of(cls, waiting: Waiting, *, kling_conn_id: str) -> KlingVideoTrigger:
        """Make the trigger that goes on with a wait."""
        return cls(
            kling_conn_id=kling_conn_id,
            kling_task_id=waiting.task_id,
            deadline=waiting.deadline,
            submitted_at=waiting.started,
            poll_interval=waiting.poll_interval,
        )

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments to make this trigger again elsewhere."""
        return (
            "airflow_provider_kling.triggers.kling.KlingVideoTrigger",
            {
                "kling_conn_id": self.kling_conn_id,
                "kling_task_id": self.kling_task_id,
                "deadline": self.deadline,
                "submitted_at": self.submitted_at,
                "poll_interval": self.poll_interval,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Ask until the wait is over, then yield one event."""
        over = await self._wait()
        yield TriggerEvent(  # type: ignore[no-untyped-call]
            WaitEvent(
                kling_task_id=self.kling_task_id,
                outcome=over.outcome,
                deadline=self.deadline,
                submitted_at=self.submitted_at,
            ).to_dict()
        )

    async def _wait(self) -> Over:
        # Operators import this module too, and aiohttp would be most of what that costs them.
        from airflow_provider_kling.hooks.async_client import shared_client

        waiting = Waiting(
            self.kling_task_id,
            deadline=self.deadline,
            poll_interval=self.poll_interval,
            started=self.submitted_at,
            max_failures=max_failed_queries(),
        )
        decision: AskAgain | Over = waiting.begin(time.time())
        client = None
        async with AsyncExitStack() as stack:
            while isinstance(decision, AskAgain):
                await asyncio.sleep(max(0.0, decision.at - time.time()))
                try:
                    if client is None:
                        client = await stack.enter_async_context(shared_client(self.kling_conn_id))
                    task = await client.get_task(self.kling_task_id)
                except KlingError as error:
                    decision = waiting.on_error(error, time.time())
                else:
                    decision = waiting.on_task(task, time.time())
                note_to(self.log, decision)
        return decision
