from __future__ import annotations

import pytest
from airflow.providers.common.compat.sdk import AirflowConfigException

from airflow_provider_kling.config import ledger_path, max_failed_queries
from airflow_provider_kling.waiting import MAX_FAILURES

MAX_FAILED_QUERIES = "AIRFLOW__KLING__MAX_FAILED_QUERIES"


def test_without_a_setting_some_failures_are_borne(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MAX_FAILED_QUERIES, raising=False)
    assert max_failed_queries() == MAX_FAILURES


@pytest.mark.parametrize(("setting", "number"), [("1", 1), ("20", 20), (" 7 ", 7)])
def test_how_many_failures_are_borne_is_a_setting(
    monkeypatch: pytest.MonkeyPatch, setting: str, number: int
) -> None:
    monkeypatch.setenv(MAX_FAILED_QUERIES, setting)
    assert max_failed_queries() == number


@pytest.mark.parametrize("setting", ["0", "-1", "five", "2.5", ""])
def test_a_number_that_is_none_is_told_with_the_name_of_the_setting(
    monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv(MAX_FAILED_QUERIES, setting)
    with pytest.raises(AirflowConfigException, match="max_failed_queries"):
        max_failed_queries()


@pytest.mark.parametrize(
    ("setting", "path"), [(None, None), ("", None), ("s3://aws@films/ledger", "s3://aws@films/ledger")]
)
def test_the_ledgers_directory_is_a_setting(
    monkeypatch: pytest.MonkeyPatch, setting: str | None, path: str | None
) -> None:
    monkeypatch.delenv("AIRFLOW__KLING__LEDGER_PATH", raising=False)
    if setting is not None:
        monkeypatch.setenv("AIRFLOW__KLING__LEDGER_PATH", setting)
    assert ledger_path() == path
