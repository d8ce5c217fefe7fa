"""The errors that a Dag author meets, and how each of them ends an Airflow task."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
from airflow_provider_kling.budget import BudgetExceededError, InsufficientBalanceError
from airflow_provider_kling.hooks.upload import FileChangedError, FileUnavailableError, UnusableFileError
from airflow_provider_kling.ledger import LedgerError

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
    "InsufficientBalanceError",
    "InvalidInputError",
    "InvalidRequestError",
    "KeyRefusedError",
    "KlingError",
    "KlingTaskError",
    "LedgerError",
    "LostContactError",
    "MediaLibraryMissingError",
    "ModerationError",
    "NoCreditsError",
    "NoResultError",
    "RateLimitedError",
    "ResultExpiredError",
    "ServiceError",
    "ServiceUnavailableError",
    "TaskFailedError",
    "TaskNotFoundError",
    "TaskTimeoutError",
    "TooManyTasksError",
    "UnknownSubmissionError",
    "UnreachableError",
    "UnreadableAnswerError",
    "UnusableFileError",
    "raising_to_airflow",
    "to_airflow",
]


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
def raising_to_airflow() -> Iterator[None]:
    """Turn each error of this package that leaves the block into what a task should raise."""
    try:
        yield
    except KlingError as error:
        raise to_airflow(error)  # noqa: B904 - it has its cause, or is the error itself
