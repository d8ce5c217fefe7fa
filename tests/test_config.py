from __future__ import annotations

from decimal import Decimal

import pytest
from airflow.providers.common.compat.sdk import AirflowConfigException

from airflow_provider_kling import get_provider_info
from airflow_provider_kling.api.pricing import PRICES
from airflow_provider_kling.config import (
    DEFAULT_MEDIA_HOSTS,
    ledger_path,
    max_failed_queries,
    media_hosts,
    prices,
)
from airflow_provider_kling.waiting import MAX_FAILURES

PRICES_SETTING = "AIRFLOW__KLING__PRICES"
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


@pytest.mark.parametrize(
    # Airflow itself puts the home directory in place of a "~".
    "setting",
    ["kling-ledger", "./kling-ledger", "file://kling-ledger", "s3://"],
)
def test_a_directory_of_the_ledger_that_depends_on_the_worker_is_told_with_the_name_of_the_setting(
    monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv("AIRFLOW__KLING__LEDGER_PATH", setting)
    with pytest.raises(AirflowConfigException, match=r"\[kling\] ledger_path"):
        ledger_path()


@pytest.mark.parametrize("setting", [None, "", "{}"])
def test_without_a_setting_the_services_prices_hold(
    monkeypatch: pytest.MonkeyPatch, setting: str | None
) -> None:
    monkeypatch.delenv(PRICES_SETTING, raising=False)
    if setting is not None:
        monkeypatch.setenv(PRICES_SETTING, setting)
    assert prices() == PRICES


def test_prices_are_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PRICES_SETTING, '{"kling-v3-omni": {"pro": {"sound": 0.10}}}')
    rate = prices()["kling-v3-omni", "pro"]
    assert str(rate.sound) == "0.10"
    assert rate.plain == PRICES["kling-v3-omni", "pro"].plain


def test_the_example_in_the_documentation_of_the_setting_works(monkeypatch: pytest.MonkeyPatch) -> None:
    example = get_provider_info()["config"]["kling"]["options"]["prices"]["example"]
    monkeypatch.setenv(PRICES_SETTING, example)
    assert prices()["kling-v3-omni", "std"].plain == Decimal("0.05")


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ('{"kling-v3-omni": {"std": {"plain": -1}}}', r"\[kling\] prices\.kling-v3-omni\.std\.plain: -1 "),
        ("0.05", r"\[kling\] prices: "),
        ("cheap", r"\[kling\] prices: it is not JSON"),
    ],
)
def test_a_price_that_is_none_is_told_with_its_key(
    monkeypatch: pytest.MonkeyPatch, setting: str, named: str
) -> None:
    monkeypatch.setenv(PRICES_SETTING, setting)
    with pytest.raises(AirflowConfigException, match=named):
        prices()


@pytest.mark.parametrize(
    ("setting", "hosts"),
    [
        (None, ["https://r2.apimodels.app"]),
        ("", []),
        ("https://a.example.com", ["https://a.example.com"]),
        (
            " https://*.example.com:8443/ ,\nhttp://127.0.0.1:9 ",
            ["https://*.example.com:8443", "http://127.0.0.1:9"],
        ),
    ],
)
def test_from_where_the_page_may_play_is_a_setting(
    monkeypatch: pytest.MonkeyPatch, setting: str | None, hosts: list[str]
) -> None:
    monkeypatch.delenv("AIRFLOW__KLING__MEDIA_HOSTS", raising=False)
    if setting is not None:
        monkeypatch.setenv("AIRFLOW__KLING__MEDIA_HOSTS", setting)
    assert media_hosts() == hosts


@pytest.mark.parametrize(
    "setting",
    ["*", "example.com", "https://", "https://example.com/videos", "https://x;script-src", "'self'", "data:"],
)
def test_what_is_no_origin_is_told_with_the_name_of_the_setting(
    monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv("AIRFLOW__KLING__MEDIA_HOSTS", setting)
    with pytest.raises(AirflowConfigException, match="media_hosts"):
        media_hosts()


def test_the_default_of_the_setting_is_told_as_it_is() -> None:
    options = get_provider_info()["config"]["kling"]["options"]
    assert options["media_hosts"]["default"] == DEFAULT_MEDIA_HOSTS
