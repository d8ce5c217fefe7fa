from __future__ import annotations

import base64
import io
import json
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, TaskDeferred
from PIL import Image

from airflow_provider_kling.api.errors import (
    BadRequestError,
    ConnectionSettingsError,
    InvalidInputError,
    InvalidRequestError,
    KeyRefusedError,
    KlingError,
    LostContactError,
    ModerationError,
    NoCreditsError,
    NoResultError,
    TaskFailedError,
    TaskTimeoutError,
    UnknownSubmissionError,
)
from airflow_provider_kling.api.request import VideoRequest
from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator
from tests.task_runs import TaskInstance, finish_videos, link_to, run_task

both_ways = pytest.mark.parametrize("deferrable", [False, True], ids=["on the worker", "deferred"])


def operator(**arguments: Any) -> KlingGenerateVideoOperator:
    arguments = {"task_id": "make", "prompt": "a red kite", "poll_interval": 0.05, "timeout": 300} | arguments
    return KlingGenerateVideoOperator(**arguments)


@both_ways
@pytest.mark.kling_emulator(latency=3600)
def test_a_video_is_asked_for_once_and_its_link_comes_back(
    kling_emulator: KlingEmulator, deferrable: bool
) -> None:
    run = run_task(
        lambda: operator(duration=4, sound=True, deferrable=deferrable),
        when_it_waits=lambda: kling_emulator.advance(3600),
    )
    result = run.value()

    (task,) = kling_emulator.ledger.tasks()
    assert result == {
        "task_id": task.task_id,
        "model": "kling-v3-omni",
        "state": "completed",
        "video_url": result["result_urls"][0],
        "result_urls": result["result_urls"],
        "path": None,
        "files": [],
        "duration_seconds": 4.0,
        "created_at": result["created_at"],
        "completed_at": result["completed_at"],
        "generation_seconds": pytest.approx(3600, abs=0.01),
        "estimated_cost_usd": pytest.approx(4 * 0.0956),
        "recorded_cost_usd": pytest.approx(4 * 0.0956),
        "request": {"model": "kling-v3-omni", "prompt": "a red kite", "duration": "4", "sound": "on"},
    }
    assert result["video_url"].endswith(".mp4")
    assert result["created_at"] < result["completed_at"]
    assert json.loads(json.dumps(result)) == result
    assert len(kling_emulator.ledger.paid()) == 1
    assert len(run.deferrals) == (1 if deferrable else 0)


@both_ways
@pytest.mark.kling_emulator(latency="never")
def test_the_task_id_and_a_link_are_in_xcom_before_the_wait_begins(
    kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch, deferrable: bool
) -> None:
    seen: list[dict[str, Any]] = []
    ti = TaskInstance()

    def look(*_: Any) -> None:
        seen.append(dict(ti.xcoms))
        finish_videos(kling_emulator)

    monkeypatch.setattr(time, "sleep", look)
    result = run_task(lambda: operator(deferrable=deferrable), ti=ti, between=look).value()

    (task,) = kling_emulator.ledger.tasks()
    assert seen[0]["task_id"] == task.task_id
    query = f"{kling_emulator.base_url}/video/generations?task_id={task.task_id}"
    assert seen[0]["kling_video_link"] == link_to(ti, at_service=query)
    assert ti.xcoms["kling_video_link"] == link_to(ti, at_service=result["video_url"])


@both_ways
@pytest.mark.parametrize("at_once", [False, True], ids=["later", "in the create answer"])
@pytest.mark.parametrize(
    ("fail_code", "expected", "retried"),
    [
        ("CONTENT_MODERATION", ModerationError, False),
        ("INVALID_INPUT", InvalidInputError, False),
        ("UPSTREAM_FAILED", TaskFailedError, True),
    ],
)
def test_a_failed_video_raises_the_same_either_way(
    kling_emulator: KlingEmulator,
    fail_code: str,
    expected: type[KlingError],
    retried: bool,
    at_once: bool,
    deferrable: bool,
) -> None:
    kling_emulator.inject("fail", fail_code=fail_code, at_once=at_once)
    run = run_task(lambda: operator(deferrable=deferrable))

    assert_ends(run.error, expected, retried=retried)
    assert "not billed" in str(run.error)
    assert kling_emulator.ledger.tasks()[0].task_id in str(run.error)
    assert kling_emulator.ledger.paid() == []


@both_ways
@pytest.mark.kling_emulator(latency="never")
def test_a_timeout_is_no_failure_of_the_video_and_says_so(
    kling_emulator: KlingEmulator, deferrable: bool
) -> None:
    run = run_task(lambda: operator(timeout=timedelta(seconds=0.5), deferrable=deferrable))

    assert_ends(run.error, TaskTimeoutError, retried=False)
    assert "a retry would buy a second video" in str(run.error)
    assert "may still be completed and billed" in str(run.error)
    assert kling_emulator.ledger.tasks()[0].task_id in str(run.error)


@both_ways
@pytest.mark.kling_emulator(latency="never")
def test_lost_contact_leaves_the_video_alone_and_says_so(
    kling_emulator: KlingEmulator, deferrable: bool
) -> None:
    kling_emulator.inject("answer", status=503, call="query", times="always")
    run = run_task(lambda: operator(deferrable=deferrable))

    assert_ends(run.error, LostContactError, retried=False)
    assert "may be completed and billed" in str(run.error)


@both_ways
@pytest.mark.kling_emulator(latency="never")
def test_a_key_that_is_refused_while_waiting_ends_the_wait_at_once(
    kling_emulator: KlingEmulator, deferrable: bool
) -> None:
    kling_emulator.inject("answer", status=401, call="query", times="always")
    run = run_task(lambda: operator(deferrable=deferrable))

    assert_ends(run.error, KeyRefusedError, retried=False)


@both_ways
@pytest.mark.kling_emulator(latency=0.3)
def test_passing_faults_while_waiting_are_borne(kling_emulator: KlingEmulator, deferrable: bool) -> None:
    kling_emulator.inject("answer", status=500, call="query", times=2)
    kling_emulator.inject("reset", call="query", skip=2)
    kling_emulator.inject("answer", status=200, body="html", call="query", skip=3)
    kling_emulator.inject("drift", shape="unknown_state", call="query", skip=4)
    run_task(lambda: operator(deferrable=deferrable)).value()

    assert len(kling_emulator.ledger.creates()) == 1


@both_ways
def test_a_completed_video_without_a_link_is_asked_for_again(
    kling_emulator: KlingEmulator, deferrable: bool
) -> None:
    kling_emulator.inject("no_link", queries=3)
    assert run_task(lambda: operator(deferrable=deferrable)).value()["video_url"]


@both_ways
def test_a_completed_video_that_never_gets_a_link_ends_in_a_clear_error(
    kling_emulator: KlingEmulator, deferrable: bool
) -> None:
    kling_emulator.inject("no_link", queries=1000)
    run = run_task(lambda: operator(deferrable=deferrable, poll_interval=0.01))

    assert_ends(run.error, NoResultError, retried=False)
    assert "billed" in str(run.error)


def test_an_event_is_not_believed(kling_emulator: KlingEmulator) -> None:
    kling_emulator.configure(latency="never")
    run = run_task(lambda: operator(wait_for_completion=False))
    forged = {
        "kling_task_id": run.value()["task_id"],
        "outcome": "completed",
        "deadline": 4e9,
        "submitted_at": 0.0,
    }

    with pytest.raises(TaskDeferred):
        operator(deferrable=True).execute_complete({"ti": TaskInstance()}, event=forged)


@pytest.mark.parametrize(
    "event", [None, {}, {"outcome": "completed"}, "completed", {"kling_task_id": "x", "outcome": "success"}]
)
def test_a_missing_or_foreign_event_is_no_success(kling_emulator: KlingEmulator, event: Any) -> None:
    with pytest.raises(AirflowFailException, match="XCom 'task_id'"):
        operator(deferrable=True).execute_complete({"ti": TaskInstance()}, event=event)


def test_without_waiting_it_ends_right_after_the_submit(kling_emulator: KlingEmulator) -> None:
    kling_emulator.configure(latency="never")
    run = run_task(lambda: operator(wait_for_completion=False, deferrable=True))

    assert run.value()["state"] == "pending"
    assert run.value()["video_url"] is None
    assert run.ti.xcoms["task_id"] == run.value()["task_id"]
    assert run.deferrals == []
    assert kling_emulator.ledger.count("query") == 0


def test_a_lost_create_answer_is_told_as_unknown_and_not_repeated(kling_emulator: KlingEmulator) -> None:
    kling_emulator.inject("lost_answer", call="create")
    run = run_task(operator)

    assert_ends(run.error, UnknownSubmissionError, retried=False)
    assert "may have been created" in str(run.error)
    assert len(kling_emulator.ledger.creates()) == 1


@pytest.mark.parametrize(
    ("status", "expected"), [(400, BadRequestError), (401, KeyRefusedError), (402, NoCreditsError)]
)
def test_a_refused_request_ends_without_retries_and_says_that_nothing_was_billed(
    kling_emulator: KlingEmulator, status: int, expected: type[KlingError]
) -> None:
    kling_emulator.inject("answer", status=status, call="create", message="no, thank you")
    run = run_task(operator)

    assert_ends(run.error, expected, retried=False)
    assert "Nothing was billed" in str(run.error)
    assert "no, thank you" in str(run.error)


def test_too_little_money_is_told_with_where_to_top_up(kling_emulator: KlingEmulator) -> None:
    kling_emulator.configure(latency="never")
    kling_emulator.inject("answer", status=402, call="create")
    assert "https://apimodels.app" in str(run_task(operator).error)


@pytest.mark.usefixtures("kling_emulator")
def test_literal_faults_are_told_together_when_the_dag_is_parsed() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        operator(model="kling-video-o1", duration=12, mode="4k", sound="loud")
    text = str(caught.value)
    assert "duration: '12'" in text
    assert "mode: '4k'" in text
    assert "sound: 'loud'" in text
    assert isinstance(caught.value, ValueError)


def test_templates_are_checked_once_they_are_rendered_and_before_anything_is_sent(
    kling_emulator: KlingEmulator,
) -> None:
    def rendered() -> KlingGenerateVideoOperator:
        made = operator(duration="{{ params.seconds }}", image_list=["{{ params.image }}"])
        made.duration, made.image_list = "99", ["not a link"]
        return made

    run = run_task(rendered)
    assert_ends(run.error, InvalidRequestError, retried=False)
    assert "duration: '99'" in str(run.error)
    assert "image_list[0].image_url: 'not a link'" in str(run.error)
    assert kling_emulator.ledger.requests() == []


def test_a_fault_beside_a_template_is_told_at_parse_time() -> None:
    with pytest.raises(InvalidRequestError, match="mode: '4k'"):
        operator(prompt="{{ params.prompt }}", mode="4k")


@pytest.mark.parametrize(
    "value",
    ["{{ params.x }}", ["{{ params.x }}"], [{"image_url": "{{ params.x }}"}], "{% if x %}a{% endif %}"],
)
def test_what_holds_a_template_is_left_alone_at_parse_time(value: Any) -> None:
    operator(image_list=value)


def test_what_another_task_returns_is_left_alone_at_parse_time() -> None:
    with DAG("d", schedule=None):
        ideas = KlingGenerateVideoOperator(task_id="ideas", prompt="x")
        operator(duration=ideas.output, image_list=[{"image_url": ideas.output["task_id"]}])


@pytest.mark.parametrize("name", ["timeout", "poll_interval"])
@pytest.mark.parametrize("value", [0, -1, "10", None, True, float("nan"), float("inf")])
def test_intervals_and_limits_are_seconds_above_zero(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        operator(**{name: value})


def test_everything_about_the_video_is_a_template_field_and_nothing_else() -> None:
    assert set(KlingGenerateVideoOperator.template_fields) == {
        *VideoRequest.model_fields,
        "kling_conn_id",
        "output_path",
        "output_conn_id",
    }


def test_an_unknown_model_is_passed_on_with_a_warning(
    kling_emulator: KlingEmulator, task_log: Callable[[], list[str]]
) -> None:
    kling_emulator.configure(extra_models={"kling-v9": "0.5"})
    result = run_task(lambda: operator(model="kling-v9", duration=60)).value()
    assert result["estimated_cost_usd"] is None
    assert "'kling-v9' is not known here" in "".join(task_log())


def test_newer_fields_go_through_as_given(kling_emulator: KlingEmulator) -> None:
    run_task(lambda: operator(extra_body={"camera": {"pan": 3}})).value()
    assert kling_emulator.ledger.tasks()[0].body["camera"] == {"pan": 3}


def test_a_file_in_base64_does_not_go_to_xcom(kling_emulator: KlingEmulator) -> None:
    picture = io.BytesIO()
    Image.effect_noise((400, 400), 50).save(picture, "PNG")
    encoded = base64.b64encode(picture.getvalue()).decode()
    result = run_task(lambda: operator(image_list=[encoded])).value()

    (sent,) = kling_emulator.ledger.tasks()[0].body["image_list"]
    assert sent["image_url"].startswith(encoded[:20])
    assert len(json.dumps(result)) < 4096


@pytest.mark.kling_emulator(latency="never")
def test_the_log_tells_the_story(kling_emulator: KlingEmulator, task_log: Callable[[], list[str]]) -> None:
    result = run_task(
        lambda: operator(duration=4, sound=True), when_it_waits=lambda: finish_videos(kling_emulator)
    ).value()
    story = [line for line in task_log() if "Kling" in line or result["task_id"] in line]

    assert any("4 s, sound on" in line and "0.38 USD" in line and "'a red kite'" in line for line in story)
    assert any(f"Kling task id: {result['task_id']}" in line for line in story)
    assert any("is processing" in line for line in story)
    assert any("is completed" in line and result["video_url"] in line for line in story)
    assert len(story) < 10


@pytest.mark.usefixtures("kling_emulator")
def test_a_killed_task_says_that_the_video_goes_on(task_log: Callable[[], list[str]]) -> None:
    made = operator(wait_for_completion=False)
    made.execute({"ti": TaskInstance()})
    made.on_kill()
    assert "goes on and will be billed" in "".join(task_log())


def test_a_task_killed_while_a_busy_service_is_left_alone_has_nothing_to_say(
    kling_emulator: KlingEmulator, task_log: Callable[[], list[str]]
) -> None:
    kling_emulator.inject("fail", fail_code="1303", message="too many running tasks")
    made = operator(deferrable=True, timeout=600)
    with pytest.raises(TaskDeferred) as deferral:
        made.execute({"ti": TaskInstance()})
    assert deferral.value.method_name == "execute_again"
    made.on_kill()
    assert "goes on" not in "".join(task_log())


def test_a_task_killed_before_its_submit_has_nothing_to_say(task_log: Callable[[], list[str]]) -> None:
    operator().on_kill()
    assert "billed" not in "".join(task_log())


@pytest.mark.usefixtures("airflow_db")
def test_without_a_connection_the_error_says_how_to_make_one() -> None:
    run = run_task(lambda: operator(kling_conn_id="nowhere"))
    assert_ends(run.error, ConnectionSettingsError, retried=True)
    assert "airflow connections add nowhere" in str(run.error)


@pytest.mark.kling_emulator(latency=0.2)
def test_the_key_is_in_nothing_that_is_stored_logged_or_raised(
    kling_emulator: KlingEmulator, task_log: Callable[[], list[str]]
) -> None:
    good = run_task(lambda: operator(deferrable=True))
    kling_emulator.inject("answer", status=500, call="query", times="always")
    bad = run_task(lambda: operator(deferrable=True))
    assert good.error is None
    assert bad.error is not None
    kept = [good.result, good.ti.xcoms, bad.ti.xcoms, good.events, bad.events, task_log()]
    kept += [deferral.trigger.serialize() for run in (good, bad) for deferral in run.deferrals]
    kept += [repr(deferral.trigger) for run in (good, bad) for deferral in run.deferrals]
    kept += ["".join(traceback.format_exception(bad.error))]
    kept += [getattr(operator(), name) for name in KlingGenerateVideoOperator.template_fields]
    assert kling_emulator.api_key not in repr(kept)


def assert_ends(error: BaseException | None, expected: type[KlingError], *, retried: bool) -> None:
    if retried:
        assert type(error) is expected
    else:
        assert isinstance(error, AirflowFailException)
        assert type(error.__cause__) is expected
        assert str(error) == str(error.__cause__)
