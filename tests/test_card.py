"""What a task leaves for the page "Kling videos", at every turn, and that no video hangs on it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_kling.api.errors import InvalidRequestError, KlingError, Paid, TaskFailedError
from airflow_provider_kling.api.request import VideoRequest
from airflow_provider_kling.api.task import TaskState, VideoTask
from airflow_provider_kling.batch_result import completed
from airflow_provider_kling.card import MOST_ERROR_CHARACTERS, error_card, expires_at, result_card, why
from airflow_provider_kling.decorators.kling import KlingVideoDecoratedOperator
from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.operators.batch import KlingGenerateVideoBatchOperator
from airflow_provider_kling.operators.kling import KlingDownloadVideoOperator, KlingGenerateVideoOperator
from airflow_provider_kling.result import video_result
from airflow_provider_kling.sensors.kling import KlingVideoSensor
from tests.conftest import AIRFLOW
from tests.task_runs import TaskInstance, TaskRun, finish_videos, run_task

both_ways = pytest.mark.parametrize("deferrable", [False, True], ids=["on the worker", "deferred"])
PROMPT = "A paper boat, 一只纸船, in the rain"


class Watched(TaskInstance):
    """A task instance that knows every card that it was given, and what was asked of its XComs."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.cards: list[dict[str, Any]] = []
        self.calls: Counter[str] = Counter()

    def xcom_push(self, key: str, value: Any, **more: Any) -> None:
        self.calls[f"push {key}"] += 1
        super().xcom_push(key, value, **more)
        if key == "kling_video":
            self.cards.append(self.xcoms[key])

    def xcom_pull(self, task_ids: str, key: str = "return_value", **more: Any) -> Any:
        self.calls[f"pull {key}"] += 1
        return super().xcom_pull(task_ids, key, **more)


def generate(
    ti: TaskInstance, *, when_it_waits: Callable[[], Any] | None = None, **arguments: Any
) -> TaskRun:
    defaults: dict[str, Any] = {
        "task_id": "make",
        "prompt": PROMPT,
        "duration": 3,
        "poll_interval": 0.05,
        "timeout": 300,
    }
    return run_task(
        lambda: KlingGenerateVideoOperator(**(defaults | arguments)), ti=ti, when_it_waits=when_it_waits
    )


def generate_all(ti: TaskInstance, **arguments: Any) -> TaskRun:
    defaults: dict[str, Any] = {"task_id": "make", "duration": 3, "poll_interval": 0.05, "timeout": 300}
    return run_task(lambda: KlingGenerateVideoBatchOperator(**(defaults | arguments)), ti=ti)


@pytest.fixture
def ti() -> Watched:
    return Watched()


def is_time(text: Any) -> bool:
    return datetime.fromisoformat(text).utcoffset() == timedelta(0)


@both_ways
@pytest.mark.kling_emulator(latency=0.2)
def test_a_video_has_a_card_while_it_is_made_and_another_when_it_is_stored(
    kling_emulator: KlingEmulator, ti: Watched, tmp_path: Path, deferrable: bool
) -> None:
    result = generate(ti, deferrable=deferrable, output_path=str(tmp_path / "films")).value()

    first, last = ti.cards
    assert (first["state"], first["task_id"], first["waits"]) == ("submitted", result["task_id"], True)
    assert (
        first["request"]
        == last["request"]
        == {
            "model": "kling-v3-omni",
            "prompt": PROMPT,
            "duration": "3",
        }
    )
    assert first["estimated_cost_usd"] == pytest.approx(0.19, abs=0.01)
    assert is_time(first["submitted_at"])
    assert last["submitted_at"] == first["submitted_at"], "a wait is not a new submission"

    assert {name: last[name] for name in ("schema", "kind", "state", "task_id", "model")} == {
        "schema": 1,
        "kind": "video",
        "state": "completed",
        "task_id": result["task_id"],
        "model": "kling-v3-omni",
    }
    [file] = last["files"]
    [stored] = result["files"]
    assert file["name"] == Path(stored["path"]).name
    assert (file["path"], file["sha256"]) == (stored["path"], stored["sha256"])
    assert file["size_bytes"] == Path(stored["path"]).stat().st_size
    assert last["recorded_cost_usd"] == result["recorded_cost_usd"]
    assert last["generation_seconds"] == result["generation_seconds"]
    assert is_time(last["completed_at"])
    assert "video_url" not in last, "it is stored, and whoever has the link has the video"
    assert "http" not in json.dumps(last)
    assert len(json.dumps(last)) < 8192


def test_a_video_that_is_not_stored_has_its_link_and_the_day_it_dies(
    kling_emulator: KlingEmulator, ti: Watched
) -> None:
    result = generate(ti).value()
    card = ti.cards[-1]
    assert card["video_url"] == result["video_url"]
    assert card["files"] == []
    lives = datetime.fromisoformat(card["expires_at"]) - datetime.fromisoformat(card["completed_at"])
    assert lives == timedelta(days=7)


@both_ways
def test_a_failed_video_says_why(kling_emulator: KlingEmulator, ti: Watched, deferrable: bool) -> None:
    kling_emulator.inject("fail", fail_code="CONTENT_MODERATION")
    run = generate(ti, deferrable=deferrable)

    assert run.error is not None
    card = ti.cards[-1]
    assert (card["state"], card["reason"]) == ("failed", "content_moderation")
    assert card["error"] in " ".join(str(run.error).split())
    assert card["request"]["prompt"] == PROMPT
    assert card["task_id"] == kling_emulator.ledger.tasks()[0].task_id
    assert is_time(card["submitted_at"])


@pytest.mark.kling_emulator(latency="never")
def test_a_video_that_took_too_long_may_still_cost_money(kling_emulator: KlingEmulator, ti: Watched) -> None:
    assert generate(ti, timeout=0.3).error is not None
    assert (ti.cards[-1]["state"], ti.cards[-1]["reason"]) == ("unresolved", "task_timeout")


def test_a_video_that_cannot_be_stored_is_paid_for(
    kling_emulator: KlingEmulator, ti: Watched, tmp_path: Path
) -> None:
    kling_emulator.inject("cut", call="download", times="always")
    assert generate(ti, output_path=str(tmp_path / "films")).error is not None
    assert ti.cards[-1]["state"] == "undelivered"
    assert "files" not in ti.cards[-1]


def test_what_was_never_asked_for_says_why(kling_emulator: KlingEmulator, ti: Watched) -> None:
    assert generate(ti, max_cost_usd=0.01).error is not None
    [card] = ti.cards
    assert (card["state"], card["task_id"], card["reason"]) == ("failed", None, "budget_exceeded")
    assert card["request"]["prompt"] == PROMPT


def test_a_dry_run_shows_what_it_would_cost(kling_emulator: KlingEmulator, ti: Watched) -> None:
    generate(ti, dry_run=True).value()
    [card] = ti.cards
    assert (card["state"], card["task_id"]) == ("dry_run", None)
    assert card["estimated_cost_usd"] == pytest.approx(0.19, abs=0.01)


@pytest.mark.kling_emulator(latency="never")
def test_a_task_that_does_not_wait_says_so(kling_emulator: KlingEmulator, ti: Watched) -> None:
    generate(ti, wait_for_completion=False).value()
    assert [(card["state"], card["waits"]) for card in ti.cards] == [("submitted", False)]


@both_ways
def test_sensor_and_download_leave_a_card_of_what_another_task_asked_for(
    kling_emulator: KlingEmulator, ti: Watched, tmp_path: Path, deferrable: bool
) -> None:
    kling_task_id = generate(ti).value()["task_id"]

    waits = Watched(task_id="wait")
    run_task(
        lambda: KlingVideoSensor(
            task_id="wait", kling_task_id=kling_task_id, deferrable=deferrable, poke_interval=0.05
        ),
        ti=waits,
    ).value()
    [card] = waits.cards
    assert (card["state"], card["task_id"]) == ("completed", kling_task_id)
    assert card["video_url"].startswith("http")
    assert "request" not in card

    fetches = Watched(task_id="fetch")
    run_task(
        lambda: KlingDownloadVideoOperator(
            task_id="fetch",
            kling_task_id=kling_task_id,
            output_path=str(tmp_path),
            deferrable=deferrable,
            poll_interval=0.05,
        ),
        ti=fetches,
    ).value()
    [card] = fetches.cards
    assert (card["state"], card["task_id"], len(card["files"])) == ("completed", kling_task_id, 1)


NOTHING_IS_KNOWN = (
    " Nothing is known of its video, nor of what that cost. Check the task id, and that the connection is of the "
    "account that made the task. The service keeps results for 7 days only. A retry cannot help."
)


def test_sensor_and_download_say_why_there_is_no_video(kling_emulator: KlingEmulator, tmp_path: Path) -> None:
    makers: dict[str, Callable[[], Any]] = {
        "wait": lambda: KlingVideoSensor(task_id="wait", kling_task_id="k-unknown", deferrable=True),
        "fetch": lambda: KlingDownloadVideoOperator(
            task_id="fetch", kling_task_id="k-unknown", output_path=str(tmp_path)
        ),
    }
    for name, make in makers.items():
        ti = Watched(task_id=name)
        error = run_task(make, ti=ti).error
        assert isinstance(error, AirflowFailException)
        assert str(error).startswith(
            "The service does not know this task (Kling task id k-unknown, code 404)."
        )
        assert str(error).endswith(NOTHING_IS_KNOWN)
        [card] = ti.cards
        assert (card["task_id"], card["reason"]) == ("k-unknown", "task_not_found")
        assert card["state"] == "unresolved", "nobody knows that it cost nothing"


@both_ways
@pytest.mark.kling_emulator(latency="never")
def test_a_refusal_to_be_asked_leaves_the_bill_of_another_tasks_video_open(
    kling_emulator: KlingEmulator, ti: Watched, tmp_path: Path, deferrable: bool
) -> None:
    kling_task_id = generate(ti, wait_for_completion=False).value()["task_id"]
    kling_emulator.inject("answer", status=401, call="query", times="always")
    makers: dict[str, Callable[[], Any]] = {
        "wait": lambda: KlingVideoSensor(task_id="wait", kling_task_id=kling_task_id, deferrable=deferrable),
        "fetch": lambda: KlingDownloadVideoOperator(
            task_id="fetch", kling_task_id=kling_task_id, output_path=str(tmp_path), deferrable=deferrable
        ),
    }
    for name, make in makers.items():
        other = Watched(task_id=name)
        error = run_task(make, ti=other).error
        assert error is not None
        assert "it goes on, and is billed when it is completed" in str(error)
        [card] = other.cards
        assert (card["state"], card["task_id"]) == ("unresolved", kling_task_id)


SIGNED = "https://user:pass@example.com/a.png?signature=secret"


def film_from_a_signed_picture(**arguments: Any) -> KlingVideoDecoratedOperator:
    def film() -> dict[str, Any]:
        return {"prompt": "from <<<image_1>>>", "image_list": [SIGNED]}

    return KlingVideoDecoratedOperator(
        task_id="make", python_callable=film, duration=3, poll_interval=0.05, **arguments
    )


def test_a_decorated_task_leaves_its_card_and_no_signature_once_it_is_over(
    kling_emulator: KlingEmulator, ti: Watched
) -> None:
    run_task(lambda: film_from_a_signed_picture(deferrable=True), ti=ti).value()
    assert ti.cards[0]["request"]["image_list"] == [{"image_url": SIGNED}], "a pause goes on from it"
    assert ti.cards[-1]["state"] == "completed"
    assert "secret" not in json.dumps(ti.cards[-1])
    assert "pass" not in json.dumps(ti.cards[-1])


@pytest.mark.parametrize(
    "arguments",
    [{"deferrable": False}, {"deferrable": True, "wait_for_completion": False}, {"dry_run": True}],
    ids=["on the worker", "without waiting", "dry run"],
)
def test_a_decorated_task_that_never_goes_on_from_its_card_leaves_no_signature_there(
    kling_emulator: KlingEmulator, ti: Watched, arguments: dict[str, Any]
) -> None:
    run_task(lambda: film_from_a_signed_picture(**arguments), ti=ti).value()

    assert ti.cards
    for card in ti.cards:
        assert card["request"]["image_list"] == [{"image_url": "https://example.com/a.png"}]


@pytest.mark.parametrize(
    "fields",
    [
        {"image_list": [{"image_url": "URL", "type": "wrong"}]},
        {"image_list": [{"image_url": "URL", "typo": 1}]},
        {"image_list": [{"image_url": "x URL y"}]},
        {"video_list": ["URL and more"]},
        {"callback_url": "ftp://receiver/secret"},
        {"callback_url": ["https://receiver/secret"]},
        {"extra_body": {"callback_url": "https://receiver/secret", "x": {1, 2}}},
        {"image_list": [{"image_url": "ok", "callback_url": "https://receiver/secret"}]},
    ],
)
@pytest.mark.parametrize(
    "url",
    [
        "https://user:secret@e.com/a.tiff?sign=secret",
        "HTTP://user:secret@e.com?secret",
        f"https://u:{'secret' * 20}@e.com",
    ],
)
def test_no_secret_of_a_request_is_in_the_error_on_a_card(fields: dict[str, Any], url: str) -> None:
    fields = json.loads(json.dumps(fields, default=list).replace("URL", url))
    if "extra_body" in fields:
        fields["extra_body"]["x"] = {1, 2}
    with pytest.raises(InvalidRequestError) as raised:
        VideoRequest(prompt="p", **fields)
    error = error_card(raised.value)["error"]
    assert "secret" not in error
    assert "not allowed" in error


def test_what_stands_around_an_address_in_an_error_stays() -> None:
    error = KlingError(
        "Cannot fetch 'https://e.com/a.png?sign=secret', nor (https://e.com/b.png).", next_step="Look at it."
    )
    told = why(error, is_bought=False)["error"]
    assert told.startswith("Cannot fetch 'https://e.com/a.png', nor (https://e.com/b.png).")
    assert told.endswith("Look at it.")


def test_what_gives_access_to_a_reference_is_on_no_card(kling_emulator: KlingEmulator, ti: Watched) -> None:
    signed = "https://user:pass@example.com/a.png?signature=secret"
    kling_emulator.inject("fail", fail_code="CONTENT_MODERATION")
    run = generate(ti, prompt="from <<<image_1>>>", image_list=[signed])
    assert run.error is not None
    assert [card["state"] for card in ti.cards] == ["submitted", "failed"]
    for card in ti.cards:
        assert card["request"]["image_list"] == [{"image_url": "https://example.com/a.png"}]


@both_ways
@pytest.mark.kling_emulator(latency=0.2)
def test_a_list_tells_how_far_it_is(
    kling_emulator: KlingEmulator, ti: Watched, tmp_path: Path, deferrable: bool
) -> None:
    kling_emulator.inject("fail", prompt="number 1", fail_code="CONTENT_MODERATION")
    run = generate_all(
        ti,
        requests=[f"kite number {index}" for index in range(5)],
        max_in_flight=2,
        deferrable=deferrable,
        fail_on="none",
        output_path=str(tmp_path / "films"),
        ledger_path=str(tmp_path / "ledger"),
    )
    result = run.value()

    assert {card["kind"] for card in ti.cards} == {"list"}
    assert {card["total"] for card in ti.cards} == {5}
    assert [card["state"] for card in ti.cards] == ["submitted"] * (len(ti.cards) - 1) + ["completed"]
    done = [card["completed"] for card in ti.cards]
    assert done == sorted(done)
    assert done[0] == 0
    *running, last = ti.cards
    for card in running:
        assert card["estimated_cost_usd"] == pytest.approx(5 * 3 * 0.0633)
    assert len({card["submitted_at"] for card in ti.cards}) == 1
    assert {name: last[name] for name in ("completed", "failed", "recorded_videos")} == {
        "completed": 4,
        "failed": 1,
        "recorded_videos": 4,
    }
    assert last["recorded_cost_usd"] == result["recorded_cost_usd"]
    assert last["results_path"] == result["results_path"]
    assert json.loads(Path(last["results_path"]).read_text())["dag_id"] == ti.dag_id


def test_a_list_that_fails_says_why(kling_emulator: KlingEmulator, ti: Watched, tmp_path: Path) -> None:
    kling_emulator.inject("fail", prompt="number 1", fail_code="CONTENT_MODERATION")
    run = generate_all(
        ti, requests=["kite number 0", "kite number 1"], ledger_path=str(tmp_path), output_path=str(tmp_path)
    )
    assert run.error is not None
    last = ti.cards[-1]
    assert (last["state"], last["completed"], last["failed"]) == ("failed", 1, 1)
    assert last["error"].startswith("Of 2 videos 1 are completed")
    assert last["results_path"] is not None


def test_a_list_that_cannot_be_read_says_why(kling_emulator: KlingEmulator, ti: Watched) -> None:
    run = generate_all(ti, requests="{{ nothing }}")
    assert run.error is not None
    [card] = ti.cards
    assert (card["kind"], card["state"]) == ("list", "failed")
    assert card["error"]


def test_an_empty_list_and_a_dry_run_have_cards(kling_emulator: KlingEmulator, ti: Watched) -> None:
    generate_all(ti, requests=[]).value()
    assert (ti.cards[-1]["state"], ti.cards[-1]["total"]) == ("completed", 0)
    generate_all(ti, requests=["a kite"], dry_run=True).value()
    assert (ti.cards[-1]["state"], ti.cards[-1]["total"]) == ("dry_run", 1)
    assert ti.cards[-1]["estimated_cost_usd"] > 0


class Broken(TaskInstance):
    """A task instance whose XComs cannot be written."""

    def xcom_push(self, key: str, value: Any, **_: Any) -> None:
        raise ConnectionError(f"XCom {key} is out of reach")


@both_ways
def test_a_card_that_cannot_be_written_costs_no_video(
    kling_emulator: KlingEmulator, tmp_path: Path, deferrable: bool
) -> None:
    one = generate(Broken(), deferrable=deferrable, output_path=str(tmp_path))
    assert Path(one.value()["path"]).exists()
    many = generate_all(
        Broken(), requests=["a", "b"], deferrable=deferrable, ledger_path=str(tmp_path / "ledger")
    )
    assert many.value()["completed"] == 2
    assert len(kling_emulator.ledger.creates()) == 3


def test_a_card_that_cannot_be_made_costs_no_video(
    kling_emulator: KlingEmulator, ti: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_kling import generation

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of ours")

    for name in ("asked_card", "result_card", "error_card"):
        monkeypatch.setattr(generation, name, fail)
    assert generate(ti).value()["state"] == "completed"
    assert ti.cards == []


@pytest.mark.kling_emulator(latency="never")
def test_one_deferred_video_takes_few_calls_for_its_xcoms(
    kling_emulator: KlingEmulator, ti: Watched, tmp_path: Path
) -> None:
    run = generate(
        ti,
        deferrable=True,
        output_path=str(tmp_path),
        when_it_waits=lambda: finish_videos(kling_emulator),
    )
    assert len(run.deferrals) == 1
    calls = {"push task_id": 1, "push kling_video": 2, "pull kling_video": 1}
    if AIRFLOW < (3, 1):
        calls["push kling_video_link"] = 2  # from 3.1 on Airflow stores it by itself
    assert ti.calls == calls


def test_the_text_of_a_foreign_error_stays_in_the_log() -> None:
    told = why(ValueError("postgres://user:password@host"), is_bought=True)
    assert told["state"] == "unresolved"
    assert "password" not in told["error"]
    assert why(ValueError("x"), is_bought=False)["state"] == "failed"


@pytest.mark.parametrize(
    ("paid", "state"), [(Paid.NO, "failed"), (Paid.MAYBE, "unresolved"), (Paid.YES, "undelivered")]
)
def test_the_state_of_a_failure_is_what_it_means_for_the_bill(paid: Paid, state: str) -> None:
    kind = TaskFailedError if paid is Paid.NO else KlingError
    card = error_card(kind("Something  went\nwrong. " * 200, task_id="k-1", paid=paid))
    assert (card["state"], card["task_id"]) == (state, "k-1")
    assert len(card["error"]) == MOST_ERROR_CHARACTERS
    assert "\n" not in card["error"]


def test_what_goes_wrong_after_a_video_was_asked_for_leaves_its_bill_open() -> None:
    error = KlingError("No such place")
    assert error_card(error)["state"] == "failed"
    assert error_card(error, kling_task_id="k-1")["state"] == "unresolved"


@pytest.mark.parametrize(("length", "is_kept"), [(2000, True), (2001, False)])
def test_a_link_that_is_too_long_for_xcom_is_left_out(length: int, *, is_kept: bool) -> None:
    link = "https://r2.example/".ljust(length, "x")
    made = VideoTask(task_id="k-1", state=TaskState.COMPLETED, result_urls=(link,))
    result = video_result(made)
    assert result_card(result).get("video_url") == (link if is_kept else None)
    assert completed(result).get("video_url") == (link if is_kept else None)


def test_airflows_own_failure_is_no_card_of_ours(kling_emulator: KlingEmulator, ti: Watched) -> None:
    run = run_task(lambda: _ResumedByNobody(task_id="make", prompt=PROMPT), ti=ti)
    assert isinstance(run.error, AirflowFailException)


class _ResumedByNobody(KlingGenerateVideoOperator):
    def execute(self, context: Any) -> Any:
        return self.execute_complete(context, None)


@pytest.mark.parametrize("odd", ["never", "", "9999-12-31T00:00:00+00:00", 5, {}])
def test_a_time_that_is_none_expires_never(odd: Any) -> None:
    assert expires_at(odd) is None
