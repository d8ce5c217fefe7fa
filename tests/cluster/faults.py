"""What is broken when: a schedule that a seed repeats, and the hand that carries it out."""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

SEARCH_SECONDS = 15.0
"""How long a fault waits for a task to strike. The rest of the schedule waits with it: a slow machine takes longer for
the same faults, and does not get fewer of them."""

REVIVE_SECONDS = 5.0
"""How often it is seen whether something has ended that nobody killed."""


class Kind(StrEnum):
    """The kinds of faults. The texts are the rows of the table."""

    TASK = "kill -9 of a task's process"
    CALL = "kill -9 of a task's process while it talks to the service"
    SUPERVISOR = "kill -9 of the process that supervises a task"
    WORKER = "kill -9 of a worker with all its tasks"
    SCHEDULER = "kill -9 of a scheduler"
    TRIGGERER = "kill -9 of a triggerer"
    API_SERVER = "kill -9 of an API server"
    DAG_PROCESSOR = "kill -9 of the Dag processor"
    SERVICE = "kill -9 of the service (the emulator)"
    DATABASE = "PostgreSQL restarted"
    FREEZE_WORKER = "worker frozen past its heartbeat, then thawed"
    FREEZE_TASK = "task frozen past its heartbeat, then thawed"


ROLES: Mapping[Kind, str] = {
    Kind.WORKER: "worker",
    Kind.SCHEDULER: "scheduler",
    Kind.TRIGGERER: "triggerer",
    Kind.API_SERVER: "api-server",
    Kind.DAG_PROCESSOR: "dag-processor",
    Kind.SERVICE: "service",
    Kind.FREEZE_WORKER: "worker",
}
"""Which processes a kind strikes: those whose names begin so."""


@dataclass(frozen=True)
class Fault:
    """
    One entry of the schedule.

    :param at: seconds from the beginning, if no fault has to wait.
    :param luck: which of the processes in question it strikes, as a share from 0 to 1.
    :param down: seconds until what was struck is started again or thawed.
    """

    at: float
    kind: Kind
    luck: float
    down: float


def schedule(
    seed: int,
    *,
    seconds: float,
    interval: float,
    deck: Mapping[Kind, int],
    once: Sequence[Kind] = (),
    freeze: float,
) -> list[Fault]:
    """
    Draw the schedule of a run. The same arguments give the same schedule.

    :param seconds: how long the run lasts.
    :param interval: mean seconds between two faults.
    :param deck: how many cards of each kind are in the deck that is dealt from, and shuffled again when it is empty:
        so that a short run, too, has some of each.
    :param once: kinds that come exactly once, spread over the run.
    :param freeze: how long something stays frozen, seconds.
    """
    luck = random.Random(f"chaos/{seed}")
    faults: list[Fault] = []
    cards: list[Kind] = []
    at = luck.uniform(0.5, 1.5) * interval
    while at < seconds:
        if not cards:
            cards = [kind for kind, number in deck.items() for _ in range(number)]
            luck.shuffle(cards)
        kind = cards.pop()
        faults.append(Fault(at, kind, luck.random(), _down(kind, luck, freeze)))
        at += luck.uniform(0.3, 1.7) * interval
    for number, kind in enumerate(once, start=1):
        at = seconds * (number + luck.uniform(-0.3, 0.3)) / (len(once) + 1)
        faults.append(Fault(at, kind, luck.random(), _down(kind, luck, freeze)))
    return sorted(faults, key=lambda fault: fault.at)


def _down(kind: Kind, luck: random.Random, freeze: float) -> float:
    return freeze if kind in (Kind.FREEZE_WORKER, Kind.FREEZE_TASK) else luck.uniform(0.2, 5)


class Targets(Protocol):
    """What can be struck. Processes are told by name, and those of tasks by process id."""

    def names(self, role: str) -> list[str]:
        """Return the processes of a role that run and are not frozen."""

    def tasks(self, *, in_call: bool) -> list[int]:
        """Return the process ids of running tasks, or of those that have just begun to talk to the service."""

    def kill(self, name: str) -> None:
        """Kill a process with all that it started."""

    def start(self, name: str) -> None:
        """Start a process again."""

    def kill_task(self, pid: int) -> bool:
        """Kill a task's process; False where it is gone already."""

    def kill_supervisor(self, pid: int) -> bool:
        """Kill the process that supervises the task; False where it is gone already."""

    def revive(self) -> None:
        """Start again what has ended by itself."""

    def freeze(self, name: str) -> Callable[[], None]:
        """Stop a process with all that it started, and return what lets it go on."""

    def freeze_task(self, pid: int) -> Callable[[], None] | None:
        """Stop a task with its supervisor, and return what lets them go on; None where it is gone already."""

    def restart_database(self, down: float) -> None:
        """Shut the metadata database down at once, and start it again after some seconds."""


@dataclass
class Saboteur:
    """
    Carries a schedule out.

    :param say: told of every fault, for the log of the run.
    :param limit: seconds after which it ends, whatever is left of the schedule.
    """

    targets: Targets
    faults: Sequence[Fault]
    say: Callable[[str], None]
    limit: float
    struck: Counter[Kind] = field(default_factory=Counter)
    missed: Counter[Kind] = field(default_factory=Counter)
    _later: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _revive_at: float = 0.0
    _number: itertools.count[int] = field(default_factory=itertools.count)

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Strike as scheduled, then start again and thaw what is still down. ``until`` ends it early."""
        began = time.monotonic()
        waited = 0.0
        for fault in self.faults:
            while (left := began + waited + fault.at - time.monotonic()) > 0:
                self._mend(time.monotonic())
                time.sleep(min(left, 0.1))
            if until() or time.monotonic() - began > self.limit:
                break
            self._mend(time.monotonic())
            looked = time.monotonic()
            hit = self._strike(fault)
            waited += time.monotonic() - looked
            (self.struck if hit else self.missed)[fault.kind] += 1
            when = time.monotonic() - began
            self.say(f"{when:7.1f} s  {fault.kind}: {hit or 'nothing there to strike'}")
        self._mend(None)

    def _mend(self, now: float | None) -> None:
        while self._later and (now is None or self._later[0][0] <= now):
            heapq.heappop(self._later)[2]()
        if now is None or now > self._revive_at:
            self.targets.revive()
            self._revive_at = time.monotonic() + REVIVE_SECONDS

    def _in(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._number), what))

    def _strike(self, fault: Fault) -> str | None:
        match fault.kind:
            case Kind.TASK | Kind.CALL | Kind.SUPERVISOR | Kind.FREEZE_TASK:
                return self._strike_task(fault)
            case Kind.DATABASE:
                self.targets.restart_database(fault.down)
                return "the database"
            case Kind.FREEZE_WORKER:
                if name := self._pick(fault):
                    self._in(fault.down, self.targets.freeze(name))
                return name
            case _:
                if name := self._pick(fault):
                    self.targets.kill(name)
                    self._in(fault.down, lambda: self.targets.start(name))
                return name

    def _pick(self, fault: Fault) -> str | None:
        names = self.targets.names(ROLES[fault.kind])
        return names[int(fault.luck * len(names))] if names else None

    def _strike_task(self, fault: Fault) -> str | None:
        deadline = time.monotonic() + SEARCH_SECONDS
        while True:
            pids = self.targets.tasks(in_call=fault.kind is Kind.CALL)
            if pids:
                pid = pids[int(fault.luck * len(pids))]
                if fault.kind is Kind.FREEZE_TASK:
                    thaw = self.targets.freeze_task(pid)
                    if thaw is not None:
                        self._in(fault.down, thaw)
                        return f"process {pid}"
                elif fault.kind is Kind.SUPERVISOR:
                    if self.targets.kill_supervisor(pid):
                        return f"parent of process {pid}"
                elif self.targets.kill_task(pid):
                    return f"process {pid}"
            if time.monotonic() > deadline:
                return None
            self._mend(time.monotonic())
            time.sleep(0.05)
