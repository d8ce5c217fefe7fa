"""The trigger that waits for money in the triggerer, without holding a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_kling.api.errors import KlingError
from airflow_provider_kling.balance import BalanceEvent, BalanceOver, BalanceWaiting
from airflow_provider_kling.config import bearable_failures
from airflow_provider_kling.hooks.async_client import shared_client
from airflow_provider_kling.waiting import AskAgain, note_to

if TYPE_CHECKING:
    from airflow_provider_kling.hooks.async_client import AsyncKlingClient


class KlingBalanceTrigger(BaseTrigger):
    """
    Wait until an account has enough money, and tell by one event how the wait ended.

    What it is made of is stored in the metadata database in clear text, so it holds no secret.

    :param kling_conn_id: id of a connection of type ``kling``.
    :param min_balance_usd: what must be available, USD, as text: no serializer changes that.
    :param deadline: when to give up, epoch seconds: a restarted triggerer gets no new one.
    :param started: when the wait began, epoch seconds.
    :param poll_interval: seconds between two questions.
    :param unknown: arguments of a newer release, tolerated so that a rolling upgrade breaks no waiting task.
    """

    def __init__(
        self,
        *,
        kling_conn_id: str,
        min_balance_usd: str,
        deadline: float,
        started: float,
        poll_interval: float,
        **unknown: Any,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kling_conn_id = kling_conn_id
        self.min_balance_usd = min_balance_usd
        self.deadline = deadline
        self.started = started
        self.poll_interval = poll_interval
        if unknown:
            self.log.debug("Arguments of a newer release are left out: %s.", ", ".join(sorted(unknown)))

    @classmethod
    def of(cls, waiting: BalanceWaiting, *, kling_conn_id: str) -> KlingBalanceTrigger:
        """Make the trigger that goes on with a wait."""
        return cls(
            kling_conn_id=kling_conn_id,
            min_balance_usd=str(waiting.min_balance_usd),
            deadline=waiting.deadline,
            started=waiting.started,
            poll_interval=waiting.poll_interval,
        )

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments to make this trigger again elsewhere."""
        return (
            "airflow_provider_kling.triggers.balance.KlingBalanceTrigger",
            {
                "kling_conn_id": self.kling_conn_id,
                "min_balance_usd": self.min_balance_usd,
                "deadline": self.deadline,
                "started": self.started,
                "poll_interval": self.poll_interval,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Ask until the wait is over, then yield one event."""
        over = await self._wait()
        if over.error is not None:
            self.log.warning("The triggerer stops asking; the task goes on from here. %s", over.error)
        event = BalanceEvent(outcome=over.outcome, deadline=self.deadline, started=self.started)
        yield TriggerEvent(event.to_dict())  # type: ignore[no-untyped-call]

    async def _wait(self) -> BalanceOver:
        waiting = BalanceWaiting(
            Decimal(self.min_balance_usd),
            deadline=self.deadline,
            poll_interval=self.poll_interval,
            started=self.started,
            max_failures=bearable_failures(self.log),
            is_offered=True,  # whether it is, the worker finds out before it defers and after it resumes
        )
        decision: AskAgain | BalanceOver = waiting.begin(time.time())
        client: AsyncKlingClient | None = None
        async with AsyncExitStack() as stack:
            while isinstance(decision, AskAgain):
                await asyncio.sleep(max(0.0, decision.at - time.time()))
                try:
                    if client is None:
                        client = await stack.enter_async_context(shared_client(self.kling_conn_id))
                    balance = await client.get_balance()
                except KlingError as error:
                    decision = waiting.on_error(error, time.time())
                except Exception as error:  # noqa: BLE001 - a trigger that raises fails its task
                    failure = KlingError(f"{type(error).__name__}: {error}", retryable=True)
                    decision = waiting.on_error(failure, time.time())
                else:
                    decision = waiting.on_balance(balance, time.time())
                note_to(self.log, decision)
        return decision
