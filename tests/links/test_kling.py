from __future__ import annotations

from typing import Any

import pytest
from airflow.providers.common.compat.sdk import XCom

from airflow_provider_kling.links.kling import KlingVideoLink
from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator
from airflow_provider_kling.sensors.kling import KlingVideoSensor

BASE_URL = "https://apimodels.app/api/v1"


class TaskInstance:
    """As much of Airflow's as a link needs."""

    def __init__(self) -> None:
        self.xcoms: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value


def pushed(task_id: str, video_url: str | None) -> dict[str, Any]:
    ti = TaskInstance()
    KlingVideoLink.push({"ti": ti}, task_id, video_url, base_url=BASE_URL)  # type: ignore[typeddict-item]
    return ti.xcoms


def test_the_link_leads_to_the_video() -> None:
    assert pushed("task-1", "https://r2.example/v.mp4") == {"kling_video_link": "https://r2.example/v.mp4"}


def test_before_there_is_a_video_the_link_leads_to_its_task() -> None:
    [link] = pushed("a/b&c", None).values()
    assert link == f"{BASE_URL}/video/generations?task_id=a%2Fb%26c"


@pytest.mark.parametrize(
    ("stored", "shown"),
    [("https://r2.example/v.mp4", "https://r2.example/v.mp4"), (None, ""), ({"not": "a link"}, "")],
)
def test_the_link_is_what_was_stored_last_under_its_key(
    monkeypatch: pytest.MonkeyPatch, stored: Any, shown: str
) -> None:
    asked: list[Any] = []

    def get_value(*, ti_key: Any, key: str) -> Any:
        asked.append((ti_key, key))
        return stored

    monkeypatch.setattr(XCom, "get_value", get_value)
    link = KlingVideoLink()
    assert link.get_link(None, ti_key="a key") == shown  # type: ignore[arg-type]
    assert asked == [("a key", link.xcom_key)]


@pytest.mark.parametrize("kind", [KlingGenerateVideoOperator, KlingVideoSensor])
def test_operator_and_sensor_have_the_link(kind: Any) -> None:
    assert [type(link) for link in kind.operator_extra_links] == [KlingVideoLink]
