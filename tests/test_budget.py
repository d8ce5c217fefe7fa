"""What stops a request before it costs money."""

from __future__ import annotations

import pickle
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_kling.api.errors import (
    KeyRefusedError,
    KlingError,
    NoCreditsError,
    Paid,
    ServiceUnavailableError,
)
from airflow_provider_kling.api.pricing import CostRange, Estimate
from airflow_provider_kling.api.request import VideoRequest
from airflow_provider_kling.budget import (
    BudgetExceededError,
    InsufficientBalanceError,
    check_balance,
    check_budget,
    shown,
    usd,
)
from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.exceptions import to_airflow
from airflow_provider_kling.hooks.kling import KlingHook
from tests.hooks.conftest import clock, connect
from tests.hooks.loopback import Answer, Loopback

__all__ = ["clock", "connect"]


def d(text: str) -> Decimal:
    return Decimal(text)


# The author's limit


@pytest.mark.parametrize(
    ("estimates", "limit", "total"),
    [
        ([d("0.3165")], d("0.3165"), d("0.3165")),
        ([d("0.3165")], None, d("0.3165")),
        ([d("0.3165"), d("0.5")], d("1"), d("0.8165")),
        ([CostRange(d("0.2"), d("0.6")), d("0.4")], d("1"), d("1.0")),
        ([], d("0"), d("0")),
        ([None], None, None),
        ([None, d("5")], None, None),
    ],
)
def test_what_is_within_the_limit_passes_with_its_total(
    estimates: list[Estimate], limit: Decimal | None, total: Decimal | None
) -> None:
    assert check_budget(estimates, limit) == total


@pytest.mark.parametrize(
    ("estimates", "limit", "told"),
    [
        (
            [d("0.3165")],
            "0.3164",
            "The request is estimated to cost 0.3165 USD, more than the limit of 0.3164 USD",
        ),
        ([d("0.01")], "0", "more than the limit of 0.00 USD"),
        ([CostRange(d("0.2"), d("0.6"))], "0.5", "estimated to cost up to 0.60 USD"),
        ([d("0.5")] * 3, "1.49", "The 3 requests together are estimated to cost 1.50 USD"),
        ([d("0.5"), None, d("2")], "1", "2.50 USD (without 1 of them, whose price is not known), more than"),
    ],
)
def test_what_is_above_the_limit_is_refused_as_a_whole(
    estimates: list[Estimate], limit: str, told: str
) -> None:
    with pytest.raises(BudgetExceededError) as raised:
        check_budget(estimates, d(limit))
    assert told in str(raised.value)
    assert "max_cost_usd" in str(raised.value)
    assert "Nothing was sent and nothing was billed" in str(raised.value)


@pytest.mark.parametrize(
    ("estimates", "told"),
    [
        ([None], "The request's price is not known"),
        ([d("0.1"), None, None], "The price of 2 of the 3 requests is not known"),
    ],
)
def test_an_unknown_price_does_not_slip_under_a_limit(estimates: list[Estimate], told: str) -> None:
    with pytest.raises(BudgetExceededError) as raised:
        check_budget(estimates, d("1000"))
    assert told in str(raised.value)
    assert "[kling] prices" in str(raised.value)


def test_a_budget_exceeded_is_an_error_before_money_that_no_retry_can_help() -> None:
    with pytest.raises(ValueError) as raised:
        check_budget([d("2")], d("1"))
    error = raised.value
    assert isinstance(error, KlingError)
    assert (error.retryable, error.paid) == (False, Paid.NO)
    assert type(to_airflow(error)).__name__ == "AirflowFailException"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@given(st.lists(st.decimals(0, 100, places=4), max_size=8), st.decimals(0, 500, places=4))
def test_a_list_passes_exactly_where_its_sum_is_within_the_limit(
    costs: list[Decimal], limit: Decimal
) -> None:
    if sum(costs, Decimal(0)) <= limit:
        assert check_budget(costs, limit) == sum(costs, Decimal(0))
    else:
        with pytest.raises(BudgetExceededError):
            check_budget(costs, limit)


# Amounts that people write and read


@pytest.mark.parametrize(
    ("written", "amount"),
    [
        (1, "1"),
        (0.1, "0.1"),
        ("2.50", "2.50"),
        (" 3 ", "3"),
        (d("0.0001"), "0.0001"),
        (0, "0"),
        (-0.0, "0.0"),
    ],
)
def test_an_amount_is_what_was_written(written: Any, amount: str) -> None:
    found = usd("max_cost_usd", written)
    assert str(found) == amount


@pytest.mark.parametrize(
    "written",
    [
        -1,
        "-0.01",
        "five",
        "",
        True,
        False,
        None,
        [1],
        float("nan"),
        float("inf"),
        "NaN",
        "sNaN",
        "1e99",
        "{{ x }}",
    ],
)
def test_what_is_no_amount_is_told_with_the_arguments_name(written: Any) -> None:
    with pytest.raises(ValueError, match="max_cost_usd must be an amount of USD"):
        usd("max_cost_usd", written)


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", "0.00 USD"),
        ("1", "1.00 USD"),
        ("1E+3", "1000.00 USD"),
        ("0.1", "0.10 USD"),
        ("0.3165", "0.3165 USD"),
        ("0.31650", "0.3165 USD"),
        ("-2.5", "-2.50 USD"),
        ("0.00000049", "0.00 USD"),
        ("1e-999999", "0.00 USD"),
        ("1e999999", "1.000000E+999999 USD"),
    ],
)
def test_an_amount_is_shown_short_and_exact(amount: str, text: str) -> None:
    assert shown(d(amount)) == text


# The account's money


class Lines:
    """A log that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, level: int, msg: str, /, *args: Any) -> None:
        self.lines.append(msg % args)


@pytest.fixture
def log() -> Lines:
    return Lines()


@pytest.mark.kling_emulator(balance="1.5")
def test_an_account_with_just_enough_may_go_on(kling_emulator: KlingEmulator, log: Lines) -> None:
    balance = check_balance(KlingHook(), d("1.5"), log=log)
    assert balance is not None
    assert balance.available == d("1.5")
    assert log.lines == []


@pytest.mark.kling_emulator(balance="1.5")
def test_an_account_with_too_little_is_told_what_it_has_and_what_is_needed(
    kling_emulator: KlingEmulator, log: Lines
) -> None:
    with pytest.raises(InsufficientBalanceError) as raised:
        check_balance(KlingHook(), d("1.5001"), log=log)
    error = raised.value
    assert "1.50 USD available" in str(error)
    assert "1.5001 USD are needed" in str(error)
    assert "Nothing was sent and nothing was billed" in str(error)
    assert (error.retryable, error.paid) == (False, Paid.NO)
    assert isinstance(error, NoCreditsError)
    assert kling_emulator.ledger.creates() == []


@pytest.mark.kling_emulator(balance="1", latency="never")
def test_money_held_for_tasks_that_run_is_not_there_to_be_spent(
    kling_emulator: KlingEmulator, log: Lines
) -> None:
    hook = KlingHook()
    hook.submit(VideoRequest(prompt="a cat", model="kling-v3-omni"))
    with pytest.raises(InsufficientBalanceError, match=r"0\.6835 USD available.*0\.3165 USD are held"):
        check_balance(hook, d("0.7"), log=log)


@pytest.mark.parametrize(("balance", "is_enough"), [("0", False), ("0.01", True)])
def test_where_the_price_is_not_known_there_must_be_something(
    connect: Any, log: Lines, balance: str, is_enough: bool
) -> None:
    with Loopback(Answer(body={"data": {"balance": balance, "currency": "usd"}})) as service:
        connect(service.url)
        if is_enough:
            assert check_balance(KlingHook(), None, log=log)
        else:
            with pytest.raises(InsufficientBalanceError):
                check_balance(KlingHook(), None, log=log)
    assert "price is not known" in log.lines[0]


@pytest.mark.kling_emulator(balance=0)
def test_a_service_that_does_not_tell_stops_nothing_and_is_warned_of_once(
    kling_emulator: KlingEmulator, log: Lines, task_log: Any
) -> None:
    kling_emulator.inject("answer", status=404, call="balance", times="always")
    hook = KlingHook()
    assert check_balance(hook, d("5"), log=log) is None
    assert check_balance(hook, d("5"), log=log) is None
    assert len([line for line in task_log() if "does not offer the balance call" in line] + log.lines) == 1


def test_another_currency_stops_nothing_and_is_warned_of(connect: Any, log: Lines) -> None:
    with Loopback(Answer(body={"data": {"balance": 1, "currency": "CNY"}})) as service:
        connect(service.url)
        assert check_balance(KlingHook(), d("5"), log=log) is None
    assert "CNY" in log.lines[0]


@pytest.mark.parametrize(("status", "kind"), [(401, KeyRefusedError), (400, KlingError)])
def test_a_service_that_refuses_to_be_asked_is_told_with_nothing_billed(
    kling_emulator: KlingEmulator, log: Lines, status: int, kind: type[KlingError]
) -> None:
    kling_emulator.inject("answer", status=status, call="balance", times="always")
    with pytest.raises(kind, match="Nothing was billed"):
        check_balance(KlingHook(), d("5"), log=log)


def test_a_service_in_trouble_may_be_asked_again_by_a_retry(connect: Any, log: Lines, clock: Any) -> None:
    with Loopback(Answer(503)) as service:
        connect(service.url)
        with pytest.raises(ServiceUnavailableError, match="Nothing was billed") as raised:
            check_balance(KlingHook(), d("5"), log=log)
    assert raised.value.retryable
