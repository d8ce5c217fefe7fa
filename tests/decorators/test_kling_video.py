"""``@task.kling_video``: a function says what the video shows, and the task makes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, task

from airflow_provider_kling.api.errors import InvalidRequestError, KlingError
from airflow_provider_kling.api.request import VideoRequest
from airflow_provider_kling.card import XCOM_VIDEO
from airflow_provider_kling.decorators.kling import (
    FunctionNotCalledAgainError,
    KlingVideoDecoratedOperator,
    VideoRequestFields,
    kling_video_task,
)
from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator
from airflow_provider_kling.waiting import PauseEvent
from tests.task_runs import TaskInstance, finish_videos, run_task

both_ways = pytest.mark.parametrize("deferrable", [False, True], ids=["on the worker", "deferred"])


class Calls:
    """A function that counts how often it is called."""

    def __init__(self, returned: Any = "a red kite") -> None:
        self.returned = returned
        self.arguments: list[dict[str, Any]] = []

    def function(self) -> Callable[..., Any]:
        def make(**context: Any) -> Any:
            self.arguments.append(context)
            return self.returned

        return make

    def operator(self, **arguments: Any) -> KlingVideoDecoratedOperator:
        arguments = {"task_id": "task", "poll_interval": 0.05, "timeout": 300} | arguments
        return KlingVideoDecoratedOperator(python_callable=self.function(), **arguments)


def bodies(emulator: KlingEmulator) -> list[dict[str, Any]]:
    return [dict(made.body) for made in emulator.ledger.tasks()]


def states(run: Any) -> list[tuple[str, str]]:
    return sorted((ti.task_id, str(ti.state)) for ti in run.get_task_instances())


# What the function returns


@both_ways
@pytest.mark.kling_emulator(latency="never")
def test_the_function_says_the_prompt_and_is_called_once(
    kling_emulator: KlingEmulator, deferrable: bool
) -> None:
    calls = Calls()
    run = run_task(
        lambda: calls.operator(deferrable=deferrable, duration=4),
        when_it_waits=lambda: finish_videos(kling_emulator),
    )
    result = run.value()

    assert result["state"] == "completed"
    assert bodies(kling_emulator) == [{"model": "kling-v3-omni", "prompt": "a red kite", "duration": "4"}]
    assert len(run.deferrals) == (1 if deferrable else 0)
    assert len(calls.arguments) == 1


@both_ways
def test_fields_that_the_function_returns_beat_those_of_the_decorator(
    kling_emulator: KlingEmulator, deferrable: bool
) -> None:
    calls = Calls({"prompt": "a kite", "mode": "pro", "sound": None})
    run_task(
        lambda: calls.operator(deferrable=deferrable, mode="std", sound=True, duration=7, prompt="a default")
    ).value()

    assert bodies(kling_emulator) == [
        {"model": "kling-v3-omni", "prompt": "a kite", "mode": "pro", "duration": "7"}
    ]


def test_braces_in_what_the_function_returns_are_not_rendered(
    kling_emulator: KlingEmulator, run_dag: Callable[..., Any]
) -> None:
    """A prompt may come from anybody; a template in it would be code that runs on the worker."""
    with DAG("braces", schedule=None) as dag:

        @task.kling_video
        def make() -> str:
            return "a sign that says {{ conn.kling_default.password }}"

        make()
    assert states(run_dag(dag)) == [("make", "success")]
    assert bodies(kling_emulator)[0]["prompt"] == "a sign that says {{ conn.kling_default.password }}"


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (
            {"prompt": "a kite", "lenght": 4},
            r"lenght: 4 is not allowed: no such field; there are model, prompt, ",
        ),
        ({"prompt": "a kite", "output_path": "/x"}, "output_path.*argument of the decorator, and no field"),
        ({"prompt": "a kite", "callback_url": "https://example.com/x"}, "callback_url.*decorator only"),
        ({"prompt": "a kite", 5: 6}, "5: 6 is not allowed: no such field"),
        ({"prompt": "a kite", "duration": 99}, "duration"),
        ({"mode": "pro"}, "prompt"),
        ("", "prompt"),
        ("None", "prompt"),
        (None, r"make\(\) returned nothing \(None\); .* returns the prompt as text, or a dict"),
        (["a kite"], r"make\(\) returned a value of type list"),
    ],
)
def test_what_cannot_be_asked_for_ends_the_task_before_anything_is_sent(
    kling_emulator: KlingEmulator, returned: Any, told: str
) -> None:
    calls = Calls(returned)
    run = run_task(calls.operator)

    assert isinstance(run.error, AirflowFailException)
    assert isinstance(run.error.__cause__, KlingError)
    with pytest.raises(AirflowFailException, match=told):
        raise run.error
    assert "Nothing was sent" in str(run.error)
    assert kling_emulator.ledger.requests() == []


def test_an_error_of_the_function_is_the_tasks_error(kling_emulator: KlingEmulator) -> None:
    def make() -> str:
        raise LookupError("no such article")

    run = run_task(lambda: KlingVideoDecoratedOperator(task_id="task", python_callable=make))
    assert isinstance(run.error, LookupError)
    assert kling_emulator.ledger.requests() == []


def test_the_decorators_own_arguments_are_checked_when_the_dag_is_parsed() -> None:
    with pytest.raises(InvalidRequestError, match="duration"):
        Calls().operator(duration=99)
    with pytest.raises(ValueError, match="timeout"):
        Calls().operator(timeout=0)
    with pytest.raises(ValueError, match="nowhere"):
        Calls().operator(output_path="/videos/{nowhere}")
    with pytest.raises(ValueError, match="wait_for_completion"):
        Calls().operator(output_path="/videos", wait_for_completion=False)
    Calls().operator(prompt="{{ params.prompt }}", aspect_ratio="9:16")


def test_the_type_for_what_a_function_returns_names_what_it_may_return() -> None:
    assert set(VideoRequestFields.__annotations__) == set(VideoRequest.model_fields) - {"callback_url"}


# Deferral


@pytest.mark.kling_emulator(latency="never")
def test_a_pause_for_a_busy_service_does_not_call_the_function_again(
    kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_kling.generation.BUSY_PAUSE", 0.05)
    kling_emulator.inject("fail", fail_code="1303", at_once=True)
    calls = Calls({"prompt": "a kite", "mode": "pro", "extra_body": {"seed": 5}})
    run = run_task(
        lambda: calls.operator(deferrable=True, duration=3, callback_url="https://example.com/told"),
        when_it_waits=lambda: finish_videos(kling_emulator),
    )

    assert run.value()["state"] == "completed"
    assert [deferral.method_name for deferral in run.deferrals] == ["execute_again", "execute_complete"]
    assert len(calls.arguments) == 1
    first, second = bodies(kling_emulator)
    assert first == second
    assert (second["mode"], second["seed"], second["callback_url"]) == ("pro", 5, "https://example.com/told")
    assert len(kling_emulator.ledger.paid()) == 1


@pytest.mark.parametrize(
    ("kept", "why"),
    [
        (None, "not in its XCom any more"),
        (
            {"request": {"prompt": "a kite", "image_list": [{"image_url": "<a file in Base64 of 9000"}]}},
            "Base64",
        ),
    ],
)
def test_where_the_request_is_lost_a_retry_is_told_to_call_the_function_again(
    kling_emulator: KlingEmulator, kept: Any, why: str
) -> None:
    calls = Calls()
    ti = TaskInstance(xcoms={} if kept is None else {XCOM_VIDEO: kept})
    event = PauseEvent(deadline=4e9, attempt_ends_at=4e9).to_dict()
    with pytest.raises(FunctionNotCalledAgainError, match=why) as raised:
        calls.operator(deferrable=True).execute_again({"ti": ti}, event=event)

    assert raised.value.retryable
    assert "Nothing was billed. A retry calls the function again" in str(raised.value)
    assert calls.arguments == []
    assert kling_emulator.ledger.requests() == []


@both_ways
@pytest.mark.kling_emulator(latency="never")
def test_a_retry_calls_the_function_again_and_buys_nothing(
    kling_emulator: KlingEmulator, tmp_path: Path, deferrable: bool
) -> None:
    calls = Calls()
    for _ in range(2):
        run_task(lambda: calls.operator(deferrable=deferrable, timeout=0.3, ledger_path=str(tmp_path)))

    assert len(calls.arguments) == 2
    assert len(kling_emulator.ledger.creates()) == 1


# In a Dag


def test_arguments_come_from_other_tasks_templates_and_the_context(
    kling_emulator: KlingEmulator, run_dag: Callable[..., Any]
) -> None:
    with DAG("arguments", schedule=None, params={"place": "the sea"}) as dag:

        @task
        def subject() -> str:
            return "a kite"

        @task.kling_video(duration="{{ 2 + 2 }}", kling_conn_id="kling_default")
        def make(what: str, where: str, params: Any = None, ti: Any = None, *, when: str = "dawn") -> Any:
            """Say what it shows."""
            return {"prompt": f"{what} over {where}, {params['place']}, {when}, {ti.task_id}"}

        made = make(subject(), where="{{ params.place }}")

        @task
        def follow(link: str, video: dict[str, Any]) -> None:
            assert link == video["video_url"]
            assert link.endswith(".mp4")

        follow("{{ ti.xcom_pull(task_ids='make')['video_url'] }}", made)

    assert dag.get_task("make").doc_md == "Say what it shows."
    assert states(run_dag(dag)) == [("follow", "success"), ("make", "success"), ("subject", "success")]
    assert bodies(kling_emulator) == [
        {"model": "kling-v3-omni", "prompt": "a kite over the sea, the sea, dawn, make", "duration": "4"}
    ]


def test_expand_makes_a_video_of_each(kling_emulator: KlingEmulator, run_dag: Callable[..., Any]) -> None:
    with DAG("expanded_function", schedule=None) as dag:

        @task
        def subjects() -> list[str]:
            return ["a cat", "a dog", "a fish"]

        @task.kling_video(mode="pro", duration=3)
        def make(subject: str, style: str) -> dict[str, Any]:
            return {"prompt": f"{subject}, {style}"}

        made = make.partial(style="ink").expand(subject=subjects())
        make.override(task_id="plain", mode="std").expand(subject=["a bird"], style=["oil"])

        @task
        def count(videos: Any) -> int:
            return len({video["task_id"] for video in videos})

        count(made)
    run = run_dag(dag)

    assert [state for _, state in states(run)] == ["success"] * 6
    found = sorted((body["prompt"], body["mode"], body["duration"]) for body in bodies(kling_emulator))
    assert found == [
        ("a bird, oil", "std", "3"),
        ("a cat, ink", "pro", "3"),
        ("a dog, ink", "pro", "3"),
        ("a fish, ink", "pro", "3"),
    ]
    (counted,) = [ti for ti in run.get_task_instances() if ti.task_id == "count"]
    assert counted.xcom_pull(task_ids="count") == 3


@pytest.mark.kling_emulator(latency=0.5)
def test_mapped_and_deferred_each_function_is_called_once(
    kling_emulator: KlingEmulator, run_dag: Callable[..., Any]
) -> None:
    called: list[str] = []
    with DAG("deferred_function", schedule=None) as dag:

        @task.kling_video(deferrable=True, poll_interval=0.2)
        def make(subject: str) -> str:
            called.append(subject)
            return subject

        make.expand(subject=["a cat", "a dog"])
    run = run_dag(dag)

    assert states(run) == [("make", "success")] * 2
    assert sorted(called) == ["a cat", "a dog"]
    assert len(kling_emulator.ledger.paid()) == 2


@pytest.mark.parametrize("multiple", [True, False, None])
def test_the_result_is_split_only_where_that_is_asked_for(
    kling_emulator: KlingEmulator, run_dag: Callable[..., Any], multiple: bool | None
) -> None:
    with DAG(f"outputs_{multiple}", schedule=None) as dag:

        @task.kling_video(multiple_outputs=multiple)
        def make() -> dict[str, str]:
            return {"prompt": "a kite"}

        make()
    run = run_dag(dag)
    (ti,) = run.get_task_instances()

    assert str(ti.state) == "success"
    link = ti.xcom_pull(task_ids="make", key="video_url")
    assert (link is not None) is bool(multiple)
    assert ti.xcom_pull(task_ids="make")["state"] == "completed"


def test_everything_else_is_as_on_the_operator(
    kling_emulator: KlingEmulator, run_dag: Callable[..., Any], tmp_path: Path
) -> None:
    with DAG("everything", schedule=None) as dag:

        @task.kling_video(output_path=str(tmp_path / "{task_id}.mp4"), max_cost_usd=1)
        def stored() -> str:
            return "a kite"

        @task.kling_video(max_cost_usd="0.01", retries=3)
        def too_dear() -> str:
            return "a kite"

        @task.kling_video(dry_run=True)
        def dry() -> str:
            return "a kite"

        stored()
        too_dear()
        dry()
    run = run_dag(dag)

    assert states(run) == [("dry", "success"), ("stored", "success"), ("too_dear", "failed")]
    assert (tmp_path / "stored.mp4").stat().st_size > 0
    assert len(kling_emulator.ledger.creates()) == 1


def test_it_takes_the_operators_arguments_and_templates() -> None:
    assert set(KlingGenerateVideoOperator.template_fields) < set(KlingVideoDecoratedOperator.template_fields)
    assert {"op_args", "op_kwargs"} < set(KlingVideoDecoratedOperator.template_fields)
    assert KlingVideoDecoratedOperator.operator_extra_links == KlingGenerateVideoOperator.operator_extra_links


def test_airflow_finds_it_under_its_name() -> None:
    from airflow.providers_manager import ProvidersManager

    found = dict(ProvidersManager().taskflow_decorators)["kling_video"]
    assert found is kling_video_task
