"""Callbacks through a real Airflow: its API servers, its database, its scheduler, and a proxy in front of it."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
import requests
from aiohttp import web

from airflow_provider_kling.callbacks import PATH, CallbackToken
from airflow_provider_kling.emulator import KlingEmulator
from dev.local_airflow import COMPONENTS, LocalAirflow
from dev.processes import LOOPBACK, free_port
from tests.conftest import AIRFLOW
from tests.integration.conftest import DAGS, answers, wait_until
from tests.integration.test_provider import chosen_run_id

POLL_INTERVAL = 1800.0
"""Seconds: the net under lost callbacks. What is noticed long before was called back."""
LATENCY = 12.0
"""Seconds: longer than a task usually takes from its submit to its deferral. Who needs that, holds the video."""


class Proxy:
    """
    What stands between the Internet and Airflow: it forwards one path, takes its own beginning of it away, and knows
    two API servers.
    """

    def __init__(self, ports: list[int]) -> None:
        self.ports = ports
        self.port = free_port()
        self.seen: list[tuple[str, int]] = []
        self.is_down = False
        self._turn = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}/deep/path"

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(120)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application()
        app.router.add_route("POST", "/deep/path" + PATH + "/{token}", self._forward)
        runner = web.AppRunner(app)
        self._loop.run_until_complete(runner.setup())
        self._loop.run_until_complete(web.TCPSite(runner, LOOPBACK, self.port).start())
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())

    async def _forward(self, request: web.Request) -> web.Response:
        if self.is_down:
            return web.Response(status=502)
        self._turn += 1
        port = self.ports[self._turn % len(self.ports)]
        target = f"http://{LOOPBACK}:{port}{PATH}/{request.match_info['token']}"
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.post(
                    target, data=await request.read(), headers={"Content-Type": request.content_type}
                ) as answer,
            ):
                self.seen.append((request.match_info["token"], answer.status))
                return web.Response(status=answer.status, body=await answer.read())
        except aiohttp.ClientError:
            return web.Response(status=502)


@pytest.fixture(scope="module")
def service() -> Iterator[KlingEmulator]:
    with KlingEmulator(latency=LATENCY, callback_redelivery_interval=5, callback_timeout=120) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    proxy = Proxy([free_port(), free_port()])
    proxy.start()
    yield proxy
    proxy.stop()


@pytest.fixture(scope="module")
def airflow(
    service: KlingEmulator, proxy: Proxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalAirflow]:
    """Run Airflow with two API servers, which the service reaches through a proxy only."""
    home = tmp_path_factory.mktemp("airflow")
    print(f"AIRFLOW_HOME with all logs: {home}")
    first, second = proxy.ports
    # An older Airflow has no task state store to find a lost submission in.
    ledger = {} if AIRFLOW >= (3, 3) else {"ledger_path": f"file://{home}/ledger"}
    with LocalAirflow(
        home,
        dags=[DAGS],
        port=first,
        components={**COMPONENTS, "api-server-2": ("api-server", "--port", str(second))},
        connections={"kling_default": service.connection_uri},
        config={
            "kling": {
                "callback_base_url": proxy.url,
                "callback_poll_interval": str(POLL_INTERVAL),
                **ledger,
            },
            "scheduler": {
                "scheduler_health_check_threshold": "600",
                "orphaned_tasks_check_interval": "5",
            },
        },
    ) as running:
        wait_until(lambda: answers(second))
        yield running


def hold_videos(service: KlingEmulator, run_id: str, count: int = 1) -> None:
    """Let no video of a run be done before ``finish_videos``, however long Airflow takes to get so far."""
    service.inject("latency", seconds=9999, prompt=run_id, times=count)


def finish_videos(service: KlingEmulator, run_id: str) -> None:
    for its in service.ledger.tasks(run_id):
        if its.state not in ("completed", "failed"):
            service.complete(its.task_id)


def wait_until_it_waits(airflow: LocalAirflow, dag_id: str, run_id: str) -> None:
    """Wait until a run's task waits and Airflow knows it, so that it can be called back at once."""
    airflow.api.wait_for_task(dag_id, run_id, "make", "deferred")
    airflow.wait_until_off_its_worker(dag_id, run_id, "make")


def start(airflow: LocalAirflow, service: KlingEmulator, *, run_id: str | None = None) -> tuple[str, str]:
    """
    Start a run and wait until its task waits, which it does until its video is completed.

    Return the run's id and the Kling task's.
    """
    run_id = run_id or chosen_run_id()
    hold_videos(service, run_id)
    airflow.trigger("kling_called_back", run_id=run_id)
    wait_until_it_waits(airflow, "kling_called_back", run_id)
    return run_id, airflow.api.xcom("kling_called_back", run_id, "make", "task_id")


def succeed(airflow: LocalAirflow, run_id: str, dag_id: str = "kling_called_back") -> None:
    assert airflow.wait_for_run(dag_id, run_id) == "success", airflow.why_run_failed(dag_id, run_id)


def body(kling_task_id: str, state: str = "completed") -> dict[str, Any]:
    return {"code": 200, "data": {"taskId": kling_task_id, "state": state, "resultJson": None}}


def address(service: KlingEmulator, run_id: str) -> str:
    return str(service.ledger.tasks(run_id)[0].body["callback_url"])


def log_lines(airflow: LocalAirflow) -> str:
    return "".join(
        airflow.component_log(name).read_text(errors="replace") for name in ("api-server", "api-server-2")
    )


def test_a_called_back_task_goes_on_at_once_and_is_asked_for_twice(
    airflow: LocalAirflow, service: KlingEmulator, proxy: Proxy
) -> None:
    """Twice: by the receiver, and by the worker that the task goes on with."""
    dag_id = "kling_called_back_often"
    run_id = airflow.trigger(dag_id)
    succeed(airflow, run_id, dag_id)
    left = resumptions(airflow, dag_id, run_id)
    assert len(left) == 6
    tasks = {task.task_id: task for task in service.ledger.tasks(run_id)}
    waits = []
    for map_index, at in left.items():
        task = tasks[airflow.api.xcom(dag_id, run_id, "make", "task_id", map_index=map_index)]
        assert task.ends_at is not None
        waits.append(at - task.ends_at)
    tell(waits)
    assert min(waits) > 0, "each was resumed"
    assert max(waits) < POLL_INTERVAL / 3
    assert max(task.queries for task in tasks.values()) <= 3
    assert all(service.ledger.callbacks(task_id) for task_id in tasks)


def resumptions(airflow: LocalAirflow, dag_id: str, run_id: str) -> dict[int, float]:
    """
    Return when each task of a run that is over was resumed, epoch seconds, by its map index.

    Airflow writes down when it last scheduled a task, which a resumption does too, and this stays when the task ends.
    """
    return {
        row["map_index"]: datetime.fromisoformat(row["scheduled_dttm"]).replace(tzinfo=UTC).timestamp()
        for row in airflow.query(
            "SELECT map_index, scheduled_dttm FROM task_instance WHERE dag_id = ? AND run_id = ?",
            (dag_id, run_id),
        )
    }


def tell(waits: list[float]) -> None:
    """Print how long it took from a video's end to the task's leaving its deferred state."""
    shown = sorted(round(wait, 2) for wait in waits)
    print(f"completed to resumed, seconds: median {statistics.median(waits):.2f} of {shown}")


def test_a_list_goes_on_when_its_last_video_is_over_and_each_is_asked_for_twice(
    airflow: LocalAirflow, service: KlingEmulator
) -> None:
    """Twice: by the receiver, and by the worker that stores it."""
    dag_id = "kling_called_back_list"
    run_id = chosen_run_id()
    hold_videos(service, run_id, 6)
    airflow.trigger(dag_id, run_id=run_id)
    wait_until_it_waits(airflow, dag_id, run_id)
    *first, last = (its.task_id for its in service.ledger.tasks(run_id))
    for task_id in first:
        service.complete(task_id)
    wait_until(lambda: all(was_accepted(service, task_id) for task_id in first))
    service.complete(last)
    succeed(airflow, run_id, dag_id)
    [at] = resumptions(airflow, dag_id, run_id).values()
    tasks = service.ledger.tasks(run_id)
    assert len(tasks) == len(service.ledger.paid(run_id)) == 6
    tell([at - max(task.ends_at or 0.0 for task in tasks)])
    assert max(task.queries for task in tasks) <= 3
    assert count_of(airflow, "kling_called_back_list.make", run_id, "its task was resumed;") == 1
    assert airflow.api.xcom(dag_id, run_id, "make")["completed"] == 6


def was_accepted(service: KlingEmulator, kling_task_id: str) -> bool:
    return any(sent.was_accepted for sent in service.ledger.callbacks(kling_task_id))


def test_a_list_in_waves_whose_callbacks_come_ten_times_each_starts_few_workers(
    airflow: LocalAirflow, service: KlingEmulator
) -> None:
    dag_id = "kling_called_back_waves"
    run_id = chosen_run_id()
    service.inject("duplicate", call="callback", copies=10, times=6, prompt=run_id)
    airflow.trigger(dag_id, run_id=run_id)
    succeed(airflow, run_id, dag_id)
    tasks = service.ledger.tasks(run_id)
    assert len(tasks) == len(service.ledger.paid(run_id)) == 6
    assert sum(len(service.ledger.callbacks(task.task_id)) for task in tasks) >= 60
    starts = 1 + count_of(airflow, "kling_called_back_waves.make", run_id, "its task was resumed;")
    print(f"worker starts for 6 videos, 3 at a time: {starts}; queries: {[task.queries for task in tasks]}")
    assert starts <= 6
    assert max(task.queries for task in tasks) <= 3


def count_of(airflow: LocalAirflow, task: str, run_id: str, told: str) -> int:
    return sum(f"{task} of {run_id}," in line and told in line for line in log_lines(airflow).splitlines())


def test_no_address_of_a_list_serves_for_another_of_its_videos(
    airflow: LocalAirflow, service: KlingEmulator, proxy: Proxy
) -> None:
    dag_id = "kling_called_back_list"
    run_id = chosen_run_id()
    hold_videos(service, run_id, 6)
    airflow.trigger(dag_id, run_id=run_id)
    wait_until_it_waits(airflow, dag_id, run_id)
    first, second = service.ledger.tasks(run_id)[:2]
    read = CallbackToken.read(str(first.body["callback_url"]).rpartition("/")[2])
    assert read is not None
    forged = f"{proxy.url}{PATH}/{read.sign('sk_guessed')}"
    alone = replace(read, is_listed=False).sign(service.api_key)
    said = {
        "forged": requests.post(forged, json=body(first.task_id), timeout=120).status_code,
        "another item's": requests.post(
            str(second.body["callback_url"]), json=body(first.task_id), timeout=120
        ).status_code,
        "no video's": requests.post(
            str(first.body["callback_url"]), json=body("made-up"), timeout=120
        ).status_code,
    }
    assert said == dict.fromkeys(said, 404)
    genuine = requests.post(str(first.body["callback_url"]), json=body(first.task_id), timeout=120)
    assert genuine.status_code == 503, "it is not completed"
    assert requests.post(f"{proxy.url}{PATH}/{alone}", json=body(first.task_id), timeout=120).ok
    [ti] = airflow.task_instances(dag_id, run_id)
    assert ti.state == "deferred"
    finish_videos(service, run_id)
    succeed(airflow, run_id, dag_id)
    assert len(service.ledger.creates(run_id)) == 6


def test_ten_at_once_through_two_api_servers_resume_it_once(
    airflow: LocalAirflow, service: KlingEmulator, proxy: Proxy
) -> None:
    run_id = chosen_run_id()
    service.inject("drop", call="callback", prompt=run_id)
    run_id, kling_task_id = start(airflow, service, run_id=run_id)
    url = address(service, run_id)
    service.complete(kling_task_id)

    def ten_at_once() -> bool:
        with ThreadPoolExecutor(10) as threads:
            statuses = list(
                threads.map(
                    lambda _: requests.post(url, json=body(kling_task_id), timeout=120).status_code, range(10)
                )
            )
        assert set(statuses) <= {200, 503}
        return 200 in statuses

    # Right after its deferral a task is not resumed yet, and all are told to call again.
    wait_until(ten_at_once)
    succeed(airflow, run_id)
    assert log_lines(airflow).count(f"{kling_task_id}': completed; its task was resumed;") == 1
    assert len(service.ledger.creates(run_id)) == 1
    # Late: after success, and after a clear.
    assert requests.post(url, json=body(kling_task_id), timeout=120).status_code == 200
    clear(airflow, run_id)
    succeed(airflow, run_id)
    assert requests.post(url, json=body(kling_task_id), timeout=120).status_code == 200
    assert len(service.ledger.paid(run_id)) == 1


def clear(airflow: LocalAirflow, run_id: str) -> None:
    airflow.api.call(
        "POST",
        "dags/kling_called_back/clearTaskInstances",
        json={"dry_run": False, "dag_run_id": run_id, "task_ids": ["make"], "only_failed": False},
    )
    # Of what Airflow tells, this stays.
    wait_until(lambda: airflow.task_instances("kling_called_back", run_id)[0].try_number > 1)


def test_what_is_forged_changes_nothing(airflow: LocalAirflow, service: KlingEmulator, proxy: Proxy) -> None:
    run_id, kling_task_id = start(airflow, service)
    other_run_id, other_task_id = start(airflow, service)
    url, other_url = address(service, run_id), address(service, other_run_id)
    token = url.rpartition("/")[2]
    read = CallbackToken.read(token)
    assert read is not None
    forged = f"{proxy.url}{PATH}/{read.sign('sk_guessed')}"
    said = {
        "forged": requests.post(forged, json=body(kling_task_id), timeout=120),
        "another task's": requests.post(other_url, json=body(kling_task_id), timeout=120),
        "another video's": requests.post(url, json=body(other_task_id), timeout=120),
        "no video's": requests.post(url, json=body("made-up"), timeout=120),
        "nothing": requests.post(url, data=b"{", timeout=120),
    }
    assert {name: (each.status_code, each.text) for name, each in said.items()} == dict.fromkeys(
        said, (404, '{"detail":"Not Found"}')
    )
    assert requests.post(url, data=b" " * 70_000, timeout=120).status_code == 413
    assert requests.post(url, json=body(kling_task_id), timeout=120).status_code == 503, "it is not completed"
    for each in (run_id, other_run_id):
        [ti] = airflow.task_instances("kling_called_back", each)
        assert ti.state == "deferred"
    for each in (kling_task_id, other_task_id):
        service.complete(each)
    succeed(airflow, run_id)
    succeed(airflow, other_run_id)
    assert len(service.ledger.creates(run_id)) == 1


def test_a_service_that_cannot_be_asked_is_asked_when_it_calls_again(
    airflow: LocalAirflow, service: KlingEmulator
) -> None:
    run_id, kling_task_id = start(airflow, service)
    fault = service.inject("answer", status=503, call="query", prompt=run_id, times="always")
    service.complete(kling_task_id)
    wait_until(lambda: len(service.ledger.callbacks(kling_task_id)) >= 2)
    assert service.ledger.callbacks(kling_task_id)[0].status == 503
    service.faults.remove(fault)
    succeed(airflow, run_id)
    assert service.ledger.callbacks(kling_task_id)[-1].was_accepted


def test_a_video_that_is_done_before_its_task_has_deferred_comes_home(
    airflow: LocalAirflow, service: KlingEmulator
) -> None:
    run_id = chosen_run_id()
    service.inject("latency", seconds=0.1, prompt=run_id)
    airflow.trigger("kling_called_back", run_id=run_id)
    succeed(airflow, run_id)
    [task] = service.ledger.tasks(run_id)
    statuses = [sent.status for sent in service.ledger.callbacks(task.task_id)]
    assert statuses[-1] == 200
    assert set(statuses[:-1]) <= {503}


def test_one_api_server_that_is_killed_loses_no_callback(
    airflow: LocalAirflow, service: KlingEmulator, proxy: Proxy
) -> None:
    run_id, kling_task_id = start(airflow, service)
    airflow.kill("api-server-2")
    service.complete(kling_task_id)
    succeed(airflow, run_id)
    assert service.ledger.callbacks(kling_task_id)[-1].was_accepted
    airflow.start_component("api-server-2")
    wait_until(lambda: answers(proxy.ports[1]))


def test_a_worker_that_is_killed_between_the_request_and_the_ledger_has_its_video_paid_once(
    airflow: LocalAirflow, service: KlingEmulator
) -> None:
    """The answer never comes, so the ledger holds an intent when the worker dies; the callback names the video."""
    dag_id = "kling_called_back_lost"
    run_id = chosen_run_id()
    service.inject("slow", call="create", seconds=9999, prompt=run_id)
    airflow.trigger(dag_id, run_id=run_id)
    wait_until(lambda: service.ledger.creates(run_id))
    airflow.lose_scheduler()
    succeed(airflow, run_id, dag_id)
    assert len(service.ledger.creates(run_id)) == 1
    assert len(service.ledger.paid(run_id)) == 1
    assert "the ledger knows its id now" in log_lines(airflow)


def test_a_request_of_a_list_whose_answer_was_lost_is_delivered_and_paid_once(
    airflow: LocalAirflow, service: KlingEmulator
) -> None:
    """Its worker is killed while it waits for the answer to the third request."""
    dag_id = "kling_called_back_list"
    run_id = chosen_run_id()
    service.inject("slow", call="create", seconds=9999, prompt=f"{run_id} scene 2")
    airflow.trigger(dag_id, run_id=run_id)
    wait_until(lambda: len(service.ledger.creates(run_id)) == 3)
    airflow.lose_scheduler()
    succeed(airflow, run_id, dag_id)
    assert len(service.ledger.creates(run_id)) == 6
    assert len(service.ledger.paid(run_id)) == 6
    assert count_of(airflow, "kling_called_back_list.make", run_id, "the ledger knows its id now") == 1


def test_a_task_that_did_not_wait_starts_the_dag_behind_its_asset_when_the_video_is_there(
    airflow: LocalAirflow, service: KlingEmulator
) -> None:
    airflow.api.wait_for_dag("kling_after_the_film")
    airflow.api.unpause("kling_after_the_film")
    run_id = chosen_run_id()
    hold_videos(service, run_id)
    service.inject("duplicate", call="callback", copies=3, prompt=run_id)
    airflow.trigger("kling_submit_and_forget", run_id=run_id)
    succeed(airflow, run_id, "kling_submit_and_forget")
    assert service.ledger.tasks(run_id)[0].state != "completed"
    assert airflow.api.run_ids("kling_after_the_film") == []
    finish_videos(service, run_id)
    started = wait_until(lambda: airflow.api.run_ids("kling_after_the_film"))
    assert airflow.wait_for_run("kling_after_the_film", started[0]) == "success"
    [told] = airflow.api.xcom("kling_after_the_film", started[0], "received")
    assert told["task_id"] == service.ledger.tasks(run_id)[0].task_id
    assert told["request"]["prompt"] == run_id
    time.sleep(3)
    assert len(airflow.api.run_ids("kling_after_the_film")) == 1


def test_with_the_receiver_out_of_reach_everything_is_completed_by_polling(
    airflow: LocalAirflow, service: KlingEmulator, proxy: Proxy
) -> None:
    proxy.is_down = True
    airflow.stop_component("scheduler")
    components = airflow._component_environment
    airflow._component_environment = {
        **components,
        "scheduler": {"AIRFLOW__KLING__CALLBACK_POLL_INTERVAL": "8"},
    }
    airflow.start_component("scheduler")
    airflow.wait_until_healthy()
    try:
        run_id, kling_task_id = start(airflow, service)
        service.complete(kling_task_id)
        succeed(airflow, run_id)
        assert not any(sent.was_accepted for sent in service.ledger.callbacks(kling_task_id))
        assert len(service.ledger.paid(run_id)) == 1
        list_run_id = airflow.run("kling_called_back_waves")
        assert len(service.ledger.paid(list_run_id)) == 6
        assert not any(
            sent.was_accepted
            for task in service.ledger.tasks(list_run_id)
            for sent in service.ledger.callbacks(task.task_id)
        )
    finally:
        proxy.is_down = False


def test_no_log_has_an_address_in_it(airflow: LocalAirflow, service: KlingEmulator) -> None:
    tokens = {
        str(task.body["callback_url"]).rpartition("/")[2].encode()
        for task in service.ledger.tasks()
        if task.body.get("callback_url")
    }
    assert tokens
    searched = [path for path in airflow.log_files() if path.stat().st_size]
    searched += [airflow.database, *airflow.database.parent.glob("airflow.db-*")]
    found = [path for path in searched for token in tokens if token in path.read_bytes()]
    assert found == []
