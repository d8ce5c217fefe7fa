"""An API server's app with the receiver in it, and task instances in the metadata database for it to resume."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, Asset

from airflow_provider_kling.callbacks import PATH, CallbackToken
from airflow_provider_kling.emulator import KlingEmulator
from tests.conftest import AIRFLOW, store_dag
from tests.plugins.viewing import BASE_URL, page, people, rights, viewer
from tests.s3 import s3_endpoint, s3_server

__all__ = ["page", "people", "rights", "s3_endpoint", "s3_server", "viewer"]

if AIRFLOW < (3, 1):
    collect_ignore_glob = ["test_*.py"]

CONN_ID = "kling_default"
ASSETS = [] if AIRFLOW < (3, 1) else [Asset("kling_film"), Asset(name="kling_films", uri="s3://films/all")]


@pytest.fixture(autouse=True)
def receiver_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__KLING__CALLBACK_BASE_URL", BASE_URL)
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")


@pytest.fixture(autouse=True)
def receiver_has_all_the_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a busy machine be slow, but in tests of how long the receiver waits."""
    if request.node.get_closest_marker("receivers_own_limits"):
        return
    from airflow_provider_kling.plugins import callbacks

    for limit in ("BODY_SECONDS", "QUERY_SECONDS", "TURN_SECONDS"):
        monkeypatch.setattr(callbacks, limit, 600.0)


@dataclass(frozen=True)
class Waiter:
    """A task instance in the database."""

    id: Any
    dag_id: str
    run_id: str
    task_id: str = "make"

    def row(self) -> Any:
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session
        from sqlalchemy import select

        with create_session() as session:
            found = session.scalar(
                select(TaskInstance).where(
                    TaskInstance.dag_id == self.dag_id,
                    TaskInstance.run_id == self.run_id,
                    TaskInstance.task_id == self.task_id,
                )
            )
            session.expunge_all()
        return found

    @property
    def state(self) -> str | None:
        state = self.row().state
        return None if state is None else str(state)

    @property
    def is_resumed(self) -> bool:
        return self.state == "scheduled"

    def event(self) -> dict[str, Any]:
        """Return what it was resumed with, as the worker will get it."""
        kwargs = self.row().next_kwargs
        if AIRFLOW >= (3, 2):
            from airflow.sdk.serde import deserialize

            kwargs = deserialize(kwargs)
        event: dict[str, Any] = kwargs["event"]
        return event

    def change(self, **values: Any) -> None:
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session

        with create_session() as session:
            ti = session.get(TaskInstance, self.row().id)
            for name, value in values.items():
                setattr(ti, name, value)

    def defer(
        self,
        kling_task_id: str,
        *,
        age: float = 60.0,
        conn_id: str = CONN_ID,
        path: str = "airflow_provider_kling.triggers.kling.KlingVideoTrigger",
        **more: Any,
    ) -> int:
        """Have it wait, as Airflow writes it down when a task defers. Return the trigger's id."""
        now = time.time()
        arguments = {
            "kling_conn_id": conn_id,
            "kling_task_id": kling_task_id,
            "deadline": now + 3600,
            "submitted_at": now - age,
            "poll_interval": 300.0,
        }
        return self._wait_with(path, arguments | more, age)

    def _wait_with(self, path: str, arguments: dict[str, Any], age: float) -> int:
        from airflow.models.taskinstance import TaskInstance
        from airflow.models.trigger import Trigger
        from airflow.utils.session import create_session

        now = datetime.now(UTC)
        with create_session() as session:
            trigger = Trigger(classpath=path, kwargs=arguments, created_date=now - timedelta(seconds=age))
            session.add(trigger)
            session.flush()
            ti = session.get(TaskInstance, self.row().id)
            ti.state, ti.trigger_id = "deferred", trigger.id
            ti.next_method, ti.next_kwargs = "execute_complete", {}
            return int(trigger.id)

    def defer_for_list(
        self, videos: Mapping[str, str | None], *, enough: int, age: float = 60.0, conn_id: str = CONN_ID
    ) -> int:
        """
        Have it wait for many videos.

        :param videos: Kling task ids, with what callbacks call their submissions.
        """
        from airflow_provider_kling.triggers.batch import KlingVideosTrigger

        now = time.time()
        trigger = KlingVideosTrigger(
            kling_conn_id=conn_id,
            videos=[[kling_task_id, now + 3600, now - age] for kling_task_id in videos],
            poll_interval=10.0,
            enough=enough,
            state={"attempt": 1},
            submissions=list(videos.values()),
            callback_poll_interval=300.0,
        )
        path, arguments = trigger.serialize()
        return self._wait_with(path, arguments, age)

    def end_attempt(self, state: str | None = "up_for_retry") -> Any:
        """Give it a successor, as a retry or a clear does. Return the id of that."""
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session

        with create_session() as session:
            ti = session.get(TaskInstance, self.row().id)
            ti.prepare_db_for_next_try(session)
            ti.state, ti.trigger_id = state, None
            return ti.id

    def push(self, key: str, value: Any) -> None:
        from airflow.models.xcom import XComModel

        XComModel.set(
            key=key,
            value=value,
            dag_id=self.dag_id,
            task_id=self.task_id,
            run_id=self.run_id,
            map_index=-1,
        )

    def xcom(self, key: str) -> Any:
        """Return what its worker would be given."""
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session
        from sqlalchemy import select

        with create_session() as session:
            return session.scalar(
                select(XComModel.value).where(
                    XComModel.dag_id == self.dag_id, XComModel.run_id == self.run_id, XComModel.key == key
                )
            )

    def token(
        self,
        key: str,
        submission: str = "AAAAAAAAAAAA",
        conn_id: str = CONN_ID,
        *,
        is_listed: bool = False,
    ) -> str:
        return CallbackToken(uuid.UUID(str(self.id)), submission, conn_id, is_listed).sign(key)


@pytest.fixture
def make_waiter(airflow_db: None) -> Callable[..., Waiter]:
    """Return a function that makes a task instance of a run of its own."""

    def make(run_id: str | None = None) -> Waiter:
        from airflow.providers.standard.operators.empty import EmptyOperator
        from airflow.utils.session import create_session
        from airflow.utils.state import DagRunState
        from airflow.utils.types import DagRunTriggeredByType, DagRunType

        name = f"waits_{uuid.uuid4().hex[:8]}"
        with DAG(name, schedule=None) as dag:
            EmptyOperator(task_id="make", outlets=ASSETS)
        store_dag(dag)
        with create_session() as session:
            run = _stored(name, session).create_dagrun(
                run_id=run_id or f"manual__{name}",
                logical_date=None,
                data_interval=None,
                run_after=datetime.now(UTC),
                run_type=DagRunType.MANUAL,
                triggered_by=DagRunTriggeredByType.TEST,
                state=DagRunState.RUNNING,
                session=session,
            )
            [ti] = run.get_task_instances(session=session)
            ti.state = "running"
            return Waiter(ti.id, name, run.run_id)

    return make


def _stored(dag_id: str, session: Any) -> Any:
    if AIRFLOW >= (3, 2):
        from airflow.models.dagbag import DBDagBag

        return DBDagBag().get_latest_version_of_dag(dag_id, session=session)
    from airflow.models.serialized_dag import SerializedDagModel

    return SerializedDagModel.get_dag(dag_id, session=session)


@pytest.fixture
def waiter(make_waiter: Callable[[], Waiter]) -> Waiter:
    return make_waiter()


@pytest.fixture
def service(kling_emulator: KlingEmulator) -> KlingEmulator:
    return kling_emulator


@pytest.fixture
def client(airflow_db: None, service: KlingEmulator) -> Iterator[Any]:
    """Call the receiver as Airflow mounts it, with nothing else around it."""
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from airflow_provider_kling.plugins import KlingPlugin

    [mounted] = [each for each in KlingPlugin().fastapi_apps if each["url_prefix"] == PATH]

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with mounted["app"].router.lifespan_context(mounted["app"]):  # as Airflow does
            yield

    app = FastAPI(lifespan=lifespan)
    app.mount(mounted["url_prefix"], mounted["app"])
    with TestClient(app) as client:
        yield client


def body_of(kling_task_id: str, state: str = "completed", **more: Any) -> dict[str, Any]:
    """Return what the service posts."""
    return {
        "code": 200,
        "data": {
            "taskId": kling_task_id,
            "model": "kling-video/kling-v3-omni",
            "state": state,
            "param": "{}",
            "resultJson": json.dumps({"resultUrls": ["https://example.com/forged.mp4"]}),
            **more,
        },
    }


def create(service: KlingEmulator, **fields: Any) -> str:
    """Have the service make a video; return its task id."""
    import requests

    answer = requests.post(
        f"{service.base_url}/video/generations",
        json={"model": "kling-v3-omni", "prompt": "a tide", **fields},
        headers={"Authorization": f"Bearer {service.api_key}"},
        timeout=10,
    )
    return str(answer.json()["data"]["taskId"])
