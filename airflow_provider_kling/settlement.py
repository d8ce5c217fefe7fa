"""What follows from the end of a wait: the video is there, it has to be asked for anew, or there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_kling.api.errors import (
    DownloadError,
    KlingError,
    Paid,
    ResultExpiredError,
    TaskFailedError,
    TaskNotFoundError,
    TooManyTasksError,
)
from airflow_provider_kling.api.task import TaskState, VideoTask
from airflow_provider_kling.submission import OnExpiredResult
from airflow_provider_kling.waiting import Outcome

if TYPE_CHECKING:
    from airflow_provider_kling.delivery import Delivery
    from airflow_provider_kling.submission import Obtained, Submission
    from airflow_provider_kling.waiting import Over


MOST_IDS_NAMED = 10
"""Task ids that one error names. The log has all of them."""


class Settlement:
    """
    Draws the line under a wait, for one video and for many alike.

    :param submission: how the video was asked for.
    :param delivery: what becomes of it.
    :param on_expired_result: what to do where it was paid for and is deleted by now.
    :param log: where to tell about it.
    """

    def __init__(
        self,
        submission: Submission,
        delivery: Delivery,
        *,
        on_expired_result: OnExpiredResult,
        log: Any,
    ) -> None:
        self._submission = submission
        self._delivery = delivery
        self._on_expired_result = on_expired_result
        self._log = log

    def finish(self, obtained: Obtained, over: Over) -> VideoTask | None:
        """
        Return the completed task, or None where another one has to be asked for.

        :raises KlingError: where there will be no video from this attempt.
        """
        try:
            return self._finish(obtained, over)
        except DownloadError as error:
            # Nobody can tell whether it is stored.
            self.say_what_a_retry_does(error, obtained)
            raise

    def _finish(self, obtained: Obtained, over: Over) -> VideoTask | None:
        error = over.error
        if error is None:
            assert over.task is not None  # noqa: S101 - every outcome without an error has a task
            return over.task if self._can_be_had(obtained, over.task) else None
        if (
            isinstance(error, TaskNotFoundError)
            and obtained.is_from_earlier_attempt
            and self._delivery.was_stored(obtained.kling_task_id)
        ):
            self._log.info("The service has forgotten Kling task %s, but its video is stored.", error.task_id)
            return VideoTask(task_id=obtained.kling_task_id, state=TaskState.COMPLETED)
        if isinstance(error, TaskNotFoundError) and obtained.was_delivered:
            self._after_deletion(
                obtained,
                f"Kling task {obtained.kling_task_id} was completed and billed, but the service does not know it "
                "any more",
            )
            return None
        if isinstance(error, TaskFailedError):
            self._submission.release(obtained)
            if (
                obtained.is_from_earlier_attempt
                and error.retryable
                and not isinstance(error, TooManyTasksError)
            ):
                self._log.warning("%s", error)
                return None
        elif over.outcome is Outcome.REFUSED:
            raise self.lost_sight(error, obtained)
        else:
            self.say_what_a_retry_does(error, obtained)
        raise error

    def say_what_a_retry_does(self, error: KlingError, obtained: Obtained) -> None:
        """Add to an error what another attempt makes of the video, and let there be none that would buy a second."""
        if not error.retryable:
            return
        if self._submission.is_remembered(obtained):
            free = "fetches it again" if isinstance(error, DownloadError) else "attaches to it again"
            error.next_step += f" A retry {free} and buys nothing."
        elif error.paid is not Paid.NO:
            # A retry would buy a second video, which nobody asked for.
            error.retryable = False
            error.next_step += f" {not_remembered(obtained.kling_task_id, self._submission.ledger_at)}"

    def lost_sight(self, error: KlingError, obtained: Obtained) -> KlingError:
        """Turn an error that kept a video from being asked about into one that tells of the video."""
        error.tell_that_the_video_goes_on(obtained.kling_task_id)
        if error.retryable:
            self.say_what_a_retry_does(error, obtained)
        elif self._submission.is_remembered(obtained):
            error.next_step += " A clear attaches to it again and buys nothing."
        else:
            error.next_step += f" {not_remembered(obtained.kling_task_id, self._submission.ledger_at)}"
        return error

    def _can_be_had(self, obtained: Obtained, task: VideoTask) -> bool:
        if not obtained.is_from_earlier_attempt or self._delivery.is_there(task):
            return True
        self._after_deletion(
            obtained,
            f"Kling task {task.task_id} is completed and was billed, but the service has deleted its video",
        )
        return False

    def _after_deletion(self, obtained: Obtained, what: str) -> None:
        if self._on_expired_result is OnExpiredResult.FAIL:
            raise ResultExpiredError(
                what,
                task_id=obtained.kling_task_id,
                next_step=(
                    "It cannot be had any more. To have it made and billed once more, set "
                    "on_expired_result='resubmit' and clear this task."
                ),
            )
        self._log.warning("%s. It is asked for and billed again (on_expired_result='resubmit').", what)
        self._submission.release(obtained)


def keep_from_buying_again(
    error: BaseException,
    kling_task_ids: Sequence[str],
    *,
    is_remembered: bool,
    log: Any,
    unnamed: int = 0,
    is_submitting: bool = False,
    ledger_at: str | None = None,
) -> None:
    """
    Let no error of another kind than ours lead to a retry that would buy videos again.

    :param error: what ends the attempt.
    :param kling_task_ids: what the attempt has asked for or taken up.
    :param is_remembered: whether the next attempt will know of them.
    :param log: where to tell about it.
    :param unnamed: how many more it has asked for whose ids this process does not know.
    :param is_submitting: whether one more request was on its way, so that nobody can tell whether it bought a video.
    :param ledger_at: the ledger that does not know the one there is; None where there is no ledger.
    :raises AirflowFailException: in the place of the error, where there may be no retry.
    """
    nothing_is_known = not kling_task_ids and not unnamed
    if nothing_is_known and not is_submitting:
        return
    if nothing_is_known:
        what = "A request was being sent: a video may have been created and may be billed"
        retry = "A retry does what on_unknown_submission says."
        why_not = (
            "This submission is not remembered, so a retry could buy a second video and is not made. Look at the "
            "account's records at https://apimodels.app before you clear this task."
        )
    elif len(kling_task_ids) == 1 and not unnamed:
        what = f"Kling task {kling_task_ids[0]} goes on, and will be billed when it is completed"
        retry = "A retry attaches to it again and buys nothing."
        why_not = not_remembered(kling_task_ids[0], ledger_at)
    else:
        named = ", ".join(kling_task_ids[:MOST_IDS_NAMED])
        if more := max(0, len(kling_task_ids) - MOST_IDS_NAMED) + unnamed:
            named += (
                f" and {more} more, whose ids are in the log"
                if named
                else f"{more}, whose ids are in the log"
            )
        what = f"The Kling tasks of this attempt go on, and each is billed when it is completed: {named}"
        retry = "A retry takes up what is paid for and asks only for what is not."
        why_not = (
            "These submissions are not remembered, so a retry would buy them again and is not made. Store them with "
            "KlingDownloadVideoOperator, mapped over these task ids."
        )
    if is_submitting and not nothing_is_known:
        what += ". One more request was being sent, whose video may be billed too"
    if is_remembered:
        log.error("%s. %s", what, retry)
        return
    raise AirflowFailException(f"{type(error).__name__}: {error}. {what}. {why_not}") from error


def not_remembered(kling_task_id: str, ledger_at: str | None) -> str:
    """
    Say why there is no retry for a video that no ledger remembers, and how to get it all the same.

    :param ledger_at: the ledger that could not take its id; None where there is no ledger.
    """
    if ledger_at is None:
        why = (
            "This submission is not remembered, so a retry would buy a second video and is not made; a clear buys "
            "one."
        )
    else:
        why = (
            f"The ledger at {ledger_at} does not hold its id, so a retry would not know of it and is not made; a clear "
            "of this task does what on_unknown_submission says."
        )
    return (
        f"{why} Store this one with KlingDownloadVideoOperator(kling_task_id={kling_task_id!r}), or wait for it with "
        "KlingVideoSensor."
    )
