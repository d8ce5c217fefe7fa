"""
Tasks that make many videos: which of these are over, and whether enough of them are for the task to go on.

A callback tells of one video, and the event that resumes the task is due when enough are over. So what is over is noted
where the task itself can read it, in its XCom: it lasts until the task goes on, whoever resumes it and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from airflow.triggers.base import TriggerEvent
from airflow.utils.state import TaskInstanceState

from airflow_provider_kling.callbacks import XCOM_OVER
from airflow_provider_kling.ledger import LedgerError, RecordState
from airflow_provider_kling.plugins.accounts import UnavailableError
from airflow_provider_kling.plugins.database import asking, lock, put_xcom, xcom
from airflow_provider_kling.plugins.ledgers import open_batch_ledger
from airflow_provider_kling.plugins.standing import DONE, OVER, Found, Listed, Standing, is_told_of

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from airflow_provider_kling.api.task import VideoTask
    from airflow_provider_kling.callbacks import CallbackToken
    from airflow_provider_kling.ledger import SubmissionKey
    from airflow_provider_kling.waiting import Outcome

TRIGGER = "airflow_provider_kling.triggers.batch.KlingVideosTrigger"
_AT_WORK = (TaskInstanceState.SCHEDULED, TaskInstanceState.QUEUED, TaskInstanceState.RUNNING)


@dataclass(frozen=True)
class Noted:
    """
    What is noted of a list.

    :param over: how many of its videos are over, of those that it waits for.
    :param of: how many it waits for; 0 where it is at work.
    :param is_enough: whether so many are over that it can go on.
    :param is_resumed: whether it was resumed.
    """

    over: int
    of: int
    is_enough: bool
    is_resumed: bool


def stand(session: Session, ti: Any, key: SubmissionKey, kling_task_id: str) -> Found:
    """Find how a list stands to one of its videos, by what the database has of it without its ledger."""
    if ti.state in OVER:
        return Found(Standing.NEEDS_NOTHING, f"its task is {ti.state}", key, ti.id)
    is_resumed = ti.next_method == "execute_complete" and ti.state in _AT_WORK
    if is_resumed and is_told_of(ti.next_kwargs, kling_task_id):
        return Found(Standing.NEEDS_NOTHING, "its task was resumed already", key, ti.id, asks_ledger=False)
    if is_resumed or ti.state == TaskInstanceState.RUNNING:
        return Found(
            Standing.IS_AT_WORK,
            "its task is at work",
            key,
            ti.id,
            is_running=True,
            listed=Listed(is_noted=kling_task_id in _noted(session, key)),
        )
    return Found(Standing.NEEDS_NOTHING, "its task will ask by itself when it runs", key, ti.id)


def of_deferred(
    session: Session,
    found: Found,
    arguments: Mapping[str, Any],
    token: CallbackToken,
    kling_task_id: str,
    *,
    is_settled: bool,
) -> Found:
    """
    Find how a list that is deferred stands to one of its videos.

    :param found: which list; how it stands is not known yet.
    :param arguments: of its trigger.
    :param is_settled: whether it may be resumed already.
    """
    waits_for = tuple(str(video[0]) for video in arguments.get("videos") or ())
    submissions = list(arguments.get("submissions") or ())
    if arguments.get("kling_conn_id") != token.conn_id or token.submission not in submissions:
        why = "its task does not wait for this video, or asks by itself"
        return replace(found, standing=Standing.NEEDS_NOTHING, why=why)
    if waits_for[submissions.index(token.submission)] != kling_task_id:
        return replace(
            found, standing=Standing.WAITS_FOR_ANOTHER, why="this address is another video's of its task"
        )
    noted = _noted(session, found.key)
    listed = Listed(
        waits_for, int(arguments["enough"]), arguments.get("state"), is_noted=kling_task_id in noted
    )
    standing, why = Standing.WAITS if is_settled else Standing.HAS_JUST_DEFERRED, "its task waits for it"
    if listed.is_noted and not _is_enough(noted, listed):
        standing, why = Standing.NEEDS_NOTHING, "it is noted already, and its task waits for others"
        return replace(found, standing=standing, why=why, asks_ledger=False)
    return replace(found, standing=standing, why=why, listed=listed)


def with_ledger(found: Found, token: CallbackToken, kling_task_id: str) -> Found:
    """
    Find how a list that is not deferred for a video stands to it, by its ledger.

    :raises UnavailableError: where the ledger cannot be asked.
    """
    assert found.key is not None  # noqa: S101 - asked by the caller
    try:
        ledger = open_batch_ledger(found.key)
        entry = None if ledger is None else ledger.called(token.submission)
    except LedgerError as error:
        raise UnavailableError(error.what) from error
    if entry is None:
        return found
    listed = replace(found.listed or Listed(), ledger=ledger, entry=entry)
    if entry.state is RecordState.INTENT and entry.kling_task_id is None:
        why = "its ledger holds an intent only"
        return replace(found, standing=Standing.HAS_LOST_IT, why=why, listed=listed)
    if entry.kling_task_id not in (None, kling_task_id):
        why = "this address is another video's of its task"
        return replace(found, standing=Standing.WAITS_FOR_ANOTHER, why=why)
    if entry.state in (RecordState.COMPLETED, RecordState.FREE):
        return replace(found, standing=Standing.NEEDS_NOTHING, why="its task is done with it")
    return replace(found, listed=listed)


def note(found: Found, kling_task_id: str, outcome: Outcome | None) -> Noted | None:
    """
    Note that a video is over, and resume its task with the event that its trigger would have sent, if enough are.

    :param outcome: what the service said when it was asked; None where it is noted already.
    :return: None where the task has gone on meanwhile.
    :raises UnavailableError: where the database cannot be written.
    """
    listed, key = found.listed, found.key
    assert listed is not None  # noqa: S101 - of a list there is one
    assert key is not None  # noqa: S101
    its = TaskInstance.id == found.ti_id
    with asking() as session:
        # Whoever notes another video of this task at the same time waits here.
        waits = found.trigger_id is not None and lock(
            session,
            its,
            TaskInstance.state == TaskInstanceState.DEFERRED,
            TaskInstance.trigger_id == found.trigger_id,
        )
        # It may have been resumed since it was looked for.
        if not waits and not lock(session, its, TaskInstance.state.in_(_AT_WORK)):
            return None
        noted = _noted(session, key)
        if outcome is not None:
            noted[kling_task_id] = outcome.value
        if not waits:
            put_xcom(session, key, XCOM_OVER, noted)
            return Noted(len(noted), 0, is_enough=False, is_resumed=False)
        noted = {each: noted[each] for each in listed.waits_for if each in noted}
        put_xcom(session, key, XCOM_OVER, noted)
        is_enough = _is_enough(noted, listed)
        is_resumed = is_enough and found.standing is Standing.WAITS
        if is_resumed:
            payload = {"over": noted, "state": listed.state}
            event = TriggerEvent(payload)  # type: ignore[no-untyped-call]
            Trigger.submit_event(found.trigger_id, event, session=session)
    return Noted(len(noted), len(listed.waits_for), is_enough, is_resumed)


def record_submission(found: Found, token: CallbackToken, task: VideoTask) -> bool:
    """
    Complete the ledger of a list that never learnt what became of a request.

    :param task: the service's answer.
    :return: False where it is another video's task, or the ledger has moved on meanwhile.
    :raises UnavailableError: where the ledger cannot be written.
    """
    listed = found.listed
    assert listed is not None  # noqa: S101 - of a list there is one
    assert listed.ledger is not None  # noqa: S101 - it was looked into
    try:
        entry = listed.ledger.called(token.submission)
        if entry is None or entry.state is not RecordState.INTENT:
            return False
        return listed.ledger.bring_home(entry, task.task_id)
    except LedgerError as error:
        raise UnavailableError(error.what) from error


def _noted(session: Session, key: SubmissionKey | None) -> dict[str, str]:
    assert key is not None  # noqa: S101 - of a list that is there
    told = xcom(session, key, XCOM_OVER)
    if not isinstance(told, Mapping):
        return {}
    return {str(its): str(how) for its, how in told.items() if how in DONE}


def _is_enough(noted: Mapping[str, str], listed: Listed) -> bool:
    over = sum(each in noted for each in listed.waits_for)
    return over >= min(listed.enough, len(listed.waits_for))
