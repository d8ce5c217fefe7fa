"""Tasks with ``callback=True``: one video, one that a function describes, and a list of them."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_kling.decorators.kling import KlingVideoDecoratedOperator
from airflow_provider_kling.operators.batch import KlingGenerateVideoBatchOperator
from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator
from tests.conftest import AIRFLOW

BASE_URL = "http://127.0.0.1:9/af"
needs_callbacks = pytest.mark.skipif(AIRFLOW < (3, 1), reason="callbacks need Airflow 3.1")
_DEFERRED: dict[str, Any] = {"task_id": "make", "callback": True, "deferrable": True}


@pytest.fixture
def callback_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__KLING__CALLBACK_BASE_URL", BASE_URL)
    # Nobody calls these tasks back: their net has to catch them.
    monkeypatch.setenv("AIRFLOW__KLING__CALLBACK_POLL_INTERVAL", "0.2")


def one(**given: Any) -> KlingGenerateVideoOperator:
    return KlingGenerateVideoOperator(**{**_DEFERRED, "prompt": "a tide", **given})


def described(**given: Any) -> KlingVideoDecoratedOperator:
    return KlingVideoDecoratedOperator(python_callable=lambda: "a tide", **{**_DEFERRED, **given})


def many(**given: Any) -> KlingGenerateVideoBatchOperator:
    videos = {"requests": ["a tide", "a tide", "a storm"], "duration": 3, "poll_interval": 0.1}
    return KlingGenerateVideoBatchOperator(**{**_DEFERRED, **videos, **given})


one_and_many = pytest.mark.parametrize("make", [one, many], ids=["one video", "a list"])
each_kind = pytest.mark.parametrize(
    "make", [one, described, many], ids=["one video", "a described one", "a list"]
)
