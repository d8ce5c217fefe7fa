"""From a Dag to the player: what tasks of every kind leave is what the page's routes find."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.operators.batch import KlingGenerateVideoBatchOperator
from airflow_provider_kling.operators.kling import KlingDownloadVideoOperator, KlingGenerateVideoOperator
from airflow_provider_kling.page_address import PATH
from airflow_provider_kling.sensors.kling import KlingVideoSensor
from tests.plugins.viewing import Viewer

pytestmark = pytest.mark.acceptance


def test_what_tasks_of_every_kind_store_is_listed_and_played(
    kling_emulator: KlingEmulator, run_dag: Callable[..., Any], viewer: Viewer, tmp_path: Path
) -> None:
    with DAG("made_and_played", schedule=None) as dag:
        single = KlingGenerateVideoOperator(
            task_id="single", prompt="a single kite", duration=3, output_path=f"{tmp_path}/single"
        )
        KlingGenerateVideoOperator.partial(
            task_id="mapped", duration=3, output_path=f"{tmp_path}/{{run_id}}/mapped.mp4"
        ).expand(prompt=["a cat", "a dog"])
        KlingGenerateVideoBatchOperator(
            task_id="list", requests=["a tide", "a dune"], duration=3, output_path=f"{tmp_path}/list"
        )
        made = single.output["task_id"]
        KlingDownloadVideoOperator(task_id="again", kling_task_id=made, output_path=f"{tmp_path}/single")
        KlingVideoSensor(task_id="waits", kling_task_id=made, poke_interval=0.1)
    run = run_dag(dag)
    assert str(run.state) == "success"

    run_at = f"/dags/made_and_played/runs/{quote(run.run_id, safe='')}/tasks"
    listed = viewer.get(
        "/api/v2/dags/~/dagRuns/~/taskInstances/~/xcomEntries?xcom_key=kling_video&limit=100"
    ).json()["xcom_entries"]
    entries = [(each["task_id"], each["map_index"]) for each in listed if each["run_id"] == run.run_id]
    assert sorted(entries) == [
        ("again", -1),
        ("list", -1),
        ("mapped", 0),
        ("mapped", 1),
        ("single", -1),
        ("waits", -1),
    ]

    def card(task_id: str, map_index: int) -> dict[str, Any]:
        entry = viewer.get(
            f"/api/v2/dags/made_and_played/dagRuns/{quote(run.run_id, safe='')}/taskInstances/{task_id}"
            f"/xcomEntries/kling_video?map_index={map_index}"
        ).json()
        value: dict[str, Any] = entry["value"]
        return value

    for task_id, map_index in [("single", -1), ("mapped", 0), ("mapped", 1), ("again", -1)]:
        told = card(task_id, map_index)
        answer = viewer.get(f"{PATH}{run_at}/{task_id}/{map_index}/files/0")
        assert answer.status_code == 200, (task_id, answer.text)
        assert answer.content == Path(told["files"][0]["path"]).read_bytes()
        assert answer.content[4:8] == b"ftyp"
    assert card("waits", -1)["task_id"] == card("single", -1)["task_id"]

    assert (card("list", -1)["kind"], card("list", -1)["completed"]) == ("list", 2)
    videos = viewer.get(f"{PATH}{run_at}/list/-1/videos").json()["videos"]
    assert [each["request"]["prompt"] for each in videos] == ["a tide", "a dune"]
    for each in videos:
        answer = viewer.get(f"{PATH}{run_at}/list/-1/files/0?item={each['item']}", Range="bytes=0-99")
        assert answer.status_code == 206
        assert len(answer.content) == 100


def test_a_file_that_a_task_of_the_same_dag_stores_at_its_own_place_is_played_there(
    kling_emulator: KlingEmulator, run_dag: Callable[..., Any], viewer: Viewer, tmp_path: Path
) -> None:
    with DAG("fetched_elsewhere", schedule=None) as dag:
        asks = KlingGenerateVideoOperator(
            task_id="asks", prompt="a kite", duration=3, wait_for_completion=False
        )
        KlingDownloadVideoOperator(
            task_id="fetches",
            kling_task_id=asks.output["task_id"],
            output_path=f"{tmp_path}/fetched",
            poll_interval=0.1,
        )
    run = run_dag(dag)
    assert str(run.state) == "success"
    run_at = f"{PATH}/dags/fetched_elsewhere/runs/{quote(run.run_id, safe='')}/tasks"
    assert viewer.get(f"{run_at}/fetches/-1/files/0").status_code == 200
    assert viewer.get(f"{run_at}/asks/-1/files/0").json()["reason"] == "not_stored"
