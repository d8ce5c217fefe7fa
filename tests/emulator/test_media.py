from __future__ import annotations

import io
from pathlib import Path

import av
import pytest
from PIL import Image

from airflow_provider_kling.emulator import media
from airflow_provider_kling.emulator.media import inspect_image, inspect_video, kind_of


def draw(path: Path, *, seconds: float = 3, size: tuple[int, int] = (720, 720), rate: int = 24) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_image(Image.new("RGB", size, (10, 90, 200)))  # type: ignore[no-untyped-call]
        for _ in range(round(seconds * rate)):
            frame.pts = None
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("beginning", "kind"),
    [
        (b"\xff\xd8\xff\xe0", "jpg"),
        (b"\x89PNG\r\n\x1a\n", "png"),
        (b"\0\0\0\x18ftypmp42", "mp4"),
        (b"\0\0\0\x14ftypqt  ", "mov"),
        (b"GIF89a", None),
        (b"", None),
    ],
)
def test_files_are_known_by_their_first_bytes(beginning: bytes, kind: str | None) -> None:
    assert kind_of(beginning) == kind


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({}, None),
        ({"seconds": 2.5}, "3 to 10 s"),
        ({"seconds": 10.5}, "3 to 10 s"),
        ({"size": (720, 718)}, "720 to 2160"),
        ({"rate": 12}, "24 to 60"),
    ],
)
def test_videos_are_held_to_the_limits(tmp_path: Path, how: dict[str, object], told: str | None) -> None:
    medium = inspect_video(draw(tmp_path / "x.mp4", **how), "mp4")  # type: ignore[arg-type]
    assert medium.is_video
    if told is None:
        assert medium.fault is None
        assert medium.seconds == pytest.approx(3, abs=0.01)
    else:
        assert told in str(medium.fault)


def test_a_video_above_the_limit_of_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MAX_VIDEO_BYTES", 100)
    assert "at most 100" in str(inspect_video(draw(tmp_path / "x.mp4"), "mp4").fault)


def test_what_is_no_video_inside_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(b"\0\0\0\x18ftypmp42" + bytes(100))
    assert "cannot be read" in str(inspect_video(path, "mp4").fault)


def test_an_image_above_the_limit_of_bytes_or_of_another_kind_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = io.BytesIO()
    Image.new("RGB", (400, 400)).save(file, "GIF")
    assert "neither jpg nor png" in str(inspect_image(file.getvalue()).fault)
    monkeypatch.setattr(media, "MAX_IMAGE_BYTES", 10)
    assert "at most 10" in str(inspect_image(b"\x89PNG\r\n\x1a\n" + bytes(20)).fault)
