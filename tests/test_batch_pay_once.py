"""A list that is killed, retried and rearranged pays for each of its videos once, on both ledgers."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, ObjectStoragePath

from airflow_provider_kling import batch, batch_ledger, generation, submission
from airflow_provider_kling import ledger as ledger_module
from airflow_provider_kling.airflow_versions import AIRFLOW_V_3_3_PLUS
from airflow_provider_kling.api.errors import KlingError, Paid
from airflow_provider_kling.delivery import Delivery
from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.exceptions import StorageError
from airflow_provider_kling.hooks import kling as kling_hook
from airflow_provider_kling.hooks.kling import KlingHook
from airflow_provider_kling.ledger import LedgerError
from airflow_provider_kling.operators.batch import KlingGenerateVideoBatchOperator
from tests.media import draw_image
from tests.s3 import S3Server, s3_endpoint, s3_server
from tests.task_runs import TaskInstance, TaskRun, TaskStateStore, rendered, run_task

__all__ = ["s3_endpoint", "s3_server"]

# Nobody looks at these films, and to draw one of the usual size takes a tenth of a second of CPU.
pytestmark = [pytest.mark.kling_emulator(latency=0.05, scale=0.01), pytest.mark.acceptance]


class Killed(BaseException):
    """What ``kill -9`` is to the code: nothing after it runs, no handler sees it."""


class Batch:
    """One task instance that makes a list, attempt after attempt, with a ledger of either kind."""

    def __init__(self, kind: str, folder: Path, deferrable: bool) -> None:
        self.kind, self.folder, self.deferrable = kind, folder, deferrable
        self.store = TaskStateStore()

    def operator(self, **arguments: Any) -> KlingGenerateVideoBatchOperator:
        defaults = {
            "task_id": "make",
            "requests": ["kite 0", "kite 1", "kite 2", "kite 3"],
            "duration": 3,
            "max_in_flight": 2,
            "poll_interval": 0.05,
            "timeout": 20,
            "deferrable": self.deferrable,
            "ledger_path": str(self.folder / "ledger") if self.kind == "file" else None,
        }
        return KlingGenerateVideoBatchOperator(**(defaults | arguments))

    def attempt(self, ti: TaskInstance | None = None, **arguments: Any) -> TaskRun:
        return run_task(lambda: self.operator(**arguments), ti=ti, context=self.context())

    def attempt_that_renders(self, **values: Any) -> TaskRun:
        return run_task(lambda: rendered(self.operator, **values), context=self.context())

    def context(self) -> dict[str, Any]:
        return {"task_state_store": self.store} if self.kind == "task state" else {}

    def pages(self) -> list[dict[str, Any]]:
        if self.kind == "file":
            found = (self.folder / "ledger").rglob("*.????.json")
            return [json.loads(path.read_text()) for path in sorted(found)]
        return [self.store.values[key] for key in sorted(self.store.values)]

    def records(self) -> dict[str, dict[str, Any]]:
        return {name: its for page in self.pages() for name, its in page["videos"].items()}


@pytest.fixture(
    params=[
        "file",
        pytest.param(
            "task state",
            marks=pytest.mark.skipif(not AIRFLOW_V_3_3_PLUS, reason="Airflow before 3.3 has no such store"),
        ),
    ]
)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[False, True], ids=["on the worker", "deferred"])
def task(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Batch:
    return Batch(kind, tmp_path, request.param)


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count a POST of another attempt as answered or lost at once, unless a test is about that wait."""
    monkeypatch.setattr(submission, "GRACE_MARGIN", -1000.0)


def prompts_paid(emulator: KlingEmulator) -> Counter[str]:
    ids = {each.task_id for each in emulator.ledger.paid()}
    return Counter(str(each.body["prompt"]) for each in emulator.ledger.tasks() if each.task_id in ids)


def kill_at(monkeypatch: pytest.MonkeyPatch, target: Any, name: str, nth: int, *, after: bool) -> None:
    """Kill the process right before or right after the n-th time that a function does its work, once."""
    original = getattr(target, name)
    calls = itertools.count(1)

    def dying(*args: Any, **kwargs: Any) -> Any:
        if next(calls) != nth:
            return original(*args, **kwargs)
        monkeypatch.setattr(target, name, original)
        if after:
            original(*args, **kwargs)
        raise Killed

    monkeypatch.setattr(target, name, dying)


STEPS = [
    (batch_ledger.BatchLedger, "begin"),
    (ledger_module.Ledger, "intend"),
    (KlingHook, "submit"),
    (ledger_module.Ledger, "submitted"),
    (batch_ledger.BatchLedger, "write_record"),
    (batch_ledger.BatchLedger, "flush"),
    (batch_ledger.BatchLedger, "end"),
    (Delivery, "store"),
    (Delivery, "complete"),
    (batch.Batch, "_settle"),
    (batch.Batch, "_finish"),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("target", "name"), STEPS, ids=[name for _, name in STEPS])
@pytest.mark.parametrize("nth", [1, 3])
def test_killed_at_any_step_the_next_attempts_pay_only_for_what_is_not_paid_for(
    task: Batch,
    kling_emulator: KlingEmulator,
    monkeypatch: pytest.MonkeyPatch,
    target: Any,
    name: str,
    nth: int,
    after: bool,
) -> None:
    with monkeypatch.context() as patched:
        kill_at(patched, target, name, nth, after=after)
        try:
            task.attempt()
            was_killed = False
        except Killed:
            was_killed = True
    run = task.attempt()

    paid = prompts_paid(kling_emulator)
    assert max(paid.values()) == 1, "paid twice"
    told = run.result or run.ti.xcoms["return_value"]
    missing = [its for its in told["results"] if its["outcome"] != "completed"]
    assert len(missing) <= int(was_killed), "a kill leaves the outcome of one submission unknown at most"
    for its in missing:
        assert (its["outcome"], its["reason"]) == ("unresolved", "unknown_submission")
    if not missing:
        assert paid == {"kite 0": 1, "kite 1": 1, "kite 2": 1, "kite 3": 1}
    else:
        assert isinstance(run.error, AirflowFailException)


def test_a_retry_finds_what_is_paid_for_in_a_list_that_changed_its_order(
    task: Batch, kling_emulator: KlingEmulator
) -> None:
    kling_emulator.inject("fail", prompt="kite 1", fail_code="UPSTREAM_FAILED")
    first = task.attempt()
    assert first.error is not None
    again = task.attempt(requests=["kite 3", "kite 1", "kite 2", "kite 0"]).value()

    before = {its["index"]: its["task_id"] for its in first.ti.xcoms["return_value"]["results"]}
    after = [its["task_id"] for its in again["results"]]
    assert [after[3], after[2], after[0]] == [before[0], before[2], before[3]]
    assert prompts_paid(kling_emulator) == {"kite 0": 1, "kite 1": 1, "kite 2": 1, "kite 3": 1}
    assert len(kling_emulator.ledger.creates()) == 5


def test_equal_items_are_different_videos_and_a_retry_tells_them_apart(
    task: Batch, kling_emulator: KlingEmulator
) -> None:
    kling_emulator.inject("fail", prompt="kite", fail_code="UPSTREAM_FAILED", skip=1)
    first = task.attempt(requests=["kite", "kite", "kite"])
    assert first.error is not None
    again = task.attempt(requests=["kite", "kite", "kite"]).value()

    assert len({its["task_id"] for its in again["results"]}) == 3
    assert prompts_paid(kling_emulator) == {"kite": 3}
    assert len(kling_emulator.ledger.creates()) == 4


def test_a_list_that_is_done_is_not_asked_for_again_and_its_files_are_not_fetched_again(
    task: Batch, kling_emulator: KlingEmulator
) -> None:
    films = str(task.folder / "films")
    first = task.attempt(output_path=films).value()
    before = len(kling_emulator.ledger.requests())
    again = task.attempt(output_path=films).value()

    assert again["results"] == first["results"]
    assert len(kling_emulator.ledger.requests()) == before, "what is there need not be asked for"


def test_a_file_that_was_lost_is_fetched_again_and_nothing_is_bought(
    task: Batch, kling_emulator: KlingEmulator
) -> None:
    films = str(task.folder / "films")
    first = task.attempt(output_path=films).value()
    lost = Path(first["results"][2]["path"])
    lost.unlink()
    assert task.attempt(output_path=films).value()["results"][2]["path"] == str(lost)
    assert lost.exists()
    assert len(kling_emulator.ledger.creates()) == 4


def test_a_longer_list_buys_only_what_is_new(task: Batch, kling_emulator: KlingEmulator) -> None:
    task.attempt().value()
    task.attempt(requests=["kite 4", *(f"kite {index}" for index in range(4))]).value()
    assert prompts_paid(kling_emulator) == {f"kite {index}": 1 for index in range(5)}
    assert len(kling_emulator.ledger.creates()) == 5


def test_a_lost_answer_leaves_one_video_out_and_says_how_to_look(
    task: Batch, kling_emulator: KlingEmulator
) -> None:
    kling_emulator.inject("lost_answer", call="create", skip=1)
    for _ in range(2):
        run = task.attempt()
        assert isinstance(run.error, AirflowFailException)
        results = run.ti.xcoms["return_value"]["results"]
        assert [its["outcome"] for its in results] == ["completed", "unresolved", "completed", "completed"]
        assert "records" in results[1]["error"]
        assert "requests[1] (unknown_submission)" in str(run.error)
    assert len(kling_emulator.ledger.creates()) == 4


def test_a_lost_answer_is_asked_for_again_where_the_author_wants_that(
    task: Batch, kling_emulator: KlingEmulator
) -> None:
    kling_emulator.inject("lost_answer", call="create", skip=1)
    first = task.attempt(on_unknown_submission="resubmit")
    assert first.error is not None
    assert not isinstance(first.error, AirflowFailException)
    task.attempt(on_unknown_submission="resubmit").value()
    assert len(kling_emulator.ledger.creates()) == 5


def test_after_several_lost_answers_in_a_row_no_more_are_sent(
    task: Batch, kling_emulator: KlingEmulator
) -> None:
    kling_emulator.inject("lost_answer", call="create", times="always")
    run = task.attempt(requests=[f"kite {index}" for index in range(9)])
    assert len(kling_emulator.ledger.creates()) == batch.MAX_UNKNOWN_IN_A_ROW
    assert run.ti.xcoms["return_value"]["not_submitted"] == 6


def test_lost_answers_of_an_earlier_attempt_do_not_keep_the_next_one_from_asking_for_the_rest(
    task: Batch, kling_emulator: KlingEmulator
) -> None:
    kling_emulator.inject("lost_answer", call="create", times=3)
    requests = [f"kite {index}" for index in range(9)]
    task.attempt(requests=requests)
    told = task.attempt(requests=requests).ti.xcoms["return_value"]
    assert (told["completed"], told["unresolved"], told["not_submitted"]) == (6, 3, 0)
    assert len(kling_emulator.ledger.creates()) == 9


def test_a_superseded_attempt_sends_nothing(task: Batch, kling_emulator: KlingEmulator) -> None:
    """The frozen one comes back in the middle of its list, after the next one has begun."""
    if task.kind == "task state":

        def supersede() -> None:
            task.store.is_superseded = True
    else:

        def supersede() -> None:
            (claims,) = {path.parent for path in (task.folder / "ledger").rglob("000001.json")}
            (claims / "000002.json").write_text('{"owner": "the next attempt"}')

    original, calls = KlingHook.submit, itertools.count(1)

    def submit(self: KlingHook, *args: Any, **kwargs: Any) -> Any:
        answer = original(self, *args, **kwargs)
        if next(calls) == 2:
            supersede()
        return answer

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(KlingHook, "submit", submit)
        patched.setattr(ledger_module.Ledger, "write_tries", 1)
        run = task.attempt(max_in_flight=4)
    assert isinstance(run.error, LedgerError)
    assert len(kling_emulator.ledger.creates()) == 2


def test_what_a_frozen_attempt_learns_late_is_not_lost(tmp_path: Path, kling_emulator: KlingEmulator) -> None:
    """Its pages are its own, so that it neither spoils what the next attempt writes, nor is spoilt by that."""
    task = Batch("file", tmp_path, False)
    task.attempt(requests=["kite 0"]).value()
    (page,) = (tmp_path / "ledger").rglob("000001.0000.json")
    late = page.read_text()
    page.write_text(late.replace('"completed"', '"intent"', 1))
    task.attempt(requests=["kite 0"])
    page.write_text(late)
    task.attempt(requests=["kite 0"]).value()
    assert len(kling_emulator.ledger.creates()) == 1


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda text: text[: len(text) // 2], "ledger"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "version 2"),
        (lambda text: text.replace('"dag_id": "dag"', '"dag_id": "other"'), "other"),
    ],
    ids=["cut short", "another version", "another task"],
)
def test_a_page_that_cannot_be_used_is_left_alone_and_nothing_is_sent(
    tmp_path: Path, kling_emulator: KlingEmulator, damage: Callable[[str], str], told: str
) -> None:
    task = Batch("file", tmp_path, False)
    task.attempt().value()
    (page,) = (tmp_path / "ledger").rglob("000001.0000.json")
    damaged = damage(page.read_text())
    page.write_text(damaged)
    run = task.attempt()
    assert isinstance(run.error, (LedgerError, AirflowFailException))
    assert told in str(run.error)
    assert page.read_text() == damaged
    assert len(kling_emulator.ledger.creates()) == 4


@pytest.mark.skipif(not AIRFLOW_V_3_3_PLUS, reason="Airflow before 3.3 has no such store")
def test_a_ledger_out_of_reach_sends_nothing_and_may_be_retried(
    tmp_path: Path, kling_emulator: KlingEmulator
) -> None:
    task = Batch("task state", tmp_path, True)
    task.store.is_down = True
    assert isinstance(task.attempt().error, LedgerError)
    assert kling_emulator.ledger.creates() == []
    task.store.is_down = False
    task.attempt().value()
    assert len(kling_emulator.ledger.creates()) == 4


def unplug_ledger(folder: Path) -> None:
    """Leave no page in a form that can be read."""
    for page in (folder / "ledger").rglob("*.????.json"):
        page.write_text(f"?{page.read_text()}")


def plug_ledger_in(folder: Path) -> None:
    for page in (folder / "ledger").rglob("*.????.json"):
        page.write_text(page.read_text().removeprefix("?"))


def test_a_ledger_that_cannot_be_read_while_videos_are_made_is_told_as_what_it_is(
    tmp_path: Path, kling_emulator: KlingEmulator
) -> None:
    task = Batch("file", tmp_path, True)
    run = run_task(task.operator, between=lambda: unplug_ledger(tmp_path))
    assert isinstance(run.error, LedgerError)
    assert run.error.paid is Paid.MAYBE
    assert "each is billed when it is completed" in str(run.error)
    assert "the next attempt takes up" in str(run.error)
    assert "nothing was" not in str(run.error).lower()
    plug_ledger_in(tmp_path)
    task.attempt().value()
    assert prompts_paid(kling_emulator) == {f"kite {index}": 1 for index in range(4)}


def test_a_ledger_that_lost_pages_while_videos_were_made_leads_to_no_retry_by_itself(
    tmp_path: Path, kling_emulator: KlingEmulator
) -> None:
    def lose() -> None:
        for page in (tmp_path / "ledger").rglob("*.????.json"):
            page.unlink()

    run = run_task(Batch("file", tmp_path, True).operator, between=lose)
    assert isinstance(run.error, AirflowFailException)
    assert isinstance(run.error.__cause__, LedgerError)
    assert run.error.__cause__.paid is Paid.MAYBE
    assert "holds 0 of the 2 videos" in str(run.error)
    assert "would be bought again" in str(run.error)
    assert "nothing was" not in str(run.error).lower()
    assert len(kling_emulator.ledger.creates()) == 2


@pytest.mark.parametrize("kind", ["file", "none"])
def test_what_stops_a_list_on_its_way_is_not_told_as_if_nothing_had_been_paid(
    tmp_path: Path, kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def killed() -> KlingGenerateVideoBatchOperator:
        made = Batch(kind, tmp_path, True).operator()
        made.is_killed = len(kling_emulator.ledger.creates()) > 0
        return made

    run = run_task(killed)
    error = run.error if kind == "file" else (run.error or Exception()).__cause__
    assert isinstance(error, submission.KilledError)
    assert error.paid is Paid.MAYBE
    assert "each is billed when it is completed" in str(error)
    assert ("the next attempt takes up" in str(error)) is (kind == "file")
    assert ("a retry would buy it again and is not made" in str(error)) is (kind == "none")
    assert "nothing was" not in str(error).lower()


def rendering_otherwise(task: Batch, name: str, value: Any) -> TaskRun:
    """Run an attempt one of whose templates renders to something else once the task is deferred."""
    values: dict[str, Any] = {
        "requests": [f"kite {index}" for index in range(4)],
        "output_path": str(task.folder / "films"),
    }
    return run_task(lambda: rendered(task.operator, **values), between=lambda: values.update({name: value}))


RENDERED_OTHERWISE = [
    ("requests", None, "requests: None is not allowed"),
    ("requests", [{"prompt": "kite 0", "duration": 99}] * 4, "].duration: '99'"),
    ("requests", [{"prompt": "kite 0", "output_path": "films"}] * 4, "'films'"),
    ("output_path", "None", "output_path 'None'"),
    ("output_path", None, "output_path"),
]
each_rendered_otherwise = pytest.mark.parametrize(
    ("name", "value", "told"),
    RENDERED_OTHERWISE,
    ids=["no list", "wrong items", "wrong places of items", "a wrong place", "no place"],
)


@each_rendered_otherwise
def test_what_renders_otherwise_while_videos_are_made_is_retried_and_names_what_is_billed(
    tmp_path: Path, kling_emulator: KlingEmulator, name: str, value: Any, told: str
) -> None:
    task = Batch("file", tmp_path, True)
    run = rendering_otherwise(task, name, value)
    assert isinstance(run.error, KlingError)
    assert run.error.retryable
    assert run.error.paid is Paid.MAYBE
    assert told in str(run.error)
    bought = [made.task_id for made in kling_emulator.ledger.tasks()]
    assert len(bought) == 2
    for words in (*bought, "each is billed when it is completed", "the next attempt takes up", "A retry"):
        assert words in str(run.error)
    for words in ("nothing was", "sent nothing", "retry cannot help"):
        assert words not in str(run.error).lower()
    assert (run.ti.xcoms["kling_video"]["state"], run.ti.xcoms["kling_video"]["total"]) == ("failed", 4)

    task.attempt(output_path=str(tmp_path / "films")).value()
    assert prompts_paid(kling_emulator) == {f"kite {index}": 1 for index in range(4)}
    assert len(kling_emulator.ledger.creates()) == 4


@each_rendered_otherwise
def test_what_renders_otherwise_is_not_retried_where_no_ledger_remembers_the_videos(
    tmp_path: Path, kling_emulator: KlingEmulator, name: str, value: Any, told: str
) -> None:
    run = rendering_otherwise(Batch("none", tmp_path, True), name, value)
    assert isinstance(run.error, AirflowFailException)
    for words in (told, "each is billed when it is completed", "would buy it again and is not made"):
        assert words in str(run.error)
    for made in kling_emulator.ledger.tasks():
        assert made.task_id in str(run.error)
    assert "A retry renders" not in str(run.error), "there is none"


@each_rendered_otherwise
def test_what_renders_wrongly_when_a_retry_begins_names_what_earlier_attempts_paid_for(
    task: Batch, kling_emulator: KlingEmulator, name: str, value: Any, told: str
) -> None:
    kling_emulator.inject("fail", prompt="kite 1", fail_code="UPSTREAM_FAILED")
    films = str(task.folder / "films")
    assert task.attempt(output_path=films).error is not None
    paid = [its.task_id for its in kling_emulator.ledger.paid()]
    assert len(paid) == 3

    run = task.attempt_that_renders(**{"output_path": films, name: value})
    assert isinstance(run.error, AirflowFailException)
    error = run.error.__cause__
    assert isinstance(error, KlingError)
    assert error.paid is Paid.MAYBE
    for words in (told, *paid, "each is billed when it is completed", "the next attempt takes up"):
        assert words in str(run.error)
    assert "nothing was" not in str(run.error).lower()

    assert task.attempt(output_path=films).value()["completed"] == 4
    assert prompts_paid(kling_emulator) == {f"kite {index}": 1 for index in range(4)}
    assert len(kling_emulator.ledger.creates()) == 5


@each_rendered_otherwise
def test_what_renders_wrongly_where_nothing_is_bought_does_not_tell_of_videos(
    task: Batch, kling_emulator: KlingEmulator, name: str, value: Any, told: str
) -> None:
    run = task.attempt_that_renders(**{"output_path": str(task.folder / "films"), name: value})
    assert isinstance(run.error, AirflowFailException)
    error = run.error.__cause__
    assert isinstance(error, KlingError)
    assert error.paid is Paid.NO
    assert told in str(run.error)
    assert ("Nothing was sent and nothing was billed" if name == "requests" else "has sent nothing") in str(
        run.error
    )
    assert "billed when" not in str(run.error)
    assert kling_emulator.ledger.creates() == []


def test_a_limit_that_a_retry_breaks_does_not_make_free_what_earlier_attempts_paid_for(
    task: Batch, kling_emulator: KlingEmulator
) -> None:
    kling_emulator.inject("fail", prompt="kite 1", fail_code="UPSTREAM_FAILED")
    assert task.attempt().error is not None
    run = task.attempt(max_cost_usd="0.01")
    assert isinstance(run.error, AirflowFailException)
    assert "max_cost_usd" in str(run.error)
    for its in kling_emulator.ledger.paid():
        assert its.task_id in str(run.error)
    assert "nothing was" not in str(run.error).lower()


def test_a_list_that_has_bought_nothing_yet_does_not_say_that_videos_are_billed(
    tmp_path: Path, kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "BUSY_PAUSE", 0.1)
    monkeypatch.setattr(batch, "LEAST_DEFERRAL", 0.1)
    monkeypatch.setattr(kling_hook, "SUBMIT_TRIES", 1)
    kling_emulator.inject("answer", status=429, call="create", times="always")
    run = run_task(
        Batch("file", tmp_path, True).operator,
        between=lambda: monkeypatch.delenv("AIRFLOW_CONN_KLING_DEFAULT", raising=False),
    )
    assert run.error is not None
    assert "kling_default" in str(run.error)
    assert "billed when" not in str(run.error)
    error = run.error if isinstance(run.error, KlingError) else run.error.__cause__
    assert isinstance(error, KlingError)
    assert error.paid is Paid.NO
    assert kling_emulator.ledger.tasks() == []


def test_a_request_of_unknown_outcome_counts_as_one_that_may_be_billed(
    tmp_path: Path, kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "BUSY_PAUSE", 0.1)
    monkeypatch.setattr(batch, "LEAST_DEFERRAL", 0.1)
    monkeypatch.setattr(kling_hook, "SUBMIT_TRIES", 1)
    kling_emulator.inject("lost_answer", call="create")
    kling_emulator.inject("answer", status=429, call="create", skip=1, times="always")
    run = run_task(Batch("file", tmp_path, True).operator, between=lambda: unplug_ledger(tmp_path))
    assert isinstance(run.error, LedgerError)
    assert run.error.paid is Paid.MAYBE
    assert "each is billed when it is completed" in str(run.error)


@pytest.mark.parametrize("kind", ["file", "none"])
def test_results_that_cannot_be_written_are_no_fault_of_the_ledger_and_leave_the_bill_as_it_is(
    tmp_path: Path, kling_emulator: KlingEmulator, kind: str
) -> None:
    films = tmp_path / "films"
    task = Batch(kind, tmp_path, False)
    done = task.attempt(output_path=str(films)).value()
    in_the_way = Path(done["results_path"])
    in_the_way.unlink()
    in_the_way.mkdir()

    run = task.attempt(output_path=str(films))
    error = run.error if kind == "file" else (run.error or Exception()).__cause__
    assert type(error) is StorageError
    assert error.paid is Paid.YES
    assert str(in_the_way) in str(error)
    assert "paid for and stored" in str(error)
    assert ("A retry buys nothing" in str(error)) is (kind == "file")
    assert run.ti.xcoms["return_value"]["completed"] == 4, "a task that fails leaves what it has"

    if kind == "file":
        in_the_way.rmdir()
        assert task.attempt(output_path=str(films)).value() == done
        assert len(kling_emulator.ledger.creates()) == 4


def test_without_a_ledger_a_retry_that_would_buy_again_is_not_made(
    tmp_path: Path, kling_emulator: KlingEmulator
) -> None:
    kling_emulator.inject("fail", prompt="kite 1", fail_code="UPSTREAM_FAILED")
    task = Batch("none", tmp_path, True)
    run = task.attempt()
    assert isinstance(run.error, AirflowFailException)
    assert "a retry would buy all of them again" in str(run.error)
    assert run.ti.xcoms["return_value"]["completed"] == 3


def warnings_of_others(lines: list[str]) -> list[str]:
    return [line for line in lines if "not in this list any more" in line]


@pytest.mark.kling_emulator(latency="never")
def test_a_changed_list_names_the_videos_of_the_old_one_in_a_warning(
    task: Batch, kling_emulator: KlingEmulator, task_log: Callable[[], list[str]]
) -> None:
    task.attempt(timeout=0.5, max_in_flight=4)
    assert warnings_of_others(task_log()) == []
    old = {str(made.body["prompt"]): made.task_id for made in kling_emulator.ledger.tasks()}
    before = len(task_log())
    kling_emulator.configure(latency=0)
    task.attempt(requests=["kite 0", "lake 1", "lake 2"]).error  # noqa: B018

    (warning,) = warnings_of_others(task_log()[before:])
    for prompt in ("kite 1", "kite 2", "kite 3"):
        assert old[prompt] in warning
    assert old["kite 0"] not in warning, "it is taken up"
    for words in ("3 videos", "left alone", "billed", "KlingDownloadVideoOperator", "ledger"):
        assert words in warning
    assert {its["record"].get("kling_task_id") for its in task.records().values()} >= set(old.values())


@pytest.mark.kling_emulator(latency=0)
def test_of_a_changed_list_ten_old_videos_are_named_those_that_nobody_fetched_first(
    tmp_path: Path, kling_emulator: KlingEmulator, task_log: Callable[[], list[str]]
) -> None:
    task = Batch("file", tmp_path, False)
    kling_emulator.inject("latency", prompt="kite 12", seconds=3600)
    task.attempt(requests=[f"kite {index}" for index in range(13)], max_in_flight=13, timeout=0.5)
    old = {str(made.body["prompt"]): made.task_id for made in kling_emulator.ledger.tasks()}
    before = len(task_log())
    task.attempt(requests=["lake"]).value()

    (warning,) = warnings_of_others(task_log()[before:])
    assert "13 videos" in warning
    assert old["kite 12"] in warning
    assert sum(kling_task_id in warning for kling_task_id in old.values()) == 10
    assert "and 3 more" in warning
    assert "12 of them are delivered" in warning


def test_a_list_through_another_connection_names_the_videos_of_the_first_in_a_warning(
    tmp_path: Path,
    kling_emulator: KlingEmulator,
    monkeypatch: pytest.MonkeyPatch,
    task_log: Callable[[], list[str]],
) -> None:
    task = Batch("file", tmp_path, False)
    first = task.attempt().value()
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", os.environ["AIRFLOW_CONN_KLING_DEFAULT"])
    before = len(task_log())
    task.attempt(kling_conn_id="other").value()

    (warning,) = warnings_of_others(task_log()[before:])
    for its in first["results"]:
        assert its["task_id"] in warning
    assert len(kling_emulator.ledger.creates()) == 8


def test_a_request_of_a_changed_list_whose_outcome_nobody_knows_is_in_the_warning_too(
    tmp_path: Path, kling_emulator: KlingEmulator, task_log: Callable[[], list[str]]
) -> None:
    task = Batch("file", tmp_path, False)
    kling_emulator.inject("lost_answer", call="create")
    kling_emulator.inject("fail", prompt="kite 1", fail_code="UPSTREAM_FAILED")
    task.attempt(requests=["kite 0", "kite 1"])
    before = len(task_log())
    task.attempt(requests=["lake"]).value()
    (warning,) = warnings_of_others(task_log()[before:])
    assert "1 video " in warning, "a failed task is free"
    assert "of unknown id" in warning


def test_a_reference_that_is_gone_does_not_lose_the_video_it_was_uploaded_for(
    task: Batch, kling_emulator: KlingEmulator
) -> None:
    picture = draw_image(task.folder / "anna.png")
    requests = ["kite 0", {"prompt": "<<<image_1>>>", "image_list": [str(picture)]}]
    first = task.attempt(requests=requests).value()
    picture.unlink()
    again = task.attempt(requests=requests).value()
    assert [its["task_id"] for its in again["results"]] == [its["task_id"] for its in first["results"]]
    assert len(kling_emulator.ledger.creates()) == 2


def test_many_videos_fill_several_pages_of_a_size_that_airflow_takes(
    tmp_path: Path, kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_ledger, "PAGE_ENTRIES", 20)
    monkeypatch.setattr(batch_ledger, "PAGE_BYTES", 9000)
    task = Batch("file", tmp_path, True)
    arguments: dict[str, Any] = {
        "requests": [f"kite {index}" for index in range(45)],
        "max_in_flight": 20,
        "output_path": str(tmp_path / "films"),
    }
    task.attempt(**arguments).value()
    sizes = [len(json.dumps(page)) for page in task.pages()]
    assert len(sizes) > 3
    assert max(sizes) <= 9000
    task.attempt(**arguments).value()
    assert len(kling_emulator.ledger.creates()) == 45


class OnS3(Batch):
    """One task instance whose ledger, videos and results lie on object storage."""

    def __init__(self, server: S3Server, folder: Path, deferrable: bool) -> None:
        super().__init__("object storage", folder, deferrable)
        self.server = server

    def attempt(self, ti: TaskInstance | None = None, **arguments: Any) -> TaskRun:
        places = {"ledger_path": self.server.uri("ledger"), "output_path": self.server.uri("films")}
        return super().attempt(ti, **(places | arguments))


@pytest.fixture(params=[False, True], ids=["on the worker", "deferred"])
def on_s3(request: pytest.FixtureRequest, s3_server: S3Server, tmp_path: Path) -> OnS3:
    return OnS3(s3_server, tmp_path, request.param)


def test_on_object_storage_a_retry_buys_only_what_is_not_paid_for(
    on_s3: OnS3, kling_emulator: KlingEmulator
) -> None:
    kling_emulator.inject("fail", prompt="kite 1", fail_code="UPSTREAM_FAILED")
    first = on_s3.attempt()
    assert first.error is not None
    again = on_s3.attempt().value()

    before = first.ti.xcoms["return_value"]["results"]
    for index in (0, 2, 3):
        assert again["results"][index]["task_id"] == before[index]["task_id"]
    assert prompts_paid(kling_emulator) == {f"kite {index}": 1 for index in range(4)}
    assert len(kling_emulator.ledger.creates()) == 5

    requests = len(kling_emulator.ledger.requests())
    assert on_s3.attempt().value() == again
    assert len(kling_emulator.ledger.requests()) == requests, "what is there need not be asked for"

    name = again["results_path"].partition(f"@{on_s3.server.bucket}/")[2]
    assert name.startswith("films/")
    document = json.loads(on_s3.server.content(name))
    assert document["results"] == again["results"]
    for its in document["results"]:
        assert its["path"].partition(f"@{on_s3.server.bucket}/")[2] in on_s3.server.names()


def test_on_object_storage_an_attempt_begun_since_the_claims_were_read_keeps_its_number(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = batch_ledger.FilePages(ObjectStoragePath(s3_server.uri("ledger")))
    assert pages.claim() == 1
    write_file = ledger_module.FileLedgerStore.write_file

    def write_late(*arguments: Any, **options: Any) -> None:
        s3_server.put("ledger/000002.json", b'{"owner": "another"}')
        write_file(*arguments, **options)

    monkeypatch.setattr(ledger_module.FileLedgerStore, "write_file", write_late)
    with pytest.raises(LedgerError, match="Another attempt of this task has taken over"):
        pages.claim()
    assert s3_server.content("ledger/000002.json") == b'{"owner": "another"}'


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("target", "name"),
    [
        (ledger_module.FileLedgerStore, "write_file"),
        (KlingHook, "submit"),
        (batch_ledger.BatchLedger, "flush"),
        (Delivery, "store"),
        (batch.Batch, "_finish"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_killed_on_object_storage_the_next_attempts_pay_only_for_what_is_not_paid_for(
    s3_server: S3Server,
    tmp_path: Path,
    kling_emulator: KlingEmulator,
    monkeypatch: pytest.MonkeyPatch,
    target: Any,
    name: str,
    after: bool,
) -> None:
    task = OnS3(s3_server, tmp_path, True)
    with monkeypatch.context() as patched:
        kill_at(patched, target, name, 1 if target is batch.Batch else 3, after=after)
        try:
            task.attempt()
            was_killed = False
        except Killed:
            was_killed = True
    run = task.attempt()

    paid = prompts_paid(kling_emulator)
    assert max(paid.values()) == 1, "paid twice"
    told = run.result or run.ti.xcoms["return_value"]
    missing = [its["reason"] for its in told["results"] if its["outcome"] != "completed"]
    assert missing in ([], ["unknown_submission"] if was_killed else [])
    if not missing:
        assert paid == {f"kite {index}": 1 for index in range(4)}


def test_without_an_output_path_the_results_lie_in_the_ledgers_directory_on_object_storage(
    s3_server: S3Server, tmp_path: Path, kling_emulator: KlingEmulator
) -> None:
    told = OnS3(s3_server, tmp_path, False).attempt(output_path=None).value()
    assert told["completed"] == len(kling_emulator.ledger.paid()) == 4
    name = told["results_path"].partition(f"@{s3_server.bucket}/")[2]
    assert name.startswith("ledger/")
    assert json.loads(s3_server.content(name))["results"] == told["results"]
