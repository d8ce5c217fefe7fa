"""Templates, XCom arguments and mapping, in Dags that Airflow itself runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator

PICTURES = ["https://example.com/a.png", "https://example.com/b.png"]


def states(run: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for ti in run.get_task_instances():
        found.setdefault(ti.task_id, []).append(str(ti.state))
    return found


@pytest.mark.parametrize("native", [False, True], ids=["rendered as text", "rendered as native values"])
def test_every_way_to_give_a_value_comes_to_the_same_request(
    kling_emulator: KlingEmulator, run_dag: Callable[..., Any], native: bool
) -> None:
    with DAG(
        f"values_{native}",
        schedule=None,
        params={"seconds": 6, "sound": True, "nothing": None, "empty": ""},
        render_template_as_native_obj=native,
    ) as dag:

        @task
        def pictures() -> list[str]:
            return PICTURES

        found = pictures()
        common: dict[str, Any] = {"prompt": "from <<<image_1>>> to <<<image_2>>>", "mode": "pro"}
        KlingGenerateVideoOperator(
            task_id="literal",
            duration=6,
            sound=True,
            image_list=[{"image_url": picture} for picture in PICTURES],
            **common,
        )
        KlingGenerateVideoOperator(
            task_id="text", duration="6", sound="on", image_list=PICTURES, aspect_ratio="", **common
        )
        templated = KlingGenerateVideoOperator(
            task_id="template",
            duration="{{ params.seconds }}",
            sound="{{ params.sound }}",
            image_list="{{ ti.xcom_pull(task_ids='pictures') }}",
            aspect_ratio="{{ params.nothing }}",
            element_list="{{ params.empty }}",
            **common,
        )
        found >> templated
        KlingGenerateVideoOperator(
            task_id="xcom",
            duration="{{ params.seconds }}",
            sound="on",
            image_list=found,
            **common,
        )
    run = run_dag(dag)

    assert all(state == ["success"] for state in states(run).values())
    bodies = [dict(made.body) for made in kling_emulator.ledger.tasks()]
    assert len(bodies) == 4
    assert (
        bodies
        == [
            {
                "model": "kling-v3-omni",
                "prompt": "from <<<image_1>>> to <<<image_2>>>",
                "mode": "pro",
                "duration": "6",
                "sound": "on",
                "image_list": [{"image_url": picture} for picture in PICTURES],
            }
        ]
        * 4
    )


def test_expand_makes_one_video_for_each_value(
    kling_emulator: KlingEmulator, run_dag: Callable[..., Any]
) -> None:
    with DAG("expanded", schedule=None) as dag:
        made = KlingGenerateVideoOperator.partial(task_id="make", duration=3).expand(
            prompt=["a cat", "a dog", "a fox"]
        )

        @task
        def collect(videos: list[dict[str, Any]]) -> list[str]:
            return [video["request"]["prompt"] for video in videos]

        collect(made.output)
    run = run_dag(dag)

    assert states(run) == {"make": ["success"] * 3, "collect": ["success"]}
    assert sorted(bill.prompt for bill in kling_emulator.ledger.paid()) == ["a cat", "a dog", "a fox"]


def test_expand_kwargs_takes_whole_requests(
    kling_emulator: KlingEmulator, run_dag: Callable[..., Any]
) -> None:
    with DAG("expanded_kwargs", schedule=None) as dag:
        KlingGenerateVideoOperator.partial(task_id="make").expand_kwargs(
            [{"prompt": "a cat", "duration": 3}, {"prompt": "a dog", "mode": "pro", "sound": "on"}]
        )
    run = run_dag(dag)

    assert states(run) == {"make": ["success"] * 2}
    bodies = sorted((made.body for made in kling_emulator.ledger.tasks()), key=lambda body: body["prompt"])
    assert [(body["prompt"], body.get("mode")) for body in bodies] == [("a cat", None), ("a dog", "pro")]


def test_a_missing_value_in_a_template_does_not_buy_a_video_of_none(
    kling_emulator: KlingEmulator, run_dag: Callable[..., Any]
) -> None:
    with DAG("missing", schedule=None, params={"prompt": None}) as dag:
        KlingGenerateVideoOperator(task_id="make", prompt="{{ params.prompt }}")
    run = run_dag(dag)

    assert states(run) == {"make": ["failed"]}
    assert kling_emulator.ledger.requests() == []
