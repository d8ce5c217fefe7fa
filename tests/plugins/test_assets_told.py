"""A task that did not wait: its callback makes the asset events."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from airflow_provider_kling.callbacks import XCOM_CALLBACK
from airflow_provider_kling.emulator import KlingEmulator
from tests.conftest import AIRFLOW
from tests.plugins.conftest import ASSETS, Waiter, body_of, create
from tests.plugins.test_receiver import AGAIN, TAKEN, post

ASKED = {
    "task_id": "x",
    "request": {"model": "kling-v3-omni", "prompt": "a tide"},
    "duration_seconds": 5.0,
    "estimated_cost_usd": 0.31,
}


def events(waiter: Waiter) -> dict[str, Any]:
    """Return the extras of a task's events by asset; each asset has one at the most."""
    from airflow.models.asset import AssetEvent, AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        found = session.execute(
            select(AssetModel.name, AssetEvent.extra)
            .join(AssetModel, AssetModel.id == AssetEvent.asset_id)
            .where(AssetEvent.source_dag_id == waiter.dag_id, AssetEvent.source_task_id == waiter.task_id)
        ).all()
    assert len(found) == len({name for name, _ in found}), "told twice"
    return {name: dict(extra) for name, extra in found}


@pytest.fixture
def left(waiter: Waiter, service: KlingEmulator) -> tuple[Waiter, str]:
    """A task that ended right after its submit."""
    kling_task_id = create(service)
    leave(waiter, kling_task_id)
    return waiter, kling_task_id


def leave(waiter: Waiter, kling_task_id: str) -> None:
    outlets = [{"name": asset.name, "uri": asset.uri} for asset in ASSETS]
    waiter.push(XCOM_CALLBACK, {"kling_task_id": kling_task_id, "outlets": outlets})
    waiter.push("kling_video", ASKED)
    waiter.change(state="success")


def test_the_assets_are_told_what_was_made(
    client: Any, service: KlingEmulator, left: tuple[Waiter, str]
) -> None:
    waiter, kling_task_id = left
    assert events(waiter) == {}
    assert post(client, waiter.token(service.api_key), body_of(kling_task_id)) == TAKEN
    told = events(waiter)
    assert set(told) == {asset.name for asset in ASSETS}
    for extra in told.values():
        assert extra["task_id"] == kling_task_id
        assert extra["request"] == ASKED["request"]
        assert extra["estimated_cost_usd"] == 0.31
        assert extra["files"] == []
        assert "http" not in str(extra), "whoever has the link has the video"
    assert waiter.state == "success"


def test_they_are_told_once_however_often_it_comes(
    client: Any, service: KlingEmulator, left: tuple[Waiter, str]
) -> None:
    waiter, kling_task_id = left
    token = waiter.token(service.api_key)
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda _: post(client, token, body_of(kling_task_id)), range(6)))
    assert TAKEN in answers
    assert {status for status, _ in answers} <= {200, 503}
    assert post(client, token, body_of(kling_task_id)) == TAKEN
    assert len(events(waiter)) == len(ASSETS)


@pytest.mark.skipif(AIRFLOW < (3, 2), reason="partitions need Airflow 3.2")
def test_the_events_are_of_the_runs_partition(
    client: Any, service: KlingEmulator, left: tuple[Waiter, str]
) -> None:
    from airflow.models.asset import AssetEvent
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select, update

    waiter, kling_task_id = left
    with create_session() as session:
        session.execute(update(DagRun).where(DagRun.run_id == waiter.run_id).values(partition_key="2026-11"))
    assert post(client, waiter.token(service.api_key), body_of(kling_task_id)) == TAKEN
    assert set(events(waiter)) == {asset.name for asset in ASSETS}
    with create_session() as session:
        keys = session.scalars(
            select(AssetEvent.partition_key).where(AssetEvent.source_dag_id == waiter.dag_id)
        ).all()
    assert set(keys) == {"2026-11"}


def test_an_asset_that_no_dag_has_any_more_is_not_told(
    client: Any, service: KlingEmulator, left: tuple[Waiter, str]
) -> None:
    from airflow.models.asset import AssetActive
    from airflow.utils.session import create_session
    from sqlalchemy import delete

    waiter, kling_task_id = left
    gone, stays = ASSETS
    with create_session() as session:
        session.execute(delete(AssetActive).where(AssetActive.name == gone.name))
    assert post(client, waiter.token(service.api_key), body_of(kling_task_id)) == TAKEN
    assert set(events(waiter)) == {stays.name}


def test_xcoms_that_lie_elsewhere_are_named_as_the_cause_and_the_callback_comes_again(
    client: Any,
    service: KlingEmulator,
    left: tuple[Waiter, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(logging.getLogger("airflow_provider_kling"), "propagate", True)
    waiter, kling_task_id = left
    waiter.push(XCOM_CALLBACK, "s3://xcoms/kling_callback.json")
    assert post(client, waiter.token(service.api_key), body_of(kling_task_id)) == AGAIN
    assert events(waiter) == {}
    [line] = [each.getMessage() for each in caplog.records if "Callback from" in each.getMessage()]
    assert "its XComs lie elsewhere than in Airflow's database" in line
    assert waiter.dag_id in line


def test_a_failed_video_tells_no_asset(client: Any, service: KlingEmulator, waiter: Waiter) -> None:
    service.inject("fail", fail_code="INVALID_INPUT")
    kling_task_id = create(service)
    leave(waiter, kling_task_id)
    assert post(client, waiter.token(service.api_key), body_of(kling_task_id)) == TAKEN
    assert events(waiter) == {}


@pytest.mark.kling_emulator(latency=3600)
def test_a_video_that_is_not_made_yet_tells_no_asset(
    client: Any, service: KlingEmulator, left: tuple[Waiter, str]
) -> None:
    waiter, kling_task_id = left
    assert post(client, waiter.token(service.api_key), body_of(kling_task_id)) == AGAIN
    assert events(waiter) == {}


def test_another_video_tells_no_asset(client: Any, service: KlingEmulator, left: tuple[Waiter, str]) -> None:
    waiter, _ = left
    assert post(client, waiter.token(service.api_key), body_of(create(service))) == TAKEN
    assert events(waiter) == {}


def test_a_task_that_has_not_ended_yet_is_called_again_later(
    client: Any, service: KlingEmulator, left: tuple[Waiter, str]
) -> None:
    waiter, kling_task_id = left
    waiter.change(state="running")
    assert post(client, waiter.token(service.api_key), body_of(kling_task_id)) == AGAIN
    assert events(waiter) == {}
