from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import json
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from airflow.models.trigger import Trigger
from airflow.serialization.serialized_objects import BaseSerialization
from airflow.triggers.base import BaseTrigger, TriggerEvent

import airflow_provider_kling.triggers.kling as module
from airflow_provider_kling.api.errors import LostContactError
from airflow_provider_kling.hooks.kling import KlingHook
from airflow_provider_kling.triggers import watch
from airflow_provider_kling.triggers.kling import KlingPauseTrigger, KlingVideoTrigger
from airflow_provider_kling.waiting import (
    MAX_ASKS_FOR_LINK,
    MAX_FAILURES,
    Outcome,
    PauseEvent,
    WaitEvent,
    Waiting,
)
from tests.hooks.conftest import KEY, Certificate, Connect
from tests.hooks.loopback import Answer, Fault, Loopback, Reply, refused_port, task_answer
from tests.hooks.test_parity import ANSWERS, LOST
from tests.task_runs import no_slots

LINK = "https://r2.example/v.mp4"
SOON = 0.01


@pytest.fixture(autouse=True)
def _no_slots() -> Iterator[None]:
    with no_slots():
        yield


def trigger(*, lasts: float = 3600, **settings: Any) -> KlingVideoTrigger:
    """Make a trigger that asks often; ``lasts`` is seconds until its deadline."""
    now = time.time()
    chosen: dict[str, Any] = {
        "kling_conn_id": "kling_default",
        "kling_task_id": "task-1",
        "deadline": now + lasts,
        "submitted_at": now,
        "poll_interval": SOON,
    }
    return KlingVideoTrigger(**chosen | settings)


async def collect(waiting: BaseTrigger) -> list[TriggerEvent]:
    async with aclosing(waiting.run()) as events:  # type: ignore[type-var]
        return [event async for event in events]


def fired_by(waiting: KlingVideoTrigger) -> WaitEvent:
    """Run a trigger to its end, which comes with exactly one event that is plain JSON."""
    [event] = asyncio.run(collect(waiting))
    return WaitEvent.from_dict(json.loads(json.dumps(event.payload)))


# Each outcome is one event


@pytest.mark.parametrize(
    ("replies", "outcome"),
    [
        (
            [task_answer("pending"), task_answer("processing"), task_answer("completed", LINK)],
            Outcome.COMPLETED,
        ),
        ([task_answer("processing"), task_answer("failed", failMsg="no")], Outcome.FAILED),
        ([task_answer("rendering"), Answer(503), task_answer("completed", LINK)], Outcome.COMPLETED),
        ([Answer(500)], Outcome.LOST_CONTACT),
        ([Fault.CLOSED], Outcome.LOST_CONTACT),
        ([ANSWERS["a page"]], Outcome.LOST_CONTACT),
        ([Answer(401, {"code": 401})], Outcome.REFUSED),
        ([Answer(402, {"code": 402})], Outcome.REFUSED),
        ([Answer(403, {"code": 403})], Outcome.REFUSED),
        ([Answer(404, {"code": 404})], Outcome.REFUSED),
        ([task_answer("completed")], Outcome.NO_RESULT),
        ([task_answer("completed"), task_answer("completed", LINK)], Outcome.COMPLETED),
    ],
)
def test_a_wait_ends_with_one_event_that_tells_how(
    connect: Connect, replies: list[Reply], outcome: Outcome
) -> None:
    with Loopback(*replies) as service:
        connect(service.url)
        waiting = trigger()
        event = fired_by(waiting)
    assert event == WaitEvent(
        kling_task_id="task-1", outcome=outcome, deadline=waiting.deadline, submitted_at=waiting.submitted_at
    )


def test_a_wait_that_outlasts_its_deadline_is_timed_out(connect: Connect) -> None:
    with Loopback(task_answer("processing")) as service:
        connect(service.url)
        waiting = trigger(lasts=0.2)
        event = fired_by(waiting)
        assert time.time() >= waiting.deadline
    assert event.outcome is Outcome.TIMED_OUT


def test_it_only_ever_asks(connect: Connect) -> None:
    with Loopback(task_answer("processing"), Answer(503), task_answer("completed", LINK)) as service:
        connect(service.url)
        fired_by(trigger())
    assert {(query.method, query.target, query.key) for query in service.received} == {
        ("GET", "/api/v1/video/generations?task_id=task-1", f"Bearer {KEY}")
    }
    assert len(service.received) == 3


def test_it_asks_as_often_as_its_interval_says_and_first_after_one(connect: Connect) -> None:
    with Loopback(task_answer("processing"), task_answer("completed", LINK)) as service:
        connect(service.url)
        waiting = trigger(poll_interval=0.3)
        fired_by(waiting)
    assert time.time() - waiting.submitted_at >= 2 * 0.3 * 0.9


def test_retry_after_is_honoured(connect: Connect) -> None:
    with Loopback(Answer(429, b"", {"Retry-After": "1"}), task_answer("completed", LINK)) as service:
        connect(service.url)
        waiting = trigger()
        assert fired_by(waiting).outcome is Outcome.COMPLETED
        assert len(service.received) == 2
    assert time.time() - waiting.submitted_at >= 1


def test_a_busy_service_is_no_lost_contact(connect: Connect) -> None:
    with Loopback(*[Answer(429)] * (3 * MAX_FAILURES), task_answer("completed", LINK)) as service:
        connect(service.url)
        assert fired_by(trigger()).outcome is Outcome.COMPLETED


def test_failures_and_missing_links_are_borne_so_many_times(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    for reply, asks in ((Answer(503), MAX_FAILURES), (task_answer("completed"), MAX_ASKS_FOR_LINK)):
        with Loopback(reply) as service:
            connect(service.url)
            fired_by(trigger())
            assert len(service.received) == asks
    monkeypatch.setenv("AIRFLOW__KLING__MAX_FAILED_QUERIES", "2")
    with Loopback(Answer(503)) as service:
        connect(service.url)
        fired_by(trigger())
        assert len(service.received) == 2


# The deadline is fixed


def test_a_trigger_that_starts_again_gets_no_new_deadline(connect: Connect) -> None:
    # The first is broken off while it waits for an answer: it cannot have come to its end before that.
    with Loopback(Fault.SILENT, task_answer("processing")) as service:
        connect(service.url)
        waiting = trigger(lasts=1)

        async def broken_off() -> None:
            running = asyncio.create_task(collect(waiting))
            while not service.received:
                await asyncio.sleep(SOON)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

        asyncio.run(broken_off())
        elsewhere = again(waiting)
        event = fired_by(elsewhere)
        assert (event.outcome, event.deadline) == (Outcome.TIMED_OUT, waiting.deadline)
        assert event.submitted_at == waiting.submitted_at


def test_a_trigger_that_starts_again_too_late_asks_once_more(connect: Connect) -> None:
    done = task_answer("completed", LINK)
    for replies, outcome in (
        ([*[task_answer("processing")] * 3, done], Outcome.TIMED_OUT),
        ([done], Outcome.COMPLETED),
    ):
        with Loopback(*replies) as service:
            connect(service.url)
            assert fired_by(trigger(lasts=-60, submitted_at=time.time() - 3600)).outcome is outcome
            assert len(service.received) == 1


# It never raises


@pytest.mark.usefixtures("airflow_db")
def test_a_connection_that_airflow_does_not_find_is_looked_up_again() -> None:
    assert fired_by(trigger(kling_conn_id="not_there")).outcome is Outcome.LOST_CONTACT


@pytest.mark.parametrize("settings", [{"password": ""}, {"host": "ftp://x"}, {"ca_bundle": "/not/there.pem"}])
def test_with_an_unusable_connection_the_wait_is_refused(connect: Connect, settings: dict[str, Any]) -> None:
    connect(**settings)
    assert fired_by(trigger()).outcome is Outcome.REFUSED


def test_failing_lookups_are_failed_queries(
    failing_lookups: Callable[[BaseException], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        watch, "LOOKUP_INTERVAL", 0
    )  # far below the interval of queries, as it is with real ones
    asked = failing_lookups(RuntimeError("the API server is away"))
    assert fired_by(trigger()).outcome is Outcome.LOST_CONTACT
    assert asked == ["kling_default"] * MAX_FAILURES


@pytest.mark.parametrize("name", [*ANSWERS, *LOST])
def test_no_answer_makes_it_raise(connect: Connect, name: str) -> None:
    with Loopback((ANSWERS | LOST)[name]) as service:
        connect(service.url, read_timeout=5)
        fired_by(trigger(lasts=-1))
        assert len(service.received) >= 1


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_network_makes_it_raise(connect: Connect, scheme: str) -> None:
    connect(f"{scheme}://127.0.0.1:{refused_port()}")
    assert fired_by(trigger()).outcome is Outcome.LOST_CONTACT


def test_a_fault_that_nobody_thought_of_is_a_failed_query(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, task_log: Callable[[], list[str]]
) -> None:
    import aiohttp

    async def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("nobody thought of this")

    monkeypatch.setattr(aiohttp.ClientSession, "_request", broken)
    connect("http://127.0.0.1:1")
    assert fired_by(trigger()).outcome is Outcome.LOST_CONTACT
    assert any("ZeroDivisionError: nobody thought of this" in line for line in task_log())


@pytest.mark.parametrize("setting", ["five", "0", ""])
def test_a_setting_that_is_no_number_does_not_cost_the_video(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, task_log: Callable[[], list[str]], setting: str
) -> None:
    monkeypatch.setenv("AIRFLOW__KLING__MAX_FAILED_QUERIES", setting)
    with Loopback(Answer(503)) as service:
        connect(service.url)
        assert fired_by(trigger()).outcome is Outcome.LOST_CONTACT
        assert len(service.received) == MAX_FAILURES
    assert any(
        "max_failed_queries" in line and f"going on with {MAX_FAILURES}" in line for line in task_log()
    )


def test_being_cancelled_is_no_outcome_and_leaves_nothing_open(connect: Connect) -> None:
    with Loopback(task_answer("processing")) as service:
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


def test_what_ends_the_wait_is_in_the_triggerers_log(
    connect: Connect, task_log: Callable[[], list[str]]
) -> None:
    with Loopback(Answer(401, {"code": 401, "msg": "key revoked"})) as service:
        connect(service.url)
        fired_by(trigger())
    assert any("The service refused the key" in line and "key revoked" in line for line in task_log())


# Its arguments

SAMPLES: dict[str, dict[str, Any]] = {
    "KlingVideoTrigger": {
        "kling_conn_id": "kling_default",
        "kling_task_id": "task-1",
        "deadline": 1_800_003_600.25,
        "submitted_at": 1_800_000_000.125,
        "poll_interval": 10.0,
    },
    "KlingPauseTrigger": {
        "until": 1_800_000_060.5,
        "deadline": 1_800_003_600.25,
        "attempt_ends_at": None,
        "uploads": {"ab12": ["https://files.example/a.png", 1_800_000_000.5]},
    },
}
SERDE = next(
    name
    for name in ("airflow.sdk.serde", "airflow.serialization.serde")
    if importlib.util.find_spec(name.split(".")[0] + "." + name.split(".")[1])
    and importlib.util.find_spec(name)
)
TRIGGERS = [
    each for each in vars(module).values() if inspect.isclass(each) and each.__module__ == module.__name__
]


def again(waiting: BaseTrigger) -> Any:
    """Make a trigger again as Airflow does: through its database row and its serializer."""
    row = Trigger.from_object(waiting)
    package, _, name = row.classpath.rpartition(".")
    return getattr(importlib.import_module(package), name)(**row.kwargs)


@pytest.mark.parametrize("kind", TRIGGERS)
def test_it_comes_back_from_airflows_database_as_it_was(kind: type[BaseTrigger]) -> None:
    before = kind(**SAMPLES[kind.__name__])
    after = again(before)
    assert type(after) is kind
    assert after.serialize() == before.serialize()
    for name, value in SAMPLES[kind.__name__].items():
        assert getattr(after, name) == value
        assert type(getattr(after, name)) is type(value)


@pytest.mark.parametrize("kind", TRIGGERS)
def test_it_comes_back_from_every_serializer_of_airflow(kind: type[BaseTrigger]) -> None:
    _, kwargs = kind(**SAMPLES[kind.__name__]).serialize()
    assert json.loads(json.dumps(kwargs)) == kwargs
    assert (
        BaseSerialization.deserialize(json.loads(json.dumps(BaseSerialization.serialize(kwargs)))) == kwargs
    )
    serde = importlib.import_module(SERDE)
    assert serde.deserialize(json.loads(json.dumps(serde.serialize(kwargs)))) == kwargs


@pytest.mark.parametrize("kind", TRIGGERS)
def test_arguments_of_a_newer_release_are_tolerated(kind: type[BaseTrigger]) -> None:
    made = kind(**SAMPLES[kind.__name__], colour="red", callback={"url": "https://example.com"})
    assert made.serialize() == kind(**SAMPLES[kind.__name__]).serialize()


def test_it_goes_on_with_a_wait_where_that_was() -> None:
    wait = Waiting("task-1", deadline=1_800_003_600.0, poll_interval=7.5, started=1_800_000_000.0)
    _, kwargs = KlingVideoTrigger.of(wait, kling_conn_id="kling_other").serialize()
    assert kwargs == {
        "kling_conn_id": "kling_other",
        "kling_task_id": "task-1",
        "deadline": 1_800_003_600.0,
        "submitted_at": 1_800_000_000.0,
        "poll_interval": 7.5,
    }


def test_what_is_stored_logged_and_sent_holds_no_secret(
    connect: Connect, log_text: Callable[[], str]
) -> None:
    waiting = trigger()
    with Loopback(task_answer("processing"), Answer(500), Answer(401)) as service:
        connect(service.url)
        [event] = asyncio.run(collect(waiting))
        assert service.received[0].key == f"Bearer {KEY}"
    row = Trigger.from_object(waiting)
    for shown in (repr(waiting), str(waiting.serialize()), str(row.kwargs), repr(event), log_text()):
        assert KEY not in shown
    assert service.url not in str(row.kwargs)


# In Airflow's triggerer


def test_airflows_triggerer_runs_it(connect: Connect) -> None:
    from airflow.jobs.triggerer_job_runner import TriggerRunner

    async def run() -> list[Any]:
        runner = TriggerRunner()
        runner.triggers[1] = {"task": None, "is_watcher": False, "name": "ID 1", "events": 0}  # type: ignore[typeddict-item]
        await runner.run_trigger(1, again(trigger()))
        return [(entry[0], entry[1]) for entry in runner.events]

    with Loopback(task_answer("pending"), task_answer("completed", LINK)) as service:
        connect(service.url)
        [(trigger_id, event)] = asyncio.run(run())
    assert trigger_id == 1
    assert WaitEvent.from_dict(event.payload).outcome is Outcome.COMPLETED


# A pause


@pytest.mark.parametrize("attempt_ends_at", [None, 1_800_000_500.0])
def test_a_pause_ends_with_one_event_when_it_is_time(attempt_ends_at: float | None) -> None:
    until = time.time() + 0.2
    pause = KlingPauseTrigger(until=until, deadline=1_800_003_600.0, attempt_ends_at=attempt_ends_at)
    [event] = asyncio.run(collect(again(pause)))
    assert time.time() >= until
    assert PauseEvent.from_dict(json.loads(json.dumps(event.payload))).to_dict() == {
        "deadline": 1_800_003_600.0,
        "attempt_ends_at": attempt_ends_at,
    }


def test_a_pause_that_starts_again_is_not_longer() -> None:
    began = time.monotonic()
    assert (
        len(asyncio.run(collect(KlingPauseTrigger(until=time.time() - 60, deadline=time.time() + 60)))) == 1
    )
    assert time.monotonic() - began < 30


# As a worker decides

STORIES: dict[str, list[Reply]] = {
    "completed": [task_answer("pending"), task_answer("completed", LINK)],
    "failed": [task_answer("processing"), task_answer("failed", failCode="INVALID_INPUT")],
    "recovered": [Answer(503), Fault.CLOSED, Answer(429), task_answer("completed", LINK)],
    "lost": [task_answer("processing"), Answer(500)],
    "refused": [task_answer("processing"), Answer(404, {"code": 404})],
    "no link": [task_answer("completed")],
    "flapping": [*[Answer(503), task_answer("processing")] * 8, task_answer("completed", LINK)],
}


@pytest.mark.parametrize("name", STORIES)
def test_worker_and_triggerer_decide_alike(connect: Connect, name: str) -> None:
    asked, outcomes = [], []
    for wait in (
        lambda: fired_by(trigger()).outcome,
        lambda: KlingHook().wait_until_over(waiting_like(trigger())).outcome,
    ):
        with Loopback(*STORIES[name]) as service:
            connect(service.url)
            outcomes.append(wait())
            asked.append(len(service.received))
    assert outcomes[0] is outcomes[1]
    assert asked[0] == asked[1]


def waiting_like(waiting: KlingVideoTrigger) -> Waiting:
    return Waiting(
        waiting.kling_task_id,
        deadline=waiting.deadline,
        poll_interval=waiting.poll_interval,
        started=waiting.submitted_at,
    )


def test_a_certificate_of_the_connection_is_enough(connect: Connect, certificate: Certificate) -> None:
    with Loopback(task_answer("completed", LINK), tls=certificate.server) as service:
        connect(service.url, ca_bundle=str(certificate.path))
        assert fired_by(trigger()).outcome is Outcome.COMPLETED


def test_contact_lost_by_the_triggerer_is_taken_up_by_the_worker(connect: Connect) -> None:
    with Loopback(Answer(503)) as service:
        connect(service.url)
        event = fired_by(trigger())
        over = KlingHook().wait_until_over(Waiting.resumed(event, poll_interval=SOON))
        assert len(service.received) == MAX_FAILURES + 1
    assert isinstance(over.error, LostContactError)
