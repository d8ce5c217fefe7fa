"""The schedule of the chaos run, and the hand that carries it out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from tests.cluster.faults import Fault, Kind, Saboteur, schedule
from tests.cluster.run import FULL, SHORT


def drawn(seed: int, seconds: float = 600) -> list[Fault]:
    return schedule(seed, seconds=seconds, interval=FULL.interval, deck=FULL.deck, once=FULL.once, freeze=30)


def test_a_seed_repeats_the_schedule() -> None:
    assert drawn(7) == drawn(7)
    assert drawn(7) != drawn(8)


def test_ten_minutes_have_several_hundred_kills_of_every_kind() -> None:
    kinds = Counter(fault.kind for fault in drawn(1))
    assert kinds.total() > 280
    assert all(kinds[kind] >= 2 for kind in FULL.deck)
    assert all(kinds[kind] == 1 for kind in FULL.once)


def test_a_short_run_has_some_of_each_kind() -> None:
    for seed in range(20):
        faults = schedule(
            seed, seconds=60, interval=SHORT.interval, deck=SHORT.deck, once=SHORT.once, freeze=30
        )
        assert {fault.kind for fault in faults} == {*SHORT.deck, *SHORT.once}


class Recorder:
    """Stands where the stack stands, and notes what is done to it."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def names(self, role: str) -> list[str]:
        return [f"{role}-1", f"{role}-2"]

    def tasks(self, *, in_call: bool) -> list[int]:
        return [11] if in_call else [11, 12]

    def kill(self, name: str) -> None:
        self.done.append(f"kill {name}")

    def start(self, name: str) -> None:
        self.done.append(f"start {name}")

    def kill_task(self, pid: int) -> bool:
        self.done.append(f"kill task {pid}")
        return True

    def kill_supervisor(self, pid: int) -> bool:
        self.done.append(f"kill supervisor of {pid}")
        return True

    def revive(self) -> None:
        pass

    def freeze(self, name: str) -> Callable[[], None]:
        self.done.append(f"freeze {name}")
        return lambda: self.done.append(f"thaw {name}")

    def freeze_task(self, pid: int) -> Callable[[], None] | None:
        self.done.append(f"freeze task {pid}")
        return lambda: self.done.append(f"thaw task {pid}")

    def restart_database(self, down: float) -> None:
        self.done.append("restart database")


def carried_out(*faults: Fault, until: Callable[[], bool] = lambda: False) -> tuple[Recorder, Saboteur]:
    targets = Recorder()
    saboteur = Saboteur(targets, faults, say=lambda line: None, limit=60)
    saboteur.run(until=until)
    return targets, saboteur


def test_each_kind_strikes_what_it_names_and_what_is_down_is_started_again() -> None:
    faults = [Fault(0, kind, luck=0.6, down=0.0) for kind in Kind]
    targets, saboteur = carried_out(*faults)
    done = Counter(targets.done)
    for role in ("worker", "scheduler", "triggerer", "api-server", "dag-processor", "service"):
        assert done[f"kill {role}-2"] == done[f"start {role}-2"] == 1
    assert done["kill task 12"] == done["kill task 11"] == done["kill supervisor of 12"] == 1
    assert (
        done["freeze worker-2"]
        == done["thaw worker-2"]
        == done["freeze task 12"]
        == done["thaw task 12"]
        == 1
    )
    assert done["restart database"] == 1
    assert saboteur.struck == Counter(Kind)


def test_what_is_still_down_when_the_schedule_ends_is_started_at_once() -> None:
    began = time.monotonic()
    targets, _ = carried_out(Fault(0, Kind.SCHEDULER, luck=0, down=3600))
    assert targets.done == ["kill scheduler-1", "start scheduler-1"]
    assert time.monotonic() - began < 600


def test_it_can_be_ended_early() -> None:
    targets, saboteur = carried_out(Fault(0, Kind.TASK, luck=0, down=0), until=lambda: True)
    assert targets.done == []
    assert not saboteur.struck
