"""The commands, run in this process against the emulator."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import BaseHook
from PIL import Image

from airflow_provider_kling.__main__ import main
from airflow_provider_kling.api.protocol import ApiCall
from airflow_provider_kling.cli import commands, terminal
from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.hooks.kling import KlingHook
from airflow_provider_kling.hooks.sync_client import KlingClient
from airflow_provider_kling.output_path import Coordinates
from tests.task_runs import finish_videos


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Done]


class Input(io.StringIO):
    """Standard input: a terminal at which somebody types, or not."""

    def __init__(self, text: str = "", *, is_terminal: bool = False) -> None:
        super().__init__(text)
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command line as ``python -m`` does."""
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")

    def run(*arguments: str, stdin: str = "", is_terminal: bool = False) -> Done:
        monkeypatch.setattr(sys, "stdin", Input(stdin, is_terminal=is_terminal))
        capsys.readouterr()
        try:
            status = main(arguments)
        except SystemExit as ended:
            status = int(ended.code or 0)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return Done(status, said.out, said.err)

    return run


def made(run: Run, *arguments: str) -> str:
    """Ask for a video, and return its task id."""
    task_id: str = run("generate", "--prompt", "a kite", "--yes", "--json", *arguments).json()["task_id"]
    return task_id


def asked(emulator: KlingEmulator) -> list[dict[str, Any]]:
    return [dict(task.body) for task in emulator.ledger.tasks()]


# check


def test_check_says_whether_the_connection_works(kling_emulator: KlingEmulator, run: Run) -> None:
    done = run("check")
    assert (done.status, done.err) == (0, "")
    assert done.out == f"{kling_emulator.base_url} takes the key. Balance: 1000.0 USD.\n"


def test_check_fails_for_a_key_that_is_refused_and_does_not_show_it(
    kling_emulator: KlingEmulator, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (uri,) = kling_emulator.connection_env.values()
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", uri.replace(kling_emulator.api_key, "sk_wrong_secret"))
    done = run("check", "--conn-id", "other")
    assert (done.status, done.out) == (1, "")
    assert "refuses the key" in done.err
    assert "sk_wrong_secret" not in done.err


def test_a_connection_that_is_not_there_is_told_as_such(run: Run) -> None:
    for command in (["check"], ["status", "x"], ["estimate", "--prompt", "a kite"]):
        done = run(*command, "--conn-id", "nowhere")
        assert (done.status, done.out) == (1, "")
        assert "There is no connection 'nowhere'" in done.err


# estimate


def test_estimate_prints_a_table(kling_emulator: KlingEmulator, run: Run) -> None:
    done = run("estimate", "--prompt", "a kite", "--sound", "--duration", "7", "--mode", "pro")
    heading, row = done.out.splitlines()
    assert done.status == 0
    assert heading.split() == ["model", "mode", "seconds", "sound", "prompt", "USD"]
    assert row.split() == ["1", "kling-v3-omni", "pro", "7", "on", "a", "kite", "0.8960"]
    assert kling_emulator.ledger.requests() == []


def test_estimate_prints_json(kling_emulator: KlingEmulator, run: Run) -> None:
    assert run("estimate", "--prompt", "a kite", "--json").json() == {
        "request": {"model": "kling-v3-omni", "prompt": "a kite"},
        "duration_seconds": 5.0,
        "estimated_cost_usd": 0.3165,
        "least_cost_usd": 0.3165,
    }


@pytest.mark.parametrize("way", ["inline", "file", "standard input"])
def test_a_request_can_be_json_and_flags_are_laid_over_it(
    kling_emulator: KlingEmulator, run: Run, tmp_path: Path, way: str
) -> None:
    text = json.dumps({"prompt": "a kite", "duration": 4, "mode": "pro"})
    (tmp_path / "request.json").write_text(text)
    given = {"inline": text, "file": str(tmp_path / "request.json"), "standard input": "-"}[way]
    done = run("estimate", "--request", given, "--mode", "std", "--json", stdin=text)
    assert done.json()["request"] == {
        "model": "kling-v3-omni",
        "prompt": "a kite",
        "duration": "4",
        "mode": "std",
    }


def test_a_list_of_requests_has_a_sum(kling_emulator: KlingEmulator, run: Run) -> None:
    several = json.dumps(["a cat", {"prompt": "a dog", "duration": 10}])
    done = run("estimate", "--request", several)
    assert done.out.splitlines()[-1].split() == ["sum", "0.9495"]
    told = run("estimate", "--request", several, "--json").json()
    assert [one["estimated_cost_usd"] for one in told["requests"]] == [0.3165, 0.633]
    assert told["estimated_cost_usd"] == 0.9495


def test_what_is_above_the_limit_ends_with_an_error(kling_emulator: KlingEmulator, run: Run) -> None:
    several = json.dumps(["a cat", "a dog"])
    assert run("estimate", "--request", several, "--max-cost-usd", "0.64").status == 0
    done = run("estimate", "--request", several, "--max-cost-usd", "0.63")
    assert done.status == 1
    assert "The 2 requests together are estimated to cost 0.633 USD" in done.err


def test_a_price_that_nobody_knows_is_no_price_of_nothing(kling_emulator: KlingEmulator, run: Run) -> None:
    done = run("estimate", "--request", '["a cat", {"prompt": "a dog", "model": "kling-v9"}]')
    assert done.status == 0
    assert done.out.splitlines()[-1].split() == ["sum", "not", "known"]


def test_an_edited_video_of_unknown_length_costs_a_range(kling_emulator: KlingEmulator, run: Run) -> None:
    arguments = ["estimate", "--prompt", "as a drawing", "--base-video", "https://example.com/a.mp4"]
    assert "0.1899 to 0.6330" in run(*arguments).out
    told = run(*arguments, "--json").json()
    assert (told["least_cost_usd"], told["estimated_cost_usd"]) == (0.1899, 0.633)


def test_the_prices_of_the_connection_count(
    kling_emulator: KlingEmulator, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = BaseHook.get_connection("kling_default")
    extra = {"prices": {"kling-v3-omni": {"std": {"plain": 0.01}}}}
    told = {"conn_type": "kling", "host": connection.host, "password": connection.password, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_CHEAP", json.dumps(told))
    done = run("estimate", "--prompt", "a kite", "--conn-id", "cheap", "--json")
    assert done.json()["estimated_cost_usd"] == 0.05


def test_an_estimate_needs_no_connection(run: Run, airflow_db: None) -> None:
    done = run("estimate", "--prompt", "a kite", "--json")
    assert done.status == 0
    assert done.json()["estimated_cost_usd"] == 0.3165
    assert "There is no connection 'kling_default'" in done.err
    assert "the prices are the service's own" in done.err


def test_files_are_looked_at(
    kling_emulator: KlingEmulator, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (100, 100)).save("small.png")
    Image.new("RGB", (640, 360)).save("large.png")
    done = run("estimate", "--prompt", "a kite", "--image", "large.png", "--image", "small.png")
    assert done.status == 1
    assert "image_list[1].image_url" in done.err
    assert "image_list[0].image_url" not in done.err
    assert run("estimate", "--prompt", "a kite", "--image", "large.png").status == 0


def test_all_faults_of_all_requests_are_told_together(kling_emulator: KlingEmulator, run: Run) -> None:
    done = run(
        "estimate", "--request", '[{"prompt": "x", "lenght": 3}, "fine", {"prompt": "x", "duration": 99}]'
    )
    assert done.status == 1
    assert "request[0].lenght: 3 is not allowed: no such field" in done.err
    assert "request[2].duration: '99' is not allowed: kling-v3-omni takes 3 to 15 seconds" in done.err
    assert "request[1]" not in done.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give --prompt"),
        (["--request", "{'prompt': 'a kite'}"], "--request is not JSON"),
        (["--request", "/nowhere/request.json"], "cannot be read"),
        (["--request", "[]"], "empty"),
        (["--request", "[3]"], "not 3"),
        (["--request", "-"], "standard input is not JSON"),
        (["--prompt", "x", "--max-cost-usd", "much"], "--max-cost-usd must be an amount"),
        (["--prompt", "x", "--shot", "a kite"], "SECONDS:PROMPT"),
        (["--prompt", "x", "--extra-body", "x"], "--extra-body is not JSON"),
        (["--prompt", "x", "--keep-original-sound"], "--base-video"),
        (["--prompt", "x", "--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_what_cannot_be_read_is_misuse(
    kling_emulator: KlingEmulator, run: Run, arguments: list[str], told: str
) -> None:
    done = run("estimate", *arguments)
    assert (done.status, done.out) == (2, "")
    assert told in done.err


def test_each_flag_goes_into_its_field(kling_emulator: KlingEmulator, run: Run, tmp_path: Path) -> None:
    done = run(
        *("estimate", "--json", "--prompt", "from <<<image_1>>>", "--model", "kling-video-o1"),
        *("--aspect-ratio", "9:16", "--image", "https://example.com/a.png", "--element", "7"),
        *("--feature-video", "https://example.com/b.mp4", "--keep-original-sound", "--watermark"),
        *("--callback-url", "https://example.com/told", "--extra-body", '{"seed": 5}'),
    )
    assert done.json()["request"] == {
        "model": "kling-video-o1",
        "prompt": "from <<<image_1>>>",
        "aspect_ratio": "9:16",
        "image_list": [{"image_url": "https://example.com/a.png"}],
        "element_list": [{"element_id": 7}],
        "video_list": [
            {"video_url": "https://example.com/b.mp4", "refer_type": "feature", "keep_original_sound": "yes"}
        ],
        "watermark_info": {"enabled": True},
        "seed": 5,
    }
    shots = run("estimate", "--json", "--shot", "2:a kite rises", "--shot", "3:it falls", "--duration", "5")
    assert shots.json()["request"] == {
        "model": "kling-v3-omni",
        "duration": "5",
        "multi_shot": True,
        "shot_type": "customize",
        "multi_prompt": [
            {"index": 1, "prompt": "a kite rises", "duration": "2"},
            {"index": 2, "prompt": "it falls", "duration": "3"},
        ],
    }
    frames = run(
        *("estimate", "--json", "--prompt", "x", "--first-frame", "https://example.com/a.png"),
        *("--end-frame", "https://example.com/b.png"),
    )
    assert [image["type"] for image in frames.json()["request"]["image_list"]] == ["first_frame", "end_frame"]


# generate


@pytest.mark.parametrize("answer", ["y\n", "yes\n"])
def test_generate_asks_before_it_spends(kling_emulator: KlingEmulator, run: Run, answer: str) -> None:
    done = run("generate", "--prompt", "a kite", "--duration", "3", stdin=answer, is_terminal=True)
    (task,) = kling_emulator.ledger.tasks()
    assert done.status == 0
    assert "estimated cost 0.19 USD" in done.err
    assert "Spend that? [y/N]" in done.err
    assert f"Kling task id: {task.task_id}" in done.err
    assert "It cost 0.1899 USD" in done.err
    assert done.out.endswith(".mp4\n")


@pytest.mark.parametrize("answer", ["\n", "n\n", "what?\n", ""])
def test_everything_but_a_yes_spends_nothing(kling_emulator: KlingEmulator, run: Run, answer: str) -> None:
    done = run("generate", "--prompt", "a kite", stdin=answer, is_terminal=True)
    assert (done.status, done.out) == (1, "")
    assert "Nothing was sent and nothing was billed" in done.err
    assert kling_emulator.ledger.requests() == []


def test_without_a_terminal_it_has_to_be_told_to_spend(kling_emulator: KlingEmulator, run: Run) -> None:
    done = run("generate", "--prompt", "a kite", stdin="y\n")
    assert (done.status, done.out) == (2, "")
    assert "--yes" in done.err
    assert kling_emulator.ledger.requests() == []
    assert run("generate", "--prompt", "a kite", "--yes").status == 0


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--max-cost-usd", "0.1"], 1, "more than the limit of 0.10 USD"),
        (["--duration", "99"], 1, "duration"),
        (["--output-path", "/tmp/{dag_id}"], 2, "{dag_id}"),
        (["--output-path", "https://example.com/"], 2, "web address"),
        (["--output-conn-id", "aws_default"], 2, "--output-path"),
        (["--timeout", "0"], 2, "above 0"),
        (["--request", '["a", "b"]'], 2, "one video at a time"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_paid(
    kling_emulator: KlingEmulator, run: Run, arguments: list[str], status: int, told: str
) -> None:
    done = run("generate", "--yes", "--prompt", "a kite", *arguments)
    assert (done.status, done.out) == (status, "")
    assert told in done.err
    assert kling_emulator.ledger.requests() == []


@pytest.mark.kling_emulator(balance=0.1)
def test_the_balance_is_asked_for_where_that_is_wanted(kling_emulator: KlingEmulator, run: Run) -> None:
    done = run("generate", "--yes", "--prompt", "a kite", "--check-balance")
    assert done.status == 1
    assert "0.10 USD available" in done.err
    assert kling_emulator.ledger.creates() == []


def test_the_video_is_stored_with_its_manifest(
    kling_emulator: KlingEmulator, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("generate", "--yes", "--prompt", "a kite", "--output-path", "videos/kite.mp4")
    assert done.status == 0
    assert done.out == f"{tmp_path}/videos/kite.mp4\n"
    assert "Fetching video 1" in done.err
    assert (tmp_path / "videos/kite.mp4").read_bytes()[4:8] == b"ftyp"
    manifest = json.loads((tmp_path / "videos/kite.mp4.json").read_text())
    assert manifest["request"]["prompt"] == "a kite"
    assert manifest["cost"]["estimated_usd"] == manifest["cost"]["recorded_usd"] == 0.3165
    assert manifest["dag_id"] is None


def test_as_json_it_tells_all_there_is(kling_emulator: KlingEmulator, run: Run, tmp_path: Path) -> None:
    told = run("generate", "--yes", "--prompt", "a kite", "--output-path", str(tmp_path), "--json").json()
    assert told["state"] == "completed"
    assert told["path"] == f"{tmp_path}/{told['task_id']}.mp4"
    assert told["recorded_cost_usd"] == 0.3165


@pytest.mark.kling_emulator(latency="never")
def test_without_a_terminal_progress_is_plain_lines(
    kling_emulator: KlingEmulator, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: finish_videos(kling_emulator))
    done = run("generate", "--yes", "--prompt", "a kite", "--poll-interval", "0.1")
    assert "is processing" in done.err
    assert "\x1b" not in done.err + done.out


@pytest.mark.kling_emulator(latency="never")
def test_ctrl_c_says_that_the_video_goes_on_and_how_to_fetch_it(
    kling_emulator: KlingEmulator, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    done = run("generate", "--yes", "--prompt", "a kite", "--output-path", "/videos/my kite.mp4")
    (task,) = kling_emulator.ledger.tasks()
    assert done.status == 130
    assert "goes on and will be billed" in done.err
    assert (
        f"python -m airflow_provider_kling download {task.task_id} --output-path '/videos/my kite.mp4'"
        in done.err
    )


def test_ctrl_c_while_the_request_is_sent_says_that_nobody_knows(
    kling_emulator: KlingEmulator, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = KlingClient.send

    def interrupt(self: KlingClient, call: ApiCall, **how: Any) -> None:
        original(self, call, **how)
        raise KeyboardInterrupt

    monkeypatch.setattr(KlingClient, "send", interrupt)
    done = run("generate", "--yes", "--prompt", "a kite")
    assert len(kling_emulator.ledger.creates()) == 1
    assert done.status == 130
    assert "may have been created and may be billed" in done.err


@pytest.mark.kling_emulator(latency="never")
def test_a_wait_that_is_too_long_says_how_to_fetch_the_video_later(
    kling_emulator: KlingEmulator, run: Run
) -> None:
    done = run("generate", "--yes", "--prompt", "a kite", "--timeout", "0.3", "--poll-interval", "0.1")
    (task,) = kling_emulator.ledger.tasks()
    assert done.status == 1
    assert "was not over at its deadline" in done.err
    assert f"download {task.task_id} --output-path" in done.err


@pytest.mark.kling_emulator(latency="never")
def test_a_service_that_refuses_to_be_asked_does_not_make_the_video_free(
    kling_emulator: KlingEmulator, run: Run
) -> None:
    kling_emulator.inject("answer", status=401, call="query", times="always")
    done = run("generate", "--yes", "--prompt", "a kite")
    (task,) = kling_emulator.ledger.tasks()
    assert done.status == 1
    assert "it goes on, and is billed when it is completed" in done.err
    assert f"download {task.task_id} --output-path" in done.err


def test_a_failed_video_is_told_as_such_and_not_to_be_fetched(
    kling_emulator: KlingEmulator, run: Run
) -> None:
    kling_emulator.inject("fail", fail_code="CONTENT_MODERATION")
    done = run("generate", "--yes", "--prompt", "a kite")
    assert (done.status, done.out) == (1, "")
    assert "A failed task is not billed" in done.err
    assert "download" not in done.err


# status


@pytest.mark.kling_emulator(latency="never")
def test_status_of_a_video_that_is_being_made(kling_emulator: KlingEmulator, run: Run) -> None:
    run("generate", "--yes", "--prompt", "a kite", "--timeout", "0.1", "--poll-interval", "0.1")
    (task,) = kling_emulator.ledger.tasks()
    done = run("status", task.task_id)
    assert done.status == 0
    assert ["task", "id", task.task_id] in [line.split() for line in done.out.splitlines()]
    assert run("status", task.task_id, "--json").json()["state"] in ("pending", "processing")


def test_status_of_a_video_that_is_made(kling_emulator: KlingEmulator, run: Run) -> None:
    task_id = made(run)
    told = run("status", task_id, "--json").json()
    assert (told["task_id"], told["state"], told["recorded_cost_usd"]) == (task_id, "completed", 0.3165)
    assert told["video_url"].endswith(".mp4")
    assert ["state", "completed"] in [line.split() for line in run("status", task_id).out.splitlines()]


def test_status_of_a_video_that_failed(kling_emulator: KlingEmulator, run: Run) -> None:
    kling_emulator.inject("fail", fail_code="CONTENT_MODERATION")
    run("generate", "--yes", "--prompt", "a kite")
    (task,) = kling_emulator.ledger.tasks()
    told = run("status", task.task_id, "--json").json()
    assert (told["state"], told["fail_code"]) == ("failed", "CONTENT_MODERATION")


def test_status_of_a_task_that_there_is_not(kling_emulator: KlingEmulator, run: Run) -> None:
    done = run("status", "nosuchtask")
    assert (done.status, done.out) == (1, "")
    assert "does not know this task" in done.err


# download


def test_download_stores_the_video_and_does_not_fetch_it_twice(
    kling_emulator: KlingEmulator, run: Run, tmp_path: Path
) -> None:
    task_id = made(run)
    first = run("download", task_id, "--output-path", f"{tmp_path}/")
    assert (first.status, first.out) == (0, f"{tmp_path}/{task_id}.mp4\n")
    written = (tmp_path / f"{task_id}.mp4").stat().st_mtime_ns
    second = run("download", task_id, "--output-path", f"{tmp_path}/")
    assert second.out == first.out
    assert "is there already, and whole" in second.err
    assert (tmp_path / f"{task_id}.mp4").stat().st_mtime_ns == written


def test_download_gives_what_is_stored_when_the_service_has_forgotten_its_task(
    kling_emulator: KlingEmulator, run: Run, tmp_path: Path
) -> None:
    task_id = made(run)
    first = run("download", task_id, "--output-path", f"{tmp_path}/")
    kling_emulator.inject("answer", status=404, call="query", times="always")
    kling_emulator.inject("answer", status=404, call="record", times="always")

    second = run("download", task_id, "--output-path", f"{tmp_path}/")
    assert (second.status, second.out) == (0, first.out)
    elsewhere = run("download", task_id, "--output-path", f"{tmp_path}/elsewhere/")
    assert (elsewhere.status, elsewhere.out) == (1, "")
    assert "does not know this task" in elsewhere.err


@pytest.mark.usefixtures("kling_emulator")
def test_download_of_a_task_that_the_service_does_not_know_claims_no_video(run: Run, tmp_path: Path) -> None:
    done = run("download", "no-such-task", "--output-path", f"{tmp_path}/")
    assert done.status == 1
    assert "The service does not know this task (Kling task id no-such-task, code 404)" in done.err
    assert "Nothing is known of its video, nor of what that cost. Check the task id" in done.err
    assert "goes on" not in done.err


def test_download_leaves_a_manifest_alone_that_knows_more(
    kling_emulator: KlingEmulator, run: Run, tmp_path: Path
) -> None:
    task_id = made(run, "--output-path", f"{tmp_path}/")
    run("download", task_id, "--output-path", f"{tmp_path}/")
    manifest = json.loads((tmp_path / f"{task_id}.mp4.json").read_text())
    assert manifest["request"]["prompt"] == "a kite"


@pytest.mark.kling_emulator(latency=0.5)
def test_download_waits_for_a_video_that_is_not_made_yet(
    kling_emulator: KlingEmulator, run: Run, tmp_path: Path
) -> None:
    run("generate", "--yes", "--prompt", "a kite", "--timeout", "0.1", "--poll-interval", "0.1")
    (task,) = kling_emulator.ledger.tasks()
    done = run("download", task.task_id, "--output-path", str(tmp_path), "--poll-interval", "0.1")
    assert (done.status, done.out) == (0, f"{tmp_path}/{task.task_id}.mp4\n")


def test_a_place_that_takes_nothing_is_told_with_the_paid_task(
    kling_emulator: KlingEmulator, run: Run, tmp_path: Path
) -> None:
    task_id = made(run)
    (tmp_path / "file").write_text("")
    done = run("download", task_id, "--output-path", f"{tmp_path}/file/videos/")
    assert (done.status, done.out) == (1, "")
    assert task_id in done.err


def test_an_interrupted_download_ends_soon_and_leaves_no_half_file(
    kling_emulator: KlingEmulator, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = made(run)
    arrived: list[int] = []

    def arrive(shown: Any, index: int, count: int) -> None:
        arrived.append(count)

    def interrupt(storage: terminal.ShownStorage, task: Any) -> Any:
        storage.stop()
        return super(terminal.ShownStorage, storage).store(task)

    monkeypatch.setattr(terminal.Lines, "arrived", arrive)
    monkeypatch.setattr(terminal.ShownStorage, "store", interrupt)
    done = run("download", task_id, "--output-path", f"{tmp_path}/")
    assert done.status == 1
    assert arrived == []
    assert list(tmp_path.iterdir()) == []


# On a terminal


class ATerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_that_counts_the_bytes(
    kling_emulator: KlingEmulator, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = made(run)
    drawn = ATerminal()
    monkeypatch.setattr(sys, "stderr", drawn)
    monkeypatch.setenv("TERM", "xterm")
    done = run("download", task_id, "--output-path", f"{tmp_path}/")
    size = (tmp_path / f"{task_id}.mp4").stat().st_size
    assert done.out == f"{tmp_path}/{task_id}.mp4\n"
    assert "━" in drawn.getvalue()
    assert f"{size / 1000:.1f}/{size / 1000:.1f} kB" in drawn.getvalue()
    assert "Fetching video" not in drawn.getvalue()


def test_something_unexpected_ends_in_a_line(
    kling_emulator: KlingEmulator, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(KlingHook, "get_task", fail)
    done = run("status", "x")
    assert (done.status, done.out) == (1, "")
    assert done.err == "Something unexpected went wrong: RuntimeError: out of luck\n"


def test_placeholders_of_a_dag_are_those_that_storage_knows() -> None:
    assert set(commands._OF_A_DAG) == set(Coordinates.__dataclass_fields__)
