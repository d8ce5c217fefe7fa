"""What a request will cost, by the service's price table. ``GET /records/{taskId}`` has the truth afterwards."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, NamedTuple

from airflow_provider_kling.api.request import (
    BASE_VIDEO_SECONDS,
    DEFAULT_DURATION_SECONDS,
    DEFAULT_MODE,
    VideoRequest,
)


class Rate(NamedTuple):
    """
    USD per second of output.

    :param plain: without sound.
    :param sound: with sound.
    :param original_sound: with the reference video's own sound kept; None where the table has no such price,
        and then the plain one holds.
    """

    plain: Decimal
    sound: Decimal
    original_sound: Decimal | None = None


class CostRange(NamedTuple):
    """The least and the most that a request can cost, USD, where the length of its ``base`` video is not known."""

    low: Decimal
    high: Decimal


PRICES: Mapping[tuple[str, str], Rate] = {
    ("kling-video-o1", "std"): Rate(Decimal("0.0633"), Decimal("0.0956")),
    ("kling-video-o1", "pro"): Rate(Decimal("0.0853"), Decimal("0.1280")),
    ("kling-v3-omni", "std"): Rate(Decimal("0.0633"), Decimal("0.0956"), Decimal("0.0853")),
    ("kling-v3-omni", "pro"): Rate(Decimal("0.0853"), Decimal("0.1280"), Decimal("0.1059")),
}
"""The service's price table, by model and mode."""


def estimate(request: VideoRequest, *, base_video_seconds: float | None = None) -> Decimal | CostRange | None:
    """
    Estimate what a request costs, USD.

    :param base_video_seconds: length of the video to be edited, seconds, where it is known; the service bills
        it rounded to the nearest whole one.
    :return: None where the model or mode has no known price; a range where the length of the ``base`` video
        is not known.
    """
    body = request.to_body()
    rate = PRICES.get((str(body.get("model")), str(body.get("mode", DEFAULT_MODE))))
    if rate is None:
        return None
    per_second = _per_second(rate, body)
    if any(video.get("refer_type") in (None, "base") for video in _videos(body)):
        if base_video_seconds is None:
            shortest, longest = BASE_VIDEO_SECONDS
            return CostRange(per_second * shortest, per_second * longest)
        seconds = int(Decimal(str(base_video_seconds)).quantize(Decimal(1), ROUND_HALF_UP))
    else:
        duration = str(body.get("duration", DEFAULT_DURATION_SECONDS))
        if not re.fullmatch("[0-9]{1,4}", duration):
            return None
        seconds = int(duration)
    return per_second * seconds


def _per_second(rate: Rate, body: Mapping[str, Any]) -> Decimal:
    if body.get("sound") == "on":
        return rate.sound
    keeps = any(video.get("keep_original_sound") == "yes" for video in _videos(body))
    return rate.original_sound if keeps and rate.original_sound is not None else rate.plain


def _videos(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    videos = body.get("video_list")  # extra_body may have put anything there
    return [video for video in videos if isinstance(video, Mapping)] if isinstance(videos, list) else []
