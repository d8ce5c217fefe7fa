"""Whoever asks, a worker or the triggerer: the same answer of the service means the same."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest

from airflow_provider_kling.api.errors import DownloadError, KlingError
from airflow_provider_kling.api.task import TaskState, VideoTask
from airflow_provider_kling.hooks.async_client import shared_client
from airflow_provider_kling.hooks.kling import KlingHook

from .conftest import Certificate, Clock, Connect
from .loopback import Answer, Fault, Loopback, Reply, refused_port, task_answer

LINK = "https://r2.example/v.mp4"
FAILED = {"taskId": "task-1", "state": "failed"}
NOW = 1_800_000_000


def data(**fields: Any) -> Answer:
    return Answer(body={"code": 200, "msg": "success", "data": {"taskId": "task-1", **fields}})


ANSWERS: dict[str, Reply] = {
    # The documented form, and what a tolerant client accepts
    "pending": task_answer("pending", createTime=1705123450000),
    "completed": task_answer("completed", LINK, createTime=1705123450000, completeTime=1705123500000),
    "completed without a link": task_answer("completed"),
    "an unknown state": task_answer("rendering"),
    "no state": data(),
    "other names": Answer(body={"data": {"task_id": "task-1", "status": "completed", "video_url": LINK}}),
    "at the top": Answer(body={"taskId": "task-1", "state": "completed", "url": LINK}),
    "without an id": Answer(body={"code": 200, "data": {"state": "processing"}}),
    "videos": data(state="completed", videos=[{"url": LINK}]),
    "resultJson as text": data(
        state="completed", resultJson=json.dumps({"resultUrls": [LINK], "videoDuration": 5.04})
    ),
    "resultJson as an object": data(state="completed", resultJson={"resultUrls": [LINK]}),
    "broken resultJson": data(state="completed", resultJson="{"),
    "in capitals": data(state="COMPLETED", resultUrls=[LINK]),
    "a code as text": Answer(body={"code": "200", "data": {"taskId": "task-1", "state": "pending"}}),
    "in UTF-16": Answer(body='{"data": {"taskId": "task-1", "state": "pending"}}'.encode("utf-16")),
    "zipped": Answer(
        body=gzip.compress(json.dumps({"taskId": "task-1", "state": "pending"}).encode()),
        headers={"Content-Encoding": "gzip"},
    ),
    "unannounced": Answer(body={"taskId": "task-1", "state": "pending"}, promised=-1),
    "status 201": Answer(201, {"data": {"taskId": "task-1", "state": "pending"}}),
    # Failed tasks
    **{
        f"failed with {code}": data(state="failed", failMsg="no", failCode=code)
        for code in ("CONTENT_MODERATION", "INVALID_INPUT", "UPSTREAM_BUSY", "UPSTREAM_FAILED", "TIMEOUT")
    },
    "failed with a word on retrying": data(state="failed", failCode="INVALID_INPUT", retryable=True),
    "failed for safety": data(state="failed", failMsg="violates our safety policy"),
    "failed for too many": data(state="failed", failCode=1303, failMsg="concurrency limit"),
    # Errors by status, by the body's code, and both
    **{
        f"status {status}": Answer(status, {"code": status, "msg": "told by the service"})
        for status in (400, 401, 402, 403, 404, 408, 429, 500, 502, 503, 504, 520)
    },
    **{
        f"code {code} in status 200": Answer(200, {"code": code, "message": "told by the service"})
        for code in (400, 401, 402, 403, 404, 429, 500, 503, 1303)
    },
    "another code than the status": Answer(500, {"code": 1303, "error": {"message": "concurrency"}}),
    "an error as text": Answer(400, {"error": "bad"}),
    "an empty error": Answer(502, b""),
    "an error page": Answer(503, b"<html>\n<h1>Down</h1></html>", {"Content-Type": "text/html"}),
    "not changed": Answer(304, b""),
    "a redirect that leads nowhere": Answer(302, b""),
    # Retry-After
    "Retry-After in seconds": Answer(429, b"", {"Retry-After": "33"}),
    "Retry-After in small letters": Answer(429, b"", {"retry-after": "33"}),
    "Retry-After as a date": Answer(429, b"", {"Retry-After": formatdate(NOW + 20, usegmt=True)}),
    "Retry-After in the past": Answer(503, b"", {"Retry-After": formatdate(NOW - 20, usegmt=True)}),
    "Retry-After unreadable": Answer(429, b"", {"Retry-After": "soon"}),
    # What is no answer of this service
    "a page": Answer(200, b"<html>" + b"x" * 400 + b"</html>", {"Content-Type": "text/html"}),
    "nothing": Answer(200, b""),
    "no content": Answer(204, b""),
    "null": Answer(200, b"null"),
    "a number": Answer(200, b"7"),
    "a list": Answer(200, [{"taskId": "task-1"}]),
    "an empty object": Answer(200, {}),
    "cut JSON": Answer(200, b'{"code": 200, "data": {"taskId"'),
    "deep nonsense": Answer(200, b"[" * 100_000),
    "not UTF-8": Answer(200, b"\xff\xfe\x00{"),
    "another task": task_answer("completed", LINK, task_id="task-2"),
    "another API": Answer(200, {"status": "ok", "version": "1.2"}),
}

LOST: dict[str, Reply] = {
    "cut": Answer(200, b'{"code": 200', promised=100),
    "closed": Fault.CLOSED,
    "reset": Fault.RESET,
    "not HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "a broken head": b"HTTP/1.1 twohundred OK\r\n\r\n",
    "broken gzip": Answer(200, b"{}", {"Content-Encoding": "gzip"}),
    "chunks that are none": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    "in a circle": Answer(302, b"", {"Location": "/api/v1/video/generations"}),
    "to another protocol": Answer(302, b"", {"Location": "ftp://files.example/"}),
}

Outcome = VideoTask | KlingError


def of_worker() -> Outcome:
    hook = KlingHook()
    try:
        return hook.query_task("task-1")
    except KlingError as error:
        return error
    finally:
        hook.close()


def of_triggerer() -> Outcome:
    async def ask() -> VideoTask:
        async with shared_client("kling_default") as client:
            return await client.get_task("task-1")

    try:
        return asyncio.run(ask())
    except KlingError as error:
        return error


def told(outcome: Outcome) -> Any:
    """All that matters about an outcome, to the letter."""
    if isinstance(outcome, VideoTask):
        return outcome
    names = (
        "task_id",
        "code",
        "service_message",
        "next_step",
        "retryable",
        "paid",
        "retry_after",
        "outcome_unknown",
    )
    return type(outcome), str(outcome), {name: getattr(outcome, name) for name in names}


@pytest.mark.parametrize("name", ANSWERS)
def test_every_answer_means_the_same_to_both(connect: Connect, clock: Clock, name: str) -> None:
    clock.now = NOW
    with Loopback(ANSWERS[name]) as service:
        connect(service.url)
        on_worker, in_triggerer = of_worker(), of_triggerer()
        assert len(service.received) == 2
    assert told(on_worker) == told(in_triggerer)


def test_the_answers_lead_to_more_than_one_thing(connect: Connect) -> None:
    """The comparison would also hold if both clients saw nothing but faults."""
    kinds = set()
    for name in ("pending", "completed", "status 401", "status 404", "status 429", "status 500", "a page"):
        with Loopback(ANSWERS[name]) as service:
            connect(service.url)
            outcome = of_triggerer()
            kinds.add(outcome.state if isinstance(outcome, VideoTask) else type(outcome).__name__)
    assert kinds == {
        TaskState.PENDING,
        TaskState.COMPLETED,
        "KeyRefusedError",
        "TaskNotFoundError",
        "RateLimitedError",
        "ServiceUnavailableError",
        "UnreadableAnswerError",
    }


@pytest.mark.parametrize("name", LOST)
def test_a_lost_answer_is_the_same_error_for_both(connect: Connect, name: str) -> None:
    """Its text quotes the HTTP library and so may differ."""
    with Loopback(LOST[name]) as service:
        connect(service.url, read_timeout=5)
        on_worker, in_triggerer = of_worker(), of_triggerer()
    assert isinstance(on_worker, KlingError)
    assert isinstance(in_triggerer, KlingError)
    assert type(on_worker) is type(in_triggerer)
    assert told(on_worker)[2] == told(in_triggerer)[2]
    assert on_worker.what.partition(":")[0] == in_triggerer.what.partition(":")[0]


@pytest.mark.parametrize(
    "where",
    [
        "refused",
        "no TLS",
        "unknown certificate",
        "no name",
        "proxy refused",
        "proxy refuses",
        "no bundle",
        "no key",
    ],
)
def test_a_service_out_of_reach_is_the_same_error_for_both(
    connect: Connect, certificate: Certificate, where: str
) -> None:
    with (
        Loopback(task_answer(), tls=certificate.server) as service,
        Loopback(Fault.GREETING) as mail,
        Loopback(Answer(407)) as proxy,
    ):
        refused = f"127.0.0.1:{refused_port()}"
        settings: dict[str, Any] = {
            "refused": {"host": f"http://{refused}"},
            "no TLS": {"host": mail.url.replace("http:", "https:")},
            "unknown certificate": {"host": service.url},
            "no name": {"host": "https://a..b"},
            "proxy refused": {"host": "https://kling.test", "proxies": f"http://{refused}"},
            "proxy refuses": {"host": "https://kling.test", "proxies": proxy.url},
            "no bundle": {"host": service.url, "ca_bundle": "/not/there.pem"},
            "no key": {"host": service.url, "password": ""},
        }[where]
        connect(**settings)
        on_worker, in_triggerer = of_worker(), of_triggerer()
        assert service.received == []
    assert isinstance(on_worker, KlingError)
    assert isinstance(in_triggerer, KlingError)
    assert type(on_worker) is type(in_triggerer)
    assert told(on_worker)[2] == told(in_triggerer)[2]
    assert on_worker.what.partition(":")[0] == in_triggerer.what.partition(":")[0]


def ask_on_a_worker() -> None:
    KlingHook().get_task("task-1")


def ask_in_the_triggerer() -> None:
    async def ask() -> None:
        async with shared_client("kling_default") as client:
            await client.get_task("task-1")

    asyncio.run(ask())


def fetch_a_result_on_a_worker() -> None:
    hook = KlingHook()
    # What comes is no video: here it only matters on which way.
    with (
        pytest.raises(DownloadError),
        hook.get_conn().open_result(f"{hook.settings.base_url}/v.mp4") as result,
    ):
        b"".join(result)


@pytest.mark.parametrize(
    "use", [ask_on_a_worker, ask_in_the_triggerer, fetch_a_result_on_a_worker], ids=lambda use: use.__name__
)
@pytest.mark.parametrize(
    ("of_connection", "of_environment", "way"),
    [
        ({"http": "connection"}, {"http_proxy": "environment"}, "connection"),
        ({"all": "connection"}, {"http_proxy": "environment"}, "connection"),
        ({"http": "connection"}, {"no_proxy": "*"}, "connection"),
        ({"https": "connection"}, {"http_proxy": "environment"}, "direct"),
        ({"https": "connection"}, {"all_proxy": "environment"}, "direct"),
        ({"http://127.0.0.1": "connection"}, {"http_proxy": "environment"}, "connection"),
        ({}, {"http_proxy": "environment"}, "environment"),
        ({}, {"all_proxy": "environment"}, "environment"),
        ({}, {"http_proxy": "environment", "no_proxy": "127.0.0.1"}, "direct"),
        ({}, {}, "direct"),
    ],
)
def test_the_connections_proxies_hold_where_it_has_any_and_else_the_environments(
    monkeypatch: pytest.MonkeyPatch,
    connect: Connect,
    use: Callable[[], None],
    of_connection: dict[str, str],
    of_environment: dict[str, str],
    way: str,
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with (
        Loopback(task_answer()) as direct,
        Loopback(task_answer()) as connection,
        Loopback(task_answer()) as environment,
    ):
        ways = {"direct": direct, "connection": connection, "environment": environment}
        for name, value in of_environment.items():
            monkeypatch.setenv(name, ways[value].url if value in ways else value)
        connect(direct.url, proxies={scheme: ways[value].url for scheme, value in of_connection.items()})
        use()
        assert [name for name, its in ways.items() if its.received] == [way]


@pytest.mark.parametrize("use", [ask_on_a_worker, ask_in_the_triggerer], ids=lambda use: use.__name__)
def test_the_environments_certificates_hold_beside_the_connections_proxies(
    monkeypatch: pytest.MonkeyPatch, connect: Connect, certificate: Certificate, use: Callable[[], None]
) -> None:
    with Loopback(task_answer(), tls=certificate.server) as service:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.path))
        connect(service.url, proxies={"http": "http://not.asked.test"})
        use()
        assert len(service.received) == 1
