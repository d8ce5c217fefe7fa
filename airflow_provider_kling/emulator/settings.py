"""How the emulated service behaves: its pace, its limits, its prices, how long it keeps things."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from airflow_provider_kling.emulator.film import DEFAULT_SCALE

if TYPE_CHECKING:
    import random

DAY = 86_400.0
DEFAULT_KEY = "sk_emulator_0123456789abcdef"


class Latency(NamedTuple):
    """
    How long a video takes, seconds, before the time scale.

    :param median: half of the videos take longer. Infinite: they never end by themselves.
    :param sigma: spread of the lognormal distribution; 0 for a fixed time.
    """

    median: float
    sigma: float = 0.0

    def draw(self, luck: random.Random) -> float:
        """Return one video's time, seconds."""
        return self.median * math.exp(luck.gauss(0.0, self.sigma)) if self.sigma else self.median

    def __str__(self) -> str:
        if math.isinf(self.median):
            return "never"
        return f"lognormal:{self.median:g}:{self.sigma:g}" if self.sigma else f"{self.median:g}"


OBSERVED_LATENCY = Latency(142.0, 0.96)
"""What a week of the service's production showed: median 142 s, nine in ten within 486 s."""


def read_latency(written: Any) -> Latency:
    """
    Read a latency: seconds, ``lognormal``, ``lognormal:MEDIAN:SIGMA`` or ``never``.

    :raises ValueError: where it is none of these.
    """
    if isinstance(written, Latency):
        return written
    try:
        if isinstance(written, str) and written.startswith("lognormal"):
            if written == "lognormal":
                return OBSERVED_LATENCY
            _, median, sigma = written.split(":")
            latency = Latency(float(median), float(sigma))
        else:
            latency = Latency(math.inf if written == "never" else float(written))
    except (TypeError, ValueError):
        latency = Latency(math.nan)
    if not (latency.median >= 0 and 0 <= latency.sigma < 10):
        raise ValueError(
            f"{written!r} is no latency: use seconds, 'lognormal', 'lognormal:MEDIAN:SIGMA' or 'never'"
        )
    return latency


def explain(error: ValidationError) -> str:
    """Tell in a line what pydantic found wrong."""
    return "; ".join(
        f"{'.'.join(map(str, its['loc'])) or 'value'}: {its['msg'].removeprefix('Value error, ')}"
        for its in error.errors(include_url=False)
    )


Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Usd = Annotated[Decimal, Field(ge=0, allow_inf_nan=False)]


class Settings(BaseModel):
    """
    How the emulated service behaves. All but ``seed`` can be changed while it runs.

    Times are the service's seconds; each is multiplied by ``time_scale``, unless it says otherwise.

    :param latency: how long a video takes: seconds, ``lognormal`` (as the service's own), ``lognormal:MEDIAN:SIGMA``,
        or ``never`` (until a test finishes it). The first tenth of it the task is ``pending``.
    :param time_scale: factor on all of the service's times; 0.01 makes it a hundred times as fast.
    :param seed: makes task ids, latencies and faults by rate repeat themselves; None for new ones in each run.
    :param scale: factor on the pixels of the videos, whose full size is 720p (``std``) or 1080p (``pro``).
    :param balance: USD that each account begins with, unless it is given its own.
    :param max_running_tasks: most tasks of one account at a time; None for no limit.
    :param when_full: what happens above it: ``reject`` answers 429, ``fail`` takes the task and fails it.
    :param max_requests_per_second: most requests of one account, above it 429 with Retry-After; not scaled.
    :param settling: how long after its end a task's record is settled.
    :param retention: how long results and uploads are kept.
    :param expired_status: what a link answers after that.
    :param base_video_seconds: length taken for a video to be edited that is not the emulator's own: it fetches nothing.
    :param check_references: whether images and videos that it has itself are held to the service's limits.
    :param extra_models: ids of further models, with their USD per second.
    :param callback_timeout: how long a callback's receiver may take to answer; not scaled.
    :param callback_retry_delays: waits before the next tries.
    :param callback_redelivery_interval: wait between tries in the background after these.
    :param callback_redelivery_window: how long these go on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    latency: Annotated[Latency, BeforeValidator(read_latency), PlainSerializer(str)] = Latency(5.0)
    time_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    seed: int | str | None = None
    scale: Annotated[float, Field(gt=0, le=2)] = DEFAULT_SCALE
    balance: Usd = Decimal(1000)
    max_running_tasks: Annotated[int, Field(ge=0)] | None = None
    when_full: Literal["reject", "fail"] = "reject"
    max_requests_per_second: Annotated[float, Field(gt=0)] | None = None
    settling: Seconds = 2.0
    retention: Seconds = 7 * DAY
    expired_status: Literal[403, 404, 410] = 404
    base_video_seconds: Annotated[float, Field(ge=3, le=10)] = 5.0
    check_references: bool = True
    extra_models: dict[str, Usd] = Field(default_factory=dict)
    callback_timeout: Annotated[float, Field(gt=0)] = 10.0
    callback_retry_delays: tuple[Seconds, ...] = (1.0, 2.0, 4.0)
    callback_redelivery_interval: Annotated[float, Field(gt=0)] = 60.0
    callback_redelivery_window: Seconds = 1800.0

    def changed(self, **changes: Any) -> Self:
        """
        Return these settings with some of them changed.

        :raises ValueError: where a value is not allowed, or for ``seed``.
        """
        if changes.get("seed", self.seed) != self.seed:
            raise ValueError("seed cannot be changed while the emulator runs: start another one")
        return type(self)(**{**dict(self), **changes})
