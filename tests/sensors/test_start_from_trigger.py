from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, AirflowSensorTimeout, TaskGroup

from airflow_provider_kling.airflow_versions import AIRFLOW_V_3_3_PLUS
from airflow_provider_kling.api.request import VideoRequest
from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.hooks.kling import KlingHook
from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator
from airflow_provider_kling.sensors.kling import KlingVideoSensor
from airflow_provider_kling.triggers.kling import KlingVideoTrigger
from airflow_provider_kling.waiting import DEFER_NET, Outcome, WaitEvent
from tests.task_runs import TaskInstance

offered = pytest.mark.skipif(not AIRFLOW_V_3_3_PLUS, reason="Airflow before 3.3 does not render it")

START = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
def kling_task_id(kling_emulator: KlingEmulator) -> str:
    """A task that something else submitted."""
    return KlingHook().submit(VideoRequest(prompt="a lighthouse")).task_id


def sensor(**arguments: Any) -> KlingVideoSensor:
    chosen = {"task_id": "wait", "kling_task_id": "clx1", "deferrable": True, "start_from_trigger": True}
    return KlingVideoSensor(**chosen | arguments)


def started(task: KlingVideoSensor, *, kling_task_id: str, at: datetime = START) -> KlingVideoTrigger:
    """Start a task in a triggerer: what the scheduler stores of it, rendered, with when Airflow will end it."""
    stored = task.start_trigger_args
    arguments = json.loads(json.dumps(stored.trigger_kwargs)) | {"kling_task_id": kling_task_id}
    trigger = KlingVideoTrigger(**arguments)
    limits = [limit for limit in (stored.timeout, task.execution_timeout) if limit is not None]
    trigger.timeout_after = at + min(limits)  # type: ignore[attr-defined]
    return trigger


def event_of(trigger: KlingVideoTrigger) -> WaitEvent:
    async def first() -> Any:
        async for event in trigger.run():
            return event.payload
        raise AssertionError("no event")

    return WaitEvent.from_dict(asyncio.run(first()))


# What Airflow is given to start with


@offered
def test_airflow_is_told_what_to_start_and_where_to_go_on() -> None:
    task = sensor(poke_interval=timedelta(seconds=7), timeout=timedelta(minutes=30), kling_conn_id="kling_b")
    assert task.start_from_trigger is True
    told = task.start_trigger_args
    made = KlingVideoTrigger(**told.trigger_kwargs)
    assert told.trigger_cls == made.serialize()[0]
    assert callable(getattr(task, told.next_method))
    assert (made.kling_conn_id, made.kling_task_id, made.poll_interval, made.timeout) == (
        "kling_b",
        "clx1",
        7,
        1800,
    )


@offered
def test_each_task_has_arguments_of_its_own_and_others_have_none() -> None:
    one, two = sensor(kling_task_id="clx1"), sensor(kling_task_id="clx2")
    assert one.start_trigger_args.trigger_kwargs["kling_task_id"] == "clx1"
    assert two.start_trigger_args.trigger_kwargs["kling_task_id"] == "clx2"
    assert KlingVideoSensor.start_trigger_args is None
    assert not sensor(start_from_trigger=False).start_from_trigger


@offered
def test_another_tasks_output_is_rendered_in_the_triggerer_and_orders_the_tasks() -> None:
    with DAG("dag", schedule=None):
        submit = KlingGenerateVideoOperator(task_id="submit", prompt="x", wait_for_completion=False)
        task = sensor(kling_task_id=submit.output["task_id"])
    assert task.upstream_task_ids == {"submit"}
    template = task.start_trigger_args.trigger_kwargs["kling_task_id"]
    # Without the last one Airflow's triggerer would ask for what it cannot get, and hang.
    assert template == "{{ ti.xcom_pull(task_ids='submit', key='task_id', map_indexes=-1) }}"
    # By these three having one name Airflow knows what to render.
    rendered = set(task.template_fields) & set(task.start_trigger_args.trigger_kwargs)
    assert rendered == {"kling_task_id", "kling_conn_id"}
    assert all(
        hasattr(KlingVideoTrigger(**task.start_trigger_args.trigger_kwargs), name) for name in rendered
    )


@offered
def test_it_survives_the_way_of_a_dag_through_airflows_database() -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    with DAG("dag", schedule=None) as dag:
        task = sensor(timeout=600)
    through = json.loads(json.dumps(DagSerialization.to_dict(dag)))
    stored = DagSerialization.from_dict(through).get_task("wait")
    assert stored.start_from_trigger is True
    assert stored.start_trigger_args.trigger_cls == task.start_trigger_args.trigger_cls
    assert stored.start_trigger_args.next_method == "execute_complete"
    assert stored.start_trigger_args.timeout == task.start_trigger_args.timeout


# The deadline


@offered
@pytest.mark.kling_emulator(latency="never")
def test_a_triggerer_that_starts_again_gives_no_new_deadline(kling_task_id: str) -> None:
    task = sensor(timeout=600, poke_interval=0.05)
    began = datetime.now(UTC) - timedelta(seconds=599.5)
    for _ in range(2):
        event = event_of(started(task, kling_task_id=kling_task_id, at=began))
        assert event.outcome is Outcome.TIMED_OUT
        assert event.submitted_at == pytest.approx(began.timestamp())
        assert event.deadline == pytest.approx(began.timestamp() + 600)
        assert time.time() >= event.deadline


@offered
@pytest.mark.kling_emulator(latency=0)
@pytest.mark.parametrize("execution_timeout", [None, timedelta(hours=9), timedelta(minutes=2)])
def test_an_execution_timeout_does_not_move_the_deadline(
    kling_task_id: str, execution_timeout: timedelta | None
) -> None:
    task = sensor(timeout=600, execution_timeout=execution_timeout)
    now = datetime.now(UTC)
    event = event_of(started(task, kling_task_id=kling_task_id, at=now))
    assert event.deadline == pytest.approx(now.timestamp() + 600)


@offered
@pytest.mark.kling_emulator(latency=0)
@pytest.mark.parametrize("told", ["naive", "nothing"])
def test_a_deadline_is_there_however_airflow_tells_the_time(kling_task_id: str, told: str) -> None:
    task = sensor(timeout=600)
    trigger = started(task, kling_task_id=kling_task_id, at=datetime.now(UTC))
    if told == "naive":
        trigger.timeout_after = trigger.timeout_after.replace(tzinfo=None)  # type: ignore[attr-defined]
    else:
        del trigger.timeout_after  # type: ignore[attr-defined]
    assert 500 < event_of(trigger).deadline - time.time() <= 600


@offered
def test_airflow_ends_it_only_behind_the_deadline() -> None:
    assert sensor(timeout=600).start_trigger_args.timeout == timedelta(seconds=600) + DEFER_NET


def test_a_trigger_needs_a_deadline_or_a_timeout() -> None:
    with pytest.raises(TypeError, match="deadline"):
        KlingVideoTrigger(kling_conn_id="kling_default", kling_task_id="clx1", poll_interval=10)


@offered
def test_it_comes_back_as_it_was() -> None:
    _, arguments = KlingVideoTrigger(**sensor().start_trigger_args.trigger_kwargs).serialize()
    assert KlingVideoTrigger(**arguments).serialize()[1] == arguments
    assert {"timeout", "net"} <= set(arguments)


# From start to end


@offered
@pytest.mark.kling_emulator(latency=0)
def test_a_video_that_is_made_already_is_found_at_once(kling_task_id: str) -> None:
    task = sensor(timeout=600, poke_interval=300)
    event = event_of(started(task, kling_task_id=kling_task_id, at=datetime.now(UTC)))
    assert event.outcome is Outcome.COMPLETED
    resumed = sensor(kling_task_id=kling_task_id).execute_complete({"ti": TaskInstance()}, event.to_dict())
    assert resumed["task_id"] == kling_task_id
    assert resumed["video_url"]


@offered
@pytest.mark.kling_emulator(latency="never")
def test_its_timeout_is_airflows_sensor_timeout(kling_task_id: str) -> None:
    event = event_of(started(sensor(timeout=60), kling_task_id=kling_task_id))
    with pytest.raises(AirflowSensorTimeout):
        sensor(kling_task_id=kling_task_id).execute_complete({"ti": TaskInstance()}, event.to_dict())


@offered
@pytest.mark.usefixtures("kling_emulator")
@pytest.mark.parametrize("rendered", ["None", "", " "])
def test_a_template_that_gives_no_task_id_is_told(rendered: str) -> None:
    event = (
        event_of(started(sensor(), kling_task_id=rendered, at=datetime.now(UTC)))
        if rendered == "None"
        else None
    )
    with pytest.raises(AirflowFailException, match="Does the task that submits push one"):
        sensor(kling_task_id=rendered).execute_complete({"ti": TaskInstance()}, event and event.to_dict())


# Where it cannot work


@pytest.mark.skipif(AIRFLOW_V_3_3_PLUS, reason="Airflow 3.3 and later offer it")
def test_an_older_airflow_is_named() -> None:
    with pytest.raises(ValueError, match=r"needs Airflow 3\.3"):
        sensor()


@offered
def test_it_needs_to_be_deferrable() -> None:
    with pytest.raises(ValueError, match="deferrable=True"):
        sensor(deferrable=False)


@offered
def test_it_is_refused_where_tasks_are_mapped() -> None:
    with pytest.raises(ValueError, match="mapped"):
        KlingVideoSensor.partial(task_id="wait", deferrable=True, start_from_trigger=True)
    with DAG("dag", schedule=None):
        from airflow.sdk import task_group

        @task_group
        def each(name: str) -> None:
            sensor(kling_task_id="clx1")

        with pytest.raises(ValueError, match="mapped task group"):
            each.expand(name=["a", "b"])


@offered
@pytest.mark.parametrize("value", [None, 7, ["clx1"]])
def test_a_task_id_that_no_trigger_can_start_with_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="text, a template or the output of another task"):
        sensor(kling_task_id=value)


@offered
def test_what_airflows_triggerer_cannot_pull_is_refused() -> None:
    with pytest.raises(ValueError, match="map_indexes=-1"):
        sensor(kling_task_id="{{ ti.xcom_pull(task_ids='submit') }}")
    sensor(kling_task_id="{{ ti.xcom_pull(task_ids='submit', map_indexes=-1) }}")
    with DAG("dag", schedule=None):
        mapped = KlingGenerateVideoOperator.partial(task_id="submit").expand(prompt=["a", "b"])
        with pytest.raises(ValueError, match="not mapped"):
            sensor(kling_task_id=mapped.output["task_id"])


def test_mapped_sensors_work_without_it() -> None:
    with DAG("dag", schedule=None), TaskGroup("group"):
        mapped = KlingVideoSensor.partial(task_id="wait", deferrable=True).expand(kling_task_id=["a", "b"])
    assert mapped.operator_class is KlingVideoSensor
