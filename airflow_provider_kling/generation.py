"""One attempt of an Airflow task at its video: ask once, wait, deliver; ask anew only where nothing was bought."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_kling import config
from airflow_provider_kling.api.errors import (
    KlingError,
    Paid,
    RateLimitedError,
    ResultExpiredError,
    TaskFailedError,
    TooManyTasksError,
)
from airflow_provider_kling.links.kling import KlingVideoLink
from airflow_provider_kling.result import describe_request, video_result
from airflow_provider_kling.submission import Obtained, OnExpiredResult, Submission
from airflow_provider_kling.triggers.kling import KlingPauseTrigger, KlingVideoTrigger
from airflow_provider_kling.waiting import DEFER_NET, Outcome, Over, PauseEvent, WaitEvent, Waiting

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_kling.api.request import VideoRequest
    from airflow_provider_kling.api.task import VideoTask
    from airflow_provider_kling.hooks.kling import KlingHook
    from airflow_provider_kling.ledger import Ledger
    from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator

XCOM_TASK_ID = "task_id"
"""XCom key of the service's task id, pushed right after the submit."""
BUSY_PAUSE = 30.0
"""Least seconds to wait before a busy service is asked again; up to half as much again is added by chance."""


class Generation:
    """
    What one process does for one attempt.

    :param operator: whose attempt it is.
    :param context: Airflow's context of the task.
    :param hook: the service.
    :param ledger: what earlier attempts left.
    :param request: what is asked for.
    """

    def __init__(
        self,
        operator: KlingGenerateVideoOperator,
        context: Context,
        hook: KlingHook,
        ledger: Ledger,
        request: VideoRequest,
    ) -> None:
        self._operator = operator
        self._context = context
        self._hook = hook
        self._ledger = ledger
        self._request = request
        self._log: Any = operator.log
        # Read here, so that a wrong setting is told before anything is paid.
        self._max_failures = config.max_failed_queries()
        self._submission = Submission(
            hook,
            ledger,
            request,
            on_unknown_submission=operator.on_unknown_submission,
            log=operator.log,
            is_killed=lambda: operator.is_killed,
        )

    def start(self, limits: PauseEvent) -> dict[str, Any]:
        """
        Ask for the video or take up what an earlier attempt asked for, and see it through.

        :param limits: until when.
        :return: what goes to XCom.
        :raises KlingError: where there will be no video from this attempt.
        """
        while True:
            try:
                obtained = self._submission.obtain(deadline=limits.deadline)
                self._remember(obtained)
                if not self._operator.wait_for_completion:
                    self._log.info("Not waiting for it: wait_for_completion is off.")
                    task = obtained.task or self._hook.get_task(obtained.kling_task_id)
                    return video_result(task, self._request)
                task_or_none = self._finish(obtained, self._wait(obtained, limits))
                if task_or_none is not None:
                    return self._deliver(obtained, task_or_none)
                limits = replace(limits, deadline=time.time() + self._operator.timeout)
            except (RateLimitedError, TooManyTasksError) as error:
                self._pause(error, limits)

    def resume(self, event: WaitEvent) -> dict[str, Any]:
        """
        Go on with a task that the triggerer waited for.

        :param event: what the trigger told.
        :return: what goes to XCom.
        :raises KlingError: where there will be no video from this attempt.
        """
        limits = PauseEvent(deadline=event.deadline, attempt_ends_at=event.deadline)
        obtained = self._submission.resumed(event)
        waiting = Waiting.resumed(
            event, poll_interval=self._operator.poll_interval, max_failures=self._max_failures
        )
        try:
            task = self._finish(obtained, self._follow(obtained, waiting))
        except TooManyTasksError as error:
            self._pause(error, limits)
            return self.start(limits)
        assert task is not None  # noqa: S101 - only an earlier attempt's task is made anew
        return self._deliver(obtained, task)

    def announce(self) -> None:
        """Tell what is asked for, what it will cost, and what is odd about it."""
        for warning in self._request.warnings():
            self._log.warning("%s", warning)
        self._log.info("Asking Kling for a video: %s", describe_request(self._request))
        if not self._ledger.is_kept:
            self._log.warning(
                "This submission is not remembered: should this attempt crash between the submit and its end, a "
                "retry buys a second video. Use Airflow 3.3 or later, or set [kling] ledger_path or the argument "
                "ledger_path."
            )

    def _remember(self, obtained: Obtained) -> None:
        self._operator.kling_task_id = obtained.kling_task_id
        # The log first: should XCom be out of reach, the id is still there to be read.
        self._log.info("Kling task id: %s", obtained.kling_task_id)
        self._context["ti"].xcom_push(key=XCOM_TASK_ID, value=obtained.kling_task_id)
        self._push_link(obtained.kling_task_id, obtained.task)

    def _wait(self, obtained: Obtained, limits: PauseEvent) -> Over:
        waiting = Waiting(
            obtained.kling_task_id,
            deadline=min(obtained.deadline, limits.attempt_ends_at),
            poll_interval=self._operator.poll_interval,
            started=obtained.submitted_at,
            max_failures=self._max_failures,
        )
        return self._follow(obtained, waiting)

    def _follow(self, obtained: Obtained, waiting: Waiting) -> Over:
        if obtained.task is not None and obtained.task.state.is_terminal:
            decision = waiting.on_task(obtained.task, time.time())
        else:
            decision = self._hook.ask_once(waiting)
        if isinstance(decision, Over):
            return decision
        if self._operator.deferrable:
            self._log.info("Deferring: the triggerer waits for Kling task %s.", waiting.task_id)
            self._operator.defer(
                trigger=KlingVideoTrigger.of(waiting, kling_conn_id=self._hook.kling_conn_id),
                method_name="execute_complete",
                timeout=waiting.net(time.time()),
            )
        time.sleep(max(0.0, decision.at - time.time()))
        return self._hook.wait_until_over(waiting)

    def _finish(self, obtained: Obtained, over: Over) -> VideoTask | None:
        """
        Return the completed task, or None where another one has to be asked for.

        :raises KlingError: where there will be no video from this attempt.
        """
        error = over.error
        if error is None:
            assert over.task is not None  # noqa: S101 - every outcome without an error has a task
            return over.task if self._can_be_had(obtained, over.task) else None
        if isinstance(error, TaskFailedError):
            self._submission.release(obtained)
            if (
                obtained.is_from_earlier_attempt
                and error.retryable
                and not isinstance(error, TooManyTasksError)
            ):
                self._log.warning("%s", error)
                return None
        elif over.outcome is not Outcome.REFUSED:
            self._say_what_a_retry_does(error)
        raise error

    def _can_be_had(self, obtained: Obtained, task: VideoTask) -> bool:
        if not obtained.is_from_earlier_attempt or self._hook.result_is_there(task.video_url or ""):
            return True
        what = f"Kling task {task.task_id} is completed and was billed, but the service has deleted its video"
        if self._operator.on_expired_result is OnExpiredResult.FAIL:
            raise ResultExpiredError(
                what,
                task_id=task.task_id,
                next_step=(
                    "It cannot be had any more. To have it made and billed once more, set "
                    "on_expired_result='resubmit' and clear this task."
                ),
            )
        self._log.warning("%s. It is asked for and billed again (on_expired_result='resubmit').", what)
        self._submission.release(obtained)
        return False

    def _deliver(self, obtained: Obtained, task: VideoTask) -> dict[str, Any]:
        self._push_link(task.task_id, task)
        seconds = "" if task.generation_seconds is None else f" after {task.generation_seconds:.0f} s"
        shown = (task.video_url or "").partition("?")[0]
        self._log.info("Kling task %s is completed%s: %s", task.task_id, seconds, shown)
        self._submission.delivered(obtained)
        return video_result(task, self._request)

    def _pause(self, error: RateLimitedError | TooManyTasksError, limits: PauseEvent) -> None:
        """
        Wait until a busy service may be asked again, without holding a worker where the task is deferrable.

        :raises KlingError: the error itself, where that would be after the deadline.
        """
        now = time.time()
        until = now + max(error.retry_after or 0, BUSY_PAUSE) * random.uniform(1, 1.5)  # noqa: S311
        if until >= min(limits.deadline, limits.attempt_ends_at):
            error.next_step = "Nothing was billed. There is no time left for another try; a retry asks again."
            raise error
        self._log.info("%s. Asking again in %.0f s.", error.what, until - now)
        if self._operator.deferrable:
            self._operator.defer(
                trigger=KlingPauseTrigger(until=until, **limits.to_dict()),
                method_name="execute_again",
                timeout=timedelta(seconds=until - now) + DEFER_NET,
            )
        time.sleep(until - now)

    def _say_what_a_retry_does(self, error: KlingError) -> None:
        if self._ledger.is_kept:
            error.next_step += " A retry attaches to it again and buys nothing."
        elif error.paid is not Paid.NO:
            # A retry would buy a second video, which nobody asked for.
            error.retryable = False
            error.next_step += (
                " This submission is not remembered, so a retry would buy a second video and is not made. Wait for "
                f"this one with KlingVideoSensor(kling_task_id={error.task_id!r})."
            )

    def _push_link(self, kling_task_id: str, task: VideoTask | None) -> None:
        KlingVideoLink.push(
            self._context,
            kling_task_id,
            task.video_url if task else None,
            base_url=self._hook.settings.base_url,
        )
