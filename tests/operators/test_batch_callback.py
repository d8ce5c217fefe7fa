"""
``callback=True`` for a list: what goes to the service, how little is asked, and what callbacks leave to the task.

What is the same for one video stands in ``test_callback.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import TaskDeferred

from airflow_provider_kling.batch_ledger import FilePages
from airflow_provider_kling.callbacks import PATH, XCOM_OVER, CallbackToken
from airflow_provider_kling.emulator import KlingEmulator
from tests.operators.called_back import BASE_URL, callback_settings, many, needs_callbacks
from tests.task_runs import TaskInstance, TaskRun, run_task

__all__ = ["callback_settings"]


@pytest.fixture(autouse=True)
def settings(callback_settings: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AIRFLOW__KLING__LEDGER_PATH", str(tmp_path / "ledger"))


def attempt(
    *, ti: TaskInstance | None = None, between: Callable[[], Any] | None = None, **given: Any
) -> TaskRun:
    return run_task(lambda: many(**given), ti=ti, between=between)


def deferral_of(**given: Any) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as deferral:
        many(**given).execute({"ti": TaskInstance()})  # type: ignore[typeddict-item]
    return deferral.value


def tokens(service: KlingEmulator) -> dict[str, CallbackToken]:
    found = {}
    for task in service.ledger.tasks():
        url = str(task.body["callback_url"])
        assert url.startswith(f"{BASE_URL}{PATH}/")
        token = CallbackToken.read(url.rpartition("/")[2])
        assert token is not None
        found[task.task_id] = token
    return found


@needs_callbacks
def test_each_video_has_an_address_of_its_own_that_its_trigger_knows(kling_emulator: KlingEmulator) -> None:
    ti = TaskInstance()
    run = attempt(ti=ti)
    assert run.value()["completed"] == 3
    addresses = tokens(kling_emulator)
    assert len({token.submission for token in addresses.values()}) == 3, "equal items are different videos"
    assert {(token.ti_id, token.is_listed) for token in addresses.values()} == {(ti.id, True)}
    trigger = run.deferrals[0].trigger
    assert {its: token.submission for its, token in addresses.items()} == dict(
        zip([video[0] for video in trigger.videos], trigger.submissions, strict=True)
    )


@needs_callbacks
@pytest.mark.kling_emulator(latency=3600)
def test_they_are_asked_for_rarely_and_not_at_all_before_the_task_waits(
    kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW__KLING__CALLBACK_POLL_INTERVAL")
    trigger = deferral_of().trigger
    assert (trigger.callback_poll_interval, trigger.poll_interval) == (300, 0.1)
    assert {task.queries for task in kling_emulator.ledger.tasks()} == {0}


@needs_callbacks
def test_lost_callbacks_cost_no_video(kling_emulator: KlingEmulator) -> None:
    assert attempt(max_in_flight=2).value()["completed"] == 3


@needs_callbacks
@pytest.mark.kling_emulator(latency=3600)
def test_an_address_of_an_items_own_goes_out_untouched_and_is_polled_for(
    kling_emulator: KlingEmulator,
) -> None:
    url = "https://example.com/mine?x=%7E"
    trigger = deferral_of(requests=["a tide", {"prompt": "a storm", "callback_url": url}]).trigger
    sent = {task.body["prompt"]: task.body["callback_url"] for task in kling_emulator.ledger.tasks()}
    assert sent["a storm"] == url
    assert sent["a tide"].startswith(BASE_URL)
    by_id = {task.task_id: task.body["prompt"] for task in kling_emulator.ledger.tasks()}
    called = {
        by_id[video[0]]: name is not None
        for video, name in zip(trigger.videos, trigger.submissions, strict=True)
    }
    assert called == {"a tide": True, "a storm": False}


@pytest.mark.kling_emulator(latency=3600)
def test_without_callbacks_nothing_changes(kling_emulator: KlingEmulator) -> None:
    _, stored = deferral_of(callback=False, callback_url="https://example.com/mine").trigger.serialize()
    assert set(stored) == {"kling_conn_id", "videos", "poll_interval", "enough", "wake_at", "state"}
    assert {task.body["callback_url"] for task in kling_emulator.ledger.tasks()} == {
        "https://example.com/mine"
    }


@needs_callbacks
@pytest.mark.kling_emulator(latency="never")
def test_a_task_that_is_woken_by_the_clock_stores_what_callbacks_told(kling_emulator: KlingEmulator) -> None:
    """The event names none of them: the trigger did not know."""
    ti = TaskInstance()
    context: Any = {"ti": ti}
    operator = many()
    with pytest.raises(TaskDeferred) as deferral:
        operator.execute(context)
    [first, *others] = kling_emulator.ledger.tasks()
    kling_emulator.complete(first.task_id)
    ti.xcom_push(XCOM_OVER, {first.task_id: "completed"})
    event = {"over": {}, "state": deferral.value.trigger.state}
    with pytest.raises(TaskDeferred) as deferral:
        many().execute_complete(context, event)
    waits_for = [video[0] for video in deferral.value.trigger.videos]
    assert sorted(waits_for) == sorted(task.task_id for task in others)
    assert [task.queries for task in kling_emulator.ledger.tasks()] == [1, 0, 0]


@needs_callbacks
@pytest.mark.kling_emulator(latency="never")
def test_what_ends_while_a_worker_is_busy_needs_no_further_one(kling_emulator: KlingEmulator) -> None:
    class Called(TaskInstance):
        """Callbacks reach it as soon as it has asked for all."""

        def xcom_pull(self, task_ids: str, key: str = "return_value", **how: Any) -> Any:
            if key == XCOM_OVER:
                made = kling_emulator.ledger.tasks()
                for task in made:
                    kling_emulator.complete(task.task_id)
                self.xcom_push(key, dict.fromkeys((task.task_id for task in made), "completed"))
            return super().xcom_pull(task_ids, key, **how)

    run = attempt(ti=Called())
    assert run.value()["completed"] == 3
    assert run.deferrals == []
    assert [task.queries for task in kling_emulator.ledger.tasks()] == [1, 1, 1]


@needs_callbacks
@pytest.mark.kling_emulator(latency="never")
def test_one_that_was_told_and_could_not_be_asked_for_is_polled_for(kling_emulator: KlingEmulator) -> None:
    ti = TaskInstance()
    context: Any = {"ti": ti}
    with pytest.raises(TaskDeferred) as deferral:
        many(requests=["a tide"]).execute(context)
    [task] = kling_emulator.ledger.tasks()
    kling_emulator.inject("answer", status=503, call="query")
    event = {"over": {task.task_id: "completed"}, "state": deferral.value.trigger.state}
    ti.xcom_push(XCOM_OVER, event["over"])
    with pytest.raises(TaskDeferred) as again:
        many(requests=["a tide"]).execute_complete(context, event)
    assert again.value.trigger.submissions == [None], "it is asked for every poll_interval seconds"


@needs_callbacks
@pytest.mark.kling_emulator(latency=0.2)
def test_a_lost_request_that_comes_home_while_the_task_waits_is_delivered_by_the_same_attempt(
    kling_emulator: KlingEmulator, tmp_path: Path
) -> None:
    kling_emulator.inject("lost_answer", call="create", prompt="a storm")
    ledger = tmp_path / "ledger"

    def come_home() -> None:
        """As the receiver does it."""
        known = {token.submission: its for its, token in tokens(kling_emulator).items()}
        [directory] = {path.parent for path in ledger.rglob("*.json") if path.parent.name == "videos"}
        from airflow.providers.common.compat.sdk import ObjectStoragePath

        from airflow_provider_kling.batch_ledger import BatchLedger
        from airflow_provider_kling.ledger import SubmissionKey

        key = SubmissionKey(dag_id="dag", run_id="manual__2026-11-22", task_id="task", map_index=-1)
        book = BatchLedger(FilePages(ObjectStoragePath(f"file://{directory}")), key)
        for submission, its in known.items():
            entry = book.called(submission)
            assert entry is not None
            if entry.kling_task_id is None:
                assert book.bring_home(entry, its)

    run = attempt(between=come_home)
    assert run.value()["completed"] == 3
    assert len(kling_emulator.ledger.creates()) == len(kling_emulator.ledger.paid()) == 3


def test_what_an_attempt_has_changed_is_not_undone_by_its_own_older_page(tmp_path: Path) -> None:
    """One came home and is followed again; then the pages are read anew for another that is lost still."""
    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from airflow_provider_kling.batch_ledger import BatchLedger
    from airflow_provider_kling.ledger import SubmissionKey

    key = SubmissionKey(dag_id="dag", run_id="run", task_id="task", map_index=-1)

    def book() -> BatchLedger:
        return BatchLedger(FilePages(ObjectStoragePath(f"file://{tmp_path}")), key)

    first = book()
    first.begin()
    for index in range(2):
        entry = first.bind(index, f"{index:064x}")
        first.ledger_of(entry).intend(entry.fingerprint, deadline=time.time() + 3600)

    second = book()
    second.begin()
    lost, _ = (second.bind(index, f"{index:064x}") for index in range(2))
    second.end(lost, {"outcome": "unresolved", "reason": "unknown_submission"})
    second.flush()
    receiver = book()
    receiver.resume(2)
    called = receiver.called(str(lost.submission))
    assert called is not None
    receiver.bring_home(called, "clx1")

    resumed = book()
    resumed.resume(2)
    home, other = resumed.of_attempt().values()
    assert home.came_home
    resumed.reopen(home)
    home.is_followed = True
    resumed.touch(home)
    resumed.read_record(other)
    assert (home.ended, home.is_followed, home.kling_task_id) == (None, True, "clx1")

    third = book()
    third.resume(2)
    late = book()
    late.resume(2)
    late.bring_home(late.of_attempt()[1], "clx2")
    waiting = third.of_attempt()[1]
    third.touch(waiting)
    third.read_record(waiting)
    assert waiting.kling_task_id == "clx2", "what another process learnt is news all the same"


@needs_callbacks
def test_a_lost_request_is_worth_a_retry_since_its_callback_can_bring_it_home(
    kling_emulator: KlingEmulator,
) -> None:
    kling_emulator.inject("lost_answer", call="create", prompt="a storm")
    error = attempt().error
    assert getattr(error, "retryable", False), f"Airflow has to retry it: {error!r}"
    assert "callback" in str(error)
