"""
Compares what the emulated service billed with what Airflow believes, video by video. Pure logic.

The service's side is the emulator's own ledger, Airflow's side its metadata database and task logs. A mark in the
prompt, made of the task instance's own key, tells which bill belongs to which task.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

MARK_IN_PROMPT = re.compile(r"\[([^\[\]]+)\]")

_FINAL = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
_UNKNOWN = "UnknownSubmissionError"
_NO_RETRIES = "AirflowFailException"


class Outcome(StrEnum):
    """What became of a video; each has exactly one. The texts are the rows of the table."""

    DELIVERED = "delivered"
    REFUSED = "failed for a reason that the emulator gave"
    UNKNOWN = "outcome unknown, and reported as such"
    UNPAID = "failed for another reason, nothing paid"
    LOST = "lost (paid, neither delivered nor reported)"
    STUCK = "stuck"


@dataclass(frozen=True)
class ServiceTask:
    """A task as the emulator's ledger has it."""

    task_id: str
    state: str
    times_billed: int
    fail_code: str | None = None


@dataclass(frozen=True)
class ServiceSide:
    """
    What the emulator's ledger has of one mark.

    :param refusals: HTTP statuses of creates that were refused for good.
    :param unclear_answers: how many creates were answered in a way that tells nothing, or not at all.
    """

    tasks: tuple[ServiceTask, ...] = ()
    refusals: tuple[int, ...] = ()
    unclear_answers: int = 0

    @property
    def bills(self) -> int:
        """How often it was paid."""
        return sum(task.times_billed for task in self.tasks)


@dataclass(frozen=True)
class AirflowSide:
    """
    A task instance when all is over.

    :param mark: see :func:`mark_of`.
    :param state: Airflow's state.
    :param tries: how many attempts there were.
    :param returned: its XCom ``return_value``.
    :param errors: classes and texts of the errors that the last attempt ended with, causes included.
    """

    mark: str
    state: str | None
    tries: int = 1
    returned: Mapping[str, Any] | None = None
    errors: tuple[tuple[str, str], ...] = ()

    @property
    def was_failed_by_airflow(self) -> bool:
        """
        Whether it failed although its operator had not asked to end without retries, and retries were left.

        Airflow 3 does that where its API server cannot handle the request that reports an attempt's end.
        """
        return self.state == "failed" and not any(name == _NO_RETRIES for name, _ in self.errors)


@dataclass(frozen=True)
class Finding:
    """The verdict on one video."""

    mark: str
    outcome: Outcome
    paid_twice: bool
    why: str
    airflow: AirflowSide | None
    service: ServiceSide

    @property
    def is_fault(self) -> bool:
        """Whether it must not be."""
        return self.paid_twice or self.outcome in (Outcome.LOST, Outcome.STUCK)


@dataclass(frozen=True)
class Verdict:
    """The verdict on all videos."""

    findings: tuple[Finding, ...] = ()
    counts: Mapping[Outcome, int] = field(default_factory=dict)

    @property
    def asked(self) -> int:
        """How many videos were asked for."""
        return len(self.findings)

    @property
    def made(self) -> int:
        """How many tasks the service made for them, paid or not."""
        return sum(len(finding.service.tasks) for finding in self.findings)

    @property
    def paid_twice(self) -> int:
        """How many videos were paid more than once."""
        return sum(finding.paid_twice for finding in self.findings)

    @property
    def lost(self) -> int:
        """How many videos were paid, and neither delivered nor reported as unknown."""
        return self.counts.get(Outcome.LOST, 0)

    @property
    def stuck(self) -> int:
        """How many tasks were not over when everything had been given time to end."""
        return self.counts.get(Outcome.STUCK, 0)

    @property
    def killed_in_submit(self) -> int:
        """How many outcomes are unknown although the emulator answered clearly: a kill hit the submit itself."""
        return sum(
            finding.outcome is Outcome.UNKNOWN and not finding.service.unclear_answers
            for finding in self.findings
        )

    @property
    def is_clean(self) -> bool:
        """Whether nothing was paid twice, lost or stuck, and at least one video came out."""
        return not (self.paid_twice or self.lost or self.stuck) and self.counts.get(Outcome.DELIVERED, 0) > 0

    def rows(self) -> list[tuple[str, int]]:
        """Return the table: the last three have to be 0."""
        of = self.counts.get
        return [
            ("videos asked for", self.asked),
            *((outcome.value, of(outcome, 0)) for outcome in Outcome if outcome not in _FAULTS),
            ("paid twice", self.paid_twice),
            (Outcome.LOST.value, self.lost),
            (Outcome.STUCK.value, self.stuck),
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the counts, and everything that is known of each video that was not simply delivered."""
        return {
            "counts": dict(self.rows()),
            "faults": [asdict(finding) for finding in self.findings if finding.is_fault],
            "others": [
                {"mark": finding.mark, "outcome": finding.outcome, "why": finding.why}
                for finding in self.findings
                if not finding.is_fault and finding.outcome is not Outcome.DELIVERED
            ],
        }


_FAULTS = (Outcome.LOST, Outcome.STUCK)


def mark_of(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    """Return the mark of a task instance. The Dags write the same into their prompts."""
    return f"{dag_id}|{run_id}|{task_id}|{map_index}"


def key_of(mark: str) -> tuple[str, str, str, int]:
    """Return whose mark it is: the Dag's id, the run's, the task's, and the map index."""
    dag_id, run_id, task_id, map_index = mark.split("|")
    return dag_id, run_id, task_id, int(map_index)


def mark_in(prompt: str) -> str:
    """Return a prompt's mark; where it has none, a name under which it is nobody's."""
    found = MARK_IN_PROMPT.search(prompt)
    return found[1] if found else f"(no mark) {prompt[:80]}"


def judge(airflow: Iterable[AirflowSide], service: Mapping[str, ServiceSide]) -> Verdict:
    """
    Compare the two sides.

    :param airflow: every task instance that was to make a video.
    :param service: what the emulator's ledger has, by mark.
    """
    tasks = {task.mark: task for task in airflow}
    findings = [_finding(task, service.get(mark, ServiceSide())) for mark, task in tasks.items()]
    findings += [
        Finding(mark, Outcome.LOST, side.bills > 1, "Airflow has no such task", None, side)
        for mark, side in service.items()
        if mark not in tasks and side.bills
    ]
    return Verdict(tuple(findings), Counter(finding.outcome for finding in findings))


def _finding(task: AirflowSide, service: ServiceSide) -> Finding:
    outcome, why = _outcome(task, service)
    return Finding(task.mark, outcome, service.bills > 1, why, task, service)


def _outcome(task: AirflowSide, service: ServiceSide) -> tuple[Outcome, str]:
    if task.state not in _FINAL:
        return Outcome.STUCK, f"its state is {task.state} after {task.tries} tries"
    if task.state == "success":
        return _outcome_of_success(task, service)
    told = _told(task.errors)
    if any(name == _UNKNOWN for name, _ in task.errors):
        return Outcome.UNKNOWN, told
    if service.bills:
        return Outcome.LOST, f"it ended as {task.state} after {task.tries} tries: {told}"
    if any(_names(text, reason) for _, text in task.errors for reason in _reasons(service)):
        return Outcome.REFUSED, told
    return Outcome.UNPAID, f"it ended as {task.state} after {task.tries} tries: {told}"


def _outcome_of_success(task: AirflowSide, service: ServiceSide) -> tuple[Outcome, str]:
    returned = task.returned or {}
    billed = {its.task_id for its in service.tasks if its.times_billed}
    if returned.get("state") != "completed":
        return Outcome.LOST, f"it succeeded, but returned {task.returned!r}"
    if returned.get("task_id") not in billed:
        return (
            Outcome.LOST,
            f"it returned task {returned.get('task_id')!r}, but what was paid is {sorted(billed)}",
        )
    return Outcome.DELIVERED, ""


def _reasons(service: ServiceSide) -> Sequence[str]:
    return [
        *(task.fail_code for task in service.tasks if task.state == "failed" and task.fail_code),
        *map(str, service.refusals),
    ]


def _names(text: str, reason: str) -> bool:
    return re.search(rf"\bcode {re.escape(reason)}\b", text) is not None


def _told(errors: Sequence[tuple[str, str]]) -> str:
    return " <- ".join(f"{name}: {text}" for name, text in errors) or "its last attempt told no error"
