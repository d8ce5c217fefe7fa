"""The provider in a real Airflow: its processes, its database, its logs."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from airflow_provider_kling.emulator import KlingEmulator
from dev.local_airflow import LocalAirflow
from tests.s3 import S3Server


def states(airflow: LocalAirflow, dag_id: str, run_id: str) -> dict[str, set[str | None]]:
    found: dict[str, set[str | None]] = {}
    for ti in airflow.task_instances(dag_id, run_id):
        found.setdefault(ti.task_id, set()).add(ti.state)
    return found


def wait_until(what: Callable[[], Any], seconds: float = 900) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.2)
    return found


def chosen_run_id() -> str:
    """
    Return the id of a run to be started. It is the prompt too, so that a fault strikes this run's calls only.

    Examples with a schedule have runs of their own, beside those that a test starts.
    """
    return f"manual_{time.time_ns()}"


def succeed(airflow: LocalAirflow, dag_id: str, run_id: str) -> None:
    assert airflow.wait_for_run(dag_id, run_id) == "success", airflow.why_run_failed(dag_id, run_id)


def test_the_first_example_waits_deferred_and_leaves_a_file(
    airflow: LocalAirflow, service: KlingEmulator, tmp_path: Path
) -> None:
    dag_id = "example_kling_text_to_video"
    service.inject("latency", seconds=9999, prompt="whole way")
    run_id = airflow.trigger(dag_id, {"folder": str(tmp_path), "seconds": 3, "prompt": "whole way"})
    airflow.api.wait_for_task(dag_id, run_id, "make_video", "deferred")
    task_id = airflow.api.xcom(dag_id, run_id, "make_video", "task_id")
    link = airflow.api.call("GET", f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/make_video/links")
    service.complete(task_id)

    assert airflow.wait_for_run(dag_id, run_id) == "success", airflow.why_run_failed(dag_id, run_id)
    video = airflow.api.xcom(dag_id, run_id, "make_video")
    assert video["task_id"] == task_id == service.ledger.tasks("whole way")[0].task_id
    [address] = link["extra_links"].values()
    assert parse_qs(urlsplit(address).query) == {
        "dag_id": [dag_id],
        "run_id": [run_id],
        "task_id": ["make_video"],
        "map_index": ["-1"],
    }
    assert (tmp_path / f"{task_id}.mp4").stat().st_size > 1000
    assert len(service.ledger.paid("whole way")) == 1


def test_the_pipeline_makes_all_its_videos(airflow: LocalAirflow) -> None:
    run_id = airflow.trigger("example_kling_content_pipeline")
    assert airflow.wait_for_run("example_kling_content_pipeline", run_id) == "success", (
        airflow.why_run_failed("example_kling_content_pipeline", run_id)
    )
    summary = airflow.api.xcom("example_kling_content_pipeline", run_id, "summarise")
    assert len(summary["videos"]) == 3
    assert summary["seconds"] == 13


def test_a_stored_video_starts_the_dag_that_is_scheduled_on_its_asset(
    airflow: LocalAirflow, service: KlingEmulator, bucket: S3Server
) -> None:
    airflow.api.wait_for_dag("kling_after_the_trailer")
    airflow.api.unpause("kling_after_the_trailer")
    run_id = airflow.run("kling_stored_on_s3", {"bucket": bucket.uri().rstrip("/")})
    (file,) = airflow.api.xcom("kling_stored_on_s3", run_id, "make")["files"]

    name = file["path"].partition(f"@{bucket.bucket}/")[2]
    assert name.startswith("kling_stored_on_s3/")
    assert hashlib.sha256(bucket.content(name)).hexdigest() == file["sha256"]
    manifest = json.loads(bucket.content(f"{name}.json"))
    assert manifest["run_id"] == run_id
    assert manifest["cost"]["recorded_usd"] == float(service.ledger.paid(run_id)[0].usd)

    started = wait_until(lambda: airflow.api.run_ids("kling_after_the_trailer"))
    assert airflow.wait_for_run("kling_after_the_trailer", started[0]) == "success"
    (told,) = airflow.api.xcom("kling_after_the_trailer", started[0], "received")
    assert told["path"] == file["path"]
    assert told["request"]["prompt"] == run_id
    assets = airflow.api.call("GET", "assets", params={"only_active": False, "uri_pattern": bucket.bucket})[
        "assets"
    ]
    assert [asset["uri"] for asset in assets] == [f"s3://{bucket.bucket}/{name}"], "the alias became the file"


def test_a_request_above_its_authors_limit_costs_nothing_and_is_not_retried(
    airflow: LocalAirflow, service: KlingEmulator
) -> None:
    run_id = airflow.trigger("kling_over_budget")
    assert airflow.wait_for_run("kling_over_budget", run_id) == "failed"
    assert service.ledger.creates(run_id) == []
    log = airflow.api.task_log("kling_over_budget", run_id, "make")
    assert "max_cost_usd" in log
    assert "Nothing was sent and nothing was billed" in log


def test_the_content_calendar_publishes_what_a_person_approves(airflow: LocalAirflow, tmp_path: Path) -> None:
    airflow.api.wait_for_dag("example_kling_publish")
    airflow.api.unpause("example_kling_publish")
    run_id = airflow.trigger("example_kling_content_calendar", {"folder": str(tmp_path)})
    airflow.api.wait_for_task("example_kling_content_calendar", run_id, "approve", "awaiting_input")
    assert not (tmp_path / "published").exists()
    # A person takes longer than this to look at a video.
    airflow.wait_until_off_its_worker("example_kling_content_calendar", run_id, "approve")
    airflow.api.call(
        "PATCH",
        f"dags/example_kling_content_calendar/dagRuns/{run_id}/taskInstances/approve/-1/hitlDetails",
        json={"chosen_options": ["Approve"], "params_input": {}},
    )
    assert airflow.wait_for_run("example_kling_content_calendar", run_id) == "success", (
        airflow.why_run_failed("example_kling_content_calendar", run_id)
    )

    made = airflow.api.xcom("example_kling_content_calendar", run_id, "release")
    assert len(made) >= 2
    published = wait_until(lambda: airflow.api.run_ids("example_kling_publish"))
    assert airflow.wait_for_run("example_kling_publish", published[0]) == "success"
    assert {path.name for path in (tmp_path).rglob("published/*")} == {Path(path).name for path in made}


def test_the_sensor_waits_in_each_of_its_modes(airflow: LocalAirflow, service: KlingEmulator) -> None:
    run_id = chosen_run_id()
    service.inject("latency", seconds=15, prompt=run_id)
    airflow.trigger("kling_sensor_modes", run_id=run_id)
    succeed(airflow, "kling_sensor_modes", run_id)
    results = [
        airflow.api.xcom("kling_sensor_modes", run_id, task_id)
        for task_id in ("poke", "reschedule", "deferred")
    ]
    assert results[0] == results[1] == results[2]
    assert results[0]["state"] == "completed"


def test_a_sensor_starts_in_the_triggerer_with_another_tasks_output(
    airflow: LocalAirflow, service: KlingEmulator
) -> None:
    run_id = chosen_run_id()
    service.inject("latency", seconds=9999, prompt=run_id)
    airflow.trigger("kling_sensor_from_trigger", run_id=run_id)
    airflow.api.wait_for_task("kling_sensor_from_trigger", run_id, "gives_up", "skipped")
    service.complete(service.ledger.tasks(run_id)[0].task_id)
    succeed(airflow, "kling_sensor_from_trigger", run_id)
    assert states(airflow, "kling_sensor_from_trigger", run_id) == {
        "submit": {"success"},
        "waits": {"success"},
        "gives_up": {"skipped"},
    }
    submitted = airflow.api.xcom("kling_sensor_from_trigger", run_id, "submit")
    made = airflow.api.xcom("kling_sensor_from_trigger", run_id, "waits")
    assert made["task_id"] == submitted["task_id"]
    assert made["state"] == "completed"


def test_a_sensor_that_may_fail_softly_is_skipped(airflow: LocalAirflow, service: KlingEmulator) -> None:
    run_id = chosen_run_id()
    service.inject("latency", seconds=9999, prompt=run_id)
    airflow.trigger("kling_soft_fail", run_id=run_id)
    airflow.wait_for_run("kling_soft_fail", run_id)
    assert states(airflow, "kling_soft_fail", run_id) == {
        "submit": {"success"},
        "poke": {"skipped"},
        "deferred": {"skipped"},
    }


def test_a_killed_triggerer_costs_nothing(airflow: LocalAirflow, service: KlingEmulator) -> None:
    run_id = chosen_run_id()
    service.inject("latency", seconds=9999, prompt=run_id)
    airflow.trigger("kling_deferred", run_id=run_id)
    airflow.api.wait_for_task("kling_deferred", run_id, "make", "deferred")
    airflow.kill("triggerer")
    airflow.start_component("triggerer")
    airflow.wait_until_healthy()
    service.complete(service.ledger.tasks(run_id)[0].task_id)

    assert airflow.wait_for_run("kling_deferred", run_id) == "success", airflow.why_run_failed(
        "kling_deferred", run_id
    )
    assert len(service.ledger.creates(run_id)) == 1


def test_a_killed_worker_costs_nothing(airflow: LocalAirflow, service: KlingEmulator) -> None:
    run_id = chosen_run_id()
    service.inject("latency", seconds=9999, prompt=run_id)
    airflow.trigger("kling_on_the_worker", run_id=run_id)
    wait_until(lambda: airflow.api.xcom_keys("kling_on_the_worker", run_id, "make") >= {"task_id"})
    airflow.lose_scheduler()
    service.complete(service.ledger.tasks(run_id)[0].task_id)

    succeed(airflow, "kling_on_the_worker", run_id)
    assert len(service.ledger.creates(run_id)) == 1
    assert len(service.ledger.paid(run_id)) == 1


def assert_each_scene_is_paid_once_and_stored(
    airflow: LocalAirflow, service: KlingEmulator, dag_id: str, run_id: str
) -> None:
    result = airflow.api.xcom(dag_id, run_id, "make")
    assert (result["total"], result["completed"]) == (6, 6)
    paid = [bill.task_id for bill in service.ledger.paid(run_id)]
    made = {its.task_id: its.prompt for its in service.ledger.tasks(run_id)}
    assert [made[its["task_id"]] for its in result["results"]] == [f"{run_id} scene {n}" for n in range(6)]
    assert sorted(paid) == sorted(made), "each of them once"
    for its in result["results"]:
        assert Path(its["path"]).stat().st_size > 1000
    document = json.loads(Path(result["results_path"]).read_text())
    assert document["results"] == result["results"]


def test_a_list_is_made_in_waves_by_one_deferred_task(
    airflow: LocalAirflow, service: KlingEmulator, tmp_path: Path
) -> None:
    run_id = chosen_run_id()
    service.inject("latency", seconds=9999, prompt=run_id, times=3)
    airflow.trigger("kling_batch", {"folder": str(tmp_path)}, run_id=run_id)
    airflow.api.wait_for_task("kling_batch", run_id, "make", "deferred")
    assert len(service.ledger.creates(run_id)) == 3, "no more than max_in_flight"
    for its in service.ledger.tasks(run_id):
        service.complete(its.task_id)

    assert airflow.wait_for_run("kling_batch", run_id) == "success", airflow.why_run_failed(
        "kling_batch", run_id
    )
    assert_each_scene_is_paid_once_and_stored(airflow, service, "kling_batch", run_id)
    assert len(service.ledger.creates(run_id)) == 6


def test_a_worker_killed_while_it_submits_a_list_leaves_nothing_to_be_paid_twice(
    airflow: LocalAirflow, service: KlingEmulator, tmp_path: Path
) -> None:
    dag_id = "kling_batch_on_the_worker"
    run_id = chosen_run_id()
    service.inject("latency", seconds=9999, times=2, prompt=run_id)
    service.inject("answer", call="create", status=429, retry_after=600, skip=2, prompt=run_id)
    airflow.trigger(dag_id, {"folder": str(tmp_path)}, run_id=run_id)
    # Turned away with the third, the worker waits for the first two: no request is on its way.
    wait_until(lambda: [its.queries > 0 for its in service.ledger.tasks(run_id)] == [True, True])
    airflow.lose_scheduler()
    for its in service.ledger.tasks(run_id)[:2]:  # the next attempt may be asking for further ones already
        service.complete(its.task_id)

    assert airflow.wait_for_run(dag_id, run_id) == "success", airflow.why_run_failed(dag_id, run_id)
    assert_each_scene_is_paid_once_and_stored(airflow, service, dag_id, run_id)
    assert len(service.ledger.creates(run_id)) == 7, "one of them was turned away"


def test_a_failed_video_is_asked_for_again_and_paid_once(
    airflow: LocalAirflow, service: KlingEmulator
) -> None:
    run_id = chosen_run_id()
    service.inject("fail", fail_code="UPSTREAM_FAILED", prompt=run_id)
    airflow.trigger("kling_on_the_worker", run_id=run_id)
    assert airflow.wait_for_run("kling_on_the_worker", run_id) == "success", airflow.why_run_failed(
        "kling_on_the_worker", run_id
    )
    assert len(service.ledger.creates(run_id)) == 2
    assert len(service.ledger.paid(run_id)) == 1


def test_refused_content_ends_the_task_without_retries(airflow: LocalAirflow, service: KlingEmulator) -> None:
    run_id = chosen_run_id()
    service.inject("fail", fail_code="CONTENT_MODERATION", message="no, thank you", prompt=run_id)
    airflow.trigger("kling_deferred", run_id=run_id)
    assert airflow.wait_for_run("kling_deferred", run_id) == "failed"
    assert len(service.ledger.creates(run_id)) == 1
    assert "no, thank you" in airflow.api.task_log("kling_deferred", run_id, "make")


def test_a_completed_video_is_delivered_again_when_its_task_is_cleared(
    airflow: LocalAirflow, service: KlingEmulator
) -> None:
    run_id = airflow.trigger("kling_deferred")
    assert airflow.wait_for_run("kling_deferred", run_id) == "success", airflow.why_run_failed(
        "kling_deferred", run_id
    )
    first = airflow.api.xcom("kling_deferred", run_id, "make")
    airflow.api.call(
        "POST",
        "dags/kling_deferred/clearTaskInstances",
        json={"dry_run": False, "dag_run_id": run_id, "task_ids": ["make"], "only_failed": False},
    )
    # Of what Airflow tells, this stays.
    wait_until(lambda: airflow.task_instances("kling_deferred", run_id)[0].try_number > 1)
    assert airflow.wait_for_run("kling_deferred", run_id) == "success", airflow.why_run_failed(
        "kling_deferred", run_id
    )

    assert airflow.api.xcom("kling_deferred", run_id, "make") == first
    assert len(service.ledger.creates(run_id)) == 1


def test_a_deferred_task_that_a_person_ends_says_what_becomes_of_the_video(
    airflow: LocalAirflow, service: KlingEmulator
) -> None:
    run_id = chosen_run_id()
    service.inject("latency", seconds=9999, prompt=run_id)
    airflow.api.call(
        "POST",
        "connections",
        json={
            "connection_id": "kling_stored",
            "conn_type": "kling",
            "host": service.base_url,
            "password": service.api_key,
        },
    )
    airflow.trigger("kling_stored_connection", run_id=run_id)
    airflow.api.wait_for_task("kling_stored_connection", run_id, "make", "deferred")
    wait_until(lambda: service.ledger.tasks(run_id)[0].queries >= 2)  # the trigger runs
    airflow.api.call(
        "PATCH",
        f"dags/kling_stored_connection/dagRuns/{run_id}/taskInstances/make",
        json={"new_state": "failed"},
    )
    wait_until(
        lambda: any(
            "goes on and will be billed" in path.read_text(errors="replace") for path in airflow.log_files()
        )
    )


def test_the_key_is_in_no_log_xcom_trigger_row_or_rendered_field(
    airflow: LocalAirflow, service: KlingEmulator
) -> None:
    run_id = chosen_run_id()
    service.inject("latency", seconds=9999, prompt=run_id)
    airflow.trigger("kling_deferred", run_id=run_id)
    wait_until(lambda: airflow.query("SELECT * FROM trigger"))
    rows = airflow.query("SELECT * FROM trigger")
    assert service.api_key not in json.dumps(rows, default=str)
    service.inject("answer", status=401, call="query", prompt=run_id, times="always")
    assert airflow.wait_for_run("kling_deferred", run_id) == "failed"

    key = service.api_key.encode()
    searched = [path for path in airflow.log_files() if path.stat().st_size]
    searched += [airflow.database, *airflow.database.parent.glob("airflow.db-*")]
    assert len(searched) > 5
    assert [path for path in searched if key in path.read_bytes()] == []
    assert service.ledger.key_leaks() == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("providers", "get", "airflow-provider-kling", "--full", "--output", "json"), "KlingHook"),
        (("providers", "hooks"), "kling_conn_id"),
        (("providers", "links"), "KlingVideoLink"),
        (("config", "list", "--section", "kling"), "max_failed_queries"),
        (("config", "get-value", "kling", "max_failed_queries"), "5"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_airflow_knows_the_provider(airflow: LocalAirflow, arguments: tuple[str, ...], expected: str) -> None:
    assert expected in airflow.run_airflow(*arguments)


def test_every_dag_was_read_without_errors(airflow: LocalAirflow) -> None:
    airflow.api.wait_for_dag("kling_deferred")
    assert airflow.api.import_errors() == {}
