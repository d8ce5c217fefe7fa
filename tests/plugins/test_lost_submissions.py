"""A callback brings home the video whose request was never answered."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_kling.callbacks import submission_name
from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.ledger import (
    STORE_KEY,
    FileLedgerStore,
    Ledger,
    Record,
    RecordState,
    SubmissionKey,
)
from airflow_provider_kling.plugins import waiting_tasks
from tests.conftest import AIRFLOW
from tests.plugins.conftest import Waiter, body_of, create
from tests.plugins.test_receiver import AGAIN, TAKEN, WRONG, post

PLACES = ["file", pytest.param("airflow", marks=pytest.mark.skipif(AIRFLOW < (3, 3), reason="no such store"))]


class TaskLedger:
    """The ledger of a task, as its worker keeps it."""

    def __init__(self, waiter: Waiter, directory: Path | None) -> None:
        self.key = SubmissionKey(
            dag_id=waiter.dag_id, run_id=waiter.run_id, task_id=waiter.task_id, map_index=-1
        )
        self._file = None
        if directory is not None:
            self._file = FileLedgerStore(ObjectStoragePath(f"file://{directory}") / self.key.path)

    def write(self, record: Record) -> None:
        text = record.model_dump_json()
        if self._file is not None:
            self._file.write(text, record.generation, new=False)
            return
        from airflow.state import TaskScope, get_state_backend

        # As Airflow's API server does it for a worker.
        names = self.key.model_dump()
        get_state_backend().set(TaskScope(**names), STORE_KEY, json.dumps(text), expires_at=None)

    def read(self) -> Record:
        if self._file is not None:
            found = Ledger(self._file, self.key).find()
            assert found is not None
            return found
        from airflow.state import TaskScope, get_state_backend

        text = get_state_backend().get(TaskScope(**self.key.model_dump()), STORE_KEY)
        return Record.model_validate_json(json.loads(text))

    def intent(self, **values: Any) -> Record:
        record = Record(
            **{
                "key": self.key,
                "fingerprint": "f",
                "state": RecordState.INTENT,
                "generation": 1,
                "owner": uuid.uuid4().hex,
                "intent_at": time.time() - 5,
                "deadline": time.time() + 3600,
                **values,
            }
        )
        self.write(record)
        return record


@pytest.fixture(params=PLACES)
def ledger(
    request: pytest.FixtureRequest, waiter: Waiter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> TaskLedger:
    if request.param == "airflow":
        return TaskLedger(waiter, None)
    monkeypatch.setenv("AIRFLOW__KLING__LEDGER_PATH", f"file://{tmp_path}")
    return TaskLedger(waiter, tmp_path)


@pytest.mark.parametrize("state", ["failed", "up_for_retry", "queued", None])
def test_the_ledger_learns_what_became_of_the_request(
    client: Any, service: KlingEmulator, waiter: Waiter, ledger: TaskLedger, state: str | None
) -> None:
    kling_task_id, record = create(service), ledger.intent()
    waiter.change(state=state)
    token = waiter.token(service.api_key, submission_name(record.owner, record.generation))
    assert post(client, token, body_of(kling_task_id)) == TAKEN
    found = ledger.read()
    assert (found.state, found.kling_task_id) == (RecordState.SUBMITTED, kling_task_id)
    assert found.model_dump(exclude={"state", "kling_task_id", "submitted_at"}) == record.model_dump(
        exclude={"state", "kling_task_id", "submitted_at"}
    )
    assert waiter.state == state
    assert post(client, token, body_of(kling_task_id)) == TAKEN, "a second one needs nothing"
    assert ledger.read() == found


def test_the_address_of_an_earlier_attempt_serves_as_well(
    client: Any, service: KlingEmulator, waiter: Waiter, ledger: TaskLedger
) -> None:
    kling_task_id, record = create(service), ledger.intent()
    token = waiter.token(service.api_key, submission_name(record.owner, record.generation))
    waiter.end_attempt(state="running")
    assert post(client, token, body_of(kling_task_id)) == AGAIN, "its worker may be about to wait for it"
    assert ledger.read().kling_task_id == kling_task_id


def test_another_submissions_callback_is_not_taken_for_this_ones(
    client: Any, service: KlingEmulator, waiter: Waiter, ledger: TaskLedger
) -> None:
    kling_task_id, record = create(service), ledger.intent(generation=2)
    waiter.change(state="failed")
    earlier = record.model_copy(update={"generation": 1})
    for submission in (submission_name(earlier.owner, earlier.generation), "A" * 12):
        assert post(client, waiter.token(service.api_key, submission), body_of(kling_task_id)) == TAKEN
    assert ledger.read() == record


def test_a_video_that_the_service_does_not_know_is_not_recorded(
    client: Any, service: KlingEmulator, waiter: Waiter, ledger: TaskLedger
) -> None:
    record = ledger.intent()
    waiter.change(state="failed")
    token = waiter.token(service.api_key, submission_name(record.owner, record.generation))
    assert post(client, token, body_of("made-up")) == WRONG
    assert ledger.read() == record


def test_a_video_that_was_there_before_the_request_is_not_recorded(
    client: Any, service: KlingEmulator, waiter: Waiter, ledger: TaskLedger
) -> None:
    kling_task_id = create(service)
    record = ledger.intent(intent_at=time.time() + waiting_tasks.CLOCK_SKEW + 60)
    waiter.change(state="failed")
    token = waiter.token(service.api_key, submission_name(record.owner, record.generation))
    assert post(client, token, body_of(kling_task_id)) == TAKEN
    assert ledger.read() == record


@pytest.mark.parametrize("state", [RecordState.SUBMITTED, RecordState.COMPLETED, RecordState.FREE])
def test_a_ledger_that_knows_more_is_left_alone(
    client: Any, service: KlingEmulator, waiter: Waiter, ledger: TaskLedger, state: RecordState
) -> None:
    record = ledger.intent(
        state=state, kling_task_id=None if state is RecordState.FREE else "known", submitted_at=1.0
    )
    waiter.change(state="failed")
    token = waiter.token(service.api_key, submission_name(record.owner, record.generation))
    assert post(client, token, body_of(create(service))) == TAKEN
    assert ledger.read() == record


def test_what_the_worker_writes_meanwhile_is_not_overwritten(
    client: Any,
    service: KlingEmulator,
    waiter: Waiter,
    ledger: TaskLedger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kling_task_id, record = create(service), ledger.intent()
    waiter.change(state="running")
    later = record.model_copy(update={"generation": 2, "owner": "the next attempt"})
    find = Ledger.find
    looks: list[Record | None] = []

    def found_and_then_overtaken(self: Ledger) -> Record | None:
        found = find(self)
        looks.append(found)
        if len(looks) == 2:  # the last one before it writes
            ledger.write(later)
        return found

    token = waiter.token(service.api_key, submission_name(record.owner, record.generation))
    monkeypatch.setattr(Ledger, "find", found_and_then_overtaken)
    post(client, token, body_of(kling_task_id))
    monkeypatch.undo()
    assert looks[:2] == [record, record]
    assert ledger.read() == later


def test_a_ledger_that_cannot_be_read_is_a_reason_to_come_again(
    client: Any, service: KlingEmulator, waiter: Waiter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__KLING__LEDGER_PATH", f"file://{tmp_path}")
    ledger = TaskLedger(waiter, tmp_path)
    record = ledger.intent()
    waiter.change(state="failed")
    assert ledger._file is not None
    (tmp_path / ledger.key.path / "000001.json").write_text("{")
    token = waiter.token(service.api_key, submission_name(record.owner, record.generation))
    assert post(client, token, body_of(create(service))) == AGAIN


def test_a_task_without_a_ledger_needs_nothing(
    client: Any, service: KlingEmulator, make_waiter: Callable[[], Waiter]
) -> None:
    waiter = make_waiter()
    waiter.change(state="failed")
    assert post(client, waiter.token(service.api_key), body_of(create(service))) == TAKEN
