"""How a task instance stands to the video that a callback tells of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from airflow.utils.state import TaskInstanceState

from airflow_provider_kling.waiting import Outcome

if TYPE_CHECKING:
    from airflow_provider_kling.batch_ledger import BatchLedger, Entry
    from airflow_provider_kling.ledger import Record, SubmissionKey


OVER = frozenset(
    {
        TaskInstanceState.SUCCESS,
        TaskInstanceState.FAILED,
        TaskInstanceState.SKIPPED,
        TaskInstanceState.UPSTREAM_FAILED,
        TaskInstanceState.REMOVED,
    }
)
"""States that a task does not leave by itself."""
DONE = (Outcome.COMPLETED, Outcome.FAILED)
"""Ends of a video that the service tells of."""


class Standing(Enum):
    """How a task instance stands to the video that a callback tells of."""

    WAITS = auto()
    """It is deferred and waits for this video, alone or with others."""
    HAS_JUST_DEFERRED = auto()
    """It waits for this video, but a scheduler may not know yet that it does."""
    WAITS_FOR_ANOTHER = auto()
    """The attempt that made the address waits for another video."""
    IS_AT_WORK = auto()
    """A worker has it, and may be about to wait."""
    HAS_LOST_IT = auto()
    """Its ledger holds an intent without an outcome."""
    LEFT_IT = auto()
    """It ended without waiting, and left its assets to be told."""
    NEEDS_NOTHING = auto()
    """It is over, was resumed already, will ask by itself, or is not there any more."""


@dataclass(frozen=True)
class Listed:
    """
    A video of a task that makes many.

    :param waits_for: the Kling task ids that the task is deferred for; none where it is not.
    :param enough: how many of them have to be over.
    :param state: handed back in the event.
    :param is_noted: whether it is noted already that this video is over.
    :param ledger: where its submission is.
    :param entry: its entry there, where it was looked for.
    """

    waits_for: tuple[str, ...] = ()
    enough: int = 0
    state: Mapping[str, Any] | None = None
    is_noted: bool = False
    ledger: BatchLedger | None = None
    entry: Entry | None = None


@dataclass(frozen=True)
class Found:
    """
    The task instance that a callback is about.

    :param standing: how it stands to the video.
    :param why: the same in words, for the log.
    :param key: which task instance; None where there is none any more.
    :param asks_ledger: whether its ledger may hold a submission that was lost.
    :param ti_id: the id of its present attempt.
    :param trigger_id: what it waits with.
    :param wait: the wait's deadline and beginning, epoch seconds.
    :param unrecorded: what its trigger hands back beside that: the submission whose id the ledger has not taken.
    :param record: the ledger's record of the submission that was lost.
    :param is_running: whether a worker has it.
    :param listed: what else matters where the task makes many videos.
    """

    standing: Standing
    why: str
    key: SubmissionKey | None = None
    ti_id: Any = None
    trigger_id: int | None = None
    wait: tuple[float, float] = (0.0, 0.0)
    unrecorded: str | None = None
    record: Record | None = None
    is_running: bool = False
    listed: Listed | None = None
    asks_ledger: bool = True

    @property
    def intent_at(self) -> float:
        """When the request was made whose answer was lost, epoch seconds."""
        if self.record is not None:
            return self.record.intent_at
        entry = self.listed.entry if self.listed else None
        return float(((entry.record if entry else None) or {}).get("intent_at") or 0)

    @property
    def can_be_noted(self) -> bool:
        """Whether the task, which cannot be resumed now, can be told on the way that this video is over."""
        listed = self.listed
        if listed is None or listed.is_noted:
            return False
        return self.standing is Standing.HAS_JUST_DEFERRED or listed.entry is not None

    @property
    def label(self) -> str:
        """Name it for the log."""
        if self.key is None:
            return "no task"
        index = "" if self.key.map_index < 0 else f"[{self.key.map_index}]"
        return f"{self.key.dag_id}.{self.key.task_id}{index} of {self.key.run_id}"


def is_told_of(next_kwargs: Any, kling_task_id: str) -> bool:
    """Tell whether a resumed task was told of this video's end. How Airflow packs that differs between versions."""
    if isinstance(next_kwargs, str):
        try:
            next_kwargs = json.loads(next_kwargs)
        except ValueError:
            return False
    if not isinstance(next_kwargs, Mapping):
        return False
    if next_kwargs.get("kling_task_id") == kling_task_id:
        return next_kwargs.get("outcome") in DONE
    if next_kwargs.get(kling_task_id) in DONE:
        return True
    return any(is_told_of(value, kling_task_id) for value in next_kwargs.values())
