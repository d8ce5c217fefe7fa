"""What a video will cost is known before it is asked for, and can stop it; what it did cost is known after."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_kling.api.task import RecordedCost
from airflow_provider_kling.budget import BudgetExceededError, InsufficientBalanceError
from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator
from airflow_provider_kling.result import recorded_usd
from tests.task_runs import TaskInstance, TaskRun, finish_videos, run_task


def attempt(**arguments: Any) -> TaskRun:
    defaults: dict[str, Any] = {
        "task_id": "make",
        "prompt": "a red kite",
        "duration": 10,
        "poll_interval": 0.05,
    }
    return run_task(lambda: KlingGenerateVideoOperator(**(defaults | arguments)))


def assert_stopped(run: TaskRun, cause: type[Exception], emulator: KlingEmulator) -> None:
    assert isinstance(run.error, AirflowFailException), "a retry cannot help"
    assert isinstance(run.error.__cause__, cause)
    assert emulator.ledger.creates() == []
    assert "Nothing was sent" in str(run.error)


def test_a_request_above_its_authors_limit_stops_before_anything_is_paid(
    kling_emulator: KlingEmulator,
) -> None:
    run = attempt(max_cost_usd=0.5)
    assert_stopped(run, BudgetExceededError, kling_emulator)
    assert "0.633 USD" in str(run.error)
    assert "0.50 USD" in str(run.error)


@pytest.mark.parametrize("limit", [0.633, "0.633", 1])
def test_a_request_within_the_limit_is_made(kling_emulator: KlingEmulator, limit: Any) -> None:
    assert attempt(max_cost_usd=limit).value()["recorded_cost_usd"] == pytest.approx(0.633)
    assert len(kling_emulator.ledger.paid()) == 1


def test_a_limit_needs_a_known_price(kling_emulator: KlingEmulator) -> None:
    run = attempt(model="kling-v9", max_cost_usd=5)
    assert_stopped(run, BudgetExceededError, kling_emulator)
    assert "[kling] prices" in str(run.error)


def test_a_paid_video_is_delivered_whatever_the_limit_says_by_now(
    kling_emulator: KlingEmulator, tmp_path: Path
) -> None:
    first = attempt(ledger_path=str(tmp_path)).value()
    again = attempt(ledger_path=str(tmp_path), max_cost_usd=0.01, check_balance=True).value()
    assert again["task_id"] == first["task_id"]
    assert len(kling_emulator.ledger.creates()) == 1


@pytest.mark.kling_emulator(balance="0.5")
def test_an_account_with_too_little_money_is_told_before_the_submit(kling_emulator: KlingEmulator) -> None:
    run = attempt(check_balance=True)
    assert_stopped(run, InsufficientBalanceError, kling_emulator)


def test_a_dry_run_tells_the_price_and_asks_for_nothing(
    kling_emulator: KlingEmulator, task_log: Callable[[], list[str]]
) -> None:
    run = attempt(dry_run=True, sound=True, deferrable=True)
    result = run.value()
    assert result["state"] == "dry_run"
    assert result["task_id"] is None
    assert result["estimated_cost_usd"] == pytest.approx(0.956)
    assert result["request"]["prompt"] == "a red kite"
    assert run.ti.xcoms["kling_video"]["estimated_cost_usd"] == pytest.approx(0.956)
    assert run.deferrals == []
    assert kling_emulator.ledger.creates() == []
    assert any("dry run" in line for line in task_log())


def test_a_dry_run_is_held_to_the_limit_too(kling_emulator: KlingEmulator) -> None:
    assert_stopped(attempt(dry_run=True, max_cost_usd=0.1), BudgetExceededError, kling_emulator)


def test_prices_of_the_connection_beat_those_of_the_configuration(
    kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__KLING__PRICES", json.dumps({"kling-v3-omni": {"std": {"plain": 0.02}}}))
    assert attempt(dry_run=True).value()["estimated_cost_usd"] == pytest.approx(0.2)
    connection = {
        "conn_type": "kling",
        "host": kling_emulator.base_url,
        "password": kling_emulator.api_key,
        "extra": {"prices": {"kling-v3-omni": {"std": {"plain": 0.03}}}},
    }
    monkeypatch.setenv("AIRFLOW_CONN_KLING_DEFAULT", json.dumps(connection))
    assert attempt(dry_run=True).value()["estimated_cost_usd"] == pytest.approx(0.3)


@pytest.mark.kling_emulator(latency="never")
def test_the_estimate_is_in_xcom_while_the_task_waits(kling_emulator: KlingEmulator) -> None:
    ti, seen = TaskInstance(), []
    run = run_task(
        lambda: KlingGenerateVideoOperator(
            task_id="make",
            prompt="a red kite",
            duration=10,
            callback_url="https://example.com/secret",
            poll_interval=0.05,
            deferrable=True,
        ),
        ti=ti,
        between=lambda: seen.append(dict(ti.xcoms)),
        when_it_waits=lambda: finish_videos(kling_emulator),
    )
    (waiting,) = seen
    assert "return_value" not in waiting
    assert waiting["kling_video"]["estimated_cost_usd"] == pytest.approx(0.633)
    assert waiting["kling_video"]["task_id"] == run.value()["task_id"]
    assert "callback_url" not in waiting["kling_video"]["request"]


def test_a_video_that_is_delivered_again_is_counted_once(
    kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    counted: Counter[str] = Counter()
    monkeypatch.setattr(
        "airflow_provider_kling.metrics.Stats",
        SimpleNamespace(
            incr=lambda name, count=1, **_: counted.update({name: count}), timing=lambda *_, **__: None
        ),
    )
    for _ in range(3):
        attempt(ledger_path=str(tmp_path)).value()
    assert counted["kling.videos.submitted"] == counted["kling.videos.completed"] == 1
    assert counted["kling.usd_micros.recorded"] == 633_000


@pytest.mark.parametrize(("amount", "currency"), [("inf", "USD"), (-1, "USD"), (1.5, "CNY")])
def test_an_amount_that_is_no_cost_in_usd_is_not_told_as_one(
    kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch, amount: Any, currency: str
) -> None:
    record = RecordedCost.from_payload(
        {"settled": True, "credits": amount, "currency": currency}, task_id="k-1"
    )
    assert recorded_usd(record) is None


def test_a_cost_that_is_not_settled_fails_nothing(
    kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_kling.costs.time.sleep", lambda _: None)
    kling_emulator.inject("answer", status=500, call="record", times="always")
    result = attempt().value()
    assert result["state"] == "completed"
    assert result["recorded_cost_usd"] is None
