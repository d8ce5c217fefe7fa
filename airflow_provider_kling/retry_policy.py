"""When Airflow 3.3 and later retries a task of this provider: as the error says, and after as long as it says."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_kling.airflow_versions import AIRFLOW_V_3_3_PLUS
from airflow_provider_kling.api.errors import KlingError, RateLimitedError, TooManyTasksError
from airflow_provider_kling.generation import BUSY_PAUSE

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

if not AIRFLOW_V_3_3_PLUS:
    raise ImportError(
        "KlingRetryPolicy needs Airflow 3.3 or later. Before that, leave retry_policy out: tasks of this provider end "
        "by themselves where a retry cannot help."
    )

from airflow.providers.common.compat.sdk import RetryDecision, RetryPolicy


class KlingRetryPolicy(RetryPolicy):
    """
    Retry as the errors of this provider say.

    Hopeless ones (refused content or input, no credits, a refused key) end the task at once, as they do without this
    policy; it says so where other code raises them, such as a function that uses
    :class:`~airflow_provider_kling.hooks.kling.KlingHook`. Where the service was busy or asked to wait, the retry
    waits as long as it asked. For other errors Airflow's ordinary rules hold. It never goes beyond ``retries``.
    """

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,
        max_tries: int,
        context: Context | None = None,
    ) -> RetryDecision:
        """Decide about one failure."""
        error = _kling_error(exception)
        if error is None:
            return RetryDecision.default()
        if not error.retryable:
            return RetryDecision.fail(reason=error.what)
        if isinstance(error, (RateLimitedError, TooManyTasksError)) or error.retry_after:
            pause = timedelta(seconds=max(error.retry_after or 0, BUSY_PAUSE))
            return RetryDecision.retry(delay=pause, reason=error.what)
        return RetryDecision.default()

    def serialize(self) -> dict[str, Any]:
        """Return what is needed to make it again: nothing."""
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> KlingRetryPolicy:
        """Make it again."""
        return cls()


def _kling_error(exception: BaseException | None) -> KlingError | None:
    while exception is not None:
        if isinstance(exception, KlingError):
            return exception
        exception = exception.__cause__
    return None
