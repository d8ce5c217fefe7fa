"""The example Dags run as they are, against the emulator."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_kling.emulator import KlingEmulator

FOLDER = Path(__file__).parent.parent / "example_dags"
EXAMPLES = sorted(path.stem for path in FOLDER.glob("*.py"))


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.dag


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5


@pytest.fixture
def nobody_to_approve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Airflow have no operator that asks a person: nobody answers here. The integration tests have one."""
    monkeypatch.setitem(sys.modules, "airflow.providers.standard.operators.hitl", None)


@pytest.mark.usefixtures("nobody_to_approve")
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs_as_it_is(
    name: str, kling_emulator: KlingEmulator, run_dag: Callable[..., Any], tmp_path: Path
) -> None:
    dag = load(name)
    run = run_dag(dag, run_conf={"folder": str(tmp_path)} if "folder" in dag.params else None)

    states: dict[str, set[str]] = {}
    for ti in run.get_task_instances():
        states.setdefault(ti.task_id, set()).add(str(ti.state))
    assert states == {task.task_id: {"success"} for task in dag.tasks}
    assert str(run.state) == "success"
    made = kling_emulator.ledger.tasks()
    assert made
    assert [task.state for task in made] == ["completed"] * len(made)
    assert len(kling_emulator.ledger.paid()) == len(made) == len(kling_emulator.ledger.creates())
    assert kling_emulator.ledger.key_leaks() == []


def test_the_first_example_leaves_a_whole_file(
    kling_emulator: KlingEmulator, run_dag: Callable[..., Any], tmp_path: Path
) -> None:
    import av

    run_dag(load("example_kling_text_to_video"), run_conf={"folder": str(tmp_path), "seconds": 3})

    (task,) = kling_emulator.ledger.tasks()
    with av.open(str(tmp_path / f"{task.task_id}.mp4")) as film:
        assert film.duration == pytest.approx(3_000_000, rel=0.1)
        assert film.streams.audio
    assert {path.name for path in tmp_path.iterdir()} == {f"{task.task_id}.mp4", f"{task.task_id}.mp4.json"}


def test_the_pipeline_makes_one_video_for_each_idea(
    kling_emulator: KlingEmulator, run_dag: Callable[..., Any]
) -> None:
    run_dag(load("example_kling_content_pipeline"))

    # Airflow does not promise in which order it runs the tasks of a list.
    bodies = {str(task.body["prompt"]).split()[-1]: task.body for task in kling_emulator.ledger.tasks()}
    assert {name: body.get("duration") for name, body in bodies.items()} == {
        "window": "5",
        "motion": "3",
        "park": "5",
    }
    assert [bodies[name].get("aspect_ratio") for name in ("window", "motion", "park")] == [
        "9:16",
        "1:1",
        None,
    ]
    assert [bodies[name].get("sound") for name in ("window", "motion", "park")] == [None, None, "on"]
