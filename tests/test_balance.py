"""When the balance is asked for again, and when no more: decided without a network or a clock."""

from __future__ import annotations

import logging
import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_kling.api.errors import (
    KeyRefusedError,
    KlingError,
    RateLimitedError,
    ServiceUnavailableError,
)
from airflow_provider_kling.api.task import Balance
from airflow_provider_kling.balance import (
    BalanceEvent,
    BalanceOutcome,
    BalanceOver,
    BalanceTooLowError,
    BalanceUnknownError,
    BalanceWaiting,
    balance_result,
)
from airflow_provider_kling.waiting import JITTER, MAX_FAILURES, NOTE_INTERVAL, AskAgain

NOW = 1_800_000_000.0
NEEDED = Decimal("5.00")


def has(available: str, **more: Any) -> Balance:
    return Balance(available=Decimal(available), **more)


def waiting(**settings: Any) -> BalanceWaiting:
    chosen: dict[str, Any] = {"deadline": NOW + 3600, "poll_interval": 60, "started": NOW}
    return BalanceWaiting(NEEDED, **chosen | settings)


def over(decision: AskAgain | BalanceOver) -> BalanceOver:
    assert isinstance(decision, BalanceOver)
    return decision


def again(decision: AskAgain | BalanceOver) -> AskAgain:
    assert isinstance(decision, AskAgain)
    return decision


@pytest.mark.parametrize(
    ("available", "is_enough"), [("5.00", True), ("5.01", True), ("4.99", False), ("-1", False)]
)
def test_enough_is_what_was_asked_for_or_more(available: str, is_enough: bool) -> None:
    decision = waiting().on_balance(has(available), NOW)
    if is_enough:
        assert decision == BalanceOver(BalanceOutcome.ENOUGH, has(available))
    else:
        assert 60 * (1 - JITTER) <= again(decision).at - NOW <= 60 * (1 + JITTER)


def test_held_and_total_money_does_not_count() -> None:
    again(waiting().on_balance(has("1", total=Decimal(100), frozen=Decimal(99)), NOW))


def test_enough_that_is_found_after_the_deadline_is_enough() -> None:
    assert over(waiting().on_balance(has("5"), NOW + 7200)).outcome is BalanceOutcome.ENOUGH


def test_at_the_deadline_it_tells_what_is_there() -> None:
    found = over(waiting().on_balance(has("1.25", frozen=Decimal(2)), NOW + 3600))
    assert found.outcome is BalanceOutcome.TIMED_OUT
    assert isinstance(found.error, BalanceTooLowError)
    assert "5.00 USD available by 2027" in str(found.error)
    assert "1.25 USD available (2.00 USD more are held" in str(found.error)
    assert "Top up" in str(found.error)


def test_the_last_question_is_at_the_deadline() -> None:
    assert again(waiting().on_balance(has("1"), NOW + 3599)).at == NOW + 3600
    assert waiting(deadline=NOW - 60).begin(NOW).at == NOW


def test_failed_questions_in_a_row_are_borne_so_many_times() -> None:
    wait = waiting()
    for _ in range(MAX_FAILURES - 1):
        again(wait.on_error(ServiceUnavailableError("down"), NOW))
    again(wait.on_balance(has("1"), NOW))
    for _ in range(MAX_FAILURES - 1):
        again(wait.on_error(ServiceUnavailableError("down"), NOW))
    lost = over(wait.on_error(ServiceUnavailableError("down"), NOW))
    assert lost.outcome is BalanceOutcome.LOST_CONTACT
    assert isinstance(lost.error, BalanceUnknownError)
    assert lost.error.retryable
    assert f"{MAX_FAILURES} times in a row" in str(lost.error)


def test_patience_that_the_service_asks_for_is_no_failure_and_is_given() -> None:
    wait = waiting()
    for _ in range(5 * MAX_FAILURES):
        assert again(wait.on_error(RateLimitedError("busy", retry_after=300), NOW)).at == NOW + 300


def test_a_refusal_ends_it_at_once_with_its_own_error() -> None:
    refused = KeyRefusedError("no")
    assert over(waiting().on_error(refused, NOW)) == BalanceOver(BalanceOutcome.REFUSED, error=refused)


def test_a_failed_question_at_the_deadline_is_a_timeout_that_tells_of_it() -> None:
    found = over(waiting().on_error(ServiceUnavailableError("it is down"), NOW + 3600))
    assert found.outcome is BalanceOutcome.TIMED_OUT
    assert "it is down" in str(found.error)


def test_a_service_without_a_balance_is_no_passing_fault() -> None:
    found = over(waiting().on_balance(None, NOW))
    assert found.outcome is BalanceOutcome.REFUSED
    assert found.error is not None
    assert not found.error.retryable
    assert "does not tell the account's balance" in str(found.error)
    assert "base URL" in str(found.error)


@pytest.mark.parametrize("wait", [waiting(is_offered=True), waiting()])
def test_a_service_that_has_told_a_balance_may_fail_to_for_a_while(wait: BalanceWaiting) -> None:
    if not wait._is_offered:
        wait.on_balance(has("1"), NOW)
    for _ in range(MAX_FAILURES - 1):
        again(wait.on_balance(None, NOW))
    assert over(wait.on_balance(None, NOW)).outcome is BalanceOutcome.LOST_CONTACT


def test_money_in_another_currency_is_not_compared() -> None:
    found = over(waiting().on_balance(has("5000", currency="JPY"), NOW))
    assert found.outcome is BalanceOutcome.REFUSED
    assert found.error is not None
    assert "JPY" in str(found.error)
    assert not found.error.retryable


def test_the_log_tells_changes_at_once_and_the_rest_now_and_then() -> None:
    wait = waiting()
    assert again(wait.on_balance(has("1"), NOW)).note is not None
    assert again(wait.on_balance(has("1"), NOW + 1)).note is None
    assert again(wait.on_balance(has("2"), NOW + 2)).note is not None
    assert again(wait.on_balance(has("2"), NOW + 2 + NOTE_INTERVAL)).note is not None
    trouble = again(wait.on_error(ServiceUnavailableError("down"), NOW + 90)).note
    assert trouble is not None
    assert trouble.level == logging.WARNING
    assert again(wait.on_error(ServiceUnavailableError("down"), NOW + 91)).note is None


def test_without_a_deadline_it_goes_on() -> None:
    wait = waiting(deadline=math.inf)
    again(wait.on_balance(has("1"), NOW + 1e9))
    again(wait.on_error(ServiceUnavailableError("down"), NOW + 1e9))


def test_contact_that_a_trigger_lost_needs_to_be_lost_only_once_more() -> None:
    event = BalanceEvent(outcome=BalanceOutcome.LOST_CONTACT, deadline=NOW + 60, started=NOW)
    wait = BalanceWaiting.resumed(event, NEEDED, poll_interval=1)
    assert over(wait.on_error(ServiceUnavailableError("down"), NOW)).outcome is BalanceOutcome.LOST_CONTACT
    assert (wait.deadline, wait.started) == (NOW + 60, NOW)


ANSWERS = st.one_of(
    st.none(),
    st.builds(has, st.integers(-5, 10).map(str)),
    st.sampled_from(
        [ServiceUnavailableError("x"), RateLimitedError("x", retry_after=7200), KeyRefusedError("x")]
    ),
)


@given(st.lists(ANSWERS, min_size=1, max_size=30), st.integers(0, 4000))
def test_whatever_comes_it_ends_with_an_error_or_enough_and_never_asks_after_its_deadline(
    answers: list[Balance | KlingError | None], step: int
) -> None:
    wait, now = waiting(), NOW
    for answer in answers:
        decision = (
            wait.on_error(answer, now) if isinstance(answer, KlingError) else wait.on_balance(answer, now)
        )
        if isinstance(decision, BalanceOver):
            assert (decision.error is None) is (decision.outcome is BalanceOutcome.ENOUGH)
            if decision.outcome is BalanceOutcome.ENOUGH:
                assert decision.balance is not None
                assert decision.balance.available >= NEEDED
            return
        assert now <= decision.at <= wait.deadline
        assert now < wait.deadline
        now = max(decision.at, now + step)


def test_an_event_comes_back_as_it_was() -> None:
    event = BalanceEvent(outcome=BalanceOutcome.ENOUGH, deadline=NOW + 60.5, started=NOW)
    assert BalanceEvent.from_dict(event.to_dict()) == event


@pytest.mark.parametrize(
    "payload",
    [None, {}, "enough", 5, [], {"outcome": "enough"}, {"outcome": "rich", "deadline": 1, "started": 1}],
)
def test_what_is_no_event_is_no_success(payload: Any) -> None:
    with pytest.raises(ValueError, match="not an event of KlingBalanceTrigger"):
        BalanceEvent.from_dict(payload)


def test_the_result_is_plain_json() -> None:
    assert balance_result(has("1.5", total=Decimal(2), currency="USD")) == {
        "available": 1.5,
        "total": 2.0,
        "frozen": None,
        "currency": "USD",
    }
