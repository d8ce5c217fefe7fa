"""Callbacks, as they arrive at a receiver."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from airflow_provider_kling.emulator import KlingEmulator
from tests.emulator.caller import Caller, eventually


@dataclass
class Receiver:
    """What a user's callback endpoint got, and what it answers; 200 when it has nothing else to say."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)
    holds: bool = False


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    got = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.headers.append(dict(self.headers.items()))
            got.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status = got.statuses.pop(0) if got.statuses else 200
            if got.holds:
                got.hold.wait(60)
            self.send_response(status)
            if status == 302:
                self.send_header("Location", got.url)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 256
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    got.url = f"http://127.0.0.1:{server.server_port}/hook"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield got
    finally:
        got.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()


def attempts(emulator: KlingEmulator) -> list[tuple[int, int | None]]:
    return [(sent.attempt, sent.status) for sent in emulator.ledger.callbacks()]


def wait_for_attempts(emulator: KlingEmulator, count: int) -> None:
    eventually(lambda: len(attempts(emulator)) == count)


def test_a_completed_task_is_told_as_the_documentation_shows(
    emulator: KlingEmulator, caller: Caller, receiver: Receiver
) -> None:
    task_id = caller.create(callback_url=receiver.url, duration="5")
    emulator.advance(50)
    assert receiver.bodies == []
    emulator.advance(50)
    eventually(lambda: emulator.ledger.callbacks())
    (body,) = receiver.bodies
    data = body["data"]
    assert (body["code"], body["msg"]) == (200, "success")
    assert set(data) == {
        "taskId", "model", "state", "param", "resultJson", "failCode", "failMsg",
        "costTime", "completeTime", "createTime",
    }  # fmt: skip
    assert (data["taskId"], data["state"], data["model"]) == (
        task_id,
        "completed",
        "kling-video/kling-v3-omni",
    )
    assert json.loads(data["param"])["callback_url"] == receiver.url
    assert json.loads(data["resultJson"]) == {"resultUrls": [caller.link(task_id)], "videoDuration": 5}
    assert (data["failCode"], data["failMsg"]) == (None, None)
    assert data["costTime"] == data["completeTime"] - data["createTime"] == 100_000
    assert attempts(emulator) == [(1, 200)]


def test_the_only_header_of_its_own_is_the_content_type(
    emulator: KlingEmulator, caller: Caller, receiver: Receiver
) -> None:
    emulator.complete(caller.create(callback_url=receiver.url))
    eventually(lambda: receiver.headers)
    (headers,) = receiver.headers
    assert set(headers) == {"Host", "Content-Length", "Content-Type"}
    assert headers["Content-Type"] == "application/json"


def test_a_failed_task_is_told_with_its_reason(
    emulator: KlingEmulator, caller: Caller, receiver: Receiver
) -> None:
    emulator.fail(caller.create(callback_url=receiver.url), "UPSTREAM_BUSY", "Later")
    eventually(lambda: receiver.bodies)
    data = receiver.bodies[0]["data"]
    told = {name: data[name] for name in ("state", "resultJson", "failCode", "failMsg")}
    assert told == {"state": "failed", "resultJson": None, "failCode": "UPSTREAM_BUSY", "failMsg": "Later"}


def test_a_length_that_is_no_whole_number_is_told_as_it_is(
    emulator: KlingEmulator, caller: Caller, receiver: Receiver
) -> None:
    emulator.configure(base_video_seconds=4.5)
    video = {"video_url": "https://example.com/v.mp4"}
    emulator.complete(caller.create(callback_url=receiver.url, video_list=[video]))
    eventually(lambda: receiver.bodies)
    assert json.loads(receiver.bodies[0]["data"]["resultJson"])["videoDuration"] == 4.5


def test_a_task_without_a_callback_url_is_not_told(
    emulator: KlingEmulator, caller: Caller, receiver: Receiver
) -> None:
    emulator.complete(caller.create())
    emulator.complete(caller.create(callback_url=receiver.url))
    eventually(lambda: emulator.ledger.callbacks())
    assert len(receiver.bodies) == 1


def test_it_comes_when_the_task_is_over_by_itself(receiver: Receiver) -> None:
    with KlingEmulator(latency=0.05) as emulator:
        task_id = Caller(emulator).create(callback_url=receiver.url)
        eventually(lambda: emulator.ledger.callbacks(task_id))
        (sent,) = emulator.ledger.callbacks()
        assert sent.at >= (emulator.ledger.task(task_id).ends_at or 0)
        assert sent.was_accepted


@pytest.mark.parametrize("status", [302, 400, 404, 500])
def test_what_is_not_2xx_is_tried_again_after_1_2_and_4_seconds_and_then_every_minute(
    emulator: KlingEmulator, caller: Caller, receiver: Receiver, status: int
) -> None:
    receiver.statuses = [status] * 100
    emulator.complete(caller.create(callback_url=receiver.url))
    eventually(lambda: len(attempts(emulator)) == 1)
    began = emulator.ledger.callbacks()[0].at
    for count, wait in enumerate((1, 2, 4, 60, 60), start=1):
        emulator.advance(wait - 0.5)
        caller.balance()  # whatever was due by now has been sent before this is answered
        emulator.advance(0.5)
        wait_for_attempts(emulator, count + 1)
    assert [sent.at - began for sent in emulator.ledger.callbacks()] == [0, 1, 3, 7, 67, 127]
    assert attempts(emulator) == [(number, status) for number in range(1, 7)]
    receiver.statuses = [204]
    emulator.advance(60)
    eventually(lambda: len(attempts(emulator)) == 7)
    assert emulator.ledger.callbacks()[-1].was_accepted
    emulator.advance(60)
    assert len(attempts(emulator)) == 7


def test_redelivery_ends_half_an_hour_after_the_tasks_end(
    emulator: KlingEmulator, caller: Caller, receiver: Receiver
) -> None:
    receiver.statuses = [500] * 100
    emulator.configure(callback_retry_delays=[])
    task_id = caller.create(callback_url=receiver.url)
    emulator.complete(task_id)
    for minute in range(1, 31):
        wait_for_attempts(emulator, minute)
        emulator.advance(60)
    eventually(lambda: len(attempts(emulator)) == 31)
    emulator.advance(3600)
    # Another delivery, begun later, shows that nothing is left of this one.
    receiver.statuses = []
    emulator.complete(caller.create(callback_url=receiver.url))
    eventually(lambda: emulator.ledger.callbacks()[-1].was_accepted)
    assert len(emulator.ledger.callbacks(task_id)) == 31


def test_its_times_are_scaled(receiver: Receiver) -> None:
    receiver.statuses = [500] * 4
    with KlingEmulator(latency=0, time_scale=0.001) as emulator:
        Caller(emulator).create(callback_url=receiver.url)
        eventually(lambda: len(attempts(emulator)) == 5)
        assert attempts(emulator) == [(1, 500), (2, 500), (3, 500), (4, 500), (5, 200)]


def test_a_receiver_that_does_not_answer_in_time_is_tried_again(
    emulator: KlingEmulator, caller: Caller, receiver: Receiver
) -> None:
    emulator.configure(callback_timeout=0.05)
    receiver.holds = True
    emulator.complete(caller.create(callback_url=receiver.url))
    eventually(lambda: emulator.ledger.callbacks())
    assert emulator.ledger.callbacks()[0].error == "no answer in time"
    receiver.holds = False
    emulator.configure(callback_timeout=120)
    emulator.advance(1)
    eventually(lambda: len(attempts(emulator)) == 2)
    assert attempts(emulator) == [(1, None), (2, 200)]


def test_a_receiver_that_is_not_there_is_tried_again(emulator: KlingEmulator, caller: Caller) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        emulator.complete(caller.create(callback_url=f"http://127.0.0.1:{port}/hook"))
        eventually(lambda: emulator.ledger.callbacks())
    (sent,) = emulator.ledger.callbacks()
    assert (sent.status, sent.was_accepted) == (None, False)
    assert "refused" in str(sent.error).lower() or "cannot connect" in str(sent.error).lower()


class TestFaults:
    def test_a_callback_can_be_lost_for_good(
        self, emulator: KlingEmulator, caller: Caller, receiver: Receiver
    ) -> None:
        emulator.inject("drop", prompt="first")
        lost = caller.create(prompt="first", callback_url=receiver.url)
        told = caller.create(prompt="second", callback_url=receiver.url)
        emulator.advance(100)
        emulator.advance(3600)
        eventually(lambda: emulator.ledger.callbacks(told))
        assert emulator.ledger.callbacks(lost) == []

    def test_a_callback_can_come_several_times_at_once(
        self, emulator: KlingEmulator, caller: Caller, receiver: Receiver
    ) -> None:
        emulator.inject("duplicate", copies=10)
        emulator.complete(caller.create(callback_url=receiver.url))
        eventually(lambda: len(receiver.bodies) == 10)
        assert all(body == receiver.bodies[0] for body in receiver.bodies)
        eventually(lambda: attempts(emulator) == [(1, 200)] * 10)

    def test_callbacks_can_be_late_and_so_out_of_order(
        self, emulator: KlingEmulator, caller: Caller, receiver: Receiver
    ) -> None:
        for seconds in (0.3, 3, 30):  # a machine that stalls for so long may be late with the second too
            emulator.inject("slow", call="callback", seconds=seconds)
            receiver.bodies.clear()
            first, second = (caller.create(callback_url=receiver.url) for _ in range(2))
            emulator.complete(first)
            emulator.complete(second)
            eventually(lambda: len(receiver.bodies) == 2)
            order = [body["data"]["taskId"] for body in receiver.bodies]
            if order == [second, first]:
                break
        assert order == [second, first]


def test_many_callbacks_at_once_all_arrive(receiver: Receiver) -> None:
    with KlingEmulator(latency="never") as emulator:
        caller = Caller(emulator)
        task_ids = [caller.create(callback_url=receiver.url) for _ in range(100)]
        for task_id in task_ids:
            emulator.complete(task_id)
        eventually(lambda: len(emulator.ledger.callbacks()) == 100)
    assert {body["data"]["taskId"] for body in receiver.bodies} == set(task_ids)


def test_the_emulator_ends_at_once_while_callbacks_wait(receiver: Receiver) -> None:
    receiver.holds = True
    with KlingEmulator(latency=0) as emulator:
        caller = Caller(emulator)
        caller.create(callback_url=receiver.url)
        eventually(lambda: receiver.bodies)
    assert emulator.ledger.callbacks() == []


def test_a_task_that_was_forgotten_is_not_told_of_again(
    emulator: KlingEmulator, caller: Caller, receiver: Receiver
) -> None:
    receiver.statuses = [500]
    forgotten = caller.create(callback_url=receiver.url)
    emulator.complete(forgotten)
    wait_for_attempts(emulator, 1)

    emulator.reset()

    emulator.advance(1)
    # Another delivery, begun later, shows that nothing is left of this one.
    emulator.complete(caller.create(callback_url=receiver.url))
    eventually(lambda: len(attempts(emulator)) == 1)
    emulator.advance(3600)
    caller.balance()
    assert [body["data"]["taskId"] for body in receiver.bodies].count(forgotten) == 1
    assert emulator.ledger.callbacks(forgotten) == []


def test_a_callback_that_is_on_its_way_while_its_task_is_forgotten_leaves_no_trace(
    emulator: KlingEmulator, caller: Caller, receiver: Receiver
) -> None:
    receiver.holds = True
    forgotten = caller.create(callback_url=receiver.url)
    emulator.complete(forgotten)
    eventually(lambda: receiver.bodies)

    emulator.reset()

    receiver.holds = False
    receiver.hold.set()
    emulator.complete(caller.create(callback_url=receiver.url))
    eventually(lambda: len(receiver.bodies) == 2)
    wait_for_attempts(emulator, 1)
    assert emulator.ledger.callbacks(forgotten) == []
