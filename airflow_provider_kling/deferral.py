"""Waits for a task of the service where its operator wants that: on the worker, or in the triggerer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from airflow_provider_kling.api.errors import KlingError, TaskFailedError, TaskNotFoundError
from airflow_provider_kling.waiting import AskAgain, Over

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseOperator

    from airflow_provider_kling.api.task import VideoTask
    from airflow_provider_kling.hooks.kling import KlingHook
    from airflow_provider_kling.waiting import Waiting


def of_a_task_made_elsewhere(error: KlingError, kling_task_id: str) -> None:
    """Let an error that ends the wait for what another task asked for say so: whether to ask again is for that one."""
    if isinstance(error, TaskNotFoundError):
        error.tell_that_nothing_is_known(kling_task_id)
    elif not isinstance(error, TaskFailedError):
        error.tell_that_the_video_goes_on(kling_task_id)
    else:
        error.retryable = False
        error.next_step = (
            "A failed task is not billed. This task asks for no video: run the task that submitted it again."
        )


def follow(
    operator: BaseOperator,
    hook: KlingHook,
    waiting: Waiting,
    *,
    deferrable: bool,
    known: VideoTask | None = None,
    is_called_back: bool = False,
    unrecorded: str | None = None,
) -> Over:
    """
    Ask once, and if it is not over yet, wait on this worker or hand the wait to the triggerer.

    The operator is resumed in its ``execute_complete``.

    :param deferrable: whether the triggerer may wait on.
    :param known: the task, where an answer about it has just come.
    :param is_called_back: whether the service will tell its end. A task that it has just taken is not asked for then.
    :param unrecorded: the submission whose id the ledger has not taken; see
        :class:`~airflow_provider_kling.waiting.WaitEvent`.
    :raises TaskDeferred: where the triggerer waits on.
    """
    decision: AskAgain | Over
    if known is not None and known.state.is_terminal:
        decision = waiting.on_task(known, time.time())
    elif known is not None and is_called_back and deferrable:
        decision = waiting.begin(time.time())
    else:
        decision = hook.ask_once(waiting)
    if isinstance(decision, Over):
        return decision
    if deferrable:
        # Imported here: who only reads a Dag needs no trigger.
        from airflow_provider_kling.triggers.kling import KlingVideoTrigger

        operator.log.info("Deferring: the triggerer waits for Kling task %s.", waiting.task_id)
        operator.defer(
            trigger=KlingVideoTrigger.of(waiting, kling_conn_id=hook.kling_conn_id, unrecorded=unrecorded),
            method_name="execute_complete",
            timeout=waiting.net(time.time()),
        )
    time.sleep(max(0.0, decision.at - time.time()))
    return hook.wait_until_over(waiting)
