"""Draws the images and videos that tests hand to the provider."""

from __future__ import annotations

import io
from pathlib import Path

import av
from PIL import Image


def draw_image(
    path: Path, *, size: tuple[int, int] = (400, 300), form: str | None = None, seed: int = 0
) -> Path:
    """Draw an image in the form of the path's suffix, unless another one is asked for; a picture by its seed."""
    path.write_bytes(image_bytes(size=size, form=form or path.suffix[1:], seed=seed))
    return path


def image_bytes(*, size: tuple[int, int] = (400, 300), form: str = "png", seed: int = 0) -> bytes:
    file = io.BytesIO()
    picture = Image.radial_gradient("L").resize(size).convert("RGB")
    picture.putpixel((0, 0), (seed % 256, 0, 0))
    picture.save(file, {"jpg": "JPEG"}.get(form, form.upper()))
    return file.getvalue()


def draw_video(
    path: Path,
    *,
    seconds: float = 3,
    size: tuple[int, int] = (720, 720),
    rate: int = 24,
    sound: bool = False,
    form: str | None = None,
) -> Path:
    """Draw a video in the form of the path's suffix, unless another one is asked for."""
    codec = "libvpx" if path.suffix == ".webm" else "libx264"
    options = {"deadline": "realtime", "cpu-used": "8"} if codec == "libvpx" else {"preset": "ultrafast"}
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        tune = container.add_stream("libopus" if codec == "libvpx" else "aac", rate=48_000) if sound else None
        frame = av.VideoFrame.from_image(Image.new("RGB", size, (10, 90, 200)))  # type: ignore[no-untyped-call]
        for _ in range(round(seconds * rate)):
            frame.pts = None
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if tune is not None:
            silence = av.AudioFrame(format="fltp", layout="mono", samples=1024)
            silence.rate = 48_000
            for plane in silence.planes:
                plane.update(bytes(plane.buffer_size))
            for _ in range(round(seconds * 48_000 / 1024)):
                silence.pts = None
                container.mux(tune.encode(silence))
            container.mux(tune.encode(None))
    return path
