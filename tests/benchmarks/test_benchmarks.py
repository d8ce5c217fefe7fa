"""What can be wrong in a benchmark without anybody noticing: how it counts, and the bound that it compares with."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from benchmarks import run, simulation
from benchmarks.cpu import cpu_seconds, tree
from benchmarks.crowd import KLING, Order, Run, Taken
from benchmarks.endpoint import Counted
from benchmarks.report import Check, Report, figure
from dev.environments import CHECKOUT

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="as the benchmarks: Linux only")

BURN = "import time\nwhile time.process_time() < 0.5: pass\n"


def cpu_of(program: str) -> float:
    """Return what the meter says of a process that has done its work, and still lives."""
    with subprocess.Popen(
        [sys.executable, "-c", program + "\nprint(flush=True)\ninput()"],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        return cpu_seconds(tree([process.pid]))


@needs_proc
def test_the_cpu_of_children_that_ended_is_counted() -> None:
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN!r}], check=True)"
    assert cpu_of(child) >= 0.45


@needs_proc
def test_the_cpu_of_an_ended_childs_children_is_counted() -> None:
    grandchild = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN!r}], check=True)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}], check=True)"
    assert cpu_of(child) >= 0.45


@needs_proc
def test_the_cpu_of_orphans_is_counted_by_whoever_adopts_them() -> None:
    orphan = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {BURN!r}])"
    adopting = (
        "import subprocess, sys, time\n"
        "import psutil\n"
        "from benchmarks.cpu import adopt_orphans\n"
        "adopt_orphans()\n"
        f"subprocess.run([sys.executable, '-c', {orphan!r}], check=True)\n"
        "while not all(p.status() == 'zombie' for p in psutil.Process().children()): time.sleep(0.05)\n"
    )
    assert cpu_of(adopting) >= 0.45


@needs_proc
def test_the_cpu_of_a_child_with_a_session_of_its_own_is_counted() -> None:
    child = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {BURN!r} + 'print(flush=True); input()'],\n"
        "    start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
    )
    assert cpu_of(child) >= 0.45


@needs_proc
def test_cpu_that_nobody_used_is_not_counted() -> None:
    assert cpu_of("pass") < 0.45


def test_the_bound_is_the_one_of_the_services_latency() -> None:
    assert simulation.lower_bound(20_000) == pytest.approx(106.5, abs=0.1)


@pytest.mark.parametrize("name", simulation.SCHEDULES)
def test_no_schedule_beats_the_bound(name: str) -> None:
    queries, lag = simulation.judge(simulation.SCHEDULES[name], simulation.latencies(20_000))
    assert queries * lag > simulation.lower_bound(20_000) * 0.99


def test_a_fixed_interval_is_half_an_interval_late() -> None:
    queries, lag = simulation.judge(simulation.fixed(10.0), simulation.latencies(20_000))
    assert lag == pytest.approx(5.0, abs=0.1)
    assert queries == pytest.approx(23, abs=0.5)


def test_latencies_are_those_of_the_service_and_the_same_each_time() -> None:
    drawn = sorted(simulation.latencies(20_000))
    assert drawn == sorted(simulation.latencies(20_000))
    assert drawn[10_000] == pytest.approx(142, rel=0.03)
    assert drawn[18_000] == pytest.approx(486, rel=0.03)


def crowd_seen(asked: Mapping[str, Sequence[float]], *, waiting: int) -> int:
    order = Order(KLING, waiting, poll_interval=10.0, settling=12.0, seconds=30.0)
    taken = Taken(
        began=100.0,
        since=112.0,
        until=142.0,
        cpu_seconds=1.0,
        rss_before=0,
        rss=0,
        longest_stall=None,
        stall_of_start=None,
        longest_stall_but_collection=None,
        longest_collection=None,
        ended=0,
    )
    return Run(order, taken, Counted([100.0], asked)).late(2.0)


def test_queries_in_time_are_not_late() -> None:
    luck = random.Random(1)
    at, times = 109.0, []
    while at < 160:
        times.append(at)
        at += luck.uniform(9.0, 11.0)
    assert crowd_seen({"a": times}, waiting=1) == 0


@pytest.mark.parametrize(
    ("times", "why"),
    [
        ([110.0, 123.5, 133.0], "a gap"),
        ([110.0, 120.0], "none after a while"),
        ([], "never asked"),
    ],
)
def test_queries_that_come_late_or_never_are_seen(times: list[float], why: str) -> None:
    assert crowd_seen({"a": times} if times else {}, waiting=1) == 1, why


def report(*checks: Check) -> Report:
    return Report(
        name="queries", title="Queries", columns=("", "ms"), rows=[("Kling", "1")], checks=checks, figures={}
    )


def test_a_figure_above_its_limit_or_without_a_value_fails_the_run(tmp_path: Path) -> None:
    holds, too_much = Check("a", 1.0, 1.0), Check("b", 1.01, 1.0)
    assert report(holds).publish(0.5, tmp_path)
    assert not report(holds, too_much).publish(0.5, tmp_path)
    assert not report(holds, Check("c", math.nan, 1.0)).publish(0.5, tmp_path)


def test_the_summary_names_what_does_not_hold_and_what_did_not_run(tmp_path: Path) -> None:
    report(Check("CPU a query", 2.0, 1.0)).publish(0.5, tmp_path)
    lines = run.summary(tmp_path, {"queries": 1, "waiting": 1})
    assert [line for line in lines if "CPU a query" in line and "**no**" in line]
    assert [line for line in lines if "waiting" in line and "failed" in line]


def test_the_readme_gets_the_tables_of_the_last_runs(tmp_path: Path) -> None:
    report(Check("CPU a query", 0.5, 1.0)).publish(0.5, tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text("# Before\n<!-- tables: begin -->\nof last week\n<!-- tables: end -->\n# After\n")
    run.write_readme(readme, tmp_path)
    run.write_readme(readme, tmp_path)
    text = readme.read_text()
    assert text.startswith("# Before\n")
    assert text.endswith("# After\n")
    assert "of last week" not in text
    assert text.count("### Queries") == 1
    assert "CPU a query" in text


def test_every_benchmark_that_is_named_is_there_and_the_readme_has_the_marks() -> None:
    for name in run.BENCHMARKS:
        assert (CHECKOUT / "benchmarks" / f"{name}.py").exists()
    text = run.README.read_text()
    assert text.index("<!-- tables: begin -->") < text.index("<!-- tables: end -->")
    for name in run.BENCHMARKS:
        assert f"| `{name}` |" in text


@pytest.mark.parametrize(
    ("value", "written"),
    [(0, "0"), (0.125, "0.12"), (0.0033, "0.0033"), (12345.6, "12,346"), (math.nan, "-")],
)
def test_figures_are_short(value: float, written: str) -> None:
    assert figure(value) == written


def test_results_are_json(tmp_path: Path) -> None:
    report(Check("CPU a query", 0.5, 1.0)).publish(0.5, tmp_path)
    written = json.loads((tmp_path / "queries.json").read_text())
    assert written["machine"]["processors"] >= 1
    assert written["checks"][0]["holds"] is True
