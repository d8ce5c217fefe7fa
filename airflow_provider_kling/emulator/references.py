"""What the emulator makes of the references that it has itself: uploads, and images inside a request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from airflow_provider_kling.api.media import (
    BEGINNING_BYTES,
    UnreadableMediumError,
    extension_of,
    image_fault,
    read_image,
    read_video,
    video_fault,
)

TAKEN = ("jpg", "png", "mp4", "mov")
"""The kinds of file that the service takes as references."""


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


def inspect(file: BinaryIO) -> Medium:
    """Look at a file and hold it to the service's limits."""
    extension = extension_of(file.read(BEGINNING_BYTES)) or ""
    try:
        if extension in ("mp4", "mov"):
            video = read_video(file)
            return Medium(extension, seconds=video.duration_seconds or 0.0, fault=video_fault(video))
        return Medium(extension, fault=image_fault(read_image(file)))
    except UnreadableMediumError as error:
        return Medium(extension, fault=str(error))
