"""What a test in another process asks for and sets, under ``/_emulator/``."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from airflow_provider_kling.emulator import KlingEmulator
from tests.emulator.caller import Caller, eventually


def test_it_tells_how_often_a_video_was_paid(emulator: KlingEmulator, caller: Caller) -> None:
    emulator.complete(caller.create(prompt="a cat [v-1]"))
    emulator.complete(caller.create(prompt="a cat [v-1]"))
    caller.create(prompt="a dog [v-2]")
    paid = caller.control("GET", "paid", prompt="v-1").json()
    assert (paid["times"], paid["usd"]) == (2, "0.6330")
    assert [bill["prompt"] for bill in paid["bills"]] == ["a cat [v-1]"] * 2
    assert caller.control("GET", "paid", prompt="v-2").json() == {"times": 0, "usd": "0", "bills": []}
    marks = caller.control("GET", "marks", pattern=r"\[(v-\d)\]").json()
    assert {mark: its["times_paid"] for mark, its in marks.items()} == {"v-1": 2, "v-2": 0}
    assert list(marks["v-2"]["tasks"].values()) == ["pending"]
    assert caller.control("GET", "ledger").json()["paid"]["times"] == 2


def test_it_lists_what_it_saw(emulator: KlingEmulator, caller: Caller) -> None:
    task_id = caller.create(prompt="a cat", callback_url=f"{emulator.origin}/nobody")
    other = caller.create(prompt="a dog")
    emulator.complete(task_id)
    requests.get(caller.link(task_id), headers={"Authorization": "x"}, timeout=120)
    eventually(lambda: emulator.ledger.callbacks())
    tasks = caller.control("GET", "tasks").json()
    assert [task["task_id"] for task in tasks] == [task_id, other]
    assert [task["task_id"] for task in caller.control("GET", "tasks", state="pending").json()] == [other]
    assert [task["task_id"] for task in caller.control("GET", "tasks", prompt="cat").json()] == [task_id]
    one = caller.control("GET", f"tasks/{task_id}").json()
    assert (one["state"], one["price_usd"], one["times_billed"]) == ("completed", "0.3165", 1)
    assert [create["prompt"] for create in caller.control("GET", "creates", prompt="dog").json()] == ["a dog"]
    assert [seen["call"] for seen in caller.control("GET", "requests", call="query").json()] == ["query"]
    assert len(caller.control("GET", "requests").json()) == 5
    (sent,) = caller.control("GET", "callbacks", task_id=task_id).json()
    assert (sent["status"], sent["attempt"]) == (404, 1)
    assert [leak["task_id"] for leak in caller.control("GET", "key-leaks").json()] == [task_id]


def test_faults_are_added_listed_and_taken_away(emulator: KlingEmulator, caller: Caller) -> None:
    numbers = [
        caller.control("POST", "faults", {"kind": "answer", "status": 503, "call": "query"}).json()["id"],
        caller.control("POST", "faults", {"kind": "fail", "rate": 0}).json()["id"],
    ]
    assert caller.ask(caller.create()).status_code == 503
    assert caller.control("GET", "faults").json() == [
        {
            "id": numbers[0],
            "kind": "answer",
            "call": "query",
            "status": 503,
            "struck": 1,
            "used_up": True,
        },
        {"id": numbers[1], "kind": "fail", "rate": 0.0, "struck": 0, "used_up": False},
    ]
    assert caller.control("DELETE", f"faults/{numbers[1]}").status_code == 200
    assert [fault["id"] for fault in caller.control("GET", "faults").json()] == numbers[:1]
    assert caller.control("DELETE", "faults").status_code == 200
    assert caller.control("GET", "faults").json() == []


def test_tasks_are_ended(caller: Caller) -> None:
    one, two, three = caller.create(), caller.create(), caller.create()
    assert caller.control("POST", f"tasks/{one}").json()["state"] == "completed"
    failed = caller.control("POST", f"tasks/{two}", {"fail_code": "TIMEOUT", "retryable": True}).json()
    assert (failed["state"], failed["fail_code"]) == ("failed", "TIMEOUT")
    assert caller.query(two)["retryable"] is True
    assert (
        caller.control("POST", f"tasks/{three}", {"failed": True, "message": "No"}).json()["state"]
        == "failed"
    )
    assert "failCode" not in caller.query(three)
    again = caller.control("POST", f"tasks/{one}", {})
    assert (again.status_code, again.json()) == (400, {"error": f"Task {one} is completed already"})


def test_settings_and_time_are_changed(emulator: KlingEmulator, caller: Caller) -> None:
    settings = caller.control("GET", "settings").json()
    assert (settings["latency"], settings["seed"]) == ("100", 7)
    changed = caller.control("POST", "settings", {"latency": "lognormal", "max_running_tasks": 1}).json()
    assert (changed["latency"], changed["max_running_tasks"]) == ("lognormal:142:0.96", 1)
    caller.create()
    assert caller.post().status_code == 429
    before = emulator.service.now()
    assert caller.control("POST", "time", {"advance": 3600}).json() == {"now": before + 3600}


def test_it_goes_offline_for_a_while(emulator: KlingEmulator, caller: Caller) -> None:
    control = requests.Session()

    def send_off(seconds: float) -> None:
        body = {"seconds": seconds}
        assert control.post(f"{emulator.control_url}/offline", json=body, timeout=120).status_code == 200

    def is_back() -> bool:
        try:
            requests.get(f"{emulator.base_url}/models", timeout=120)
        except requests.ConnectionError:
            return False
        return True

    for seconds in (0.2, 2, 20):  # a machine that stalls for so long finds it back
        send_off(seconds)
        went_off = not is_back()
        # Whoever sent it offline keeps the connection, and can send it off for longer.
        send_off(2 * seconds)
        eventually(is_back)
        if went_off:
            break
    assert went_off


def test_a_reset_forgets_tasks_and_faults(emulator: KlingEmulator, caller: Caller) -> None:
    caller.create()
    emulator.inject("reset")
    assert caller.control("POST", "reset").json() == {}
    assert emulator.ledger.tasks() == []
    assert caller.control("GET", "faults").json() == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "told"),
    [
        ("GET", "tasks/cl1", None, 404, "cl1"),
        ("POST", "tasks/cl1", {}, 404, "cl1"),
        ("POST", "tasks/cl1", {"stat": "x"}, 400, "stat"),
        ("DELETE", "faults/7", None, 404, "fault 7"),
        ("DELETE", "faults/x", None, 404, "fault x"),
        ("POST", "faults", {"kind": "explode"}, 400, "kind"),
        ("POST", "faults", {"kind": "answer"}, 400, "answer needs a status"),
        ("POST", "faults", [1], 400, "JSON object"),
        ("POST", "settings", {"latency": "soon"}, 400, "'soon' is no latency"),
        ("POST", "settings", {"seed": 8}, 400, "seed cannot be changed"),
        ("POST", "settings", {"speed": 8}, 400, "speed"),
        ("POST", "time", {"advance": -1}, 400, "advance"),
        ("POST", "time", {}, 400, "advance"),
        ("POST", "offline", {"seconds": 0}, 400, "seconds"),
        ("GET", "nothing", None, 404, "no GET"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(
    caller: Caller, method: str, path: str, body: Any, status: int, told: str
) -> None:
    answer = caller.control(method, path, body)
    assert answer.status_code == status
    assert told in answer.text


def test_a_body_that_is_no_json_and_a_pattern_that_is_none_are_refused(
    emulator: KlingEmulator, caller: Caller
) -> None:
    assert requests.post(f"{emulator.control_url}/faults", data=b"{", timeout=120).status_code == 400
    assert caller.control("GET", "marks", pattern="(").status_code == 400


def test_faults_do_not_strike_it_and_the_ledger_does_not_count_it(
    emulator: KlingEmulator, caller: Caller
) -> None:
    emulator.inject("answer", status=500, times="always")
    assert caller.control("GET", "ledger").status_code == 200
    assert emulator.ledger.counts() == {}
