"""The errors that a Dag author meets, and how each of them ends an Airflow task."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_provider_kling.api.errors import (
    BadRequestError,
    ConnectionLookupError,
    ConnectionSettingsError,
    DownloadError,
    InvalidInputError,
    InvalidRequestError,
    KeyRefusedError,
    KlingError,
    KlingTaskError,
    LostContactError,
    ModerationError,
    NoCreditsError,
    NoResultError,
    RateLimitedError,
    ResultExpiredError,
    ServiceError,
    ServiceUnavailableError,
    TaskFailedError,
    TaskNotFoundError,
    TaskTimeoutError,
    TooManyTasksError,
    UnknownSubmissionError,
    UnreachableError,
    UnreadableAnswerError,
)
from airflow_provider_kling.api.media import MediaLibraryMissingError
from airflow_provider_kling.balance import BalanceTooLowError, BalanceUnknownError
from airflow_provider_kling.batch_result import VideosFailedError
from airflow_provider_kling.budget import BudgetExceededError, InsufficientBalanceError
from airflow_provider_kling.hooks.upload import FileChangedError, FileUnavailableError, UnusableFileError
from airflow_provider_kling.ledger import LedgerError
from airflow_provider_kling.submission import KilledError

if TYPE_CHECKING:
    from airflow_provider_kling.waiting import TaskLog

__all__ = [
    "BadRequestError",
    "BalanceTooLowError",
    "BalanceUnknownError",
    "BudgetExceededError",
    "ConnectionLookupError",
    "ConnectionSettingsError",
    "DownloadError",
    "FileChangedError",
    "FileUnavailableError",
    "FunctionNotCalledAgainError",
    "InsufficientBalanceError",
    "InvalidInputError",
    "InvalidRequestError",
    "KeyRefusedError",
    "KilledError",
    "KlingError",
    "KlingTaskError",
    "LedgerError",
    "LostContactError",
    "MediaLibraryMissingError",
    "ModerationError",
    "NoCreditsError",
    "NoResultError",
    "OutputUnusableError",
    "RateLimitedError",
    "ResultExpiredError",
    "ServiceError",
    "ServiceUnavailableError",
    "StorageError",
    "TaskFailedError",
    "TaskNotFoundError",
    "TaskTimeoutError",
    "TooManyTasksError",
    "UnknownSubmissionError",
    "UnreachableError",
    "UnreadableAnswerError",
    "UnusableFileError",
    "VideosFailedError",
    "going_on",
    "raising_to_airflow",
    "to_airflow",
]


STAYS_PAID = "The video is paid for, and its link is good for 7 days."


class FunctionNotCalledAgainError(KlingError):
    """An attempt goes on in another process, and what its function had returned is not to be had any more."""

    default_retryable = True
    default_next_step = "Nothing was billed. A retry calls the function again and asks for the video then."


class OutputUnusableError(KlingError, ValueError):
    """There is no such place for results; nothing was sent."""

    default_next_step = (
        "This attempt has sent nothing. Install the Airflow provider for that storage and set its connection, or "
        "correct output_path."
    )


class StorageError(DownloadError):
    """The video is paid for, but it could not be fetched, or the place where it belongs did not take it."""

    default_next_step = f"Make sure that the place can be read and written and has room. {STAYS_PAID}"


def to_airflow(error: KlingError) -> Exception:
    """
    Return what a task should raise for an error.

    :return: the error itself where another attempt can help, so that Airflow retries; else an
        ``AirflowFailException`` with the same text, raised ``from`` the error, which ends the task at once.
    """
    if error.retryable:
        return error
    failure = AirflowFailException(str(error))
    failure.__cause__ = error
    return failure


@contextmanager
def going_on(log: TaskLog, what: str) -> Iterator[None]:
    """
    Let what fails in the block be told and stop nothing: a video is paid for, and this is not worth losing it.

    :param what: what cannot be done then, as the beginning of a sentence.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is
        log.log(logging.WARNING, "%s: %s: %s. The task goes on.", what, type(error).__name__, error)


@contextmanager
def raising_to_airflow() -> Iterator[None]:
    """Turn each error of this package that leaves the block into what a task should raise."""
    try:
        yield
    except KlingError as error:
        raise to_airflow(error)  # noqa: B904 - it has its cause, or is the error itself
