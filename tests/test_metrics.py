"""What this provider counts, as Airflow's own loggers of metrics get it."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pendulum
import pytest

from airflow_provider_kling import exceptions, metrics
from airflow_provider_kling.api.errors import (
    FAIL_CODES,
    InvalidRequestError,
    KlingError,
    LostContactError,
    TaskFailedError,
    TooManyTasksError,
    error_for_failed_task,
)
from airflow_provider_kling.api.pricing import CostRange
from airflow_provider_kling.api.request import VideoRequest
from airflow_provider_kling.api.task import RecordedCost, TaskState, VideoTask
from airflow_provider_kling.exceptions import to_airflow

DOCUMENTATION = Path(__file__).parents[1] / "docs" / "metrics.md"
ASKED = VideoRequest(prompt="a secret plan", model="kling-v3-omni", mode="pro")
DONE = pendulum.datetime(2026, 11, 22, 12)
TASK = VideoTask(
    task_id="task-1",
    state=TaskState.COMPLETED,
    model="kling-video/kling-video-o1",
    completed_at=DONE,
    generation_seconds=142.5,
)


def of_airflow(module: str, name: str) -> Any:
    """Return a class of Airflow's metrics, which have moved between its releases."""
    for package in (
        "airflow.sdk._shared.observability.metrics",
        "airflow._shared.observability.metrics",
        "airflow.metrics",
    ):
        try:
            return getattr(importlib.import_module(f"{package}.{module}"), name)
        except ModuleNotFoundError:
            continue
    return pytest.skip(f"this Airflow has no {module}")


Points = Mapping[tuple[str, frozenset[tuple[str, Any]]], Any]


class OpenTelemetry:
    """Airflow's logger for OpenTelemetry, with a reader in place of the network."""

    def __init__(self) -> None:
        reader = pytest.importorskip("opentelemetry.sdk.metrics.export").InMemoryMetricReader()
        provider = pytest.importorskip("opentelemetry.sdk.metrics").MeterProvider([reader])
        self.logger = of_airflow("otel_logger", "SafeOtelLogger")(provider)
        self._reader = reader

    def points(self) -> Points:
        data = self._reader.get_metrics_data()
        return {
            (metric.name.removeprefix("airflow."), frozenset(point.attributes.items())): point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
        }

    def value(self, name: str, **tags: str) -> Any:
        point = self.points()[name, frozenset(tags.items())]
        return point.value if hasattr(point, "value") else point.sum

    def names(self) -> set[str]:
        return {name for name, _ in self.points()}


class Wire:
    """As much of a StatsD client as Airflow's logger for it uses."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []

    def incr(self, stat: str, count: int, rate: float) -> None:
        self.sent.append((stat, count))

    def timing(self, stat: str, delta: Any) -> None:
        self.sent.append((stat, delta))


@pytest.fixture
def otel(monkeypatch: pytest.MonkeyPatch) -> OpenTelemetry:
    backend = OpenTelemetry()
    monkeypatch.setattr(metrics, "Stats", backend.logger)
    return backend


@pytest.fixture
def statsd(monkeypatch: pytest.MonkeyPatch) -> Wire:
    wire = Wire()
    monkeypatch.setattr(metrics, "Stats", of_airflow("statsd_logger", "SafeStatsdLogger")(wire))
    return wire


@pytest.fixture
def front(monkeypatch: pytest.MonkeyPatch) -> Wire:
    """Airflow's own front, as a task finds it, with its way out in place of the logger of a configuration."""
    wire = Wire()
    logger = of_airflow("statsd_logger", "SafeStatsdLogger")(wire)
    module = importlib.import_module(metrics.Stats.__module__)
    if hasattr(module, "_factory"):
        for name, value in {"_factory": lambda: logger, "_backend": None}.items():
            monkeypatch.setattr(module, name, value)
    else:
        monkeypatch.setattr(metrics.Stats, "instance", logger, raising=False)
    return wire


PRO = {"model": "kling-v3-omni", "mode": "pro"}


def test_a_submit_counts_a_video_and_what_it_will_cost(otel: OpenTelemetry) -> None:
    metrics.submitted(ASKED, Decimal("0.4265"))
    metrics.submitted(ASKED, Decimal("0.0000015"))

    assert otel.value("kling.videos.submitted", **PRO) == 2
    assert otel.value("kling.usd_micros.estimated", **PRO) == 426_502


def test_of_a_range_the_upper_end_counts_and_an_unknown_cost_counts_nothing(otel: OpenTelemetry) -> None:
    metrics.submitted(ASKED, CostRange(Decimal("0.1"), Decimal("0.9")))
    metrics.submitted(ASKED, None)

    assert otel.value("kling.videos.submitted", **PRO) == 2
    assert otel.value("kling.usd_micros.estimated", **PRO) == 900_000


def test_a_completed_video_counts_with_its_cost_and_its_times(otel: OpenTelemetry, statsd: Wire) -> None:
    recorded = RecordedCost(task_id="task-1", settled=True, amount=Decimal("0.40"))
    metrics.completed(TASK, ASKED, recorded, noticed_at=DONE.timestamp() + 3.25)

    assert statsd.sent == [
        ("kling.videos.completed", 1),
        ("kling.usd_micros.recorded", 400_000),
        ("kling.generation_duration", timedelta(seconds=142.5)),
        ("kling.detection_duration", timedelta(seconds=3.25)),
    ]


def test_a_completed_video_is_told_by_model_and_mode(otel: OpenTelemetry) -> None:
    recorded = RecordedCost(task_id="task-1", settled=True, amount=Decimal("0.40"))
    metrics.completed(TASK, ASKED, recorded, noticed_at=DONE.timestamp() + 3.25)

    assert otel.value("kling.videos.completed", **PRO) == 1
    assert otel.value("kling.usd_micros.recorded", **PRO) == 400_000
    assert {"kling.generation_duration", "kling.detection_duration"} <= otel.names()


@pytest.mark.parametrize(
    "recorded",
    [
        None,
        RecordedCost(task_id="task-1", settled=False, amount=Decimal("0.40")),
        RecordedCost(task_id="task-1", settled=True, amount=Decimal("0.40"), currency="CNY"),
        RecordedCost(task_id="task-1", settled=True, amount=Decimal(0)),
        RecordedCost(task_id="task-1", settled=True, amount=Decimal(-1)),
    ],
)
def test_an_amount_that_is_not_final_or_not_in_usd_does_not_count(
    statsd: Wire, recorded: RecordedCost | None
) -> None:
    metrics.completed(TASK, ASKED, recorded)
    assert [name for name, _ in statsd.sent] == ["kling.videos.completed", "kling.generation_duration"]


def test_what_the_service_does_not_tell_is_not_measured(statsd: Wire) -> None:
    metrics.completed(VideoTask(task_id="task-1", state=TaskState.COMPLETED), ASKED, noticed_at=1.0)
    assert statsd.sent == [("kling.videos.completed", 1)]


def test_a_clock_of_the_service_that_is_ahead_gives_no_negative_time(statsd: Wire) -> None:
    metrics.completed(TASK, ASKED, noticed_at=DONE.timestamp() - 60)
    assert statsd.sent[-1] == ("kling.detection_duration", timedelta(0))


@pytest.mark.parametrize(
    ("asked", "model", "mode"),
    [
        (VideoRequest(prompt="x"), "kling-v3-omni", "std"),
        (VideoRequest(prompt="x", model="kling-video-o1"), "kling-video-o1", "std"),
        (VideoRequest(prompt="x", model="kling-v9-of-tomorrow"), "other", "std"),
        (None, "kling-video-o1", "other"),
    ],
)
def test_tags_have_few_values(otel: OpenTelemetry, asked: VideoRequest | None, model: str, mode: str) -> None:
    metrics.completed(TASK, asked)
    assert otel.value("kling.videos.completed", model=model, mode=mode) == 1


# Reasons


def of_service(code: str | None, message: str | None = None) -> TaskFailedError:
    return error_for_failed_task("task-1", fail_code=code, fail_message=message)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        *((of_service(code), code.lower()) for code in FAIL_CODES),
        (of_service("upstream_busy"), "upstream_busy"),
        (of_service("1303"), "too_many_tasks"),
        (of_service("BRAND_NEW_CODE"), "task_failed"),
        (of_service(None, "violates our safety policy"), "moderation"),
        (LostContactError("x"), "lost_contact"),
        (TooManyTasksError("x"), "too_many_tasks"),
        (InvalidRequestError([]), "invalid_request"),
        (KlingError("x"), "kling"),
        (ZeroDivisionError("x"), "other"),
    ],
)
def test_a_failure_is_counted_by_its_reason(otel: OpenTelemetry, error: BaseException, reason: str) -> None:
    metrics.failed(error, ASKED)
    assert otel.value("kling.videos.failed", reason=reason, **PRO) == 1
    assert otel.value(f"kling.videos.failed.{reason}", reason=reason, **PRO) == 1


def test_the_reason_is_the_same_where_airflow_is_told_to_fail_for_good() -> None:
    assert metrics.reason_of(to_airflow(of_service("CONTENT_MODERATION"))) == "content_moderation"


def test_an_error_of_someone_elses_making_is_counted_as_ours_that_it_is_a_kind_of() -> None:
    class MyOwnError(LostContactError):
        pass

    assert metrics.reason_of(MyOwnError("x")) == "lost_contact"


def test_an_error_of_our_own_use_is_counted_as_the_public_one_that_it_is_a_kind_of() -> None:
    private = type("_HalfwayError", (LostContactError,), {"__module__": "airflow_provider_kling.api.errors"})
    assert metrics.reason_of(private("x")) == "lost_contact"


def test_without_tags_the_reason_is_in_a_name(statsd: Wire) -> None:
    metrics.failed(of_service("TIMEOUT"))
    assert statsd.sent == [("kling.videos.failed", 1), ("kling.videos.failed.timeout", 1)]


def test_every_reason_makes_a_name_that_all_backends_take() -> None:
    for name in exceptions.__all__:
        kind = getattr(exceptions, name)
        if isinstance(kind, type) and issubclass(kind, KlingError) and kind is not InvalidRequestError:
            reason = metrics.reason_of(kind("x"))
            assert re.fullmatch("[a-z_]+", reason)
            assert len(f"airflow.kling.videos.failed.{reason}") <= 63  # OpenTelemetry's limit in Airflow


def test_nothing_that_an_author_or_the_service_wrote_becomes_a_metric(otel: OpenTelemetry) -> None:
    metrics.submitted(ASKED, Decimal(1))
    metrics.completed(TASK, ASKED)
    metrics.failed(of_service("BRAND_NEW_CODE", "their words about a secret plan"), ASKED)
    shown = str(list(otel.points()))
    for word in ("secret", "task-1", "BRAND_NEW", "brand_new", "their words"):
        assert word not in shown


# It stops nothing


class Broken:
    def __getattr__(self, name: str) -> Any:
        raise OSError("no way out")


def test_a_broken_backend_stops_no_video(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "Stats", Broken())
    metrics.submitted(ASKED, Decimal(1))
    metrics.completed(TASK, ASKED)
    metrics.failed(LostContactError("x"))


def test_through_airflows_own_front_it_arrives(front: Wire) -> None:
    metrics.submitted(ASKED, Decimal("0.5"))
    metrics.completed(TASK)
    assert [name for name, _ in front.sent] == [
        "kling.videos.submitted",
        "kling.usd_micros.estimated",
        "kling.videos.completed",
        "kling.generation_duration",
    ]
    assert front.sent[1] == ("kling.usd_micros.estimated", 500_000)


# The documentation


def test_every_name_and_reason_is_documented() -> None:
    text = DOCUMENTATION.read_text()
    for name in (
        metrics.SUBMITTED,
        metrics.COMPLETED,
        metrics.FAILED,
        metrics.ESTIMATED,
        metrics.RECORDED,
        metrics.GENERATION,
        metrics.DETECTION,
    ):
        assert f"`{name}`" in text
    reasons = {code.lower() for code in FAIL_CODES}
    for name in exceptions.__all__:
        kind = getattr(exceptions, name)
        if isinstance(kind, type) and issubclass(kind, KlingError) and kind is not InvalidRequestError:
            reasons.add(metrics.reason_of(kind("x")))
    for reason in reasons | {metrics.OTHER, "invalid_request"}:
        assert f"`{reason}`" in text
