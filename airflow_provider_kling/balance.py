"""
When to ask for the account's balance again and when to stop asking: pure decisions, no I/O.

The sensor on a worker and the trigger feed what they learnt into :class:`BalanceWaiting` and do what it says, so that
they cannot behave differently.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import pendulum

from airflow_provider_kling.api.errors import KlingError, ServiceError
from airflow_provider_kling.budget import CURRENCY, shown
from airflow_provider_kling.waiting import MAX_FAILURES, NOTE_INTERVAL, AskAgain, Note, PollPolicy

if TYPE_CHECKING:
    from airflow_provider_kling.api.task import Balance

DEFAULT_POKE_INTERVAL = 60.0
"""Seconds between two questions: money comes when a person tops up, or when a held amount is released."""


class BalanceOutcome(StrEnum):
    """How a wait for money ends. These are the reason codes in the trigger's event."""

    ENOUGH = "enough"
    TIMED_OUT = "timed_out"
    LOST_CONTACT = "lost_contact"
    REFUSED = "refused"


class BalanceUnknownError(ServiceError):
    """The account's balance could not be learnt."""

    default_retryable = True
    default_next_step = "Nothing was billed. A retry asks again."


class BalanceTooLowError(KlingError):
    """The account still held too little when the wait was over."""

    default_next_step = (
        "Nothing was billed. Top up the account at https://apimodels.app, then clear the task."
    )


@dataclass(frozen=True)
class BalanceOver:
    """
    The wait is over.

    :param outcome: how it ended.
    :param balance: the account's money as last seen.
    :param error: what to raise; None exactly where the outcome is :attr:`BalanceOutcome.ENOUGH`.
    """

    outcome: BalanceOutcome
    balance: Balance | None = None
    error: KlingError | None = None


class BalanceWaiting(PollPolicy):
    """
    Decides what follows from each answer about the account's money.

    :param min_balance_usd: what must be available, USD.
    :param deadline: when to give up, epoch seconds.
    :param poll_interval: seconds between two questions.
    :param started: when the wait began, epoch seconds.
    :param max_failures: failed questions in a row after which contact counts as lost.
    :param failures: failed questions in a row so far.
    :param is_offered: whether the service is known to tell balances. Where it is not, an answer without one ends the
        wait; where it is, that is a passing fault.
    """

    def __init__(
        self,
        min_balance_usd: Decimal,
        *,
        deadline: float,
        poll_interval: float,
        started: float,
        max_failures: int = MAX_FAILURES,
        failures: int = 0,
        is_offered: bool = False,
    ) -> None:
        super().__init__(
            "The balance",
            deadline=deadline,
            poll_interval=poll_interval,
            max_failures=max_failures,
            failures=failures,
        )
        self.min_balance_usd = min_balance_usd
        self.started = started
        self._is_offered = is_offered
        self._last: Balance | None = None
        self._noted: Decimal | None = None
        self._noted_at = started

    @classmethod
    def resumed(
        cls,
        event: BalanceEvent,
        min_balance_usd: Decimal,
        *,
        poll_interval: float,
        max_failures: int = MAX_FAILURES,
    ) -> BalanceWaiting:
        """
        Take up the wait that a trigger ended. What made it give up needs to happen only once more.

        :param min_balance_usd: what must be available, USD.
        :param poll_interval: seconds between two questions.
        :param max_failures: failed questions in a row after which contact counts as lost.
        """
        return cls(
            min_balance_usd,
            deadline=event.deadline,
            poll_interval=poll_interval,
            started=event.started,
            max_failures=max_failures,
            failures=max_failures - 1 if event.outcome is BalanceOutcome.LOST_CONTACT else 0,
        )

    def on_balance(self, balance: Balance | None, now: float) -> AskAgain | BalanceOver:
        """
        Decide what follows from an answer.

        :param balance: None where the service did not tell it.
        """
        if balance is None:
            return self._on_nothing_told(now)
        self._failures, self._is_offered, self._last = 0, True, balance
        if balance.currency.upper() != CURRENCY:
            error = BalanceUnknownError(
                f"The service tells the balance in {balance.currency}, which cannot be compared with "
                f"{shown(self.min_balance_usd)}",
                next_step="Nothing was billed. A retry cannot help.",
                retryable=False,
            )
            return BalanceOver(BalanceOutcome.REFUSED, balance, error)
        if balance.available >= self.min_balance_usd:
            return BalanceOver(BalanceOutcome.ENOUGH, balance)
        if now >= self.deadline:
            return self._timed_out()
        return replace(self._ask_again(now), note=self._note_of(balance, now))

    def on_error(self, error: KlingError, now: float) -> AskAgain | BalanceOver:
        """Decide what follows from a failed question."""
        if not error.retryable:
            return BalanceOver(BalanceOutcome.REFUSED, self._last, error)
        error.next_step = ""  # it speaks of videos, and what comes next is said here
        if now >= self.deadline:
            return self._timed_out(last_error=error)
        if again := self._bear(error, now):
            return again
        failure = BalanceUnknownError(
            f"{self._what} could not be asked for {self._failures} times in a row, the last time with: {error}"
        )
        return BalanceOver(BalanceOutcome.LOST_CONTACT, self._last, failure)

    def _on_nothing_told(self, now: float) -> AskAgain | BalanceOver:
        if self._is_offered:
            return self.on_error(BalanceUnknownError("The answer tells no balance"), now)
        error = BalanceUnknownError(
            "The service does not tell the account's balance, so it cannot be waited for",
            next_step=(
                "Nothing was billed. Check that the connection's host is the base URL of the service; if it is, this "
                "sensor cannot be used with it. A retry cannot help."
            ),
            retryable=False,
        )
        return BalanceOver(BalanceOutcome.REFUSED, error=error)

    def _timed_out(self, last_error: KlingError | None = None) -> BalanceOver:
        until = pendulum.from_timestamp(self.deadline).to_iso8601_string()
        what = f"The account did not have {shown(self.min_balance_usd)} available by {until}"
        if self._last is not None:
            what += f"; it has {_described(self._last)}"
        if last_error is not None:
            what += f"; the last question failed: {last_error.what}"
        return BalanceOver(BalanceOutcome.TIMED_OUT, self._last, BalanceTooLowError(what))

    def _note_of(self, balance: Balance, now: float) -> Note | None:
        if balance.available == self._noted and now - self._noted_at < NOTE_INTERVAL:
            return None
        self._noted, self._noted_at = balance.available, now
        return Note(
            f"The account has {_described(balance)}; waiting until {shown(self.min_balance_usd)} are available."
        )


@dataclass(frozen=True, kw_only=True)
class BalanceEvent:
    """
    What the trigger tells the sensor that waits: how its wait ended, as a reason code.

    It is a hint. Whoever receives it asks the service again.
    """

    outcome: BalanceOutcome
    deadline: float
    started: float

    def to_dict(self) -> dict[str, Any]:
        """Return the event's payload: plain JSON."""
        return {"outcome": self.outcome.value, "deadline": self.deadline, "started": self.started}

    @classmethod
    def from_dict(cls, payload: Any) -> BalanceEvent:
        """
        Read an event's payload.

        :raises ValueError: where it names no known outcome: a missing event is not a success.
        """
        try:
            return cls(
                outcome=BalanceOutcome(payload["outcome"]),
                deadline=float(payload["deadline"]),
                started=float(payload["started"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not an event of KlingBalanceTrigger: {str(payload)[:200]}") from error


def balance_result(balance: Balance) -> dict[str, Any]:
    """Return the account's money as plain JSON: ``available``, ``total``, ``frozen`` (None: not told), ``currency``."""
    return {
        "available": float(balance.available),
        "total": None if balance.total is None else float(balance.total),
        "frozen": None if balance.frozen is None else float(balance.frozen),
        "currency": balance.currency,
    }


def _described(balance: Balance) -> str:
    held = f" ({shown(balance.frozen)} more are held for tasks that run)" if balance.frozen else ""
    return f"{shown(balance.available)} available{held}"
