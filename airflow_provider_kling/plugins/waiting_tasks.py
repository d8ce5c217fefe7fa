"""
What the receiver reads and writes in Airflow's metadata database: who waits for a video, and that it is over.

All of it blocks, so it runs in threads. Rows are locked by writing to them: that holds on SQLite too, where a locking
read locks nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from airflow.models.asset import AssetEvent, AssetModel
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskinstancehistory import TaskInstanceHistory
from airflow.models.trigger import Trigger
from airflow.models.xcom import XComModel
from airflow.providers.common.compat.sdk import ObjectStoragePath
from airflow.triggers.base import TriggerEvent
from airflow.utils.session import create_session
from airflow.utils.state import TaskInstanceState
from sqlalchemy import select, text, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import lazyload

from airflow_provider_kling import config
from airflow_provider_kling.airflow_versions import AIRFLOW_V_3_3_PLUS
from airflow_provider_kling.assets import told_of
from airflow_provider_kling.callbacks import XCOM_CALLBACK, CallbackToken, submission_name
from airflow_provider_kling.ledger import (
    STORE_KEY,
    FileLedgerStore,
    Ledger,
    LedgerError,
    LedgerStore,
    Record,
    RecordState,
    SubmissionKey,
)
from airflow_provider_kling.plugins.accounts import UnavailableError
from airflow_provider_kling.result import Asked, video_result
from airflow_provider_kling.waiting import Outcome, WaitEvent

if TYPE_CHECKING:
    from uuid import UUID

    from sqlalchemy.orm import Session

    from airflow_provider_kling.api.task import VideoTask

TRIGGER = "airflow_provider_kling.triggers.kling.KlingVideoTrigger"
SETTLE_SECONDS = 2.0
"""
How long a task has to be deferred before it is resumed.

A scheduler that learns of the deferral only after the task was queued again takes that for a fault and fails it.
"""
CLOCK_SKEW = 120.0
"""Seconds by which the service's clock may be behind ours."""
_XCOM_VIDEO = "kling_video"
_OVER = frozenset(
    {
        TaskInstanceState.SUCCESS,
        TaskInstanceState.FAILED,
        TaskInstanceState.SKIPPED,
        TaskInstanceState.UPSTREAM_FAILED,
        TaskInstanceState.REMOVED,
    }
)
_DONE = (Outcome.COMPLETED, Outcome.FAILED)


class Standing(Enum):
    """How a task instance stands to the video that a callback tells of."""

    WAITS = auto()
    """It is deferred and waits for this video."""
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
class Found:
    """
    The task instance that a callback is about.

    :param standing: how it stands to the video.
    :param why: the same in words, for the log.
    :param key: which task instance; None where there is none any more.
    :param ti_id: the id of its present attempt.
    :param trigger_id: what it waits with.
    :param wait: the wait's deadline and beginning, epoch seconds.
    :param record: the ledger's record of the submission that was lost.
    :param is_running: whether a worker has it.
    """

    standing: Standing
    why: str
    key: SubmissionKey | None = None
    ti_id: Any = None
    trigger_id: int | None = None
    wait: tuple[float, float] = (0.0, 0.0)
    record: Record | None = None
    is_running: bool = False

    @property
    def label(self) -> str:
        """Name it for the log."""
        if self.key is None:
            return "no task"
        index = "" if self.key.map_index < 0 else f"[{self.key.map_index}]"
        return f"{self.key.dag_id}.{self.key.task_id}{index} of {self.key.run_id}"


@contextmanager
def _asking() -> Iterator[Session]:
    """
    Give a transaction.

    :raises UnavailableError: where the database cannot be asked.
    """
    try:
        with create_session() as session:
            yield session
    except (SQLAlchemyError, OSError) as error:
        # Its text may hold a statement's parameters.
        raise UnavailableError(f"the metadata database: {type(error).__name__}") from error


def check_database() -> None:
    """
    Ask the database for nothing.

    :raises UnavailableError: where it does not answer.
    """
    with _asking() as session:
        session.execute(text("SELECT 1"))


def writes_can_run_side_by_side() -> bool:
    """Tell whether the database takes several writers at once: those of SQLite sleep until they may try again."""
    from airflow import settings

    return settings.engine is not None and settings.engine.dialect.name != "sqlite"


def find(token: CallbackToken, kling_task_id: str) -> Found:
    """
    Find whom a callback is about, and whether it waits for the video.

    :param token: as it was signed.
    :param kling_task_id: as the callback tells it, believed by nobody yet.
    :raises UnavailableError: where the database or the ledger cannot be asked.
    """
    with _asking() as session:
        found = _find(session, token, kling_task_id)
    if found.key is None or found.standing not in (Standing.IS_AT_WORK, Standing.NEEDS_NOTHING):
        return found
    record = _lost_submission(found.key, token)
    if record is None:
        return found
    return Found(
        Standing.HAS_LOST_IT,
        "its ledger holds an intent only",
        found.key,
        found.ti_id,
        record=record,
        is_running=found.is_running,
    )


def _find(session: Session, token: CallbackToken, kling_task_id: str) -> Found:
    ti = _task_instance(session, token.ti_id)
    if ti is None:
        return Found(Standing.NEEDS_NOTHING, "its task instance is not there any more")
    key = SubmissionKey(dag_id=ti.dag_id, run_id=ti.run_id, task_id=ti.task_id, map_index=ti.map_index)
    if ti.state == TaskInstanceState.DEFERRED:
        return _of_deferred(session, ti, key, token, kling_task_id)
    if ti.state == TaskInstanceState.SUCCESS:
        left = _xcom(session, key, XCOM_CALLBACK)
        if isinstance(left, Mapping) and left.get("kling_task_id") == kling_task_id:
            return Found(Standing.LEFT_IT, "it did not wait", key, ti.id)
        return Found(Standing.NEEDS_NOTHING, "its task has succeeded", None, ti.id)
    if ti.state in _OVER:
        return Found(Standing.NEEDS_NOTHING, f"its task is {ti.state}", key, ti.id)
    if ti.next_method == "execute_complete" and _tells_of(ti.next_kwargs, kling_task_id):
        return Found(Standing.NEEDS_NOTHING, "its task was resumed already", None, ti.id)
    if ti.state == TaskInstanceState.RUNNING:
        return Found(Standing.IS_AT_WORK, "its task is at work", key, ti.id, is_running=True)
    return Found(Standing.NEEDS_NOTHING, "its task will ask by itself when it runs", key, ti.id)


def _of_deferred(
    session: Session, ti: Any, key: SubmissionKey, token: CallbackToken, kling_task_id: str
) -> Found:
    # Without what hangs on it: Airflow would load the task instance with it, and that one's run.
    trigger = session.scalar(select(Trigger).where(Trigger.id == ti.trigger_id).options(lazyload("*")))
    arguments = trigger.kwargs if trigger is not None and trigger.classpath == TRIGGER else {}
    waits_for = arguments.get("kling_task_id")
    if trigger is None or waits_for != kling_task_id or arguments.get("kling_conn_id") != token.conn_id:
        if str(ti.id) == str(token.ti_id) and waits_for is not None:
            return Found(Standing.WAITS_FOR_ANOTHER, "its task waits for another video", key, ti.id)
        return Found(Standing.NEEDS_NOTHING, "its task does not wait for this video any more", None, ti.id)
    age = (datetime.now(UTC) - trigger.created_date).total_seconds()
    return Found(
        Standing.WAITS if age >= SETTLE_SECONDS else Standing.HAS_JUST_DEFERRED,
        "its task waits for it",
        key,
        ti.id,
        trigger_id=trigger.id,
        wait=(float(arguments["deadline"]), float(arguments["submitted_at"])),
    )


def resume(found: Found, kling_task_id: str, outcome: Outcome) -> bool:
    """
    Resume a deferred task with the event that its trigger would have sent.

    :param outcome: what the service said when it was asked.
    :return: False where somebody else was quicker.
    :raises UnavailableError: where the database cannot be written.
    """
    deadline, submitted_at = found.wait
    event = WaitEvent(
        kling_task_id=kling_task_id, outcome=outcome, deadline=deadline, submitted_at=submitted_at
    )
    with _asking() as session:
        waits = (
            TaskInstance.id == found.ti_id,
            TaskInstance.state == TaskInstanceState.DEFERRED,
            TaskInstance.trigger_id == found.trigger_id,
        )
        if not _lock(session, *waits):
            return False
        Trigger.submit_event(
            found.trigger_id,
            TriggerEvent(event.to_dict()),  # type: ignore[no-untyped-call]
            session=session,
        )
    return True


def record_submission(found: Found, task: VideoTask) -> bool:
    """
    Complete the ledger of a task that never learnt what became of its request.

    :param task: the service's answer.
    :return: False where it is a task that was there before the request, or the ledger has moved on meanwhile.
    :raises UnavailableError: where the ledger cannot be written.
    """
    record, key = found.record, found.key
    assert record is not None  # noqa: S101 - of a lost submission there is a record
    assert key is not None  # noqa: S101
    if task.created_at is not None and task.created_at.timestamp() < record.intent_at - CLOCK_SKEW:
        return False
    try:
        ledger = _open_ledger(key)
        if ledger is None or ledger.find() != record:
            return False
        ledger.submitted(record, task.task_id)
    except LedgerError as error:
        raise UnavailableError(error.what) from error
    return True


def tell_assets(found: Found, task: VideoTask) -> int | None:
    """
    Make the events of the assets that a task left to be told, once.

    :param task: the service's answer.
    :return: how many; None where they were told already.
    :raises UnavailableError: where the database cannot be written.
    """
    from airflow.assets.manager import asset_manager

    key = found.key
    assert key is not None  # noqa: S101 - who left something is there
    with _asking() as session:
        if not _lock(
            session, TaskInstance.id == found.ti_id, TaskInstance.state == TaskInstanceState.SUCCESS
        ):
            return None
        left = _xcom(session, key, XCOM_CALLBACK)
        asked = Asked.from_dict(_xcom(session, key, _XCOM_VIDEO))
        told = told_of(video_result(task, asked)) | {"files": []}
        if _was_told(session, key, task.task_id):
            return None
        ti = session.get(TaskInstance, found.ti_id)
        count = 0
        for outlet in left["outlets"]:
            asset = session.scalar(
                select(AssetModel).where(AssetModel.name == outlet["name"], AssetModel.uri == outlet["uri"])
            )
            if asset is not None and asset_manager.register_asset_change(
                task_instance=ti, asset=asset, extra=told, session=session
            ):
                count += 1
    return count


def _was_told(session: Session, key: SubmissionKey, kling_task_id: str) -> bool:
    extras = session.scalars(
        select(AssetEvent.extra).where(
            AssetEvent.source_dag_id == key.dag_id,
            AssetEvent.source_run_id == key.run_id,
            AssetEvent.source_task_id == key.task_id,
            AssetEvent.source_map_index == key.map_index,
        )
    )
    return any(isinstance(extra, Mapping) and extra.get("task_id") == kling_task_id for extra in extras)


def _task_instance(session: Session, ti_id: UUID) -> Any:
    """Return the columns that matter, of the present attempt; None where there is none any more."""
    columns = select(
        TaskInstance.id,
        TaskInstance.dag_id,
        TaskInstance.run_id,
        TaskInstance.task_id,
        TaskInstance.map_index,
        TaskInstance.state,
        TaskInstance.trigger_id,
        TaskInstance.next_method,
        TaskInstance.next_kwargs,
    )
    ti = session.execute(columns.where(TaskInstance.id == _as_stored(ti_id))).one_or_none()
    if ti is not None:
        return ti
    # An earlier attempt: a retry or a clear gave its successor another id.
    earlier = session.get(TaskInstanceHistory, _as_stored(ti_id))
    if earlier is None:
        return None
    return session.execute(
        columns.where(
            TaskInstance.dag_id == earlier.dag_id,
            TaskInstance.run_id == earlier.run_id,
            TaskInstance.task_id == earlier.task_id,
            TaskInstance.map_index == earlier.map_index,
        )
    ).one_or_none()


def _as_stored(ti_id: UUID) -> Any:
    # A text before Airflow 3.2.
    return str(ti_id) if TaskInstance.__table__.c.id.type.python_type is str else ti_id


def _lock(session: Session, *conditions: Any) -> bool:
    """Lock the task instance for which all of it holds, until the transaction's end. False where there is none."""
    locked: Any = session.execute(
        update(TaskInstance)
        .where(*conditions)
        .values(trigger_id=TaskInstance.trigger_id)
        .execution_options(synchronize_session=False)
    )
    return bool(locked.rowcount == 1)


def _tells_of(next_kwargs: Any, kling_task_id: str) -> bool:
    """Tell whether a resumed task was told of this video's end. How Airflow packs that differs between versions."""
    if isinstance(next_kwargs, str):
        try:
            next_kwargs = json.loads(next_kwargs)
        except ValueError:
            return False
    if not isinstance(next_kwargs, Mapping):
        return False
    if next_kwargs.get("kling_task_id") == kling_task_id:
        return next_kwargs.get("outcome") in _DONE
    return any(_tells_of(value, kling_task_id) for value in next_kwargs.values())


def _xcom(session: Session, key: SubmissionKey, name: str) -> Any:
    value = session.scalar(
        select(XComModel).where(
            XComModel.dag_id == key.dag_id,
            XComModel.run_id == key.run_id,
            XComModel.task_id == key.task_id,
            XComModel.map_index == key.map_index,
            XComModel.key == name,
        )
    )
    return None if value is None else XComModel.deserialize_value(value)


def _lost_submission(key: SubmissionKey, token: CallbackToken) -> Record | None:
    """
    Return the intent that an address was made for, where nothing else is known of it.

    :raises UnavailableError: where the ledger cannot be read.
    """
    try:
        ledger = _open_ledger(key)
        record = None if ledger is None else ledger.find()
    except LedgerError as error:
        raise UnavailableError(error.what) from error
    if record is None or record.state is not RecordState.INTENT or record.kling_task_id is not None:
        return None
    return record if submission_name(record) == token.submission else None


def _open_ledger(key: SubmissionKey) -> Ledger | None:
    """Open the ledger of a task instance, as :func:`~airflow_provider_kling.ledger.open_ledger` does on a worker."""
    path = config.ledger_path()
    if path is not None:
        return Ledger(FileLedgerStore(ObjectStoragePath(path) / key.path), key)
    return Ledger(MetadataLedgerStore(key), key) if AIRFLOW_V_3_3_PLUS else None


class MetadataLedgerStore(LedgerStore):
    """
    Airflow's task state store from the side of the API server (3.3 and later).

    The task's own worker may write at the same time. So what is written takes the place of what was read, or of
    nothing.

    :param key: whose record it is.
    """

    def __init__(self, key: SubmissionKey) -> None:
        from airflow.state import TaskScope

        self._scope = TaskScope(
            dag_id=key.dag_id, run_id=key.run_id, task_id=key.task_id, map_index=key.map_index
        )
        self._read: str | None = None

    @property
    def place(self) -> str:
        """Where a person finds the record."""
        return f"Airflow's task state store, key {STORE_KEY!r}"

    def read(self) -> str | None:
        """Return the record's text; None where there is none, or a worker keeps it in a place of its own."""
        from airflow.state import get_state_backend

        with _asking() as session:
            self._read = get_state_backend().get(self._scope, STORE_KEY, session=session)
        value = None if self._read is None else json.loads(self._read)
        return value if isinstance(value, str) else None

    def write(self, text: str, generation: int, *, new: bool) -> None:
        """
        Put a record in the place of the one that was read.

        :raises FileExistsError: where there is another one by now.
        """
        from airflow.models.task_state_store import TaskStateStoreModel

        with _asking() as session:
            written: Any = session.execute(
                update(TaskStateStoreModel)
                .where(
                    TaskStateStoreModel.dag_id == self._scope.dag_id,
                    TaskStateStoreModel.run_id == self._scope.run_id,
                    TaskStateStoreModel.task_id == self._scope.task_id,
                    TaskStateStoreModel.map_index == self._scope.map_index,
                    TaskStateStoreModel.key == STORE_KEY,
                    TaskStateStoreModel.value == self._read,
                )
                .values(value=json.dumps(text), updated_at=datetime.now(UTC), expires_at=None)
                .execution_options(synchronize_session=False)
            )
            if written.rowcount != 1:
                raise FileExistsError(self.place)
