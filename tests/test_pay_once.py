"""What the next attempt finds decides: each row of the table in ``docs/pay-once.md``, on both ledgers."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowTaskTimeout,
    ObjectStoragePath,
)

from airflow_provider_kling import ledger as ledger_module
from airflow_provider_kling import submission
from airflow_provider_kling.airflow_versions import AIRFLOW_V_3_3_PLUS
from airflow_provider_kling.api.errors import (
    InvalidRequestError,
    KlingError,
    LostContactError,
    ModerationError,
    NoCreditsError,
    Paid,
    RateLimitedError,
    ResultExpiredError,
    ServiceError,
    TaskFailedError,
    TaskTimeoutError,
    TooManyTasksError,
    UnknownSubmissionError,
)
from airflow_provider_kling.api.protocol import ApiAnswer, ApiCall
from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.hooks import sync_client
from airflow_provider_kling.ledger import FileLedgerStore, LedgerError, Record
from airflow_provider_kling.operators.batch import KlingGenerateVideoBatchOperator
from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator
from tests.media import draw_image
from tests.s3 import S3Server, s3_endpoint, s3_server
from tests.task_runs import TaskInstance, TaskRun, TaskStateStore, rendered, run_task

__all__ = ["s3_endpoint", "s3_server"]

pytestmark = [pytest.mark.kling_emulator(latency=0.05, scale=0.01), pytest.mark.untraced]
HAS_TASK_STATE = AIRFLOW_V_3_3_PLUS


class Killed(BaseException):
    """What ``kill -9`` is to the code: nothing after it runs, no handler sees it."""


class Task:
    """One task instance, attempt after attempt, with a ledger of either kind."""

    def __init__(self, kind: str, folder: Path, deferrable: bool) -> None:
        self.kind, self.folder, self.deferrable = kind, folder, deferrable
        self.store = TaskStateStore()

    def operator(self, **arguments: Any) -> KlingGenerateVideoOperator:
        defaults = {
            "task_id": "make",
            "prompt": "a red kite",
            "poll_interval": 0.05,
            "timeout": 20,
            "deferrable": self.deferrable,
            "ledger_path": str(self.folder) if self.kind == "file" else None,
        }
        return KlingGenerateVideoOperator(**(defaults | arguments))

    def attempt(
        self, ti: TaskInstance | None = None, between: Callable[[], Any] | None = None, **arguments: Any
    ) -> TaskRun:
        return run_task(lambda: self.operator(**arguments), ti=ti, context=self.context(), between=between)

    def attempt_that_renders(self, **values: Any) -> TaskRun:
        return run_task(lambda: rendered(self.operator, **values), context=self.context())

    def context(self) -> dict[str, Any]:
        return {"task_state_store": self.store} if self.kind == "task state" else {}

    def killed_attempt(self, **arguments: Any) -> None:
        with pytest.raises(Killed):
            self.attempt(**arguments)

    def record(self) -> dict[str, Any]:
        if self.kind == "file":
            return dict(json.loads(max(self.files(), key=lambda path: path.name).read_text()))
        return dict(json.loads(self.store.values["kling_submission"]))

    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]

    def write(self, text: str) -> None:
        if self.kind == "file":
            max(self.files(), key=lambda path: path.name).write_text(text)
        else:
            self.store.values["kling_submission"] = text


@pytest.fixture(
    params=[
        "file",
        pytest.param(
            "task state",
            marks=pytest.mark.skipif(not HAS_TASK_STATE, reason="Airflow before 3.3 has no such store"),
        ),
    ]
)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[False, True], ids=["on the worker", "deferred"])
def task(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Task:
    return Task(kind, tmp_path / "ledger", request.param)


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count a POST of another attempt as answered or lost at once, unless a test is about that wait."""
    monkeypatch.setattr(submission, "GRACE_MARGIN", -1000.0)


def kill_at(monkeypatch: pytest.MonkeyPatch, target: Any, name: str, *, after: bool) -> None:
    """Kill the process right before or right after a function does its work, once."""
    original = getattr(target, name)

    def dying(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(target, name, original)
        if after:
            original(*args, **kwargs)
        raise Killed

    monkeypatch.setattr(target, name, dying)


def test_without_a_record_the_video_is_asked_for(task: Task, kling_emulator: KlingEmulator) -> None:
    result = task.attempt().value()
    assert len(kling_emulator.ledger.paid()) == 1
    assert task.record()["state"] == "completed"
    assert task.record()["kling_task_id"] == result["task_id"]


def test_a_connection_that_airflow_does_not_find_for_a_moment_does_not_lose_a_paid_video(
    task: Task, kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at(monkeypatch, ledger_module.Ledger, "submitted", after=True)
    task.killed_attempt()
    with monkeypatch.context() as api_server_down:
        api_server_down.delenv("AIRFLOW_CONN_KLING_DEFAULT")
        error = task.attempt().error
    assert isinstance(error, KlingError), "an AirflowFailException would end the task without retries"
    assert "There is no connection 'kling_default', or Airflow could not look it up" in str(error)

    assert task.attempt().value()["state"] == "completed"
    assert len(kling_emulator.ledger.creates()) == len(kling_emulator.ledger.paid()) == 1


def test_killed_after_the_id_was_stored_the_next_attempt_attaches(
    task: Task, kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at(monkeypatch, ledger_module.Ledger, "submitted", after=True)
    task.killed_attempt()
    first_deadline = task.record()["deadline"]

    result = task.attempt(timeout=9999).value()

    assert len(kling_emulator.ledger.creates()) == 1
    assert result["task_id"] == kling_emulator.ledger.tasks()[0].task_id
    assert task.record()["deadline"] == first_deadline


def test_killed_before_the_intent_the_next_attempt_asks(
    task: Task, kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at(monkeypatch, ledger_module.Ledger, "intend", after=False)
    task.killed_attempt()
    task.attempt().value()
    assert len(kling_emulator.ledger.creates()) == 1


@pytest.mark.parametrize(
    ("function", "after", "was_posted"),
    [("intend", True, False), ("submitted", False, True)],
    ids=["after the intent", "after the POST, before the id is stored"],
)
def test_killed_in_the_submit_the_next_attempt_does_not_ask_again_by_itself(
    task: Task,
    kling_emulator: KlingEmulator,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    after: bool,
    was_posted: bool,
) -> None:
    kill_at(monkeypatch, ledger_module.Ledger, function, after=after)
    task.killed_attempt()

    run = task.attempt()

    assert isinstance(run.error, AirflowFailException)
    assert type(run.error.__cause__) is UnknownSubmissionError
    assert "records" in str(run.error)
    assert "KlingVideoSensor" in str(run.error)
    assert "on_unknown_submission='resubmit'" in str(run.error)
    assert len(kling_emulator.ledger.creates()) == int(was_posted)


def test_killed_in_the_submit_the_next_attempt_asks_again_where_the_author_wants_that(
    task: Task, kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at(monkeypatch, ledger_module.Ledger, "submitted", after=False)
    task.killed_attempt()
    task.attempt(on_unknown_submission="resubmit").value()

    assert len(kling_emulator.ledger.creates()) == 2
    assert task.record()["earlier"] == ["unknown"]


def test_a_lost_answer_is_unknown_at_once_and_in_the_next_attempt(
    task: Task, kling_emulator: KlingEmulator
) -> None:
    kling_emulator.inject("lost_answer", call="create")
    for _ in range(3):
        run = task.attempt()
        assert type(run.error.__cause__) is UnknownSubmissionError  # type: ignore[union-attr]
    assert len(kling_emulator.ledger.creates()) == 1


def test_a_lost_answer_may_be_retried_where_the_author_wants_that(
    task: Task, kling_emulator: KlingEmulator
) -> None:
    kling_emulator.inject("lost_answer", call="create")
    first = task.attempt(on_unknown_submission="resubmit")
    assert type(first.error) is UnknownSubmissionError
    task.attempt(on_unknown_submission="resubmit").value()


def test_the_grace_time_lets_another_attempt_finish_its_submit(
    task: Task, kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "GRACE_MARGIN", 1000.0)
    kill_at(monkeypatch, ledger_module.Ledger, "submitted", after=True)
    task.killed_attempt()
    done = json.dumps(task.record())
    task.write(json.dumps(task.record() | {"state": "intent", "kling_task_id": None, "submitted_at": None}))

    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            task.write(done)  # the other attempt learns its task id only now

    monkeypatch.setattr(submission.time, "sleep", sleep)
    task.attempt().value()
    assert len(kling_emulator.ledger.creates()) == 1


def test_a_completed_video_is_delivered_again_and_not_asked_for(
    task: Task, kling_emulator: KlingEmulator
) -> None:
    first = task.attempt().value()
    again = task.attempt().value()
    assert again == first
    assert len(kling_emulator.ledger.creates()) == 1


@pytest.mark.kling_emulator(latency="never")
def test_a_failed_video_is_free_and_is_asked_for_again_by_the_retry(
    task: Task, kling_emulator: KlingEmulator
) -> None:
    kling_emulator.inject("fail", fail_code="UPSTREAM_FAILED", at_once=True)
    first = task.attempt()
    assert type(first.error) is TaskFailedError
    kling_emulator.configure(latency=0)
    task.attempt().value()
    assert len(kling_emulator.ledger.creates()) == 2
    assert len(kling_emulator.ledger.paid()) == 1


def test_a_video_that_failed_while_nobody_looked_is_asked_for_again_at_once(
    task: Task, kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    kling_emulator.configure(latency="never")
    kill_at(monkeypatch, ledger_module.Ledger, "submitted", after=True)
    task.killed_attempt()
    lost = kling_emulator.ledger.tasks()[0].task_id
    kling_emulator.fail(lost, "UPSTREAM_FAILED")
    kling_emulator.configure(latency=0)

    result = task.attempt().value()

    assert result["task_id"] != lost
    assert len(kling_emulator.ledger.paid()) == 1
    assert task.record()["earlier"] == [lost]


def test_a_video_that_was_refused_while_nobody_looked_ends_the_task(
    task: Task, kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    kling_emulator.configure(latency="never")
    kill_at(monkeypatch, ledger_module.Ledger, "submitted", after=True)
    task.killed_attempt()
    kling_emulator.fail(kling_emulator.ledger.tasks()[0].task_id, "CONTENT_MODERATION")
    run = task.attempt()
    assert type(run.error.__cause__) is ModerationError  # type: ignore[union-attr]
    assert len(kling_emulator.ledger.creates()) == 1


@pytest.mark.parametrize("changed", [{"prompt": "a blue kite"}, {"duration": 7}])
def test_another_request_is_asked_for_and_the_old_one_named(
    task: Task,
    kling_emulator: KlingEmulator,
    task_log: Callable[[], list[str]],
    changed: dict[str, Any],
) -> None:
    first = task.attempt().value()
    second = task.attempt(**changed).value()
    assert second["task_id"] != first["task_id"]
    assert any("asked for something else" in line and first["task_id"] in line for line in task_log())
    assert task.record()["earlier"] == [first["task_id"]]


def test_another_connection_asks_anew(
    task: Task, kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = task.attempt().value()
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", kling_emulator.connection_uri)
    assert task.attempt(kling_conn_id="other").value()["task_id"] != first["task_id"]


def test_an_expired_result_is_told_and_not_bought_again(task: Task, kling_emulator: KlingEmulator) -> None:
    kling_emulator.inject("expired_link", status=410)
    task.attempt().value()
    run = task.attempt()
    assert type(run.error.__cause__) is ResultExpiredError  # type: ignore[union-attr]
    assert "on_expired_result='resubmit'" in str(run.error)
    assert len(kling_emulator.ledger.creates()) == 1


def test_an_expired_result_is_bought_again_where_the_author_wants_that(
    task: Task, kling_emulator: KlingEmulator
) -> None:
    kling_emulator.inject("expired_link", status=410)
    first = task.attempt().value()
    second = task.attempt(on_expired_result="resubmit").value()
    assert second["task_id"] != first["task_id"]
    assert task.record()["earlier"] == [first["task_id"]]


def test_where_the_state_cannot_be_looked_up_nothing_is_sent_and_a_retry_may_help(
    task: Task, kling_emulator: KlingEmulator
) -> None:
    kling_emulator.configure(latency="never")
    task.attempt(timeout=0.1)
    kling_emulator.inject("answer", status=503, call="query", times="always")
    run = task.attempt(timeout=0.1)
    assert isinstance(run.error, (LostContactError, TaskTimeoutError, ServiceError))
    assert len(kling_emulator.ledger.creates()) == 1


def test_a_request_that_renders_wrongly_when_a_retry_begins_names_what_is_paid_for(
    task: Task, kling_emulator: KlingEmulator
) -> None:
    kling_emulator.configure(latency="never")
    assert type(task.attempt(timeout=0.2).error) is TaskTimeoutError
    (made,) = kling_emulator.ledger.tasks()

    run = task.attempt_that_renders(prompt="")
    assert isinstance(run.error, AirflowFailException)
    told = run.error.__cause__
    assert type(told) is InvalidRequestError
    assert (told.paid, told.task_id) == (Paid.MAYBE, made.task_id)
    assert f"asked for Kling task {made.task_id}, which is billed when it is completed" in str(run.error)
    assert "the next attempt takes it up and does not buy it again" in str(run.error)
    assert "- prompt" in str(run.error)
    assert "othing was" not in str(run.error)
    card = run.ti.xcoms["kling_video"]
    assert (card["state"], card["task_id"]) == ("unresolved", made.task_id)

    kling_emulator.complete(made.task_id)
    assert task.attempt().value()["task_id"] == made.task_id
    assert len(kling_emulator.ledger.creates()) == 1


def test_a_request_that_renders_wrongly_after_one_of_unknown_outcome_tells_of_that(
    task: Task, kling_emulator: KlingEmulator
) -> None:
    kling_emulator.inject("lost_answer", call="create")
    assert type(task.attempt().error.__cause__) is UnknownSubmissionError  # type: ignore[union-attr]
    run = task.attempt_that_renders(prompt="")
    assert isinstance(run.error, AirflowFailException)
    assert "sent a request whose outcome is not known: a video may be billed" in str(run.error)
    assert "othing was" not in str(run.error)


def test_a_request_that_renders_wrongly_where_nothing_is_bought_says_so(
    task: Task, kling_emulator: KlingEmulator
) -> None:
    kling_emulator.inject("answer", status=402, call="create")
    assert isinstance(task.attempt().error, AirflowFailException)
    run = task.attempt_that_renders(prompt="")
    assert isinstance(run.error, AirflowFailException)
    assert "Nothing was sent and nothing was billed. Correct the arguments; a retry cannot help." in str(
        run.error
    )
    assert run.ti.xcoms["kling_video"]["state"] == "failed"


@pytest.mark.usefixtures("kling_emulator")
def test_where_the_ledger_cannot_be_read_a_request_that_renders_wrongly_is_not_told_as_free(
    task: Task,
) -> None:
    task.attempt().value()
    task.write("cut short")
    run = task.attempt_that_renders(prompt="")
    assert type(run.error) is LedgerError


REFUSALS = [400, 401, 402, 403, 404]
both_ways = pytest.mark.parametrize("deferrable", [False, True], ids=["on the worker", "deferred"])


@pytest.mark.parametrize("status", REFUSALS)
@pytest.mark.kling_emulator(latency="never")
def test_a_service_that_refuses_to_be_asked_about_a_video_does_not_make_it_free(
    task: Task, kling_emulator: KlingEmulator, status: int
) -> None:
    kling_emulator.inject("answer", status=status, call="query", times="always")
    run = task.attempt()
    (made,) = kling_emulator.ledger.tasks()
    assert isinstance(run.error, AirflowFailException)
    told = run.error.__cause__
    assert isinstance(told, ServiceError)
    assert (told.paid, told.task_id) == (Paid.MAYBE, made.task_id)
    assert "it goes on, and is billed when it is completed" in str(run.error)
    assert "A clear attaches to it again and buys nothing" in str(run.error)
    card = run.ti.xcoms["kling_video"]
    assert (card["state"], card["task_id"]) == ("unresolved", made.task_id)

    kling_emulator.faults.clear()
    kling_emulator.complete(made.task_id)
    assert task.attempt().value()["task_id"] == made.task_id
    assert len(kling_emulator.ledger.creates()) == 1


@both_ways
@pytest.mark.kling_emulator(latency="never")
def test_without_a_ledger_a_refused_query_says_what_a_clear_would_buy(
    kling_emulator: KlingEmulator, deferrable: bool
) -> None:
    kling_emulator.inject("answer", status=401, call="query", times="always")
    run = run_task(lambda: KlingGenerateVideoOperator(task_id="make", prompt="x", deferrable=deferrable))
    (made,) = kling_emulator.ledger.tasks()
    assert isinstance(run.error, AirflowFailException)
    assert "a clear buys one" in str(run.error)
    assert f"KlingDownloadVideoOperator(kling_task_id='{made.task_id}')" in str(run.error)


@pytest.mark.kling_emulator(latency="never")
def test_where_another_video_cannot_be_asked_for_the_one_that_failed_before_is_not_told_as_bought(
    task: Task, kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_at(monkeypatch, ledger_module.Ledger, "submitted", after=True)
    task.killed_attempt()
    kling_emulator.fail(kling_emulator.ledger.tasks()[0].task_id, "UPSTREAM_FAILED")
    kling_emulator.inject("answer", status=402, call="create")
    run = task.attempt()
    assert isinstance(run.error, AirflowFailException)
    assert type(run.error.__cause__) is NoCreditsError
    assert run.error.__cause__.paid is Paid.NO
    card = run.ti.xcoms["kling_video"]
    assert (card["state"], card["task_id"]) == ("failed", None)


def test_a_timeout_keeps_its_deadline_and_a_retry_attaches(task: Task, kling_emulator: KlingEmulator) -> None:
    kling_emulator.configure(latency="never")
    first = task.attempt(timeout=timedelta(seconds=0.3))
    assert type(first.error) is TaskTimeoutError
    assert "A retry attaches to it again" in str(first.error)
    deadline = task.record()["deadline"]

    second = task.attempt(timeout=timedelta(seconds=60))
    assert type(second.error) is TaskTimeoutError
    assert task.record()["deadline"] == deadline

    kling_emulator.complete(kling_emulator.ledger.tasks()[0].task_id)
    assert task.attempt().value()["state"] == "completed"
    assert len(kling_emulator.ledger.creates()) == 1


def test_execution_timeout_bounds_the_wait(task: Task, kling_emulator: KlingEmulator) -> None:
    kling_emulator.configure(latency="never")
    run = task.attempt(execution_timeout=timedelta(seconds=0.4), timeout=9999)
    assert type(run.error) is TaskTimeoutError
    assert task.record()["deadline"] > time.time() + 9000


def test_a_refused_request_leaves_the_way_free(task: Task, kling_emulator: KlingEmulator) -> None:
    kling_emulator.inject("answer", status=402, call="create")
    assert isinstance(task.attempt().error, AirflowFailException)
    task.attempt().value()
    assert len(kling_emulator.ledger.paid()) == 1


def test_a_request_that_never_left_leaves_the_way_free(
    task: Task, kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_kling.hooks.kling.time.sleep", lambda _: None)
    uri = kling_emulator.connection_uri
    monkeypatch.setenv("AIRFLOW_CONN_KLING_DEFAULT", re.sub(r"%3A\d+", "%3A1", uri))
    run = task.attempt()
    assert isinstance(run.error, KlingError)
    assert task.record()["state"] == "free"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "cut short"),
        ('{"version": 1, "key"', "cut short"),
        ('{"version": 99}', "version 99"),
        ('{"version": 1}', "damaged"),
        ("[]", "version None"),
    ],
)
def test_a_record_that_cannot_be_used_is_named_and_kept_and_nothing_is_sent(
    task: Task, kling_emulator: KlingEmulator, text: str, problem: str
) -> None:
    task.attempt().value()
    task.write(text)
    run = task.attempt()

    assert type(run.error) is LedgerError
    assert problem in str(run.error)
    assert "left as it is" in str(run.error)
    assert len(kling_emulator.ledger.creates()) == 1
    if task.kind == "file":
        assert [path.read_text() for path in task.files()] == [text]
        assert str(task.files()[0].parent) in str(run.error)


def test_the_record_of_another_task_is_refused(task: Task, kling_emulator: KlingEmulator) -> None:
    task.attempt().value()
    other = task.record()
    other["key"]["task_id"] = "another"
    task.write(json.dumps(other))
    run = task.attempt()
    assert type(run.error) is LedgerError
    assert "another" in str(run.error)
    assert len(kling_emulator.ledger.creates()) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"dag_id": "a"}, {"dag_id": "A"}),
        ({"dag_id": "a/b"}, {"dag_id": "a.b"}),
        ({"task_id": "a.b"}, {"task_id": "a_b"}),
        ({"task_id": "ä"}, {"task_id": "ö"}),
        ({"task_id": "a" * 200}, {"task_id": "a" * 199 + "b"}),
        ({"dag_id": "..", "task_id": ".."}, {"dag_id": "..", "task_id": "."}),
        ({"map_index": 0}, {"map_index": 1}),
        ({"run_id": "scheduled__2026-01-01"}, {"run_id": "backfill__2026-01-01"}),
    ],
)
def test_each_task_instance_has_a_ledger_of_its_own(
    tmp_path: Path, kling_emulator: KlingEmulator, one: dict[str, Any], other: dict[str, Any]
) -> None:
    kling_emulator.configure(latency=0)
    folder = tmp_path / "ledger"
    task = Task("file", folder, deferrable=False)
    for coordinates in (one, other, one):
        task.attempt(TaskInstance(**coordinates)).value()
    assert len(kling_emulator.ledger.creates()) == 2
    assert len(task.files()) == 2
    assert [path for path in tmp_path.rglob("*") if path.is_file() and folder not in path.parents] == []


def let_tasks_run_in_this_thread() -> None:
    """Airflow 2 guards its operators with something that only its main thread has."""
    with suppress(ImportError, AttributeError):
        from airflow.models.baseoperator import ExecutorSafeguard

        ExecutorSafeguard._sentinel.callers = {}


def test_two_live_attempts_ask_once(tmp_path: Path, kling_emulator: KlingEmulator) -> None:
    """A zombie and its successor on the file ledger, at the same moment."""
    task = Task("file", tmp_path, deferrable=False)
    for round_ in range(10):
        ti = TaskInstance(run_id=f"run {round_}")
        with ThreadPoolExecutor(4, initializer=let_tasks_run_in_this_thread) as pool:
            runs = list(pool.map(lambda _, ti=ti: task.attempt(replace(ti, xcoms={})), range(4)))
        assert any(run.error is None for run in runs), [run.error for run in runs]
        assert len(kling_emulator.ledger.creates()) == round_ + 1


@pytest.mark.skipif(not HAS_TASK_STATE, reason="Airflow before 3.3 has no such store")
def test_a_superseded_attempt_sends_nothing(tmp_path: Path, kling_emulator: KlingEmulator) -> None:
    task = Task("task state", tmp_path, deferrable=False)
    task.store.is_superseded = True
    run = task.attempt()
    assert type(run.error) is LedgerError
    assert kling_emulator.ledger.creates() == []


def test_a_ledger_that_cannot_be_written_stops_the_submit(task: Task, kling_emulator: KlingEmulator) -> None:
    if task.kind == "file":
        task.folder.write_text("in the way")
    else:
        task.store.is_down = True
    run = task.attempt()
    assert type(run.error) is LedgerError
    assert "nothing was sent" in str(run.error)
    assert run.error.retryable
    assert kling_emulator.ledger.creates() == []


def test_an_id_that_cannot_be_stored_is_told_and_the_wait_goes_on(
    task: Task,
    kling_emulator: KlingEmulator,
    monkeypatch: pytest.MonkeyPatch,
    task_log: Callable[[], list[str]],
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise LedgerError("The ledger is full")

    original = ledger_module.Ledger._write
    monkeypatch.setattr(
        ledger_module.Ledger,
        "_write",
        lambda self, record, **how: broken() if record.kling_task_id else original(self, record, **how),
    )
    monkeypatch.setattr("airflow_provider_kling.ledger.time.sleep", lambda _: None)
    result = task.attempt().value()
    assert any("note the id" in line and result["task_id"] in line for line in task_log())


Refuse = Callable[[float], None]


@pytest.fixture
def refuse_ids(monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Return a function that lets the ledger fail at its next so many writes of a task id."""
    monkeypatch.setattr("airflow_provider_kling.ledger.time.sleep", lambda _: None)
    original = ledger_module.Ledger._write

    def refuse(times: float) -> None:
        def write(self: ledger_module.Ledger, record: Record, *, new: bool = False) -> None:
            nonlocal times
            if record.kling_task_id and times > 0:
                times -= 1
                raise LedgerError("The ledger is full")
            original(self, record, new=new)

        monkeypatch.setattr(ledger_module.Ledger, "_write", write)

    return refuse


ALL_TRIES = ledger_module.Ledger.write_tries


def test_an_id_that_the_ledger_could_not_take_is_written_before_a_retry_is_promised(
    task: Task, kling_emulator: KlingEmulator, refuse_ids: Refuse
) -> None:
    refuse_ids(ALL_TRIES)
    kling_emulator.inject("answer", status=500, call="query", times="always")
    run = task.attempt()
    (made,) = kling_emulator.ledger.tasks()
    assert type(run.error) is LostContactError
    assert "A retry attaches to it again and buys nothing" in str(run.error)
    assert (task.record()["state"], task.record()["kling_task_id"]) == ("submitted", made.task_id)

    kling_emulator.faults.clear()
    assert task.attempt().value()["task_id"] == made.task_id
    assert len(kling_emulator.ledger.creates()) == 1


@pytest.mark.parametrize("policy", ["fail", "resubmit"])
def test_where_the_ledger_never_takes_the_id_there_is_no_retry_and_the_error_names_it(
    task: Task, kling_emulator: KlingEmulator, refuse_ids: Refuse, policy: str
) -> None:
    refuse_ids(float("inf"))
    kling_emulator.inject("answer", status=500, call="query", times="always")
    run = task.attempt(on_unknown_submission=policy)
    (made,) = kling_emulator.ledger.tasks()
    assert isinstance(run.error, AirflowFailException)
    assert type(run.error.__cause__) is LostContactError
    assert f"KlingDownloadVideoOperator(kling_task_id='{made.task_id}')" in str(run.error)
    assert "buys nothing" not in str(run.error)


def test_where_the_ledger_never_takes_the_id_no_other_error_is_retried_either(
    task: Task, kling_emulator: KlingEmulator, refuse_ids: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("nobody thought of this")

    refuse_ids(float("inf"))
    monkeypatch.setattr("airflow_provider_kling.delivery.video_result", broken)
    run = task.attempt()
    (made,) = kling_emulator.ledger.tasks()
    assert isinstance(run.error, AirflowFailException)
    assert "nobody thought of this" in str(run.error)
    assert made.task_id in str(run.error)


@pytest.mark.parametrize("waits", [True, False], ids=["waits", "does not wait"])
def test_an_id_that_the_ledger_could_not_take_is_written_with_the_success(
    task: Task, kling_emulator: KlingEmulator, refuse_ids: Refuse, waits: bool
) -> None:
    refuse_ids(ALL_TRIES)
    first = task.attempt(wait_for_completion=waits).value()
    assert task.record()["state"] == ("completed" if waits else "submitted")
    assert task.attempt(wait_for_completion=waits).value()["task_id"] == first["task_id"]
    assert len(kling_emulator.ledger.creates()) == 1


@pytest.mark.parametrize("is_answered", [True, False], ids=["has its id", "has only its intent"])
@pytest.mark.kling_emulator(latency="never")
def test_an_id_that_the_ledger_could_not_take_is_not_written_into_the_record_of_another_attempt(
    kind: str,
    tmp_path: Path,
    kling_emulator: KlingEmulator,
    refuse_ids: Refuse,
    monkeypatch: pytest.MonkeyPatch,
    is_answered: bool,
) -> None:
    task = Task(kind, tmp_path / "ledger", deferrable=True)
    of_another: dict[str, Any] = {}

    def take_over() -> None:
        if not is_answered:
            kill_at(monkeypatch, sync_client.KlingClient, "send", after=False)
        with suppress(Killed):
            task.attempt(on_unknown_submission="resubmit", wait_for_completion=False)
        of_another.update(task.record())
        kling_emulator.inject("answer", status=500, call="query", times="always")

    refuse_ids(ALL_TRIES)
    run = task.attempt(between=take_over)
    assert of_another["state"] == ("submitted" if is_answered else "intent")
    assert task.record() == of_another
    assert isinstance(run.error, AirflowFailException)
    assert kling_emulator.ledger.tasks()[0].task_id in str(run.error)


def test_a_task_killed_right_before_its_submit_sends_nothing(
    task: Task, kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ledger_module.Ledger.intend
    made = task.operator()

    def killed_meanwhile(*args: Any, **kwargs: Any) -> Any:
        record = original(*args, **kwargs)
        made.on_kill()
        return record

    monkeypatch.setattr(ledger_module.Ledger, "intend", killed_meanwhile)
    with pytest.raises(submission.KilledError):
        made.execute({"ti": TaskInstance(), "task_state_store": task.store})
    assert kling_emulator.ledger.creates() == []
    assert task.record()["state"] == "free"


def test_an_attempt_that_was_frozen_before_its_post_makes_sure_that_it_is_still_the_one(
    tmp_path: Path, kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task("file", tmp_path, deferrable=False)
    original = ledger_module.Ledger.intend

    def frozen(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(ledger_module.Ledger, "intend", original)
        record = original(*args, **kwargs)
        assert task.attempt(on_unknown_submission="resubmit").error is None
        return record.model_copy(update={"intent_at": record.intent_at - 600})

    monkeypatch.setattr(ledger_module.Ledger, "intend", frozen)
    run = task.attempt()
    assert type(run.error) is LedgerError
    assert "taken over" in str(run.error)
    assert len(kling_emulator.ledger.creates()) == 1


def test_a_busy_service_is_asked_again_without_holding_a_worker(
    task: Task, kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_kling.generation.BUSY_PAUSE", 0.1)
    monkeypatch.setattr("airflow_provider_kling.hooks.kling.SUBMIT_TRIES", 1)
    kling_emulator.inject("answer", status=429, call="create", times=3)
    run = task.attempt()
    assert run.value()["state"] == "completed"
    assert len(kling_emulator.ledger.paid()) == 1
    if task.deferrable:
        assert [deferral.method_name for deferral in run.deferrals][:3] == ["execute_again"] * 3


def test_while_the_service_is_busy_a_file_is_uploaded_once(
    task: Task, kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("airflow_provider_kling.generation.BUSY_PAUSE", 0.1)
    monkeypatch.setattr("airflow_provider_kling.hooks.kling.SUBMIT_TRIES", 1)
    kling_emulator.inject("answer", status=429, call="create", times=3)
    pictures = [str(draw_image(tmp_path / f"{seed}.png", seed=seed)) for seed in range(2)]
    run = task.attempt(image_list=pictures)
    assert run.value()["state"] == "completed"
    assert len(kling_emulator.ledger.requests("upload")) == 2
    assert len(kling_emulator.ledger.paid()) == 1
    assert len([each for each in run.deferrals if each.method_name == "execute_again"]) == 3 * task.deferrable


@pytest.mark.kling_emulator(latency=0.2, max_running_tasks=0, when_full="fail")
def test_a_task_that_failed_because_the_service_was_busy_is_asked_for_again(
    task: Task, kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_kling.generation.BUSY_PAUSE", 0.1)
    pauses = itertools.count(1)
    original = submission.Submission.release

    def release(*args: Any, **kwargs: Any) -> None:
        if next(pauses) == 2:
            kling_emulator.configure(max_running_tasks=None)
        original(*args, **kwargs)

    monkeypatch.setattr(submission.Submission, "release", release)
    task.attempt().value()
    assert len(kling_emulator.ledger.paid()) == 1
    assert len(kling_emulator.ledger.creates()) == 3


@pytest.mark.parametrize("is_resumed", [False, True], ids=["begins", "resumes"])
def test_a_task_that_the_service_will_not_make_is_not_asked_for_again_because_it_speaks_of_concurrency(
    kind: str,
    tmp_path: Path,
    kling_emulator: KlingEmulator,
    monkeypatch: pytest.MonkeyPatch,
    is_resumed: bool,
) -> None:
    monkeypatch.setattr("airflow_provider_kling.generation.BUSY_PAUSE", 0.1)
    kling_emulator.inject(
        "fail", message="these two cannot be used concurrently", retryable=False, at_once=not is_resumed
    )
    run = Task(kind, tmp_path / "ledger", deferrable=is_resumed).attempt()
    assert isinstance(run.error, AirflowFailException)
    assert type(run.error.__cause__) is TooManyTasksError
    assert "The service says that asking again cannot help" in str(run.error)
    assert "a retry asks again" not in str(run.error)
    assert len(kling_emulator.ledger.creates()) == 1


@pytest.mark.kling_emulator(latency="never")
def test_a_busy_service_that_cannot_be_asked_about_a_paid_video_does_not_make_it_free(
    task: Task, kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_kling.generation.BUSY_PAUSE", 0.1)
    monkeypatch.setattr("airflow_provider_kling.hooks.sync_client.GET_TRIES", 1)
    first = task.attempt(wait_for_completion=False).value()
    kling_emulator.inject("answer", status=429, call="query", times="always")
    run = task.attempt(wait_for_completion=False)
    assert type(run.error) is RateLimitedError
    assert (run.error.paid, run.error.task_id) == (Paid.MAYBE, first["task_id"])
    assert "A retry attaches to it again and buys nothing" in str(run.error)
    assert "othing was billed" not in str(run.error)
    card = run.ti.xcoms["kling_video"]
    assert (card["state"], card["task_id"]) == ("unresolved", first["task_id"])

    kling_emulator.faults.clear()
    assert task.attempt(wait_for_completion=False).value()["task_id"] == first["task_id"]
    assert len(kling_emulator.ledger.creates()) == 1


def test_a_service_that_stays_busy_ends_the_attempt_at_its_deadline(
    task: Task, kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_kling.generation.BUSY_PAUSE", 0.1)
    monkeypatch.setattr("airflow_provider_kling.hooks.kling.SUBMIT_TRIES", 1)
    kling_emulator.inject("answer", status=429, call="create", times="always")
    run = task.attempt(timeout=0.5)
    assert type(run.error) is RateLimitedError
    assert "a retry asks again" in str(run.error)

    kling_emulator.faults.clear()
    task.attempt(timeout=20).value()


def test_without_a_ledger_one_warning_says_what_can_happen_and_what_helps(
    kling_emulator: KlingEmulator, task_log: Callable[[], list[str]]
) -> None:
    run_task(lambda: KlingGenerateVideoOperator(task_id="make", prompt="x", poll_interval=0.05)).value()
    warnings = [line for line in task_log() if "not remembered" in line]
    assert len(warnings) == 1
    assert "ledger_path" in warnings[0]


def end_while_posting(monkeypatch: pytest.MonkeyPatch, *, number: int = 1) -> None:
    """Let a POST reach the service, the first unless told otherwise, and Airflow end the attempt before its answer."""
    original = sync_client.KlingClient.send
    posts = itertools.count(1)

    def send(self: sync_client.KlingClient, call: ApiCall, **how: Any) -> ApiAnswer:
        answer = original(self, call, **how)
        if call.method == "POST" and next(posts) == number:
            monkeypatch.setattr(sync_client.KlingClient, "send", original)
            raise AirflowTaskTimeout("Timeout")
        return answer

    monkeypatch.setattr(sync_client.KlingClient, "send", send)


@both_ways
@pytest.mark.parametrize("is_list", [False, True], ids=["a video", "a list"])
def test_without_a_ledger_an_attempt_that_airflow_ends_in_the_middle_of_its_post_is_not_retried(
    kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch, deferrable: bool, is_list: bool
) -> None:
    def make() -> Any:
        how: dict[str, Any] = {"task_id": "make", "poll_interval": 0.05, "deferrable": deferrable}
        if is_list:
            return KlingGenerateVideoBatchOperator(requests=["x"], **how)
        return KlingGenerateVideoOperator(prompt="x", **how)

    end_while_posting(monkeypatch)
    run = run_task(make)
    assert len(kling_emulator.ledger.creates()) == 1
    assert isinstance(run.error, AirflowFailException), "a retry could buy a second video"
    assert "AirflowTaskTimeout: Timeout" in str(run.error)
    assert "may have been created and may be billed" in str(run.error)
    assert "https://apimodels.app" in str(run.error)
    if not is_list:
        assert run.ti.xcoms["kling_video"]["state"] == "unresolved"


def test_without_a_ledger_an_attempt_that_airflow_ends_right_after_its_answer_names_the_video(
    kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_long(*_: Any) -> None:
        raise AirflowTaskTimeout("Timeout")

    monkeypatch.setattr("airflow_provider_kling.metrics.submitted", too_long)
    run = run_task(lambda: KlingGenerateVideoOperator(task_id="make", prompt="x"))
    (made,) = kling_emulator.ledger.tasks()
    assert isinstance(run.error, AirflowFailException), "a retry would buy a second video"
    assert made.task_id in str(run.error)
    card = run.ti.xcoms["kling_video"]
    assert (card["state"], card["task_id"]) == ("unresolved", made.task_id)


def test_a_list_that_airflow_ends_in_the_middle_of_a_post_names_what_it_bought_before(
    kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_while_posting(monkeypatch, number=2)
    run = run_task(lambda: KlingGenerateVideoBatchOperator(task_id="make", requests=["x", "y"]))
    first, _ = kling_emulator.ledger.tasks()
    assert isinstance(run.error, AirflowFailException)
    assert first.task_id in str(run.error)
    assert "One more request was being sent, whose video may be billed too" in str(run.error)


def test_with_a_ledger_an_attempt_that_airflow_ends_in_the_middle_of_its_post_leaves_an_unknown_submission(
    task: Task, kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_while_posting(monkeypatch)
    with pytest.raises(AirflowTaskTimeout):
        task.attempt()
    assert task.record()["state"] == "intent"
    error = task.attempt().error
    assert isinstance(error, AirflowFailException)
    assert type(error.__cause__) is UnknownSubmissionError
    assert len(kling_emulator.ledger.creates()) == 1


def test_without_a_ledger_an_attempt_that_airflow_ends_after_a_refused_post_may_be_retried(
    kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_long(_: float) -> None:
        raise AirflowTaskTimeout("Timeout")

    kling_emulator.inject("answer", status=429, call="create")
    monkeypatch.setattr("airflow_provider_kling.hooks.kling.time.sleep", too_long)
    with pytest.raises(AirflowTaskTimeout):
        run_task(lambda: KlingGenerateVideoOperator(task_id="make", prompt="x"))


def test_the_ledger_may_be_set_for_all(
    kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIRFLOW__KLING__LEDGER_PATH", f"file://{tmp_path}")
    for _ in range(2):
        run_task(lambda: KlingGenerateVideoOperator(task_id="make", prompt="x", poll_interval=0.05)).value()
    assert len(kling_emulator.ledger.creates()) == 1


@pytest.mark.parametrize("operator", [KlingGenerateVideoOperator, KlingGenerateVideoBatchOperator])
@pytest.mark.parametrize("path", ["kling-ledger", "~/kling-ledger", "file://kling-ledger"])
def test_a_ledger_that_another_workers_attempt_would_not_find_is_refused_before_anything_is_sent(
    kling_emulator: KlingEmulator,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    operator: Callable[..., Any],
    path: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = {"requests": ["x"]} if operator is KlingGenerateVideoBatchOperator else {"prompt": "x"}

    def mapped_over_paths() -> Any:
        # Only a mapped task gets here with it.
        task = operator(task_id="make", poll_interval=0.05, timeout=20, **asked)
        task.ledger_path = path
        return task

    run = run_task(mapped_over_paths)
    assert isinstance(run.error, AirflowFailException)
    assert f"ledger_path {path!r}" in str(run.error)
    assert kling_emulator.ledger.requests() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("operator", [KlingGenerateVideoOperator, KlingGenerateVideoBatchOperator])
@pytest.mark.parametrize("path", ["kling-ledger", "~/kling-ledger", "file://kling-ledger"])
def test_a_ledger_that_another_workers_attempt_would_not_find_is_told_when_the_dag_is_parsed(
    operator: Callable[..., Any], path: str
) -> None:
    asked = {"requests": ["x"]} if operator is KlingGenerateVideoBatchOperator else {"prompt": "x"}
    with pytest.raises(ValueError, match=f"ledger_path {path!r}"):
        operator(task_id="make", ledger_path=path, **asked)


@pytest.mark.parametrize("name", ["on_unknown_submission", "on_expired_result"])
def test_a_policy_that_does_not_exist_is_refused_at_parse_time(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be 'fail' or 'resubmit'; got 'retry'"):
        KlingGenerateVideoOperator(task_id="make", prompt="x", **{name: "retry"})


@pytest.mark.parametrize("deferrable", [False, True], ids=["on the worker", "deferred"])
def test_on_object_storage_a_retry_attaches_to_what_is_paid_for(
    s3_server: S3Server, tmp_path: Path, kling_emulator: KlingEmulator, deferrable: bool
) -> None:
    task = Task("object storage", tmp_path, deferrable)
    first = task.attempt(ledger_path=s3_server.uri("ledger")).value()
    assert task.attempt(ledger_path=s3_server.uri("ledger")).value() == first
    assert len(kling_emulator.ledger.creates()) == 1
    assert [name.startswith("ledger/dag/") for name in s3_server.names()] == [True]


def test_on_object_storage_no_generation_is_taken_from_who_claimed_it_since_the_ledger_was_read(
    s3_server: S3Server,
) -> None:
    store = FileLedgerStore(ObjectStoragePath(s3_server.uri("ledger")))
    s3_server.put("ledger/000001.json", b"free")
    assert store.read() == "free"
    s3_server.put("ledger/000002.json", b"another attempt's")
    with pytest.raises(FileExistsError):
        store.write("mine", 2, new=True)
    assert s3_server.content("ledger/000002.json") == b"another attempt's"
    store.write("mine", 3, new=True)
    assert store.read() == "mine"


class Refusing(BaseHTTPRequestHandler):
    """Object storage that lets nobody in."""

    def refuse(self) -> None:
        """Answer any call."""
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = refuse  # noqa: N815 - the server's own names

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def test_object_storage_that_cannot_be_listed_is_no_empty_ledger(
    tmp_path: Path, kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    connection = {
        "conn_type": "aws",
        "login": "nobody",
        "password": "nothing",
        "extra": {"region_name": "us-east-1", "endpoint_url": endpoint},
    }
    monkeypatch.setenv("AIRFLOW_CONN_KLING_DENIED", json.dumps(connection))
    try:
        run = Task("object storage", tmp_path, False).attempt(ledger_path="s3://kling_denied@bucket/ledger")
    finally:
        server.shutdown()
        server.server_close()
    assert isinstance(run.error, LedgerError)
    assert "could not be read: PermissionError" in str(run.error)
    assert kling_emulator.ledger.creates() == []
