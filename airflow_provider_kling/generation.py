"""One attempt of an Airflow task at its video: ask once, wait, deliver; ask anew only where nothing was bought."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow_provider_kling import config
from airflow_provider_kling.api.errors import (
    DownloadError,
    KlingError,
    RateLimitedError,
    TooManyTasksError,
)
from airflow_provider_kling.api.task import TaskState
from airflow_provider_kling.assets import not_told_later, tell_later, tell_outlets
from airflow_provider_kling.callbacks import XCOM_CALLBACK, CallbackAddress
from airflow_provider_kling.card import (
    XCOM_VIDEO,
    CardState,
    asked_card,
    error_card,
    leave_card,
    result_card,
)
from airflow_provider_kling.deferral import follow
from airflow_provider_kling.exceptions import going_on
from airflow_provider_kling.links.kling import KlingVideoLink
from airflow_provider_kling.result import Asked, dry_result, video_result
from airflow_provider_kling.settlement import Settlement
from airflow_provider_kling.submission import Obtained, Submission
from airflow_provider_kling.waiting import DEFER_NET, Outcome, Over, PauseEvent, WaitEvent, Waiting
from airflow_provider_kling.xcom import own_xcom

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_kling.api.task import VideoTask
    from airflow_provider_kling.delivery import Delivery
    from airflow_provider_kling.hooks.kling import KlingHook
    from airflow_provider_kling.ledger import Ledger
    from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator
    from airflow_provider_kling.order import Order

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
    :param delivery: what becomes of the video.
    :param order: what is asked for; None where this process goes on with what was asked for before.
    """

    def __init__(
        self,
        operator: KlingGenerateVideoOperator,
        context: Context,
        hook: KlingHook,
        ledger: Ledger,
        delivery: Delivery,
        order: Order | None = None,
    ) -> None:
        self._operator = operator
        self._context = context
        self._hook = hook
        self._ledger = ledger
        self._delivery = delivery
        self._order = order
        self._log: Any = operator.log
        self._submitted_at: float | None = None
        # Read here, so that a wrong setting is told before anything is paid.
        self._max_failures = config.max_failed_queries()
        self._poll_interval = config.callback_poll_interval() if operator.callback else operator.poll_interval
        callback = CallbackAddress(context, hook) if operator.callback and order is not None else None
        self._submission = Submission(
            hook,
            ledger,
            order,
            on_unknown_submission=operator.on_unknown_submission,
            log=operator.log,
            is_killed=lambda: operator.is_killed,
            callback=callback,
            # The receiver knows no operator's own ledger.
            is_brought_home=callback is not None and operator.ledger_path in (None, config.ledger_path()),
        )
        self._settlement = Settlement(
            self._submission,
            delivery,
            on_expired_result=operator.on_expired_result,
            log=operator.log,
        )

    def start(self, limits: PauseEvent) -> dict[str, Any]:
        """
        Ask for the video or take up what an earlier attempt asked for, and see it through.

        :param limits: until when.
        :return: what goes to XCom.
        :raises KlingError: where there will be no video from this attempt.
        """
        if self._order is not None:
            self._order.take_up(limits.uploads)
        while True:
            try:
                obtained = self._submission.obtain(deadline=limits.deadline)
            except RateLimitedError as error:
                # Of this call alone. Where a query gets that answer, there is a video that it is about.
                self._pause(error, limits)
                continue
            self._remember(obtained)
            if self._operator.wait_for_completion:
                over = self._wait(obtained, limits)
            else:
                task = self._known(obtained)
                if task.state is not TaskState.FAILED:
                    self._log.info("Not waiting for it: wait_for_completion is off.")
                    self._submission.keep(obtained)
                    return self._leave(task)
                over = Over(Outcome.FAILED, task, task.failure())
            try:
                task_or_none = self._settlement.finish(obtained, over)
            except TooManyTasksError as error:
                self._pause(error, limits)
                continue
            if task_or_none is not None:
                return self._deliver(obtained, task_or_none)
            self._forget()
            limits = replace(limits, deadline=time.time() + self._operator.timeout)

    def rehearse(self) -> dict[str, Any]:
        """
        Do all that comes before the submit, and stop there.

        :return: what goes to XCom.
        :raises KlingError: where the submit would not be made.
        """
        assert self._order is not None  # noqa: S101 - a rehearsal is of an order
        self._order.check()
        self._log.info("Nothing is asked for: this is a dry run.")
        self._show(CardState.DRY_RUN)
        return dry_result(self._order.asked)

    def resume(self, event: WaitEvent) -> dict[str, Any] | PauseEvent:
        """
        Go on with a task that the triggerer waited for.

        :param event: what the trigger told.
        :return: what goes to XCom; until when to ask once more, where the service had too much to do for it.
        :raises KlingError: where there will be no video from this attempt.
        """
        limits = PauseEvent(deadline=event.deadline, attempt_ends_at=event.deadline)
        obtained = self._submission.resumed(event)
        self._submitted_at = obtained.submitted_at
        # Whose end was told once is not told of again.
        is_over = event.outcome in (Outcome.COMPLETED, Outcome.FAILED)
        interval = self._operator.poll_interval if is_over else self._poll_interval
        waiting = Waiting.resumed(event, poll_interval=interval, max_failures=self._max_failures)
        try:
            task = self._settlement.finish(obtained, self._follow(waiting, obtained))
        except TooManyTasksError as error:
            self._pause(error, limits)
            return limits
        assert task is not None  # noqa: S101 - only an earlier attempt's task is made anew
        return self._deliver(obtained, task)

    def _leave(self, task: VideoTask) -> dict[str, Any]:
        """
        End without waiting.

        What the outlets are told is the video's end. So with a callback they are not told by this task's own.
        """
        result = video_result(task, self.asked)
        if task.state is TaskState.COMPLETED:
            self._show_result(result)
        if self._operator.callback and self._operator.outlets:
            if task.state is TaskState.COMPLETED:
                tell_outlets(self._context, self._operator.outlets, result, [], log=self._log)
            else:
                for outlet in not_told_later(self._operator.outlets):
                    # Of a mapped task, whose arguments nobody has seen at parse.
                    self._log.warning("%r will not be told: no callback can do that.", outlet)
                left = {"kling_task_id": task.task_id, "outlets": tell_later(self._operator.outlets)}
                self._context["ti"].xcom_push(key=XCOM_CALLBACK, value=left)
                self._operator.outlets = []
        return result

    @property
    def kling_task_id(self) -> str | None:
        """The service's id of the video that this attempt follows, from the moment on in which the service took it."""
        obtained = self._submission.obtained
        return self._operator.kling_task_id if obtained is None else obtained.kling_task_id

    def is_remembered(self) -> bool:
        """Tell whether the next attempt will know of that video."""
        obtained = self._submission.obtained
        return self._ledger.is_kept if obtained is None else self._submission.is_remembered(obtained)

    def announce(self) -> None:
        """Tell what is asked for, what it will cost, and what is odd about it."""
        assert self._order is not None  # noqa: S101 - who only goes on announces nothing
        for warning in self._order.request.warnings():
            self._log.warning("%s", warning)
        self._log.info("Asking Kling for a video: %s", self._order.describe())
        if not self._ledger.is_kept:
            self._log.warning(
                "This submission is not remembered: should this attempt crash between the submit and its end, a "
                "retry buys a second video. Use Airflow 3.3 or later, or set [kling] ledger_path or the argument "
                "ledger_path."
            )

    def _remember(self, obtained: Obtained) -> None:
        self._operator.kling_task_id = obtained.kling_task_id
        self._submitted_at = obtained.submitted_at
        # The log first: should XCom be out of reach, the id is still there to be read.
        self._log.info("Kling task id: %s", obtained.kling_task_id)
        with going_on(self._log, f"XCom {XCOM_TASK_ID!r} could not be written"):
            self._context["ti"].xcom_push(key=XCOM_TASK_ID, value=obtained.kling_task_id)
        self._show(CardState.SUBMITTED, obtained.kling_task_id)
        with going_on(self._log, "The link to the video could not be shown"):
            self._push_link(obtained.kling_task_id, obtained.task)

    def _forget(self) -> None:
        """Begin anew: of what goes on now, nothing is bought yet."""
        self._operator.kling_task_id = None
        self._submitted_at = None

    def show_failure(self, error: BaseException) -> None:
        """Leave a card that says why this attempt ends without a video."""
        leave_card(
            self._context,
            lambda: error_card(
                error,
                self.asked,
                kling_task_id=self.kling_task_id,
                submitted_at=self._submitted_at,
                waits=self._operator.wait_for_completion,
                is_submitting=self._hook.is_submitting,
            ),
            log=self._log,
        )

    def _show(self, state: CardState, kling_task_id: str | None = None) -> None:
        asked = self.asked
        if asked is not None:
            leave_card(
                self._context,
                lambda: asked_card(
                    asked,
                    kling_task_id=kling_task_id,
                    state=state,
                    submitted_at=self._submitted_at,
                    waits=self._operator.wait_for_completion,
                    keeps_secrets=self._goes_on_from_card(state),
                ),
                log=self._log,
            )

    def _goes_on_from_card(self, state: CardState) -> bool:
        pauses = state is CardState.QUEUED or (
            state is CardState.SUBMITTED and self._operator.wait_for_completion
        )
        return pauses and self._operator.deferrable and self._operator.goes_on_from_xcom

    def _show_result(self, result: dict[str, Any]) -> None:
        leave_card(
            self._context,
            lambda: result_card(
                result, submitted_at=self._submitted_at, waits=self._operator.wait_for_completion
            ),
            log=self._log,
        )

    @property
    def asked(self) -> Asked | None:
        """What was asked for, None where that is not known any more."""
        return self._order.asked if self._order is not None else self._asked_before

    @cached_property
    def _asked_before(self) -> Asked | None:
        return asked_before(self._context)

    def _wait(self, obtained: Obtained, limits: PauseEvent) -> Over:
        waiting = Waiting(
            obtained.kling_task_id,
            deadline=min(obtained.deadline, limits.attempt_ends_at),
            poll_interval=self._poll_interval,
            started=obtained.submitted_at,
            max_failures=self._max_failures,
        )
        return self._follow(waiting, obtained)

    def _follow(self, waiting: Waiting, obtained: Obtained) -> Over:
        try:
            return follow(
                self._operator,
                self._hook,
                waiting,
                deferrable=self._operator.deferrable,
                known=obtained.task,
                is_called_back=self._operator.callback,
                unrecorded=None if obtained.is_recorded else obtained.submission,
            )
        except KlingError as error:
            raise self._settlement.lost_sight(error, obtained) from error.__cause__

    def _known(self, obtained: Obtained) -> VideoTask:
        try:
            return obtained.task or self._hook.get_task(obtained.kling_task_id)
        except KlingError as error:
            raise self._settlement.lost_sight(error, obtained) from error.__cause__

    def _deliver(self, obtained: Obtained, task: VideoTask) -> dict[str, Any]:
        try:
            result = self._delivery.deliver(task, self.asked, is_again=obtained.was_delivered)
        except DownloadError as error:
            self._settlement.say_what_a_retry_does(error, obtained)
            raise
        self._submission.delivered(obtained)
        self._show_result(result)
        return result

    def _pause(self, error: RateLimitedError | TooManyTasksError, limits: PauseEvent) -> None:
        """
        Wait until a busy service may be asked again, without holding a worker where the task is deferrable.

        :raises KlingError: the error itself, where that would be after the deadline or cannot help.
        """
        if not error.retryable:
            raise error  # the service says that asking again cannot help, however busy that sounds
        now = time.time()
        until = now + busy_pause(error)
        if until >= min(limits.deadline, limits.attempt_ends_at):
            error.next_step = "Nothing was billed. There is no time left for another try; a retry asks again."
            raise error
        self._forget()
        self._log.info("%s. Asking again in %.0f s.", error.what, until - now)
        self._show(CardState.QUEUED)
        if self._operator.deferrable:
            # Imported here: who only reads a Dag needs no trigger.
            from airflow_provider_kling.triggers.kling import KlingPauseTrigger

            if self._order is not None:
                limits = replace(limits, uploads=self._order.uploads)
            self._operator.defer(
                trigger=KlingPauseTrigger(until=until, **limits.to_dict()),
                method_name="execute_again",
                timeout=timedelta(seconds=until - now) + DEFER_NET,
            )
        time.sleep(until - now)

    def _push_link(self, kling_task_id: str, task: VideoTask | None) -> None:
        KlingVideoLink.push(
            self._context,
            kling_task_id,
            task.video_url if task else None,
            base_url=self._hook.settings.base_url,
            stays=self._operator.wait_for_completion and not self._operator.deferrable,
        )


def busy_pause(error: KlingError) -> float:
    """Return for how many seconds to leave a busy service alone."""
    return max(error.retry_after or 0, BUSY_PAUSE) * random.uniform(1, 1.5)  # noqa: S311


def asked_before(context: Context) -> Asked | None:
    """Return what this attempt asked for before it was deferred, None where that is not to be had."""
    try:
        told = own_xcom(context, XCOM_VIDEO)
    except Exception:  # noqa: BLE001 - the video is paid for and must not be lost for want of its description
        return None
    return Asked.from_dict(told)
