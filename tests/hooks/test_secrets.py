"""The key is in nothing that a failing call leaves behind: no log, no text, no representation, no argument."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from airflow_provider_kling.api.errors import KlingError
from airflow_provider_kling.api.request import VideoRequest
from airflow_provider_kling.callbacks import CallbackToken, url_of
from airflow_provider_kling.hooks.async_client import AsyncKlingClient, shared_client
from airflow_provider_kling.hooks.kling import KlingHook

from .conftest import KEY, Certificate, Clock, Connect
from .loopback import Answer, Fault, Loopback, Reply, refused_port, task_answer
from .test_parity import ANSWERS, LOST

PROXY_PASSWORD = "pr0xy-passw0rd"


async def _ask() -> Any:
    async with shared_client("kling_default") as client:
        return await client.get_task("task-1")


CALLS: dict[str, Callable[[Path], Any]] = {
    "submit": lambda _: KlingHook().submit(VideoRequest(prompt="a kite")),
    "get_task": lambda _: KlingHook().get_task("task-1"),
    "wait": lambda _: KlingHook().wait("task-1", timeout=30),
    "get_balance": lambda _: KlingHook().get_balance(),
    "upload_file": lambda here: KlingHook().upload_file(here / "first.png"),
    "in the triggerer": lambda _: asyncio.run(_ask()),
}

REPLIES: list[Reply] = [
    *LOST.values(),
    *(ANSWERS[f"status {status}"] for status in (400, 401, 402, 403, 404, 429, 500)),
    *(ANSWERS[name] for name in ("a page", "nothing", "another task", "a redirect that leads nowhere")),
    # What repeats the header that it was sent
    Answer(401, {"code": 401, "msg": f"Invalid API key: Bearer {KEY}"}),
    Answer(200, {"code": 400, "message": f"Authorization: Bearer {KEY}"}),
    Answer(400, {"msg": "x" * 990 + KEY}),
    Answer(403, {"detail": {"authorization": f"Bearer {KEY}"}}),
    Answer(500, f"<html>Authorization: Bearer {KEY}</html>".encode()),
    Answer(200, f"<html>{' ' * 1990}{KEY}</html>".encode()),
    Answer(400, f"Authorization: Bearer {KEY}".encode("utf-16")),
    task_answer("failed", failMsg=f"the key {KEY} was revoked", failCode=f"REVOKED {KEY}"),
    task_answer("failed", failMsg=f"no key {KEY}", failCode="INVALID_INPUT"),
]

TOKEN = CallbackToken.for_check("kling_default").sign(KEY)
ADDRESS = url_of("https://airflow.example/af", TOKEN)
QUOTING: dict[str, Reply] = {
    "a refusal": Answer(400, {"msg": f"callback_url is not reachable: {ADDRESS}."}),
    "a refusal in quotes": Answer(400, {"msg": f"callback_url='{ADDRESS}'"}),
    "the request as it is": Answer(400, {"detail": {"prompt": "a kite", "callback_url": ADDRESS}}),
    "with slashes escaped": Answer(
        400, json.dumps({"detail": {"callback_url": ADDRESS}}).replace("/", r"\/").encode()
    ),
    "as a part of an address": Answer(400, f"no route to /?to={quote(ADDRESS, safe='')}".encode()),
    "a page": Answer(200, f"<a href='{ADDRESS}'>".encode()),
    "a failed task": task_answer("failed", failMsg=f"callback failed: {ADDRESS}"),
}


def shown_by(error: BaseException) -> Iterator[str]:
    """Yield all that a traceback, a log or a debugger shows of an error and of what led to it."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        yield repr(thing)
        yield str(thing)
        if isinstance(thing, BaseException):
            yield "".join(traceback.format_exception(thing))
            yield from getattr(thing, "__notes__", ())
            waiting += [thing.__cause__, thing.__context__, *thing.args]
        elif isinstance(thing, (tuple, list)):
            waiting += thing


def assert_keeps(error: BaseException, *secrets: str) -> None:
    shown = list(shown_by(error))
    assert len(shown) > 2
    for text in shown:
        for secret in secrets:
            assert secret not in text


@pytest.mark.parametrize("call", CALLS)
def test_no_failing_call_shows_the_key(
    connect: Connect, clock: Clock, log_text: Callable[[], str], tmp_path: Path, call: str
) -> None:
    (tmp_path / "first.png").write_bytes(b"...")
    failed = 0
    for reply in REPLIES:
        with Loopback(reply) as service:
            connect(service.url)
            try:
                assert KEY not in repr(CALLS[call](tmp_path))
            except KlingError as error:
                failed += 1
                assert_keeps(error, KEY)
            assert any(request.key == f"Bearer {KEY}" for request in service.received)
    assert failed > 10
    assert KEY not in log_text()


@pytest.mark.parametrize("call", ["submit", "wait", "in the triggerer"])
@pytest.mark.parametrize("name", QUOTING)
def test_an_answer_that_quotes_a_callback_address_does_not_show_its_token(
    connect: Connect, clock: Clock, log_text: Callable[[], str], tmp_path: Path, call: str, name: str
) -> None:
    with Loopback(QUOTING[name]) as service:
        connect(service.url)
        try:
            assert TOKEN not in repr(CALLS[call](tmp_path))
        except KlingError as error:
            assert_keeps(error, TOKEN)
    assert TOKEN not in log_text()


@pytest.mark.parametrize("call", CALLS)
def test_no_call_out_of_reach_shows_the_key_or_the_proxys_password(
    connect: Connect,
    certificate: Certificate,
    clock: Clock,
    log_text: Callable[[], str],
    tmp_path: Path,
    call: str,
) -> None:
    (tmp_path / "first.png").write_bytes(b"...")
    refused = f"127.0.0.1:{refused_port()}"
    with (
        Loopback(task_answer(), tls=certificate.server) as service,
        Loopback(Fault.GREETING) as mail,
        Loopback(Answer(407)) as proxy,
    ):
        with_password = proxy.url.replace("//", f"//someone:{PROXY_PASSWORD}@")
        for settings in (
            {"host": f"http://{refused}"},
            {"host": service.url},
            {"host": service.url, "ca_bundle": "/not/there.pem"},
            {"host": mail.url.replace("http:", "https:")},
            {"host": "https://kling.test", "proxies": f"http://someone:{PROXY_PASSWORD}@{refused}"},
            {"host": "https://kling.test", "proxies": with_password},
            {"host": "http://kling.test", "proxies": with_password},
            {"host": service.url, "read_timeout": "never"},
            {"host": service.url, "password": f"Bearer {KEY}"},
            {"host": service.url, "password": f"{KEY} "},
        ):
            connect(**settings)
            with pytest.raises(KlingError) as raised:
                CALLS[call](tmp_path)
            assert_keeps(raised.value, KEY, PROXY_PASSWORD)
    assert KEY not in log_text()
    assert PROXY_PASSWORD not in log_text()


def test_a_failed_download_shows_neither_key_nor_signature(
    connect: Connect, clock: Clock, log_text: Callable[[], str], tmp_path: Path
) -> None:
    for reply in (
        Answer(403),
        Answer(500),
        Fault.CLOSED,
        Answer(200, b"cut", {"Content-Type": "video/mp4"}, 9),
    ):
        with Loopback(reply) as service:
            connect(service.url)
            with pytest.raises(KlingError) as raised:
                KlingHook().download(f"{service.url}/v.mp4?X-Signature=s1gned", tmp_path / "v.mp4")
            assert_keeps(raised.value, KEY)
            assert "s1gned" not in str(raised.value)
    assert KEY not in log_text()


def test_a_connection_test_does_not_tell_the_key(connect: Connect, log_text: Callable[[], str]) -> None:
    for reply in REPLIES:
        with Loopback(reply) as service:
            connect(service.url)
            assert KEY not in KlingHook().test_connection()[1]
    connect(password=f"Bearer {KEY}")
    assert KEY not in KlingHook().test_connection()[1]
    assert KEY not in log_text()


def test_nothing_that_holds_the_key_shows_it(connect: Connect) -> None:
    connect(proxies=f"http://someone:{PROXY_PASSWORD}@proxy.example:3128")
    hook = KlingHook()
    client = hook.get_conn()

    async def make() -> str:
        of_triggerer = await AsyncKlingClient.from_connection("kling_default")
        try:
            return f"{of_triggerer!r} {of_triggerer.settings!r}"
        finally:
            await of_triggerer.close()

    shown = [repr(hook), repr(vars(hook)), repr(client), repr(vars(client)), asyncio.run(make())]
    for session in (client.session(retries=True), client.session(retries=False)):
        shown += [repr(session), repr(vars(session))]
    for text in shown:
        assert KEY not in text
        assert PROXY_PASSWORD not in text
