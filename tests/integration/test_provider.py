"""
The provider in a real Airflow: its processes, its database, its logs.

Most of the time a run waits. So a test says with ``run_of`` which run it is about, and all of these are started at
once, when the first of them is asked for: they wait together. What takes the most steps comes first in this file, and
what kills a part of Airflow comes last, when no other test's run is under way.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest

from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.emulator.faults import Fault
from dev.local_airflow import LocalAirflow
from tests.integration.conftest import wait_until
from tests.s3 import S3Server


class Run(NamedTuple):
    """What Airflow calls a run."""

    dag_id: str
    run_id: str


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("folders")


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest,
    airflow: LocalAirflow,
    service: KlingEmulator,
    bucket: S3Server,
    folders: Path,
) -> Mapping[str, Run]:
    """Start the runs of all chosen tests that are marked ``run_of(dag_id, *faults)``; return them by the tests' ids."""
    started = {}
    for test in request.session.items:
        for marker in test.iter_markers("run_of"):
            dag_id, *faults = marker.args
            run = Run(dag_id, chosen_run_id())
            for fault in faults:
                service.inject(fault.model_copy(update={"prompt": run.run_id}))
            # Each Dag takes of this what it has use for.
            conf = {
                "folder": str(folders / run.run_id),
                "bucket": bucket.uri().rstrip("/"),
                "prompt": run.run_id,
                "seconds": 3,
            }
            started[test.nodeid] = run
            airflow.trigger(dag_id, conf, run_id=run.run_id)
    return started


@pytest.fixture
def run(request: pytest.FixtureRequest, runs: Mapping[str, Run]) -> Run:
    """Return the run that this test is about. It was started before."""
    return runs[request.node.nodeid]


@pytest.fixture
def folder(run: Run, folders: Path) -> Path:
    """Return where this test's run puts its files, if its Dag asks for that."""
    return folders / run.run_id


NEVER = Fault(kind="latency", seconds=9999)
"""The next video is not ready before the test says so."""


def states(airflow: LocalAirflow, run: Run) -> dict[str, set[str | None]]:
    found: dict[str, set[str | None]] = {}
    for ti in airflow.task_instances(*run):
        found.setdefault(ti.task_id, set()).add(ti.state)
    return found


def chosen_run_id() -> str:
    """
    Return the id of a run to be started. It is the prompt too, so that a fault strikes this run's calls only.

    Examples with a schedule have runs of their own, beside those that a test starts.
    """
    return f"manual_{time.time_ns()}"


def succeed(airflow: LocalAirflow, run: Run) -> None:
    assert airflow.wait_for_run(*run) == "success", airflow.why_run_failed(*run)


def assert_each_scene_is_paid_once_and_stored(
    airflow: LocalAirflow, service: KlingEmulator, run: Run
) -> None:
    result = airflow.api.xcom(*run, "make")
    assert (result["total"], result["completed"]) == (6, 6)
    paid = [bill.task_id for bill in service.ledger.paid(run.run_id)]
    made = {its.task_id: its.prompt for its in service.ledger.tasks(run.run_id)}
    assert [made[its["task_id"]] for its in result["results"]] == [
        f"{run.run_id} scene {n}" for n in range(6)
    ]
    assert sorted(paid) == sorted(made), "each of them once"
    for its in result["results"]:
        assert Path(its["path"]).stat().st_size > 1000
    document = json.loads(Path(result["results_path"]).read_text())
    assert document["results"] == result["results"]


@pytest.mark.run_of("kling_batch", NEVER.model_copy(update={"times": 3}))
def test_a_list_is_made_in_waves_by_one_deferred_task(
    airflow: LocalAirflow, service: KlingEmulator, run: Run
) -> None:
    airflow.api.wait_for_task(*run, "make", "deferred")
    assert len(service.ledger.creates(run.run_id)) == 3, "no more than max_in_flight"
    for its in service.ledger.tasks(run.run_id):
        service.complete(its.task_id)

    succeed(airflow, run)
    assert_each_scene_is_paid_once_and_stored(airflow, service, run)
    assert len(service.ledger.creates(run.run_id)) == 6


@pytest.mark.run_of("example_kling_content_calendar")
def test_the_content_calendar_publishes_what_a_person_approves(
    airflow: LocalAirflow, run: Run, folder: Path
) -> None:
    airflow.api.wait_for_dag("example_kling_publish")
    airflow.api.unpause("example_kling_publish")
    airflow.api.wait_for_task(*run, "approve", "awaiting_input")
    assert not (folder / "published").exists()
    # A person takes longer than this to look at a video.
    airflow.wait_until_off_its_worker(*run, "approve")
    airflow.api.call(
        "PATCH",
        f"dags/{run.dag_id}/dagRuns/{run.run_id}/taskInstances/approve/-1/hitlDetails",
        json={"chosen_options": ["Approve"], "params_input": {}},
    )
    succeed(airflow, run)

    made = airflow.api.xcom(*run, "release")
    assert len(made) >= 2
    published = wait_until(lambda: airflow.api.run_ids("example_kling_publish"))
    assert airflow.wait_for_run("example_kling_publish", published[0]) == "success"
    assert {path.name for path in folder.rglob("published/*")} == {Path(path).name for path in made}


@pytest.mark.run_of("example_kling_text_to_video", NEVER)
def test_the_first_example_waits_deferred_and_leaves_a_file(
    airflow: LocalAirflow, service: KlingEmulator, run: Run, folder: Path
) -> None:
    airflow.api.wait_for_task(*run, "make_video", "deferred")
    task_id = airflow.api.xcom(*run, "make_video", "task_id")
    link = airflow.api.call("GET", f"dags/{run.dag_id}/dagRuns/{run.run_id}/taskInstances/make_video/links")
    service.complete(task_id)

    succeed(airflow, run)
    video = airflow.api.xcom(*run, "make_video")
    assert video["task_id"] == task_id == service.ledger.tasks(run.run_id)[0].task_id
    [address] = link["extra_links"].values()
    assert parse_qs(urlsplit(address).query) == {
        "dag_id": [run.dag_id],
        "run_id": [run.run_id],
        "task_id": ["make_video"],
        "map_index": ["-1"],
    }
    assert (folder / f"{task_id}.mp4").stat().st_size > 1000
    assert len(service.ledger.paid(run.run_id)) == 1


@pytest.mark.run_of("kling_stored_connection", NEVER)
def test_a_deferred_task_that_a_person_ends_says_what_becomes_of_the_video(
    airflow: LocalAirflow, service: KlingEmulator, run: Run
) -> None:
    airflow.api.wait_for_task(*run, "make", "deferred")
    wait_until(lambda: service.ledger.tasks(run.run_id)[0].queries >= 2)  # the trigger runs
    airflow.api.call(
        "PATCH",
        f"dags/{run.dag_id}/dagRuns/{run.run_id}/taskInstances/make",
        json={"new_state": "failed"},
    )
    wait_until(
        lambda: any(
            "goes on and will be billed" in path.read_text(errors="replace")
            for path in airflow.log_files()
            if run.run_id in str(path)
        )
    )


@pytest.mark.run_of("kling_sensor_from_trigger", NEVER)
def test_a_sensor_starts_in_the_triggerer_with_another_tasks_output(
    airflow: LocalAirflow, service: KlingEmulator, run: Run
) -> None:
    airflow.api.wait_for_task(*run, "gives_up", "skipped")
    service.complete(service.ledger.tasks(run.run_id)[0].task_id)
    succeed(airflow, run)
    assert states(airflow, run) == {"submit": {"success"}, "waits": {"success"}, "gives_up": {"skipped"}}
    submitted = airflow.api.xcom(*run, "submit")
    made = airflow.api.xcom(*run, "waits")
    assert made["task_id"] == submitted["task_id"]
    assert made["state"] == "completed"


@pytest.mark.run_of("kling_deferred")
def test_a_completed_video_is_delivered_again_when_its_task_is_cleared(
    airflow: LocalAirflow, service: KlingEmulator, run: Run
) -> None:
    succeed(airflow, run)
    first = airflow.api.xcom(*run, "make")
    airflow.api.call(
        "POST",
        "dags/kling_deferred/clearTaskInstances",
        json={"dry_run": False, "dag_run_id": run.run_id, "task_ids": ["make"], "only_failed": False},
    )
    # Of what Airflow tells, this stays.
    wait_until(lambda: airflow.task_instances(*run)[0].try_number > 1)
    succeed(airflow, run)

    assert airflow.api.xcom(*run, "make") == first
    assert len(service.ledger.creates(run.run_id)) == 1


@pytest.mark.run_of("kling_stored_on_s3")
def test_a_stored_video_starts_the_dag_that_is_scheduled_on_its_asset(
    airflow: LocalAirflow, service: KlingEmulator, bucket: S3Server, run: Run
) -> None:
    succeed(airflow, run)
    (file,) = airflow.api.xcom(*run, "make")["files"]

    name = file["path"].partition(f"@{bucket.bucket}/")[2]
    assert name.startswith("kling_stored_on_s3/")
    assert hashlib.sha256(bucket.content(name)).hexdigest() == file["sha256"]
    manifest = json.loads(bucket.content(f"{name}.json"))
    assert manifest["run_id"] == run.run_id
    assert manifest["cost"]["recorded_usd"] == float(service.ledger.paid(run.run_id)[0].usd)

    started = wait_until(lambda: airflow.api.run_ids("kling_after_the_trailer"))
    assert airflow.wait_for_run("kling_after_the_trailer", started[0]) == "success"
    (told,) = airflow.api.xcom("kling_after_the_trailer", started[0], "received")
    assert told["path"] == file["path"]
    assert told["request"]["prompt"] == run.run_id
    assets = airflow.api.call("GET", "assets", params={"only_active": False, "uri_pattern": bucket.bucket})[
        "assets"
    ]
    assert [asset["uri"] for asset in assets] == [f"s3://{bucket.bucket}/{name}"], "the alias became the file"


@pytest.mark.run_of("example_kling_content_pipeline")
def test_the_pipeline_makes_all_its_videos(airflow: LocalAirflow, run: Run) -> None:
    succeed(airflow, run)
    summary = airflow.api.xcom(*run, "summarise")
    assert len(summary["videos"]) == 3
    assert summary["seconds"] == 13


@pytest.mark.run_of("kling_over_budget")
def test_a_request_above_its_authors_limit_costs_nothing_and_is_not_retried(
    airflow: LocalAirflow, service: KlingEmulator, run: Run
) -> None:
    assert airflow.wait_for_run(*run) == "failed"
    assert service.ledger.creates(run.run_id) == []
    log = airflow.api.task_log(*run, "make")
    assert "max_cost_usd" in log
    assert "Nothing was sent and nothing was billed" in log


@pytest.mark.run_of("kling_on_the_worker", Fault(kind="fail", fail_code="UPSTREAM_FAILED"))
def test_a_failed_video_is_asked_for_again_and_paid_once(
    airflow: LocalAirflow, service: KlingEmulator, run: Run
) -> None:
    succeed(airflow, run)
    assert len(service.ledger.creates(run.run_id)) == 2
    assert len(service.ledger.paid(run.run_id)) == 1


@pytest.mark.run_of(
    "kling_deferred", Fault(kind="fail", fail_code="CONTENT_MODERATION", message="no, thank you")
)
def test_refused_content_ends_the_task_without_retries(
    airflow: LocalAirflow, service: KlingEmulator, run: Run
) -> None:
    assert airflow.wait_for_run(*run) == "failed"
    assert len(service.ledger.creates(run.run_id)) == 1
    assert "no, thank you" in airflow.api.task_log(*run, "make")


@pytest.mark.run_of("kling_sensor_modes", Fault(kind="latency", seconds=15))
def test_the_sensor_waits_in_each_of_its_modes(airflow: LocalAirflow, run: Run) -> None:
    succeed(airflow, run)
    results = [airflow.api.xcom(*run, task_id) for task_id in ("poke", "reschedule", "deferred")]
    assert results[0] == results[1] == results[2]
    assert results[0]["state"] == "completed"


@pytest.mark.run_of("kling_soft_fail", NEVER)
def test_a_sensor_that_may_fail_softly_is_skipped(airflow: LocalAirflow, run: Run) -> None:
    airflow.wait_for_run(*run)
    assert states(airflow, run) == {"submit": {"success"}, "poke": {"skipped"}, "deferred": {"skipped"}}


@pytest.mark.run_of("kling_held", NEVER)
def test_the_key_is_in_no_log_xcom_trigger_row_or_rendered_field(
    airflow: LocalAirflow, service: KlingEmulator, run: Run
) -> None:
    airflow.api.wait_for_task(*run, "make", "deferred")
    rows = airflow.query("SELECT * FROM trigger")
    assert rows
    assert service.api_key not in json.dumps(rows, default=str)
    airflow.wait_until_off_its_worker(*run, "make")
    service.inject("answer", status=401, call="query", prompt=run.run_id, times="always")
    assert airflow.wait_for_run(*run) == "failed"

    key = service.api_key.encode()
    searched = [path for path in airflow.log_files() if path.stat().st_size]
    searched += [airflow.database, *airflow.database.parent.glob("airflow.db-*")]
    assert len(searched) > 5
    assert [path for path in searched if key in path.read_bytes()] == []
    assert service.ledger.key_leaks() == []


COMMANDS = {
    ("providers", "get", "airflow-provider-kling", "--full", "--output", "json"): "KlingHook",
    ("providers", "hooks"): "kling_conn_id",
    ("providers", "links"): "KlingVideoLink",
    ("config", "list", "--section", "kling"): "max_failed_queries",
    ("config", "get-value", "kling", "max_failed_queries"): "5",
}

RUN_ALL = """
import contextlib, io, json, sys
from airflow.__main__ import main

printed = []
for command in json.load(sys.stdin):
    sys.argv = ["airflow", *command]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        main()
    printed.append(output.getvalue())
print(json.dumps(printed))
"""


@pytest.fixture(scope="module")
def printed(airflow: LocalAirflow) -> Mapping[tuple[str, ...], str]:
    """Return what the commands print. One process runs them all: most of their time goes into loading Airflow."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL],
        cwd=airflow.home,
        env=airflow.environment | {"COLUMNS": "1000"},  # or tables are cut to the width of a terminal
        input=json.dumps(list(COMMANDS)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(COMMANDS, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize(
    ("command", "expected"),
    COMMANDS.items(),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_airflow_knows_the_provider(
    printed: Mapping[tuple[str, ...], str], command: tuple[str, ...], expected: str
) -> None:
    assert expected in printed[command]


def test_every_dag_was_read_without_errors(airflow: LocalAirflow) -> None:
    airflow.api.wait_for_dag("kling_deferred")
    assert airflow.api.import_errors() == {}


@pytest.mark.run_of("kling_held", NEVER)
def test_a_killed_triggerer_costs_nothing(airflow: LocalAirflow, service: KlingEmulator, run: Run) -> None:
    airflow.api.wait_for_task(*run, "make", "deferred")
    airflow.wait_until_off_its_worker(*run, "make")
    wait_until(lambda: service.ledger.tasks(run.run_id)[0].queries >= 2)  # the trigger runs
    airflow.lose_triggerer()
    service.complete(service.ledger.tasks(run.run_id)[0].task_id)

    succeed(airflow, run)
    assert len(service.ledger.creates(run.run_id)) == 1


def test_a_killed_worker_costs_nothing(airflow: LocalAirflow, service: KlingEmulator) -> None:
    run = Run("kling_on_the_worker", chosen_run_id())
    service.inject("latency", seconds=9999, prompt=run.run_id)
    airflow.trigger(run.dag_id, run_id=run.run_id)
    wait_until(lambda: airflow.api.xcom_keys(*run, "make") >= {"task_id"})
    airflow.lose_scheduler()
    service.complete(service.ledger.tasks(run.run_id)[0].task_id)

    succeed(airflow, run)
    assert len(service.ledger.creates(run.run_id)) == 1
    assert len(service.ledger.paid(run.run_id)) == 1


def test_a_worker_killed_while_it_submits_a_list_leaves_nothing_to_be_paid_twice(
    airflow: LocalAirflow, service: KlingEmulator, tmp_path: Path
) -> None:
    run = Run("kling_batch_on_the_worker", chosen_run_id())
    service.inject("latency", seconds=9999, times=2, prompt=run.run_id)
    service.inject("answer", call="create", status=429, retry_after=600, skip=2, prompt=run.run_id)
    airflow.trigger(run.dag_id, {"folder": str(tmp_path)}, run_id=run.run_id)
    # Turned away with the third, the worker waits for the first two: no request is on its way.
    wait_until(lambda: [its.queries > 0 for its in service.ledger.tasks(run.run_id)] == [True, True])
    airflow.lose_scheduler()
    for its in service.ledger.tasks(run.run_id)[
        :2
    ]:  # the next attempt may be asking for further ones already
        service.complete(its.task_id)

    succeed(airflow, run)
    assert_each_scene_is_paid_once_and_stored(airflow, service, run)
    assert len(service.ledger.creates(run.run_id)) == 7, "one of them was turned away"
