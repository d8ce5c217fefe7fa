"""
Asks for a video exactly once: what an earlier attempt left in the ledger decides whether to ask, to attach or to stop.

The table in ``docs/pay-once.md`` says the same in words.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from airflow_provider_kling import metrics
from airflow_provider_kling.api.errors import (
    InvalidRequestError,
    KlingError,
    Paid,
    UnknownSubmissionError,
)
from airflow_provider_kling.callbacks import submission_name
from airflow_provider_kling.hooks.upload import FileUnavailableError
from airflow_provider_kling.ledger import Ledger, LedgerError, Record, RecordState, fingerprint

if TYPE_CHECKING:
    from airflow_provider_kling.api.task import VideoTask
    from airflow_provider_kling.callbacks import CallbackAddress
    from airflow_provider_kling.hooks.kling import KlingHook
    from airflow_provider_kling.order import Order
    from airflow_provider_kling.waiting import WaitEvent

FRESH_SECONDS = 5.0
"""Age of an intent from which it is written anew before the POST: an attempt may have been frozen in between."""
GRACE_MARGIN = 30.0
"""Seconds, beyond a call's own time limits, after which a POST of another attempt counts as answered or lost."""
_LOOK_INTERVAL = 2.0


class OnUnknownSubmission(StrEnum):
    """What an attempt does that finds a POST without an outcome."""

    FAIL = "fail"
    RESUBMIT = "resubmit"


class OnExpiredResult(StrEnum):
    """What an attempt does that finds its video made and paid for, but deleted by the service."""

    FAIL = "fail"
    RESUBMIT = "resubmit"


class KilledError(KlingError):
    """The Airflow task was killed before its request was sent."""

    default_retryable = True
    default_next_step = "Nothing was sent and nothing was billed."


@dataclass(frozen=True)
class Obtained:
    """
    A task at the service that this attempt follows.

    :param kling_task_id: the service's task id.
    :param deadline: until when to wait for it, epoch seconds.
    :param submitted_at: when the service took it, epoch seconds.
    :param task: the create answer, None where another process got it.
    :param is_from_earlier_attempt: whether an earlier attempt asked for it.
    :param record: what the ledger holds of it, None where that is not known.
    :param is_recorded: whether the ledger has taken its id, as far as is known.
    :param submission: where it has not: what tells the intent apart that the id belongs to; see
        :func:`~airflow_provider_kling.callbacks.submission_name`. None where that is not known.
    """

    kling_task_id: str
    deadline: float
    submitted_at: float
    task: VideoTask | None = None
    is_from_earlier_attempt: bool = False
    record: Record | None = None
    is_recorded: bool = True
    submission: str | None = None

    @property
    def was_delivered(self) -> bool:
        """Whether an earlier attempt has delivered its video."""
        return self.record is not None and self.record.state is RecordState.COMPLETED


class Submission:
    """
    One attempt's way to its video.

    :param hook: the service.
    :param ledger: what earlier attempts left.
    :param order: what is asked for; None where an attempt only follows what it asked for before.
    :param on_unknown_submission: what to do about a POST without an outcome.
    :param log: where to tell about it.
    :param is_killed: whether the Airflow task has been killed.
    :param callback: makes the address that the service calls; None for the one in the request, if any.
    :param is_brought_home: whether a callback can complete the ledger, should the answer to the POST be lost.
    """

    def __init__(
        self,
        hook: KlingHook,
        ledger: Ledger,
        order: Order | None,
        *,
        on_unknown_submission: OnUnknownSubmission,
        log: Any,
        is_killed: Callable[[], bool],
        callback: CallbackAddress | None = None,
        is_brought_home: bool = False,
    ) -> None:
        self._hook = hook
        self._ledger = ledger
        self._order = order
        self._on_unknown = on_unknown_submission
        self._log = log
        self._is_killed = is_killed
        self._callback = callback
        self._is_brought_home = is_brought_home
        self.obtained: Obtained | None = None
        """What this attempt follows, from the moment on in which the service took it."""

    def obtain(self, *, deadline: float) -> Obtained:
        """
        Ask for the video, or take up what an earlier attempt asked for.

        :param deadline: until when to wait for a video that is asked for now, epoch seconds.
        :raises LedgerError: the ledger cannot tell; nothing was sent.
        :raises UnknownSubmissionError: a request was sent, and nobody can tell what became of it.
        :raises KlingError: the service did not take the request; nothing was billed.
        """
        self.obtained = None
        while True:
            record = self._ledger.find()
            if record is None:
                return self._submit(None, deadline)
            if not self._is_of_this_order(record):
                self._log.warning(
                    "An earlier attempt asked for something else, or through another connection: Kling task %s. "
                    "That video is left alone and may be billed; this one is asked for now.",
                    record.kling_task_id or "of unknown id",
                )
                return self._submit(record, deadline)
            if record.state is RecordState.FREE:
                return self._submit(record, deadline)
            if record.kling_task_id is not None:
                return self._attach(record, record.kling_task_id)
            if self._may_still_be_answered(record):
                time.sleep(_LOOK_INTERVAL)
                continue
            return self._after_unknown(record, deadline)

    def _is_of_this_order(self, record: Record) -> bool:
        try:
            return record.fingerprint == self._fingerprint()
        except (InvalidRequestError, FileUnavailableError) as error:
            if record.kling_task_id is None or record.state is RecordState.FREE:
                raise
            # A file that was uploaded may be gone by now. That must not cost the video that it was uploaded for.
            self._log.warning("%s\nAn earlier attempt could still use it, so its video is taken up.", error)
            return True

    def _fingerprint(self) -> str:
        return fingerprint(
            self._placed().identity(),
            kling_conn_id=self._hook.kling_conn_id,
            base_url=self._hook.settings.base_url,
        )

    def _placed(self) -> Order:
        assert self._order is not None  # noqa: S101 - who only follows asks for nothing
        return self._order

    def resumed(self, event: WaitEvent) -> Obtained:
        """Return the task that this attempt has waited for in the triggerer."""
        obtained = Obtained(
            event.kling_task_id,
            event.deadline,
            event.submitted_at,
            # The trigger is told where the ledger had not taken the id.
            is_recorded=event.unrecorded is None,
            submission=event.unrecorded,
        )
        try:
            record = self._ledger.find()
        except LedgerError as error:
            self._log.warning("%s", error.what)
        else:
            if record is not None and record.kling_task_id == event.kling_task_id:
                obtained = replace(obtained, record=record, is_recorded=True)
            else:
                obtained = self.keep(replace(obtained, is_recorded=False))
        self.obtained = obtained
        return obtained

    def keep(self, obtained: Obtained) -> Obtained:
        """
        Write a task's id into the ledger, where that could not take it before.

        Only into the intent that it belongs to: another attempt may have taken over the ledger since.

        :return: it, with what the ledger holds of it now.
        """
        if obtained.is_recorded:
            return obtained
        try:
            record = self._ledger.find()
            if record is None or obtained.submission != submission_name(record.owner, record.generation):
                return obtained
            if record.state is RecordState.INTENT and record.kling_task_id is None:
                record = self._ledger.submitted(record, obtained.kling_task_id, at=obtained.submitted_at)
        except LedgerError as error:
            self._log.error("%s", error)
            return obtained
        if record.kling_task_id != obtained.kling_task_id:
            return obtained
        return replace(obtained, record=record, is_recorded=True)

    def is_remembered(self, obtained: Obtained) -> bool:
        """Tell whether the next attempt will know of a task, after another try to let it know."""
        return self._ledger.is_kept and self.keep(obtained).is_recorded

    @property
    def ledger_at(self) -> str | None:
        """Where a person finds the ledger; None where there is none that outlives the attempt."""
        return self._ledger.place if self._ledger.is_kept else None

    def delivered(self, obtained: Obtained) -> None:
        """Note that the video was delivered."""
        record = self.keep(obtained).record
        if record is None:
            return
        try:
            self._ledger.completed(record)
        except LedgerError as error:
            self._log.warning("%s The video is delivered all the same.", error.what)

    def release(self, obtained: Obtained) -> None:
        """Note that the task is of no use any more, so that the next submission may take its place."""
        self.obtained = None
        record = self.keep(obtained).record
        if record is not None:
            self._withdraw(record)

    def _submit(self, replaced: Record | None, deadline: float) -> Obtained:
        request = self._placed().ready()
        record = self._ledger.intend(self._fingerprint(), deadline=deadline, replaced=replaced)

        def before_post() -> None:
            nonlocal record
            if self._is_killed():
                raise KilledError("The Airflow task was killed before the request was sent")
            if time.time() - record.intent_at > FRESH_SECONDS:
                record = self._ledger.renew(record)

        try:
            if self._callback is not None:
                request = request.model_copy(update={"callback_url": self._callback.of(record)})
            task = self._hook.submit(request, before_post=before_post)
        except UnknownSubmissionError as error:
            self._explain(error)
            raise
        except KlingError:
            self._withdraw(record)
            raise
        # Nothing may come between the answer and this.
        self.obtained = Obtained(
            task.task_id,
            deadline,
            time.time(),
            task,
            is_recorded=False,
            submission=submission_name(record.owner, record.generation),
        )
        self.obtained = self._keep_id(self.obtained, record)
        metrics.submitted(request, self._placed().cost)
        return self.obtained

    def _keep_id(self, obtained: Obtained, record: Record) -> Obtained:
        try:
            record = self._ledger.submitted(record, obtained.kling_task_id, at=obtained.submitted_at)
        except LedgerError as error:
            # The wait can go on: this process knows the id, and the trigger will.
            self._log.error("%s", error)
            return obtained
        return replace(obtained, record=record, is_recorded=True)

    def _withdraw(self, record: Record) -> None:
        try:
            self._ledger.free(record)
        except LedgerError as error:
            self._log.error(
                "%s It was to be noted that nothing is bought; the next attempt finds that out by itself where it can.",
                error.what,
            )

    def _attach(self, record: Record, kling_task_id: str) -> Obtained:
        self._log.info(
            "An earlier attempt asked for this video already: attaching to Kling task %s, so nothing is billed "
            "twice. The ledger is at %s.",
            kling_task_id,
            self._ledger.place,
        )
        self.obtained = Obtained(
            kling_task_id,
            record.deadline,
            record.submitted_at or record.intent_at,
            is_from_earlier_attempt=True,
            record=record,
        )
        return self.obtained

    def _may_still_be_answered(self, record: Record) -> bool:
        settings = self._hook.settings
        grace = settings.connect_timeout + settings.read_timeout + GRACE_MARGIN
        return time.time() < record.intent_at + grace

    def _after_unknown(self, record: Record, deadline: float) -> Obtained:
        if self._on_unknown is OnUnknownSubmission.RESUBMIT:
            self._log.warning(
                "An earlier attempt sent this request and never learnt what became of it. It is sent again "
                "(on_unknown_submission='resubmit'): if the service had taken it, both videos are billed."
            )
            return self._submit(record, deadline)
        error = UnknownSubmissionError(
            "An earlier attempt of this task sent the request and never learnt what became of it"
        )
        self._explain(error)
        raise error

    def _explain(self, error: UnknownSubmissionError) -> None:
        if self._on_unknown is OnUnknownSubmission.RESUBMIT and self._ledger.is_kept:
            error.retryable = True
            error.next_step = (
                "A video may have been created and may be billed. A retry sends the request again "
                "(on_unknown_submission='resubmit'), and then both videos may be billed."
            )
        elif self._is_brought_home and self._ledger.is_kept:
            error.retryable = True
            error.next_step = (
                "A video may have been created and may be billed, so the request is not sent again. If there is one, "
                "its callback brings its id to the ledger when it is over, and a retry or a clear of this task after "
                f"that delivers it. The ledger is at {self._ledger.place}; the account's records are at "
                "https://apimodels.app."
            )
        else:
            error.next_step = (
                "A video may have been created and may be billed, so the request is not sent again by itself. "
                "Look at the account's records at https://apimodels.app. If the video is there, wait for it with "
                "KlingVideoSensor and its task id. If it is not, set on_unknown_submission='resubmit' and clear this "
                f"task. The ledger is at {self._ledger.place}."
            )


@contextmanager
def telling_of_earlier_attempts(ledger: Ledger) -> Iterator[None]:
    """
    Let no error that ends an attempt before it asks the ledger pass as if earlier attempts had bought nothing.

    :raises LedgerError: in the place of the error, where the ledger cannot tell.
    """
    try:
        yield
    except KlingError as error:
        record = ledger.find()
        if error.paid is Paid.NO and record is not None and record.state is not RecordState.FREE:
            error.paid = Paid.MAYBE
            error.task_id = error.task_id or record.kling_task_id
            error.take_back_that_nothing_was_sent()
            error.next_step += (
                " An earlier attempt sent a request whose outcome is not known: a video may be billed."
                if record.kling_task_id is None
                else f" An earlier attempt asked for Kling task {record.kling_task_id}, which is billed when it is "
                "completed."
            ) + (
                f" The ledger at {ledger.place} holds it: the next attempt takes it up and does not buy it again, if "
                "it asks for the same."
            )
        raise
