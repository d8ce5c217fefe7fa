"""Many videos in one task: waves, outcomes, limits, results."""

from __future__ import annotations

import itertools
import json
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowConfigException,
    AirflowFailException,
    AirflowSkipException,
    AirflowTaskTimeout,
    Asset,
    AssetAlias,
    TaskDeferred,
)

from airflow_provider_kling import batch, batch_result, generation
from airflow_provider_kling.api.errors import InvalidRequestError, KlingError, Paid
from airflow_provider_kling.batch_result import VideosFailedError
from airflow_provider_kling.budget import BudgetExceededError, InsufficientBalanceError
from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.hooks import kling as kling_hook
from airflow_provider_kling.operators.batch import KlingGenerateVideoBatchOperator
from tests.media import draw_image
from tests.task_runs import OutletEvents, TaskInstance, TaskRun, run_task

# Nobody looks at these films, and to draw one of the usual size takes a tenth of a second of CPU.
pytestmark = pytest.mark.kling_emulator(scale=0.01)

both_ways = pytest.mark.parametrize("deferrable", [False, True], ids=["on the worker", "deferred"])


def operator(**arguments: Any) -> KlingGenerateVideoBatchOperator:
    defaults = {"task_id": "make", "duration": 3, "poll_interval": 0.05, "timeout": 20}
    return KlingGenerateVideoBatchOperator(**(defaults | arguments))


def run(ti: TaskInstance | None = None, context: dict[str, Any] | None = None, **arguments: Any) -> TaskRun:
    return run_task(lambda: operator(**arguments), ti=ti, context=context)


def prompts(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"kite number {index}"} for index in range(count)]


@both_ways
@pytest.mark.kling_emulator(latency=0.2)
def test_every_item_becomes_a_video_and_results_come_in_the_lists_order(
    kling_emulator: KlingEmulator, deferrable: bool, tmp_path: Path
) -> None:
    done = run(
        requests=prompts(7),
        max_in_flight=3,
        deferrable=deferrable,
        output_path=str(tmp_path / "films"),
        ledger_path=str(tmp_path / "ledger"),
    )
    result = done.value()

    asked = {task.task_id: task.body["prompt"] for task in kling_emulator.ledger.tasks()}
    assert [asked[its["task_id"]] for its in result["results"]] == [f"kite number {i}" for i in range(7)]
    assert (result["total"], result["completed"]) == (7, 7)
    assert len(kling_emulator.ledger.creates()) == len(kling_emulator.ledger.paid()) == 7
    assert bool(done.deferrals) is deferrable


def test_never_more_are_at_the_service_than_the_author_allows(kling_emulator: KlingEmulator) -> None:
    kling_emulator.configure(latency=0.3, max_running_tasks=3)
    result = run(requests=prompts(8), max_in_flight=3, deferrable=True).value()
    assert result["completed"] == 8
    assert len(kling_emulator.ledger.creates()) == 8, "nothing was turned away"


@pytest.mark.kling_emulator(latency=0.1)
def test_a_worker_comes_back_for_waves_and_not_for_each_video(kling_emulator: KlingEmulator) -> None:
    done = run(requests=prompts(30), max_in_flight=10, deferrable=True)
    assert done.value()["completed"] == 30
    assert len(done.deferrals) <= 6
    for deferral in done.deferrals:
        assert len(json.dumps(deferral.trigger.serialize())) < 2000
    assert all(len(json.dumps(event)) < 2000 for event in done.events)


@pytest.mark.parametrize("may_ask", [True, False])
@pytest.mark.kling_emulator(latency=0.1)
def test_where_airflow_mixes_up_what_it_answers_to_threads_there_are_none(
    kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch, may_ask: bool
) -> None:
    monkeypatch.setattr(batch, "THREADS_MAY_ASK_AIRFLOW", may_ask)
    looked_up_by, used_by = [], set()
    get_connection, ask_once = kling_hook.KlingHook.get_connection, kling_hook.KlingHook.ask_once

    def looking_up(conn_id: str) -> Any:
        looked_up_by.append(threading.current_thread().name)
        return get_connection(conn_id)

    def asking(hook: Any, waiting: Any) -> Any:
        used_by.add(threading.current_thread().name)
        return ask_once(hook, waiting)

    monkeypatch.setattr(kling_hook.KlingHook, "get_connection", staticmethod(looking_up))
    monkeypatch.setattr(kling_hook.KlingHook, "ask_once", asking)
    done = run(requests=prompts(4), deferrable=True)
    assert done.value()["completed"] == 4
    assert set(looked_up_by) == {"MainThread"}
    assert (used_by == {"MainThread"}) is not may_ask


@both_ways
def test_an_empty_list_is_a_success_and_says_so(
    kling_emulator: KlingEmulator, deferrable: bool, task_log: Callable[[], list[str]]
) -> None:
    result = run(requests=[], deferrable=deferrable).value()
    assert (result["total"], result["completed"], result["results"]) == (0, 0, [])
    assert kling_emulator.ledger.requests() == []
    assert any("empty" in line for line in task_log())


@pytest.mark.usefixtures("kling_emulator")
def test_the_event_of_an_empty_list_says_that_there_is_nothing_new() -> None:
    asset, events = Asset("s3://bucket/trailers"), OutletEvents()
    run(requests=[], outlets=[asset], context={"outlet_events": events}).value()
    assert (events[asset].extra["total"], events[asset].extra["completed"]) == (0, 0)


def test_a_list_may_come_as_the_text_that_a_template_renders_to(kling_emulator: KlingEmulator) -> None:
    def rendered(text: str) -> KlingGenerateVideoBatchOperator:
        made = operator(requests="{{ params.list }}")
        made.requests = text
        return made

    for text in (json.dumps(prompts(2)), str(prompts(2))):
        assert run_task(lambda text=text: rendered(text)).value()["completed"] == 2
    error = run_task(lambda: rendered("a red kite")).error
    assert isinstance(error, AirflowFailException)
    assert "requests: 'a red kite' is not allowed: a list" in str(error)


def test_common_arguments_hold_where_an_item_says_nothing_else(kling_emulator: KlingEmulator) -> None:
    run(requests=["a", {"prompt": "b", "duration": 7, "mode": "std"}, {}], prompt="c", mode="pro").value()
    bodies = [(its.body["prompt"], its.body["duration"], its.body["mode"]) for its in tasks(kling_emulator)]
    assert bodies == [("a", "3", "pro"), ("b", "7", "std"), ("c", "3", "pro")]


def tasks(emulator: KlingEmulator) -> list[Any]:
    return sorted(emulator.ledger.tasks(), key=lambda task: str(task.body["prompt"]))


BAD = [
    "fine",
    {"prompt": "x", "duration": 99},
    {"prompt": "x", "durration": 4},
    {"duration": 4},
    7,
    {"prompt": "x", "output_path": "/films/film.mp4"},
]
NAMED = [
    "requests[1].duration: '99'",
    "requests[2].durration: 4",
    "requests[3].prompt",
    "requests[4]: 7",
    "requests[5].output_path: '/films/film.mp4'",
]


def test_all_wrong_items_of_a_literal_list_are_named_when_the_dag_is_parsed() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        operator(requests=BAD)
    for named in NAMED:
        assert named in str(caught.value)
    assert "requests[0]" not in str(caught.value)


def test_all_wrong_items_of_a_rendered_list_are_named_before_anything_is_sent(
    kling_emulator: KlingEmulator,
) -> None:
    def rendered(requests: Any) -> KlingGenerateVideoBatchOperator:
        made = operator(requests="{{ params.list }}")
        made.requests = requests
        return made

    form = run_task(lambda: rendered(BAD)).error
    assert isinstance(form, AirflowFailException)
    assert "requests[2].durration" in str(form)
    assert "requests[4]: 7" in str(form)
    rules = run_task(lambda: rendered([BAD[0], BAD[1], BAD[3], BAD[5]])).error
    assert isinstance(rules, AirflowFailException)
    for named in ("requests[1].duration: '99'", "requests[2].prompt", "requests[3].output_path"):
        assert named in str(rules)
    assert kling_emulator.ledger.requests() == []


def test_templates_and_xcoms_in_a_list_are_left_alone_at_parse_time() -> None:
    with DAG("d", schedule=None):
        ideas = operator(task_id="ideas", requests=["x"])
        operator(task_id="a", requests=ideas.output)
        operator(task_id="b", requests=[{"prompt": "{{ params.x }}", "duration": ideas.output}])
        with pytest.raises(InvalidRequestError, match=r"requests\[1\].mode: '4k'"):
            operator(task_id="c", requests=["x", {"prompt": "{{ params.x }}", "mode": "4k"}])
        with pytest.raises(InvalidRequestError, match="mode: '4k'"):
            operator(task_id="e", requests=ideas.output, mode="4k")


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_in_flight": 0},
        {"max_in_flight": 501},
        {"max_in_flight": True},
        {"max_failures": -1},
        {"fail_on": "some"},
        {"requests": None},
        {"requests": {"prompt": "x"}},
        {"output_path": "films/{kling_task_id}.mp4"},
        {"output_path": "/films/film.mp4"},
        {"timeout": 0},
    ],
    ids=str,
)
def test_what_cannot_be_is_told_when_the_dag_is_parsed(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        operator(**({"requests": ["x"]} | arguments))


@both_ways
@pytest.mark.kling_emulator(latency=0.1)
def test_a_failing_task_leaves_its_results_and_names_who_failed_and_what_a_retry_does(
    kling_emulator: KlingEmulator, deferrable: bool, tmp_path: Path
) -> None:
    kling_emulator.inject("fail", prompt="number 1", fail_code="UPSTREAM_FAILED")
    kling_emulator.inject("fail", prompt="number 2", fail_code="CONTENT_MODERATION")
    done = run(requests=prompts(5), deferrable=deferrable, ledger_path=str(tmp_path))

    told = done.ti.xcoms["return_value"]
    assert [its["outcome"] for its in told["results"]] == [
        "completed",
        "failed",
        "failed",
        *["completed"] * 2,
    ]
    assert (told["completed"], told["failed"]) == (3, 2)
    assert told["estimated_cost_usd"] == pytest.approx(3 * 3 * 0.0633)
    assert type(done.error) is VideosFailedError
    for words in (
        "Of 5 videos 3 are completed; 2 failed",
        "requests[1] (upstream_failed), requests[2] (content_moderation)",
        "0.57 USD",
        "A retry takes up what is paid for",
    ):
        assert words in str(done.error)


def test_where_every_failure_is_final_there_is_no_retry(
    kling_emulator: KlingEmulator, tmp_path: Path
) -> None:
    kling_emulator.inject("fail", prompt="number 2", fail_code="CONTENT_MODERATION")
    done = run(requests=prompts(3), ledger_path=str(tmp_path))
    assert isinstance(done.error, AirflowFailException)
    assert "A retry cannot help" in str(done.error)


@pytest.mark.parametrize(
    ("fail_on", "failing", "fails"),
    [
        ("any", 0, False),
        ("any", 1, True),
        ("all", 2, False),
        ("all", 3, True),
        ("none", 3, False),
    ],
)
def test_the_author_says_which_failures_fail_the_task(
    kling_emulator: KlingEmulator, fail_on: str, failing: int, fails: bool
) -> None:
    for index in range(failing):
        kling_emulator.inject("fail", prompt=f"number {index}", fail_code="UPSTREAM_FAILED")
    done = run(requests=prompts(3), fail_on=fail_on)
    assert (done.error is not None) is fails
    told = done.ti.xcoms["return_value"] if fails else done.result
    assert (told["completed"], told["failed"]) == (3 - failing, failing)


@both_ways
def test_after_too_many_failures_no_more_are_asked_for_and_the_rest_is_stored(
    kling_emulator: KlingEmulator, deferrable: bool
) -> None:
    for index in (0, 1):
        kling_emulator.inject("fail", prompt=f"number {index}", fail_code="UPSTREAM_FAILED", at_once=True)
    kling_emulator.configure(latency=0.2)
    done = run(requests=prompts(10), max_in_flight=2, max_failures=1, fail_on="none", deferrable=deferrable)
    told = done.ti.xcoms["return_value"]
    assert told["failed"] == 2
    assert told["not_submitted"] > 0
    assert len(kling_emulator.ledger.creates()) == told["failed"] + told["completed"]
    assert "max_failures=1" in str(done.error)


@both_ways
def test_a_busy_service_gets_fewer_at_a_time_and_nothing_fails(
    kling_emulator: KlingEmulator, deferrable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "BUSY_PAUSE", 0.1)
    monkeypatch.setattr(batch, "LEAST_DEFERRAL", 0.1)
    monkeypatch.setattr(kling_hook, "SUBMIT_TRIES", 1)
    kling_emulator.configure(latency=0.2, max_running_tasks=2)
    result = run(requests=prompts(7), max_in_flight=6, deferrable=deferrable).value()
    assert result["completed"] == 7
    assert len(kling_emulator.ledger.paid()) == 7


@both_ways
def test_tasks_that_the_service_fails_for_being_too_many_are_asked_for_again(
    kling_emulator: KlingEmulator, deferrable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "BUSY_PAUSE", 0.1)
    monkeypatch.setattr(batch, "LEAST_DEFERRAL", 0.1)
    kling_emulator.configure(latency=0.2, max_running_tasks=2, when_full="fail")
    result = run(requests=prompts(6), max_in_flight=5, deferrable=deferrable).value()
    assert result["completed"] == 6
    assert len(kling_emulator.ledger.paid()) == 6


@both_ways
def test_a_service_that_takes_each_request_and_fails_it_as_one_too_many_ends_the_list_in_time(
    kling_emulator: KlingEmulator, deferrable: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(generation, "BUSY_PAUSE", 0.1)
    monkeypatch.setattr(batch, "LEAST_DEFERRAL", 0.1)
    kling_emulator.inject("fail", fail_code="1303", message="parallel task over resource pack", times=20)
    done = run(requests=prompts(1), timeout=0.5, deferrable=deferrable, ledger_path=str(tmp_path))
    assert done.ti.xcoms["return_value"]["not_submitted"] == 1
    assert type(done.error) is VideosFailedError, "a retry may find the service less busy"
    assert "parallel task over resource pack" in str(done.error)
    assert len(kling_emulator.ledger.creates()) <= 5, "a pause is a fifth of the timeout at least"
    assert kling_emulator.ledger.paid() == []


def test_a_busy_service_may_take_a_long_list_as_long_as_one_video_after_the_other_is_made(
    kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(6):
        kling_emulator.inject("fail", prompt=f"number {index}", fail_code="1303", message="too many tasks")
    begun = time.time()
    with time_machine.travel(begun, tick=False) as clock:
        monkeypatch.setattr(time, "sleep", clock.shift)
        result = run(requests=prompts(6), max_in_flight=1, timeout=100).value()
        took = time.time() - begun
    assert result["completed"] == 6
    assert len(kling_emulator.ledger.creates()) == 12
    assert took > 100, "else it was no long list"


def test_a_failed_task_that_the_service_calls_hopeless_is_not_asked_for_again_whatever_its_words(
    kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(generation, "BUSY_PAUSE", 0.1)
    kling_emulator.inject(
        "fail",
        prompt="number 0",
        fail_code="INVALID_PARAM",
        message="element_list and end_frame cannot be used concurrently",
        retryable=False,
    )
    done = run(requests=prompts(2), ledger_path=str(tmp_path))
    told = done.ti.xcoms["return_value"]
    assert [its["outcome"] for its in told["results"]] == ["failed", "completed"]
    assert "cannot be used concurrently" in told["results"][0]["error"]
    assert isinstance(done.error, AirflowFailException)
    assert len(kling_emulator.ledger.creates()) == 2


@both_ways
def test_an_account_without_money_stops_the_list_at_once(
    kling_emulator: KlingEmulator, deferrable: bool
) -> None:
    kling_emulator.inject("answer", status=402, call="create", skip=2, times="always")
    done = run(requests=prompts(9), fail_on="none", deferrable=deferrable)
    told = done.ti.xcoms["return_value"]
    assert (told["completed"], told["not_submitted"]) == (2, 7)
    assert isinstance(done.error, AirflowFailException)
    assert "apimodels.app" in str(done.error)
    assert len(kling_emulator.ledger.requests("create")) == 3


@both_ways
def test_what_the_service_says_of_key_and_addresses_stays_out_of_what_airflow_keeps_of_a_list(
    kling_emulator: KlingEmulator, deferrable: bool, tmp_path: Path
) -> None:
    key = kling_emulator.api_key
    kling_emulator.inject(
        "answer",
        status=402,
        call="create",
        skip=2,
        message=f"the account of {key} is empty, see https://pay.example/?session=s1gned",
    )
    done = run(requests=prompts(3), deferrable=deferrable, output_path=f"{tmp_path}/")
    kept = [
        str(done.error),
        json.dumps(done.ti.xcoms),
        *(path.read_text() for path in tmp_path.rglob("*.json")),
    ]
    triggers = [repr(deferral.trigger.serialize()) for deferral in done.deferrals]
    assert any("is empty" in text for text in kept)
    assert any("is empty" in text for text in triggers) is deferrable
    for text in kept + triggers:
        assert key not in text
        assert "s1gned" not in text


@both_ways
def test_a_key_that_is_refused_while_waiting_leaves_the_bill_open(
    kling_emulator: KlingEmulator, deferrable: bool
) -> None:
    kling_emulator.configure(latency="never")
    kling_emulator.inject("answer", status=401, call="query", times="always")
    done = run(requests=prompts(2), deferrable=deferrable)
    told = done.ti.xcoms["return_value"]
    assert [its["outcome"] for its in told["results"]] == ["unresolved"] * 2
    assert isinstance(done.error, AirflowFailException)


@both_ways
def test_each_video_has_its_own_deadline_and_a_retry_attaches_to_what_came_too_late(
    kling_emulator: KlingEmulator, deferrable: bool, tmp_path: Path
) -> None:
    kling_emulator.inject("latency", prompt="number 1", seconds=3600)
    arguments = {"requests": prompts(3), "deferrable": deferrable, "ledger_path": str(tmp_path)}
    first = run(timeout=0.6, **arguments)
    told = first.ti.xcoms["return_value"]["results"]
    assert [its["outcome"] for its in told] == ["completed", "unresolved", "completed"]
    assert told[1]["reason"] == "task_timeout"
    assert type(first.error) is VideosFailedError
    kling_emulator.complete(told[1]["task_id"])
    again = run(timeout=0.6, **arguments).value()
    assert again["results"][1]["task_id"] == told[1]["task_id"]
    assert len(kling_emulator.ledger.creates()) == 3


@both_ways
def test_execution_timeout_ends_the_attempt_and_not_the_videos(
    kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch, deferrable: bool
) -> None:
    kling_emulator.configure(latency="never")
    clock = time.time
    # The attempt's hour is over when two of them are asked for, however long that takes.
    monkeypatch.setattr(time, "time", lambda: clock() + 3600 * (len(kling_emulator.ledger.creates()) == 2))
    done = run(
        requests=prompts(3),
        max_in_flight=2,
        deferrable=deferrable,
        execution_timeout=timedelta(hours=1),
        timeout=7200,
    )
    told = done.ti.xcoms["return_value"]
    assert (told["unresolved"], told["not_submitted"]) == (2, 1)
    assert "execution_timeout" in str(done.error)


def test_the_budget_is_that_of_the_whole_list(kling_emulator: KlingEmulator) -> None:
    done = run(requests=prompts(10), max_cost_usd=1.8)
    assert isinstance(done.error, AirflowFailException)
    assert isinstance(done.error.__cause__, BudgetExceededError)
    assert "10 requests together" in str(done.error)
    assert kling_emulator.ledger.requests() == []
    assert run(requests=prompts(10), max_cost_usd=1.9).value()["completed"] == 10


def test_a_list_that_is_paid_for_is_delivered_whatever_the_limit_and_the_prices_say_by_now(
    kling_emulator: KlingEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {"requests": prompts(3), "ledger_path": str(tmp_path)}
    first = run(**arguments).value()
    monkeypatch.setenv("AIRFLOW__KLING__PRICES", "{")
    again = run(**arguments, max_cost_usd=0.01, check_balance=True).value()
    assert [video["task_id"] for video in again["results"]] == [
        video["task_id"] for video in first["results"]
    ]
    assert len(kling_emulator.ledger.creates()) == 3


@pytest.mark.parametrize("rendered", [None, ""])
def test_a_place_that_renders_to_nothing_is_told_before_anything_is_sent(
    kling_emulator: KlingEmulator, rendered: str | None
) -> None:
    def make() -> KlingGenerateVideoBatchOperator:
        made = operator(requests=prompts(2), output_path="{{ params.folder }}")
        made.output_path = rendered
        return made

    error = run_task(make).error
    assert isinstance(error, AirflowFailException)
    assert "output_path" in str(error)
    assert kling_emulator.ledger.creates() == []


@pytest.mark.kling_emulator(balance=1)
def test_the_accounts_money_has_to_be_enough_for_all_of_them(kling_emulator: KlingEmulator) -> None:
    done = run(requests=prompts(10), check_balance=True)
    assert isinstance(done.error, AirflowFailException)
    assert isinstance(done.error.__cause__, InsufficientBalanceError)
    assert kling_emulator.ledger.creates() == []


def test_a_dry_run_tells_the_cost_of_all_and_asks_for_nothing(kling_emulator: KlingEmulator) -> None:
    result = run(requests=prompts(4), dry_run=True).value()
    assert result["estimated_cost_usd"] == pytest.approx(4 * 3 * 0.0633)
    assert [its["outcome"] for its in result["results"]] == ["dry_run"] * 4
    assert kling_emulator.ledger.requests() == []


@pytest.mark.parametrize("requests", [prompts(2), []], ids=["a list", "an empty list"])
def test_a_dry_run_updates_no_outlet(kling_emulator: KlingEmulator, requests: list[Any]) -> None:
    outlet, events = Asset("s3://bucket/trailers"), OutletEvents()
    done = run(requests=requests, dry_run=True, outlets=[outlet], context={"outlet_events": events})
    assert isinstance(done.error, AirflowSkipException)
    assert done.ti.xcoms["return_value"]["state"] == "dry_run"
    assert len(done.ti.xcoms["return_value"]["results"]) == len(requests)
    assert events.of == {}
    assert kling_emulator.ledger.requests() == []


@pytest.mark.parametrize(
    ("of_all", "of_one"),
    [(None, "gopher://films/"), ("gopher://films/", None), ("gopher://films/", "")],
    ids=["of one item", "of all", "of the results' document"],
)
def test_a_place_of_an_unknown_kind_ends_the_task_before_anything_is_paid(
    kling_emulator: KlingEmulator, tmp_path: Path, of_all: str | None, of_one: str | None
) -> None:
    own = {} if of_one is None else {"output_path": of_one or str(tmp_path)}
    done = run(requests=[{"prompt": "a", **own}], output_path=of_all, ledger_path=str(tmp_path / "ledger"))
    assert isinstance(done.error, AirflowFailException)
    assert "gopher" in str(done.error)
    assert kling_emulator.ledger.requests() == []


def test_mapped_values_that_cannot_be_end_the_task_without_retries(kling_emulator: KlingEmulator) -> None:
    for requests in (BAD, "a red kite"):
        done = run(requests=requests, _airflow_from_mapped=True)
        assert isinstance(done.error, AirflowFailException)
        assert "requests" in str(done.error)
    assert kling_emulator.ledger.requests() == []


def test_lists_may_be_mapped(kling_emulator: KlingEmulator, run_dag: Callable[..., Any]) -> None:
    with DAG("mapped_lists", schedule=None) as dag:
        KlingGenerateVideoBatchOperator.partial(task_id="make", duration=3, poll_interval=0.05).expand(
            requests=[["a", "b"], [{"prompt": "c", "duration": 4}]]
        )
    states = [ti.state for ti in run_dag(dag).get_task_instances()]
    assert states == ["success"] * 2
    assert [its.body["prompt"] for its in tasks(kling_emulator)] == ["a", "b", "c"]


@pytest.mark.parametrize("is_remembered", [True, False], ids=["with a ledger", "without one"])
@both_ways
def test_an_error_of_any_kind_after_a_submit_does_not_buy_a_second_video(
    kling_emulator: KlingEmulator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    deferrable: bool,
    is_remembered: bool,
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("nobody thought of this")

    ledger = {"ledger_path": str(tmp_path / "ledger")} if is_remembered else {}
    with monkeypatch.context() as patched:
        patched.setattr("airflow_provider_kling.delivery.video_result", broken)
        error = run(requests=prompts(3), deferrable=deferrable, **ledger).error
    if is_remembered:
        assert isinstance(error, RuntimeError), "a retry takes the videos up"
        assert run(requests=prompts(3), deferrable=deferrable, **ledger).value()["completed"] == 3
    else:
        assert isinstance(error, AirflowFailException), "a retry would buy all of them again"
        assert "nobody thought of this" in str(error)
        for made in kling_emulator.ledger.tasks():
            assert made.task_id in str(error)
    assert len(kling_emulator.ledger.creates()) == 3


def test_an_attempt_that_airflow_ends_for_its_time_does_not_buy_again(
    kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_long(*_: Any, **__: Any) -> None:
        raise AirflowTaskTimeout("Timeout")

    monkeypatch.setattr(batch.Batch, "_finish", too_long)
    done = run(requests=prompts(12))
    assert isinstance(done.error, AirflowFailException), "there is no ledger"
    assert "and 2 more, whose ids are in the log" in str(done.error)
    assert len(kling_emulator.ledger.creates()) == 12


@pytest.mark.kling_emulator(latency=0.1)
def test_a_setting_that_broke_while_the_task_was_deferred_does_not_buy_again(
    kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run_task(
        lambda: operator(requests=prompts(2), deferrable=True),
        between=lambda: monkeypatch.setenv("AIRFLOW__KLING__MAX_FAILED_QUERIES", "many"),
    )
    assert isinstance(done.error, AirflowFailException), "there is no ledger"
    assert "max_failed_queries" in str(done.error)
    for made in kling_emulator.ledger.tasks():
        assert made.task_id in str(done.error)


@pytest.mark.parametrize("is_kept", [False, True], ids=["without a ledger", "with a ledger"])
@pytest.mark.kling_emulator(latency="never")
def test_what_goes_wrong_before_the_resumed_task_has_read_which_videos_it_bought_does_not_buy_them_again(
    kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_kept: bool
) -> None:
    arguments: dict[str, Any] = {"requests": prompts(2), "deferrable": True}
    if is_kept:
        arguments["ledger_path"] = str(tmp_path)
    context: Any = {"ti": TaskInstance()}
    with pytest.raises(TaskDeferred) as deferral:
        operator(**arguments).execute(context)
    monkeypatch.setenv("AIRFLOW__KLING__MAX_FAILED_QUERIES", "many")
    event = {"over": {}, "state": deferral.value.trigger.state}
    with pytest.raises((AirflowFailException, AirflowConfigException)) as failure:
        operator(**arguments).execute_complete(context, event)
    assert "max_failed_queries" in str(failure.value)
    if is_kept:
        assert not isinstance(failure.value, AirflowFailException), "a retry buys nothing"
    else:
        assert isinstance(failure.value, AirflowFailException), "a retry would buy them again"
        assert "2, whose ids are in the log" in str(failure.value)


@pytest.mark.kling_emulator(latency="never")
@pytest.mark.usefixtures("kling_emulator")
def test_a_wait_ends_before_airflow_would_end_the_attempt() -> None:
    begun = time.time()
    made = operator(requests=["x"], deferrable=True, timeout=9999, execution_timeout=timedelta(seconds=1000))
    with pytest.raises(TaskDeferred) as deferred:
        made.execute({"ti": TaskInstance()})
    ((_, deadline, _),) = deferred.value.trigger.videos
    assert begun + 980 < deadline <= time.time() + 990


def test_a_long_list_without_a_place_for_its_results_ends_before_anything_is_paid(
    kling_emulator: KlingEmulator,
) -> None:
    done = run(requests=prompts(101))
    assert isinstance(done.error, AirflowFailException)
    assert "output_path, or ledger_path" in str(done.error)
    assert kling_emulator.ledger.requests() == []


def test_a_long_list_leaves_a_document_and_a_small_xcom(
    kling_emulator: KlingEmulator, tmp_path: Path
) -> None:
    done = run(
        requests=prompts(101),
        max_in_flight=60,
        deferrable=True,
        output_path=f"{tmp_path}/{{dag_id}}/{{kling_task_id}}.{{ext}}",
    )
    result = done.value()
    assert result["results"] is None
    assert len(json.dumps(result)) < 1000
    document = json.loads(Path(result["results_path"]).read_text())
    assert Path(result["results_path"]).parent == tmp_path / "dag"
    assert document["completed"] == len(document["results"]) == 101
    assert [its["index"] for its in document["results"]] == list(range(101))
    assert all(Path(its["path"]).exists() for its in document["results"])
    assert len(kling_emulator.ledger.paid()) == 101


@pytest.mark.kling_emulator(settling=3600)
def test_records_that_settle_late_hold_a_wave_no_longer_than_one_video(
    kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "DEFAULT_PATIENCE", 1.5)
    assert run(requests=prompts(30), max_in_flight=30).value()["recorded_cost_usd"] is None
    # Patience is enough for two questions. Who comes to it later in its wave is asked for once; there are two waves.
    assert 30 <= kling_emulator.ledger.count("record") <= 30 + 2 * batch.SIDE_BY_SIDE


def test_a_videos_error_names_no_address_with_its_signature() -> None:
    error = KlingError("It could not be fetched from https://bucket.example/a.png?X-Amz-Signature=5ec2e7.")
    kept = batch_result.failed(error, paid=Paid.NO)
    assert "https://bucket.example/a.png" in kept["error"]
    assert "5ec2e7" not in kept["error"]


@pytest.mark.usefixtures("kling_emulator")
def test_the_log_has_a_table_of_all_videos(task_log: Callable[[], list[str]]) -> None:
    result = run(requests=prompts(3)).value()
    lines = task_log()
    for its in result["results"]:
        assert any("completed" in line and "0.1899" in line for line in lines)
        assert any(f"requests[{its['index']}]: Kling task id: {its['task_id']}" in line for line in lines)


def test_a_table_of_many_shows_those_that_are_missing() -> None:
    ended: list[Any] = [{"outcome": "completed", "task_id": f"t{index}"} for index in range(1000)]
    ended[777] = {"outcome": "failed", "task_id": "t777", "reason": "moderation"}
    text = batch_result.table(batch_result.video_results(ended))
    assert "t777 moderation" in text
    assert len(text.splitlines()) == batch_result.MOST_IN_TABLE + 2


@pytest.mark.usefixtures("kling_emulator")
def test_outlets_tell_of_all_videos_and_an_alias_becomes_each_file(tmp_path: Path) -> None:
    asset, alias, events = Asset("s3://bucket/trailers"), AssetAlias("trailers"), OutletEvents()
    result = run(
        requests=prompts(3),
        deferrable=True,
        output_path=str(tmp_path),
        outlets=[asset, alias],
        context={"outlet_events": events},
    ).value()
    assert events[asset].extra["completed"] == 3
    assert events[asset].extra["results_path"] == result["results_path"]
    assert [uri for uri, _ in events[alias].added] == [f"file://{its['path']}" for its in result["results"]]
    assert "http" not in json.dumps([events[asset].extra, events[alias].added])


@pytest.mark.parametrize(
    "event", [None, {}, {"over": {}}, {"over": {"x": "success"}, "state": {}}, "completed"], ids=str
)
@pytest.mark.usefixtures("kling_emulator")
def test_a_missing_or_foreign_event_is_no_success(event: Any) -> None:
    with pytest.raises(AirflowFailException, match="Clear the task"):
        operator(requests=["x"]).execute_complete({"ti": TaskInstance()}, event=event)


@pytest.mark.kling_emulator(latency="never")
def test_an_event_is_not_believed(kling_emulator: KlingEmulator) -> None:
    ti = TaskInstance()
    made = operator(requests=["x"], deferrable=True)
    with pytest.raises(TaskDeferred) as deferred:
        made.execute({"ti": ti})
    (video,) = deferred.value.trigger.videos
    forged = {"over": {video[0]: "completed"}, "state": deferred.value.trigger.state}
    with pytest.raises(TaskDeferred):
        operator(requests=["x"], deferrable=True).execute_complete({"ti": ti}, event=forged)


@pytest.mark.kling_emulator(latency=0.1)
def test_a_list_that_renders_differently_after_a_deferral_buys_nothing_twice(
    kling_emulator: KlingEmulator,
) -> None:
    """Such as one with the current time in it."""
    made = itertools.count()

    def make() -> KlingGenerateVideoBatchOperator:
        return operator(
            requests=[f"kite at {next(made)} o'clock" for _ in range(4)], max_in_flight=2, deferrable=True
        )

    assert run_task(make).value()["completed"] == 4
    assert len(kling_emulator.ledger.creates()) == 4


@pytest.mark.kling_emulator(latency="never")
def test_what_the_ledger_lost_while_the_task_was_deferred_is_not_bought_again(
    kling_emulator: KlingEmulator,
) -> None:
    ti = TaskInstance()
    done = run_task(
        lambda: operator(requests=prompts(2), deferrable=True, timeout=0.5), ti=ti, between=ti.xcoms.clear
    )
    assert isinstance(done.error, AirflowFailException)
    assert "would buy it again and is not made" in str(done.error)
    assert len(kling_emulator.ledger.creates()) == 2


@pytest.mark.kling_emulator(latency=0.1)
def test_the_key_is_in_nothing_that_is_stored_logged_or_raised(
    kling_emulator: KlingEmulator, task_log: Callable[[], list[str]], tmp_path: Path
) -> None:
    kling_emulator.inject("fail", prompt="number 1", fail_code="UPSTREAM_FAILED")
    done = run(requests=prompts(3), deferrable=True, ledger_path=str(tmp_path))
    assert done.error is not None
    kept = [done.ti.xcoms, done.events, task_log(), "".join(traceback.format_exception(done.error))]
    kept += [deferral.trigger.serialize() for deferral in done.deferrals]
    kept += [path.read_text() for path in tmp_path.rglob("*.json")]
    assert kling_emulator.api_key not in repr(kept)


def test_a_killed_task_sends_nothing_more(kling_emulator: KlingEmulator) -> None:
    def killed() -> KlingGenerateVideoBatchOperator:
        made = operator(requests=prompts(2))
        made.on_kill()
        return made

    assert type(run_task(killed).error).__name__ == "KilledError"
    assert kling_emulator.ledger.requests("create") == []


def test_lineage_names_what_went_into_all_of_them_and_every_stored_file(
    kling_emulator: KlingEmulator, tmp_path: Path
) -> None:
    pytest.importorskip("airflow.providers.openlineage")
    kling_emulator.inject("fail", prompt="third", fail_code="CONTENT_MODERATION")
    pictures = [draw_image(tmp_path / name) for name in ("anna.png", "ben.png")]
    made: list[KlingGenerateVideoBatchOperator] = []

    def make() -> KlingGenerateVideoBatchOperator:
        made.append(
            operator(
                requests=[
                    {"prompt": "<<<image_1>>>", "image_list": str(pictures[0])},
                    {"prompt": "<<<image_1>>> <<<image_2>>>", "image_list": [str(each) for each in pictures]},
                    "third",
                ],
                deferrable=True,
                output_path=str(tmp_path / "films"),
            )
        )
        return made[-1]

    told = run_task(make).ti.xcoms["return_value"]
    facets = made[-1].get_openlineage_facets_on_complete(None)
    assert [each.name for each in facets.inputs] == [str(each) for each in pictures]
    assert [each.name for each in facets.outputs] == [its["path"] for its in told["results"][:2]]
