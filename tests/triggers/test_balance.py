from __future__ import annotations

import asyncio
import importlib
import json
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from airflow.models.trigger import Trigger
from airflow.serialization.serialized_objects import BaseSerialization

from airflow_provider_kling.api.task import Balance
from airflow_provider_kling.balance import BalanceEvent, BalanceOutcome, BalanceWaiting
from airflow_provider_kling.hooks.async_client import shared_client
from airflow_provider_kling.hooks.kling import KlingHook
from airflow_provider_kling.triggers.balance import KlingBalanceTrigger
from airflow_provider_kling.waiting import MAX_FAILURES
from tests.hooks.conftest import KEY, Connect
from tests.hooks.loopback import Answer, Fault, Loopback, Reply, refused_port

from .test_kling import SERDE, SOON, again, collect

SAMPLE: dict[str, Any] = {
    "kling_conn_id": "kling_default",
    "min_balance_usd": "5.00",
    "deadline": 1_800_003_600.25,
    "started": 1_800_000_000.125,
    "poll_interval": 60.0,
}


def trigger(*, lasts: float = 3600, **settings: Any) -> KlingBalanceTrigger:
    """Make a trigger that asks often; ``lasts`` is seconds until its deadline."""
    now = time.time()
    chosen = SAMPLE | {"deadline": now + lasts, "started": now, "poll_interval": SOON}
    return KlingBalanceTrigger(**chosen | settings)


def fired_by(waiting: KlingBalanceTrigger) -> BalanceEvent:
    """Run a trigger to its end, which comes with exactly one event that is plain JSON."""
    [event] = asyncio.run(collect(waiting))
    return BalanceEvent.from_dict(json.loads(json.dumps(event.payload)))


def told(balance: Any, **more: Any) -> Answer:
    return Answer(body={"code": 200, "data": {"balance": balance, "currency": "USD", **more}})


STORIES: dict[str, tuple[list[Reply], BalanceOutcome, int]] = {
    "enough": ([told(1), told("4.99"), told(5)], BalanceOutcome.ENOUGH, 3),
    "recovered": (
        [Answer(503), Fault.CLOSED, Answer(429), Answer(404), Answer(200, b"<html>"), told(9)],
        BalanceOutcome.ENOUGH,
        6,
    ),
    "lost": ([told(1), Answer(500)], BalanceOutcome.LOST_CONTACT, 1 + MAX_FAILURES),
    "garbled": ([b"220 mail.example ESMTP\r\n\r\n"], BalanceOutcome.LOST_CONTACT, MAX_FAILURES),
    "never told": ([Answer(404)], BalanceOutcome.LOST_CONTACT, MAX_FAILURES),
    "refused": ([told(1), Answer(401, {"code": 401})], BalanceOutcome.REFUSED, 2),
    "other money": ([told(1000, currency="JPY")], BalanceOutcome.REFUSED, 1),
}


@pytest.mark.parametrize("name", STORIES)
def test_a_wait_ends_with_one_event_that_tells_how(connect: Connect, name: str) -> None:
    replies, outcome, asked = STORIES[name]
    with Loopback(*replies) as service:
        connect(service.url)
        waiting = trigger()
        event = fired_by(waiting)
        assert {(each.method, each.target, each.key) for each in service.received} == {
            ("GET", "/api/v1/balance", f"Bearer {KEY}")
        }
        assert len(service.received) == asked
    assert event == BalanceEvent(outcome=outcome, deadline=waiting.deadline, started=waiting.started)


def test_a_wait_that_outlasts_its_deadline_is_timed_out(connect: Connect) -> None:
    with Loopback(told(1)) as service:
        connect(service.url)
        waiting = trigger(lasts=0.2)
        assert fired_by(waiting).outcome is BalanceOutcome.TIMED_OUT
        assert time.time() >= waiting.deadline


def test_it_asks_first_after_one_interval(connect: Connect) -> None:
    with Loopback(told(9)) as service:
        connect(service.url)
        waiting = trigger(poll_interval=0.3)
        fired_by(waiting)
    assert time.time() - waiting.started >= 0.3 * 0.9


def test_a_trigger_that_starts_again_too_late_asks_once_more_and_gets_no_new_deadline(
    connect: Connect,
) -> None:
    for reply, outcome in ((told(1), BalanceOutcome.TIMED_OUT), (told(9), BalanceOutcome.ENOUGH)):
        with Loopback(reply) as service:
            connect(service.url)
            waiting = trigger(lasts=-60)
            event = fired_by(again(waiting))
            assert (event.outcome, event.deadline) == (outcome, waiting.deadline)
            assert len(service.received) == 1


# It never raises


@pytest.mark.usefixtures("airflow_db")
def test_a_connection_that_airflow_does_not_find_is_looked_up_again() -> None:
    assert fired_by(trigger(kling_conn_id="not_there")).outcome is BalanceOutcome.LOST_CONTACT


def test_with_an_unusable_connection_the_wait_is_refused(connect: Connect) -> None:
    connect(password="")
    assert fired_by(trigger()).outcome is BalanceOutcome.REFUSED


def test_failing_lookups_are_failed_questions(failing_lookups: Callable[[BaseException], list[str]]) -> None:
    asked = failing_lookups(RuntimeError("the API server is away"))
    assert fired_by(trigger()).outcome is BalanceOutcome.LOST_CONTACT
    assert asked == ["kling_default"] * MAX_FAILURES


def test_no_network_makes_it_raise(connect: Connect) -> None:
    connect(f"http://127.0.0.1:{refused_port()}")
    assert fired_by(trigger()).outcome is BalanceOutcome.LOST_CONTACT


@pytest.mark.parametrize("setting", ["five", "0", ""])
def test_a_setting_that_is_no_number_does_not_end_the_wait(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv("AIRFLOW__KLING__MAX_FAILED_QUERIES", setting)
    with Loopback(Answer(503)) as service:
        connect(service.url)
        assert fired_by(trigger()).outcome is BalanceOutcome.LOST_CONTACT
        assert len(service.received) == MAX_FAILURES


def test_a_wrong_price_in_the_configuration_does_not_end_the_wait(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__KLING__PRICES", "cheap")
    with Loopback(told(9)) as service:
        connect(service.url)
        assert fired_by(trigger()).outcome is BalanceOutcome.ENOUGH


def test_being_cancelled_is_no_outcome_and_leaves_nothing_open(connect: Connect) -> None:
    with Loopback(told(1)) as service:
        connect(service.url)

        async def story() -> None:
            running = asyncio.create_task(collect(trigger()))
            while not service.received:
                await asyncio.sleep(SOON)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            while service.open:
                await asyncio.sleep(SOON)

        asyncio.run(story())


# Its arguments


def test_it_comes_back_from_airflows_database_as_it_was() -> None:
    after = again(KlingBalanceTrigger(**SAMPLE))
    assert type(after) is KlingBalanceTrigger
    for name, value in SAMPLE.items():
        assert getattr(after, name) == value
        assert type(getattr(after, name)) is type(value)


def test_it_comes_back_from_every_serializer_of_airflow() -> None:
    _, kwargs = KlingBalanceTrigger(**SAMPLE).serialize()
    assert json.loads(json.dumps(kwargs)) == kwargs
    through = json.loads(json.dumps(BaseSerialization.serialize(kwargs)))
    assert BaseSerialization.deserialize(through) == kwargs
    serde = importlib.import_module(SERDE)
    assert serde.deserialize(json.loads(json.dumps(serde.serialize(kwargs)))) == kwargs


def test_arguments_of_a_newer_release_are_tolerated() -> None:
    made = KlingBalanceTrigger(**SAMPLE, colour="red")
    assert made.serialize() == KlingBalanceTrigger(**SAMPLE).serialize()


def test_it_goes_on_with_a_wait_where_that_was() -> None:
    wait = BalanceWaiting(
        Decimal("5.00"), deadline=1_800_003_600.25, poll_interval=60.0, started=1_800_000_000.125
    )
    _, kwargs = KlingBalanceTrigger.of(wait, kling_conn_id="kling_default").serialize()
    assert kwargs == SAMPLE


def test_what_is_stored_logged_and_sent_holds_no_secret(
    connect: Connect, log_text: Callable[[], str]
) -> None:
    waiting = trigger()
    with Loopback(told(1), Answer(500), Answer(401)) as service:
        connect(service.url)
        [event] = asyncio.run(collect(waiting))
        assert service.received[0].key == f"Bearer {KEY}"
    row = Trigger.from_object(waiting)
    for shown in (repr(waiting), str(waiting.serialize()), str(row.kwargs), repr(event), log_text()):
        assert KEY not in shown


# Whoever asks, the same answer means the same

ANSWERS: dict[str, Reply] = {
    "whole": told("1.50", total=3, frozen="1.5"),
    "at the top": Answer(body={"balance": 2}),
    "another currency": told(1, currency="CNY"),
    "not offered": Answer(404, {"code": 404}),
    "a page": Answer(200, b"<html>"),
    "another shape": Answer(200, {"data": {"coins": 1}}),
    "no number": told("a lot"),
    "refused": Answer(403, {"code": 403}),
    "in trouble": Answer(400, {"code": 400, "msg": "told by the service"}),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_worker_and_triggerer_read_alike(connect: Connect, name: str) -> None:
    async def of_triggerer() -> Balance | None:
        async with shared_client("kling_default") as client:
            return await client.get_balance()

    found: list[Any] = []
    with Loopback(ANSWERS[name]) as service:
        connect(service.url)
        for ask in (KlingHook().get_balance, lambda: asyncio.run(of_triggerer())):
            try:
                found.append(ask())
            except Exception as error:
                found.append((type(error), str(error)))
    assert found[0] == found[1]


def test_a_client_whose_key_is_refused_is_not_shared_on(connect: Connect) -> None:
    async def story() -> bool:
        async with shared_client("kling_default") as client:
            with pytest.raises(Exception, match="refused the key"):
                await client.get_balance()
            return client.may_be_outdated

    with Loopback(Answer(401)) as service:
        connect(service.url)
        assert asyncio.run(story())
