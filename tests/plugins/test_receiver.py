"""What a callback does to the task that waits, and what it cannot do."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from airflow_provider_kling.callbacks import PATH, CallbackToken
from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.plugins import accounts, admission, database, waiting_tasks
from airflow_provider_kling.plugins import callbacks as receiver
from airflow_provider_kling.triggers.kling import KlingVideoTrigger
from airflow_provider_kling.waiting import WaitEvent
from tests.plugins.conftest import CONN_ID, Waiter, body_of, create

WRONG = (404, {"detail": "Not Found"})
TAKEN = (200, {"detail": "OK"})
AGAIN = (503, {"detail": "Service Unavailable"})


def post(client: Any, token: str, body: Any = None, **how: Any) -> tuple[int, Any]:
    arguments = {"json": body} if body is not None else how
    answer = client.post(f"{PATH}/{token}", **arguments)
    return answer.status_code, answer.json()


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    monkeypatch.setattr(logging.getLogger("airflow_provider_kling"), "propagate", True)
    caplog.set_level(logging.INFO, logger="airflow_provider_kling")
    return lambda: [record.getMessage() for record in caplog.records if record.name == receiver.__name__]


@pytest.fixture
def waiting(waiter: Waiter, service: KlingEmulator) -> tuple[Waiter, str]:
    """A task that waits for a video, which the service has made already."""
    kling_task_id = create(service)
    waiter.defer(kling_task_id)
    return waiter, kling_task_id


@pytest.mark.parametrize(
    "more", [{}, {"unrecorded": "Zm9vYmFyYmF6"}], ids=["as ever", "id not in the ledger"]
)
def test_the_waiting_task_goes_on_with_the_event_that_its_trigger_would_have_sent(
    client: Any, service: KlingEmulator, waiter: Waiter, log: Callable[[], list[str]], more: dict[str, Any]
) -> None:
    kling_task_id = create(service)
    waiter.defer(kling_task_id, **more)
    from airflow.models.trigger import Trigger
    from airflow.utils.session import create_session

    with create_session() as session:
        arguments = session.get(Trigger, waiter.row().trigger_id).kwargs

    assert post(client, waiter.token(service.api_key), body_of(kling_task_id)) == TAKEN
    assert waiter.is_resumed
    assert waiter.row().trigger_id is None
    trigger = KlingVideoTrigger(**arguments | {"poll_interval": 0.01})

    async def first_event() -> Any:
        async for event in trigger.run():
            return event.payload
        raise AssertionError("the trigger ended without an event")

    assert waiter.event() == asyncio.run(first_event())
    [line] = log()
    assert "completed; its task was resumed" in line
    assert waiter.dag_id in line
    assert kling_task_id in line


def test_a_failed_video_resumes_its_task_as_failed(
    client: Any, service: KlingEmulator, waiter: Waiter
) -> None:
    service.inject("fail", fail_code="CONTENT_MODERATION")
    kling_task_id = create(service)
    waiter.defer(kling_task_id)
    assert post(client, waiter.token(service.api_key), body_of(kling_task_id, "failed")) == TAKEN
    assert WaitEvent.from_dict(waiter.event()).outcome == "failed"


def test_only_what_the_service_says_is_believed(client: Any, service: KlingEmulator, waiter: Waiter) -> None:
    service.inject("fail", fail_code="CONTENT_MODERATION")
    failed = create(service)
    waiter.defer(failed)
    assert post(client, waiter.token(service.api_key), body_of(failed, "completed")) == TAKEN
    assert waiter.event()["outcome"] == "failed", "the body said completed"


@pytest.mark.kling_emulator(latency=3600)
def test_a_body_that_says_completed_changes_nothing_while_the_service_says_otherwise(
    client: Any, service: KlingEmulator, waiting: tuple[Waiter, str]
) -> None:
    waiter, kling_task_id = waiting
    assert post(client, waiter.token(service.api_key), body_of(kling_task_id)) == AGAIN
    assert waiter.state == "deferred"


def test_a_doubled_callback_resumes_once_and_is_thanked_for_each_time(
    client: Any, service: KlingEmulator, waiting: tuple[Waiter, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiter, kling_task_id = waiting
    from airflow.models.trigger import Trigger

    resumed = []
    submit = Trigger.submit_event.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        Trigger,
        "submit_event",
        classmethod(lambda cls, *a, **k: (resumed.append(a), submit(cls, *a, **k))[1]),
    )
    token = waiter.token(service.api_key)
    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(lambda _: post(client, token, body_of(kling_task_id)), range(10)))
    # One that could not get at the database in time comes again, as any other.
    assert TAKEN in answers
    assert {answer[0] for answer in answers} <= {200, 503}
    assert len(resumed) == 1
    assert service.ledger.task(kling_task_id).queries == 1, "one asks, the others learn from it"
    assert post(client, token, body_of(kling_task_id)) == TAKEN
    assert len(resumed) == 1


@pytest.mark.parametrize("state", ["success", "failed", "skipped", "removed"])
def test_a_late_callback_for_a_finished_task_needs_nothing(
    client: Any, service: KlingEmulator, waiting: tuple[Waiter, str], state: str
) -> None:
    waiter, kling_task_id = waiting
    waiter.change(state=state, trigger_id=None)
    assert post(client, waiter.token(service.api_key), body_of(kling_task_id)) == TAKEN
    assert waiter.state == state


@pytest.mark.parametrize("state", ["queued", "running", "scheduled"])
def test_a_task_that_was_resumed_already_needs_nothing(
    client: Any, service: KlingEmulator, waiting: tuple[Waiter, str], state: str
) -> None:
    waiter, kling_task_id = waiting
    token = waiter.token(service.api_key)
    assert post(client, token, body_of(kling_task_id)) == TAKEN
    waiter.change(state=state)
    assert post(client, token, body_of(kling_task_id)) == TAKEN
    assert waiter.state == state


def test_a_task_that_has_not_deferred_yet_is_called_again_later(
    client: Any, service: KlingEmulator, waiter: Waiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_tasks, "SETTLE_SECONDS", 3600)
    kling_task_id, token = create(service), waiter.token(service.api_key)
    assert post(client, token, body_of(kling_task_id)) == AGAIN
    waiter.defer(kling_task_id, age=0.1)
    assert post(client, token, body_of(kling_task_id)) == AGAIN, "a scheduler may not know of it yet"
    assert waiter.state == "deferred"
    waiter.defer(kling_task_id, age=waiting_tasks.SETTLE_SECONDS + 1)
    assert post(client, token, body_of(kling_task_id)) == TAKEN
    assert waiter.is_resumed


def test_the_address_of_an_earlier_attempt_resumes_its_successor_if_that_waits_for_the_same_video(
    client: Any, service: KlingEmulator, waiting: tuple[Waiter, str]
) -> None:
    waiter, kling_task_id = waiting
    waiter.end_attempt()
    waiter.defer(kling_task_id)
    assert post(client, waiter.token(service.api_key), body_of(kling_task_id)) == TAKEN
    assert waiter.is_resumed


def test_the_address_of_an_earlier_attempt_does_nothing_to_one_that_waits_for_another_video(
    client: Any, service: KlingEmulator, waiting: tuple[Waiter, str]
) -> None:
    waiter, kling_task_id = waiting
    waiter.end_attempt()
    waiter.defer(create(service))
    assert post(client, waiter.token(service.api_key), body_of(kling_task_id)) == TAKEN
    assert waiter.state == "deferred"


def test_a_task_whose_run_was_deleted_needs_nothing(client: Any, service: KlingEmulator) -> None:
    token = CallbackToken(uuid.uuid4(), "A" * 12, CONN_ID).sign(service.api_key)
    assert post(client, token, body_of("clx1")) == TAKEN


def test_the_right_token_with_another_videos_id_is_wrong(
    client: Any, service: KlingEmulator, waiting: tuple[Waiter, str]
) -> None:
    waiter, _ = waiting
    assert post(client, waiter.token(service.api_key), body_of(create(service))) == WRONG
    assert post(client, waiter.token(service.api_key), body_of("no-such-task")) == WRONG
    assert waiter.state == "deferred"


def test_another_tasks_token_does_nothing_to_this_one(
    client: Any,
    service: KlingEmulator,
    waiting: tuple[Waiter, str],
    make_waiter: Callable[[], Waiter],
) -> None:
    waiter, kling_task_id = waiting
    other = make_waiter()
    other.defer(create(service))
    assert post(client, other.token(service.api_key), body_of(kling_task_id)) == WRONG
    assert (waiter.state, other.state) == ("deferred", "deferred")


def test_a_video_that_the_service_does_not_know_is_wrong(
    client: Any, service: KlingEmulator, waiter: Waiter
) -> None:
    waiter.defer("made-up")
    assert post(client, waiter.token(service.api_key), body_of("made-up")) == WRONG
    assert waiter.state == "deferred"


def test_a_task_that_waits_with_another_connection_is_not_resumed(
    client: Any, service: KlingEmulator, waiter: Waiter
) -> None:
    kling_task_id = create(service)
    waiter.defer(kling_task_id, conn_id="another")
    post(client, waiter.token(service.api_key), body_of(kling_task_id))
    assert waiter.state == "deferred"


def test_no_trigger_but_that_of_a_video_is_resumed(
    client: Any, service: KlingEmulator, waiter: Waiter
) -> None:
    kling_task_id = create(service)
    waiter.defer(kling_task_id, path="airflow.providers.standard.triggers.temporal.TimeDeltaTrigger")
    assert post(client, waiter.token(service.api_key), body_of(kling_task_id)) == TAKEN
    assert waiter.state == "deferred"


def test_whatever_is_wrong_the_answer_is_the_same(
    client: Any, service: KlingEmulator, waiting: tuple[Waiter, str], log: Callable[[], list[str]]
) -> None:
    waiter, kling_task_id = waiting
    good = waiter.token(service.api_key)
    flipped = ("B" if good[0] == "A" else "A") + good[1:]
    calls: list[tuple[str, dict[str, Any]]] = [
        (flipped, {"json": body_of(kling_task_id)}),
        (waiter.token("sk_another_key"), {"json": body_of(kling_task_id)}),
        (waiter.token(service.api_key, conn_id="not_there"), {"json": body_of(kling_task_id)}),
        ("x", {"json": body_of(kling_task_id)}),
        (good + "x", {"json": body_of(kling_task_id)}),
        ("A" * 5000, {"json": body_of(kling_task_id)}),
        (good, {"content": b""}),
        (good, {"content": b"{"}),
        (good, {"content": b"\xff\xfe"}),
        (good, {"content": b"[" * 60_000}),
        (good, {"json": []}),
        (good, {"json": {"data": {"taskId": kling_task_id, "state": "processing"}}}),
        (good, {"json": {"data": {"state": "completed"}}}),
        (good, {"json": body_of("another-task")}),
    ]
    answers = []
    for token, how in calls:
        answer = client.post(f"{PATH}/{token}", **how)
        answers.append((answer.status_code, answer.content, answer.headers["content-type"]))
    assert set(answers) == {(404, b'{"detail":"Not Found"}', "application/json")}
    assert waiter.state == "deferred"
    assert len(log()) == len(calls), "one line for each"
    assert post(client, good, body_of(kling_task_id)) == TAKEN
    tokens = {token for token, _ in calls if len(token) > 20}
    assert not any(token[5:] in line for token in tokens for line in log())


def test_a_body_of_more_than_64_kb_is_not_read_to_its_end(
    client: Any, service: KlingEmulator, waiting: tuple[Waiter, str]
) -> None:
    waiter, kling_task_id = waiting
    sent = 0

    def pieces() -> Any:
        nonlocal sent
        for _ in range(64):
            sent += 16 * 1024
            yield b" " * 16 * 1024

    token = waiter.token(service.api_key)
    assert post(client, token, content=pieces())[0] == 413
    assert post(client, token, content=b" " * (receiver.MOST_BYTES + 1))[0] == 413
    just = json.dumps(body_of(kling_task_id)).encode().ljust(receiver.MOST_BYTES)
    assert post(client, token, content=just) == TAKEN


def test_a_service_that_is_down_is_a_reason_to_come_again(
    client: Any, service: KlingEmulator, waiting: tuple[Waiter, str]
) -> None:
    waiter, kling_task_id = waiting
    fault = service.inject("answer", status=503, call="query", times="always")
    token = waiter.token(service.api_key)
    assert post(client, token, body_of(kling_task_id)) == AGAIN
    service.faults.remove(fault)
    fault = service.inject("answer", status=401, call="query", times="always")
    assert post(client, token, body_of(kling_task_id)) == AGAIN
    service.faults.remove(fault)
    assert waiter.state == "deferred"
    assert post(client, token, body_of(kling_task_id)) == TAKEN


@pytest.mark.receivers_own_limits
def test_a_service_that_hangs_is_not_waited_for_longer_than_it_waits_for_us(
    client: Any,
    service: KlingEmulator,
    waiting: tuple[Waiter, str],
    monkeypatch: pytest.MonkeyPatch,
    log: Callable[[], list[str]],
) -> None:
    waiter, kling_task_id = waiting
    monkeypatch.setattr(receiver, "QUERY_SECONDS", 0.2)
    service.inject("slow", seconds=5, call="query")
    assert post(client, waiter.token(service.api_key), body_of(kling_task_id)) == AGAIN
    assert waiter.state == "deferred"
    assert "the service: no answer in time; answered 503" in log()[0]
    assert receiver.TURN_SECONDS + 4.0 < 10, "the service waits 10 seconds"


def test_what_takes_callbacks_is_made_once_for_all_of_them(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    set_up = receiver.Receiver.__init__
    monkeypatch.setattr(receiver.Receiver, "__init__", lambda self: (made.append(self), set_up(self))[1])
    for _ in range(3):
        assert post(client, "no-token", {}) == WRONG
    assert len(made) == 1


def test_a_database_that_is_down_is_a_reason_to_come_again(
    client: Any,
    service: KlingEmulator,
    waiting: tuple[Waiter, str],
    monkeypatch: pytest.MonkeyPatch,
    log: Callable[[], list[str]],
) -> None:
    waiter, kling_task_id = waiting
    from sqlalchemy.exc import OperationalError

    def broken(*_: Any, **__: Any) -> Any:
        raise OperationalError("SELECT secret FROM place", {}, Exception("no route to host"))

    with monkeypatch.context() as down:
        down.setattr(database, "create_session", broken)
        token = waiter.token(service.api_key)
        assert post(client, token, body_of(kling_task_id)) == AGAIN
        unknown = waiter.token(service.api_key, conn_id="stored_in_the_database")
        assert post(client, unknown, body_of(kling_task_id)) == AGAIN, "it may be there"
        forged = waiter.token("sk_guessed")
        assert post(client, forged, body_of(kling_task_id)) == WRONG, "no database makes that right"
    assert not any("secret" in line for line in log())
    assert post(client, token, body_of(kling_task_id)) == TAKEN


def test_a_fault_of_ours_is_a_reason_to_come_again_and_tells_nothing(
    client: Any, service: KlingEmulator, waiting: tuple[Waiter, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiter, kling_task_id = waiting

    def broken(*_: Any) -> Any:
        raise RuntimeError("secret")

    monkeypatch.setattr(receiver, "find", broken)
    assert post(client, waiter.token(service.api_key), body_of(kling_task_id)) == AGAIN


def test_a_key_that_was_replaced_makes_old_addresses_worthless(
    client: Any,
    service: KlingEmulator,
    waiting: tuple[Waiter, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiter, kling_task_id = waiting
    monkeypatch.setattr(accounts, "FRESH_SECONDS", 0)
    monkeypatch.setenv("AIRFLOW_CONN_KLING_DEFAULT", f"kling://:sk_new@{service.base_url.split('//')[1]}")
    assert post(client, waiter.token(service.api_key), body_of(kling_task_id)) == WRONG
    assert waiter.state == "deferred"


def test_more_callbacks_at_once_than_there_is_room_for_come_again(
    client: Any, service: KlingEmulator, waiting: tuple[Waiter, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiter, kling_task_id = waiting
    for limit in ("MOST_AT_A_TIME", "MOST_OF_ONE_ADDRESS"):
        with monkeypatch.context() as full:
            full.setattr(admission, limit, 0)
            assert post(client, waiter.token(service.api_key), body_of(kling_task_id)) == AGAIN
    assert post(client, waiter.token(service.api_key), body_of(kling_task_id)) == TAKEN


def test_made_up_connections_do_not_keep_the_genuine_ones_from_being_looked_up(
    client: Any, service: KlingEmulator, waiting: tuple[Waiter, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiter, kling_task_id = waiting
    looked_up = []
    read = accounts._read
    monkeypatch.setattr(accounts, "_read", lambda conn_id: (looked_up.append(conn_id), read(conn_id))[1])
    genuine = waiter.token(service.api_key)
    other = waiter.token("sk_other")
    assert post(client, other, body_of(kling_task_id)) == WRONG  # looked up once
    monkeypatch.setattr(accounts, "FRESH_SECONDS", 0)
    for number in range(admission.STRANGE_LOOKUPS_OF_ONE_ADDRESS * 2):
        token = waiter.token("sk_x", conn_id=f"made_up_{number}")
        assert post(client, token, body_of(kling_task_id)) == WRONG
    assert len(looked_up) <= admission.STRANGE_LOOKUPS_OF_ONE_ADDRESS + 1
    assert post(client, genuine, body_of(kling_task_id)) == TAKEN


@pytest.mark.kling_emulator(latency=0)
def test_made_up_connections_do_not_shut_out_one_of_the_database_that_was_not_looked_up_yet(
    client: Any, service: KlingEmulator, waiter: Waiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.models.connection import Connection
    from airflow.utils.session import create_session

    conn_id = f"kling_{uuid.uuid4().hex[:8]}"
    with create_session() as session:
        session.add(Connection(conn_id=conn_id, uri=service.connection_uri))
    kling_task_id = create(service)
    waiter.defer(kling_task_id, conn_id=conn_id)
    looked_up = []
    read = accounts._read
    monkeypatch.setattr(accounts, "_read", lambda conn_id: (looked_up.append(conn_id), read(conn_id))[1])
    for number in range(admission.STRANGE_LOOKUPS_OF_ONE_ADDRESS):
        forged = waiter.token("sk_x", conn_id=f"made_up_{number}")
        assert post(client, forged, body_of(kling_task_id)) == WRONG
    assert post(client, waiter.token("sk_x", conn_id="made_up"), body_of(kling_task_id)) == WRONG
    assert "made_up" not in looked_up
    assert post(client, waiter.token(service.api_key, conn_id=conn_id), body_of(kling_task_id)) == TAKEN
    assert waiter.is_resumed


@pytest.fixture
def secrets_of_others(airflow_db: None) -> Iterator[dict[str, str]]:
    """Connections of other types in the database: their ids, with their passwords."""
    from airflow.models.connection import Connection
    from airflow.utils.session import create_session
    from sqlalchemy import delete

    passwords = {"warehouse": "hunter2", "box": "correct-horse"}
    with create_session() as session:
        for (conn_id, password), conn_type in zip(passwords.items(), ("postgres", "ssh"), strict=True):
            session.add(Connection(conn_id=conn_id, conn_type=conn_type, host="10.0.0.7", password=password))
    yield passwords
    with create_session() as session:
        session.execute(delete(Connection).where(Connection.conn_id.in_(passwords)))


def test_nobody_learns_whether_a_guess_is_the_password_of_a_connection_of_another_type(
    client: Any,
    service: KlingEmulator,
    secrets_of_others: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_OF_ENVIRONMENT", "mysql://root:swordfish@10.0.0.8")
    monkeypatch.setenv("AIRFLOW_CONN_OF_NO_TYPE", '{"password": "swordfish"}')
    passwords = secrets_of_others | {"of_environment": "swordfish", "of_no_type": "swordfish"}
    for conn_id, password in passwords.items():
        for guess in ("wrong", password):
            token = CallbackToken.for_check(conn_id).sign(guess)
            assert post(client, token, body_of("check")) == WRONG, (conn_id, guess)


@pytest.mark.parametrize("used_up", ["STRANGE_LOOKUPS_A_MINUTE", "STRANGE_LOOKUPS_OF_ONE_ADDRESS"])
def test_nobody_learns_which_connections_there_are_by_using_up_the_look_ups(
    client: Any,
    service: KlingEmulator,
    secrets_of_others: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    used_up: str,
) -> None:
    monkeypatch.setattr(admission, used_up, 1)
    answers = [
        post(client, CallbackToken.for_check(conn_id).sign("wrong"), body_of("check"))
        for conn_id in ("made_up_1", "made_up_2", "made_up_3", *secrets_of_others, CONN_ID, "made_up_4")
    ]
    assert answers == [WRONG] * len(answers)


def test_a_made_up_connection_costs_no_query_of_its_own(
    client: Any, service: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    session = database.create_session
    monkeypatch.setattr(database, "create_session", lambda *a, **k: (asked.append(1), session(*a, **k))[1])
    for number in range(admission.STRANGE_LOOKUPS_OF_ONE_ADDRESS * 10):
        token = CallbackToken.for_check(f"made_up_{number}").sign("wrong")
        assert post(client, token, body_of("check")) == WRONG
    assert len(asked) <= admission.STRANGE_LOOKUPS_OF_ONE_ADDRESS + 5


def test_who_guesses_keys_makes_no_look_ups_and_keeps_out_nobody_who_knows_one(
    client: Any, service: KlingEmulator, waiting: tuple[Waiter, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiter, kling_task_id = waiting
    looked_up = []
    read = accounts._read
    monkeypatch.setattr(accounts, "_read", lambda conn_id: (looked_up.append(conn_id), read(conn_id))[1])
    monkeypatch.setattr(accounts, "FRESH_SECONDS", 0)
    guesses = admission.FAILED_SIGNATURES_OF_ONE_ADDRESS * 2
    for number in range(guesses):
        assert post(client, waiter.token(f"sk_{number}"), body_of(kling_task_id)) == WRONG
    assert len(looked_up) <= admission.FAILED_SIGNATURES_OF_ONE_ADDRESS + 1
    assert post(client, waiter.token(service.api_key), body_of(kling_task_id)) == TAKEN
    assert waiter.is_resumed


def test_a_new_key_counts_a_minute_later_though_strangers_keep_guessing(
    client: Any, service: KlingEmulator, waiting: tuple[Waiter, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiter, kling_task_id = waiting
    monkeypatch.setattr(admission, "FAILED_SIGNATURES_OF_ONE_ADDRESS", 1)
    monkeypatch.setattr(accounts, "FRESH_SECONDS", 0)
    with monkeypatch.context() as before:
        before.setenv("AIRFLOW_CONN_KLING_DEFAULT", f"kling://:sk_old@{service.base_url.split('//')[1]}")
        for _ in range(3):
            assert post(client, waiter.token("sk_guessed"), body_of(kling_task_id)) == WRONG
    genuine = waiter.token(service.api_key)
    assert post(client, genuine, body_of(kling_task_id)) == WRONG, "the old key counts for the moment"
    monkeypatch.setattr(accounts, "KEPT_SECONDS", 0)
    assert post(client, genuine, body_of(kling_task_id)) == TAKEN
    assert waiter.is_resumed


def test_a_check_is_answered_and_does_nothing(
    client: Any, service: KlingEmulator, log: Callable[[], list[str]]
) -> None:
    token = CallbackToken.for_check(CONN_ID).sign(service.api_key)
    assert post(client, token, body_of("check")) == TAKEN
    assert "callbacks arrive" in log()[0]
    assert post(client, CallbackToken.for_check(CONN_ID).sign("sk_wrong"), body_of("check")) == WRONG


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
def test_it_takes_nothing_but_posts(client: Any, method: str) -> None:
    assert client.request(method, f"{PATH}/token").status_code == 405


def test_there_is_no_other_path(client: Any) -> None:
    for path in ("", "/", "/openapi.json", "/docs", "/a/b"):
        assert client.get(f"{PATH}{path}").status_code in (404, 405)


def test_no_access_log_learns_the_token(service: KlingEmulator, airflow_db: None) -> None:
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from airflow_provider_kling.plugins import KlingPlugin

    seen: list[str] = []

    class AccessLog:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def noting(message: Any) -> None:
                seen.append(scope["path"])
                await send(message)

            await self.app(scope, receive, noting)
            seen.append(scope["path"])

    [mounted] = [each for each in KlingPlugin().fastapi_apps if each["url_prefix"] == PATH]
    app = FastAPI()
    app.mount(mounted["url_prefix"], mounted["app"])
    app.add_middleware(AccessLog)
    token = CallbackToken.for_check(CONN_ID).sign(service.api_key)
    client = TestClient(app)
    for path in (token, f"{token}/", f"x/{token}"):
        client.post(f"{PATH}/{path}", json=body_of("check"))
        client.get(f"{PATH}/{path}")
    assert set(seen) == {f"{PATH}/***"}


def test_the_plugin_is_off_unless_it_knows_where_it_can_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_kling.plugins import KlingPlugin

    assert PATH in [each["url_prefix"] for each in KlingPlugin().fastapi_apps]
    monkeypatch.delenv("AIRFLOW__KLING__CALLBACK_BASE_URL")
    assert PATH not in [each["url_prefix"] for each in KlingPlugin().fastapi_apps]


def test_airflow_itself_mounts_it_open_to_all_and_behind_a_proxys_path(
    service: KlingEmulator, waiting: tuple[Waiter, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.api_fastapi import app as airflow_app
    from fastapi.testclient import TestClient

    waiter, kling_task_id = waiting
    monkeypatch.setattr(airflow_app, "API_ROOT_PATH", "/af/")
    with TestClient(airflow_app.create_app(), base_url="http://testserver") as client:
        token = waiter.token(service.api_key)
        answer = client.post(f"/af{PATH}/{token[:-1]}", json=body_of(kling_task_id))
        assert answer.status_code == 404
        assert answer.json() == {"detail": "Not Found"}
        # A proxy may take the path's beginning away, or leave it.
        for start in ("", "/af"):
            waiter.defer(kling_task_id)
            answer = client.post(f"{start}{PATH}/{token}", json=body_of(kling_task_id))
            assert answer.status_code == 200, answer.text
            assert waiter.is_resumed
