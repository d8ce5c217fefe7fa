"""What is read out of the service's answers about tasks and money, whatever shape they come in."""

from __future__ import annotations

import json
import pickle
from decimal import Decimal
from typing import Any

import pendulum
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_kling.api.errors import ModerationError, TaskFailedError
from airflow_provider_kling.api.task import Balance, RecordedCost, TaskState, VideoTask

from .strategies import THOROUGH, json_like

LINK = "https://r2.apimodels.app/videos/xxx.mp4"
OTHER_LINK = "https://r2.apimodels.app/videos/yyy.mp4"
KEYS = [
    *(
        "taskId",
        "task_id",
        "state",
        "status",
        "model",
        "resultUrls",
        "videos",
        "video_url",
        "url",
        "resultJson",
    ),
    *(
        "createTime",
        "create_time",
        "completeTime",
        "complete_time",
        "costTime",
        "failCode",
        "fail_code",
        "failMsg",
    ),
    *(
        "fail_msg",
        "retryable",
        "param",
        "videoDuration",
        "duration",
        "error",
        "message",
        "msg",
        "code",
        "data",
    ),
    *("settled", "credits", "currency", "balance", "total", "frozen"),
]
payloads = st.dictionaries(
    st.sampled_from(KEYS),
    json_like(*KEYS) | json_like(*KEYS).map(lambda value: json.dumps(value)),
    max_size=10,
)


def read(payload: dict[str, Any], *, task_id: str | None = None) -> VideoTask:
    task = VideoTask.from_payload(payload, task_id=task_id)
    assert task is not None
    return task


# The shapes of an answer


def test_a_create_answer_gives_the_id_and_the_state() -> None:
    task = read({"taskId": "clxxx", "state": "pending", "model": "kling-video/kling-video-o1"})

    assert task == VideoTask(
        task_id="clxxx", state=TaskState.PENDING, service_state="pending", model="kling-video/kling-video-o1"
    )
    assert task.video_url is None


def test_a_query_answer_gives_links_and_times() -> None:
    task = read(
        {
            "taskId": "clxxx",
            "state": "completed",
            "model": "kling-video/kling-video-o1",
            "resultUrls": [LINK, OTHER_LINK],
            "createTime": 1705123450000,
            "completeTime": 1705123500000,
        }
    )

    assert task.state is TaskState.COMPLETED
    assert task.result_urls == (LINK, OTHER_LINK)
    assert task.video_url == LINK
    assert task.created_at == pendulum.datetime(2024, 1, 13, 5, 24, 10, tz="UTC")
    assert task.completed_at == pendulum.datetime(2024, 1, 13, 5, 25, 0, tz="UTC")
    assert task.generation_seconds == 50.0
    assert (task.fail_code, task.fail_message, task.retryable, task.duration_seconds) == (None,) * 4


def test_a_callback_gives_what_is_in_its_json_strings() -> None:
    task = read(
        {
            "taskId": "clxxx",
            "model": "kling-video/kling-video-o1",
            "state": "completed",
            "param": '{"prompt": "a cat", "duration": "5"}',
            "resultJson": json.dumps({"resultUrls": [LINK], "videoDuration": 5.04}),
            "failCode": None,
            "failMsg": None,
            "costTime": 12345,
            "completeTime": 1705123500000,
            "createTime": 1705123450000,
        }
    )

    assert task.result_urls == (LINK,)
    assert task.duration_seconds == 5.04
    assert task.generation_seconds == 12.345


@pytest.mark.parametrize("result", [None, '{"resultUrls": []}', {"resultUrls": []}])
def test_a_callback_about_a_failure_gives_its_reasons(result: Any) -> None:
    task = read(
        {
            "taskId": "clxxx",
            "state": "failed",
            "resultJson": result,
            "failCode": "CONTENT_MODERATION",
            "failMsg": "Content policy violation",
            "retryable": False,
        }
    )

    assert task.state is TaskState.FAILED
    assert (task.fail_code, task.fail_message) == ("CONTENT_MODERATION", "Content policy violation")
    assert task.retryable is False
    assert task.video_url is None


def test_a_create_answer_can_be_failed_already() -> None:
    task = read({"taskId": "clxxx", "state": "failed", "failMsg": "Content policy violation"})

    error = task.failure()
    assert isinstance(error, ModerationError)
    assert error.task_id == "clxxx"
    assert "Content policy violation" in str(error)


@pytest.mark.parametrize(("word", "retryable"), [(True, True), (False, False), (None, True), ("false", True)])
def test_the_services_own_word_on_repeating_is_passed_to_the_error(word: Any, retryable: bool) -> None:
    task = read({"taskId": "clxxx", "state": "failed", "failCode": "OTHER", "retryable": word})

    error = task.failure()
    assert type(error) is TaskFailedError
    assert error.code == "OTHER"
    assert error.retryable is retryable


@pytest.mark.parametrize("id_name", ["taskId", "task_id"])
@pytest.mark.parametrize("state_name", ["state", "status"])
def test_the_id_and_the_state_have_two_names(id_name: str, state_name: str) -> None:
    task = read({id_name: "clxxx", state_name: "processing"})

    assert (task.task_id, task.state) == ("clxxx", TaskState.PROCESSING)


def test_a_null_under_one_name_gives_way_to_the_other() -> None:
    assert (
        read({"taskId": None, "task_id": "clxxx", "state": None, "status": "failed"}).state
        is TaskState.FAILED
    )


@pytest.mark.parametrize("task_id", [17, "17", " 17 "])
def test_an_id_can_be_a_number(task_id: Any) -> None:
    assert read({"taskId": task_id, "state": "pending"}).task_id == "17"


@pytest.mark.parametrize(
    "payload",
    [
        {"resultUrls": [LINK]},
        {"resultUrls": LINK},
        {"resultUrls": [LINK, LINK]},
        {"resultUrls": [{"url": LINK}]},
        {"videos": [LINK]},
        {"videos": [{"id": "1", "url": LINK, "duration": "5"}]},
        {"videos": [{"video_url": LINK}]},
        {"videos": {"url": LINK}},
        {"video_url": LINK},
        {"video_url": {"url": LINK}},
        {"url": LINK},
        {"resultUrls": [], "videos": None, "url": LINK},
        {"resultJson": {"resultUrls": [LINK]}},
        {"resultJson": json.dumps({"resultUrls": [LINK]})},
        {"resultJson": json.dumps({"videos": [{"url": LINK}]})},
        {"resultJson": {"video_url": LINK}},
        {"resultJson": json.dumps({"url": LINK}), "resultUrls": []},
        {"resultUrls": [None, 5, "", "r2.apimodels.app/x.mp4", LINK, ["x"]]},
    ],
)
def test_the_link_is_found_wherever_it_stands(payload: dict[str, Any]) -> None:
    assert read({"taskId": "clxxx", "state": "completed", **payload}).result_urls == (LINK,)


@pytest.mark.parametrize(
    "junk",
    [
        *(
            "javascript:alert(1)",
            "file:///etc/passwd",
            "ftp://h/x.mp4",
            "https://",
            "http://[x",
            "x.mp4",
            "//h/x",
        ),
        *("https://h/\nx", "https://h/\x00", "", "data:video/mp4;base64,AAAA"),
    ],
)
def test_what_is_no_http_link_is_not_taken_for_one(junk: str) -> None:
    task = read({"taskId": "clxxx", "state": "completed", "resultUrls": [junk], "url": junk})

    assert task.result_urls == ()


def test_completed_without_a_link_is_still_completed() -> None:
    task = read({"taskId": "clxxx", "state": "completed", "resultUrls": []})

    assert task.state is TaskState.COMPLETED
    assert task.state.is_terminal
    assert task.video_url is None


@pytest.mark.parametrize(
    ("word", "state"),
    [
        *[(state.value, state) for state in TaskState],
        *(("COMPLETED", TaskState.COMPLETED), (" Failed ", TaskState.FAILED)),
    ],
)
def test_the_states_of_the_service_are_known_in_any_case(word: str, state: TaskState) -> None:
    task = read({"taskId": "clxxx", "state": word})

    assert task.state is state
    assert task.has_known_state


@pytest.mark.parametrize("word", ["queueing", "succeed", "canceled", "完成", 3])
def test_a_state_never_heard_of_is_still_running_and_can_be_told_apart(word: Any) -> None:
    task = read({"taskId": "clxxx", "state": word})

    assert task.state is TaskState.PROCESSING
    assert not task.state.is_terminal
    assert task.service_state == str(word)
    assert not task.has_known_state


def test_only_completed_and_failed_are_terminal() -> None:
    assert {state for state in TaskState if state.is_terminal} == {TaskState.COMPLETED, TaskState.FAILED}


def test_an_answer_without_a_state_is_pending_until_it_has_a_link() -> None:
    assert read({"taskId": "clxxx"}).state is TaskState.PENDING
    task = read({"taskId": "clxxx", "resultUrls": [LINK]})
    assert task.state is TaskState.COMPLETED
    assert task.has_known_state


def test_an_answer_need_not_repeat_the_id_that_was_asked_for() -> None:
    assert read({"state": "processing"}, task_id="clxxx").task_id == "clxxx"
    assert read({"url": LINK}, task_id="clxxx").state is TaskState.COMPLETED
    assert read({"taskId": "other", "state": "processing"}, task_id="clxxx").task_id == "other"


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"msg": "success"},
        {"state": "processing"},
        {"resultUrls": [LINK]},
        {"taskId": "", "state": "processing"},
        {"taskId": None, "task_id": {}, "state": "processing"},
        {"taskId": True, "state": "processing"},
        {"taskId": 1.5, "state": "processing"},
    ],
)
def test_a_payload_without_an_id_is_not_about_a_task(payload: dict[str, Any]) -> None:
    assert VideoTask.from_payload(payload) is None


@pytest.mark.parametrize("payload", [{}, {"msg": "success"}, {"taskId": {}}, {"model": "x", "state": []}])
def test_a_payload_that_says_nothing_is_not_about_the_task_that_was_asked_for(
    payload: dict[str, Any],
) -> None:
    assert VideoTask.from_payload(payload, task_id="clxxx") is None


# Times and numbers


@pytest.mark.parametrize(
    "value",
    [
        *(1705123450000, "1705123450000", 1705123450000.0, 1705123450, 1705123450.0),
        *("2024-01-13T05:24:10Z", "2024-01-13T07:24:10+02:00", "2024-01-13 05:24:10"),
    ],
)
@pytest.mark.parametrize("name", ["createTime", "create_time"])
def test_a_time_is_read_from_milliseconds_seconds_or_iso_text(name: str, value: Any) -> None:
    created_at = read({"taskId": "clxxx", "state": "pending", name: value}).created_at

    assert isinstance(created_at, pendulum.DateTime)
    assert created_at == pendulum.datetime(2024, 1, 13, 5, 24, 10, tz="UTC")


def test_milliseconds_are_not_lost() -> None:
    completed_at = read({"taskId": "clxxx", "complete_time": 1705123450789}).completed_at

    assert completed_at == pendulum.datetime(2024, 1, 13, 5, 24, 10, 789000, tz="UTC")


@pytest.mark.parametrize(
    "value",
    [
        *(
            None,
            0,
            "0",
            -5,
            True,
            [],
            {},
            "",
            "soon",
            "now",
            "12:30",
            "P1D",
            "2024-01-01/2024-01-02",
            "2024-13-45",
        ),
        *(1e300, 10**18, "NaN", float("nan"), float("inf"), "2024-01-01T25:00", "9999-99-99", "2024-1"),
        *("2024-01-01T00:00:00+99:99", "202401015:", "2024-1/", "2024-01-01/T14"),
    ],
)
def test_what_is_no_time_is_left_out(value: Any) -> None:
    task = read({"taskId": "clxxx", "state": "completed", "createTime": value, "completeTime": value})

    assert (task.created_at, task.completed_at, task.generation_seconds) == (None, None, None)


def test_a_task_that_ended_before_it_began_has_no_generation_time() -> None:
    task = read({"taskId": "clxxx", "createTime": 1705123450000, "completeTime": 1705123440000})

    assert task.generation_seconds is None


@pytest.mark.parametrize("cost_time", [True, -5, "soon", None, float("nan"), [], "1e999"])
def test_a_cost_time_that_is_no_number_gives_way_to_the_two_times(cost_time: Any) -> None:
    times = {"createTime": 1705123450000, "completeTime": 1705123500000}

    assert read({"taskId": "clxxx", "costTime": cost_time, **times}).generation_seconds == 50.0


@pytest.mark.parametrize(
    ("result", "seconds"),
    [
        ({"videoDuration": "5"}, 5.0),
        ({"duration": 5}, 5.0),
        ({"videoDuration": "long"}, None),
        ("5", None),
        (7, None),
    ],
)
def test_the_length_of_the_video_is_told_where_the_service_tells_it(
    result: Any, seconds: float | None
) -> None:
    assert read({"taskId": "clxxx", "resultJson": result}).duration_seconds == seconds


# The reasons of a failure


@pytest.mark.parametrize("name", ["failMsg", "fail_msg", "error", "message", "msg"])
def test_the_reason_of_a_failure_is_found_under_each_of_its_names(name: str) -> None:
    task = read({"taskId": "clxxx", "state": "failed", name: "Content policy violation"})

    assert task.fail_message == "Content policy violation"
    assert isinstance(task.failure(), ModerationError)


def test_the_reason_of_a_failure_can_be_nested() -> None:
    assert (
        read({"taskId": "x", "state": "failed", "error": {"message": "nsfw"}, "msg": "success"}).fail_message
        == "nsfw"
    )


def test_the_tasks_own_reason_comes_first() -> None:
    payload = {"taskId": "x", "state": "failed", "failMsg": "own", "error": "other", "fail_code": 1303}

    task = read(payload)
    assert (task.fail_message, task.fail_code) == ("own", "1303")


@pytest.mark.parametrize("word", ["success", "OK", "", None, 5.5, {}])
def test_what_says_that_the_query_went_well_is_no_reason_of_a_failure(word: Any) -> None:
    assert (
        read({"taskId": "x", "state": "failed", "msg": word, "message": word, "error": word}).fail_message
        is None
    )


def test_a_task_that_runs_has_no_reason_of_a_failure() -> None:
    assert read({"taskId": "x", "state": "processing", "msg": "queued behind 3"}).fail_message is None


def test_a_task_survives_pickling() -> None:
    task = read(
        {"taskId": "x", "state": "completed", "url": LINK, "createTime": 1705123450000, "param": {"a": 1}}
    )

    assert pickle.loads(pickle.dumps(task)) == task


# Money


def test_a_recorded_cost_is_exact() -> None:
    cost = RecordedCost.from_payload({"settled": True, "credits": 0.3165, "currency": "USD"}, task_id="clxxx")

    assert cost == RecordedCost(task_id="clxxx", settled=True, amount=Decimal("0.3165"), currency="USD")


@pytest.mark.parametrize(("written", "amount"), [(0, "0"), ("0.3165", "0.3165"), (1, "1"), (1e-4, "0.0001")])
def test_a_recorded_cost_can_be_a_number_or_text(written: Any, amount: str) -> None:
    cost = RecordedCost.from_payload({"settled": False, "credits": written}, task_id="clxxx")

    assert cost is not None
    assert (cost.amount, cost.settled, cost.currency) == (Decimal(amount), False, "USD")


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"settled": True},
        {"credits": 1},
        {"settled": "yes", "credits": 1},
        {"settled": 1, "credits": 1},
        {"settled": True, "credits": True},
        {"settled": True, "credits": "much"},
        {"settled": True, "credits": float("nan")},
        {"settled": True, "credits": "Infinity"},
        {"settled": True, "credits": [1]},
    ],
)
def test_a_record_of_another_shape_is_no_cost(payload: dict[str, Any]) -> None:
    assert RecordedCost.from_payload(payload, task_id="clxxx") is None


def test_a_balance_tells_what_can_be_spent_and_what_is_held() -> None:
    balance = Balance.from_payload({"balance": 12.5, "total": "20", "frozen": 7.5, "currency": "CNY"})

    assert balance == Balance(
        available=Decimal("12.5"), total=Decimal(20), frozen=Decimal("7.5"), currency="CNY"
    )


def test_a_balance_needs_no_more_than_the_amount() -> None:
    payload = {"balance": -1, "total": None, "frozen": "some", "currency": 5.5}

    assert Balance.from_payload(payload) == Balance(available=Decimal(-1))


@pytest.mark.parametrize("amount", [None, "", "much", True, [], {"USD": 5}, "NaN", float("inf")])
def test_a_balance_of_another_shape_is_none(amount: Any) -> None:
    assert Balance.from_payload({"balance": amount, "total": 5}) is None


# Whatever comes back


@THOROUGH
@given(payloads, st.none() | st.just("clxxx"))
@example(
    {"taskId": "x", "createTime": "0001-01-01T00:00:00+14:00", "completeTime": "9999-12-31T23:59:59-12:00"},
    None,
)
@example({"taskId": "x", "createTime": "202401015:", "resultJson": "[" * 100_000}, None)
@example(
    {"taskId": "x", "credits": 10**400, "balance": "1e999999999", "createTime": 10**400, "costTime": 10**400},
    None,
)
def test_whatever_comes_back_is_read_without_raising(payload: dict[str, Any], task_id: str | None) -> None:
    task = VideoTask.from_payload(payload, task_id=task_id)
    if task is not None:
        assert task.task_id
        assert isinstance(task.state, TaskState)
        assert all(link.startswith(("http://", "https://")) for link in task.result_urls)
        for moment in (task.created_at, task.completed_at):
            assert moment is None or isinstance(moment, pendulum.DateTime)
        assert task.generation_seconds is None or task.generation_seconds >= 0
        assert str(task.failure())
    cost = RecordedCost.from_payload(payload, task_id="clxxx")
    assert cost is None or cost.amount.is_finite()
    balance = Balance.from_payload(payload)
    assert balance is None or balance.available.is_finite()
