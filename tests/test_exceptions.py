from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException

import airflow_provider_kling
from airflow_provider_kling import exceptions
from airflow_provider_kling.api import errors
from airflow_provider_kling.api.request import Fault
from airflow_provider_kling.exceptions import KlingError, raising_to_airflow, to_airflow


def error_classes() -> Iterator[type[KlingError]]:
    for each in vars(errors).values():
        if inspect.isclass(each) and issubclass(each, KlingError):
            yield each


def an_error(kind: type[KlingError], *, retryable: bool | None = None) -> KlingError:
    if kind is errors.InvalidRequestError:
        error: KlingError = errors.InvalidRequestError([Fault("duration", 99, "3 to 15")])
        if retryable is not None:
            error.retryable = retryable
        return error
    return kind("It happened", task_id="task-1", code=7, service_message="their words", retryable=retryable)


def errors_of_the_package() -> set[type[KlingError]]:
    """Return those of all modules that work in a task."""
    # The retry policy's module cannot be imported before Airflow 3.3.
    names = ("cli", "emulator", "plugins", "retry_policy", "__main__")
    elsewhere = tuple(f"airflow_provider_kling.{name}" for name in names)
    for module in pkgutil.walk_packages(airflow_provider_kling.__path__, "airflow_provider_kling."):
        if not module.name.startswith(elsewhere):
            importlib.import_module(module.name)
    found = {KlingError}
    while more := {kind for each in found for kind in each.__subclasses__()} - found:
        found |= more
    return {
        kind
        for kind in found
        if kind.__module__.startswith("airflow_provider_kling.")
        and not kind.__module__.startswith(elsewhere)
        and not kind.__name__.startswith("_")
    }


def test_every_error_can_be_imported_from_here() -> None:
    for kind in errors_of_the_package():
        assert getattr(exceptions, kind.__name__, None) is kind, kind
        assert kind.__name__ in exceptions.__all__


def test_all_that_is_offered_is_there() -> None:
    assert all(hasattr(exceptions, name) for name in exceptions.__all__)
    assert exceptions.__all__ == sorted(exceptions.__all__)


def test_where_a_video_was_asked_for_before_no_error_says_that_nothing_was_sent() -> None:
    texts = [kind.default_next_step for kind in errors_of_the_package()]
    told = [text for text in texts if "nothing was sent" in text.lower()]
    assert len(told) > 5
    for text in told:
        error = KlingError("It happened", next_step=text)
        error.take_back_that_nothing_was_sent()
        assert "nothing was sent" not in error.next_step.lower()
        assert text.endswith(error.next_step[-30:]), "what to do next stays"


@pytest.mark.parametrize(
    ("told", "left"),
    [
        ("Nothing was sent. A retry goes on.", "A retry goes on."),
        ("Nothing was sent and nothing was billed. Pay first.", "Pay first."),
        ("It stays, and nothing was sent, since it may be paid for.", "It stays, since it may be paid for."),
        ("It may be paid, so nothing was sent. A retry looks again.", "It may be paid. A retry looks again."),
    ],
)
def test_what_to_do_next_stays_where_it_is_taken_back_that_nothing_was_sent(told: str, left: str) -> None:
    error = KlingError("It happened", next_step=told)
    error.take_back_that_nothing_was_sent()
    assert error.next_step == left


@pytest.mark.parametrize("kind", error_classes())
def test_an_error_that_may_pass_is_raised_as_it_is_so_that_airflow_tries_again(
    kind: type[KlingError],
) -> None:
    error = an_error(kind, retryable=True)
    assert to_airflow(error) is error
    assert not isinstance(error, AirflowFailException)


@pytest.mark.parametrize("kind", error_classes())
def test_a_hopeless_error_ends_the_task_with_the_same_words(kind: type[KlingError]) -> None:
    error = an_error(kind, retryable=False)
    failure = to_airflow(error)
    assert isinstance(failure, AirflowFailException)
    assert str(failure) == str(error)
    assert failure.__cause__ is error


@pytest.mark.parametrize("kind", error_classes())
def test_each_class_says_itself_whether_trying_again_can_help(kind: type[KlingError]) -> None:
    failure = to_airflow(an_error(kind))
    assert isinstance(failure, AirflowFailException) is not kind.default_retryable


@pytest.mark.parametrize("retryable", [True, False])
def test_what_leaves_the_block_is_what_a_task_should_raise(*, retryable: bool) -> None:
    cause = ConnectionResetError("reset")
    with pytest.raises((KlingError, AirflowException)) as raised, raising_to_airflow():
        raise an_error(errors.ServiceError, retryable=retryable) from cause
    if retryable:
        assert type(raised.value) is errors.ServiceError
        assert raised.value.__cause__ is cause
    else:
        assert type(raised.value) is AirflowFailException
        assert isinstance(raised.value.__cause__, errors.ServiceError)
        assert raised.value.__cause__.__cause__ is cause


def test_other_errors_and_results_pass_the_block_untouched() -> None:
    with pytest.raises(ZeroDivisionError), raising_to_airflow():
        1 / 0  # noqa: B018
    with raising_to_airflow():
        result = 7
    assert result == 7
