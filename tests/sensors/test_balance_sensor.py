from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)

from airflow_provider_kling.api.errors import KeyRefusedError
from airflow_provider_kling.api.request import VideoRequest
from airflow_provider_kling.balance import BalanceTooLowError, BalanceUnknownError
from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.hooks.kling import KlingHook
from airflow_provider_kling.sensors.balance import KlingBalanceSensor
from tests.hooks.conftest import Connect, connect, failing_lookups
from tests.hooks.loopback import Answer, Loopback, Reply
from tests.task_runs import TaskInstance, TaskRun, run_task

__all__ = ["connect", "failing_lookups"]

both_ways = pytest.mark.parametrize("deferrable", [False, True], ids=["on the worker", "deferred"])


def sensor(**arguments: Any) -> KlingBalanceSensor:
    chosen: dict[str, Any] = {"task_id": "wait", "min_balance_usd": 5, "poke_interval": 0.05, "timeout": 20}
    return KlingBalanceSensor(**chosen | arguments)


def waited(**arguments: Any) -> TaskRun:
    return run_task(lambda: sensor(**arguments))


def told(balance: Any, **more: Any) -> Answer:
    return Answer(body={"code": 200, "data": {"balance": balance, "currency": "USD", **more}})


@both_ways
@pytest.mark.kling_emulator(balance=5)
def test_an_account_with_enough_is_not_waited_for(kling_emulator: KlingEmulator, deferrable: bool) -> None:
    run = waited(deferrable=deferrable)
    assert run.value() == {"available": 5.0, "total": 5.0, "frozen": 0.0, "currency": "USD"}
    assert run.deferrals == []


@both_ways
def test_it_waits_until_someone_tops_up(connect: Connect, deferrable: bool) -> None:
    with Loopback(told(1), told(1), Answer(503), told("4.99"), told("7.5")) as service:
        connect(service.url)
        run = waited(deferrable=deferrable)
        assert run.value()["available"] == 7.5
        assert {request.target for request in service.received} == {"/api/v1/balance"}
        assert len(service.received) >= 5
    assert len(run.deferrals) == deferrable


@pytest.mark.kling_emulator(balance="5.1", latency="never")
def test_money_that_is_held_is_waited_for_until_it_is_released(kling_emulator: KlingEmulator) -> None:
    task = KlingHook().submit(VideoRequest(prompt="a cat"))
    run = run_task(
        lambda: sensor(deferrable=True), between=lambda: kling_emulator.fail(task.task_id, "UPSTREAM_FAILED")
    )
    assert run.value()["available"] == 5.1
    assert len(run.deferrals) == 1


@both_ways
@pytest.mark.kling_emulator(balance=1)
def test_its_timeout_is_airflows_sensor_timeout(kling_emulator: KlingEmulator, deferrable: bool) -> None:
    run = waited(deferrable=deferrable, timeout=timedelta(seconds=0.3))
    assert isinstance(run.error, AirflowSensorTimeout)


@pytest.mark.kling_emulator(balance=1)
def test_a_deferred_timeout_tells_what_there_is(kling_emulator: KlingEmulator) -> None:
    run = waited(deferrable=True, timeout=0.3)
    assert "it has 1.00 USD available" in str(run.error)
    assert "Top up" in str(run.error)


@both_ways
@pytest.mark.usefixtures("kling_emulator")
@pytest.mark.parametrize("answer", [{"status": 404}, {"status": 200, "body": "html"}])
def test_a_service_that_tells_no_balance_is_a_clear_failure(
    kling_emulator: KlingEmulator, answer: dict[str, Any], deferrable: bool
) -> None:
    kling_emulator.inject("answer", **answer, call="balance", times="always")
    run = waited(deferrable=deferrable)
    assert isinstance(run.error, AirflowFailException)
    assert "does not tell the account's balance" in str(run.error)
    assert run.deferrals == []


def test_a_service_that_stops_telling_is_a_clear_failure_after_some_patience(connect: Connect) -> None:
    with Loopback(told(1), Answer(404)) as service:
        connect(service.url)
        run = waited(deferrable=True)
    assert isinstance(run.error, AirflowFailException)
    assert "does not tell the account's balance" in str(run.error)


@both_ways
def test_an_odd_answer_in_between_is_borne(connect: Connect, deferrable: bool) -> None:
    with Loopback(told(1), Answer(200, b"<html>maintenance"), told(9)) as service:
        connect(service.url)
        assert waited(deferrable=deferrable).value()["available"] == 9.0


@both_ways
@pytest.mark.parametrize("reply", [Answer(503), Answer(200, {"code": 500})])
def test_lost_contact_may_be_retried(connect: Connect, reply: Reply, deferrable: bool) -> None:
    with Loopback(reply) as service:
        connect(service.url)
        run = waited(deferrable=deferrable)
    assert type(run.error) is BalanceUnknownError
    assert "times in a row" in str(run.error)


@pytest.mark.kling_emulator(balance=1)
def test_a_deferred_wait_ends_with_its_attempt_and_may_be_retried(kling_emulator: KlingEmulator) -> None:
    run = waited(deferrable=True, execution_timeout=timedelta(seconds=0.5))
    assert type(run.error) is BalanceTooLowError
    assert "A retry waits anew" in str(run.error)


@pytest.mark.kling_emulator(balance=1)
def test_where_the_sensors_timeout_comes_before_the_attempts_it_is_airflows(
    kling_emulator: KlingEmulator,
) -> None:
    run = waited(deferrable=True, timeout=0.3, execution_timeout=timedelta(hours=1))
    assert isinstance(run.error, AirflowSensorTimeout)


@both_ways
def test_a_refused_key_ends_the_wait_at_once(kling_emulator: KlingEmulator, deferrable: bool) -> None:
    kling_emulator.inject("answer", status=401, call="balance", times="always")
    run = waited(deferrable=deferrable)
    assert isinstance(run.error, AirflowFailException)
    assert type(run.error.__cause__) is KeyRefusedError


@both_ways
def test_a_connection_without_a_key_is_told(connect: Connect, deferrable: bool) -> None:
    connect(password="")
    run = waited(deferrable=deferrable)
    assert isinstance(run.error, AirflowFailException)
    assert "it has no key" in str(run.error)


@both_ways
@pytest.mark.usefixtures("kling_emulator")
def test_a_connection_that_cannot_be_looked_up_for_a_while_is_borne(
    failing_lookups: Callable[..., list[str]], deferrable: bool
) -> None:
    asked = failing_lookups(RuntimeError("the API server is away"), times=3)
    assert waited(deferrable=deferrable).value()
    assert len(asked) > 3


@both_ways
def test_a_connection_that_cannot_be_looked_up_at_all_is_given_up_and_may_be_retried(
    failing_lookups: Callable[..., list[str]], deferrable: bool
) -> None:
    failing_lookups(RuntimeError("the API server is away"))
    run = waited(deferrable=deferrable)
    assert type(run.error) is BalanceUnknownError
    assert "the API server is away" in str(run.error)


@pytest.mark.usefixtures("kling_emulator")
def test_in_mode_reschedule_a_look_up_that_fails_is_borne(failing_lookups: Callable[..., list[str]]) -> None:
    failing_lookups(RuntimeError("the API server is away"), times=1)
    assert not sensor(mode="reschedule").poke({"ti": TaskInstance()})
    assert sensor(mode="reschedule").poke({"ti": TaskInstance()})


@both_ways
def test_soft_fail_skips(kling_emulator: KlingEmulator, deferrable: bool) -> None:
    kling_emulator.inject("answer", status=404, call="balance", times="always")
    run = waited(deferrable=deferrable, soft_fail=True)
    assert isinstance(run.error, AirflowSkipException)


@pytest.mark.kling_emulator(balance=1)
def test_in_mode_reschedule_each_question_frees_the_worker(kling_emulator: KlingEmulator) -> None:
    poor = sensor(mode="reschedule").poke({"ti": TaskInstance()})
    rich = sensor(mode="reschedule", min_balance_usd="0.5").poke({"ti": TaskInstance()})
    assert not poor
    assert rich
    assert rich.xcom_value["available"] == 1.0


@pytest.mark.kling_emulator(balance=1)
def test_a_forged_event_is_not_believed(kling_emulator: KlingEmulator) -> None:
    with pytest.raises(TaskDeferred):
        sensor(deferrable=True).execute_complete(
            {"ti": TaskInstance()}, event={"outcome": "enough", "deadline": 4e9, "started": 0.0}
        )


@pytest.mark.parametrize("event", [None, {}, "enough", {"outcome": "rich", "deadline": 1, "started": 1}])
def test_a_missing_or_foreign_event_is_no_success(event: Any) -> None:
    with pytest.raises(AirflowFailException, match="not an event"):
        sensor(deferrable=True).execute_complete({"ti": TaskInstance()}, event=event)


@pytest.mark.kling_emulator(balance=1)
def test_the_deferral_has_a_net_behind_its_deadline(kling_emulator: KlingEmulator) -> None:
    with pytest.raises(TaskDeferred) as deferred:
        sensor(deferrable=True, timeout=100).execute({"ti": TaskInstance()})
    assert deferred.value.timeout is not None
    assert deferred.value.timeout > timedelta(seconds=100)
    assert deferred.value.trigger.min_balance_usd == "5"


@pytest.mark.parametrize("amount", [-1, "five", None, True, float("nan"), "{{ params.usd }}"])
def test_an_amount_that_is_none_is_told_when_the_dag_is_parsed(amount: Any) -> None:
    with pytest.raises(ValueError, match="min_balance_usd must be an amount of USD"):
        sensor(min_balance_usd=amount)


@pytest.mark.parametrize("amount", [5, 5.25, "5.25", Decimal("5.25")])
def test_an_amount_can_be_written_as_people_do(amount: Any) -> None:
    assert sensor(min_balance_usd=amount).min_balance_usd == Decimal(str(amount))


def test_only_the_connection_is_a_template_field() -> None:
    assert tuple(KlingBalanceSensor.template_fields) == ("kling_conn_id",)


@pytest.mark.usefixtures("kling_emulator")
def test_it_runs_in_a_dag(run_dag: Callable[..., Any]) -> None:
    from airflow.providers.common.compat.sdk import DAG

    with DAG("enough_money", schedule=None) as dag:
        KlingBalanceSensor(task_id="wait", min_balance_usd=5, deferrable=True)
    run = run_dag(dag)
    assert str(run.state) == "success"
