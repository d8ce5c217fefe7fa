"""Looks at reference images and videos, to hold them to the service's limits."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_kling.api.request import MAX_IMAGE_BYTES

if TYPE_CHECKING:
    from pathlib import Path

MAX_VIDEO_BYTES = 200 * 1024 * 1024
_MIN_IMAGE_SIDE = 300
_MAX_IMAGE_RATIO = 2.5
_VIDEO_SIDES = (720, 2160)
_VIDEO_SECONDS = (3.0, 10.0)
_VIDEO_RATES = (24.0, 60.0)
_TOLERANCE = 0.05
"""Seconds, and frames a second: containers round."""


@dataclass(frozen=True)
class Medium:
    """
    A file that was looked at.

    :param extension: ``jpg``, ``png``, ``mp4`` or ``mov``.
    :param seconds: length of a video, 0 for an image.
    :param fault: why the service would not take it as a reference, None where it would.
    """

    extension: str
    seconds: float = 0.0
    fault: str | None = None

    @property
    def is_video(self) -> bool:
        """Whether it is a video."""
        return self.extension in ("mp4", "mov")


def kind_of(beginning: bytes) -> str | None:
    """Return the extension that a file's first 12 bytes stand for, None for what the service does not take."""
    if beginning.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if beginning.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if beginning[4:8] == b"ftyp":
        return "mov" if beginning[8:10] == b"qt" else "mp4"
    return None


def inspect_image(content: bytes) -> Medium:
    """Look at a jpg or png: up to 10 MB, each side at least 300 pixels, ratio 1:2.5 to 2.5:1."""
    from PIL import Image, UnidentifiedImageError

    extension = kind_of(content[:12]) or ""
    if extension not in ("jpg", "png"):
        return Medium(extension, fault="the image is neither jpg nor png")
    if len(content) > MAX_IMAGE_BYTES:
        return Medium(
            extension, fault=f"the image has {len(content)} bytes, at most {MAX_IMAGE_BYTES} are taken"
        )
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            width, height = image.size
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError):
        return Medium(extension, fault="the image cannot be read")
    fault = None
    if min(width, height) < _MIN_IMAGE_SIDE:
        fault = f"the image is {width}x{height} pixels, each side must have at least {_MIN_IMAGE_SIDE}"
    elif max(width, height) > _MAX_IMAGE_RATIO * min(width, height):
        fault = f"the image is {width}x{height} pixels, its ratio must lie between 1:2.5 and 2.5:1"
    return Medium(extension, fault=fault)


def inspect_video(path: Path, extension: str) -> Medium:
    """Look at an mp4 or mov: up to 200 MB, 3 to 10 s, 720 to 2160 pixels a side, 24 to 60 frames a second."""
    import av

    try:
        with av.open(str(path)) as container:
            video = container.streams.video[0]
            seconds = (container.duration or 0) / 1_000_000
            sides = (video.width, video.height)
            rate = float(video.average_rate or 0)
    except (av.FFmpegError, IndexError, ValueError, OSError):
        return Medium(extension, fault="the video cannot be read")
    fault = None
    size = path.stat().st_size
    if size > MAX_VIDEO_BYTES:
        fault = f"the video has {size} bytes, at most {MAX_VIDEO_BYTES} are taken"
    elif not _VIDEO_SECONDS[0] - _TOLERANCE <= seconds <= _VIDEO_SECONDS[1] + _TOLERANCE:
        fault = f"the video is {seconds:.2f} s long, 3 to 10 s are taken"
    elif not all(_VIDEO_SIDES[0] <= side <= _VIDEO_SIDES[1] for side in sides):
        fault = f"the video is {sides[0]}x{sides[1]} pixels, each side must have 720 to 2160"
    elif not _VIDEO_RATES[0] - _TOLERANCE <= rate <= _VIDEO_RATES[1] + _TOLERANCE:
        fault = f"the video has {rate:.2f} frames a second, 24 to 60 are taken"
    return Medium(extension, seconds=seconds, fault=fault)
