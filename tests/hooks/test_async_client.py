from __future__ import annotations

import asyncio
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest
from airflow.providers.common.compat.sdk import BaseHook

from airflow_provider_kling.api.errors import (
    ConnectionLookupError,
    ConnectionSettingsError,
    KeyRefusedError,
    ServiceError,
    ServiceUnavailableError,
    UnreachableError,
    UnreadableAnswerError,
)
from airflow_provider_kling.api.request import VideoRequest
from airflow_provider_kling.api.task import TaskState
from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.hooks import settings as settings_module
from airflow_provider_kling.hooks.async_client import MAX_CONNECTIONS, AsyncKlingClient, shared_client
from airflow_provider_kling.hooks.kling import KlingHook
from airflow_provider_kling.hooks.settings import user_agent

from .conftest import KEY, Certificate, Connect
from .loopback import Answer, Fault, Loopback, of_asked_task, refused_port, task_answer

T = TypeVar("T")


async def ask(task_id: str = "task-1", conn_id: str = "kling_default") -> Any:
    async with shared_client(conn_id) as client:
        return await client.get_task(task_id)


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List the connections that Airflow was asked for."""
    asked: list[str] = []
    in_thread = BaseHook.get_connection

    def get_connection(conn_id: str) -> Any:
        asked.append(conn_id)
        return in_thread(conn_id)

    monkeypatch.setattr(BaseHook, "get_connection", staticmethod(get_connection))
    if awaited := getattr(BaseHook, "aget_connection", None):

        async def aget_connection(conn_id: str) -> Any:
            asked.append(conn_id)
            return await awaited(conn_id)

        monkeypatch.setattr(BaseHook, "aget_connection", staticmethod(aget_connection))
    return asked


# From the hook


@pytest.mark.kling_emulator(latency=0)
def test_the_hook_asks_from_an_event_loop_over_one_session(
    kling_emulator: KlingEmulator, lookups: list[str]
) -> None:
    made = KlingHook().submit(VideoRequest(prompt="a kite"))
    lookups.clear()

    async def ask_twice() -> Any:
        async with KlingHook().async_client() as client, KlingHook().async_client() as another:
            assert client is another
            return await client.get_task(made.task_id), await another.get_balance()

    task, balance = asyncio.run(ask_twice())
    assert (task.task_id, task.state) == (made.task_id, TaskState.COMPLETED)
    assert balance == KlingHook().get_balance()
    assert lookups.count("kling_default") == 2, "once by the event loop, once by the hook that was asked last"


@pytest.mark.usefixtures("kling_emulator")
def test_the_hooks_asynchronous_client_is_that_of_its_connection(lookups: list[str]) -> None:
    async def ask_of_another() -> None:
        async with KlingHook("kling_missing").async_client():
            pass

    with pytest.raises(ConnectionSettingsError, match="kling_missing"):
        asyncio.run(ask_of_another())
    assert set(lookups) == {"kling_missing"}


# One query


def test_a_query_names_the_task_and_sends_the_key(connect: Connect) -> None:
    with Loopback(script=of_asked_task("completed", "https://r2.example/v.mp4")) as service:
        connect(service.url)
        with pytest.raises(UnreadableAnswerError, match="not in the service's form"):
            asyncio.run(ask("a/b&c"))  # the script does not decode what it repeats
        service.replies_from_now_on(task_answer("completed", "https://r2.example/v.mp4", task_id="a/b&c"))
        task = asyncio.run(ask("a/b&c"))
    [query] = service.received
    assert (query.method, query.target) == ("GET", "/api/v1/video/generations?task_id=a/b%26c")
    assert query.key == f"Bearer {KEY}"
    assert query.headers["user-agent"] == user_agent()
    assert task.video_url == "https://r2.example/v.mp4"


@pytest.mark.parametrize("status", [429, 503])
def test_a_query_is_made_once(connect: Connect, status: int) -> None:
    """Asking again is for the trigger to decide. (aiohttp does so by itself where an idle connection was closed.)"""
    with Loopback(Answer(status, b"", {"Retry-After": "1"})) as service:
        connect(service.url)
        with pytest.raises(ServiceError, match=str(status)):
            asyncio.run(ask())
        assert len(service.received) == 1


def test_a_query_redirected_to_another_host_goes_without_the_key(connect: Connect) -> None:
    with Loopback(task_answer()) as other:
        elsewhere = other.url.replace("127.0.0.1", "localhost")
        for target in (elsewhere, other.url):
            with Loopback(Answer(302, b"", {"Location": target})) as service:
                connect(service.url)
                assert asyncio.run(ask()).task_id == "task-1"
                assert service.received[0].key == f"Bearer {KEY}"
        assert [query.key for query in other.received] == [None, None]
        assert KEY not in repr(other.received)


def test_a_query_redirected_on_its_host_keeps_the_key(connect: Connect) -> None:
    with Loopback(Answer(307, b"", {"Location": "/moved"}), task_answer()) as service:
        connect(service.url)
        asyncio.run(ask())
        assert [query.key for query in service.received] == [f"Bearer {KEY}"] * 2


def test_a_netrc_does_not_replace_the_key(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "netrc").write_text("default login someone password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with Loopback(task_answer()) as service:
        connect(service.url)
        asyncio.run(ask())
        assert service.received[0].key == f"Bearer {KEY}"


def test_the_connections_proxy_is_used_and_not_the_environments(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Loopback(task_answer()) as right, Loopback(task_answer()) as wrong:
        monkeypatch.setenv("http_proxy", wrong.url)
        connect("http://kling.test", proxies=right.url)
        asyncio.run(ask())
        assert right.received[0].target.startswith("http://kling.test/api/v1/video/generations")
        assert wrong.connections == 0
        connect("http://kling.test")
        asyncio.run(ask())
        assert wrong.connections == 1


def test_a_refused_connection_means_that_nothing_was_sent(connect: Connect) -> None:
    connect(f"http://127.0.0.1:{refused_port()}")
    with pytest.raises(UnreachableError, match="could not be reached"):
        asyncio.run(ask())


def test_a_name_that_does_not_resolve_means_that_nothing_was_sent(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getaddrinfo(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    connect("https://kling.test")
    with pytest.raises(UnreachableError, match="Name or service not known"):
        asyncio.run(ask())


@pytest.mark.parametrize("host", ["http://kling.test", "https://kling.test"])
def test_a_proxy_that_is_away_or_refuses_means_that_nothing_was_sent(connect: Connect, host: str) -> None:
    connect(host, proxies=f"http://127.0.0.1:{refused_port()}")
    with pytest.raises(UnreachableError):
        asyncio.run(ask())
    with Loopback(Answer(407)) as proxy:
        connect("https://kling.test", proxies=proxy.url)
        with pytest.raises(UnreachableError):
            asyncio.run(ask())


def test_a_certificate_is_checked_as_the_connection_says(connect: Connect, certificate: Certificate) -> None:
    with Loopback(task_answer(), tls=certificate.server) as service:
        connect(service.url)
        with pytest.raises(UnreachableError, match="TLS trouble"):
            asyncio.run(ask())
        connect(service.url, ca_bundle=str(certificate.path))
        assert asyncio.run(ask()).task_id == "task-1"
        connect(service.url, verify=False)
        assert asyncio.run(ask()).task_id == "task-1"
        assert len(service.received) == 2


def test_a_certificate_trusted_by_the_environment_is_trusted(
    connect: Connect, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.path))
    with Loopback(task_answer(), tls=certificate.server) as service:
        connect(service.url)
        assert asyncio.run(ask()).task_id == "task-1"


def test_a_query_that_gets_no_answer_in_time_is_a_passing_fault(connect: Connect) -> None:
    with Loopback(Fault.SILENT) as service:
        connect(service.url, read_timeout=0.3)
        with pytest.raises(ServiceUnavailableError, match="got no answer"):
            asyncio.run(ask())


def test_neither_certificates_nor_secrets_are_read_in_the_event_loop(
    connect: Connect, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    monkeypatch.setattr(settings_module, "mask_secret", lambda _: threads.append(threading.get_ident()))
    connect(ca_bundle=str(certificate.path), proxies="http://user:pass@proxy.example:3128")
    create = ssl.create_default_context

    def watched(**where: Any) -> ssl.SSLContext:
        threads.append(threading.get_ident())
        return create(**where)

    monkeypatch.setattr(ssl, "create_default_context", watched)

    async def make() -> None:
        await (await AsyncKlingClient.from_connection("kling_default")).close()

    asyncio.run(make())
    assert len(threads) >= 2
    assert threading.get_ident() not in threads


# One client for all


def test_users_of_a_connection_share_one_lookup_and_few_connections(
    connect: Connect, lookups: list[str]
) -> None:
    users = 1000

    async def all_ask() -> list[Any]:
        return await asyncio.gather(*(ask(f"task-{number}") for number in range(users)))

    for scale in (
        1,
        4,
        16,
    ):  # what is wrong is so at each; a machine that is too busy for one has time in the next
        lookups.clear()
        with Loopback(script=of_asked_task(), delay=0.5 * scale) as service:
            # Queueing takes longer than a query may: 10 rounds of half a second against 4 s.
            connect(service.url, connect_timeout=1 * scale, read_timeout=3 * scale)
            try:
                tasks = asyncio.run(all_ask())
            except (ServiceUnavailableError, UnreachableError):
                if scale == 16:
                    raise
                continue
        assert [task.task_id for task in tasks] == [f"task-{number}" for number in range(users)]
        assert len(service.received) == users
        assert service.most_open <= MAX_CONNECTIONS
        assert service.connections <= MAX_CONNECTIONS
        assert lookups == ["kling_default"]
        break


def run_with(service: Loopback, connect: Connect, story: Callable[[], Coroutine[Any, Any, T]]) -> T:
    connect(service.url)
    return asyncio.run(story())


async def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < until, "it did not come about"
        await asyncio.sleep(0.01)


def test_the_last_one_out_closes_the_connections(connect: Connect, lookups: list[str]) -> None:
    with Loopback(script=of_asked_task()) as service:

        async def story() -> None:
            async with shared_client("kling_default") as first:
                await first.get_task("a")
                async with shared_client("kling_default") as second:
                    assert second is first
                await first.get_task("b")
                assert service.open == 1
            await eventually(lambda: service.open == 0)
            async with shared_client("kling_default") as later:
                assert later is not first
                await later.get_task("c")

        run_with(service, connect, story)
        assert service.connections == 2
    assert lookups == ["kling_default"] * 2


def test_each_connection_has_a_client_of_its_own(connect: Connect, lookups: list[str]) -> None:
    with Loopback(script=of_asked_task()) as one, Loopback(script=of_asked_task()) as two:
        connect(one.url)
        connect(two.url, conn_id="kling_other", password="sk_other")

        async def story() -> None:
            await asyncio.gather(ask("a"), ask("b", "kling_other"))

        asyncio.run(story())
        assert one.received[0].key == f"Bearer {KEY}"
        assert two.received[0].key == "Bearer sk_other"
    assert sorted(lookups) == ["kling_default", "kling_other"]


def test_each_event_loop_has_a_client_of_its_own(connect: Connect) -> None:
    with Loopback(script=of_asked_task()) as service:
        connect(service.url)
        for _ in range(2):
            assert asyncio.run(ask("a")).task_id == "a"
        assert service.connections == 2


def test_a_failed_lookup_is_made_again(
    connect: Connect, failing_lookups: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Loopback(script=of_asked_task()) as service:
        connect(service.url)

        async def story() -> None:
            with monkeypatch.context():
                asked = failing_lookups(RuntimeError("the API server is away"))
                outcomes = await asyncio.gather(*(ask() for _ in range(3)), return_exceptions=True)
                assert [type(outcome) for outcome in outcomes] == [ConnectionLookupError] * 3
                assert len(asked) == 3
            monkeypatch.undo()
            connect(service.url)
            assert (await ask("a")).task_id == "a"

        asyncio.run(story())


@pytest.mark.usefixtures("airflow_db")
def test_a_connection_that_is_unusable_is_told_and_corrected(connect: Connect) -> None:
    with Loopback(script=of_asked_task()) as service:

        async def story() -> None:
            with pytest.raises(ConnectionSettingsError, match="airflow connections add kling_default"):
                await ask()
            connect(service.url, password="Bearer x")
            with pytest.raises(ConnectionSettingsError, match="begins with 'Bearer'"):
                await ask()
            connect(service.url, ca_bundle="/not/there.pem")
            with pytest.raises(ConnectionSettingsError, match="ca_bundle"):
                await ask()
            connect(service.url)
            await ask()

        asyncio.run(story())


def test_a_key_corrected_in_the_connection_serves_those_who_come_next(
    connect: Connect, lookups: list[str]
) -> None:
    def script(request: Any) -> Answer:
        return of_asked_task()(request) if request.key == "Bearer sk_new" else Answer(401, {"code": 401})

    with Loopback(script=script) as service:
        connect(service.url, password="sk_old")

        async def story() -> None:
            async with shared_client("kling_default") as old:  # someone who waits on all the while
                connect(service.url, password="sk_new")
                with pytest.raises(KeyRefusedError):
                    await ask("a")
                for task_id in ("b", "c"):
                    async with shared_client("kling_default") as new:
                        assert new is not old
                        assert (await new.get_task(task_id)).task_id == task_id
                with pytest.raises(KeyRefusedError):
                    await old.get_task("d")
            await eventually(lambda: service.open == 0)

        asyncio.run(story())
    assert lookups == ["kling_default"] * 3


def test_a_video_that_is_not_known_is_no_reason_for_another_lookup(
    connect: Connect, lookups: list[str]
) -> None:
    with Loopback(Answer(404, {"code": 404}), Answer(503), Answer(429), task_answer()) as service:

        async def story() -> None:
            async with shared_client("kling_default"):
                for status in (404, 503, 429):
                    with pytest.raises(ServiceError, match=str(status)):
                        await ask()
                assert (await ask()).task_id == "task-1"

        run_with(service, connect, story)
    assert lookups == ["kling_default"]


def test_one_who_is_cancelled_takes_nobody_along(connect: Connect, lookups: list[str]) -> None:
    with Loopback(script=of_asked_task(), delay=0.3) as service:

        async def story() -> None:
            users = [asyncio.create_task(ask(f"task-{number}")) for number in range(20)]
            await asyncio.sleep(0)
            users[0].cancel()  # the first one, who is at the look-up
            await eventually(lambda: len(service.received) >= 5)
            users[5].cancel()
            users[19].cancel()
            outcomes = await asyncio.gather(*users, return_exceptions=True)
            assert [
                number for number, outcome in enumerate(outcomes) if isinstance(outcome, BaseException)
            ] == [0, 5, 19]
            assert all(isinstance(outcomes[number], asyncio.CancelledError) for number in (0, 5, 19))
            await eventually(lambda: service.open == 0)

        run_with(service, connect, story)


def test_any_order_of_coming_and_going_leaves_nothing_open(connect: Connect) -> None:
    dice = random.Random(20260101)
    with Loopback(script=of_asked_task()) as service:

        async def user() -> None:
            for _ in range(dice.randrange(1, 4)):
                async with shared_client("kling_default") as client:
                    await asyncio.sleep(dice.choice([0, 0.001, 0.01]))
                    await client.get_task("a")

        async def story() -> None:
            users = [asyncio.create_task(user()) for _ in range(50)]
            for chosen in dice.sample(users, 15):
                await asyncio.sleep(dice.choice([0, 0.002]))
                chosen.cancel()
            outcomes = await asyncio.gather(*users, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} <= {type(None), asyncio.CancelledError}
            await eventually(lambda: service.open == 0)

        run_with(service, connect, story)
