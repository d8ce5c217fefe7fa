from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import av
import pytest
from PIL import Image

from airflow_provider_kling.api.media import (
    MAX_VIDEO_BYTES,
    ImageFacts,
    MediaLibraryMissingError,
    UnreadableMediumError,
    VideoFacts,
    extension_of,
    image_fault,
    media_type_of,
    read_image,
    read_video,
    size_fault,
    video_fault,
)
from airflow_provider_kling.api.request import MAX_IMAGE_BYTES

from ..media import draw_video, image_bytes

IMAGE = ImageFacts("png", 1000, 400, 300)
VIDEO = VideoFacts("mp4", 1000, 5.0, 1280, 720, 24.0, has_sound=False)


@pytest.mark.parametrize(
    ("beginning", "kind", "media_type"),
    [
        (b"\xff\xd8\xff\xe0", "jpg", "image/jpeg"),
        (b"\x89PNG\r\n\x1a\n", "png", "image/png"),
        (b"\0\0\0\x18ftypmp42", "mp4", "video/mp4"),
        (b"\0\0\0\x20ftypisom", "mp4", "video/mp4"),
        (b"\0\0\0\x14ftypqt  ", "mov", "video/quicktime"),
        (b"\0\0\0\x08wide\0\0\0\0", "mov", "video/quicktime"),
        (b"\x1aE\xdf\xa3\0\0\0\0\0\0\0\0", "webm", "video/webm"),
        (b"\0\0\0\x18ftypheic", None, "application/octet-stream"),
        (b"\0\0\0\x18ftypavif", None, "application/octet-stream"),
        (b"GIF89a", None, "application/octet-stream"),
        (b"#EXTM3U\n/etc", None, "application/octet-stream"),
        (b"", None, "application/octet-stream"),
    ],
)
def test_files_are_known_by_their_first_bytes(beginning: bytes, kind: str | None, media_type: str) -> None:
    assert extension_of(beginning) == kind
    assert media_type_of(beginning) == media_type


@pytest.mark.parametrize("form", ["png", "jpg"])
def test_an_image_tells_its_pixels(form: str) -> None:
    content = image_bytes(size=(640, 480), form=form)
    facts = read_image(io.BytesIO(content))
    assert facts == ImageFacts(form, len(content), 640, 480)
    assert facts.media_type == {"png": "image/png", "jpg": "image/jpeg"}[form]
    assert image_fault(facts) is None


@pytest.mark.parametrize("form", ["png", "jpg"])
@pytest.mark.parametrize("left", [0.02, 0.5, 0.95])
def test_an_image_that_is_cut_off_cannot_be_read(form: str, left: float) -> None:
    content = image_bytes(size=(640, 480), form=form)
    with pytest.raises(UnreadableMediumError, match="cut off or broken"):
        read_image(io.BytesIO(content[: max(12, int(len(content) * left))]))


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"<html></html>", b"\0\0\0\x18ftypmp42"])
def test_what_is_neither_jpg_nor_png_is_no_image(content: bytes) -> None:
    with pytest.raises(UnreadableMediumError, match="neither jpg nor png"):
        read_image(io.BytesIO(content))


def test_an_image_with_too_many_bytes_is_not_looked_into() -> None:
    with pytest.raises(
        UnreadableMediumError, match=f"has {MAX_IMAGE_BYTES + 1} bytes, at most {MAX_IMAGE_BYTES}"
    ):
        read_image(io.BytesIO(b"\x89PNG\r\n\x1a\n" + bytes(MAX_IMAGE_BYTES - 7)))


@pytest.mark.filterwarnings("error")
def test_an_image_made_to_fill_the_memory_is_not_decoded() -> None:
    bomb = bytearray(image_bytes(form="jpg"))
    place = bomb.index(b"\xff\xc0")
    bomb[place + 5 : place + 9] = (12_000).to_bytes(2, "big") * 2
    facts = read_image(io.BytesIO(bomb))
    assert (facts.width, facts.height) == (12_000, 12_000)
    bomb[place + 5 : place + 9] = (60_000).to_bytes(2, "big") * 2
    with pytest.raises(UnreadableMediumError):
        read_image(io.BytesIO(bomb))


def test_trouble_with_the_storage_is_not_taken_for_a_broken_image() -> None:
    class Cut(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() == 0 and size != 12:
                raise ConnectionResetError("gone")
            return super().read(size)

    with pytest.raises(ConnectionResetError):
        read_image(Cut(image_bytes()))


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        (IMAGE, None),
        (replace(IMAGE, width=300, height=300), None),
        (replace(IMAGE, width=299, height=300), "299x300 pixels, each side must have at least 300"),
        (replace(IMAGE, width=750, height=300), None),
        (replace(IMAGE, width=751, height=300), "ratio must lie between 1:2.5 and 2.5:1"),
        (replace(IMAGE, width=300, height=751), "ratio must lie between 1:2.5 and 2.5:1"),
        (replace(IMAGE, size_bytes=MAX_IMAGE_BYTES), None),
        (replace(IMAGE, size_bytes=MAX_IMAGE_BYTES + 1), f"at most {MAX_IMAGE_BYTES} are taken"),
        (replace(IMAGE, size_bytes=0), "is empty"),
    ],
)
def test_images_are_held_to_the_limits(facts: ImageFacts, told: str | None) -> None:
    fault = image_fault(facts)
    assert fault is None if told is None else told in str(fault)


@pytest.mark.parametrize(("suffix", "sound"), [("mp4", False), ("mp4", True), ("mov", False), ("webm", True)])
def test_a_video_tells_its_length_its_pixels_its_rate_and_its_sound(
    tmp_path: Path, suffix: str, sound: bool
) -> None:
    path = draw_video(tmp_path / f"x.{suffix}", seconds=3, size=(1280, 720), rate=30, sound=sound)
    with path.open("rb") as file:
        file.seek(100)
        facts = read_video(file)
    assert facts.duration_seconds == pytest.approx(3, abs=0.1)
    assert (facts.width, facts.height, facts.frame_rate) == (1280, 720, pytest.approx(30, abs=0.1))
    assert facts.has_sound is sound
    assert (facts.extension, facts.size_bytes) == (suffix, path.stat().st_size)


def test_a_video_is_known_by_its_content_and_not_by_its_name(tmp_path: Path) -> None:
    path = draw_video(tmp_path / "x.mp4", form="mov")
    with path.open("rb") as file:
        assert read_video(file).media_type == "video/quicktime"


def test_a_video_is_read_without_reading_all_of_it(tmp_path: Path) -> None:
    path = draw_video(tmp_path / "x.mp4")
    content = path.read_bytes()
    index = content.index(b"mdat") - 4
    # A box that nobody needs, before the pictures.
    padding = (8 + 50_000_000).to_bytes(4, "big") + b"free" + bytes(50_000_000)

    class Counted(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1, /) -> bytes:
            block = super().read(size)
            self.taken += len(block)
            return block

    file = Counted(content[:index] + padding + content[index:])
    read_video(file)
    assert file.taken < 1_000_000


@pytest.mark.parametrize("content", [b"", b"GIF89a", image_bytes(), b"#EXTM3U\n#EXTINF:3,\n/etc/hostname\n"])
def test_what_is_neither_mp4_nor_mov_is_no_video(content: bytes) -> None:
    with pytest.raises(UnreadableMediumError, match="neither mp4 nor mov"):
        read_video(io.BytesIO(content))


def test_what_is_no_video_inside_cannot_be_read(tmp_path: Path) -> None:
    whole = draw_video(tmp_path / "x.mp4").read_bytes()
    for content in (b"\0\0\0\x18ftypmp42" + bytes(100), whole[:600], b"\x1aE\xdf\xa3" + bytes(100)):
        with pytest.raises(UnreadableMediumError, match="cut off or broken"):
            read_video(io.BytesIO(content))


def test_sound_alone_is_no_video_even_with_a_cover(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    with av.open(str(path), "w") as container:
        container.add_stream("aac", rate=48_000)
        cover = container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "rgb24"
        cover.disposition = type(cover.disposition).attached_pic.value
        frame = av.VideoFrame.from_image(Image.new("RGB", (64, 64)))  # type: ignore[no-untyped-call]
        container.mux(cover.encode(frame))
        container.mux(cover.encode(None))
    with path.open("rb") as file, pytest.raises(UnreadableMediumError, match="no picture"):
        read_video(file)


def test_trouble_with_the_storage_is_not_taken_for_a_broken_video(tmp_path: Path) -> None:
    class Cut(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if size != 12:
                raise ConnectionResetError("gone")
            return super().read(size)

    with pytest.raises(ConnectionResetError):
        read_video(Cut(draw_video(tmp_path / "x.mp4").read_bytes()))


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        (VIDEO, None),
        (replace(VIDEO, duration_seconds=3.0), None),
        (replace(VIDEO, duration_seconds=10.04), None),
        (replace(VIDEO, duration_seconds=2.9), "2.90 s long, 3 to 10 s are taken"),
        (replace(VIDEO, duration_seconds=10.1), "3 to 10 s are taken"),
        (replace(VIDEO, duration_seconds=None), "3 to 10 s are taken"),
        (replace(VIDEO, width=718), "718x720 pixels, each side must have 720 to 2160"),
        (replace(VIDEO, height=2160, width=2160), None),
        (replace(VIDEO, height=2162), "720 to 2160"),
        (replace(VIDEO, frame_rate=23.976), None),
        (replace(VIDEO, frame_rate=60.0), None),
        (replace(VIDEO, frame_rate=12.0), "12.00 frames a second, 24 to 60 are taken"),
        (replace(VIDEO, frame_rate=61.0), "24 to 60"),
        (replace(VIDEO, frame_rate=None), "24 to 60"),
        (replace(VIDEO, size_bytes=MAX_VIDEO_BYTES), None),
        (replace(VIDEO, size_bytes=MAX_VIDEO_BYTES + 1), f"at most {MAX_VIDEO_BYTES} are taken"),
        (replace(VIDEO, extension="mov"), None),
        (replace(VIDEO, extension="webm"), "webm, mp4 and mov are taken"),
    ],
)
def test_videos_are_held_to_the_limits(facts: VideoFacts, told: str | None) -> None:
    fault = video_fault(facts)
    assert fault is None if told is None else told in str(fault)


def test_the_limits_of_size_are_those_of_the_service() -> None:
    assert MAX_VIDEO_BYTES == 200 * 1024 * 1024
    assert size_fault("image", MAX_IMAGE_BYTES) is None
    assert size_fault("video", MAX_IMAGE_BYTES + 1) is None
    assert "the image has" in str(size_fault("image", MAX_IMAGE_BYTES + 1))


@pytest.mark.parametrize(
    ("library", "named", "look"), [("PIL", "Pillow", read_image), ("av", "PyAV", read_video)]
)
def test_a_missing_library_is_told_with_the_extra_to_install(
    monkeypatch: pytest.MonkeyPatch, library: str, named: str, look: Callable[[BinaryIO], object]
) -> None:
    content = io.BytesIO(image_bytes())
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MediaLibraryMissingError, match=named) as raised:
        look(content)
    assert "pip install 'airflow-provider-kling[media]'" in str(raised.value)
    assert not raised.value.retryable
