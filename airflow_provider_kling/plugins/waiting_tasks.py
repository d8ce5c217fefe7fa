"""
What the receiver reads and writes in Airflow's metadata database: who waits for a video, and that it is over.

All of it blocks, so it runs in threads.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.models.asset import AssetEvent, AssetModel
from airflow.models.taskinstance import TaskInstance
from airflow.models.taskinstancehistory import TaskInstanceHistory
from airflow.models.trigger import Trigger
from airflow.triggers.base import TriggerEvent
from airflow.utils.state import TaskInstanceState
from sqlalchemy import select
from sqlalchemy.orm import lazyload

from airflow_provider_kling.assets import told_of
from airflow_provider_kling.callbacks import XCOM_CALLBACK, CallbackToken, submission_name
from airflow_provider_kling.card import XCOM_VIDEO
from airflow_provider_kling.ledger import LedgerError, Record, RecordState, SubmissionKey
from airflow_provider_kling.plugins import waiting_lists
from airflow_provider_kling.plugins.accounts import UnavailableError
from airflow_provider_kling.plugins.database import asking, lock, xcom
from airflow_provider_kling.plugins.ledgers import open_ledger
from airflow_provider_kling.plugins.standing import OVER, Found, Standing, is_told_of
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
_PARTITION = ("partition_key", "partition_date")


def find(token: CallbackToken, kling_task_id: str) -> Found:
    """
    Find whom a callback is about, and whether it waits for the video.

    :param token: as it was signed.
    :param kling_task_id: as the callback tells it, believed by nobody yet.
    :raises UnavailableError: where the database or the ledger cannot be asked.
    """
    with asking() as session:
        found = _find(session, token, kling_task_id)
    if found.key is None or not found.asks_ledger:
        return found
    if found.standing not in (Standing.IS_AT_WORK, Standing.NEEDS_NOTHING):
        return found
    if token.is_listed:
        return waiting_lists.with_ledger(found, token, kling_task_id)
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
    if token.is_listed:
        return waiting_lists.stand(session, ti, key, kling_task_id)
    if ti.state == TaskInstanceState.SUCCESS:
        left = xcom(session, key, XCOM_CALLBACK)
        if left is not None and not isinstance(left, Mapping):
            raise UnavailableError(
                f"what {key.dag_id}.{key.task_id} of {key.run_id} left to be told: its XComs lie elsewhere than in "
                "Airflow's database (a custom XCom backend), where no callback reads them"
            )
        if left is not None and left.get("kling_task_id") == kling_task_id:
            return Found(Standing.LEFT_IT, "it did not wait", key, ti.id)
        return Found(Standing.NEEDS_NOTHING, "its task has succeeded", key, ti.id, asks_ledger=False)
    if ti.state in OVER:
        return Found(Standing.NEEDS_NOTHING, f"its task is {ti.state}", key, ti.id)
    if ti.next_method == "execute_complete" and is_told_of(ti.next_kwargs, kling_task_id):
        return Found(Standing.NEEDS_NOTHING, "its task was resumed already", key, ti.id, asks_ledger=False)
    if ti.state == TaskInstanceState.RUNNING:
        return Found(Standing.IS_AT_WORK, "its task is at work", key, ti.id, is_running=True)
    return Found(Standing.NEEDS_NOTHING, "its task will ask by itself when it runs", key, ti.id)


def _of_deferred(
    session: Session, ti: Any, key: SubmissionKey, token: CallbackToken, kling_task_id: str
) -> Found:
    # Without what hangs on it: Airflow would load the task instance with it, and that one's run.
    trigger = session.scalar(select(Trigger).where(Trigger.id == ti.trigger_id).options(lazyload("*")))
    age = 0.0 if trigger is None else (datetime.now(UTC) - trigger.created_date).total_seconds()
    expected = waiting_lists.TRIGGER if token.is_listed else TRIGGER
    arguments = trigger.kwargs if trigger is not None and trigger.classpath == expected else {}
    if token.is_listed:
        found = Found(Standing.NEEDS_NOTHING, "", key, ti.id, trigger_id=ti.trigger_id)
        is_settled = age >= SETTLE_SECONDS
        return waiting_lists.of_deferred(
            session, found, arguments, token, kling_task_id, is_settled=is_settled
        )
    waits_for = arguments.get("kling_task_id")
    if trigger is None or waits_for != kling_task_id or arguments.get("kling_conn_id") != token.conn_id:
        if str(ti.id) == str(token.ti_id) and waits_for is not None:
            return Found(Standing.WAITS_FOR_ANOTHER, "its task waits for another video", key, ti.id)
        return Found(
            Standing.NEEDS_NOTHING,
            "its task does not wait for this video any more",
            key,
            ti.id,
            asks_ledger=False,
        )
    return Found(
        Standing.WAITS if age >= SETTLE_SECONDS else Standing.HAS_JUST_DEFERRED,
        "its task waits for it",
        key,
        ti.id,
        trigger_id=trigger.id,
        wait=(float(arguments["deadline"]), float(arguments["submitted_at"])),
        unrecorded=arguments.get("unrecorded"),
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
        kling_task_id=kling_task_id,
        outcome=outcome,
        deadline=deadline,
        submitted_at=submitted_at,
        unrecorded=found.unrecorded,
    )
    with asking() as session:
        waits = (
            TaskInstance.id == found.ti_id,
            TaskInstance.state == TaskInstanceState.DEFERRED,
            TaskInstance.trigger_id == found.trigger_id,
        )
        if not lock(session, *waits):
            return False
        Trigger.submit_event(
            found.trigger_id,
            TriggerEvent(event.to_dict()),  # type: ignore[no-untyped-call]
            session=session,
        )
    return True


def record_submission(found: Found, token: CallbackToken, task: VideoTask) -> bool:
    """
    Complete the ledger of a task that never learnt what became of its request.

    :param token: as it was signed.
    :param task: the service's answer.
    :return: False where it is a task that was there before the request, or the ledger has moved on meanwhile.
    :raises UnavailableError: where the ledger cannot be written.
    """
    if task.created_at is not None and task.created_at.timestamp() < found.intent_at - CLOCK_SKEW:
        return False
    if found.listed is not None:
        return waiting_lists.record_submission(found, token, task)
    record, key = found.record, found.key
    assert record is not None  # noqa: S101 - of a lost submission there is a record
    assert key is not None  # noqa: S101
    try:
        ledger = open_ledger(key)
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

    takes = inspect.signature(asset_manager.register_asset_change).parameters
    key = found.key
    assert key is not None  # noqa: S101 - who left something is there
    with asking() as session:
        if not lock(session, TaskInstance.id == found.ti_id, TaskInstance.state == TaskInstanceState.SUCCESS):
            return None
        left = xcom(session, key, XCOM_CALLBACK)
        asked = Asked.from_dict(xcom(session, key, XCOM_VIDEO))
        told = told_of(video_result(task, asked)) | {"files": []}
        if _was_told(session, key, task.task_id):
            return None
        ti = session.get(TaskInstance, found.ti_id)
        assert ti is not None  # noqa: S101 - it is locked
        # As Airflow does at the end of a task; 3.1 knows no partitions.
        partition: dict[str, Any] = {
            name: getattr(ti.dag_run, name, None) for name in _PARTITION if name in takes
        }
        count = 0
        for outlet in left["outlets"]:
            asset = session.scalar(
                select(AssetModel).where(
                    AssetModel.name == outlet["name"],
                    AssetModel.uri == outlet["uri"],
                    AssetModel.active.has(),
                )
            )
            if asset is not None and asset_manager.register_asset_change(
                task_instance=ti, asset=asset, extra=told, session=session, **partition
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


def _lost_submission(key: SubmissionKey, token: CallbackToken) -> Record | None:
    """
    Return the intent that an address was made for, where nothing else is known of it.

    :raises UnavailableError: where the ledger cannot be read.
    """
    try:
        ledger = open_ledger(key)
        record = None if ledger is None else ledger.find()
    except LedgerError as error:
        raise UnavailableError(error.what) from error
    if record is None or record.state is not RecordState.INTENT or record.kling_task_id is not None:
        return None
    return record if submission_name(record.owner, record.generation) == token.submission else None
