"""What becomes of a completed video: stored, described, told to assets and lineage, delivered again for nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowFailException,
    AirflowSkipException,
    Asset,
    AssetAlias,
    TaskDeferred,
    task,
)

from airflow_provider_kling.api.errors import (
    Paid,
    ResultExpiredError,
    TaskFailedError,
    TaskNotFoundError,
    TaskTimeoutError,
)
from airflow_provider_kling.decorators.kling import KlingVideoDecoratedOperator
from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.operators.kling import KlingDownloadVideoOperator, KlingGenerateVideoOperator
from airflow_provider_kling.storage import StorageError
from tests.hooks.conftest import Connect, connect, failing_lookups
from tests.media import draw_image, draw_video
from tests.s3 import S3Server, s3_endpoint, s3_server
from tests.task_runs import OutletEvents, TaskInstance, finish_videos, link_to, rendered, run_task

__all__ = ["connect", "failing_lookups", "s3_endpoint", "s3_server"]

both_ways = pytest.mark.parametrize("deferrable", [False, True], ids=["on the worker", "deferred"])
renders_to_no_place = pytest.mark.parametrize("value", [None, "", "None", "../film.mp4"], ids=repr)


def operator(**arguments: Any) -> KlingGenerateVideoOperator:
    defaults: dict[str, Any] = {
        "task_id": "make",
        "prompt": "a red kite",
        "duration": 3,
        "poll_interval": 0.05,
        "timeout": 300,
    }
    return KlingGenerateVideoOperator(**(defaults | arguments))


def downloader(task_id: str, **arguments: Any) -> KlingDownloadVideoOperator:
    defaults: dict[str, Any] = {
        "task_id": "fetch",
        "kling_task_id": task_id,
        "poll_interval": 0.05,
        "timeout": 300,
    }
    return KlingDownloadVideoOperator(**(defaults | arguments))


@both_ways
@pytest.mark.kling_emulator(latency=0.3)
def test_the_file_and_its_manifest_lie_where_the_author_wants_them(
    kling_emulator: KlingEmulator, tmp_path: Path, deferrable: bool
) -> None:
    template = f"{tmp_path}/{{dag_id}}/{{task_id}}_{{kling_task_id}}.{{ext}}"
    result = run_task(lambda: operator(output_path=template, deferrable=deferrable)).value()

    (file,) = result["files"]
    assert result["path"] == file["path"] == f"{tmp_path}/dag/task_{result['task_id']}.mp4"
    assert Path(result["path"]).stat().st_size == file["size_bytes"]
    assert result["duration_seconds"] == file["duration_seconds"] == pytest.approx(3, abs=0.1)
    manifest = json.loads(Path(file["manifest_path"]).read_text())
    assert manifest["kling_task_id"] == result["task_id"]
    assert manifest["request"] == {"model": "kling-v3-omni", "prompt": "a red kite", "duration": "3"}
    assert manifest["run_id"] == TaskInstance.run_id
    assert manifest["cost"]["estimated_usd"] == pytest.approx(3 * 0.0633)
    assert manifest["cost"]["recorded_usd"] == result["recorded_cost_usd"] == pytest.approx(3 * 0.0633)
    assert "http" not in json.dumps(manifest), "a link may be signed"


def test_mapped_tasks_with_one_name_do_not_meet_on_one_file(
    kling_emulator: KlingEmulator, run_dag: Callable[..., Any], tmp_path: Path
) -> None:
    with DAG("mapped_files", schedule=None) as dag:
        KlingGenerateVideoOperator.partial(
            task_id="make", duration=3, output_path=f"{tmp_path}/{{run_id}}/film.mp4"
        ).expand(prompt=["a cat", "a dog"])
    run_dag(dag)

    files = sorted(path.name for path in tmp_path.rglob("*.mp4"))
    assert files == ["film_0.mp4", "film_1.mp4"]
    assert len(kling_emulator.ledger.paid()) == 2


def test_a_pipeline_stores_on_an_s3_compatible_server(
    kling_emulator: KlingEmulator, s3_server: S3Server, run_dag: Callable[..., Any]
) -> None:
    with DAG("on_s3", schedule=None) as dag:
        made = KlingGenerateVideoOperator(
            task_id="make", prompt="a cat", duration=3, output_path=s3_server.uri("films/{task_id}.{ext}")
        )

        @task
        def read(video: dict[str, Any]) -> int:
            from airflow.providers.common.compat.sdk import ObjectStoragePath

            with ObjectStoragePath(video["path"]).open("rb") as file:
                return len(file.read())

        read(made.output)
    run = run_dag(dag)

    assert str(run.state) == "success"
    assert s3_server.names() == ["films/make.mp4", "films/make.mp4.json"]
    assert json.loads(s3_server.content("films/make.mp4.json"))["file"]["size_bytes"] == len(
        s3_server.content("films/make.mp4")
    )


@pytest.mark.parametrize("attempts_know_of_it", [True, False], ids=["with a ledger", "without one"])
def test_a_file_that_cannot_be_stored_costs_nothing_but_a_retry(
    kling_emulator: KlingEmulator, tmp_path: Path, attempts_know_of_it: bool
) -> None:
    ledger = {"ledger_path": str(tmp_path / "ledger")} if attempts_know_of_it else {}
    kling_emulator.inject("cut", call="download", times="always")
    folder = tmp_path / "films"
    failed = run_task(lambda: operator(output_path=str(folder), **ledger))

    (made,) = kling_emulator.ledger.tasks()
    error = failed.error
    assert made.task_id in str(error)
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    if not attempts_know_of_it:
        assert isinstance(error, AirflowFailException), "a retry would buy a second video"
        assert f"KlingDownloadVideoOperator(kling_task_id={made.task_id!r})" in str(error)
        return
    assert isinstance(error, StorageError)
    assert "A retry fetches it again and buys nothing." in str(error)

    kling_emulator.faults.clear()
    result = run_task(lambda: operator(output_path=str(folder), **ledger)).value()
    assert Path(result["path"]).exists()
    assert len(kling_emulator.ledger.creates()) == 1


def test_a_download_that_is_cut_goes_on_where_it_broke(kling_emulator: KlingEmulator, tmp_path: Path) -> None:
    kling_emulator.inject("cut", call="download")
    result = run_task(lambda: operator(output_path=str(tmp_path))).value()
    whole = requests.get(result["video_url"], timeout=10).content
    assert Path(result["path"]).read_bytes() == whole
    asked = [request.status for request in kling_emulator.ledger.requests("download")]
    assert asked[:2] == [200, 206]


def test_a_video_that_was_stored_is_delivered_when_the_service_has_deleted_it(
    kling_emulator: KlingEmulator, tmp_path: Path
) -> None:
    arguments = {"output_path": str(tmp_path / "films"), "ledger_path": str(tmp_path / "ledger")}
    first = run_task(lambda: operator(**arguments)).value()
    kling_emulator.inject("answer", status=410, call="download", times="always")

    again = run_task(lambda: operator(**arguments)).value()
    assert again["files"] == first["files"]
    Path(first["path"]).unlink()
    gone = run_task(lambda: operator(**arguments)).error
    assert isinstance(gone, AirflowFailException)
    assert isinstance(gone.__cause__, ResultExpiredError)
    assert len(kling_emulator.ledger.creates()) == 1


def test_a_video_that_was_stored_is_delivered_when_the_service_has_forgotten_its_task(
    kling_emulator: KlingEmulator, tmp_path: Path
) -> None:
    arguments = {"output_path": str(tmp_path / "films"), "ledger_path": str(tmp_path / "ledger")}
    first = run_task(lambda: operator(**arguments)).value()
    kling_emulator.inject("answer", status=404, call="query", times="always")
    kling_emulator.inject("answer", status=404, call="record", times="always")

    again = run_task(lambda: operator(**arguments)).value()
    assert again["files"] == first["files"]
    assert again["request"] == first["request"]
    assert len(kling_emulator.ledger.creates()) == 1


def test_a_video_that_the_service_has_forgotten_is_bought_again_where_the_author_wants_that(
    kling_emulator: KlingEmulator, tmp_path: Path
) -> None:
    ledger = {"ledger_path": str(tmp_path / "ledger")}
    run_task(lambda: operator(**ledger)).value()
    kling_emulator.inject("answer", status=404, call="query")
    refused = run_task(lambda: operator(**ledger)).error
    assert isinstance(refused, AirflowFailException)
    assert "on_expired_result='resubmit'" in str(refused)

    kling_emulator.inject("answer", status=404, call="query")
    run_task(lambda: operator(on_expired_result="resubmit", **ledger)).value()
    assert len(kling_emulator.ledger.creates()) == 2


def test_a_manifest_keeps_what_only_the_task_that_asked_knew(
    kling_emulator: KlingEmulator, tmp_path: Path
) -> None:
    made = run_task(lambda: operator(output_path=str(tmp_path))).value()
    manifest = Path(made["files"][0]["manifest_path"])
    before = json.loads(manifest.read_text())
    kling_emulator.inject("answer", status=404, call="record", times="always")

    run_task(lambda: downloader(made["task_id"], output_path=str(tmp_path))).value()
    assert json.loads(manifest.read_text()) == before


SIGNED = "https://user:hunter2@example.com/pics/ben.png?X-Amz-Signature=abc#part"


def test_a_signed_reference_is_sent_whole_and_told_without_its_signature(
    kling_emulator: KlingEmulator, tmp_path: Path
) -> None:
    asset, events = Asset("s3://bucket/trailers"), OutletEvents()
    run = run_task(
        lambda: operator(
            prompt="<<<image_1>>>",
            image_list=[SIGNED],
            output_path=str(tmp_path),
            outlets=[asset],
            deferrable=True,
        ),
        context={"outlet_events": events},
    )
    (sent,) = kling_emulator.ledger.tasks()
    assert sent.body["image_list"] == [{"image_url": SIGNED}]
    told = [run.value(), run.ti.xcoms, events[asset].extra]
    told += [path.read_text() for path in tmp_path.glob("*.json")]
    assert "hunter2" not in repr(told)
    assert "X-Amz-Signature" not in repr(told)
    assert run.value()["request"]["image_list"] == [{"image_url": "https://example.com/pics/ben.png"}]


class BrokenTaskInstance(TaskInstance):
    def xcom_push(self, key: str, value: Any, **_: Any) -> None:
        raise RuntimeError("XCom is out of reach")


@both_ways
def test_an_xcom_that_cannot_be_written_does_not_cost_the_video(
    kling_emulator: KlingEmulator, deferrable: bool
) -> None:
    run = run_task(lambda: operator(deferrable=deferrable), ti=BrokenTaskInstance())
    assert run.value()["state"] == "completed"
    assert len(kling_emulator.ledger.paid()) == 1


@pytest.mark.parametrize("is_remembered", [True, False], ids=["with a ledger", "without one"])
def test_an_error_of_any_kind_after_the_submit_does_not_buy_a_second_video(
    kling_emulator: KlingEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_remembered: bool
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("nobody thought of this")

    ledger = {"ledger_path": str(tmp_path / "ledger")} if is_remembered else {}
    monkeypatch.setattr("airflow_provider_kling.delivery.video_result", broken)
    error = run_task(lambda: operator(**ledger)).error
    if is_remembered:
        assert isinstance(error, RuntimeError), "a retry attaches to the video"
    else:
        (made,) = kling_emulator.ledger.tasks()
        assert isinstance(error, AirflowFailException), "a retry would buy a second video"
        assert made.task_id in str(error)
        assert "nobody thought of this" in str(error)


@pytest.mark.kling_emulator(latency="never")
def test_a_connection_that_is_out_of_reach_when_the_task_resumes_does_not_buy_a_second_video(
    kling_emulator: KlingEmulator, failing_lookups: Callable[..., list[str]]
) -> None:
    run = run_task(
        lambda: operator(deferrable=True),
        between=lambda: failing_lookups(RuntimeError("the API server is away")),
    )
    (made,) = kling_emulator.ledger.tasks()
    assert isinstance(run.error, AirflowFailException)
    assert made.task_id in str(run.error)
    assert "the API server is away" in str(run.error)
    assert "Nothing was sent" not in str(run.error)


@pytest.mark.kling_emulator(latency="never")
def test_a_key_that_is_gone_when_the_task_resumes_does_not_make_it_say_that_nothing_was_billed(
    kling_emulator: KlingEmulator, connect: Connect
) -> None:
    run = run_task(lambda: operator(deferrable=True), between=lambda: connect(password=""))
    (made,) = kling_emulator.ledger.tasks()
    assert isinstance(run.error, AirflowFailException)
    assert "it has no key" in str(run.error)
    assert made.task_id in str(run.error)
    assert "nothing was billed" not in str(run.error)
    assert "The video was asked for before" in str(run.error)


@pytest.mark.kling_emulator(latency="never")
def test_wrong_prices_do_not_keep_a_waiting_task_from_its_video(
    kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_prices_wrong() -> None:
        monkeypatch.setenv("AIRFLOW__KLING__PRICES", "{")
        connection = {
            "conn_type": "kling",
            "host": kling_emulator.base_url,
            "password": kling_emulator.api_key,
            "extra": {"prices": {"kling-v3-omni": {"std": {"plain": "cheap"}}}},
        }
        monkeypatch.setenv("AIRFLOW_CONN_KLING_DEFAULT", json.dumps(connection))

    run = run_task(
        lambda: operator(deferrable=True),
        between=make_prices_wrong,
        when_it_waits=lambda: finish_videos(kling_emulator),
    )
    assert run.value()["state"] == "completed"


@pytest.mark.parametrize(
    "place", ["foo://bucket/x", "s3://no_such_connection@bucket/x", "{{ params.nothing }}", ""]
)
def test_a_place_that_cannot_be_is_told_before_anything_is_sent(
    kling_emulator: KlingEmulator, place: str, airflow_db: None
) -> None:
    value = None if "nothing" in place else place
    run = run_task(lambda: rendered(operator, output_path=value))
    assert "output_path" in str(run.error)
    assert kling_emulator.ledger.creates() == []


def test_a_task_that_does_not_wait_tells_of_no_video(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="outlets need wait_for_completion"):
        operator(wait_for_completion=False, outlets=[Asset("s3://bucket/trailers")])


def test_a_dry_run_updates_no_outlet(kling_emulator: KlingEmulator) -> None:
    run = run_task(lambda: operator(dry_run=True, outlets=[Asset("s3://bucket/trailers")]))
    assert isinstance(run.error, AirflowSkipException)
    assert run.ti.xcoms["return_value"]["state"] == "dry_run"


def test_a_video_refused_at_once_fails_the_task_that_does_not_wait(
    kling_emulator: KlingEmulator, tmp_path: Path
) -> None:
    ledger = {"ledger_path": str(tmp_path)}
    kling_emulator.inject("fail", at_once=True, fail_code="UPSTREAM_FAILED")
    failed = run_task(lambda: operator(wait_for_completion=False, **ledger))
    assert isinstance(failed.error, TaskFailedError)
    assert run_task(lambda: operator(wait_for_completion=False, **ledger)).value()["state"] != "failed"
    assert len(kling_emulator.ledger.creates()) == 2


def test_a_path_of_any_script_becomes_an_asset(kling_emulator: KlingEmulator, tmp_path: Path) -> None:
    alias, events = AssetAlias("trailers"), OutletEvents()
    run_task(
        lambda: operator(output_path=f"{tmp_path}/vidéos/été.mp4", outlets=[alias]),
        context={"outlet_events": events},
    ).value()
    ((uri, _),) = events[alias].added
    assert uri == f"file://{tmp_path}/vid%C3%A9os/%C3%A9t%C3%A9.mp4"


def test_mapped_values_that_cannot_be_end_the_task_without_retries(kling_emulator: KlingEmulator) -> None:
    run = run_task(lambda: operator(duration=99, _airflow_from_mapped=True))
    assert isinstance(run.error, AirflowFailException)
    assert "duration: '99'" in str(run.error)
    assert kling_emulator.ledger.creates() == []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"output_path": "/films"}, "output_path needs wait_for_completion"),
        ({"outlets": [Asset("s3://bucket/trailers")]}, "outlets need wait_for_completion"),
    ],
    ids=["a place", "an outlet"],
)
@pytest.mark.parametrize("is_decorated", [False, True], ids=["operator", "decorator"])
def test_a_mapped_task_that_does_not_wait_can_neither_store_its_video_nor_tell_of_it(
    kling_emulator: KlingEmulator, given: dict[str, Any], told: str, is_decorated: bool
) -> None:
    def make() -> KlingGenerateVideoOperator:
        how: dict[str, Any] = {"task_id": "make", "wait_for_completion": False, "_airflow_from_mapped": True}
        if is_decorated:
            return KlingVideoDecoratedOperator(python_callable=lambda: "a kite", **how, **given)
        return KlingGenerateVideoOperator(prompt="a kite", **how, **given)

    run = run_task(make)
    assert isinstance(run.error, AirflowFailException)
    assert told in str(run.error)
    assert kling_emulator.ledger.creates() == []


def test_a_mapped_task_that_does_not_wait_makes_no_event_of_a_video_that_is_not_there(
    kling_emulator: KlingEmulator, run_dag: Callable[..., Any], tmp_path: Path
) -> None:
    with DAG("mapped_without_waiting", schedule=None) as dag:
        KlingGenerateVideoOperator.partial(
            task_id="operator", wait_for_completion=False, outlets=[Asset("mapped_without_waiting")]
        ).expand(prompt=["a cat", "a dog"])
        KlingGenerateVideoOperator.partial(task_id="place", prompt="x", wait_for_completion=False).expand(
            output_path=[str(tmp_path)]
        )
    run = run_dag(dag)
    assert {ti.state for ti in run.get_task_instances()} == {"failed"}
    assert kling_emulator.ledger.creates() == []


def test_a_file_that_is_there_is_not_fetched_again(kling_emulator: KlingEmulator, tmp_path: Path) -> None:
    arguments = {"output_path": str(tmp_path / "films"), "ledger_path": str(tmp_path / "ledger")}
    first = run_task(lambda: operator(**arguments)).value()
    written = Path(first["path"]).stat().st_mtime_ns
    kling_emulator.inject("cut", call="download", times="always")

    assert run_task(lambda: operator(**arguments)).value()["files"] == first["files"]
    assert Path(first["path"]).stat().st_mtime_ns == written


@pytest.mark.usefixtures("kling_emulator")
def test_the_event_of_an_outlet_tells_what_was_made_and_gives_no_link_away(tmp_path: Path) -> None:
    asset, alias, events = Asset("s3://bucket/trailers"), AssetAlias("trailers"), OutletEvents()
    result = run_task(
        lambda: operator(output_path=str(tmp_path), outlets=[asset, alias, "another kind"]),
        context={"outlet_events": events},
    ).value()

    told = events[asset].extra
    assert told["task_id"] == result["task_id"]
    assert told["path"] == result["path"]
    assert told["files"][0]["sha256"] == result["files"][0]["sha256"]
    assert told["request"]["prompt"] == "a red kite"
    assert "http" not in json.dumps(told)
    ((uri, extra),) = events[alias].added
    assert uri == f"file://{result['path']}"
    assert extra["manifest_path"] == result["files"][0]["manifest_path"]


def test_an_alias_becomes_the_stored_file_without_the_connection_in_its_uri(
    kling_emulator: KlingEmulator, s3_server: S3Server
) -> None:
    alias, events = AssetAlias("trailers"), OutletEvents()
    run_task(
        lambda: operator(output_path=s3_server.uri("t.mp4"), outlets=[alias]),
        context={"outlet_events": events},
    ).value()
    ((uri, extra),) = events[alias].added
    assert uri == f"s3://{s3_server.bucket}/t.mp4"
    assert extra["path"] == s3_server.uri("t.mp4")


@pytest.mark.usefixtures("kling_emulator")
def test_lineage_names_the_references_and_the_stored_file(tmp_path: Path) -> None:
    pytest.importorskip("airflow.providers.openlineage")
    picture = draw_image(tmp_path / "anna.png")
    made: list[KlingGenerateVideoOperator] = []

    def make() -> KlingGenerateVideoOperator:
        made.append(
            operator(
                prompt="<<<image_1>>> and <<<image_2>>>",
                image_list=[str(picture), "https://example.com/pics/ben.png?sig=1"],
                output_path=str(tmp_path / "films"),
                deferrable=True,
            )
        )
        return made[-1]

    result = run_task(make).value()
    facets = made[-1].get_openlineage_facets_on_complete(None)
    assert [(each.namespace, each.name) for each in facets.inputs] == [
        ("file", str(picture)),
        ("https://example.com", "pics/ben.png"),
    ]
    assert [(each.namespace, each.name) for each in facets.outputs] == [("file", result["path"])]


def test_a_local_reference_is_uploaded_once_and_named_by_its_path(
    kling_emulator: KlingEmulator, tmp_path: Path
) -> None:
    picture = draw_image(tmp_path / "anna.png")
    arguments = {
        "prompt": "<<<image_1>>>",
        "image_list": [str(picture)],
        "ledger_path": str(tmp_path / "ledger"),
    }
    result = run_task(lambda: operator(**arguments)).value()
    again = run_task(lambda: operator(**arguments)).value()

    (sent,) = kling_emulator.ledger.tasks()
    assert sent.body["image_list"][0]["image_url"].startswith("http")
    assert result["request"]["image_list"] == [{"image_url": str(picture)}]
    assert again["task_id"] == result["task_id"]
    assert len(kling_emulator.ledger.creates()) == 1


def test_a_reference_that_is_gone_does_not_lose_the_video_it_was_uploaded_for(
    kling_emulator: KlingEmulator, tmp_path: Path
) -> None:
    picture = draw_image(tmp_path / "anna.png")
    arguments = {
        "prompt": "<<<image_1>>>",
        "image_list": [str(picture)],
        "ledger_path": str(tmp_path / "ledger"),
    }
    first = run_task(lambda: operator(**arguments)).value()
    picture.unlink()
    assert run_task(lambda: operator(**arguments)).value()["task_id"] == first["task_id"]
    assert len(kling_emulator.ledger.creates()) == 1


def test_a_changed_file_is_another_request(kling_emulator: KlingEmulator, tmp_path: Path) -> None:
    picture = draw_image(tmp_path / "anna.png")
    arguments = {
        "prompt": "<<<image_1>>>",
        "image_list": [str(picture)],
        "ledger_path": str(tmp_path / "ledger"),
    }
    run_task(lambda: operator(**arguments)).value()
    draw_image(picture, seed=7)
    run_task(lambda: operator(**arguments)).value()
    assert len(kling_emulator.ledger.creates()) == 2


def test_the_length_of_a_base_video_on_disk_gives_the_price(
    kling_emulator: KlingEmulator, tmp_path: Path
) -> None:
    clip = draw_video(tmp_path / "walk.mp4", seconds=4)
    result = run_task(lambda: operator(duration=None, video_list=[str(clip)], dry_run=True)).value()
    assert result["estimated_cost_usd"] == pytest.approx(4 * 0.0633)
    assert kling_emulator.ledger.creates() == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"output_path": "/films/../etc/film.mp4"},
        {"output_path": "/films/{nonsense}.mp4"},
        {"output_path": "/films", "wait_for_completion": False},
        {"max_cost_usd": "a lot"},
        {"max_cost_usd": -1},
    ],
    ids=str,
)
def test_what_cannot_be_is_told_when_the_dag_is_parsed(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"output_path|max_cost_usd"):
        operator(**arguments)


def test_a_template_that_leads_nowhere_is_told_before_anything_is_sent(kling_emulator: KlingEmulator) -> None:
    error = run_task(lambda: rendered(operator, output_path="../film.mp4")).error
    assert isinstance(error, AirflowFailException)
    assert "output_path" in str(error)
    assert kling_emulator.ledger.creates() == []


@renders_to_no_place
@pytest.mark.parametrize("is_kept", [True, False], ids=["with a ledger", "without one"])
@pytest.mark.kling_emulator(latency="never")
def test_a_place_that_is_gone_when_the_task_resumes_does_not_cost_the_paid_video(
    kling_emulator: KlingEmulator, tmp_path: Path, value: str | None, is_kept: bool
) -> None:
    place: dict[str, str | None] = {"now": str(tmp_path / "films")}
    ledger = {"ledger_path": str(tmp_path / "ledger")} if is_kept else {}

    def make() -> KlingGenerateVideoOperator:
        return rendered(operator, {"deferrable": True, **ledger}, output_path=place["now"])

    def complete() -> None:
        place["now"] = value
        kling_emulator.complete(kling_emulator.ledger.tasks()[0].task_id)

    run = run_task(make, between=complete)
    (paid,) = kling_emulator.ledger.paid()
    told = run.error if is_kept else run.error.__cause__  # type: ignore[union-attr]
    assert type(told) is StorageError
    assert (told.paid, told.task_id) == (Paid.YES, paid.task_id)
    assert "output_path" in str(run.error)
    assert paid.task_id in str(run.error)
    assert "sent nothing" not in str(run.error)
    card = run.ti.xcoms["kling_video"]
    assert (card["state"], card["reason"]) == ("undelivered", "storage")
    if not is_kept:
        assert isinstance(run.error, AirflowFailException), "a retry would buy a second video"
        return
    assert "A retry fetches it again and buys nothing" in str(run.error)

    place["now"] = str(tmp_path / "films")
    assert Path(run_task(make).value()["path"]).exists()
    assert len(kling_emulator.ledger.creates()) == 1


@pytest.mark.kling_emulator(latency="never")
def test_a_place_that_is_gone_when_the_task_resumes_does_not_make_a_failed_video_cost_anything(
    kling_emulator: KlingEmulator, tmp_path: Path
) -> None:
    place: dict[str, str | None] = {"now": str(tmp_path)}

    def make() -> KlingGenerateVideoOperator:
        return rendered(operator, {"deferrable": True}, output_path=place["now"])

    def fail() -> None:
        place["now"] = None
        kling_emulator.fail(kling_emulator.ledger.tasks()[0].task_id, "UPSTREAM_FAILED")

    assert type(run_task(make, between=fail).error) is TaskFailedError


@both_ways
@renders_to_no_place
@pytest.mark.kling_emulator(latency="never")
def test_a_place_that_is_gone_when_a_retry_begins_does_not_cost_the_paid_video(
    kling_emulator: KlingEmulator, tmp_path: Path, value: str | None, deferrable: bool
) -> None:
    films = str(tmp_path / "films")
    arguments: dict[str, Any] = {"ledger_path": str(tmp_path / "ledger"), "deferrable": deferrable}
    first = run_task(lambda: rendered(operator, {**arguments, "timeout": 0.2}, output_path=films))
    assert type(first.error) is TaskTimeoutError
    (made,) = kling_emulator.ledger.tasks()
    kling_emulator.complete(made.task_id)

    run = run_task(lambda: rendered(operator, arguments, output_path=value))
    assert type(run.error) is StorageError
    assert (run.error.paid, run.error.task_id) == (Paid.YES, made.task_id)
    assert made.task_id in str(run.error)
    assert "output_path" in str(run.error)
    assert "A retry fetches it again and buys nothing" in str(run.error)
    assert "sent nothing" not in str(run.error)
    card = run.ti.xcoms["kling_video"]
    assert (card["state"], card["reason"], card["task_id"]) == ("undelivered", "storage", made.task_id)

    assert Path(run_task(lambda: rendered(operator, arguments, output_path=films)).value()["path"]).exists()
    assert len(kling_emulator.ledger.creates()) == 1


@pytest.mark.parametrize("gone", ["link", "task"])
def test_where_the_place_is_gone_a_video_that_may_be_stored_there_is_not_bought_again(
    kling_emulator: KlingEmulator, tmp_path: Path, gone: str
) -> None:
    films = str(tmp_path / "films")
    arguments = {"ledger_path": str(tmp_path / "ledger"), "on_expired_result": "resubmit"}
    stored = run_task(lambda: rendered(operator, arguments, output_path=films)).value()
    if gone == "link":
        kling_emulator.inject("answer", status=410, call="download", times="always")
    else:
        kling_emulator.inject("answer", status=404, call="query", times="always")

    run = run_task(lambda: rendered(operator, arguments, output_path=None))
    assert type(run.error) is StorageError
    assert "A retry fetches it again and buys nothing" in str(run.error)
    assert (
        run_task(lambda: rendered(operator, arguments, output_path=films)).value()["path"] == stored["path"]
    )
    assert len(kling_emulator.ledger.creates()) == 1


def test_a_place_that_is_gone_when_nothing_is_bought_yet_is_told_before_anything_is_sent(
    kling_emulator: KlingEmulator, tmp_path: Path
) -> None:
    ledger = {"ledger_path": str(tmp_path / "ledger")}
    kling_emulator.inject("answer", status=402, call="create")
    assert isinstance(
        run_task(lambda: rendered(operator, ledger, output_path=str(tmp_path / "films"))).error,
        AirflowFailException,
    )
    creates = len(kling_emulator.ledger.requests("create"))

    run = run_task(lambda: rendered(operator, ledger, output_path=None))
    assert isinstance(run.error, AirflowFailException)
    assert str(run.error).endswith("This attempt has sent nothing. Correct output_path, then clear the task.")
    assert len(kling_emulator.ledger.requests("create")) == creates
    card = run.ti.xcoms["kling_video"]
    assert (card["state"], card["task_id"]) == ("failed", None)


@both_ways
@pytest.mark.kling_emulator(latency="never")
def test_a_video_made_elsewhere_is_waited_for_and_stored(
    kling_emulator: KlingEmulator, tmp_path: Path, deferrable: bool
) -> None:
    submitted = run_task(lambda: operator(wait_for_completion=False)).value()
    run = run_task(
        lambda: downloader(submitted["task_id"], output_path=str(tmp_path), deferrable=deferrable),
        when_it_waits=lambda: finish_videos(kling_emulator),
    )

    assert len(run.deferrals) == int(deferrable)
    assert run.value()["path"] == f"{tmp_path}/{submitted['task_id']}.mp4"
    assert Path(run.value()["path"]).exists()
    assert run.value()["recorded_cost_usd"] == pytest.approx(3 * 0.0633)
    assert run.ti.xcoms["kling_video_link"] == link_to(run.ti, at_service=run.value()["video_url"])
    assert len(kling_emulator.ledger.creates()) == 1


@pytest.mark.kling_emulator(latency=0.3)
def test_a_video_that_failed_elsewhere_ends_the_download_for_good(
    kling_emulator: KlingEmulator, tmp_path: Path
) -> None:
    kling_emulator.inject("fail", fail_code="UPSTREAM_FAILED")
    submitted = run_task(lambda: operator(wait_for_completion=False)).value()
    error = run_task(lambda: downloader(submitted["task_id"], output_path=str(tmp_path))).error
    assert isinstance(error, AirflowFailException)
    assert isinstance(error.__cause__, TaskFailedError)
    assert "run the task that submitted it again" in str(error)


@renders_to_no_place
@pytest.mark.kling_emulator(latency="never")
def test_a_place_that_is_gone_when_a_download_resumes_does_not_cost_the_paid_video(
    kling_emulator: KlingEmulator, tmp_path: Path, value: str | None
) -> None:
    submitted = run_task(lambda: operator(wait_for_completion=False)).value()
    place: dict[str, str | None] = {"now": str(tmp_path)}

    def make() -> KlingDownloadVideoOperator:
        arguments = {"task_id": submitted["task_id"], "deferrable": True}
        return rendered(downloader, arguments, output_path=place["now"])

    def complete() -> None:
        place["now"] = value
        kling_emulator.complete(submitted["task_id"])

    run = run_task(make, between=complete)
    assert type(run.error) is StorageError, "Airflow retries it"
    assert (run.error.paid, run.error.task_id) == (Paid.YES, submitted["task_id"])
    assert "output_path" in str(run.error)
    assert str(run.error).endswith(
        "The video is paid for, and its link is good for 7 days. A retry fetches it again and buys nothing."
    )
    assert "sent nothing" not in str(run.error)
    card = run.ti.xcoms["kling_video"]
    assert (card["state"], card["reason"]) == ("undelivered", "storage")

    place["now"] = str(tmp_path)
    assert Path(run_task(make).value()["path"]).exists()


def test_a_download_to_no_place_is_told_before_it_waits(kling_emulator: KlingEmulator) -> None:
    arguments = {"task_id": "task-1", "deferrable": True}
    run = run_task(lambda: rendered(downloader, arguments, output_path=""))
    assert isinstance(run.error, AirflowFailException)
    assert "output_path" in str(run.error)
    assert kling_emulator.ledger.requests() == []


@pytest.mark.kling_emulator(latency="never")
def test_a_download_gives_up_at_its_timeout_and_may_be_retried(
    kling_emulator: KlingEmulator, tmp_path: Path
) -> None:
    submitted = run_task(lambda: operator(wait_for_completion=False)).value()
    error = run_task(
        lambda: downloader(submitted["task_id"], output_path=str(tmp_path), timeout=0.2, deferrable=True)
    ).error
    assert isinstance(error, TaskTimeoutError)


@both_ways
def test_a_video_made_elsewhere_that_was_stored_is_delivered_when_the_service_has_forgotten_its_task(
    kling_emulator: KlingEmulator, tmp_path: Path, deferrable: bool
) -> None:
    made = run_task(operator).value()
    arguments = {"output_path": f"{tmp_path}/{{run_id}}.{{ext}}", "deferrable": deferrable}
    first = run_task(lambda: downloader(made["task_id"], **arguments)).value()
    kling_emulator.inject("answer", status=404, call="query", times="always")
    kling_emulator.inject("answer", status=404, call="record", times="always")
    downloads = len(kling_emulator.ledger.requests("download"))
    manifest = Path(first["files"][0]["manifest_path"])
    described = manifest.read_text()

    again = run_task(lambda: downloader(made["task_id"], **arguments)).value()
    told = ("task_id", "model", "state", "path", "files", "created_at", "completed_at", "generation_seconds")
    assert {name: again[name] for name in told} == {name: first[name] for name in told}
    assert again["result_urls"] == []
    assert manifest.read_text() == described
    assert len(kling_emulator.ledger.requests("download")) == downloads


@pytest.mark.parametrize("spoilt", ["the file is another one", "the file is another task's", "not there"])
def test_what_is_stored_is_delivered_only_where_it_is_what_its_manifest_says(
    kling_emulator: KlingEmulator, tmp_path: Path, spoilt: str
) -> None:
    made = run_task(operator).value()
    fixed = {"output_path": f"{tmp_path}/kite.mp4"}
    stored = Path(run_task(lambda: downloader(made["task_id"], **fixed)).value()["path"])
    if spoilt == "the file is another one":
        stored.write_bytes(b"x" * stored.stat().st_size)
    elif spoilt == "not there":
        stored.unlink()
    else:
        other = run_task(operator).value()
        run_task(lambda: downloader(other["task_id"], **fixed)).value()
    kling_emulator.inject("answer", status=404, call="query", times="always")
    before = sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir())

    error = run_task(lambda: downloader(made["task_id"], **fixed)).error
    assert isinstance(error, AirflowFailException)
    assert isinstance(error.__cause__, TaskNotFoundError)
    assert sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir()) == before


@pytest.mark.kling_emulator(latency="never")
def test_a_deferred_wait_for_a_video_made_elsewhere_ends_with_its_attempt(
    kling_emulator: KlingEmulator, tmp_path: Path
) -> None:
    submitted = run_task(lambda: operator(wait_for_completion=False)).value()
    fetch = downloader(
        submitted["task_id"],
        output_path=str(tmp_path),
        timeout=3600,
        deferrable=True,
        execution_timeout=timedelta(seconds=60),
    )
    with pytest.raises(TaskDeferred) as deferred:
        fetch.execute({"ti": TaskInstance()})
    trigger = deferred.value.trigger
    assert trigger.deadline - trigger.submitted_at == pytest.approx(54)


@pytest.mark.parametrize("value", ["", "None", None, 7])
def test_a_missing_task_id_is_told(value: Any, tmp_path: Path) -> None:
    error = run_task(lambda: downloader(value, output_path=str(tmp_path))).error
    assert isinstance(error, AirflowFailException)
    assert "not a task id of the service" in str(error)
