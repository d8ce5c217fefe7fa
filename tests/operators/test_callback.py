"""``callback=True``: what cannot be, what goes to the service, how little is asked, what is left to the callback."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    DAG,
    AirflowConfigException,
    AirflowFailException,
    Asset,
    AssetAlias,
    TaskDeferred,
)

from airflow_provider_kling import arguments
from airflow_provider_kling.api.errors import UnknownSubmissionError
from airflow_provider_kling.callbacks import PATH, XCOM_CALLBACK, CallbackToken
from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator
from tests.conftest import AIRFLOW
from tests.operators.called_back import (
    BASE_URL,
    callback_settings,
    described,
    each_kind,
    needs_callbacks,
    one,
    one_and_many,
)
from tests.task_runs import OutletEvents, TaskInstance, TaskRun, run_task

Make = Callable[..., Any]

__all__ = ["callback_settings"]

pytestmark = pytest.mark.usefixtures("callback_settings")


def attempt(**arguments: Any) -> TaskRun:
    return run_task(lambda: one(**arguments))


def address_of(service: KlingEmulator) -> str | None:
    [task] = service.ledger.tasks()
    return task.body.get("callback_url")


@needs_callbacks
def test_the_service_is_told_where_to_call(kling_emulator: KlingEmulator) -> None:
    run = attempt()
    run.value()
    url = address_of(kling_emulator)
    assert url is not None
    assert url.startswith(f"{BASE_URL}{PATH}/")
    text = url.rpartition("/")[2]
    token = CallbackToken.read(text)
    assert token is not None
    assert (token.ti_id, token.conn_id) == (run.ti.id, "kling_default")
    assert CallbackToken.is_signed(text, kling_emulator.api_key)


@needs_callbacks
@one_and_many
def test_no_address_is_in_an_xcom_trigger_result_or_log(
    make: Make, kling_emulator: KlingEmulator, task_log: Callable[[], list[str]]
) -> None:
    run = run_task(make)
    result = run.value()
    [deferral] = run.deferrals
    kept = [result, run.ti.xcoms, deferral.trigger.serialize(), run.events, task_log(), make().__dict__]
    for task in kling_emulator.ledger.tasks():
        assert str(task.body["callback_url"]).rpartition("/")[2] not in json.dumps(kept, default=str)


@needs_callbacks
@pytest.mark.kling_emulator(latency=1)
def test_it_is_asked_for_rarely_and_not_at_all_before_it_waits(
    kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AIRFLOW__KLING__CALLBACK_POLL_INTERVAL")
    with pytest.raises(TaskDeferred) as deferral:
        one(poll_interval=0.1).execute({"ti": TaskInstance()})  # type: ignore[typeddict-item]
    assert deferral.value.trigger.poll_interval == 300
    assert kling_emulator.ledger.tasks()[0].queries == 0


@needs_callbacks
def test_a_lost_callback_costs_no_video(kling_emulator: KlingEmulator) -> None:
    assert attempt().value()["state"] == "completed"


def test_an_address_of_the_users_own_goes_out_untouched_and_polling_stays_as_it_is(
    kling_emulator: KlingEmulator,
) -> None:
    url = "https://example.com/mine?x=%7E"
    kling_emulator.inject("latency", seconds=3600)
    with pytest.raises(TaskDeferred) as deferral:
        one(callback=False, callback_url=url, poll_interval=7).execute({"ti": TaskInstance()})  # type: ignore[typeddict-item]
    assert deferral.value.trigger.poll_interval == 7
    assert address_of(kling_emulator) == url


@needs_callbacks
@each_kind
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"callback_url": "https://example.com/mine"}, "not both"),
        ({"callback_url": "{{ params.url }}"}, "not both"),
        ({"deferrable": False}, "Set deferrable=True"),
    ],
)
def test_what_cannot_be_is_told_when_the_dag_is_parsed(
    make: Make, arguments: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        make(**arguments)


@each_kind
def test_an_airflow_without_the_needed_functions_is_told_when_the_dag_is_parsed(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    if AIRFLOW >= (3, 1):
        monkeypatch.setattr(arguments, "AIRFLOW_V_3_1_PLUS", False)
    with pytest.raises(ValueError, match=r"needs Airflow 3\.1"):
        make()
    make(callback=False)


@needs_callbacks
def test_of_a_mapped_task_what_cannot_be_is_told_when_it_is_made_to_run() -> None:
    with DAG("mapped", schedule=None) as dag:
        KlingGenerateVideoOperator.partial(task_id="make", callback=True, deferrable=False).expand(
            prompt=["a"]
        )
    with pytest.raises(ValueError, match="would wait on its worker"):
        dag.get_task("make").unmap({"prompt": "a tide"})


@needs_callbacks
@each_kind
@pytest.mark.parametrize("dry_run", [False, True])
def test_without_an_address_of_its_own_nothing_is_sent(
    make: Make, kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch, dry_run: bool
) -> None:
    monkeypatch.delenv("AIRFLOW__KLING__CALLBACK_BASE_URL")
    run = run_task(lambda: make(dry_run=dry_run))
    assert isinstance(run.error, AirflowConfigException)
    assert "callback_base_url" in str(run.error)
    assert kling_emulator.ledger.creates() == []


@needs_callbacks
@each_kind
def test_a_connection_of_another_type_costs_nothing(
    make: Make, kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = kling_emulator.connection_uri.replace("kling://", "http://", 1)
    monkeypatch.setenv("AIRFLOW_CONN_KLING_DEFAULT", uri)
    run = run_task(make)
    assert isinstance(run.error, AirflowFailException)
    assert "of type 'http'" in str(run.error)
    assert kling_emulator.ledger.creates() == []
    assert run_task(lambda: make(callback=False)).value() is not None


@needs_callbacks
def test_a_connection_whose_id_is_too_long_costs_nothing(
    kling_emulator: KlingEmulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    conn_id = "c" * 240
    uri = kling_emulator.connection_uri
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", uri)
    run = attempt(kling_conn_id=conn_id, ledger_path=str(tmp_path))
    assert isinstance(run.error, AirflowFailException)
    assert kling_emulator.ledger.creates() == []
    assert [json.loads(path.read_text())["state"] for path in tmp_path.rglob("*.json")] == ["free"]


@needs_callbacks
def test_another_address_is_no_other_request(kling_emulator: KlingEmulator, tmp_path: Path) -> None:
    """A second attempt has another address; it attaches all the same, and so it does when callbacks are turned off."""
    first = attempt(ledger_path=str(tmp_path)).value()
    assert attempt(ledger_path=str(tmp_path)).value()["task_id"] == first["task_id"]
    assert (
        attempt(ledger_path=str(tmp_path), callback=False, poll_interval=0.1).value()["task_id"]
        == first["task_id"]
    )
    assert len(kling_emulator.ledger.creates()) == 1


@needs_callbacks
def test_a_lost_answer_is_worth_a_retry_since_the_callback_can_bring_it_home(
    kling_emulator: KlingEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kling_emulator.inject("lost_answer", call="create")
    monkeypatch.setenv("AIRFLOW__KLING__LEDGER_PATH", str(tmp_path))
    run = attempt()
    assert type(run.error) is UnknownSubmissionError, "no AirflowFailException: Airflow retries it"
    assert "callback" in str(run.error)
    # As the receiver does it.
    [path] = tmp_path.rglob("*.json")
    record = json.loads(path.read_text())
    [made] = kling_emulator.ledger.tasks()
    path.write_text(
        json.dumps(
            {**record, "state": "submitted", "kling_task_id": made.task_id, "submitted_at": time.time()}
        )
    )
    assert attempt().value()["task_id"] == made.task_id
    assert len(kling_emulator.ledger.creates()) == 1


@needs_callbacks
def test_a_task_that_does_not_wait_leaves_its_assets_to_the_callback(kling_emulator: KlingEmulator) -> None:
    kling_emulator.inject("latency", seconds=3600)
    outlets = [Asset("film"), Asset(name="films", uri="s3://films/all"), {"table": "for lineage alone"}]
    operator = one(wait_for_completion=False, deferrable=False, outlets=outlets)
    ti, events = TaskInstance(), OutletEvents()
    result = operator.execute({"ti": ti, "outlet_events": events})  # type: ignore[typeddict-item]
    assert operator.outlets == [], "Airflow would tell of a video that is not there yet"
    assert events.of == {}
    left = ti.xcoms[XCOM_CALLBACK]
    assert left["kling_task_id"] == result["task_id"]
    assert left["outlets"] == [{"name": each.name, "uri": each.uri} for each in outlets[:2]]  # type: ignore[attr-defined]


@needs_callbacks
@pytest.mark.parametrize("kind", ["alias", "name", "uri"])
def test_outlets_that_no_callback_can_tell_are_told_when_the_dag_is_parsed(kind: str) -> None:
    outlet = AssetAlias("new") if kind == "alias" else Asset.ref(**{kind: "s3://film"})
    outlets = [Asset("film"), outlet]
    arguments: dict[str, Any] = {"wait_for_completion": False, "deferrable": False, "outlets": outlets}
    with pytest.raises(
        ValueError, match="Give an asset alias or a reference to the task that waits"
    ) as error:
        one(**arguments)
    assert repr(outlet) in str(error.value)
    with pytest.raises(ValueError, match="the task that waits"):
        described(**arguments)
    one(outlets=outlets)


@needs_callbacks
def test_a_mapped_task_whose_outlets_no_callback_can_tell_says_so_in_its_log(
    kling_emulator: KlingEmulator, task_log: Callable[[], list[str]]
) -> None:
    kling_emulator.inject("latency", seconds=3600)
    operator = one(wait_for_completion=False, deferrable=False, outlets=[Asset("film")])
    operator.outlets.append(AssetAlias("new"))  # what is checked at parse is not checked of a mapped task
    ti = TaskInstance()
    operator.execute({"ti": ti, "outlet_events": OutletEvents()})  # type: ignore[typeddict-item]
    assert any("AssetAlias" in line and "will not be told" in line for line in task_log())
    assert [each["name"] for each in ti.xcoms[XCOM_CALLBACK]["outlets"]] == ["film"]


@needs_callbacks
def test_one_that_finds_its_video_made_tells_its_assets_itself(
    kling_emulator: KlingEmulator, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {
        "wait_for_completion": False,
        "outlets": [Asset("film")],
        "ledger_path": str(tmp_path),
    }
    kling_task_id = attempt(**arguments).value()["task_id"]
    operator, ti, events = one(**arguments), TaskInstance(), OutletEvents()
    result = operator.execute({"ti": ti, "outlet_events": events})  # type: ignore[typeddict-item]
    assert result["state"] == "completed"
    assert operator.outlets == [Asset("film")]
    [told] = events.of.values()
    assert told.extra["task_id"] == kling_task_id
    assert XCOM_CALLBACK not in ti.xcoms
