"""How each call is written and how each answer is read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import time_machine
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_kling.api.errors import (
    BadRequestError,
    KeyRefusedError,
    KlingError,
    NoCreditsError,
    Operation,
    RateLimitedError,
    ServiceError,
    ServiceUnavailableError,
    TaskNotFoundError,
    UnknownSubmissionError,
    UnreadableAnswerError,
)
from airflow_provider_kling.api.protocol import (
    DEFAULT_BASE_URL,
    ApiAnswer,
    ApiCall,
    balance_call,
    create_call,
    is_in_service_form,
    models_call,
    normalise_base_url,
    query_call,
    read_balance,
    read_callback,
    read_cost,
    read_models,
    read_task,
    read_upload,
    record_call,
    retry_after_seconds,
    upload_call,
)
from airflow_provider_kling.api.request import VideoRequest
from airflow_provider_kling.api.task import Balance, RecordedCost, TaskState, VideoTask

from .strategies import THOROUGH, json_like

LINK = "https://r2.apimodels.app/videos/xxx.mp4"
REQUEST = VideoRequest(model="kling-video-o1", prompt="a cat", duration=5)
CREATE, QUERY = create_call(REQUEST), query_call("clxxx")
OPTIONAL: list[tuple[ApiCall, Callable[[ApiCall, ApiAnswer], Any]]] = [
    (record_call("clxxx"), read_cost),
    (balance_call(), read_balance),
    (models_call(), read_models),
]


def answer(body: Any, status: int = 200, **headers: str) -> ApiAnswer:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ApiAnswer(status, {name.replace("_", "-"): value for name, value in headers.items()}, content)


def error_of(call: ApiCall, body: Any, status: int = 200, **headers: str) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        read_task(call, answer(body, status, **headers))
    return caught.value


# Calls


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            CREATE,
            ApiCall(
                operation=Operation.CREATE,
                method="POST",
                path="/video/generations",
                json_body={"model": "kling-video-o1", "prompt": "a cat", "duration": "5"},
            ),
        ),
        (
            QUERY,
            ApiCall(
                operation=Operation.QUERY,
                method="GET",
                path="/video/generations",
                params={"task_id": "clxxx"},
                task_id="clxxx",
            ),
        ),
        (
            record_call("clxxx"),
            ApiCall(operation=Operation.RECORD, method="GET", path="/records/clxxx", task_id="clxxx"),
        ),
        (balance_call(), ApiCall(operation=Operation.BALANCE, method="GET", path="/balance")),
        (models_call(), ApiCall(operation=Operation.MODELS, method="GET", path="/models")),
        (upload_call(), ApiCall(operation=Operation.UPLOAD, method="POST", path="/files")),
    ],
    ids=lambda value: value.operation.value,
)
def test_each_call_has_its_method_path_query_and_body(call: ApiCall, expected: ApiCall) -> None:
    assert call == expected


def test_an_odd_task_id_stays_one_part_of_the_path() -> None:
    assert record_call("../balance?x=1#y").path == "/records/..%2Fbalance%3Fx%3D1%23y"


# The base URL


@pytest.mark.parametrize(
    ("text", "base_url"),
    [
        *[(nothing, "https://apimodels.app/api/v1") for nothing in (None, "", "  ")],
        ("apimodels.app", "https://apimodels.app/api/v1"),
        ("https://apimodels.app", "https://apimodels.app/api/v1"),
        ("https://apimodels.app/", "https://apimodels.app/api/v1"),
        (" https://apimodels.app/api/v1\n", "https://apimodels.app/api/v1"),
        ("https://apimodels.app/api/v1/", "https://apimodels.app/api/v1"),
        ("https://apimodels.app/api/v1//", "https://apimodels.app/api/v1"),
        ("apimodels.app/api/v1", "https://apimodels.app/api/v1"),
        ("https://api.apimodels.app", "https://api.apimodels.app/v1"),
        ("api.apimodels.app/", "https://api.apimodels.app/v1"),
        ("API.APIMODELS.APP", "https://API.APIMODELS.APP/v1"),
        ("https://api.apimodels.app/v1", "https://api.apimodels.app/v1"),
        ("https://api.apimodels.app/v2", "https://api.apimodels.app/v2"),
        ("http://127.0.0.1:8123", "http://127.0.0.1:8123/api/v1"),
        ("http://127.0.0.1:8123/api/v1/", "http://127.0.0.1:8123/api/v1"),
        ("localhost:8123/kling", "https://localhost:8123/kling"),
        ("http://[::1]:8123", "http://[::1]:8123/api/v1"),
        ("HTTPS://proxy.example.com/kling", "https://proxy.example.com/kling"),
    ],
)
def test_the_base_url_is_read_with_and_without_scheme_path_and_slash(text: str | None, base_url: str) -> None:
    assert normalise_base_url(text) == base_url
    assert normalise_base_url(base_url) == base_url


@pytest.mark.parametrize(
    "text",
    [
        "ftp://apimodels.app",
        "file:///etc/passwd",
        "https://",
        "https:///api/v1",
        "/api/v1",
        "//apimodels.app",
        "https:/apimodels.app",
        "http:apimodels.app",
        "https://apimodels.app:",
        "https://apimodels.app:port",
        "https://apimodels.app:99999",
        "http://[::1",
        "not a url",
        "https://api models.app",
        "https://a\tb.app",
        "https://a\nb.app",
        "https://a\x00b.app",
        "https://apimodels.app?x=1",
        "https://apimodels.app/#top",
    ],
)
def test_a_base_url_that_cannot_be_used_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        normalise_base_url(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://user:sk_secret@apimodels.app",
        "sk_secret@apimodels.app",
        "ftp://:sk_secret@h",
        "https://:sk_secret@h h",
    ],
)
def test_a_base_url_with_a_key_in_it_is_refused_without_quoting_it(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        normalise_base_url(text)

    assert "sk_secret" not in str(caught.value)


def test_the_message_about_a_base_url_shows_a_right_one() -> None:
    with pytest.raises(ValueError, match=DEFAULT_BASE_URL):
        normalise_base_url("ftp://apimodels.app")


# Answers about tasks


@pytest.mark.parametrize("call", [CREATE, QUERY], ids=lambda call: call.operation.value)
@pytest.mark.parametrize("wrapped", [True, False])
def test_the_task_stands_in_data_or_at_the_top(call: ApiCall, wrapped: bool) -> None:
    data = {"taskId": "clxxx", "state": "completed", "resultUrls": [LINK]}
    body = (
        {"code": 200, "msg": "success", "data": data} if wrapped else {"code": 200, "msg": "success", **data}
    )

    task = read_task(call, answer(body))
    assert (task.task_id, task.state, task.video_url) == ("clxxx", TaskState.COMPLETED, LINK)


@pytest.mark.parametrize("code", [0, 200, "200", 201, None, "ok", True, -1, 200.5])
def test_a_code_of_success_or_none_at_all_is_no_error(code: Any) -> None:
    assert read_task(QUERY, answer({"code": code, "data": {"state": "processing"}})).task_id == "clxxx"


def test_a_create_answer_that_is_failed_already_is_a_task() -> None:
    body = {"code": 200, "data": {"taskId": "clxxx", "state": "failed", "failMsg": "no"}}

    assert read_task(CREATE, answer(body)).state is TaskState.FAILED


def test_an_answer_about_another_task_is_not_believed() -> None:
    error = error_of(
        QUERY, {"code": 200, "data": {"taskId": "other", "state": "completed", "resultUrls": [LINK]}}
    )

    assert type(error) is UnreadableAnswerError
    assert error.task_id == "clxxx"


@pytest.mark.parametrize(
    ("code", "create", "query"),
    [
        (400, BadRequestError, BadRequestError),
        (401, KeyRefusedError, KeyRefusedError),
        (402, NoCreditsError, NoCreditsError),
        (403, KeyRefusedError, KeyRefusedError),
        (404, UnreadableAnswerError, TaskNotFoundError),
        (429, RateLimitedError, RateLimitedError),
        (500, UnknownSubmissionError, ServiceUnavailableError),
        (503, UnknownSubmissionError, ServiceUnavailableError),
        (1303, RateLimitedError, RateLimitedError),
    ],
)
def test_the_bodys_code_decides_where_the_status_is_200(
    code: int, create: type[ServiceError], query: type[ServiceError]
) -> None:
    for call, error_class in ((CREATE, create), (QUERY, query)):
        for written in (code, str(code)):
            body = {"code": written, "msg": "no luck", "data": {"taskId": "clxxx", "state": "pending"}}
            error = error_of(call, body)
            assert type(error) is error_class
            assert error.code == code
            assert error.service_message == "no luck"
            assert error.task_id == call.task_id


def test_the_status_decides_where_it_is_an_error_and_the_bodys_code_is_shown() -> None:
    error = error_of(QUERY, {"code": 1201, "msg": "no"}, 400)
    assert (type(error), error.code) == (BadRequestError, 1201)

    error = error_of(CREATE, {"code": 200, "msg": "no"}, 500)
    assert (type(error), error.code) == (UnknownSubmissionError, 500)

    assert type(error_of(CREATE, {"code": 1303, "msg": "parallel task over limit"}, 400)) is RateLimitedError


@pytest.mark.parametrize(
    "body",
    [
        {"msg": "no luck"},
        {"message": "no luck"},
        {"error": "no luck"},
        {"error": {"message": "no luck"}},
        {"msg": "", "message": None, "error": {"message": " no luck "}},
        {"msg": "no luck", "message": "other"},
    ],
)
@pytest.mark.parametrize("status", [200, 400])
def test_the_services_words_are_found_wherever_they_stand(body: dict[str, Any], status: int) -> None:
    error = error_of(QUERY, {"code": 400, **body}, status)

    assert error.service_message == "no luck"
    assert "no luck" in str(error)


def test_very_long_words_of_the_service_are_cut() -> None:
    assert len(error_of(QUERY, {"msg": "x" * 100_000}, 400).service_message or "") == 1000


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Invalid API key: Bearer sk-1.", "Invalid API key: Bearer ***."),
        (
            "cannot reach 'https://a.example/kling/callbacks/t0k~en'",
            "cannot reach 'https://a.example/kling/callbacks/***'",
        ),
        ("https://a.example/kling/videos/t0k", "https://a.example/kling/videos/t0k"),
    ],
)
def test_the_services_words_are_told_without_the_key_and_without_the_token_of_a_callback_address(
    said: str, told: str
) -> None:
    for document in ({"code": 400, "msg": said}, {"code": 400, "error": {"message": said}}):
        with pytest.raises(BadRequestError) as caught:
            read_task(QUERY, ApiAnswer(200, {}, json.dumps(document).encode(), "sk-1"))
        assert caught.value.service_message == told
    failed = {"taskId": "clxxx", "state": "failed", "failMsg": said, "failCode": "OTHER"}
    task = read_task(QUERY, ApiAnswer(200, {}, json.dumps(failed).encode(), "sk-1"))
    assert (task.fail_message, task.fail_code) == (told, "OTHER")


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"<html>\n<h1>Bad  Gateway</h1>" + b"x" * 5000, "<html> <h1>Bad Gateway</h1>" + "x" * 173),
        (b'{"detail": "other form"}', '{"detail": "other form"}'),
        (b"\xff\xfe broken", "\ufffd\ufffd broken"),
        ("\u00e4".encode() * 5000, "\u00e4" * 200),
        (b"null", "null"),
        (b"", None),
    ],
)
def test_an_error_in_another_form_is_quoted_with_its_first_200_characters(
    body: bytes, shown: str | None
) -> None:
    for status, error_class in ((502, ServiceUnavailableError), (400, BadRequestError)):
        error = error_of(QUERY, body, status)
        assert type(error) is error_class
        assert error.service_message == shown


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  ",
        b"<html>Welcome</html>",
        b"\xff\xfe",
        b'{"code": 200',
        b"[" * 100_000,
        b"null",
        b"5",
        b'"ok"',
        b"[]",
        b'[{"taskId": "clxxx"}]',
        b"{}",
        b'{"code": 200, "msg": "success", "data": null}',
        b'{"data": []}',
        *(b'{"message": "hello"}', b'{"data": {"model": "x"}}', b'{"code": 200, "data": {"taskId": {}}}'),
    ],
)
def test_what_is_no_answer_of_the_service_is_a_typed_error_with_its_beginning(body: bytes) -> None:
    beginning = " ".join(body.decode("utf-8", "replace").split())[:200]

    query_error = error_of(QUERY, body)
    assert type(query_error) is UnreadableAnswerError
    assert query_error.task_id == "clxxx"
    create_error = error_of(CREATE, body)
    assert type(create_error) is UnknownSubmissionError
    for error in (query_error, create_error):
        assert (f"begins: {beginning!r}" if beginning else "it is empty") in str(error)
        assert "HTTP 200" in str(error)


def test_html_is_quoted_with_200_characters_and_no_more() -> None:
    told = str(error_of(QUERY, b"<html>" + b"x" * 5000))

    assert "<html>" + "x" * 194 + "'" in told


def test_a_redirect_is_no_answer() -> None:
    error = error_of(QUERY, b"", 302)

    assert type(error) is UnreadableAnswerError
    assert not error.retryable


def test_a_create_answer_without_an_id_leaves_the_outcome_unknown() -> None:
    assert error_of(CREATE, {"code": 200, "data": {"state": "pending"}}).outcome_unknown


# Retry-After


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7 ", 7.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 480.0),
        ("Wed, 21 Oct 2015 07:28:00 -0000", 480.0),
        ("Wed, 21 Oct 2015 07:28:00", 480.0),
        ("Wed Oct 21 07:28:00 2015", 480.0),
        ("Wednesday, 21-Oct-15 07:28:00 GMT", 480.0),
        ("Wed, 21 Oct 2015 09:28:00 +0200", 480.0),
        ("Wed, 21 Oct 2015 07:00:00 GMT", 0.0),
        ("Mon, 99999999999999999999 Jan 2024 00:00:00 GMT", None),
        ("9" * 400, None),
        ("\u0665", None),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
    ],
)
def test_a_wait_is_asked_for_in_seconds_or_by_a_date(value: str, seconds: float | None) -> None:
    assert retry_after_seconds({"Retry-After": value}, now=1445412000.0) == seconds


def test_a_zone_of_this_machine_does_not_change_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        seconds = retry_after_seconds({"Retry-After": "Wed Oct 21 07:28:00 2015"}, now=1445412000.0)
    finally:
        monkeypatch.undo()
        time.tzset()

    assert seconds == 480.0


def test_without_the_header_no_wait_is_asked_for() -> None:
    assert retry_after_seconds({}) is None


@time_machine.travel("2015-10-21T07:20:00Z", tick=False)
def test_a_date_is_counted_from_now() -> None:
    assert retry_after_seconds({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 480.0


@pytest.mark.parametrize("status", [429, 503])
def test_the_wait_that_was_asked_for_is_in_the_error(status: int) -> None:
    assert error_of(QUERY, {"msg": "busy"}, status, Retry_After="120").retry_after == 120.0
    assert error_of(QUERY, {"msg": "busy"}, status).retry_after is None


def test_a_429_in_the_body_carries_the_wait_too() -> None:
    error = error_of(CREATE, {"code": 429, "msg": "busy"}, Retry_After="7")

    assert (type(error), error.retry_after) == (RateLimitedError, 7.0)


# Callbacks


def test_a_callback_is_read_like_an_answer() -> None:
    data = {
        "taskId": "clxxx",
        "model": "kling-video/kling-video-o1",
        "state": "completed",
        "param": '{"prompt": "a cat"}',
        "resultJson": json.dumps({"resultUrls": [LINK], "videoDuration": 5}),
        "failCode": None,
        "failMsg": None,
        "costTime": 12345,
        "completeTime": 1705123500000,
        "createTime": 1705123450000,
    }

    task = read_callback(json.dumps({"code": 200, "msg": "success", "data": data}).encode())
    assert task is not None
    assert (task.task_id, task.video_url, task.duration_seconds) == ("clxxx", LINK, 5.0)
    assert read_callback(json.dumps(data).encode()) == task


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"\xff",
        b"[]",
        b"5",
        b"null",
        b"{}",
        b'{"data": []}',
        b'{"data": {"state": "completed"}}',
        b"[" * 9999,
    ],
)
def test_a_callback_that_is_about_no_task_is_none(body: bytes) -> None:
    assert read_callback(body) is None


# The calls that the service may not offer


def test_what_a_task_cost_is_read() -> None:
    body = {"code": 200, "data": {"settled": True, "credits": 0.3165, "currency": "USD"}}

    cost = read_cost(record_call("clxxx"), answer(body))
    assert cost == RecordedCost(task_id="clxxx", settled=True, amount=Decimal("0.3165"))


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_balance_is_read(wrapped: bool) -> None:
    data = {"balance": 12.5, "total": 20, "frozen": 7.5, "currency": "USD"}

    balance = read_balance(balance_call(), answer({"data": data} if wrapped else data))
    assert balance == Balance(available=Decimal("12.5"), total=Decimal(20), frozen=Decimal("7.5"))


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_ids_of_the_models_are_read(wrapped: bool) -> None:
    data = [{"id": "kling-video-o1", "name": "O1"}, {"id": "kling-v3-omni"}, {"id": 5}, "junk"]

    assert read_models(models_call(), answer({"data": data} if wrapped else data)) == [
        "kling-video-o1",
        "kling-v3-omni",
    ]
    assert read_models(models_call(), answer({"data": []})) == []


@pytest.mark.parametrize(("call", "read"), OPTIONAL, ids=lambda value: getattr(value, "path", ""))
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"code": 404, "msg": "no such path"}', 404),
        (b"<html>Not found</html>", 404),
        (b"", 404),
        (b'{"code": 404, "msg": "no such path"}', 200),
        (b'{"code": "404"}', 200),
        (b"<html>Welcome</html>", 200),
        (b"", 200),
        (b"", 204),
        (b"", 302),
        (b"null", 200),
        (b'{"code": 200, "data": null}', 200),
        (b'{"code": 200, "data": {}}', 200),
        (b'{"code": 200, "data": {"amount": 5}}', 200),
        (b'{"code": 200, "data": [5]}', 200),
        (b'{"code": 200, "data": "none"}', 200),
    ],
)
def test_a_call_that_the_service_does_not_offer_gives_none(
    call: ApiCall, read: Callable[[ApiCall, ApiAnswer], Any], body: bytes, status: int
) -> None:
    assert read(call, answer(body, status)) is None


@pytest.mark.parametrize(("call", "read"), OPTIONAL, ids=lambda value: getattr(value, "path", ""))
@pytest.mark.parametrize(
    ("status", "error_class"),
    [(401, KeyRefusedError), (429, RateLimitedError), (500, ServiceUnavailableError), (400, BadRequestError)],
)
def test_an_error_of_a_call_that_the_service_does_offer_is_raised(
    call: ApiCall,
    read: Callable[[ApiCall, ApiAnswer], Any],
    status: int,
    error_class: type[ServiceError],
) -> None:
    for told in (answer({"msg": "no"}, status), answer({"code": status, "msg": "no"})):
        with pytest.raises(error_class) as caught:
            read(call, told)
        assert caught.value.task_id == call.task_id


# Uploads


@pytest.mark.parametrize("wrapped", [True, False])
def test_an_upload_gives_its_url(wrapped: bool) -> None:
    data = {"publicUrl": LINK}

    assert read_upload(upload_call(), answer({"code": 200, "data": data} if wrapped else data)) == LINK


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"<html>", b"[]", b"{}", b'{"data": {"publicUrl": null}}', b'{"publicUrl": 5}'),
        *(b'{"publicUrl": "ftp://h/x"}', b'{"publicUrl": "/x.png"}', b'{"publicUrl": "javascript:alert(1)"}'),
    ],
)
def test_an_upload_without_a_url_is_an_error(body: bytes) -> None:
    with pytest.raises(UnreadableAnswerError) as caught:
        read_upload(upload_call(), answer(body))

    assert "upload" in str(caught.value)


def test_an_upload_that_is_refused_says_why() -> None:
    with pytest.raises(BadRequestError, match="file too large"):
        read_upload(upload_call(), answer({"code": 400, "msg": "file too large"}, 400))


# Whose answer it is


@pytest.mark.parametrize(
    ("body", "ours"),
    [
        (b'{"code": 404, "msg": "no such task"}', True),
        (b'{"code": 404}', True),
        (b'{"error": {"message": "no such task"}}', True),
        (b'{"detail": "Not Found"}', False),
        (b"<html>Not Found</html>", False),
        (b"[]", False),
        (b"", False),
    ],
)
def test_an_answer_of_this_service_has_a_code_or_words(body: bytes, ours: bool) -> None:
    assert is_in_service_form(answer(body, 404)) is ours


# Whatever comes back

KEYS = [
    "code",
    "msg",
    "message",
    "error",
    "data",
    "taskId",
    "state",
    "status",
    "resultUrls",
    "resultJson",
    "url",
    "id",
]
KEYS += ["publicUrl", "balance", "settled", "credits", "createTime", "completeTime", "failMsg"]
documents = json_like(*KEYS).map(lambda value: json.dumps(value).encode())
enveloped = st.fixed_dictionaries(
    {"code": st.sampled_from([0, 200, "200", 400, 404, 429, 500, None, "x"]), "data": json_like(*KEYS)}
).map(lambda value: json.dumps(value).encode())
headers = st.dictionaries(
    st.sampled_from(["Retry-After", "Content-Type", "X"]),
    st.text(max_size=20)
    | st.integers(-5, 10**12).map(str)
    | st.builds(
        "{}, {} {} {} {}:00:00 {}".format,
        *[st.sampled_from(["Wed", "1", "21", "Oct", "0", "-0000", "x"])] * 6,
    ),
)


def told_by(read: Callable[[ApiCall, ApiAnswer], Any], call: ApiCall, answer: ApiAnswer) -> Any:
    try:
        return read(call, answer)
    except KlingError as error:
        return error


def nested(depth: int) -> bytes:
    return b'{"state":"completed","url":' + b'[{"url":' * depth + b"1" + b"}]" * depth + b"}"


@THOROUGH
@given(
    st.sampled_from([CREATE, QUERY]),
    st.integers(100, 599) | st.sampled_from([200, 200, 200, 404, 429, 500]),
    headers,
    st.binary(max_size=30) | documents | enveloped,
)
@example(QUERY, 200, {}, nested(200))
@example(QUERY, 200, {}, nested(450))
@example(QUERY, 200, {}, nested(50_000))
@example(QUERY, 200, {}, b'{"code": ' + b"9" * 5000 + b"}")
@example(QUERY, 429, {"Retry-After": "Mon, 99999999999999999999 Jan 2024 00:00:00 GMT"}, b"")
def test_whatever_comes_back_is_a_task_or_an_error_of_this_package(
    call: ApiCall, status: int, headers: dict[str, str], body: bytes
) -> None:
    answer = ApiAnswer(status, headers, body)

    told = told_by(read_task, call, answer)
    assert call.task_id in (None, told.task_id)
    if isinstance(told, KlingError):
        assert told.next_step in str(told)
        assert told.outcome_unknown <= (call is CREATE)
    else:
        assert isinstance(told, VideoTask)
        assert status < 300

    assert read_callback(body) is None or isinstance(read_callback(body), VideoTask)
    assert is_in_service_form(answer) in (True, False)


@THOROUGH
@given(
    st.sampled_from([*OPTIONAL, (upload_call(), read_upload)]),
    st.integers(100, 599) | st.sampled_from([200, 200, 200, 404]),
    headers,
    st.binary(max_size=30) | documents | enveloped,
)
@example((upload_call(), read_upload), 200, {}, b'{"publicUrl": "http://[x"}')
def test_whatever_comes_back_for_the_other_calls_no_other_error_is_raised(
    pair: tuple[ApiCall, Callable[[ApiCall, ApiAnswer], Any]],
    status: int,
    headers: dict[str, str],
    body: bytes,
) -> None:
    call, read = pair

    told = told_by(read, call, ApiAnswer(status, headers, body))
    assert told is None or isinstance(told, (RecordedCost, Balance, list, str, ServiceError))
    assert not getattr(told, "outcome_unknown", False)


@THOROUGH
@given(headers)
def test_whatever_the_header_says_the_wait_is_none_or_bearable_to_count(headers: dict[str, str]) -> None:
    seconds = retry_after_seconds(headers, now=0.0)

    assert seconds is None or 0 <= seconds < 1e12
