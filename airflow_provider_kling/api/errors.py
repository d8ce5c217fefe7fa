"""
The error tree, and the one place that decides which answer becomes which error.

Two families tell what was paid. Errors found before any money is spent are also ``ValueError``;
errors about a task that the service accepted are :class:`KlingTaskError`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Self

if TYPE_CHECKING:
    from airflow_provider_kling.api.request import Fault

EXCERPT_CHARACTERS = 200
"""How much of an unreadable answer an error quotes, in characters."""


class Operation(StrEnum):
    """What a call to the service was for. Only :attr:`CREATE` costs money."""

    CREATE = "create"
    QUERY = "query"
    UPLOAD = "upload"
    BALANCE = "balance"
    RECORD = "record"
    MODELS = "models"
    DOWNLOAD = "download"


class Paid(StrEnum):
    """What an error means for the bill."""

    NO = "no"
    YES = "yes"
    MAYBE = "maybe"


_NOTHING_WAS_SENT = re.compile(
    r"\bNothing was sent(?: and nothing was billed)?\.\s*|,? (?:so|and) nothing was sent\b"
)
"""How errors say that before any money is spent."""


class KlingError(Exception):
    """
    Base of all errors of this provider.

    :param what: what happened, one sentence.
    :param task_id: the service's id of the task concerned.
    :param code: the HTTP status, the body's code or the ``failCode`` that the service gave.
    :param service_message: the service's own words.
    :param next_step: what the reader should do, and what a retry will do. The class has a default.
    :param retryable: whether another attempt can help. The class has a default.
    :param paid: what it means for the bill. The class has a default.
    :param retry_after: seconds that the service asked to wait before the next call.
    """

    default_retryable: ClassVar[bool] = False
    default_paid: ClassVar[Paid] = Paid.NO
    default_next_step: ClassVar[str] = ""
    outcome_unknown: ClassVar[bool] = False
    """True where a POST may or may not have created a task."""

    def __init__(
        self,
        what: str,
        *,
        task_id: str | None = None,
        code: str | int | None = None,
        service_message: str | None = None,
        next_step: str | None = None,
        retryable: bool | None = None,
        paid: Paid | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.what = what
        self.task_id = task_id
        self.code = code
        self.service_message = service_message
        self.next_step = self.default_next_step if next_step is None else next_step
        self.retryable = self.default_retryable if retryable is None else retryable
        self.paid = self.default_paid if paid is None else paid
        self.retry_after = retry_after
        super().__init__(what)

    def __str__(self) -> str:
        facts = []
        if self.task_id and self.task_id not in self.what:
            facts.append(f"Kling task id {self.task_id}")
        if self.code is not None:
            facts.append(f"code {self.code}")
        sentence = self.what.rstrip(".")
        if facts:
            sentence += f" ({', '.join(facts)})"
        sentence += "."
        if self.service_message:
            sentence += f" The service says: {self.service_message!r}."
        if self.next_step:
            sentence += f" {self.next_step}"
        return sentence

    def take_back_that_nothing_was_sent(self) -> None:
        """Leave it out of what to do next: a video was asked for before this happened."""
        self.next_step = _NOTHING_WAS_SENT.sub("", self.next_step).strip()

    def tell_that_the_video_goes_on(self, kling_task_id: str) -> None:
        """Tell of the video that could not be asked about: what keeps us from asking does not stop the service."""
        self.task_id = self.task_id or kling_task_id
        if self.paid is not Paid.NO:
            return  # it has told
        self.paid = Paid.MAYBE
        self.take_back_that_nothing_was_sent()
        self.next_step += " The video was asked for before: it goes on, and is billed when it is completed."


class InvalidRequestError(KlingError, ValueError):
    """
    The request breaks the service's rules; nothing was sent.

    :param faults: every fault found, each with its field, its value and what is allowed.
    """

    default_next_step = "Nothing was sent and nothing was billed. Correct the arguments; a retry cannot help."

    def __init__(self, faults: Sequence[Fault]) -> None:
        count = f"{len(faults)} fault" + ("s" if len(faults) > 1 else "")
        super().__init__(f"The video request has {count}")
        self.faults = tuple(faults)

    def __str__(self) -> str:
        return "\n".join([f"{self.what}. {self.next_step}", *(f"- {fault}" for fault in self.faults)])

    def __reduce__(self) -> tuple[type[Self], tuple[tuple[Fault, ...]]]:
        return type(self), (self.faults,)


class ConnectionSettingsError(KlingError, ValueError):
    """The Airflow connection lacks something or holds something unusable; nothing was sent."""


class ConnectionLookupError(KlingError):
    """Airflow could not be asked for the connection; that says nothing about whether it exists."""

    default_retryable = True
    default_next_step = "Nothing was sent and nothing was billed. A retry looks it up again."


class ServiceError(KlingError):
    """A call to the service did not give a usable answer."""


class BadRequestError(ServiceError):
    """The service refused a parameter (400)."""

    default_next_step = "Correct the request; a retry cannot help."


class KeyRefusedError(ServiceError):
    """The service refused the key (401, 403)."""

    default_next_step = "Put a valid key into the connection's password, then clear the task."


class NoCreditsError(ServiceError):
    """The account has too few credits (402)."""

    default_next_step = (
        "Top up the account at https://apimodels.app, then clear the task; a retry before that cannot help."
    )


class TaskNotFoundError(ServiceError):
    """The service does not know this task id (404)."""

    default_next_step = (
        "Check that the connection is of the account that made the task. The service keeps results for "
        "7 days only. A retry cannot help."
    )

    def tell_that_nothing_is_known(self, kling_task_id: str) -> None:
        """Tell of a task that somebody else is said to have made: whether there ever was one, nobody knows here."""
        self.task_id = self.task_id or kling_task_id
        self.paid = Paid.MAYBE
        self.next_step = (
            "Nothing is known of its video, nor of what that cost. Check the task id, and that the connection is of "
            "the account that made the task. The service keeps results for 7 days only. A retry cannot help."
        )


class RateLimitedError(ServiceError):
    """Too many requests, or too many tasks at once (429, or upstream code 1303). Nothing was created."""

    default_retryable = True
    default_next_step = "The call can be made again a little later."


class ServiceUnavailableError(ServiceError):
    """The service has a fault of its own (5xx), or a query was cut off."""

    default_retryable = True
    default_next_step = "This says nothing about the video. The call can be made again."


class UnreadableAnswerError(ServiceError):
    """What came back is not an answer of this service: HTML, nothing, or another shape."""

    default_retryable = True
    default_next_step = (
        "Check that the connection's host is the base URL of the service, "
        "by default https://apimodels.app/api/v1, and that no proxy answers in its place."
    )


class UnreachableError(ServiceError):
    """The request never left: connection refused, unknown host, or no TLS session. It is safe to repeat."""

    default_retryable = True
    default_next_step = (
        "The request was not sent and nothing was billed. Check the connection's host, TLS settings and "
        "proxy; a retry asks again."
    )


class UnknownSubmissionError(ServiceError):
    """
    The request to make a video was sent, and no usable answer came back.

    The service has no list of tasks and no idempotency key, so nobody can tell whether a task was created.
    """

    default_paid = Paid.MAYBE
    outcome_unknown = True
    default_next_step = (
        "A video may have been created and may be billed. Look at the account's records at "
        "https://apimodels.app before you ask again: every further request is billed as a video of its own."
    )


class KlingTaskError(KlingError):
    """An error about a task that the service had accepted."""


class TaskFailedError(KlingTaskError):
    """The service reports the task as failed. Failed tasks are not billed."""

    default_retryable = True
    default_next_step = "A failed task is not billed. A retry asks for the video again."


class ModerationError(TaskFailedError):
    """The service refused the content."""

    default_retryable = False
    default_next_step = (
        "A failed task is not billed. Change the prompt or the references; the same request fails again."
    )


class InvalidInputError(TaskFailedError):
    """The service could not use the request's input, such as a reference that it cannot fetch."""

    default_retryable = False
    default_next_step = (
        "A failed task is not billed. Correct the input (can the service fetch every reference?); "
        "the same request fails again."
    )


class TooManyTasksError(TaskFailedError):
    """The account runs as many tasks as it may; the service did not start this one."""

    default_next_step = (
        "A failed task is not billed. A retry asks again: give the tasks a pool with fewer slots, "
        "or a longer retry_delay."
    )


class TaskTimeoutError(KlingTaskError):
    """The deadline has passed and the task is still running."""

    default_retryable = True
    default_paid = Paid.MAYBE
    default_next_step = "The service has no cancel: the video may still be completed and billed."


class LostContactError(KlingTaskError):
    """The service could not be asked about the task several times in a row. The task itself goes on."""

    default_retryable = True
    default_paid = Paid.MAYBE
    default_next_step = "The video is not affected: it may be completed and billed."


class NoResultError(KlingTaskError):
    """The service reports the task as completed, but gives no link to a video."""

    default_retryable = True
    default_paid = Paid.YES
    default_next_step = "The video was billed. Ask for the task once more later, or report it to the service."


class DownloadError(KlingTaskError):
    """The video is paid for, but its file could not be fetched or written."""

    default_retryable = True
    default_paid = Paid.YES
    default_next_step = "The video was billed, and its link is good for 7 days."


class ResultExpiredError(DownloadError):
    """The link to the file is dead (403, 404, 410): results are deleted after 7 days."""

    default_retryable = False
    default_next_step = (
        "The video was billed; the service deletes results after 7 days. If it was completed more recently "
        "than that, ask for the task once more to get a fresh link."
    )


FAIL_CODES = (
    "CONTENT_MODERATION",
    "INVALID_INPUT",
    "UPSTREAM_BUSY",
    "UPSTREAM_FAILED",
    "TIMEOUT",
    "INTERNAL_ERROR",
    "OTHER",
)
"""The codes that the service documents for failed tasks."""
_MODERATION_WORDS = re.compile(r"policy|safety|moderation|sensitive|prohibited|nsfw", re.IGNORECASE)
_CONCURRENCY_WORDS = re.compile(
    r"concurren|too many (?:running )?tasks|\b1303\b|parallel task", re.IGNORECASE
)
_CONCURRENCY_CODE = "1303"
_PERMANENT_FAIL_CODES: dict[str, type[TaskFailedError]] = {
    "CONTENT_MODERATION": ModerationError,
    "INVALID_INPUT": InvalidInputError,
}


def error_for_status(
    operation: Operation,
    status: int,
    *,
    code: str | int | None = None,
    service_message: str | None = None,
    task_id: str | None = None,
    retry_after: float | None = None,
) -> ServiceError:
    """
    Tell what an HTTP status, or the body's ``code`` in its place, means for a call.

    :param operation: what the call was for; a fault of the service leaves a create's outcome unknown.
    :param status: the deciding code, 300 and above.
    :param code: the code to show, where it differs from ``status``.
    :param retry_after: seconds from the ``Retry-After`` header.
    """
    error_class: type[ServiceError]
    what = f"The service answered the {operation} call with {status}"
    if status == 429 or _CONCURRENCY_CODE in (str(status), str(code)):
        error_class, what = RateLimitedError, "The service takes no more requests or tasks at the moment"
    elif status in (401, 403):
        error_class, what = KeyRefusedError, "The service refused the key"
    elif status == 402:
        error_class, what = NoCreditsError, "The account has too few credits"
    elif status == 404 and operation is Operation.QUERY:
        error_class, what = TaskNotFoundError, "The service does not know this task"
    elif status >= 500 or status == 408:
        error_class = UnknownSubmissionError if operation is Operation.CREATE else ServiceUnavailableError
    elif 300 <= status < 400 or status == 404:
        error_class = UnreadableAnswerError
    else:
        error_class, what = BadRequestError, "The service refused the request"
    error = error_class(
        what,
        task_id=task_id,
        code=status if code is None else code,
        service_message=service_message,
        retry_after=retry_after,
    )
    if error_class is UnreadableAnswerError:
        error.retryable = False
    if operation is Operation.CREATE and not error.outcome_unknown:
        error.next_step = f"Nothing was billed. {error.next_step}"
    return error


def error_for_unreadable(
    operation: Operation, excerpt: str, *, status: int, task_id: str | None = None
) -> ServiceError:
    """
    Tell what an answer means that is not in the service's form.

    :param excerpt: the beginning of the answer's body.
    :return: :class:`UnknownSubmissionError` for a create, since the task may exist;
        :class:`UnreadableAnswerError` for everything else.
    """
    shown = " ".join(excerpt.split())[:EXCERPT_CHARACTERS]
    what = f"The answer to the {operation} call (HTTP {status}) is not in the service's form; " + (
        f"it begins: {shown!r}" if shown else "it is empty"
    )
    if operation is Operation.CREATE:
        return UnknownSubmissionError(what, task_id=task_id)
    return UnreadableAnswerError(what, task_id=task_id)


def error_for_transport(
    operation: Operation, detail: str, *, sent: bool, tls: bool = False, task_id: str | None = None
) -> ServiceError:
    """
    Tell what a call that got no answer means.

    :param detail: what the HTTP library said.
    :param sent: False only where the request certainly never left.
    :param tls: whether it was TLS that failed.
    """
    if not sent:
        what = "TLS trouble" if tls else "The service could not be reached"
        return UnreachableError(f"{what} at the {operation} call: {detail}", task_id=task_id)
    if operation is Operation.CREATE:
        return UnknownSubmissionError(f"The connection was lost after the create call was sent: {detail}")
    return ServiceUnavailableError(f"The {operation} call got no answer: {detail}", task_id=task_id)


def error_for_failed_task(
    task_id: str, *, fail_code: str | None, fail_message: str | None, retryable: bool | None = None
) -> TaskFailedError:
    """
    Tell what a task in state ``failed`` means.

    :param retryable: the answer's own ``retryable``; where given, it beats what the code says.
    """
    code = (fail_code or "").upper()
    error_class: type[TaskFailedError]
    if code in _PERMANENT_FAIL_CODES:
        error_class = _PERMANENT_FAIL_CODES[code]
    elif code == _CONCURRENCY_CODE or _CONCURRENCY_WORDS.search(fail_message or ""):
        error_class = TooManyTasksError
    elif not code and _MODERATION_WORDS.search(fail_message or ""):
        error_class = ModerationError
    else:
        error_class = TaskFailedError
    next_step = None
    if retryable is not None and retryable != error_class.default_retryable:
        next_step = "A failed task is not billed. " + (
            "The service says that asking again can help."
            if retryable
            else "The service says that asking again cannot help."
        )
    return error_class(
        f"The service reports task {task_id} as failed",
        task_id=task_id,
        code=fail_code,
        service_message=fail_message,
        retryable=retryable,
        next_step=next_step,
    )
