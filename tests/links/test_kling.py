from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import XCom

from airflow_provider_kling.links import kling as links
from airflow_provider_kling.links.kling import KlingVideoLink
from airflow_provider_kling.operators.batch import KlingGenerateVideoBatchOperator
from airflow_provider_kling.operators.kling import KlingDownloadVideoOperator, KlingGenerateVideoOperator
from airflow_provider_kling.sensors.kling import KlingVideoSensor
from tests.conftest import AIRFLOW

BASE_URL = "https://apimodels.app/api/v1"
HAS_PAGE = AIRFLOW >= (3, 1)
PAGE = (
    "/plugin/kling-videos?dag_id=daily+films&run_id=manual__2026-11-22T10%3A00%3A00%2B00%3A00"
    "&task_id=make&map_index=2"
)


class TaskInstance:
    """As much of Airflow's as a link needs."""

    dag_id = "daily films"
    run_id = "manual__2026-11-22T10:00:00+00:00"
    task_id = "make"
    map_index: int | None = 2

    def __init__(self) -> None:
        self.xcoms: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value


def pushed(task_id: str, video_url: str | None, *, stays: bool = True) -> dict[str, Any]:
    ti = TaskInstance()
    KlingVideoLink.push({"ti": ti}, task_id, video_url, base_url=BASE_URL, stays=stays)  # type: ignore[typeddict-item]
    return ti.xcoms


@pytest.fixture(params=[False, True], ids=["with a page", "as before 3.1"])
def without_page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param is False and not HAS_PAGE:
        pytest.skip("this Airflow has no page")
    monkeypatch.setattr(links, "AIRFLOW_V_3_1_PLUS", not request.param)
    return bool(request.param)


def test_a_task_that_waits_on_its_worker_has_its_link_at_once(without_page: bool) -> None:
    expected = f"{BASE_URL}/video/generations?task_id=a%2Fb%26c" if without_page else PAGE
    assert pushed("a/b&c", None) == {"kling_video_link": expected}


def test_where_airflow_stores_the_link_in_a_moment_it_is_not_stored_twice(without_page: bool) -> None:
    told = pushed("task-1", "https://r2.example/v.mp4", stays=False)
    assert told == ({"kling_video_link": "https://r2.example/v.mp4"} if without_page else {})


@pytest.mark.skipif(not HAS_PAGE, reason="this Airflow has no page")
@pytest.mark.parametrize(
    ("base_url", "start"),
    [
        (None, ""),
        ("http://airflow.example.com:8080", "http://airflow.example.com:8080"),
        ("https://example.com/af/", "https://example.com/af"),
    ],
)
def test_the_link_leads_to_the_page_opened_at_the_video(
    monkeypatch: pytest.MonkeyPatch, base_url: str | None, start: str
) -> None:
    def get_value(**_: Any) -> Any:
        raise AssertionError("that would be a call of the API server for nothing")

    monkeypatch.setattr(XCom, "get_value", get_value)
    if base_url is not None:
        monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
    link: Any = KlingVideoLink()
    assert link.get_link(None, ti_key=TaskInstance()) == start + PAGE
    alone = SimpleNamespace(dag_id="d", run_id="r", task_id="t", map_index=None)
    assert link.get_link(None, ti_key=alone).endswith("?dag_id=d&run_id=r&task_id=t&map_index=-1")


@pytest.mark.parametrize(
    ("stored", "shown"),
    [("https://r2.example/v.mp4", "https://r2.example/v.mp4"), (None, ""), ({"not": "a link"}, "")],
)
def test_before_there_was_a_page_the_link_is_what_was_stored_last_under_its_key(
    monkeypatch: pytest.MonkeyPatch, stored: Any, shown: str
) -> None:
    asked: list[Any] = []

    def get_value(*, ti_key: Any, key: str) -> Any:
        asked.append((ti_key, key))
        return stored

    monkeypatch.setattr(links, "AIRFLOW_V_3_1_PLUS", False)
    monkeypatch.setattr(XCom, "get_value", get_value)
    link = KlingVideoLink()
    assert link.get_link(None, ti_key="a key") == shown  # type: ignore[arg-type]
    assert asked == [("a key", link.xcom_key)]


@pytest.mark.parametrize("kind", [KlingGenerateVideoOperator, KlingDownloadVideoOperator, KlingVideoSensor])
def test_whatever_is_about_a_video_has_the_link(kind: Any) -> None:
    assert [type(link) for link in kind.operator_extra_links] == [KlingVideoLink]


def test_a_list_has_the_link_where_there_is_a_page() -> None:
    links = KlingGenerateVideoBatchOperator.operator_extra_links
    assert [type(link) for link in links] == [KlingVideoLink] * HAS_PAGE
