"""How both sensors end where it is the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowSkipException

from airflow_provider_kling.api.errors import LostContactError
from airflow_provider_kling.api.request import VideoRequest
from airflow_provider_kling.balance import BalanceUnknownError
from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.hooks.kling import KlingHook
from airflow_provider_kling.sensors.balance import KlingBalanceSensor
from airflow_provider_kling.sensors.kling import KlingVideoSensor
from tests.task_runs import run_task

Waiting = Callable[..., Callable[[], Any]]


def for_a_video(**arguments: Any) -> Callable[[], KlingVideoSensor]:
    kling_task_id = KlingHook().submit(VideoRequest(prompt="a lighthouse")).task_id
    return lambda: KlingVideoSensor(kling_task_id=kling_task_id, **arguments)


def for_money(**arguments: Any) -> Callable[[], KlingBalanceSensor]:
    return lambda: KlingBalanceSensor(min_balance_usd=5, **arguments)


@pytest.mark.parametrize("deferrable", [False, True], ids=["on the worker", "deferred"])
@pytest.mark.parametrize("most_failures", ["1", "3"], ids=["in the first question", "while it waits"])
@pytest.mark.parametrize("soft", ["never_fail", "soft_fail"])
@pytest.mark.parametrize(
    ("waiting", "call", "lost_contact"),
    [(for_a_video, "query", LostContactError), (for_money, "balance", BalanceUnknownError)],
    ids=["for a video", "for money"],
)
@pytest.mark.kling_emulator(latency="never")
def test_only_never_fail_skips_what_may_be_retried(
    kling_emulator: KlingEmulator,
    monkeypatch: pytest.MonkeyPatch,
    waiting: Waiting,
    call: str,
    lost_contact: type[Exception],
    soft: str,
    most_failures: str,
    deferrable: bool,
) -> None:
    monkeypatch.setenv("AIRFLOW__KLING__MAX_FAILED_QUERIES", most_failures)
    kling_emulator.inject("answer", status=503, call=call, times="always")
    run = run_task(
        waiting(task_id="wait", poke_interval=0.05, timeout=300, deferrable=deferrable, **{soft: True})
    )
    assert type(run.error) is (AirflowSkipException if soft == "never_fail" else lost_contact)
