from __future__ import annotations

import importlib
from datetime import timedelta

import pytest

from airflow_provider_kling.airflow_versions import AIRFLOW_V_3_3_PLUS
from airflow_provider_kling.api.errors import (
    KeyRefusedError,
    KlingError,
    LostContactError,
    ModerationError,
    NoCreditsError,
    RateLimitedError,
    ServiceUnavailableError,
    TooManyTasksError,
)

if not AIRFLOW_V_3_3_PLUS:

    def test_an_older_airflow_is_told_what_to_do_instead() -> None:
        with pytest.raises(ImportError, match=r"needs Airflow 3\.3 or later"):
            importlib.import_module("airflow_provider_kling.retry_policy")

else:
    from airflow.sdk import DAG
    from airflow.sdk.definitions.retry_policy import RetryAction, RetryDecision

    from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator
    from airflow_provider_kling.retry_policy import KlingRetryPolicy

    def decide(error: BaseException) -> RetryDecision:
        return KlingRetryPolicy().evaluate(error, 1, 3)

    @pytest.mark.parametrize("error", [ModerationError("no"), NoCreditsError("no"), KeyRefusedError("no")])
    def test_hopeless_errors_end_the_task_with_their_reason(error: KlingError) -> None:
        assert decide(error) == RetryDecision(RetryAction.FAIL, reason="no")

    def test_a_hopeless_error_is_seen_inside_another_one() -> None:
        outer = RuntimeError("wrapped")
        outer.__cause__ = ModerationError("no")
        assert decide(outer).action is RetryAction.FAIL

    @pytest.mark.parametrize(
        ("error", "seconds"),
        [
            (RateLimitedError("busy", retry_after=90), 90),
            (RateLimitedError("busy"), 30),
            (TooManyTasksError("busy"), 30),
            (ServiceUnavailableError("down", retry_after=45), 45),
        ],
    )
    def test_a_retry_waits_as_long_as_the_service_asks(error: KlingError, seconds: float) -> None:
        decision = decide(error)
        assert decision.action is RetryAction.RETRY
        assert decision.retry_delay == timedelta(seconds=seconds)

    @pytest.mark.parametrize("error", [LostContactError("gone"), RuntimeError("other"), KeyboardInterrupt()])
    def test_for_all_else_airflows_own_rules_hold(error: BaseException) -> None:
        assert decide(error) == RetryDecision.default()

    def test_a_dag_with_it_can_be_stored() -> None:
        from airflow.serialization.serialized_objects import DagSerialization

        with DAG("kling_retries", schedule=None) as dag:
            KlingGenerateVideoOperator(task_id="make", prompt="x", retry_policy=KlingRetryPolicy())
        stored = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
        assert stored.get_task("make").has_retry_policy
