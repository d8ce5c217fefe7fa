from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowNotFoundException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)

from airflow_provider_kling.api.errors import (
    KeyRefusedError,
    LostContactError,
    TaskNotFoundError,
    TaskTimeoutError,
)
from airflow_provider_kling.api.request import VideoRequest
from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.hooks.kling import KlingHook
from airflow_provider_kling.sensors.kling import KlingVideoSensor
from tests.hooks.conftest import Connect, connect, failing_lookups
from tests.task_runs import TaskInstance, finish_videos, link_to, run_task

__all__ = ["connect", "failing_lookups"]

both_ways = pytest.mark.parametrize("deferrable", [False, True], ids=["on the worker", "deferred"])


@pytest.fixture
def kling_task_id(kling_emulator: KlingEmulator) -> str:
    """A task that something else submitted."""
    return KlingHook().submit(VideoRequest(prompt="a lighthouse")).task_id


def sensor(**arguments: Any) -> KlingVideoSensor:
    return KlingVideoSensor(**{"task_id": "wait", "poke_interval": 0.05, "timeout": 300} | arguments)


@both_ways
@pytest.mark.kling_emulator(latency="never")
def test_it_waits_for_a_video_that_something_else_asked_for(
    kling_task_id: str, kling_emulator: KlingEmulator, deferrable: bool
) -> None:
    run = run_task(
        lambda: sensor(kling_task_id=kling_task_id, deferrable=deferrable),
        when_it_waits=lambda: finish_videos(kling_emulator),
    )
    result = run.value()

    assert result["task_id"] == kling_task_id
    assert result["state"] == "completed"
    assert result["video_url"].endswith(".mp4")
    assert result["estimated_cost_usd"] is None
    assert result["request"] is None
    assert run.ti.xcoms["kling_video_link"] == link_to(run.ti, at_service=result["video_url"])
    assert len(kling_emulator.ledger.creates()) == 1


@both_ways
@pytest.mark.kling_emulator(latency="never")
@pytest.mark.parametrize("retryable", [None, True], ids=["for good", "worth asking again"])
def test_a_failed_video_ends_the_sensor_without_retries(
    kling_task_id: str, kling_emulator: KlingEmulator, retryable: bool | None, deferrable: bool
) -> None:
    kling_emulator.fail(kling_task_id, "UPSTREAM_FAILED", "out of luck", retryable=retryable)
    run = run_task(lambda: sensor(kling_task_id=kling_task_id, deferrable=deferrable))

    assert isinstance(run.error, AirflowFailException)
    assert "out of luck" in str(run.error)
    assert "run the task that submitted it again" in str(run.error)


@both_ways
@pytest.mark.kling_emulator(latency="never")
def test_its_timeout_is_airflows_sensor_timeout(kling_task_id: str, deferrable: bool) -> None:
    run = run_task(
        lambda: sensor(kling_task_id=kling_task_id, deferrable=deferrable, timeout=timedelta(seconds=0.3))
    )
    assert isinstance(run.error, AirflowSensorTimeout)


@pytest.mark.kling_emulator(latency="never")
@pytest.mark.parametrize("soft", ["soft_fail", "never_fail"])
def test_soft_fail_skips_a_deferrable_sensor_whose_video_failed_before_it_deferred(
    kling_task_id: str, kling_emulator: KlingEmulator, soft: str
) -> None:
    kling_emulator.fail(kling_task_id, "UPSTREAM_FAILED")
    run = run_task(lambda: sensor(kling_task_id=kling_task_id, deferrable=True, **{soft: True}))
    assert isinstance(run.error, AirflowSkipException)


@pytest.mark.kling_emulator(latency="never")
def test_soft_fail_skips_on_the_worker_too(kling_task_id: str, kling_emulator: KlingEmulator) -> None:
    kling_emulator.fail(kling_task_id, "UPSTREAM_FAILED")
    run = run_task(lambda: sensor(kling_task_id=kling_task_id, soft_fail=True))
    assert isinstance(run.error, AirflowSkipException)


@both_ways
@pytest.mark.kling_emulator(latency="never")
def test_lost_contact_may_be_retried(
    kling_task_id: str, kling_emulator: KlingEmulator, deferrable: bool
) -> None:
    kling_emulator.inject("answer", status=503, call="query", times="always")
    run = run_task(lambda: sensor(kling_task_id=kling_task_id, deferrable=deferrable))
    assert type(run.error) is LostContactError


@pytest.mark.kling_emulator(latency="never")
def test_a_deferred_wait_ends_with_its_attempt_and_may_be_retried(kling_task_id: str) -> None:
    run = run_task(
        lambda: sensor(kling_task_id=kling_task_id, deferrable=True, execution_timeout=timedelta(seconds=0.5))
    )
    assert type(run.error) is TaskTimeoutError
    assert run.ti.xcoms["kling_video"]["reason"] == "task_timeout"


@pytest.mark.kling_emulator(latency="never")
def test_where_the_sensors_timeout_comes_before_the_attempts_it_is_airflows(kling_task_id: str) -> None:
    run = run_task(
        lambda: sensor(
            kling_task_id=kling_task_id, deferrable=True, timeout=0.3, execution_timeout=timedelta(hours=1)
        )
    )
    assert isinstance(run.error, AirflowSensorTimeout)


@both_ways
@pytest.mark.usefixtures("kling_emulator")
def test_a_task_that_the_service_does_not_know_ends_the_wait_at_once(deferrable: bool) -> None:
    run = run_task(lambda: sensor(kling_task_id="no-such-task", deferrable=deferrable))
    assert isinstance(run.error, AirflowFailException)
    assert type(run.error.__cause__) is TaskNotFoundError
    assert "no-such-task" in str(run.error)
    assert run.deferrals == []


@both_ways
@pytest.mark.kling_emulator(latency="never")
def test_a_refused_key_ends_the_wait_at_once(
    kling_task_id: str, kling_emulator: KlingEmulator, deferrable: bool
) -> None:
    kling_emulator.inject("answer", status=401, call="query", times="always")
    run = run_task(lambda: sensor(kling_task_id=kling_task_id, deferrable=deferrable))
    assert type(run.error.__cause__) is KeyRefusedError  # type: ignore[union-attr]


@both_ways
def test_a_connection_without_a_key_ends_the_wait_at_once_and_is_told(
    connect: Connect, deferrable: bool
) -> None:
    connect(password="")
    run = run_task(lambda: sensor(kling_task_id="task-1", deferrable=deferrable))
    assert isinstance(run.error, AirflowFailException)
    assert "it has no key" in str(run.error)
    assert run.ti.xcoms["kling_video"]["reason"] == "connection_settings"
    assert run.deferrals == []


lookup_failures = pytest.mark.parametrize(
    "failure", [RuntimeError("the API server is away"), AirflowNotFoundException("not defined")]
)


@both_ways
@lookup_failures
@pytest.mark.kling_emulator(latency=0)
def test_a_connection_that_cannot_be_looked_up_for_a_while_is_borne(
    kling_task_id: str, failing_lookups: Callable[..., list[str]], failure: Exception, deferrable: bool
) -> None:
    asked = failing_lookups(failure, times=3)
    assert run_task(lambda: sensor(kling_task_id=kling_task_id, deferrable=deferrable)).value()
    assert len(asked) > 3


@both_ways
@pytest.mark.usefixtures("kling_emulator")
def test_a_connection_that_cannot_be_looked_up_at_all_is_given_up_and_may_be_retried(
    failing_lookups: Callable[..., list[str]], deferrable: bool
) -> None:
    failing_lookups(RuntimeError("the API server is away"))
    run = run_task(lambda: sensor(kling_task_id="task-1", deferrable=deferrable))
    assert type(run.error) is LostContactError
    assert "the API server is away" in str(run.error)


@pytest.mark.kling_emulator(latency=0)
def test_in_mode_reschedule_a_look_up_that_fails_is_borne(
    kling_task_id: str, failing_lookups: Callable[..., list[str]]
) -> None:
    failing_lookups(RuntimeError("the API server is away"), times=1)
    waiting = {"kling_task_id": kling_task_id, "mode": "reschedule"}
    assert not sensor(**waiting).poke({"ti": TaskInstance()})
    assert sensor(**waiting).poke({"ti": TaskInstance()})


@pytest.mark.kling_emulator(latency="never")
def test_in_mode_reschedule_each_query_frees_the_worker(
    kling_task_id: str, kling_emulator: KlingEmulator
) -> None:
    first = sensor(kling_task_id=kling_task_id, mode="reschedule").poke({"ti": TaskInstance()})
    kling_emulator.complete(kling_task_id)
    second = sensor(kling_task_id=kling_task_id, mode="reschedule").poke({"ti": TaskInstance()})

    assert not first
    assert second
    assert second.xcom_value["task_id"] == kling_task_id


@both_ways
@pytest.mark.usefixtures("kling_emulator")
@pytest.mark.parametrize("missing", ["", "None", None])
def test_a_missing_task_id_is_told_before_anything_is_asked(
    kling_emulator: KlingEmulator, missing: Any, deferrable: bool
) -> None:
    run = run_task(lambda: sensor(kling_task_id=missing, deferrable=deferrable))
    assert isinstance(run.error, AirflowFailException)
    assert "kling_task_id" in str(run.error)
    assert kling_emulator.ledger.requests() == []


@pytest.mark.parametrize("event", [None, {}, "completed", {"kling_task_id": "x", "outcome": "success"}])
def test_a_missing_or_foreign_event_is_no_success(event: Any) -> None:
    with pytest.raises(AirflowFailException, match="not an event"):
        sensor(kling_task_id="x", deferrable=True).execute_complete({"ti": TaskInstance()}, event=event)


@pytest.mark.kling_emulator(latency="never")
def test_a_forged_event_makes_it_wait_on(kling_task_id: str) -> None:
    forged = {"kling_task_id": kling_task_id, "outcome": "completed", "deadline": 4e9, "submitted_at": 0.0}
    with pytest.raises(TaskDeferred):
        sensor(kling_task_id=kling_task_id, deferrable=True).execute_complete(
            {"ti": TaskInstance()}, event=forged
        )


def test_the_task_id_is_a_template_field() -> None:
    assert set(KlingVideoSensor.template_fields) == {"kling_task_id", "kling_conn_id"}
