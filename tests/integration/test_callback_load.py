"""Two thousand videos are done within ten seconds: none is lost, and Airflow's API server answers all the while."""

from __future__ import annotations

import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID

import aiohttp
import requests
from sqlalchemy import create_engine, text

from airflow_provider_kling.callbacks import CallbackToken, url_of
from airflow_provider_kling.emulator import KlingEmulator
from dev.local_airflow import LocalAirflow
from dev.processes import LOOPBACK, free_port
from tests.cluster.stack import Postgres
from tests.integration import two_thousand_waiting
from tests.integration.conftest import DAGS

VIDEOS = int(os.environ.get("CALLBACKS", "2000"))
SECONDS = 10.0
DOUBLED = 0.1


class Pulse:
    """Asks the API server's other routes all the while, as its users do."""

    ROUTES = ("api/v2/monitor/health", "api/v2/version", "api/v2/dags?limit=5")

    def __init__(self, airflow: LocalAirflow) -> None:
        self._airflow = airflow
        self._phase = "before"
        self._times: dict[str, list[float]] = {}
        self._is_over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        if self._error is not None and kind is None:
            raise self._error

    def enter(self, phase: str) -> None:
        self._phase = phase

    def watch(self, phase: str, *, seconds: float, samples: int) -> None:
        """Stay in a phase for some seconds, and longer where fewer samples than so many were taken by then."""
        self.enter(phase)
        until = time.monotonic() + seconds
        while time.monotonic() < until or len(self._times.get(phase, ())) < samples:
            if self._error is not None:
                raise self._error
            time.sleep(0.05)

    def p95(self, phase: str) -> float:
        return statistics.quantiles(self._times[phase], n=20)[-1]

    def worst(self, phase: str) -> float:
        return max(self._times[phase])

    def _run(self) -> None:
        try:
            self._ask_all_the_while()
        except BaseException as error:
            self._error = error

    def _ask_all_the_while(self) -> None:
        self._airflow.api.health()
        self._airflow.api.call("GET", "dags", params={"limit": 1})
        headers = dict(self._airflow.api._session.headers)
        with requests.Session() as session:
            while not self._is_over.wait(0.05):
                for route in self.ROUTES:
                    phase, began = self._phase, time.monotonic()
                    answer = session.get(f"{self._airflow.url}/{route}", headers=headers, timeout=300)
                    assert answer.ok
                    self._times.setdefault(phase, []).append(time.monotonic() - began)


def test_two_thousand_callbacks_within_ten_seconds_on_sqlite(tmp_path: Path) -> None:
    _start_and_run(tmp_path, f"sqlite:///{tmp_path.resolve()}/airflow.db?timeout=60")


def test_two_thousand_callbacks_within_ten_seconds_on_postgresql(
    tmp_path: Path, postgresql: Postgres
) -> None:
    _start_and_run(tmp_path, postgresql.url)


def _start_and_run(home: Path, database_url: str) -> None:
    port = free_port()
    base_url = f"http://{LOOPBACK}:{port}"
    with KlingEmulator(latency=9999, balance=100_000) as service:
        airflow = LocalAirflow(
            home,
            dags=[DAGS],
            port=port,
            components={"api-server": ("api-server",)},
            connections={"kling_default": service.connection_uri},
            config={
                "kling": {"callback_base_url": base_url},
                "database": {"sql_alchemy_conn": database_url},
            },
        )
        with airflow:
            _run(airflow, service, base_url, database_url)


def _run(airflow: LocalAirflow, service: KlingEmulator, base_url: str, database_url: str) -> None:
    made = _videos(service)
    ti_ids = _waiting(airflow, made)
    addresses = [
        url_of(base_url, CallbackToken(UUID(ti_id), "A" * 12, "kling_default").sign(service.api_key))
        for ti_id in ti_ids
    ]
    with Pulse(airflow) as pulse:
        pulse.watch("before", seconds=5, samples=60)
        service.advance(10_000)
        pulse.enter("during")
        began = time.monotonic()
        tries = _deliver(list(zip(made, addresses, strict=True)))
        took = time.monotonic() - began
        # What holds the API server up goes on doing so; what else this machine does, does not.
        afters = [f"after ({number})" for number in range(1, 13)]
        for after in afters:
            pulse.watch(after, seconds=5, samples=60)
            if pulse.p95(after) < 1:
                break
    states = _states(database_url)
    log = airflow.component_log("api-server").read_text(errors="replace")
    resumed = Counter(re.findall(r"Kling task '(\w+)': completed; its task was resumed;", log))
    print(
        f"{database_url.partition(':')[0]}: {VIDEOS} videos, {sum(tries.values())} calls in {took:.1f} s, "
        f"answered {dict(tries)}; "
        f"states {dict(states)}; other routes, p95: "
        + ", ".join(
            f"{phase} {pulse.p95(phase) * 1000:.0f} ms (worst {pulse.worst(phase) * 1000:.0f} ms)"
            for phase in ("before", "during", after)
        )
    )
    assert states == {"scheduled": VIDEOS}, "none is lost"
    assert len(resumed) == VIDEOS
    assert set(resumed.values()) == {1}, "each is resumed once"
    assert set(tries) <= {200, 503, 0}
    assert pulse.p95(after) < 1


def _states(database_url: str) -> Counter[str]:
    engine = create_engine(database_url)
    try:
        with engine.connect() as connection:
            found = connection.execute(
                text("SELECT state FROM task_instance WHERE dag_id = :dag_id"),
                {"dag_id": two_thousand_waiting.DAG_ID},
            )
            return Counter(str(state) for (state,) in found)
    finally:
        engine.dispose()


def _videos(service: KlingEmulator) -> list[str]:
    local = threading.local()

    def make(number: int) -> str:
        if not hasattr(local, "session"):
            local.session = requests.Session()
        answer = local.session.post(
            f"{service.base_url}/video/generations",
            json={"model": "kling-v3-omni", "prompt": f"crowd {number}", "duration": "3"},
            headers={"Authorization": f"Bearer {service.api_key}"},
            timeout=300,
        )
        return str(answer.json()["data"]["taskId"])

    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(make, range(VIDEOS)))


def _waiting(airflow: LocalAirflow, made: list[str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, two_thousand_waiting.__file__],
        input=json.dumps(made),
        env=airflow.environment,
        cwd=airflow.home,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ids: list[str] = json.loads(done.stdout[done.stdout.rindex("[") :])
    return ids


def _deliver(calls: list[tuple[str, str]]) -> Counter[int]:
    """
    Call as the service does: when it is time, whether or not earlier calls were answered; some doubled; each until it
    is answered with 2xx, after 1, 2 and 4 seconds and then every minute.
    """
    statuses: Counter[int] = Counter()

    async def send(session: aiohttp.ClientSession, at: float, kling_task_id: str, url: str) -> None:
        await asyncio.sleep(at)
        body = {"code": 200, "data": {"taskId": kling_task_id, "state": "completed", "resultJson": None}}
        for pause in (1, 2, 4, *[60] * 30):
            try:
                async with session.post(url, json=body) as answer:
                    status = answer.status
            except (aiohttp.ClientError, TimeoutError):
                status = 0
            statuses[status] += 1
            if status == 200:
                return
            await asyncio.sleep(pause)

    async def send_all() -> None:
        timeout = aiohttp.ClientTimeout(total=10)
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session,
            asyncio.TaskGroup() as sending,
        ):
            for number, (kling_task_id, url) in enumerate(calls):
                for _ in range(2 if number % round(1 / DOUBLED) == 0 else 1):
                    sending.create_task(send(session, SECONDS * number / len(calls), kling_task_id, url))

    asyncio.run(send_all())
    return statuses
