"""Which answer becomes which error, what it costs, and whether its text helps whoever reads it."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_kling.api import errors
from airflow_provider_kling.api.errors import (
    BadRequestError,
    ConnectionSettingsError,
    InvalidInputError,
    InvalidRequestError,
    KeyRefusedError,
    KlingError,
    KlingTaskError,
    ModerationError,
    NoCreditsError,
    Operation,
    Paid,
    RateLimitedError,
    ServiceError,
    ServiceUnavailableError,
    TaskFailedError,
    TaskNotFoundError,
    TooManyTasksError,
    UnknownSubmissionError,
    UnreachableError,
    UnreadableAnswerError,
    error_for_failed_task,
    error_for_status,
    error_for_transport,
    error_for_unreadable,
)
from airflow_provider_kling.api.request import Fault

from .strategies import BRIEF

CREATE, QUERY = Operation.CREATE, Operation.QUERY


def all_classes(base: type[KlingError] = KlingError) -> Iterator[type[KlingError]]:
    if base.__module__ == errors.__name__:
        yield base
    for derived in base.__subclasses__():
        yield from all_classes(derived)


# HTTP statuses and body codes


@pytest.mark.parametrize(
    ("operation", "status", "error_class", "retryable", "paid", "outcome_unknown"),
    [
        (CREATE, 400, BadRequestError, False, Paid.NO, False),
        (QUERY, 400, BadRequestError, False, Paid.NO, False),
        (CREATE, 401, KeyRefusedError, False, Paid.NO, False),
        (QUERY, 401, KeyRefusedError, False, Paid.NO, False),
        (CREATE, 403, KeyRefusedError, False, Paid.NO, False),
        (QUERY, 403, KeyRefusedError, False, Paid.NO, False),
        (CREATE, 402, NoCreditsError, False, Paid.NO, False),
        (QUERY, 402, NoCreditsError, False, Paid.NO, False),
        (CREATE, 404, UnreadableAnswerError, False, Paid.NO, False),
        (QUERY, 404, TaskNotFoundError, False, Paid.NO, False),
        (CREATE, 429, RateLimitedError, True, Paid.NO, False),
        (QUERY, 429, RateLimitedError, True, Paid.NO, False),
        *[
            (CREATE, status, UnknownSubmissionError, False, Paid.MAYBE, True)
            for status in (408, 500, 502, 503, 504, 599)
        ],
        *[
            (QUERY, status, ServiceUnavailableError, True, Paid.NO, False)
            for status in (408, 500, 502, 503, 504, 599)
        ],
        (CREATE, 302, UnreadableAnswerError, False, Paid.NO, False),
        (QUERY, 301, UnreadableAnswerError, False, Paid.NO, False),
        (CREATE, 422, BadRequestError, False, Paid.NO, False),
        (QUERY, 499, BadRequestError, False, Paid.NO, False),
        (CREATE, 1303, RateLimitedError, True, Paid.NO, False),
        (CREATE, 1000, UnknownSubmissionError, False, Paid.MAYBE, True),
        (Operation.UPLOAD, 500, ServiceUnavailableError, True, Paid.NO, False),
        (Operation.RECORD, 404, UnreadableAnswerError, False, Paid.NO, False),
        (Operation.BALANCE, 404, UnreadableAnswerError, False, Paid.NO, False),
    ],
)
def test_each_status_means_one_thing_for_the_task(
    operation: Operation,
    status: int,
    error_class: type[ServiceError],
    retryable: bool,
    paid: Paid,
    outcome_unknown: bool,
) -> None:
    error = error_for_status(
        operation, status, service_message="the services words", task_id="clxxx", retry_after=7.0
    )

    assert type(error) is error_class
    assert (error.retryable, error.paid, error.outcome_unknown) == (retryable, paid, outcome_unknown)
    assert (error.code, error.task_id, error.retry_after) == (status, "clxxx", 7.0)
    for words in ("clxxx", str(status), "the services words", error.next_step):
        assert words in str(error)
    assert error.next_step


def test_the_bodys_own_code_is_shown_where_it_tells_more_than_the_status() -> None:
    error = error_for_status(QUERY, 400, code=1201)

    assert type(error) is BadRequestError
    assert error.code == 1201
    assert "code 1201" in str(error)


@pytest.mark.parametrize("status", [400, 429, 500])
@pytest.mark.parametrize("code", [1303, "1303"])
@pytest.mark.parametrize("operation", [CREATE, QUERY])
def test_too_many_tasks_at_once_means_to_wait_whatever_the_status(
    operation: Operation, status: int, code: int | str
) -> None:
    error = error_for_status(operation, status, code=code)

    assert type(error) is RateLimitedError
    assert not error.outcome_unknown


def test_too_few_credits_say_where_to_top_up() -> None:
    assert "Top up the account at https://apimodels.app" in str(error_for_status(CREATE, 402))


def test_an_unknown_outcome_says_that_asking_again_is_a_video_of_its_own() -> None:
    told = str(error_for_status(CREATE, 503))

    assert "may be billed" in told
    assert "every further request is billed" in told


@BRIEF
@given(st.sampled_from(Operation), st.integers(300, 2000), st.none() | st.integers() | st.text(max_size=5))
def test_every_status_gives_a_service_error_that_says_what_to_do(
    operation: Operation, status: int, code: int | str | None
) -> None:
    error = error_for_status(operation, status, code=code)

    assert isinstance(error, ServiceError)
    assert error.next_step in str(error)
    assert error.next_step
    assert error.outcome_unknown == (error.paid is Paid.MAYBE)
    assert not (error.outcome_unknown and (error.retryable or operation is not CREATE))


# Answers in no known form, and calls without an answer


def test_an_unreadable_answer_to_a_query_can_be_asked_for_again() -> None:
    error = error_for_unreadable(QUERY, "<html>\n  <body>" + "x" * 500, status=200, task_id="clxxx")

    assert type(error) is UnreadableAnswerError
    assert (error.retryable, error.paid, error.outcome_unknown) == (True, Paid.NO, False)
    for words in ("clxxx", "HTTP 200", "<html> <body>xxx", "base URL"):
        assert words in str(error)
    assert "x" * 180 in str(error)
    assert "x" * 200 not in str(error)


def test_an_unreadable_answer_to_a_create_leaves_its_outcome_unknown() -> None:
    error = error_for_unreadable(CREATE, "<html>", status=200)

    assert type(error) is UnknownSubmissionError
    assert (error.retryable, error.paid, error.outcome_unknown) == (False, Paid.MAYBE, True)
    assert "<html>" in str(error)


@pytest.mark.parametrize("nothing", ["", " \n\t "])
def test_an_empty_answer_is_said_to_be_empty(nothing: str) -> None:
    assert "it is empty" in str(error_for_unreadable(QUERY, nothing, status=200))


@pytest.mark.parametrize(
    ("operation", "sent", "error_class", "retryable", "paid", "outcome_unknown"),
    [
        (CREATE, False, UnreachableError, True, Paid.NO, False),
        (QUERY, False, UnreachableError, True, Paid.NO, False),
        (CREATE, True, UnknownSubmissionError, False, Paid.MAYBE, True),
        (QUERY, True, ServiceUnavailableError, True, Paid.NO, False),
        (Operation.UPLOAD, True, ServiceUnavailableError, True, Paid.NO, False),
    ],
)
def test_a_call_without_an_answer_is_judged_by_whether_it_left(
    operation: Operation,
    sent: bool,
    error_class: type[ServiceError],
    retryable: bool,
    paid: Paid,
    outcome_unknown: bool,
) -> None:
    error = error_for_transport(operation, "connection reset by peer", sent=sent, task_id="clxxx")

    assert type(error) is error_class
    assert (error.retryable, error.paid, error.outcome_unknown) == (retryable, paid, outcome_unknown)
    for words in ("connection reset by peer", operation.value, error.next_step):
        assert words in str(error)
    assert error.next_step
    assert operation is CREATE or "clxxx" in str(error)


def test_tls_trouble_is_named() -> None:
    error = error_for_transport(QUERY, "certificate has expired", sent=False, tls=True)

    assert type(error) is UnreachableError
    assert "TLS trouble" in str(error)


# Failed tasks


@pytest.mark.parametrize(
    ("fail_code", "fail_message", "error_class", "retryable"),
    [
        ("CONTENT_MODERATION", "no", ModerationError, False),
        ("content_moderation", "no", ModerationError, False),
        ("INVALID_INPUT", "no", InvalidInputError, False),
        *[
            (code, "no", TaskFailedError, True)
            for code in ("UPSTREAM_BUSY", "UPSTREAM_FAILED", "TIMEOUT", "INTERNAL_ERROR", "OTHER", "NEWER")
        ],
        (None, "Content policy violation", ModerationError, False),
        ("", "Blocked by our SAFETY system", ModerationError, False),
        (None, "NSFW", ModerationError, False),
        ("OTHER", "Content policy violation", TaskFailedError, True),
        (None, "the machine broke", TaskFailedError, True),
        (None, None, TaskFailedError, True),
        ("1303", "no", TooManyTasksError, True),
        (None, "Concurrency limit reached", TooManyTasksError, True),
        (
            "UPSTREAM_FAILED",
            "upstream said 1303: parallel task over resource pack limit",
            TooManyTasksError,
            True,
        ),
        ("INVALID_INPUT", "an image of 1303 by 20 pixels", InvalidInputError, False),
        ("CONTENT_MODERATION", "concurrent blows", ModerationError, False),
    ],
)
def test_a_failed_task_is_judged_by_its_code_and_else_by_its_words(
    fail_code: str | None, fail_message: str | None, error_class: type[TaskFailedError], retryable: bool
) -> None:
    error = error_for_failed_task("clxxx", fail_code=fail_code, fail_message=fail_message)

    assert type(error) is error_class
    assert (error.retryable, error.paid, error.outcome_unknown) == (retryable, Paid.NO, False)
    assert (error.task_id, error.code, error.service_message) == ("clxxx", fail_code, fail_message)
    for words in ("clxxx", fail_code, fail_message, "not billed"):
        assert (words or "") in str(error)


@pytest.mark.parametrize(
    "fail_code",
    ["CONTENT_MODERATION", "INVALID_INPUT", "UPSTREAM_BUSY", "OTHER", "1303", None],
)
@pytest.mark.parametrize("word", [True, False])
def test_the_services_own_word_on_repeating_beats_the_code(fail_code: str | None, word: bool) -> None:
    error = error_for_failed_task("clxxx", fail_code=fail_code, fail_message=None, retryable=word)

    assert error.retryable is word
    if word is not type(error).default_retryable:
        assert ("asking again can help" if word else "asking again cannot help") in str(error)
        assert error.next_step != type(error).default_next_step
    assert "not billed" in str(error)


# The tree


def test_errors_before_and_after_the_money_are_two_families() -> None:
    before = {cls for cls in all_classes() if issubclass(cls, ValueError)}
    after = {cls for cls in all_classes() if issubclass(cls, KlingTaskError)}

    assert before == {InvalidRequestError, ConnectionSettingsError}
    assert not before & after
    assert {cls for cls in all_classes() if issubclass(cls, TaskFailedError)} <= after
    assert not any(issubclass(cls, KlingTaskError) for cls in all_classes(ServiceError))


@pytest.mark.parametrize(
    ("name", "retryable", "paid"),
    [
        ("TaskTimeoutError", True, Paid.MAYBE),
        ("LostContactError", True, Paid.MAYBE),
        ("NoResultError", True, Paid.YES),
        ("DownloadError", True, Paid.YES),
        ("ResultExpiredError", False, Paid.YES),
        ("TaskFailedError", True, Paid.NO),
        ("InvalidRequestError", False, Paid.NO),
        ("ConnectionSettingsError", False, Paid.NO),
        ("ConnectionLookupError", True, Paid.NO),
    ],
)
def test_each_class_tells_what_was_paid_and_whether_a_retry_can_help(
    name: str, retryable: bool, paid: Paid
) -> None:
    error_class = getattr(errors, name)

    assert (error_class.default_retryable, error_class.default_paid) == (retryable, paid)


def test_only_a_lost_submission_has_an_unknown_outcome() -> None:
    assert {cls for cls in all_classes() if cls.outcome_unknown} == {UnknownSubmissionError}


BASES = (KlingError, ServiceError, KlingTaskError, ConnectionSettingsError)
"""These say it where they are raised."""


@pytest.mark.parametrize("error_class", [cls for cls in all_classes() if cls not in BASES])
def test_every_class_says_what_to_do_next(error_class: type[KlingError]) -> None:
    assert error_class.default_next_step.endswith(".")
    if error_class.default_paid is not Paid.NO:
        assert "billed" in error_class.default_next_step


@pytest.mark.parametrize("error_class", [cls for cls in all_classes() if cls is not InvalidRequestError])
def test_every_error_survives_pickling(error_class: type[KlingError]) -> None:
    error = error_class(
        "It went wrong",
        task_id="clxxx",
        code="OTHER",
        service_message="no",
        next_step="Look.",
        retryable=not error_class.default_retryable,
        paid=Paid.MAYBE,
        retry_after=7.5,
    )
    again = pickle.loads(pickle.dumps(error))

    assert type(again) is error_class
    assert vars(again) == vars(error)
    assert str(again) == str(error)


def test_faults_survive_pickling() -> None:
    error = InvalidRequestError([Fault("duration", "20", "3 to 10"), Fault("mode", None, "std or pro")])
    again = pickle.loads(pickle.dumps(error))

    assert type(again) is InvalidRequestError
    assert again.faults == error.faults
    assert str(again) == str(error)
    assert (again.retryable, again.paid) == (False, Paid.NO)


def test_a_text_holds_what_happened_the_id_the_code_the_services_words_and_the_next_step() -> None:
    error = KlingError("It went wrong.", task_id="clxxx", code=5, service_message="no", next_step="Look.")

    assert str(error) == "It went wrong (Kling task id clxxx, code 5). The service says: 'no'. Look."


def test_a_text_holds_nothing_that_is_not_known() -> None:
    assert str(KlingError("It went wrong")) == "It went wrong."


def test_an_id_that_the_sentence_names_is_not_told_twice() -> None:
    assert str(KlingError("Task clxxx went wrong", task_id="clxxx")) == "Task clxxx went wrong."


def test_one_fault_is_one_fault_and_two_are_two() -> None:
    fault = Fault("mode", "4k", "std or pro")

    assert "has 1 fault." in str(InvalidRequestError([fault]))
    assert "has 2 faults." in str(InvalidRequestError([fault, fault]))
