"""The judge: what was paid, how often, for which video; also after the emulator itself was killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import requests

from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.emulator.journal import JournalError
from airflow_provider_kling.emulator.ledger import KEPT_REQUESTS
from tests.emulator.caller import Caller, Clock, eventually
from tests.emulator.command_line import run


class TestPaid:
    def test_a_video_that_was_asked_for_twice_is_seen_to_be_paid_twice(
        self, emulator: KlingEmulator, caller: Caller
    ) -> None:
        caller.create(prompt="a cat [video-1]")
        caller.create(prompt="a dog [video-2]")
        emulator.inject("lost_answer", call="create")
        with pytest.raises(requests.ConnectionError):
            caller.post(prompt="a bird [video-3]")
        caller.create(prompt="a bird [video-3]")
        assert emulator.ledger.paid() == []
        emulator.advance(100)
        assert [len(emulator.ledger.paid(f"video-{n}")) for n in (1, 2, 3, 4)] == [1, 1, 2, 0]
        assert emulator.ledger.paid_usd("video-3") == Decimal("0.633")
        assert emulator.ledger.paid_usd() == Decimal("1.266")
        assert len(emulator.ledger.creates("video-3")) == len(emulator.ledger.tasks("video-3")) == 2

    def test_marks_are_whole_words(self, emulator: KlingEmulator, caller: Caller) -> None:
        for n in (1, 10, 11, 100):
            emulator.complete(caller.create(prompt=f"a cat video-{n}."))
        assert len(emulator.ledger.paid("video-1")) == 1

    def test_many_videos_are_told_apart_at_once(self, emulator: KlingEmulator, caller: Caller) -> None:
        emulator.inject("reset", call="create", prompt="v-2")
        with pytest.raises(requests.ConnectionError):
            caller.post(prompt="[v-2]")
        for n in (1, 2, 2, 3):
            caller.create(prompt=f"a cat [v-{n}]")
        caller.create(prompt="unmarked")
        emulator.fail(emulator.ledger.tasks("v-3")[0].task_id)
        emulator.advance(100)
        tallies = emulator.ledger.by_mark(r"\[(v-\d+)\]")
        figures = {mark: (len(its.creates), len(its.tasks), its.times_paid) for mark, its in tallies.items()}
        assert figures == {"v-1": (1, 1, 1), "v-2": (3, 2, 2), "v-3": (1, 1, 0)}
        assert tallies["v-2"].usd == Decimal("0.633")
        assert set(emulator.ledger.by_mark(r"v-\d")) == {"v-1", "v-2", "v-3"}
        with pytest.raises(ValueError, match="no regular expression"):
            emulator.ledger.by_mark("(")

    def test_the_bills_and_what_the_accounts_have_left_add_up(self, clock: Clock) -> None:
        with KlingEmulator(
            accounts={"sk_one": "20", "sk_two": "20"}, latency="lognormal", seed=3, clock=clock
        ) as emulator:
            emulator.inject("fail", rate=0.3)
            callers = Caller(emulator), Caller(emulator, "sk_two")
            for n in range(40):
                callers[n % 2].create(duration=str(3 + n % 5))
                clock.now += 20
            clock.now += 1e6
            for caller in callers:
                key = str(caller.session.headers["Authorization"]).split()[1]
                bills = [bill for bill in emulator.ledger.paid() if bill.account == key]
                left = caller.balance()
                assert Decimal(str(left["total"])) + sum(bill.usd for bill in bills) == 20
                assert left["frozen"] == 0
            completed = emulator.ledger.tasks(state="completed")
            assert len(completed) + len(emulator.ledger.tasks(state="failed")) == 40
            assert {bill.task_id for bill in emulator.ledger.paid()} == {task.task_id for task in completed}

    def test_it_can_be_read_after_the_end_and_time_stands_still_there(self, clock: Clock) -> None:
        with KlingEmulator(latency=100, clock=clock) as emulator:
            caller = Caller(emulator)
            emulator.complete(caller.create())
            caller.create()
        clock.now += 1000
        assert len(emulator.ledger.paid()) == 1
        assert [task.state for task in emulator.ledger.tasks()] == ["completed", "pending"]


class TestSeen:
    def test_tasks_are_told_with_all_that_happened_to_them(
        self, emulator: KlingEmulator, caller: Caller, clock: Clock
    ) -> None:
        task_id = caller.create(prompt="a cat", duration="3", mode="pro")
        created = clock.now
        caller.query(task_id)
        clock.now += 107
        caller.session.get(caller.link(task_id), timeout=120)
        task = emulator.ledger.task(task_id)
        assert (task.prompt, task.state, task.seconds, task.price_usd) == (
            "a cat",
            "completed",
            3,
            Decimal("0.2559"),
        )
        assert (task.created_at, task.ends_at, task.told_at) == (created, created + 100, created + 107)
        assert (task.queries, task.downloads, task.times_billed) == (2, 1, 1)
        assert task.body == {"model": "kling-v3-omni", "prompt": "a cat", "duration": "3", "mode": "pro"}
        with pytest.raises(KeyError):
            emulator.ledger.task("cl1")

    def test_requests_are_counted_and_the_latest_kept(self, emulator: KlingEmulator, caller: Caller) -> None:
        caller.session.headers["User-Agent"] = "tests/1"
        task_id = caller.create()
        caller.query(task_id)
        caller.ask("cl1")
        assert emulator.ledger.counts() == {"create": {"200": 1}, "query": {"200": 1, "404": 1}}
        assert (emulator.ledger.count("query"), emulator.ledger.count("upload")) == (2, 0)
        first, second = emulator.ledger.requests("query")
        assert (first.task_id, first.status, first.method, first.path) == (
            task_id,
            200,
            "GET",
            "/api/v1/video/generations",
        )
        assert (second.task_id, second.status) == ("cl1", 404)
        assert {seen.user_agent for seen in emulator.ledger.requests()} == {"tests/1"}
        assert all(seen.carried_key for seen in emulator.ledger.requests())
        assert emulator.ledger._requests.maxlen == KEPT_REQUESTS

    def test_connections_are_counted_by_what_they_are_for(
        self, emulator: KlingEmulator, caller: Caller
    ) -> None:
        task_id = caller.create(duration="3")
        for _ in range(5):
            caller.query(task_id)
        emulator.complete(task_id)
        link = caller.link(task_id)
        for _ in range(2):
            requests.get(link, timeout=120)
        caller.control("GET", "ledger")
        seen = emulator.ledger.connections()
        assert (seen.api, seen.download, seen.control, seen.opened) == (1, 2, 1, 3)
        assert 1 <= seen.open <= seen.most_open <= 4

    def test_of_many_connections_only_counts_are_kept(self, emulator: KlingEmulator) -> None:
        for _ in range(150):
            Caller(emulator).balance()
        assert emulator.ledger.connections().api == 150
        assert len(emulator._connections._known) < 100

    def test_the_summary_has_the_figures(self, emulator: KlingEmulator, caller: Caller) -> None:
        emulator.complete(caller.create())
        caller.create()
        summary = emulator.ledger.summary()
        assert summary["tasks"] == {"all": 2, "completed": 1, "pending": 1}
        assert summary["paid"] == {"times": 1, "usd": "0.3165", "tasks_billed_twice": []}
        assert summary["creates"] == 2
        assert summary["connections"]["opened"] == 1

    def test_a_reset_forgets_all_but_the_time(self, emulator: KlingEmulator, caller: Caller) -> None:
        emulator.inject("reset", times="always", call="models")
        old = caller.create()
        emulator.advance(100)
        emulator.reset()
        assert (
            len(emulator.ledger.paid()),
            len(emulator.ledger.tasks()),
            len(emulator.ledger.creates()),
        ) == (0, 0, 0)
        assert caller.get("/models").status_code == 200
        assert caller.balance()["total"] == 1000
        assert caller.ask(old).status_code == 404
        assert caller.create() != old


class TestJournal:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "ledger.jsonl"

    @contextmanager
    def running(self, path: Path, clock: Clock, **settings: Any) -> Iterator[tuple[KlingEmulator, Caller]]:
        arguments: dict[str, Any] = {"latency": 100, "seed": 5, **settings}
        with KlingEmulator(ledger_file=path, clock=clock, **arguments) as emulator:
            yield emulator, Caller(emulator)

    def test_another_emulator_goes_on_where_one_ended(self, path: Path, clock: Clock) -> None:
        with self.running(path, clock) as (emulator, caller):
            billed, running, failed, ended = (caller.create(prompt=f"[v-{n}]", sound="on") for n in range(4))
            emulator.complete(billed)
            emulator.fail(failed, "OTHER", "No", retryable=True)
            emulator.inject("lost_answer", call="create")
            with pytest.raises(requests.ConnectionError):
                caller.post(prompt="[v-4]")
            emulator.complete(ended)
            before = emulator.ledger
            link, old = caller.link(billed), caller.session.get(caller.link(billed), timeout=120).content
            clock.now += 50
        with self.running(path, clock) as (emulator, caller):
            states = [task.state for task in emulator.ledger.tasks()]
            assert states == ["completed", "processing", "failed", "completed", "processing"]
            assert emulator.ledger.paid() == before.paid()
            assert emulator.ledger.creates() == before.creates()
            assert caller.balance()["total"] == pytest.approx(1000 - 2 * 0.478, abs=1e-4)
            answer = caller.query(failed)
            assert (answer["failCode"], answer["failMsg"], answer["retryable"]) == ("OTHER", "No", True)
            assert link.split("/")[-1] in caller.link(billed)
            assert caller.session.get(caller.link(billed), timeout=120).content == old
            clock.now += 50
            assert caller.query(running)["state"] == "completed"
            assert [len(emulator.ledger.paid(f"v-{n}")) for n in range(5)] == [1, 1, 0, 1, 1]
            assert caller.create() not in {task.task_id for task in before.tasks()}
        with self.running(path, clock) as (emulator, _):
            assert [len(emulator.ledger.paid(f"v-{n}")) for n in range(5)] == [1, 1, 0, 1, 1]

    def test_tasks_that_ended_meanwhile_are_billed_once_at_their_own_time(
        self, path: Path, clock: Clock
    ) -> None:
        with self.running(path, clock) as (_, caller):
            caller.create()
            ends = clock.now + 100
        clock.now += 1000
        for _ in range(2):
            with self.running(path, clock) as (emulator, _):
                assert [bill.at for bill in emulator.ledger.paid()] == [ends]

    def test_a_task_without_an_end_still_has_none(self, path: Path, clock: Clock) -> None:
        with self.running(path, clock, latency="never") as (_, caller):
            task_id = caller.create()
        with self.running(path, clock) as (emulator, caller):
            assert emulator.ledger.task(task_id).ends_at is None
            emulator.complete(task_id)
        assert all(json.loads(line) for line in path.read_text().splitlines())
        assert "Infinity" not in path.read_text()

    def test_uploads_the_clock_and_a_reset_are_kept_too(self, path: Path, clock: Clock) -> None:
        image = b"\x89PNG\r\n\x1a\n" + bytes(20)
        with self.running(path, clock) as (emulator, caller):
            caller.create()
            emulator.advance(1000)
            emulator.reset()
            link = caller.upload("x.png", image).json()["data"]["publicUrl"]
            now = emulator.service.now()
        with self.running(path, clock) as (emulator, caller):
            assert emulator.ledger.tasks() == []
            assert emulator.service.now() == now
            found = requests.get(f"{emulator.origin}/uploads/{link.split('/')[-1]}", timeout=120)
            assert found.content == image

    def test_callbacks_that_were_not_accepted_are_taken_up_again_for_half_an_hour(
        self, path: Path, clock: Clock
    ) -> None:
        def told(emulator: KlingEmulator, caller: Caller, url: str) -> str:
            task_id = caller.create(callback_url=url)
            emulator.complete(task_id)
            eventually(lambda: emulator.ledger.callbacks(task_id))
            return task_id

        def attempts(emulator: KlingEmulator, caller: Caller) -> list[int]:
            """Count the tries for each task, once all that is to come after a start has come."""
            told(emulator, caller, accepting)
            return [len(emulator.ledger.callbacks(task_id)) for task_id in (refused, accepted)]

        with KlingEmulator(latency=0) as receiver:
            # A path that answers 200 to anybody's POST, and one that answers 404.
            accepting, refusing = f"{receiver.control_url}/reset", f"{receiver.origin}/nobody"
            with self.running(path, clock) as (emulator, caller):
                refused = told(emulator, caller, refusing)
                accepted = told(emulator, caller, accepting)
            with self.running(path, clock) as (emulator, caller):
                assert attempts(emulator, caller) == [2, 1]
            clock.now += 1801
            with self.running(path, clock) as (emulator, caller):
                assert attempts(emulator, caller) == [2, 1]

    def test_a_line_that_was_being_written_is_cut_off(self, path: Path, clock: Clock) -> None:
        with self.running(path, clock) as (_, caller):
            task_id = caller.create()
        with path.open("ab") as file:
            file.write(b'{"event":"bill","task_id":"' + task_id.encode())
        with self.running(path, clock) as (emulator, caller):
            assert emulator.ledger.paid() == []
            clock.now += 100
            assert len(emulator.ledger.paid()) == 1
        with self.running(path, clock) as (emulator, _):
            assert len(emulator.ledger.paid()) == 1

    @pytest.mark.parametrize(
        "content",
        [
            "my notes",
            "my notes\n",
            "[]\n",
            '{"event": "task"}\n',
            '{"event": "start", "form": 99}\n',
            '{"event": "start", "form": 1}\n{"event": "bill", "task_id": "cl1"}\n',
            '{"event": "start", "form": 1}\nnonsense\n{"event": "reset"}\n',
        ],
    )
    def test_a_file_that_is_something_else_is_refused_and_left_as_it_is(
        self, path: Path, clock: Clock, content: str
    ) -> None:
        path.write_text(content)
        with pytest.raises(JournalError, match=r"ledger\.jsonl"), self.running(path, clock):
            pass
        assert path.read_text() == content

    def test_two_emulators_do_not_share_a_file(self, path: Path, clock: Clock) -> None:
        with (
            self.running(path, clock),
            pytest.raises(JournalError, match="Another emulator is using"),
            self.running(path, clock),
        ):
            pass

    def test_a_full_disk_makes_no_task(
        self, path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with self.running(path, clock) as (emulator, caller):
            journal = emulator.service._journal
            assert journal is not None

            class FullDisk:
                def write(self, line: bytes) -> int:
                    return len(line) - 1

                def close(self) -> None:
                    pass

            with monkeypatch.context() as patch:
                patch.setattr(journal, "_file", FullDisk())
                assert caller.post().status_code == 500
            assert emulator.ledger.tasks() == []

    def test_nothing_is_lost_by_a_kill_in_the_midst_of_it(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Who is killed cannot tidy up.
        monkeypatch.setenv("TMPDIR", str(path.parent))
        with run("--latency", "0.2", "--ledger", str(path), "--port", "0") as first:
            caller = Caller(first)
            for n in range(20):
                caller.create(prompt=f"[v-{n}]")
            first.control("POST", "faults", {"kind": "lost_answer"})
            with pytest.raises(requests.ConnectionError):
                caller.post(prompt="[v-20]")
            os.kill(first.process.pid, signal.SIGKILL)
            first.process.wait()
        with run("--latency", "0", "--ledger", str(path), "--port", "0") as second:
            eventually(lambda: second.control("GET", "ledger").json()["paid"]["times"] == 21)
            marks = second.control("GET", "marks", pattern=r"\[(v-\d+)\]").json()
            assert {its["times_paid"] for its in marks.values()} == {1}
            assert len(marks) == 21
        events = [json.loads(line) for line in path.read_text().splitlines()]
        assert [event["event"] for event in events].count("start") == 2
        billed = [event["task_id"] for event in events if event["event"] == "bill"]
        assert len(billed) == len(set(billed)) == 21
