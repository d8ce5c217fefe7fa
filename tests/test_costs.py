"""What a video did cost: asked for a short while, and never in the way of the video."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Any

import pytest

from airflow_provider_kling.api.request import VideoRequest
from airflow_provider_kling.costs import DEFAULT_PATIENCE, LEAST_ANSWER_SECONDS, recorded_cost
from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.hooks.kling import KlingHook
from tests.hooks.conftest import Connect, connect
from tests.hooks.loopback import Answer, Fault, Loopback, Reply, refused_port
from tests.test_budget import Lines

__all__ = ["connect"]


class Clock:
    """Time that passes only where someone sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.naps: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("airflow_provider_kling.costs.time", clock)
    return clock


def record(settled: bool = True, amount: Any = 0.3165, **more: Any) -> Answer:
    return Answer(body={"code": 200, "data": {"settled": settled, "credits": amount, **more}})


NOT_YET = record(settled=False)


def asked(connect: Connect, *replies: Reply, log: Lines | None = None, **how: Any) -> tuple[Any, int]:
    """Ask a service that gives these answers; return what came of it and how often it was asked."""
    with Loopback(*replies) as service:
        connect(service.url)
        found = recorded_cost(KlingHook(), "task/1", log=log or Lines(), **how)
        assert {request.target for request in service.received} <= {"/api/v1/records/task%2F1"}
        return found, len(service.received)


@pytest.mark.kling_emulator(settling=0)
def test_a_settled_cost_is_told_to_the_last_digit(kling_emulator: KlingEmulator) -> None:
    hook = KlingHook()
    task = hook.submit(VideoRequest(prompt="a cat", model="kling-v3-omni"))
    found = recorded_cost(hook, task.task_id, log=Lines())
    assert found is not None
    assert (found.amount, found.currency, found.settled) == (Decimal("0.3165"), "USD", True)


@pytest.mark.kling_emulator(settling=0.6)
def test_it_waits_until_the_amount_is_final(kling_emulator: KlingEmulator) -> None:
    hook = KlingHook()
    task = hook.submit(VideoRequest(prompt="a cat", model="kling-v3-omni"))
    found = recorded_cost(hook, task.task_id, log=Lines())
    assert found is not None
    assert found.settled


def test_an_amount_that_is_not_final_is_none(connect: Connect, clock: Clock) -> None:
    log = Lines()
    found, times = asked(connect, NOT_YET, log=log)
    assert found is None
    assert times > 3
    assert clock.naps == sorted(set(clock.naps))  # each longer than the one before
    assert sum(clock.naps) <= DEFAULT_PATIENCE
    assert "not settled" in log.lines[-1]


@pytest.mark.parametrize("patience", [0, 0.5, 3, 15, 60])
def test_it_waits_no_longer_than_it_may(connect: Connect, clock: Clock, patience: float) -> None:
    found, times = asked(connect, NOT_YET, patience=patience)
    assert found is None
    assert sum(clock.naps) <= patience
    assert times == len(clock.naps) + 1


@pytest.mark.parametrize(
    "passing", [Answer(503), Answer(429), Fault.CLOSED, Fault.RESET, Answer(200, {"code": 500})]
)
def test_a_passing_fault_is_asked_over(connect: Connect, clock: Clock, passing: Reply) -> None:
    found, times = asked(connect, passing, record())
    assert found is not None
    assert times == 2


def test_retry_after_is_heeded_or_ends_it(connect: Connect, clock: Clock) -> None:
    found, _ = asked(connect, Answer(429, b"", {"Retry-After": "7"}), record())
    assert found is not None
    assert clock.naps == [7]
    found, times = asked(connect, Answer(429, b"", {"Retry-After": "700"}), record())
    assert found is None
    assert times == 1


@pytest.mark.parametrize("for_good", [Answer(401), Answer(403), Answer(402), Answer(400)])
def test_a_refusal_is_not_asked_over(connect: Connect, clock: Clock, for_good: Reply) -> None:
    log = Lines()
    found, times = asked(connect, for_good, log=log)
    assert (found, times) == (None, 1)
    assert "task/1 could not be learnt" in log.lines[0]


@pytest.mark.parametrize(
    "odd",
    [
        Answer(404, {"code": 404}),
        Answer(404, b"<html>"),
        Answer(200, b"<html>hello"),
        Answer(200, b""),
        Answer(200, {"code": 200, "data": []}),
        record(settled="yes"),  # type: ignore[arg-type]
        record(amount="a lot"),
        record(amount=float("nan")),
    ],
)
def test_a_service_that_does_not_tell_is_left_alone(connect: Connect, clock: Clock, odd: Reply) -> None:
    log = Lines()
    found, times = asked(connect, odd, log=log)
    assert (found, times) == (None, 1)
    assert "does not tell" in log.lines[0]


@pytest.mark.parametrize("fault", [Answer(503), Fault.CLOSED, Fault.RESET, Fault.SLAMMED, Fault.GREETING])
def test_no_trouble_of_the_service_is_raised(connect: Connect, clock: Clock, fault: Reply) -> None:
    log = Lines()
    found, _ = asked(connect, fault, log=log)
    assert found is None
    assert len(log.lines) == 1


def test_an_unreachable_service_and_an_unusable_connection_are_no_failure(
    connect: Connect, clock: Clock
) -> None:
    for settings in ({"host": f"http://127.0.0.1:{refused_port()}"}, {"password": ""}):
        connect(**settings)
        assert recorded_cost(KlingHook(), "task-1", log=Lines()) is None


def test_a_service_that_keeps_silent_is_not_waited_for_as_long_as_a_video_would_be(connect: Connect) -> None:
    with Loopback(Fault.SILENT) as service:
        connect(service.url, read_timeout=3600)
        began = time.monotonic()
        assert recorded_cost(KlingHook(), "task-1", patience=0, log=Lines()) is None
    assert time.monotonic() - began < 20 * LEAST_ANSWER_SECONDS
