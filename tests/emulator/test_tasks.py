"""Tasks over time, and the money."""

from __future__ import annotations

import math
import statistics
from decimal import Decimal
from typing import Any

import pytest

from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.emulator.settings import OBSERVED_LATENCY
from tests.emulator.caller import Caller, Clock

EDITED = {"video_url": "https://example.com/v.mp4", "refer_type": "base"}


def test_a_task_is_pending_then_processing_then_completed(caller: Caller, clock: Clock) -> None:
    task_id = caller.create()
    created = clock.now
    seen = []
    for after in (0, 9, 11, 99, 100, 1000):
        clock.now = created + after
        seen.append(caller.query(task_id)["state"])
    assert seen == ["pending", "pending", "processing", "processing", "completed", "completed"]


def test_answers_to_queries_are_as_the_documentation_shows(caller: Caller, clock: Clock) -> None:
    clock.now = 1_705_123_450.0
    task_id = caller.create(model="kling-video-o1")
    running = {
        "taskId": task_id,
        "state": "pending",
        "model": "kling-video/kling-video-o1",
        "createTime": 1_705_123_450_000,
    }
    assert caller.ask(task_id).json() == {"code": 200, "msg": "success", "data": running}
    clock.now += 100
    completed = caller.query(task_id)
    assert completed == {
        **running,
        "state": "completed",
        "resultUrls": completed["resultUrls"],
        "completeTime": 1_705_123_550_000,
    }


def test_a_task_of_another_account_does_not_exist(clock: Clock) -> None:
    with KlingEmulator(accounts={"sk_one": 5, "sk_two": 5}, clock=clock) as emulator:
        one, two = Caller(emulator), Caller(emulator, "sk_two")
        assert emulator.api_key == "sk_one"
        task_id = one.create()
        for answer in (two.ask(task_id), two.get(f"/records/{task_id}"), one.ask("cl1")):
            assert answer.status_code == answer.json()["code"] == 404


def test_a_query_without_a_task_id_is_refused(caller: Caller) -> None:
    assert caller.get("/video/generations").status_code == 400


@pytest.mark.parametrize(
    ("fields", "usd"),
    [
        ({"model": "kling-video-o1"}, "0.3165"),
        ({"model": "kling-video-o1", "mode": "pro", "sound": "on", "duration": "10"}, "1.28"),
        ({"mode": "std", "sound": "on", "duration": "15"}, "1.434"),
        ({"mode": "pro", "duration": "3"}, "0.2559"),
        ({"mode": "pro", "video_list": [{**EDITED, "keep_original_sound": "yes"}]}, "0.5295"),
        ({"video_list": [{**EDITED, "keep_original_sound": "no"}]}, "0.3165"),
    ],
)
def test_a_video_costs_what_the_price_table_says(
    emulator: KlingEmulator, caller: Caller, fields: dict[str, Any], usd: str
) -> None:
    emulator.complete(caller.create(**fields))
    assert [bill.usd for bill in emulator.ledger.paid()] == [Decimal(usd)]
    assert caller.balance()["balance"] == pytest.approx(1000 - float(usd), abs=1e-4)


def test_money_is_held_while_a_task_runs_and_charged_once_when_it_is_completed(
    emulator: KlingEmulator, caller: Caller, clock: Clock
) -> None:
    task_id = caller.create(duration="10")
    held = {"balance": 999.367, "total": 1000.0, "frozen": 0.633, "currency": "USD"}
    assert caller.balance() == held
    assert emulator.ledger.paid() == []
    clock.now += 100
    charged = {"balance": 999.367, "total": 999.367, "frozen": 0.0, "currency": "USD"}
    assert caller.balance() == charged
    for _ in range(3):
        caller.query(task_id)
    clock.now += 1000
    assert caller.balance() == charged
    (bill,) = emulator.ledger.paid()
    assert (bill.task_id, bill.usd, bill.at) == (task_id, Decimal("0.633"), clock.now - 1000)
    assert emulator.ledger.task(task_id).times_billed == 1


def test_a_failed_task_is_free_and_what_was_held_comes_back(
    emulator: KlingEmulator, caller: Caller, clock: Clock
) -> None:
    emulator.inject("fail", fail_code="INTERNAL_ERROR")
    task_id = caller.create()
    assert caller.balance()["frozen"] > 0
    clock.now += 100
    assert caller.query(task_id)["state"] == "failed"
    assert caller.balance() == {"balance": 1000.0, "total": 1000.0, "frozen": 0.0, "currency": "USD"}
    assert emulator.ledger.paid() == []


def test_without_enough_money_a_create_is_refused_and_what_is_held_counts(clock: Clock) -> None:
    with KlingEmulator(balance="0.5", latency=100, clock=clock) as emulator:
        caller = Caller(emulator)
        first = caller.create()
        answer = caller.post()
        assert answer.status_code == answer.json()["code"] == 402
        assert "0.3165 USD needed, 0.1835 USD available" in answer.json()["msg"]
        emulator.fail(first)
        caller.create()


def test_the_record_is_settled_a_little_after_the_end(
    caller: Caller, emulator: KlingEmulator, clock: Clock
) -> None:
    task_id = caller.create()
    clock.now += 101
    assert caller.record(task_id)["settled"] is False
    clock.now += 1
    assert caller.record(task_id) == {
        "taskId": task_id,
        "settled": True,
        "credits": 0.3165,
        "currency": "USD",
    }
    failed = caller.create()
    emulator.fail(failed)
    clock.now += 2
    assert caller.record(failed)["credits"] == 0


class TestLatency:
    def ends(self, emulator: KlingEmulator) -> list[float]:
        return [(task.ends_at or math.inf) - task.created_at for task in emulator.ledger.tasks()]

    def test_it_is_drawn_as_the_services_own_was_seen(self, clock: Clock) -> None:
        with KlingEmulator(latency="lognormal", seed=1, clock=clock) as emulator:
            for _ in range(600):
                emulator.service.create(
                    emulator.service.authenticate(f"Bearer {emulator.api_key}"),
                    {"model": "kling-v3-omni", "prompt": "x"},
                    {},
                )
            drawn = self.ends(emulator)
        assert statistics.median(drawn) == pytest.approx(142, rel=0.15)
        assert statistics.quantiles(drawn, n=10)[-1] == pytest.approx(486, rel=0.2)
        assert OBSERVED_LATENCY.median == 142

    def test_the_time_scale_is_a_factor_on_it(self, clock: Clock) -> None:
        with KlingEmulator(latency=100, time_scale=0.01, clock=clock) as emulator:
            Caller(emulator).create()
            assert self.ends(emulator) == [pytest.approx(1)]

    def test_a_task_that_never_ends_by_itself_ends_when_it_is_told(self, clock: Clock) -> None:
        with KlingEmulator(latency="never", clock=clock) as emulator:
            caller = Caller(emulator)
            one, two = caller.create(), caller.create()
            clock.now += 1e9
            assert caller.query(one)["state"] == "processing"
            emulator.complete(one)
            emulator.fail(two, "CONTENT_MODERATION", "No", retryable=False)
            assert caller.query(one)["state"] == "completed"
            answer = caller.query(two)
            told = {name: answer[name] for name in ("state", "failCode", "failMsg", "retryable")}
            assert told == {
                "state": "failed",
                "failCode": "CONTENT_MODERATION",
                "failMsg": "No",
                "retryable": False,
            }
            assert len(emulator.ledger.paid()) == 1
            with pytest.raises(ValueError, match="completed already"):
                emulator.fail(one)
            with pytest.raises(KeyError):
                emulator.complete("cl1")

    def test_the_clock_can_be_moved_ahead_but_not_back(self, emulator: KlingEmulator, caller: Caller) -> None:
        task_id = caller.create()
        emulator.advance(99)
        assert caller.query(task_id)["state"] == "processing"
        emulator.advance(1)
        assert caller.query(task_id)["state"] == "completed"
        for seconds in (-1, math.nan, math.inf):
            with pytest.raises(ValueError, match="ahead only"):
                emulator.advance(seconds)

    def test_changed_settings_hold_for_new_tasks_only(
        self, emulator: KlingEmulator, caller: Caller, clock: Clock
    ) -> None:
        old = caller.create()
        emulator.configure(latency=1)
        new = caller.create()
        clock.now += 1
        assert [caller.query(task_id)["state"] for task_id in (old, new)] == ["pending", "completed"]
        with pytest.raises(ValueError, match="seed"):
            emulator.configure(seed=8)


def test_a_seed_repeats_task_ids_latencies_and_films(clock: Clock) -> None:
    def run(seed: int | None) -> tuple[list[str], list[float | None], bytes]:
        with KlingEmulator(latency="lognormal", seed=seed, scale=0.05, clock=clock) as emulator:
            caller = Caller(emulator)
            ids = [caller.create(duration="3") for _ in range(3)]
            ends = [task.ends_at for task in emulator.ledger.tasks()]
            emulator.complete(ids[0])
            return ids, ends, caller.session.get(caller.link(ids[0]), timeout=120).content

    assert run(1) == run(1)
    assert run(1)[0] != run(2)[0]
    assert run(None)[0] != run(None)[0]


class TestLimits:
    def test_above_the_limit_of_tasks_a_create_is_refused_with_429(
        self, emulator: KlingEmulator, caller: Caller, clock: Clock
    ) -> None:
        emulator.configure(max_running_tasks=2)
        caller.create()
        caller.create()
        answer = caller.post()
        assert answer.status_code == answer.json()["code"] == 429
        assert "1303" in answer.json()["msg"]
        assert len(emulator.ledger.tasks()) == 2
        clock.now += 100
        caller.create()

    def test_or_taken_and_failed_for_the_same_reason(
        self, emulator: KlingEmulator, caller: Caller, clock: Clock
    ) -> None:
        emulator.configure(max_running_tasks=1, when_full="fail")
        caller.create()
        data = caller.post().json()["data"]
        assert (data["state"], data["failCode"]) == ("failed", "UPSTREAM_BUSY")
        assert "Concurrency limit" in data["failMsg"]
        assert caller.query(data["taskId"])["failMsg"] == data["failMsg"]
        clock.now += 100
        assert len(emulator.ledger.paid()) == 1

    def test_each_account_has_a_limit_of_its_own(self, clock: Clock) -> None:
        with KlingEmulator(
            accounts={"sk_one": 5, "sk_two": 5}, latency=100, max_running_tasks=1, clock=clock
        ) as emulator:
            Caller(emulator).create()
            Caller(emulator, "sk_two").create()
            assert Caller(emulator).post().status_code == 429

    def test_above_the_limit_of_requests_429_says_when_to_come_back(
        self, emulator: KlingEmulator, caller: Caller, clock: Clock
    ) -> None:
        emulator.configure(max_requests_per_second=2)
        answers = [caller.get("/balance") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
        assert answers[-1].headers["Retry-After"] == "1"
        clock.now += 1
        assert [caller.get("/balance").status_code for _ in range(3)] == [200, 200, 429]

    def test_a_limit_below_one_a_second_says_so(
        self, emulator: KlingEmulator, caller: Caller, clock: Clock
    ) -> None:
        emulator.configure(max_requests_per_second=0.2)
        assert caller.get("/balance").status_code == 200
        refused = caller.get("/balance")
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "5")
        clock.now += 5
        assert caller.get("/balance").status_code == 200


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"latency": "soon"}, "soon"),
        ({"latency": -1}, "latency"),
        ({"latency": "lognormal:1"}, "MEDIAN"),
        ({"latency": None}, "latency"),
        ({"time_scale": 0}, "time_scale"),
        ({"scale": 3}, "scale"),
        ({"max_runing_tasks": 3}, "max_runing_tasks"),
        ({"expired_status": 500}, "expired_status"),
    ],
)
def test_a_setting_that_is_not_allowed_is_named(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        KlingEmulator(**settings)


@pytest.mark.parametrize("written", ["5", "never", "lognormal:142:0.96", "0.5"])
def test_latencies_are_written_as_they_are_read(written: str) -> None:
    emulator = KlingEmulator(latency=written)
    with emulator:
        assert emulator.service.settings.model_dump(mode="json")["latency"] == written
