from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from airflow_provider_kling.airflow_versions import AIRFLOW_V_3_3_PLUS
from airflow_provider_kling.triggers.batch import KlingVideosTrigger
from airflow_provider_kling.triggers.kling import KlingVideoTrigger
from tests.task_runs import TaskInstance

pytestmark = pytest.mark.skipif(not AIRFLOW_V_3_3_PLUS, reason="Airflow before 3.3 does not call it")


def one() -> KlingVideoTrigger:
    return KlingVideoTrigger(
        kling_conn_id="kling_default",
        kling_task_id="clx1",
        deadline=4e9,
        submitted_at=0.0,
        poll_interval=10,
    )


def many() -> KlingVideosTrigger:
    return KlingVideosTrigger(
        kling_conn_id="kling_default",
        videos=[("clx0", 4e9, 0.0), ("clx1", 4e9, 0.0)],
        poll_interval=10,
        enough=2,
    )


@pytest.fixture(params=[one, many])
def kill(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, task_log: Callable[[], list[str]]
) -> Callable[[Any], str]:
    """Cancel a waiting trigger, and say what Airflow answers when it is asked for the task's state."""

    def cancelled(answer: Any) -> str:
        def get_task_states(**asked: Any) -> Any:
            assert asked == {
                "dag_id": "dag",
                "task_ids": ["task"],
                "run_ids": ["manual__2026-11-22"],
                "map_index": 3,
            }
            if isinstance(answer, Exception):
                raise answer
            return {"manual__2026-11-22": {"task_3": answer}} if answer else {}

        monkeypatch.setattr(
            "airflow.sdk.execution_time.task_runner.RuntimeTaskInstance.get_task_states", get_task_states
        )
        trigger = request.param()
        trigger._task_instance = TaskInstance(map_index=3)
        asyncio.run(trigger.on_kill())
        return "\n".join(task_log())

    return cancelled


@pytest.mark.parametrize("state", ["failed", "success", "skipped"])
def test_a_person_who_ends_the_task_is_told_that_the_video_goes_on(
    kill: Callable[[Any], str], state: str
) -> None:
    said = kill(state)
    assert "clx1" in said
    assert "go on and will be billed" in said.replace("goes", "go")


@pytest.mark.parametrize("state", ["deferred", "scheduled", "queued", "running", None])
def test_nothing_is_said_where_the_trigger_only_moves_or_the_task_goes_on(
    kill: Callable[[Any], str], state: str | None
) -> None:
    assert "billed" not in kill(state)


def test_where_airflow_cannot_be_asked_nothing_is_said_and_nothing_raised(kill: Callable[[Any], str]) -> None:
    assert "billed" not in kill(RuntimeError("API_SERVER_ERROR"))
