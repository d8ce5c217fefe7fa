from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable, Iterator
from decimal import Decimal
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_kling.api.errors import (
    BadRequestError,
    ConnectionLookupError,
    ConnectionSettingsError,
    DownloadError,
    KeyRefusedError,
    LostContactError,
    NoCreditsError,
    RateLimitedError,
    ResultExpiredError,
    ServiceError,
    ServiceUnavailableError,
    TaskFailedError,
    TaskNotFoundError,
    TaskTimeoutError,
    UnknownSubmissionError,
    UnreachableError,
    UnreadableAnswerError,
)
from airflow_provider_kling.api.request import VideoRequest
from airflow_provider_kling.api.task import TaskState
from airflow_provider_kling.hooks.kling import SUBMIT_TRIES, UPLOAD_TRIES, KlingHook
from airflow_provider_kling.hooks.settings import MAX_PATIENCE, user_agent
from airflow_provider_kling.hooks.sync_client import CHUNK_BYTES, GET_TRIES

from .conftest import KEY, Certificate, Clock, Connect
from .loopback import Answer, Fault, Loopback, Received, Reply, refused_port, task_answer

HTML = Answer(502, b"<html><h1>Bad gateway</h1></html>", {"Content-Type": "text/html"})
CREATED = task_answer("pending")
VIDEO = {"Content-Type": "video/mp4"}


@pytest.fixture
def hook(connect: Connect) -> Iterator[Callable[..., KlingHook]]:
    """Make a hook for a server, or for a URL."""
    made: list[KlingHook] = []

    def make(server: Loopback | str, **extra: Any) -> KlingHook:
        connect(server if isinstance(server, str) else server.url, **extra)
        made.append(KlingHook())
        return made[-1]

    yield make
    for each in made:
        each.close()


MakeHook = Callable[..., KlingHook]


def a_request() -> VideoRequest:
    return VideoRequest(prompt="a red kite over the dunes")


# Asking for a video: paid each time, so made once


def test_a_submit_is_one_post_with_the_key_and_the_body(hook: MakeHook) -> None:
    with Loopback(CREATED) as service:
        task = hook(service).submit(a_request())
    [post] = service.received
    assert (task.task_id, task.state) == ("task-1", TaskState.PENDING)
    assert (post.method, post.target) == ("POST", "/api/v1/video/generations")
    assert post.key == f"Bearer {KEY}"
    assert post.json() == {"model": "kling-v3-omni", "prompt": "a red kite over the dunes"}
    assert post.headers["content-type"] == "application/json"
    assert post.headers["user-agent"] == user_agent()


@pytest.mark.parametrize(
    "reply",
    [
        Answer(500, {"code": 500, "msg": "internal"}),
        Answer(502, {"code": 502}),
        Answer(503, {"msg": "busy"}, {"Retry-After": "1"}),
        Answer(504, b""),
        Answer(408, b""),
        Answer(200, {"code": 503, "msg": "busy"}),
        HTML,
        Answer(200, b"<html>Welcome</html>", {"Content-Type": "text/html"}),
        Answer(200, b""),
        Answer(200, b"[]"),
        Answer(200, {"code": 200, "data": None}),
        Answer(200, b'{"code": 200, "data": {"taskId"', promised=100),
        Answer(200, b"{}", {"Content-Encoding": "gzip"}),
        b"HTTP/1.1 200 OK\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        Fault.CLOSED,
        Fault.RESET,
        Fault.SILENT,
    ],
)
def test_a_submit_without_a_usable_answer_is_never_repeated(
    hook: MakeHook, clock: Clock, reply: Reply
) -> None:
    with Loopback(reply) as service:
        with pytest.raises(UnknownSubmissionError, match="may have been created and may be billed") as raised:
            hook(service, read_timeout=0.5).submit(a_request())
        assert len(service.received) == 1
    assert clock.naps == []
    assert raised.value.outcome_unknown
    assert not raised.value.retryable


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Answer(400, {"code": 400, "msg": "prompt is missing"}), BadRequestError),
        (Answer(401, {"code": 401, "msg": "unauthorized"}), KeyRefusedError),
        (Answer(402, {"code": 402, "msg": "no credits"}), NoCreditsError),
        (Answer(403, b""), KeyRefusedError),
        (Answer(200, {"code": 402, "msg": "no credits"}), NoCreditsError),
        (Answer(404, b"<html>"), UnreadableAnswerError),
    ],
)
def test_a_refused_submit_is_told_at_once_and_not_repeated(
    hook: MakeHook, clock: Clock, reply: Answer, error: type[ServiceError]
) -> None:
    with Loopback(reply) as service:
        with pytest.raises(error) as raised:
            hook(service).submit(a_request())
        assert len(service.received) == 1
    assert clock.naps == []
    assert not raised.value.retryable


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirected_submit_is_not_followed(hook: MakeHook, status: int) -> None:
    with (
        Loopback(CREATED) as other,
        Loopback(Answer(status, b"", {"Location": f"{other.url}/api/v1/video/generations"})) as service,
    ):
        with pytest.raises(UnreadableAnswerError):
            hook(service).submit(a_request())
        assert [len(service.received), len(other.received)] == [1, 0]


def test_a_submit_that_is_turned_away_is_made_again_when_the_service_says(
    hook: MakeHook, clock: Clock
) -> None:
    with Loopback(Answer(429, {"code": 429}, {"Retry-After": "17"}), CREATED) as service:
        assert hook(service).submit(a_request()).task_id == "task-1"
        assert len(service.received) == 2
    assert clock.naps == [17]


def test_a_date_in_retry_after_is_honoured(hook: MakeHook, clock: Clock) -> None:
    turned_away = Answer(429, b"", {"Retry-After": formatdate(clock.now + 25, usegmt=True)})
    with Loopback(turned_away, CREATED) as service:
        hook(service).submit(a_request())
    assert clock.naps == [25]


@pytest.mark.parametrize("retry_after", [None, "0", "soon"])
def test_a_submit_backs_off_where_the_service_names_no_time(
    hook: MakeHook, clock: Clock, retry_after: str | None
) -> None:
    turned_away = Answer(429, b"", {"Retry-After": retry_after} if retry_after else {})
    with Loopback(turned_away) as service:
        with pytest.raises(RateLimitedError):
            hook(service).submit(a_request())
        assert len(service.received) == SUBMIT_TRIES
    assert 1 <= clock.naps[0] <= 2 <= clock.naps[1] <= 4


def test_nobody_waits_longer_than_a_minute_for_a_turn(hook: MakeHook, clock: Clock) -> None:
    with Loopback(Answer(429, b"", {"Retry-After": str(int(MAX_PATIENCE) + 1)})) as service:
        with pytest.raises(RateLimitedError) as raised:
            hook(service).submit(a_request())
        assert len(service.received) == 1
    assert clock.naps == []
    assert raised.value.retry_after == MAX_PATIENCE + 1


def test_a_submit_is_repeated_where_the_connection_was_refused(hook: MakeHook, clock: Clock) -> None:
    with pytest.raises(UnreachableError, match="was not sent and nothing was billed"):
        hook(f"http://127.0.0.1:{refused_port()}").submit(a_request())
    assert len(clock.naps) == SUBMIT_TRIES - 1


def test_a_submit_is_repeated_until_the_name_resolves(
    hook: MakeHook, clock: Clock, monkeypatch: pytest.MonkeyPatch, task_log: Callable[[], list[str]]
) -> None:
    asked: list[Any] = []
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host == "kling.test":
            asked.append(host)
            if len(asked) < SUBMIT_TRIES:
                raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
            host = "127.0.0.1"
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with Loopback(CREATED) as service:
        task = hook(f"http://kling.test:{service.port}").submit(a_request())
        assert len(service.received) == 1
    assert task.task_id == "task-1"
    assert len(clock.naps) == SUBMIT_TRIES - 1
    told = [line for line in task_log() if "Asking again in" in line]
    assert len(told) == SUBMIT_TRIES - 1
    assert all("Temporary failure in name resolution" in line for line in told)


def test_a_submit_over_tls_that_never_came_about_is_repeated(
    hook: MakeHook, clock: Clock, certificate: Certificate
) -> None:
    with Loopback(CREATED, tls=certificate.server) as service:
        with pytest.raises(
            UnreachableError, match=r"TLS trouble at the create call: .*certificate verify failed"
        ):
            hook(service).submit(a_request())
        assert service.received == []
    assert len(clock.naps) == SUBMIT_TRIES - 1


def test_before_each_post_its_maker_is_told_and_can_stop_it(hook: MakeHook, clock: Clock) -> None:
    posts_seen: list[int] = []

    def before_post() -> None:
        posts_seen.append(len(service.received))
        if len(posts_seen) == 3:
            raise TimeoutError("not yours any more")

    with Loopback(Answer(429)) as service:
        with pytest.raises(TimeoutError, match="not yours any more"):
            hook(service).submit(a_request(), before_post=before_post)
        assert posts_seen == [0, 1, 2]
        assert len(service.received) == 2


@pytest.mark.usefixtures("clock")
def test_a_server_that_speaks_no_tls_gets_nothing(hook: MakeHook) -> None:
    with Loopback(Fault.GREETING) as service:
        with pytest.raises(UnreachableError, match="TLS trouble"):
            hook(service.url.replace("http:", "https:")).submit(a_request())
        assert service.connections == SUBMIT_TRIES


@pytest.mark.usefixtures("clock")
def test_a_handshake_that_never_ends_gets_nothing(hook: MakeHook) -> None:
    with Loopback(Fault.SILENT) as service:
        with pytest.raises(UnreachableError, match="timed out"):
            hook(service.url.replace("http:", "https:"), read_timeout=0.2, connect_timeout=0.2).submit(
                a_request()
            )
        assert service.connections == SUBMIT_TRIES


@pytest.mark.usefixtures("clock")
def test_a_handshake_that_is_cut_off_gets_nothing(hook: MakeHook) -> None:
    with Loopback(Fault.SLAMMED) as service:
        with pytest.raises(UnreachableError):
            hook(service.url.replace("http:", "https:")).submit(a_request())
        assert service.connections == SUBMIT_TRIES


@pytest.mark.usefixtures("clock")
def test_a_submit_to_a_server_that_hangs_up_unread_is_not_taken_for_done(hook: MakeHook) -> None:
    # Whether any of it was under way by then is a race; that it is told as one of these two is not.
    with Loopback(Fault.SLAMMED) as service, pytest.raises((UnknownSubmissionError, UnreachableError)):
        hook(service).submit(a_request())


def test_a_handshake_that_is_cut_off_after_the_post_leaves_the_outcome_unknown(
    hook: MakeHook, clock: Clock, certificate: Certificate
) -> None:
    with Loopback(Fault.RESET, tls=certificate.server) as service:
        with pytest.raises(UnknownSubmissionError):
            hook(service, ca_bundle=str(certificate.path)).submit(a_request())
        assert len(service.received) == 1
    assert clock.naps == []


def test_a_large_body_arrives_whole(hook: MakeHook) -> None:
    image = "iVBORw0KGgo" + "A" * (3 * CHUNK_BYTES // 4 * 4 + 1)
    with Loopback(CREATED) as service:
        hook(service).submit(VideoRequest(prompt="a kite", image_list=[{"image_url": image}]))
        assert service.received[0].json()["image_list"] == [{"image_url": image}]


# Asking for a task: free, and repeated


def test_a_query_names_the_task_and_sends_the_key(hook: MakeHook) -> None:
    with Loopback(task_answer("completed", "https://r2.example/v.mp4", task_id="a/b&c")) as service:
        task = hook(service).get_task("a/b&c")
    [query] = service.received
    assert query.target == "/api/v1/video/generations?task_id=a%2Fb%26c"
    assert query.key == f"Bearer {KEY}"
    assert task.video_url == "https://r2.example/v.mp4"


@pytest.mark.parametrize(
    "trouble", [Answer(status) for status in (429, 500, 502, 503, 504)] + [Fault.CLOSED, Fault.RESET]
)
def test_a_query_is_repeated_on_passing_faults(hook: MakeHook, clock: Clock, trouble: Reply) -> None:
    with Loopback(trouble, trouble, trouble, task_answer("processing")) as service:
        assert hook(service).get_task("task-1").state is TaskState.PROCESSING
        assert len(service.received) == 4
    assert all(nap < 5 for nap in clock.naps)


@pytest.mark.parametrize("status", [429, 503])
def test_a_query_waits_as_long_as_the_service_asks(hook: MakeHook, clock: Clock, status: int) -> None:
    with Loopback(Answer(status, b"", {"Retry-After": "42"}), task_answer()) as service:
        hook(service).get_task("task-1")
    assert clock.naps == [42]


@pytest.mark.parametrize("retry_after", ["soon", "1.5", "-3", "Wed, 99 Foo"])
def test_an_unreadable_retry_after_does_not_end_a_query(
    hook: MakeHook, clock: Clock, retry_after: str
) -> None:
    with Loopback(Answer(429, b"", {"Retry-After": retry_after}), task_answer()) as service:
        assert hook(service).get_task("task-1").task_id == "task-1"
        assert len(service.received) == 2
    assert all(nap < 5 for nap in clock.naps)


def test_a_query_is_not_held_up_for_longer_than_a_minute(hook: MakeHook, clock: Clock) -> None:
    with Loopback(Answer(429, {"code": 429}, {"Retry-After": "61"})) as service:
        with pytest.raises(RateLimitedError) as raised:
            hook(service).get_task("task-1")
        assert len(service.received) == 1
    assert clock.naps == []
    assert raised.value.retry_after == 61


@pytest.mark.usefixtures("clock")
def test_a_query_is_given_up_after_some_tries(hook: MakeHook) -> None:
    with Loopback(Answer(503, {"msg": "under maintenance"})) as service:
        with pytest.raises(ServiceUnavailableError, match="under maintenance"):
            hook(service).get_task("task-1")
        assert len(service.received) == GET_TRIES


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Answer(400, {"code": 400}), BadRequestError),
        (Answer(401, {"code": 401}), KeyRefusedError),
        (Answer(402, {"code": 402}), NoCreditsError),
        (Answer(404, {"code": 404}), TaskNotFoundError),
        (Answer(200, b"<html>"), UnreadableAnswerError),
        (task_answer(task_id="another-task"), UnreadableAnswerError),
    ],
)
def test_a_query_is_not_repeated_where_that_cannot_help(
    hook: MakeHook, clock: Clock, reply: Answer, error: type[ServiceError]
) -> None:
    with Loopback(reply) as service:
        with pytest.raises(error):
            hook(service).get_task("task-1")
        assert len(service.received) == 1
    assert clock.naps == []


@pytest.mark.parametrize(
    ("reply", "error"), [(Answer(503), ServiceUnavailableError), (Answer(429), RateLimitedError)]
)
def test_who_has_a_waiting_policy_of_his_own_asks_once(
    hook: MakeHook, clock: Clock, reply: Answer, error: type[ServiceError]
) -> None:
    with Loopback(reply) as service:
        with pytest.raises(error):
            hook(service).query_task("task-1")
        assert len(service.received) == 1
    assert clock.naps == []


@pytest.mark.parametrize("host", ["https://a..b", f"https://{'x' * 70}.example"])
def test_a_host_that_can_be_no_name_is_an_error_of_ours(hook: MakeHook, clock: Clock, host: str) -> None:
    with pytest.raises(UnreachableError, match="label empty or too long"):
        hook(host).query_task("task-1")
    with pytest.raises(UnreachableError):
        hook(host).submit(a_request())


def test_a_query_that_gets_no_answer_in_time_is_a_passing_fault(hook: MakeHook) -> None:
    with Loopback(Fault.SILENT) as service, pytest.raises(ServiceUnavailableError, match="timed out"):
        hook(service, read_timeout=0.3).query_task("task-1")


def test_a_connection_serves_several_calls(hook: MakeHook) -> None:
    with Loopback(task_answer()) as service:
        asking = hook(service)
        for _ in range(3):
            asking.query_task("task-1")
        assert service.connections == 1
        asking.close()
        assert asking.query_task("task-1").task_id == "task-1"
        assert service.connections == 2


# Where the key goes


def test_a_query_redirected_to_another_host_goes_without_the_key(hook: MakeHook) -> None:
    with Loopback(task_answer()) as other:
        elsewhere = other.url.replace("127.0.0.1", "localhost") + "/moved"
        with Loopback(Answer(302, b"", {"Location": elsewhere})) as service:
            hook(service).get_task("task-1")
            assert service.received[0].key == f"Bearer {KEY}"
        [query] = other.received
    assert query.target == "/moved"
    assert query.key is None
    assert KEY not in repr(query)


def test_a_query_redirected_to_another_port_goes_without_the_key(hook: MakeHook) -> None:
    with Loopback(task_answer()) as other, Loopback(Answer(307, b"", {"Location": other.url})) as service:
        hook(service).get_task("task-1")
        assert other.received[0].key is None


def test_a_query_redirected_on_its_host_keeps_the_key(hook: MakeHook) -> None:
    with Loopback(Answer(307, b"", {"Location": "/moved"}), task_answer()) as service:
        hook(service).get_task("task-1")
        assert [query.key for query in service.received] == [f"Bearer {KEY}"] * 2


@pytest.fixture
def netrc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let ``.netrc`` have a password for every host."""
    path = tmp_path / "netrc"
    path.write_text("default login someone password else\n")
    path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))


@pytest.mark.usefixtures("netrc")
def test_a_netrc_does_not_replace_the_key(hook: MakeHook) -> None:
    with Loopback(Answer(307, b"", {"Location": "/moved"}), task_answer()) as service:
        hook(service).get_task("task-1")
        service.replies_from_now_on(CREATED)
        hook(service).submit(a_request())
        assert [request.key for request in service.received] == [f"Bearer {KEY}"]


@pytest.mark.usefixtures("netrc")
def test_a_netrc_gets_into_no_redirect_and_no_download(hook: MakeHook, tmp_path: Path) -> None:
    with Loopback(Answer(307, b"", {"Location": "/moved"}), task_answer()) as service:
        hook(service).get_task("task-1")
        assert [query.key for query in service.received] == [f"Bearer {KEY}"] * 2
        service.replies_from_now_on(Answer(302, b"", {"Location": "/file"}), Answer(200, b"film", VIDEO))
        hook(service).download(f"{service.url}/v.mp4", tmp_path / "v.mp4")
        assert [fetch.key for fetch in service.received] == [None, None]


def test_the_connections_proxy_is_used_and_not_the_environments(
    hook: MakeHook, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Loopback(task_answer()) as right, Loopback(task_answer()) as wrong:
        monkeypatch.setenv("http_proxy", wrong.url)
        asking = hook("http://kling.test", proxies=right.url)
        asking.get_task("task-1")
        right.replies_from_now_on(Answer(200, b"film", VIDEO))
        asking.download("http://results.test/v.mp4", tmp_path / "v.mp4")
        assert right.received[0].target == "http://results.test/v.mp4"
        assert wrong.connections == 0


def test_the_environments_proxy_is_used_where_the_connection_names_none(
    hook: MakeHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Loopback(task_answer()) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        hook("http://kling.test").get_task("task-1")
        assert proxy.received[0].target == "http://kling.test/api/v1/video/generations?task_id=task-1"


def test_a_proxy_that_is_away_means_that_nothing_was_sent(hook: MakeHook, clock: Clock) -> None:
    gone = f"http://127.0.0.1:{refused_port()}"
    with pytest.raises(UnreachableError):
        hook("http://kling.test", proxies=gone).submit(a_request())
    with pytest.raises(UnreachableError):
        hook("https://kling.test", proxies=gone).query_task("task-1")


def test_a_certificate_can_be_trusted_or_left_unchecked(hook: MakeHook, certificate: Certificate) -> None:
    with Loopback(task_answer(), tls=certificate.server) as service:
        assert hook(service, ca_bundle=str(certificate.path)).query_task("task-1").task_id == "task-1"
        with pytest.warns(Warning, match="Unverified HTTPS request"):
            assert hook(service, verify=False).query_task("task-1").task_id == "task-1"


def test_a_bundle_of_the_environment_does_not_replace_the_connections(
    hook: MakeHook, certificate: Certificate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "not-there.pem"))
    with Loopback(task_answer(), tls=certificate.server) as service:
        assert hook(service, ca_bundle=str(certificate.path)).query_task("task-1").task_id == "task-1"


# Waiting


def test_a_wait_ends_with_the_video(hook: MakeHook, clock: Clock) -> None:
    link = "https://r2.example/v.mp4"
    replies = [task_answer("pending"), Answer(503), task_answer("processing"), task_answer("completed", link)]
    with Loopback(*replies) as service:
        task = hook(service).wait("task-1", poll_interval=20)
        assert len(service.received) == 4
    assert task.video_url == link
    assert [18 <= nap <= 22 for nap in clock.naps] == [True] * 3


def test_a_wait_ends_at_its_deadline(hook: MakeHook, clock: Clock) -> None:
    end = clock.now + 95
    with (
        Loopback(task_answer("processing")) as service,
        pytest.raises(TaskTimeoutError, match="its state is processing"),
    ):
        hook(service).wait("task-1", timeout=95, poll_interval=30)
    assert clock.now == pytest.approx(end)


def test_a_wait_ends_where_the_video_failed(hook: MakeHook) -> None:
    failed = task_answer("failed", failMsg="upstream is busy", failCode="UPSTREAM_BUSY")
    with Loopback(failed) as service, pytest.raises(TaskFailedError, match="upstream is busy"):
        hook(service).wait("task-1")


def test_a_wait_bears_as_many_failures_as_airflow_is_configured_to(
    hook: MakeHook, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__KLING__MAX_FAILED_QUERIES", "2")
    with Loopback(Answer(503)) as service:
        with pytest.raises(LostContactError, match="2 queries in a row failed"):
            hook(service).wait("task-1")
        assert len(service.received) == 2
    assert len(clock.naps) == 1


# Fetching the video

FILM = os.urandom(2 * CHUNK_BYTES + 12345)


def left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*") if path.is_file())


def test_a_video_arrives_whole_in_a_directory_that_was_not_there(hook: MakeHook, tmp_path: Path) -> None:
    target = tmp_path / "films" / "2026" / "kite.mp4"
    with Loopback(Answer(200, FILM, VIDEO)) as service:
        assert hook(service).download(f"{service.url}/v.mp4", str(target)) == target
    assert target.read_bytes() == FILM
    assert left_in(tmp_path) == ["kite.mp4"]


def test_a_download_sends_no_key_and_tells_who_asks(hook: MakeHook, tmp_path: Path) -> None:
    with Loopback(Answer(200, FILM, VIDEO)) as service:
        hook(service).download(f"{service.url}/v.mp4?X-Signature=abc", tmp_path / "v.mp4")
    [fetch] = service.received
    assert fetch.key is None
    assert KEY not in repr(fetch)
    assert fetch.target == "/v.mp4?X-Signature=abc"
    assert fetch.headers["user-agent"] == user_agent()


def test_a_video_appears_under_its_name_only_when_it_is_whole(
    hook: MakeHook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "kite.mp4"
    target.write_bytes(b"the one before")
    seen: list[bytes] = []
    replace = Path.replace

    def watched(self: Path, other: Path) -> Path:
        seen.append(target.read_bytes())
        assert self.read_bytes() == FILM
        return replace(self, other)

    monkeypatch.setattr(Path, "replace", watched)
    with Loopback(Answer(200, FILM, VIDEO)) as service:
        hook(service).download(f"{service.url}/v.mp4", target)
    assert seen == [b"the one before"]
    assert target.read_bytes() == FILM


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("reply", "error", "text"),
    [
        (Answer(200, FILM, VIDEO, promised=len(FILM) + 1), DownloadError, "could not be read"),
        (Answer(200, b"", VIDEO), DownloadError, "is empty"),
        (
            Answer(200, b"<html>Sign in</html>", {"Content-Type": "text/html; charset=utf-8"}),
            DownloadError,
            "text/html",
        ),
        (Answer(200, {"error": "gone"}), DownloadError, "application/json"),
        (Answer(200, b"<Error/>", {"Content-Type": "application/xml"}), DownloadError, "application/xml"),
        (Answer(206, FILM, VIDEO), DownloadError, "code 206"),
        (Answer(503, b"", VIDEO), DownloadError, "code 503"),
        (Answer(403, b"<Error/>"), ResultExpiredError, "is dead"),
        (Answer(404, b""), ResultExpiredError, "is dead"),
        (Answer(410, b""), ResultExpiredError, "is dead"),
        (Fault.CLOSED, DownloadError, "could not be read"),
        (b"junk\r\n\r\n", DownloadError, "could not be read"),
    ],
)
def test_what_is_no_whole_video_leaves_no_file(
    hook: MakeHook, tmp_path: Path, reply: Reply, error: type[DownloadError], text: str
) -> None:
    with Loopback(reply) as service, pytest.raises(error, match=text) as raised:
        hook(service).download(f"{service.url}/v.mp4?X-Signature=abc", tmp_path / "v.mp4")
    assert left_in(tmp_path) == []
    assert type(raised.value) is error
    assert raised.value.retryable is (error is DownloadError)
    assert f"{service.url}/v.mp4" in str(raised.value)
    assert "X-Signature" not in str(raised.value)
    assert "The video was billed" in str(raised.value)


def test_a_failed_download_leaves_the_file_that_was_there(hook: MakeHook, tmp_path: Path) -> None:
    target = tmp_path / "v.mp4"
    target.write_bytes(b"the one before")
    with Loopback(Answer(200, FILM, VIDEO, promised=len(FILM) + 1)) as service, pytest.raises(DownloadError):
        hook(service).download(f"{service.url}/v.mp4", target)
    assert target.read_bytes() == b"the one before"
    assert left_in(tmp_path) == ["v.mp4"]


def test_a_download_is_repeated_on_passing_faults(hook: MakeHook, clock: Clock, tmp_path: Path) -> None:
    with Loopback(Answer(503, b"", {"Retry-After": "9"}), Fault.CLOSED, Answer(200, FILM, VIDEO)) as service:
        path = hook(service).download(f"{service.url}/v.mp4", tmp_path / "v.mp4")
    assert path.read_bytes() == FILM
    assert clock.naps[0] == 9


@pytest.mark.parametrize("media_type", ["video/quicktime", "application/octet-stream", ""])
def test_a_video_may_be_told_as_plain_bytes(hook: MakeHook, tmp_path: Path, media_type: str) -> None:
    with Loopback(Answer(200, FILM, {"Content-Type": media_type})) as service:
        assert hook(service).download(f"{service.url}/v.mp4", tmp_path / "v.mp4").read_bytes() == FILM


@pytest.mark.parametrize("url", ["not a link", "ftp://files.example/v.mp4", "http://", "https://a..b/v.mp4"])
def test_what_is_no_link_is_an_error_of_ours(hook: MakeHook, tmp_path: Path, url: str, clock: Clock) -> None:
    with pytest.raises(DownloadError, match="could not be read"):
        hook("http://127.0.0.1:1").download(url, tmp_path / "v.mp4")


def test_a_place_where_nothing_can_be_written_is_named(hook: MakeHook, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file, no directory")
    (tmp_path / "v.mp4").mkdir()
    with Loopback(Answer(200, FILM, VIDEO)) as service:
        for target in (tmp_path / "taken" / "v.mp4", tmp_path / "v.mp4"):
            with pytest.raises(DownloadError, match=f"could not be written to {target}"):
                hook(service).download(f"{service.url}/v.mp4", target)
    assert left_in(tmp_path) == ["taken"]


def test_a_full_disk_leaves_no_file(hook: MakeHook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, other: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with Loopback(Answer(200, FILM, VIDEO)) as service, pytest.raises(DownloadError, match="No space left"):
        hook(service).download(f"{service.url}/v.mp4", tmp_path / "v.mp4")
    assert left_in(tmp_path) == []


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    ("reply", "is_there"),
    [
        (Answer(200, FILM, VIDEO), True),
        (Answer(403), False),
        (Answer(404), False),
        (Answer(410), False),
        (Answer(503), True),
        (Answer(200, b"<html>", {"Content-Type": "text/html"}), True),
        (Fault.CLOSED, True),
    ],
)
def test_only_the_services_word_makes_a_result_gone(hook: MakeHook, reply: Reply, *, is_there: bool) -> None:
    with Loopback(reply) as service:
        assert hook(service).result_is_there(f"{service.url}/v.mp4") is is_there
        assert service.received[0].key is None


# Uploads


def test_an_upload_sends_the_file_and_returns_its_url(hook: MakeHook, tmp_path: Path) -> None:
    image = tmp_path / "first.png"
    image.write_bytes(b"\x89PNG...")
    with Loopback(
        Answer(body={"code": 200, "data": {"publicUrl": "https://r2.example/first.png"}})
    ) as service:
        assert hook(service).upload_file(str(image)) == "https://r2.example/first.png"
    [post] = service.received
    assert (post.method, post.target) == ("POST", "/api/v1/files")
    assert post.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert b'name="file"; filename="first.png"' in post.body
    assert b"\x89PNG..." in post.body
    assert post.key == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("reply", "error", "calls"),
    [
        (Answer(413, {"msg": "too large"}), BadRequestError, 1),
        (Answer(500, b""), ServiceUnavailableError, UPLOAD_TRIES),
        (Answer(200, {"code": 200, "data": {}}), UnreadableAnswerError, 1),
        (Fault.CLOSED, ServiceUnavailableError, UPLOAD_TRIES),
    ],
)
def test_an_upload_that_is_not_taken_costs_nothing(
    hook: MakeHook, clock: Clock, tmp_path: Path, reply: Reply, error: type[ServiceError], calls: int
) -> None:
    image = tmp_path / "first.png"
    image.write_bytes(b"...")
    with Loopback(reply) as service:
        with pytest.raises(error) as raised:
            hook(service).upload_file(image)
        assert len(service.received) == calls
    assert not raised.value.outcome_unknown


# What the service may not offer

EXTRAS: list[tuple[Callable[[KlingHook], Any], str]] = [
    (KlingHook.get_balance, "balance"),
    (lambda hook: hook.get_cost("task-1"), "record"),
    (KlingHook.list_models, "models"),
]


@pytest.mark.parametrize(("ask", "name"), EXTRAS)
@pytest.mark.parametrize(
    "reply",
    [
        Answer(404, {"code": 404, "msg": "not found"}),
        Answer(200, {"code": 404, "msg": "not found"}),
        Answer(404, b"<html>"),
        Answer(200, b"<html>"),
        Answer(200, {"code": 200, "data": {"unheard": "of"}}),
    ],
)
def test_a_call_that_the_service_does_not_offer_is_told_once(
    hook: MakeHook, task_log: Callable[[], list[str]], ask: Any, name: str, reply: Answer
) -> None:
    with Loopback(reply) as service:
        asking = hook(service)
        assert [ask(asking), ask(asking)] == [None, None]
        assert len(service.received) == 2
    told = [
        line
        for line in task_log()
        if f"The service does not offer the {name} call; going on without it." in line
    ]
    assert len(told) == 1


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(("ask", "name"), EXTRAS)
def test_an_extra_call_that_fails_is_no_call_that_is_not_offered(hook: MakeHook, ask: Any, name: str) -> None:
    with Loopback(Answer(503)) as service, pytest.raises(ServiceUnavailableError):
        ask(hook(service))
    with Loopback(Answer(401)) as service, pytest.raises(KeyRefusedError):
        ask(hook(service))


def test_balance_cost_and_models_are_read(hook: MakeHook) -> None:
    def script(request: Received) -> Answer:
        data: Any = {
            "/api/v1/balance": {"balance": 12.5, "total": "20", "frozen": 7.5, "currency": "USD"},
            "/api/v1/records/a%2Fb": {"settled": True, "credits": 0.3165, "currency": "USD"},
            "/api/v1/models": [{"id": "kling-v3-omni"}, {"id": "kling-video-o1"}],
        }[request.target]
        return Answer(body={"code": 200, "data": data})

    with Loopback(script=script) as service:
        asking = hook(service)
        balance, cost, models = asking.get_balance(), asking.get_cost("a/b"), asking.list_models()
    assert balance is not None
    assert (balance.available, balance.frozen) == (Decimal("12.5"), Decimal("7.5"))
    assert cost is not None
    assert (cost.amount, cost.settled, cost.task_id) == (Decimal("0.3165"), True, "a/b")
    assert models == ["kling-v3-omni", "kling-video-o1"]
    assert all(request.key == f"Bearer {KEY}" for request in service.received)


# The connection and its test


def test_a_wait_bears_a_connection_that_cannot_be_looked_up_for_a_while(
    hook: MakeHook, clock: Clock, failing_lookups: Any
) -> None:
    with Loopback(task_answer(state="completed", resultUrls=["https://x/y.mp4"])) as service:
        asking = hook(service)
        failing_lookups(RuntimeError("the API server is away"), times=2)
        assert asking.wait("task-1", poll_interval=20).video_url == "https://x/y.mp4"
        assert len(clock.naps) == 2


def test_a_wait_with_a_connection_that_cannot_be_used_ends_at_once(connect: Connect, clock: Clock) -> None:
    connect(password="")
    with pytest.raises(ConnectionSettingsError, match="it has no key"):
        KlingHook().wait("task-1")
    assert clock.naps == []


def test_nothing_is_looked_up_before_the_first_call(failing_lookups: Any) -> None:
    asked = failing_lookups(AssertionError("looked up"))
    hook = KlingHook("elsewhere")
    hook.close()
    assert asked == []
    with pytest.raises(ConnectionLookupError):
        hook.get_task("task-1")
    assert asked == ["elsewhere"]


def test_the_connection_is_looked_up_once(hook: MakeHook, monkeypatch: pytest.MonkeyPatch) -> None:
    with Loopback(task_answer()) as service:
        asking = hook(service)
        asking.query_task("task-1")
        monkeypatch.delenv("AIRFLOW_CONN_KLING_DEFAULT")
        asking.query_task("task-1")
        assert len(service.received) == 2


@pytest.mark.usefixtures("airflow_db")
def test_a_missing_connection_is_told_with_how_to_make_it() -> None:
    with pytest.raises(ConnectionSettingsError, match="airflow connections add not_there"):
        KlingHook("not_there").get_task("task-1")


def is_balance(request: Received) -> bool:
    return request.target.endswith("/balance")


def no_such_task(request: Received) -> Answer:
    if is_balance(request):
        return Answer(body={"code": 200, "data": {"balance": "12.50", "currency": "USD"}})
    return Answer(404, {"code": 404, "msg": "task not found"})


def test_a_connection_that_works_is_told_with_its_balance_free_of_charge(hook: MakeHook) -> None:
    with Loopback(script=no_such_task) as service:
        assert hook(service).test_connection() == (
            True,
            f"{service.url}/api/v1 takes the key. Balance: 12.50 USD.",
        )
    assert {request.method for request in service.received} == {"GET"}
    assert all(request.key == f"Bearer {KEY}" for request in service.received)


@pytest.mark.parametrize(
    "unknown", [Answer(200, {"code": 404, "msg": "no such task"}), Answer(400, {"msg": "bad task id"})]
)
@pytest.mark.parametrize(
    "balance",
    [Answer(404, b""), Answer(500, b""), Answer(401, {"msg": "no"}), Answer(200, b"<html>"), Fault.CLOSED],
)
def test_a_connection_works_without_a_balance_too(hook: MakeHook, unknown: Answer, balance: Reply) -> None:
    with Loopback(script=lambda request: balance if is_balance(request) else unknown) as service:
        assert hook(service).test_connection() == (True, f"{service.url}/api/v1 takes the key.")


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (Answer(401, {"code": 401, "msg": "invalid api key"}), "refuses the key"),
        (Answer(403, {"code": 403, "msg": "forbidden"}), "refuses the key"),
        (Answer(200, {"code": 401, "msg": "invalid api key"}), "refuses the key"),
        (Answer(404, b"<html>nginx</html>"), "it is not this service (HTTP 404)"),
        (Answer(400, b"what?"), "it is not this service (HTTP 400)"),
        (Answer(404, {"detail": "Not Found"}), "it is not this service (HTTP 404)"),
        (Answer(200, b"<html>Welcome to nginx!</html>"), "it begins: '<html>Welcome to nginx!</html>'"),
        (Answer(200, b""), "it is empty"),
        (Answer(200, [1, 2]), "not in the service's form"),
        (Answer(302, b"", {"Location": "ftp://files.example"}), "got no answer"),
        (Answer(402, {"code": 402, "msg": "no credits"}), "too few credits"),
        (Answer(429, b""), "no more requests"),
        (Answer(503, b"", {"Retry-After": "30"}), "503"),
        (Fault.CLOSED, "got no answer"),
        (b"SSH-2.0-OpenSSH\r\n", "got no answer"),
    ],
)
def test_a_connection_that_does_not_work_is_told_with_the_reason(
    hook: MakeHook, clock: Clock, reply: Reply, text: str
) -> None:
    with Loopback(reply) as service:
        works, told = hook(service).test_connection()
    assert not works
    assert text in told
    assert clock.naps == []
    assert {request.method for request in service.received} == {"GET"}


def test_a_connection_test_tells_apart_what_keeps_it_from_the_service(
    hook: MakeHook, certificate: Certificate, tmp_path: Path
) -> None:
    def told(*args: Any, **kwargs: Any) -> str:
        works, text = hook(*args, **kwargs).test_connection()
        assert not works
        return str(text)

    assert "could not be reached" in told(f"http://127.0.0.1:{refused_port()}")
    assert "could not be reached" in told(f"https://127.0.0.1:{refused_port()}")
    with Loopback(CREATED, tls=certificate.server) as service:
        assert "TLS trouble" in told(service)
        assert "certificate verify failed" in told(service)
    with Loopback(Fault.GREETING) as service:
        assert "TLS trouble" in told(service.url.replace("http", "https"))
    assert "airflow connections add" in told("", password="")
    assert "'kling_default', host:" in told("ftp://files.example")
    assert "'kling_default', ca_bundle:" in told("", ca_bundle=str(tmp_path / "not-there.pem"))


@pytest.mark.usefixtures("airflow_db")
def test_a_connection_test_without_a_connection_says_how_to_make_one() -> None:
    works, told = KlingHook("not_there").test_connection()
    assert not works
    assert "airflow connections add not_there" in told


def test_a_connection_test_never_raises(
    failing_lookups: Any, monkeypatch: pytest.MonkeyPatch, connect: Connect
) -> None:
    connect("https://kling.test")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: 1 / 0)
    assert KlingHook().test_connection() == (False, "ZeroDivisionError: division by zero")
    failing_lookups(RuntimeError("the API server is away"))
    works, told = KlingHook().test_connection()
    assert not works
    assert "the API server is away" in told


def test_a_connection_test_gives_up_in_time_whatever_the_connection_allows(
    hook: MakeHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float | None] = []
    set_limit = socket.socket.settimeout

    def settimeout(self: socket.socket, seconds: float | None) -> None:
        limits.append(seconds)
        set_limit(self, seconds)

    with Loopback(Fault.SILENT) as service:
        asking = hook(service, connect_timeout=20, read_timeout=20)
        monkeypatch.setattr(socket.socket, "settimeout", settimeout)
        works, told = asking.test_connection()
    assert not works
    assert "timed out" in told
    # At the most two calls, each with one limit for connecting and one for reading: under the 10 s of Airflow's UI.
    assert 0 < len(limits) <= 4
    assert sum(limit or 3600 for limit in limits) < 10
    assert len(service.received) == 1


def test_airflow_itself_can_test_the_connection(monkeypatch: pytest.MonkeyPatch, connect: Connect) -> None:
    from airflow.models.connection import Connection

    with Loopback(script=no_such_task) as service:
        connect(service.url)
        assert Connection(conn_id="kling_default", conn_type="kling").test_connection() == (
            True,
            f"{service.url}/api/v1 takes the key. Balance: 12.50 USD.",
        )


def test_a_task_in_the_services_words_survives_json(hook: MakeHook) -> None:
    with Loopback(
        task_answer("completed", resultJson=json.dumps({"resultUrls": ["https://r2.example/v.mp4"]}))
    ) as service:
        assert hook(service).get_task("task-1").result_urls == ("https://r2.example/v.mp4",)
