"""
Looks into images and videos, and holds references to the service's limits.

Needs the extra ``media`` of the distribution (Pillow for images, PyAV for videos), which is imported only when a
file is looked at.
"""

from __future__ import annotations

import importlib
import io
import os
import warnings
from dataclasses import dataclass
from typing import Any, BinaryIO

from airflow_provider_kling.api.errors import KlingError
from airflow_provider_kling.api.request import BASE_VIDEO_SECONDS, MAX_IMAGE_BYTES

MAX_VIDEO_BYTES = 200 * 1024 * 1024
"""The largest reference video that the service takes."""
MIN_IMAGE_SIDE = 300
"""The shortest side of a reference image that the service takes, pixels."""
MAX_IMAGE_RATIO = 2.5
"""How much longer than the other a side of a reference image may be."""
VIDEO_SIDES = (720, 2160)
"""The shortest and the longest side of a reference video that the service takes, pixels."""
VIDEO_FRAME_RATES = (24, 60)
"""The lowest and the highest frame rate of a reference video that the service takes, frames a second."""
BEGINNING_BYTES = 12
"""How much of a file's beginning :func:`extension_of` needs."""

_TOLERANCE = 0.05
"""Seconds, and frames a second: containers round."""
_MOST_DECODED_PIXELS = 50_000_000
"""Images above are not decoded to see whether they are whole: that would cost hundreds of megabytes."""
_MEDIA_TYPES = {
    "jpg": "image/jpeg",
    "png": "image/png",
    "mp4": "video/mp4",
    "mov": "video/quicktime",
    "webm": "video/webm",
}
_CONTAINERS = {"mp4": "mov", "mov": "mov", "webm": "matroska"}
"""FFmpeg's reader by extension. It is always named: left to guess, FFmpeg takes a playlist that opens other files."""
_PICTURE_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
_OLD_QUICKTIME = (b"moov", b"mdat", b"wide", b"free", b"skip")
"""What QuickTime files begin with that are older than the box ``ftyp``."""


class MediaLibraryMissingError(KlingError):
    """The library that looks into an image or a video is not installed; nothing was sent."""

    default_next_step = (
        "Nothing was sent and nothing was billed. Install the extra where tasks run: "
        "pip install 'airflow-provider-kling[media]'."
    )


class UnreadableMediumError(ValueError):
    """A file is no image or video that can be read. Its text is the reason, such as ``the video cannot be read``."""


@dataclass(frozen=True)
class ImageFacts:
    """
    What an image file says of itself.

    :param extension: ``jpg`` or ``png``, by its content.
    :param size_bytes: the file's size.
    :param width: pixels.
    :param height: pixels.
    """

    extension: str
    size_bytes: int
    width: int
    height: int

    @property
    def media_type(self) -> str:
        """Such as ``image/jpeg``."""
        return _MEDIA_TYPES[self.extension]


@dataclass(frozen=True)
class VideoFacts:
    """
    What a video file says of itself.

    :param extension: ``mp4``, ``mov`` or ``webm``, by its content.
    :param size_bytes: the file's size.
    :param duration_seconds: its length, None where it does not tell.
    :param width: pixels.
    :param height: pixels.
    :param frame_rate: frames a second, None where it does not tell.
    :param has_sound: whether it has a track of sound.
    """

    extension: str
    size_bytes: int
    duration_seconds: float | None
    width: int
    height: int
    frame_rate: float | None
    has_sound: bool

    @property
    def media_type(self) -> str:
        """Such as ``video/mp4``."""
        return _MEDIA_TYPES[self.extension]


def extension_of(beginning: bytes) -> str | None:
    """
    Tell what a file is by its first :data:`BEGINNING_BYTES`.

    :return: ``jpg``, ``png``, ``mp4``, ``mov`` or ``webm`` (Matroska too); None for anything else.
    """
    if beginning.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if beginning.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if beginning.startswith(b"\x1aE\xdf\xa3"):
        return "webm"
    box, brand = beginning[4:8], beginning[8:12]
    if box == b"ftyp" and brand not in _PICTURE_BRANDS:
        return "mov" if brand.startswith(b"qt") else "mp4"
    return "mov" if box in _OLD_QUICKTIME else None


def media_type_of(beginning: bytes) -> str:
    """Return the media type of a file by its first :data:`BEGINNING_BYTES`, ``application/octet-stream`` if unknown."""
    extension = extension_of(beginning)
    return _MEDIA_TYPES[extension] if extension else "application/octet-stream"


def read_image(file: BinaryIO) -> ImageFacts:
    """
    Look into a jpg or png, and see whether it is whole.

    :param file: seekable, at any position.
    :raises UnreadableMediumError: where it is neither, has more than 10 MB or cannot be read.
    :raises MediaLibraryMissingError: where Pillow is not installed.
    """
    pil, image_file = _library("PIL", "Pillow"), _library("PIL.Image", "Pillow")
    size = _size_of(file)
    extension = extension_of(file.read(BEGINNING_BYTES))
    if extension not in ("jpg", "png"):
        raise UnreadableMediumError("the image is neither jpg nor png")
    if fault := size_fault("image", size):
        raise UnreadableMediumError(fault)
    file.seek(0)
    # All of it first: from here on an error is the image's, not the storage's.
    content = io.BytesIO(file.read(MAX_IMAGE_BYTES))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", image_file.DecompressionBombWarning)
            with image_file.open(content, formats=("JPEG", "PNG")) as image:
                width, height = image.size
                if extension == "png":
                    image.verify()
                elif width * height <= _MOST_DECODED_PIXELS:
                    image.draft("RGB", (1, 1))
                    image.load()
    except (
        pil.UnidentifiedImageError,
        image_file.DecompressionBombError,
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
    ) as error:
        raise UnreadableMediumError("the image cannot be read: it is cut off or broken") from error
    return ImageFacts(extension, size, width, height)


def read_video(file: BinaryIO) -> VideoFacts:
    """
    Look into an mp4, mov or webm, reading as little of it as its form allows.

    :param file: seekable, at any position. What its own methods raise comes through.
    :raises UnreadableMediumError: where it is none of them, has no picture or cannot be read.
    :raises MediaLibraryMissingError: where PyAV is not installed.
    """
    av: Any = _library("av", "PyAV")
    size = _size_of(file)
    extension = extension_of(file.read(BEGINNING_BYTES))
    if extension not in _CONTAINERS:
        raise UnreadableMediumError("the video is neither mp4 nor mov")
    file.seek(0)
    try:
        with av.open(file, format=_CONTAINERS[extension], metadata_errors="replace") as container:
            pictures = [each for each in container.streams.video if not _is_cover(each)]
            if not pictures:
                raise UnreadableMediumError("the video has no picture")
            stream = pictures[0]
            rate = stream.average_rate or stream.guessed_rate
            return VideoFacts(
                extension,
                size,
                _seconds_of(container, stream, av.time_base),
                stream.width,
                stream.height,
                float(rate) if rate else None,
                bool(container.streams.audio),
            )
    except av.FFmpegError as error:
        raise UnreadableMediumError("the video cannot be read: it is cut off or broken") from error


def size_fault(kind: str, size_bytes: int) -> str | None:
    """
    Tell why the service would not take a reference of this size.

    :param kind: ``image`` (up to 10 MB) or ``video`` (up to 200 MB).
    :return: None where it would.
    """
    most = MAX_IMAGE_BYTES if kind == "image" else MAX_VIDEO_BYTES
    if size_bytes > most:
        return f"the {kind} has {size_bytes} bytes, at most {most} are taken"
    return None if size_bytes else f"the {kind} is empty"


def image_fault(facts: ImageFacts) -> str | None:
    """
    Tell why the service would not take an image as a reference.

    It takes jpg and png up to 10 MB, each side at least 300 pixels, ratio 1:2.5 to 2.5:1.

    :return: None where it would.
    """
    width, height = facts.width, facts.height
    if fault := size_fault("image", facts.size_bytes):
        return fault
    if min(width, height) < MIN_IMAGE_SIDE:
        return f"the image is {width}x{height} pixels, each side must have at least {MIN_IMAGE_SIDE}"
    if max(width, height) > MAX_IMAGE_RATIO * min(width, height):
        return f"the image is {width}x{height} pixels, its ratio must lie between 1:2.5 and 2.5:1"
    return None


def video_fault(facts: VideoFacts) -> str | None:
    """
    Tell why the service would not take a video as a reference.

    It takes mp4 and mov up to 200 MB, 3 to 10 seconds, 720 to 2160 pixels a side, 24 to 60 frames a second.

    :return: None where it would.
    """
    width, height = facts.width, facts.height
    if facts.extension not in ("mp4", "mov"):
        return f"the video is {facts.extension}, mp4 and mov are taken"
    if fault := size_fault("video", facts.size_bytes):
        return fault
    seconds, rate = facts.duration_seconds or 0.0, facts.frame_rate or 0.0
    shortest, longest = BASE_VIDEO_SECONDS
    if not shortest - _TOLERANCE <= seconds <= longest + _TOLERANCE:
        return f"the video is {seconds:.2f} s long, {shortest} to {longest} s are taken"
    least, most = VIDEO_SIDES
    if not (least <= width <= most and least <= height <= most):
        return f"the video is {width}x{height} pixels, each side must have {least} to {most}"
    slowest, fastest = VIDEO_FRAME_RATES
    if not slowest - _TOLERANCE <= rate <= fastest + _TOLERANCE:
        return f"the video has {rate:.2f} frames a second, {slowest} to {fastest} are taken"
    return None


def _library(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MediaLibraryMissingError(
            f"{name}, which looks into files, cannot be loaded: {error}"
        ) from error


def _size_of(file: BinaryIO) -> int:
    file.seek(0, os.SEEK_END)
    size = file.tell()
    file.seek(0)
    return size


def _is_cover(stream: Any) -> bool:
    """Tell a still picture that belongs to a track of sound from moving pictures."""
    return bool(stream.disposition & type(stream.disposition).attached_pic)


def _seconds_of(container: Any, stream: Any, time_base: int) -> float | None:
    if container.duration:
        return float(container.duration) / time_base
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return None
