"""What callbacks do to a task that makes many videos: one of them is over, and enough of them are."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_kling.batch import BatchEvent
from airflow_provider_kling.batch_ledger import BatchLedger, Entry, FilePages, TaskStatePages
from airflow_provider_kling.callbacks import XCOM_OVER
from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.ledger import RecordState, SubmissionKey
from airflow_provider_kling.plugins import callbacks as receiver
from airflow_provider_kling.plugins import waiting_tasks
from airflow_provider_kling.triggers.batch import KlingVideosTrigger
from tests.conftest import AIRFLOW
from tests.plugins.conftest import Waiter, body_of, create
from tests.plugins.test_receiver import AGAIN, TAKEN, WRONG, post

PLACES = ["file", pytest.param("airflow", marks=pytest.mark.skipif(AIRFLOW < (3, 3), reason="no such store"))]


class Videos:
    """Some videos of the emulated service, and the addresses under which it tells of them."""

    def __init__(self, service: KlingEmulator, waiter: Waiter, count: int) -> None:
        self.service = service
        self.waiter = waiter
        self.ids = [create(service, prompt=f"kite {number}") for number in range(count)]
        self.names = [f"submission{number:02}" for number in range(count)]
        self.submissions = dict(zip(self.ids, self.names, strict=True))

    def token(self, number: int) -> str:
        return self.waiter.token(self.service.api_key, self.names[number], is_listed=True)

    def call(self, client: Any, number: int, about: int | None = None) -> tuple[int, Any]:
        return post(client, self.token(number), body_of(self.ids[number if about is None else about]))

    def queries(self) -> list[int]:
        return [task.queries for task in self.service.ledger.tasks()]


@pytest.fixture
def videos(service: KlingEmulator, waiter: Waiter) -> Videos:
    return Videos(service, waiter, 4)


def test_the_task_goes_on_when_enough_are_over_with_the_event_that_its_trigger_would_have_sent(
    client: Any, service: KlingEmulator, waiter: Waiter, videos: Videos
) -> None:
    from airflow.models.trigger import Trigger
    from airflow.utils.session import create_session

    service.inject("fail", fail_code="CONTENT_MODERATION")
    failed = create(service)
    submissions = {videos.ids[0]: videos.names[0], failed: "failedfailed"}
    waiter.defer_for_list({**videos.submissions, **submissions}, enough=2)
    with create_session() as session:
        arguments = session.get(Trigger, waiter.row().trigger_id).kwargs
    assert videos.call(client, 0) == TAKEN
    assert waiter.state == "deferred"
    assert waiter.xcom(XCOM_OVER) == {videos.ids[0]: "completed"}
    token = waiter.token(service.api_key, "failedfailed", is_listed=True)
    assert post(client, token, body_of(failed, "failed")) == TAKEN
    assert waiter.is_resumed

    arguments["videos"] = [each for each in arguments["videos"] if each[0] in submissions]
    arguments |= {"submissions": [], "poll_interval": 0.01}

    async def first_event() -> Any:
        async for event in KlingVideosTrigger(**arguments).run():
            return event.payload
        raise AssertionError("the trigger ended without an event")

    assert waiter.event() == asyncio.run(first_event())


def test_what_is_noted_is_not_asked_for_again(client: Any, waiter: Waiter, videos: Videos) -> None:
    waiter.defer_for_list(videos.submissions, enough=4)
    for _ in range(3):
        assert videos.call(client, 1) == TAKEN
    assert videos.queries() == [0, 1, 0, 0]
    assert waiter.state == "deferred"


def test_all_of_them_twice_at_once_resume_it_once_with_all(
    client: Any, service: KlingEmulator, waiter: Waiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.models.trigger import Trigger

    videos = Videos(service, waiter, 12)
    waiter.defer_for_list(videos.submissions, enough=12)
    resumed = []
    submit = Trigger.submit_event.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        Trigger,
        "submit_event",
        classmethod(lambda cls, *a, **k: (resumed.append(a), submit(cls, *a, **k))[1]),
    )

    def call(number: int) -> int:
        # What could not get at the database in time comes again, as any other.
        while (status := videos.call(client, number % 12)[0]) == 503:
            time.sleep(0.1)
        return status

    with ThreadPoolExecutor(12) as threads:
        assert set(threads.map(call, range(24))) == {200}
    assert len(resumed) == 1
    assert waiter.event()["over"] == dict.fromkeys(videos.ids, "completed")


def test_an_event_of_its_trigger_loses_nothing_of_what_is_noted(
    client: Any, waiter: Waiter, videos: Videos
) -> None:
    """The trigger wakes the task by the clock; which videos are over it does not know."""
    waiter.defer_for_list(videos.submissions, enough=4)
    assert videos.call(client, 2) == TAKEN
    waiter.change(state="queued", trigger_id=None)
    assert waiter.xcom(XCOM_OVER) == {videos.ids[2]: "completed"}


def test_what_is_asked_for_while_the_task_is_resumed_by_another_is_noted_all_the_same(
    client: Any, waiter: Waiter, videos: Videos, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiter.defer_for_list(videos.submissions, enough=1)
    ask = receiver.Receiver._ask

    async def slowly(self: Any, settings: Any, kling_task_id: str) -> Any:
        found = await ask(self, settings, kling_task_id)
        waiter.change(state="queued", trigger_id=None)
        return found

    monkeypatch.setattr(receiver.Receiver, "_ask", slowly)
    assert videos.call(client, 0) == AGAIN
    assert waiter.xcom(XCOM_OVER) == {videos.ids[0]: "completed"}
    waiter.change(state="running")
    assert videos.call(client, 0) == AGAIN
    assert videos.queries() == [1, 0, 0, 0]


@pytest.mark.kling_emulator(latency=3600)
def test_a_body_that_says_completed_notes_nothing_while_the_service_says_otherwise(
    client: Any, waiter: Waiter, videos: Videos
) -> None:
    waiter.defer_for_list(videos.submissions, enough=1)
    assert videos.call(client, 0) == AGAIN
    assert (waiter.state, waiter.xcom(XCOM_OVER)) == ("deferred", None)


def test_another_items_address_is_wrong(client: Any, waiter: Waiter, videos: Videos) -> None:
    waiter.defer_for_list(videos.submissions, enough=1)
    assert videos.call(client, 0, about=1) == WRONG
    assert post(client, videos.token(0), body_of("made-up")) == WRONG
    alone = waiter.token(videos.service.api_key, videos.names[0])
    assert post(client, alone, body_of(videos.ids[0])) == TAKEN, "no address of a list"
    assert waiter.state == "deferred"
    assert videos.queries() == [0, 0, 0, 0]


@pytest.mark.parametrize("changed", [{"submissions": []}, {"conn_id": "another"}], ids=str)
def test_a_list_that_asks_by_itself_is_left_alone(
    client: Any, waiter: Waiter, videos: Videos, changed: dict[str, Any]
) -> None:
    submissions = videos.submissions if "conn_id" in changed else dict.fromkeys(videos.ids)
    waiter.defer_for_list(submissions, enough=1, conn_id=changed.get("conn_id", "kling_default"))
    assert videos.call(client, 0) == TAKEN
    assert waiter.state == "deferred"


def test_a_list_that_has_just_deferred_is_told_at_once_and_resumed_a_little_later(
    client: Any, waiter: Waiter, videos: Videos, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_tasks, "SETTLE_SECONDS", 3600)
    waiter.defer_for_list(videos.submissions, enough=2, age=0.1)
    assert videos.call(client, 0) == TAKEN
    assert videos.call(client, 1) == AGAIN, "a scheduler may not know of the deferral yet"
    assert waiter.state == "deferred"
    waiter.defer_for_list(videos.submissions, enough=2, age=waiting_tasks.SETTLE_SECONDS + 1)
    assert videos.call(client, 1) == TAKEN
    assert set(waiter.event()["over"]) == set(videos.ids[:2])
    assert videos.queries() == [1, 1, 0, 0]


@pytest.mark.parametrize("state", ["success", "failed", "skipped"])
def test_a_late_callback_for_a_finished_list_needs_nothing(
    client: Any, waiter: Waiter, videos: Videos, state: str
) -> None:
    waiter.change(state=state)
    assert videos.call(client, 0) == TAKEN
    assert waiter.state == state
    assert videos.queries() == [0, 0, 0, 0]


@pytest.mark.parametrize("state", ["scheduled", "queued", "running"])
def test_a_list_that_was_resumed_needs_only_what_it_was_not_told(
    client: Any, waiter: Waiter, videos: Videos, state: str
) -> None:
    waiter.defer_for_list(videos.submissions, enough=1)
    assert videos.call(client, 0) == TAKEN
    waiter.change(state=state)
    assert videos.call(client, 0) == TAKEN
    assert videos.call(client, 1) == AGAIN


class ListLedger:
    """The ledger of a list, as its worker keeps it."""

    def __init__(self, waiter: Waiter, directory: Path | None) -> None:
        self.key = SubmissionKey(
            dag_id=waiter.dag_id, run_id=waiter.run_id, task_id=waiter.task_id, map_index=-1
        )
        self.directory = directory
        self.book = self.open()
        self.book.begin()

    def open(self) -> BatchLedger:
        if self.directory is None:
            return BatchLedger(TaskStatePages(MetadataStore(self.key)), self.key)
        return BatchLedger(
            FilePages(ObjectStoragePath(f"file://{self.directory}") / self.key.path / "videos"), self.key
        )

    def intend(self, index: int, **values: Any) -> Entry:
        entry = self.book.bind(index, f"{index:064x}")
        ledger = self.book.ledger_of(entry)
        ledger.intend(entry.fingerprint, deadline=time.time() + 3600)
        if values:
            assert entry.record is not None
            entry.record |= values
            self.book.touch(entry)
            self.book.flush()
        return entry

    def submit(self, index: int, kling_task_id: str) -> Entry:
        entry = self.intend(index)
        ledger = self.book.ledger_of(entry)
        record = ledger.find()
        assert record is not None
        ledger.submitted(record, kling_task_id)
        entry.is_followed = True
        self.book.touch(entry)
        self.book.flush()
        return entry

    def read(self, entry: Entry) -> Entry:
        """Return an entry as the next attempt finds it."""
        book = self.open()
        book.resume(self.book.attempt)
        found = book.called(str(entry.submission))
        assert found is not None
        return found


class MetadataStore:
    """A worker's access to the task state store, as Airflow's API server grants it."""

    def __init__(self, key: SubmissionKey) -> None:
        from airflow.state import TaskScope

        self._scope = TaskScope(**key.model_dump())

    def get(self, key: str) -> Any:
        from airflow.state import get_state_backend

        text = get_state_backend().get(self._scope, key)
        return None if text is None else json.loads(text)

    def set(self, key: str, value: Any, *, retention: Any) -> None:
        from airflow.state import get_state_backend

        get_state_backend().set(self._scope, key, json.dumps(value), expires_at=None)


@pytest.fixture(params=PLACES)
def ledger(
    request: pytest.FixtureRequest, waiter: Waiter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ListLedger]:
    if request.param == "airflow":
        yield ListLedger(waiter, None)
        return
    monkeypatch.setenv("AIRFLOW__KLING__LEDGER_PATH", f"file://{tmp_path}")
    yield ListLedger(waiter, tmp_path)


@pytest.fixture
def called(client: Any, service: KlingEmulator, waiter: Waiter) -> Callable[[Entry, str], tuple[int, Any]]:
    def call(entry: Entry, kling_task_id: str) -> tuple[int, Any]:
        token = waiter.token(service.api_key, str(entry.submission), is_listed=True)
        return post(client, token, body_of(kling_task_id))

    return call


Called = Callable[[Entry, str], tuple[int, Any]]


def test_a_list_at_work_is_told_on_the_way_and_called_again(
    service: KlingEmulator, waiter: Waiter, ledger: ListLedger, called: Called
) -> None:
    ids = [create(service), create(service)]
    entries = [ledger.submit(index, its) for index, its in enumerate(ids)]
    assert called(entries[0], ids[0]) == AGAIN
    assert waiter.xcom(XCOM_OVER) == {ids[0]: "completed"}
    assert called(entries[0], ids[0]) == AGAIN
    assert called(entries[0], ids[1]) == WRONG, "another item's address"
    assert [task.queries for task in service.ledger.tasks()] == [1, 0]
    # It read that too early, and waits for it.
    submissions = {its: entry.submission for its, entry in zip(ids, entries, strict=True)}
    waiter.defer_for_list(submissions, enough=1)
    assert called(entries[0], ids[0]) == TAKEN
    assert BatchEvent.from_dict(waiter.event() | {"state": STATE}).over == {ids[0]: "completed"}
    assert [task.queries for task in service.ledger.tasks()] == [1, 0]


STATE = {
    "attempt": 1,
    "attempt_ends_at": None,
    "room": 1,
    "not_before": 0,
    "progress_at": 0,
    "known": 0,
    "stopped": None,
    "stopped_for_good": False,
}


@pytest.mark.parametrize("state", ["failed", "up_for_retry", "queued", "success", "deferred"])
def test_a_lost_request_of_a_list_comes_home(
    service: KlingEmulator, waiter: Waiter, ledger: ListLedger, called: Called, state: str
) -> None:
    others = create(service)
    other, entry = ledger.submit(0, others), ledger.intend(1)
    kling_task_id = create(service)
    if state == "deferred":
        waiter.defer_for_list({others: other.submission}, enough=1)
    else:
        waiter.change(state=state)
    assert called(entry, kling_task_id) == TAKEN
    found = ledger.read(entry)
    assert (found.state, found.kling_task_id) == (RecordState.SUBMITTED, kling_task_id)
    assert (found.index, found.attempt) == (1, ledger.book.attempt)
    assert ledger.read(other).kling_task_id == others
    assert waiter.state == state
    assert called(entry, kling_task_id) == TAKEN, "a second one needs nothing"


def test_what_came_home_outlives_what_the_worker_writes_meanwhile(
    service: KlingEmulator, waiter: Waiter, ledger: ListLedger, called: Called
) -> None:
    entry = ledger.intend(0)
    kling_task_id = create(service)
    assert called(entry, kling_task_id) == AGAIN, "it is at work"
    ledger.submit(1, create(service))  # the same page, as its worker knows it
    assert ledger.read(entry).kling_task_id == kling_task_id


def test_another_video_of_the_list_is_not_taken_for_the_lost_one(
    service: KlingEmulator, waiter: Waiter, ledger: ListLedger, called: Called
) -> None:
    entry = ledger.intend(0)
    others = create(service)
    ledger.submit(1, others)
    waiter.change(state="failed")
    assert called(entry, others) == TAKEN
    assert called(entry, "made-up") == WRONG
    assert ledger.read(entry).kling_task_id is None


def test_a_video_that_was_there_before_the_request_is_not_the_lost_one(
    service: KlingEmulator, waiter: Waiter, ledger: ListLedger, called: Called
) -> None:
    kling_task_id = create(service)
    entry = ledger.intend(0, intent_at=time.time() + waiting_tasks.CLOCK_SKEW + 60)
    waiter.change(state="failed")
    assert called(entry, kling_task_id) == TAKEN
    assert ledger.read(entry).kling_task_id is None


def test_two_that_come_home_at_once_are_both_kept(
    service: KlingEmulator, waiter: Waiter, ledger: ListLedger, called: Called
) -> None:
    entries = [ledger.intend(index) for index in range(4)]
    ids = [create(service) for _ in entries]
    waiter.change(state="failed")

    def call(number: int) -> int:
        while (status := called(entries[number], ids[number])[0]) == 503:
            time.sleep(0.1)
        return status

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(call, range(4))) == {200}
    assert [ledger.read(entry).kling_task_id for entry in entries] == ids
