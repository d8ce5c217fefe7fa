"""The trigger that waits for many videos: when it fires, and what it tells."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from airflow_provider_kling.api.request import VideoRequest
from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.hooks.kling import KlingHook
from airflow_provider_kling.triggers.batch import KlingVideosTrigger
from tests.hooks.conftest import Connect
from tests.hooks.loopback import task_answer
from tests.task_runs import fire
from tests.triggers.virtual_time import Service, in_no_time

pytestmark = pytest.mark.kling_emulator(latency="never")


def submitted(count: int) -> list[str]:
    hook = KlingHook()
    return [hook.submit(VideoRequest(prompt=f"kite {index}")).task_id for index in range(count)]


def trigger(ids: list[str], **arguments: Any) -> KlingVideosTrigger:
    now = time.time()
    defaults: dict[str, Any] = {
        "kling_conn_id": "kling_default",
        "videos": [[kling_task_id, now + 60, now] for kling_task_id in ids],
        "poll_interval": 0.05,
        "enough": len(ids),
        "state": {"attempt": 3},
    }
    return KlingVideosTrigger(**(defaults | arguments))


def test_it_fires_once_enough_are_over_and_names_only_these(kling_emulator: KlingEmulator) -> None:
    ids = submitted(4)
    for kling_task_id in ids[1:3]:
        kling_emulator.complete(kling_task_id)
    event = fire(trigger(ids, enough=2))
    assert event == {"over": {ids[1]: "completed", ids[2]: "completed"}, "state": {"attempt": 3}}


def test_it_tells_how_each_of_them_ended(kling_emulator: KlingEmulator) -> None:
    ids = submitted(3)
    kling_emulator.complete(ids[0])
    kling_emulator.fail(ids[1], "UPSTREAM_FAILED")
    now = time.time()
    videos = [[ids[0], now + 60, now], [ids[1], now + 60, now], [ids[2], now + 0.3, now]]
    assert fire(trigger(ids, videos=videos))["over"] == {
        ids[0]: "completed",
        ids[1]: "failed",
        ids[2]: "timed_out",
    }


@pytest.mark.usefixtures("kling_emulator")
def test_it_wakes_the_task_when_there_may_be_room_for_more() -> None:
    ids = submitted(2)
    at = time.time() + 0.5
    assert fire(trigger(ids, wake_at=at))["over"] == {}
    assert time.time() >= at


def test_a_pause_with_nothing_at_the_service_asks_nobody(kling_emulator: KlingEmulator) -> None:
    at = time.time() + 0.3
    assert fire(trigger([], wake_at=at))["over"] == {}
    assert time.time() >= at
    assert kling_emulator.ledger.requests() == []


def test_a_refused_key_ends_each_wait_and_not_the_trigger(kling_emulator: KlingEmulator) -> None:
    ids = submitted(3)
    kling_emulator.inject("answer", status=401, call="query", times="always")
    assert set(fire(trigger(ids))["over"].values()) == {"refused"}


@pytest.mark.usefixtures("kling_emulator")
def test_it_can_be_ended_at_any_time_and_leaves_nothing_behind() -> None:
    ids = submitted(5)

    async def ended() -> int:
        async def first() -> None:
            async for _ in trigger(ids).run():
                raise AssertionError("none is over")

        task = asyncio.create_task(first())
        await asyncio.sleep(0.3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return len(asyncio.all_tasks()) - 1

    assert asyncio.run(ended()) == 0


def test_arguments_of_a_newer_release_are_tolerated_and_the_others_survive_the_database() -> None:
    made = trigger(["a", "b"], wake_at=5.0, something_new=1)
    path, arguments = made.serialize()
    assert path == "airflow_provider_kling.triggers.batch.KlingVideosTrigger"
    again = KlingVideosTrigger(**json.loads(json.dumps(arguments)))
    assert again.serialize() == (path, arguments)


def test_only_videos_that_will_be_called_back_are_asked_for_rarely(kling_emulator: KlingEmulator) -> None:
    ids = submitted(2)
    for kling_task_id in ids:
        kling_emulator.complete(kling_task_id)
    called_back = {"submissions": ["submission", None], "callback_poll_interval": 3600.0}
    assert fire(trigger(ids, enough=1, **called_back))["over"] == {ids[1]: "completed"}
    assert [kling_emulator.ledger.task(its).queries for its in ids] == [0, 1]


def test_what_it_is_called_back_for_survives_the_database() -> None:
    made = trigger(["a", "b"], submissions=["one", None], callback_poll_interval=300.0)
    path, arguments = made.serialize()
    assert KlingVideosTrigger(**json.loads(json.dumps(arguments))).serialize() == (path, arguments)


def test_hundreds_of_videos_keep_its_arguments_small() -> None:
    ids = [f"cl{index:023}" for index in range(500)]
    submissions = [f"{index:012}" for index in range(500)]
    _, arguments = trigger(ids, submissions=submissions, callback_poll_interval=300.0).serialize()
    assert len(json.dumps(arguments)) < 64_000


def test_a_video_that_waits_through_many_waves_is_asked_for_all_the_same(
    service: Service, connect: Connect
) -> None:
    """Each wait is shorter than the interval; what counts is the time since the video's submit."""
    connect()
    service.answer = lambda asked: task_answer("completed", "https://r2.example/v.mp4", task_id=asked.task_id)

    async def story() -> Any:
        submitted_at = time.time() - 89  # less than the shortest that chance makes of the interval
        videos = [["kling-1", submitted_at + 3600, submitted_at]]
        waits = trigger(["kling-1"], videos=videos, submissions=["s"], callback_poll_interval=100.0)
        return [event.payload async for event in waits.run()]

    [event] = in_no_time(story)
    assert event["over"] == {"kling-1": "completed"}
    [asked_at] = service.times
    assert 0 < asked_at < 22, "it was asked for one interval after this wait began"
