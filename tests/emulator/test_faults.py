"""Faults: what they do over HTTP, and which calls they strike."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
import requests

from airflow_provider_kling.api.errors import FAIL_CODES
from airflow_provider_kling.emulator import Fault, KlingEmulator
from airflow_provider_kling.emulator.answers import UNKNOWN_STATE
from airflow_provider_kling.emulator.faults import Facts, FaultPlan
from tests.emulator.caller import Caller, eventually


class TestAnswers:
    @pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 429, 500, 502, 503, 504])
    def test_every_error_can_be_had_once_for_every_call(
        self, emulator: KlingEmulator, caller: Caller, status: int
    ) -> None:
        task_id = caller.create()
        for call, path in (
            ("query", f"/video/generations?task_id={task_id}"),
            ("balance", "/balance"),
            ("record", f"/records/{task_id}"),
            ("models", "/models"),
        ):
            emulator.inject("answer", call=call, status=status)
            answer = caller.get(path)
            assert answer.status_code == answer.json()["code"] == status
            assert answer.json()["msg"]
            assert caller.get(path).status_code == 200
        emulator.inject("answer", call="upload", status=status)
        assert caller.upload("x.png", b"x").status_code == status
        emulator.inject("answer", call="create", status=status)
        assert caller.post().status_code == status
        assert len(emulator.ledger.tasks()) == 1

    def test_retry_after_comes_in_seconds_or_as_a_date_or_not_at_all(
        self, emulator: KlingEmulator, caller: Caller
    ) -> None:
        emulator.inject("answer", status=429)
        emulator.inject("answer", status=429, retry_after=7)
        emulator.inject("answer", status=503, retry_after=600, retry_after_as="date")
        headers = [caller.get("/balance").headers for _ in range(3)]
        assert "Retry-After" not in headers[0]
        assert headers[1]["Retry-After"] == "7"
        at = parsedate_to_datetime(headers[2]["Retry-After"]).timestamp()
        assert at == pytest.approx(time.time() + 600, abs=60)
        assert headers[2]["Retry-After"].endswith("GMT")

    def test_an_error_can_come_with_status_200(self, emulator: KlingEmulator, caller: Caller) -> None:
        emulator.inject("answer", status=200, code=402, message="No credits")
        emulator.inject("answer", status=200, code="500")
        answer = caller.get("/balance")
        assert (answer.status_code, answer.json()) == (200, {"code": 402, "msg": "No credits"})
        assert caller.get("/balance").json()["code"] == "500"

    @pytest.mark.parametrize(
        ("message_at", "body"),
        [
            ("msg", {"code": 500, "msg": "Broken"}),
            ("message", {"code": 500, "message": "Broken"}),
            ("error", {"code": 500, "error": "Broken"}),
            ("error.message", {"code": 500, "error": {"message": "Broken"}}),
        ],
    )
    def test_the_text_of_an_error_can_be_in_any_of_its_places(
        self, emulator: KlingEmulator, caller: Caller, message_at: str, body: Any
    ) -> None:
        emulator.inject("answer", status=500, message="Broken", message_at=message_at)
        assert caller.get("/balance").json() == body

    @pytest.mark.parametrize(
        ("form", "content_type", "content"),
        [
            ("html", "text/html", b"<h1>502 Bad Gateway</h1>"),
            ("text", "text/plain", b"upstream error"),
            ("null", "application/json", b"null"),
        ],
    )
    def test_an_answer_need_not_be_in_the_services_form(
        self, emulator: KlingEmulator, caller: Caller, form: str, content_type: str, content: bytes
    ) -> None:
        for status in (200, 502):
            emulator.inject("answer", status=status, body=form, message=None)
            answer = caller.get("/balance")
            assert (answer.status_code, answer.headers["Content-Type"].split(";")[0]) == (
                status,
                content_type,
            )
            assert content in answer.content or status == 200

    def test_an_answer_can_be_empty_and_its_status_odd(self, emulator: KlingEmulator, caller: Caller) -> None:
        emulator.inject("answer", status=200, body="empty")
        emulator.inject("answer", status=599)
        answer = caller.get("/balance")
        assert (answer.status_code, answer.content) == (200, b"")
        assert caller.get("/balance").json() == {"code": 599, "msg": "Error"}

    @pytest.mark.parametrize(("handled", "tasks"), [(False, 0), (True, 1)])
    def test_behind_an_error_a_create_was_done_or_not_as_one_wants(
        self, emulator: KlingEmulator, caller: Caller, handled: bool, tasks: int
    ) -> None:
        emulator.inject("answer", call="create", status=502, body="html", handled=handled)
        assert caller.post().status_code == 502
        assert len(emulator.ledger.tasks()) == tasks
        (create,) = emulator.ledger.creates()
        assert (create.status, create.faults, create.task_id is None) == (502, ("answer",), not handled)


class TestConnections:
    def test_a_create_that_is_reset_made_no_task(self, emulator: KlingEmulator, caller: Caller) -> None:
        emulator.inject("reset", call="create")
        with pytest.raises(requests.ConnectionError, match="reset by peer"):
            caller.post()
        assert emulator.ledger.tasks() == []
        (create,) = emulator.ledger.creates()
        assert (create.task_id, create.status, create.faults) == (None, None, ("reset",))
        assert emulator.ledger.counts() == {"create": {"reset": 1}}

    def test_a_create_whose_answer_is_lost_made_a_task_that_is_billed(
        self, emulator: KlingEmulator, caller: Caller
    ) -> None:
        emulator.inject("lost_answer", call="create")
        with pytest.raises(requests.ConnectionError, match="reset by peer"):
            caller.post()
        (task,), (create,) = emulator.ledger.tasks(), emulator.ledger.creates()
        assert (create.task_id, create.status, create.faults) == (task.task_id, None, ("lost_answer",))
        emulator.advance(100)
        assert [bill.task_id for bill in emulator.ledger.paid()] == [task.task_id]

    def test_refused_connections_come_back_by_themselves(
        self, emulator: KlingEmulator, caller: Caller
    ) -> None:
        problems: list[str] = []

        def is_back() -> bool:
            try:
                caller.create()
            except requests.ConnectionError as error:
                problems.append(str(error))
                return False
            return True

        for seconds in (0.3, 3, 30):  # a machine that stalls for so long finds it back
            emulator.reset()
            emulator.inject("refuse", call="create", seconds=seconds)
            with pytest.raises(requests.ConnectionError, match="reset by peer"):
                caller.post()
            eventually(is_back)
            assert len(emulator.ledger.tasks()) == 1
            if problems:
                break
        assert problems
        assert all("refused" in problem for problem in problems)

    def test_while_it_is_offline_nothing_reaches_it_and_open_connections_are_reset(
        self, emulator: KlingEmulator, caller: Caller
    ) -> None:
        caller.create()
        with emulator.offline():
            for _ in range(2):
                with pytest.raises(requests.ConnectionError):
                    requests.get(f"{emulator.base_url}/balance", timeout=120)
            eventually(lambda: emulator.ledger.connections().open == 0)
        caller.create()
        assert len(emulator.ledger.tasks()) == 2

    @pytest.mark.parametrize("kind", ["cut", "lost_answer"])
    def test_a_query_can_be_cut(self, emulator: KlingEmulator, caller: Caller, kind: str) -> None:
        task_id = caller.create()
        emulator.inject(kind, call="query")
        with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
            caller.query(task_id)
        assert caller.query(task_id)["state"] == "pending"

    def test_a_slow_create_is_done_although_its_client_did_not_wait(
        self, emulator: KlingEmulator, caller: Caller
    ) -> None:
        emulator.inject("slow", call="create", seconds=600)
        with pytest.raises(requests.ReadTimeout):
            requests.post(
                f"{caller.base}/video/generations",
                json={"model": "kling-v3-omni", "prompt": "x"},
                headers=dict(caller.session.headers),
                timeout=0.3,
            )
        eventually(lambda: len(emulator.ledger.tasks()) == 1)
        assert [create.faults for create in emulator.ledger.creates()] == [("slow",)]

    def test_slowness_goes_with_other_faults(self, emulator: KlingEmulator, caller: Caller) -> None:
        emulator.inject("slow", seconds=0.05)
        emulator.inject("answer", status=503)
        before = time.monotonic()
        assert caller.get("/balance").status_code == 503
        assert time.monotonic() - before >= 0.05
        assert caller.get("/balance").status_code == 200


class TestShapes:
    def answer(self, emulator: KlingEmulator, caller: Caller, shape: str, *, done: bool = True) -> Any:
        task_id = caller.create()
        if done:
            emulator.complete(task_id)
        emulator.inject("drift", call="query", shape=shape)
        drifted = caller.ask(task_id).json()
        assert "taskId" in caller.query(task_id), "only one answer drifts"
        return drifted

    @pytest.mark.parametrize("done", [True, False])
    def test_ids_and_states_have_their_other_names(
        self, emulator: KlingEmulator, caller: Caller, done: bool
    ) -> None:
        data = self.answer(emulator, caller, "task_id+status", done=done)["data"]
        assert {"taskId", "state"}.isdisjoint(data)
        assert data["task_id"].startswith("cl")
        assert data["status"] == ("completed" if done else "pending")

    def test_the_payload_is_at_the_top(self, emulator: KlingEmulator, caller: Caller) -> None:
        body = self.answer(emulator, caller, "top_level")
        assert "data" not in body
        assert (body["code"], body["state"]) == (200, "completed")

    @pytest.mark.parametrize(
        ("shape", "path"),
        [
            ("videos", ("videos", 0)),
            ("video_url", ("video_url",)),
            ("url", ("url",)),
            ("result_json_object", ("resultJson", "resultUrls", 0)),
        ],
    )
    def test_links_are_in_other_places(
        self, emulator: KlingEmulator, caller: Caller, shape: str, path: tuple[Any, ...]
    ) -> None:
        found = self.answer(emulator, caller, shape)["data"]
        assert "resultUrls" not in found
        for step in path:
            found = found[step]
        assert found.endswith(".mp4")
        assert "resultUrls" not in self.answer(emulator, caller, shape, done=False)["data"]

    def test_or_in_json_within_the_json(self, emulator: KlingEmulator, caller: Caller) -> None:
        data = self.answer(emulator, caller, "result_json_string")["data"]
        assert data["resultJson"].startswith('{"resultUrls": ["http')

    def test_a_state_is_one_that_nobody_has_heard_of(self, emulator: KlingEmulator, caller: Caller) -> None:
        assert self.answer(emulator, caller, "unknown_state", done=False)["data"]["state"] == UNKNOWN_STATE
        assert self.answer(emulator, caller, "unknown_state+status")["data"]["status"] == UNKNOWN_STATE

    @pytest.mark.parametrize(
        ("shape", "data"), [("data_is_null", None), ("data_is_text", "ok"), ("no_data", "missing")]
    )
    def test_the_payload_is_missing_or_something_else(
        self, emulator: KlingEmulator, caller: Caller, shape: str, data: Any
    ) -> None:
        body = self.answer(emulator, caller, shape)
        assert body.get("data", "missing") == data
        assert body["code"] == 200

    def test_the_payload_is_a_list(self, emulator: KlingEmulator, caller: Caller) -> None:
        assert self.answer(emulator, caller, "data_is_list")["data"][0]["state"] == "completed"

    def test_create_answers_drift_as_well(self, emulator: KlingEmulator, caller: Caller) -> None:
        emulator.inject("drift", call="create", shape=["task_id", "status", "top_level"])
        body = caller.post().json()
        assert (body["task_id"], body["status"]) == (emulator.ledger.tasks()[0].task_id, "pending")

    def test_so_do_the_calls_that_are_not_documented(self, emulator: KlingEmulator, caller: Caller) -> None:
        emulator.inject("drift", call="balance", shape="task_id+status+unknown_state+videos+top_level")
        emulator.inject("drift", call="models", shape="top_level")
        assert caller.get("/balance").json()["currency"] == "USD"
        assert caller.get("/models").json()[0]["id"] == "kling-video-o1"


class TestFates:
    @pytest.mark.parametrize("code", [*FAIL_CODES, None])
    @pytest.mark.parametrize("retryable", [True, False, None])
    def test_a_task_fails_for_any_reason_and_says_or_not_whether_to_try_again(
        self, emulator: KlingEmulator, caller: Caller, code: str | None, retryable: bool | None
    ) -> None:
        emulator.inject("fail", fail_code=code, retryable=retryable)
        task_id = caller.create()
        assert caller.query(task_id)["state"] == "pending"
        emulator.advance(100)
        answer = caller.query(task_id)
        assert answer["state"] == "failed"
        assert answer["failMsg"]
        assert answer.get("failCode") == code
        assert answer.get("retryable") == retryable
        assert "resultUrls" not in answer
        assert "completeTime" in answer

    def test_a_create_answer_can_say_already_that_it_failed(
        self, emulator: KlingEmulator, caller: Caller
    ) -> None:
        emulator.inject("fail", fail_code="INVALID_INPUT", message="Not this", at_once=True)
        data = caller.post().json()["data"]
        assert (data["state"], data["failCode"], data["failMsg"]) == ("failed", "INVALID_INPUT", "Not this")
        assert caller.balance()["frozen"] == 0
        assert emulator.ledger.task(data["taskId"]).faults == ("fail",)

    def test_a_task_can_take_its_own_time(self, emulator: KlingEmulator, caller: Caller) -> None:
        emulator.inject("latency", seconds=5)
        emulator.inject("latency")
        quick, slow, usual = caller.create(), caller.create(), caller.create()
        took = {task.task_id: (task.ends_at or 0) - task.created_at for task in emulator.ledger.tasks()}
        assert [took[task_id] for task_id in (quick, slow, usual)] == [5, 3600, 100]


class TestWhichCallsAreStruck:
    def strikes(self, fault: Fault, *facts: Facts) -> list[bool]:
        plan = FaultPlan(1)
        plan.add(fault)
        return [bool(plan.take(fact)) for fact in facts]

    def test_only_the_named_call(self) -> None:
        fault = Fault(kind="answer", status=500, call="query", times="always")
        assert self.strikes(fault, Facts("query"), Facts("create"), Facts("download")) == [True, False, False]

    def test_without_a_name_every_call_of_the_api_but_no_download(self) -> None:
        fault = Fault(kind="answer", status=500, times="always")
        calls = [Facts("query"), Facts("create"), Facts("balance"), Facts("download"), Facts("callback")]
        assert self.strikes(fault, *calls) == [True, True, True, False, False]

    def test_kinds_that_strike_nothing_else_need_no_name(self) -> None:
        assert self.strikes(Fault(kind="drop"), Facts("query"), Facts("callback")) == [False, True]
        assert self.strikes(Fault(kind="fail"), Facts("query"), Facts("create")) == [False, True]

    def test_only_prompts_with_these_words_as_whole_ones(self) -> None:
        fault = Fault(kind="reset", prompt="video-1", times="always")
        prompts = ["a video-1 b", "video-10", "my-video-1", "xvideo-1", "[video-1]", ""]
        facts = [Facts("create", prompt=prompt) for prompt in prompts]
        assert self.strikes(fault, *facts) == [True, False, True, False, True, False]

    def test_words_of_scripts_without_spaces_are_found_within_sentences(self) -> None:
        fault = Fault(kind="reset", prompt="海滩", times="always")
        assert self.strikes(
            fault, Facts("create", prompt="女孩在海滩上跳舞"), Facts("create", prompt="山")
        ) == [
            True,
            False,
        ]

    def test_only_this_task(self) -> None:
        fault = Fault(kind="reset", task_id="cl1", times="always")
        assert self.strikes(fault, Facts("query", task_id="cl1"), Facts("query", task_id="cl2")) == [
            True,
            False,
        ]

    def test_only_with_this_header(self) -> None:
        for header, expected in (("X-Test", [True, True, False]), ("X-Test: a b", [True, False, False])):
            fault = Fault(kind="reset", header=header, times="always")
            facts = [Facts("query", headers=its) for its in ({"X-Test": "a b"}, {"X-Test": "c"}, {})]
            assert self.strikes(fault, *facts) == expected

    def test_only_with_this_field(self) -> None:
        bodies: list[dict[str, Any]] = [{"mode": "pro"}, {"mode": "std"}, {}, {"multi_shot": True}]
        for field, expected in (
            ("mode=pro", [True, False, False, False]),
            ("mode", [True, True, False, False]),
            ("multi_shot=true", [False, False, False, True]),
        ):
            fault = Fault(kind="reset", field=field, times="always")
            assert self.strikes(fault, *[Facts("create", body=body) for body in bodies]) == expected

    def test_over_http_the_request_is_what_is_matched(self, emulator: KlingEmulator, caller: Caller) -> None:
        emulator.inject("answer", status=503, call="create", prompt="weapon", times="always")
        emulator.inject("answer", status=504, header="X-Case: 7", times="always")
        emulator.inject("answer", status=500, call="create", field="mode=pro", times="always")
        assert caller.post(prompt="a weapon").status_code == 503
        assert caller.post(mode="pro").status_code == 500
        task_id = caller.create(prompt="no weapons")
        assert caller.ask(task_id).status_code == 200
        emulator.inject("answer", status=502, call="query", prompt="weapons")
        assert caller.ask(task_id).status_code == 502
        caller.session.headers["X-Case"] = "7"
        assert caller.ask(task_id).status_code == 504

    def test_once_unless_told_otherwise(self) -> None:
        facts = [Facts("query")] * 4
        assert self.strikes(Fault(kind="reset"), *facts) == [True, False, False, False]
        assert self.strikes(Fault(kind="reset", times=2), *facts) == [True, True, False, False]
        assert self.strikes(Fault(kind="reset", times="always"), *facts) == [True] * 4
        assert self.strikes(Fault(kind="reset", skip=1, times=2), *facts) == [False, True, True, False]

    def test_by_rate_under_a_seed(self) -> None:
        fault, facts = Fault(kind="reset", rate=0.3), [Facts("query")] * 2000
        struck = self.strikes(fault, *facts)
        assert sum(struck) == pytest.approx(600, abs=80)
        assert struck == self.strikes(fault, *facts)
        assert sum(self.strikes(Fault(kind="reset", rate=1, times=3), *facts)) == 3
        assert sum(self.strikes(Fault(kind="reset", rate=0), *facts)) == 0

    def test_of_those_that_change_the_answer_the_first_one_counts(self) -> None:
        plan = FaultPlan(1)
        plan.add(Fault(kind="drift", shape=("status",)))
        plan.add(Fault(kind="answer", status=500))
        plan.add(Fault(kind="reset"))
        plan.add(Fault(kind="slow"))
        taken = [{fault.kind for fault in plan.take(Facts("query")).values()} for _ in range(4)]
        assert taken == [{"answer", "slow"}, {"reset"}, {"drift"}, set()]

    def test_what_cannot_show_is_kept_for_a_call_where_it_can(
        self, emulator: KlingEmulator, caller: Caller
    ) -> None:
        fail = emulator.inject("fail")
        emulator.inject("reset", call="create")
        with pytest.raises(requests.ConnectionError):
            caller.post()
        assert emulator.faults.struck(fail) == 0
        caller.create()
        assert emulator.faults.struck(fail) == 1

    def test_faults_can_be_taken_away(self, emulator: KlingEmulator, caller: Caller) -> None:
        number = emulator.inject(Fault(kind="answer", status=500, times="always"))
        assert caller.get("/balance").status_code == 500
        assert emulator.faults.struck(number) == 1
        assert emulator.faults.remove(number)
        assert not emulator.faults.remove(number)
        assert caller.get("/balance").status_code == 200
        emulator.inject("reset")
        emulator.faults.clear()
        assert caller.get("/balance").status_code == 200
        with pytest.raises(KeyError):
            emulator.faults.struck(number)


class TestWriting:
    @pytest.mark.parametrize(
        ("written", "fault"),
        [
            ("lost_answer", Fault(kind="lost_answer")),
            (
                "answer:call=query,status=503,rate=0.05",
                Fault(kind="answer", call="query", status=503, rate=0.05),
            ),
            (
                "answer: status=429, retry_after=3, times=2",
                Fault(kind="answer", status=429, retry_after=3, times=2),
            ),
            ("answer:status=502,handled", Fault(kind="answer", status=502, handled=True)),
            (
                "drift:shape=task_id+status,times=always",
                Fault(kind="drift", shape=("task_id", "status"), times="always"),
            ),
            ("fail:field=mode=pro", Fault(kind="fail", field="mode=pro")),
            ('{"kind": "fail", "message": "a, b"}', Fault(kind="fail", message="a, b")),
        ],
    )
    def test_a_fault_can_be_written_in_a_line(self, written: str, fault: Fault) -> None:
        assert Fault.parse(written) == fault

    @pytest.mark.parametrize(
        ("written", "told"),
        [
            ("explode", "kind"),
            ("answer", "needs a status"),
            ("answer:status=abc", "status"),
            ("drift", "needs a shape"),
            ("drift:shape=sideways", "shape"),
            ("fail:call=query", "fail cannot strike query: it strikes create"),
            ("expired_link:status=500", "403, 404 or 410"),
            ("reset:rate=2", "rate"),
            ("reset:times=0", "times"),
            ("reset:wen=1", "wen"),
            ("{", "property name"),
        ],
    )
    def test_a_fault_that_cannot_be_is_refused_with_the_reason(self, written: str, told: str) -> None:
        with pytest.raises(ValueError, match=told):
            Fault.parse(written)
