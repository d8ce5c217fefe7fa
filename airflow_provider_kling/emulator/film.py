"""
Draws the videos: real MP4 files with moving pictures, the prompt and the task id in them, and a tune when sound is on.

Needs the extra ``emulator`` of the distribution (PyAV and Pillow), which is imported only when a film is drawn.
"""

from __future__ import annotations

import bisect
import colorsys
import hashlib
import importlib.util
import math
import os
import random
import tempfile
import threading
from array import array
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from av.audio.frame import AudioFrame
    from PIL import Image, ImageFont

    _Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FRAMES_PER_SECOND = 24
SAMPLES_PER_SECOND = 24_000
DEFAULT_SCALE = 0.25
"""Keeps a 5 s clip well under half a second of CPU, in both modes."""

_SHORT_SIDE = {"std": 720, "pro": 1080}
_SMALLEST_SIDE = 32
_EXTRA = ("av", "PIL")
_NOTE_SECONDS = 0.5
_PENTATONIC = (0, 2, 4, 7, 9, 12)
_ROOTS = (-2, 0, 3, 5)
_DRAWN_CHARACTERS = 400
_Colour = tuple[int, int, int]


class EmulatorExtraMissingError(ImportError):
    """The packages that draw videos are not installed."""

    def __init__(self, missing: list[str]) -> None:
        super().__init__(
            f"The emulator draws real videos and needs packages that are not installed ({', '.join(missing)}). "
            "Install its extra: pip install 'airflow-provider-kling[emulator]'"
        )


def require_extra() -> None:
    """
    Check that what draws videos is installed, without importing it.

    :raises EmulatorExtraMissingError: naming the extra that is to be installed.
    """
    names = {"av": "av", "PIL": "pillow"}
    missing = [names[module] for module in _EXTRA if importlib.util.find_spec(module) is None]
    if missing:
        raise EmulatorExtraMissingError(missing)


class FrameSize(NamedTuple):
    """Pixels of a picture."""

    width: int
    height: int


def frame_size(mode: str, aspect_ratio: str, scale: float = 1.0) -> FrameSize:
    """
    Return a video's pixels; both sides are even, as H.264 asks.

    :param mode: ``std`` (short side 720) or ``pro`` (1080).
    :param aspect_ratio: ``16:9``, ``9:16`` or ``1:1``.
    :param scale: factor on both sides; no side gets shorter than 32.
    """
    across, down = (int(part) for part in aspect_ratio.split(":"))
    short = _SHORT_SIDE[mode]

    def side(part: int) -> int:
        return max(_SMALLEST_SIDE, 2 * round(short * part / min(across, down) * scale / 2))

    return FrameSize(side(across), side(down))


@dataclass(frozen=True)
class Film:
    """
    What a film shows. Two equal ones are drawn alike, byte for byte, by the same versions of PyAV and Pillow.

    :param task_id: drawn into the upper corner.
    :param prompt: drawn into the lower third, wrapped and cut.
    :param seconds: length of the film.
    :param size: pixels.
    :param sound: whether it has an audio track with a tune.
    """

    task_id: str
    prompt: str
    seconds: float
    size: FrameSize
    sound: bool = False


def render(film: Film, path: Path) -> None:
    """
    Draw a film into an MP4 file (H.264 with yuv420p, AAC, index at the front) that browsers play as it loads.

    :raises EmulatorExtraMissingError: where the extra ``emulator`` is not installed.
    """
    require_extra()
    import av

    frames = max(1, round(film.seconds * FRAMES_PER_SECOND))
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        video = container.add_stream(
            "libx264",
            rate=FRAMES_PER_SECOND,
            # One thread: many films may be drawn side by side, and the bytes stay the same on any machine.
            options={"preset": "superfast", "crf": "28", "threads": "1", "g": str(2 * FRAMES_PER_SECOND)},
        )
        video.width, video.height = film.size
        video.pix_fmt = "yuv420p"
        tune = _tune(film) if film.sound else iter(())
        audio = (
            container.add_stream("aac", rate=SAMPLES_PER_SECOND, layout="mono", options={"b": "48000"})
            if film.sound
            else None
        )
        played = 0
        for number, picture in enumerate(_pictures(film, frames)):
            frame = av.VideoFrame.from_image(picture)  # type: ignore[no-untyped-call]
            container.mux(video.encode(frame))
            while audio is not None and played <= (number + 1) * SAMPLES_PER_SECOND // FRAMES_PER_SECOND:
                sounds = next(tune, None)
                if sounds is None:
                    break
                played += sounds.samples
                container.mux(audio.encode(sounds))
        container.mux(video.encode(None))
        if audio is not None:
            container.mux(audio.encode(None))


def _luck(film: Film, purpose: str) -> random.Random:
    seed = hashlib.sha256(f"{purpose}\0{film.task_id}\0{film.prompt}".encode("utf-8", "replace")).digest()
    return random.Random(seed)  # noqa: S311 - it draws colours and hills


def _pictures(film: Film, frames: int) -> Iterator[Image.Image]:
    """Paint a sun that crosses the sky behind three ranges of hills, which pass by the faster the nearer they are."""
    from PIL import Image, ImageDraw

    luck, (width, height) = _luck(film, "pictures"), film.size
    hue = luck.random()
    sky = _sky(film.size, _colour(hue, 0.65, 0.45), _colour(hue + 0.12, 0.45, 0.98))
    hills = [
        (
            _range_of_hills(luck, film.size, top=0.45 + 0.14 * nearness, peak=0.16 - 0.03 * nearness),
            _colour(hue + 0.02 * nearness, 0.6, 0.55 - 0.15 * nearness),
            0.05 + 0.09 * nearness,
        )
        for nearness in range(3)
    ]
    sun_size = max(8, height // 6)
    sun = Image.new("L", (4 * sun_size, 4 * sun_size))
    ImageDraw.Draw(sun).ellipse((0, 0, 4 * sun_size - 1, 4 * sun_size - 1), fill=255)
    sun = sun.resize((sun_size, sun_size), Image.Resampling.BOX)
    sun_colour = _colour(hue + 0.1, 0.2, 1.0)
    bands = _writing(film)
    bar = max(2, height // 60)

    for number in range(frames):
        way = (number + 1) / frames
        picture = sky.copy()
        sun_at = (
            round(way * (width - sun_size)),
            round(height * (0.42 - 0.34 * math.sin(math.pi * way))),
        )
        picture.paste(sun_colour, (*sun_at, sun_at[0] + sun_size, sun_at[1] + sun_size), sun)
        for (top, ridge), colour, speed in hills:
            passed = round(number / FRAMES_PER_SECOND * speed * width) % width
            foot = top + ridge.height
            picture.paste(
                colour, (0, top, width, foot), ridge.crop((passed, 0, passed + width, ridge.height))
            )
            picture.paste(colour, (0, foot, width, height))
        for top, writing, opacity in bands:
            picture.paste(writing, (0, top), opacity)
        picture.paste((255, 255, 255), (0, height - bar, max(1, round(way * width)), height))
        yield picture


def _colour(hue: float, saturation: float, value: float) -> _Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _sky(size: FrameSize, above: _Colour, below: _Colour) -> Image.Image:
    from PIL import Image

    column = Image.new("RGB", (1, size.height))
    for row in range(size.height):
        share = row / size.height
        red, green, blue = (round(a + (b - a) * share) for a, b in zip(above, below, strict=True))
        column.putpixel((0, row), (red, green, blue))
    return column.resize(size, Image.Resampling.NEAREST)


def _range_of_hills(
    luck: random.Random, size: FrameSize, *, top: float, peak: float
) -> tuple[int, Image.Image]:
    """
    Return where a range of hills begins, in rows from above, and the outline of its ridge.

    The outline is twice as wide as the picture and its second half repeats the first, so it can go round.
    """
    from PIL import Image, ImageDraw

    width, height = size
    waves = [(turns, luck.random() * math.tau, luck.uniform(0.3, 1.0) / turns) for turns in (1, 2, 3, 5, 8)]
    whole = sum(share for _, _, share in waves)

    def row(x: int) -> int:
        wave = sum(share * math.sin(math.tau * turns * x / width + start) for turns, start, share in waves)
        return round(height * (top + peak * wave / whole))

    rows = [row(x) for x in range(width)]
    first = min(rows)
    outline = Image.new("L", (2 * width, max(rows) - first + 1))
    draw = ImageDraw.Draw(outline)
    for x, y in enumerate((*rows, *rows)):
        draw.line((x, y - first, x, outline.height), fill=255)
    return first, outline


def _writing(film: Film) -> list[tuple[int, Image.Image, Image.Image]]:
    """Return the bands that are written over each picture: row of the upper edge, picture, opacity."""
    width, height = film.size
    letters = max(9, round(min(width, height) * 0.062))
    margin = max(2, letters // 2)

    small = _font(max(8, round(letters * 0.8)))
    head = _wrap(f"{film.task_id}  ·  emulator", small, width - 2 * margin, most_lines=2)
    bands = [(0, *_band(head, small, width, step=round(letters * 0.95), margin=margin, opacity=120))]

    font, step = _font(letters), round(letters * 1.25)
    body = _wrap(film.prompt, font, width - 2 * margin, most_lines=max(1, height // 3 // step))
    if body:
        band = _band(body, font, width, step=step, margin=margin, opacity=150)
        bands.append((height - band[0].height, *band))
    return bands


def _band(
    lines: list[str], font: _Font, width: int, *, step: int, margin: int, opacity: int
) -> tuple[Image.Image, Image.Image]:
    from PIL import Image, ImageDraw

    height = step * len(lines) + 2 * margin
    page, seen = Image.new("RGB", (width, height), (16, 16, 24)), Image.new("L", (width, height), opacity)
    for number, line in enumerate(lines):
        at = (margin, margin // 2 + number * step)
        ImageDraw.Draw(page).text(at, line, font=font, fill=(255, 255, 255))
        ImageDraw.Draw(seen).text(at, line, font=font, fill=255)
    return page, seen


@lru_cache(maxsize=16)
def _font(size: int) -> _Font:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _wrap(text: str, font: _Font, width: int, *, most_lines: int) -> list[str]:
    """Break text into lines no wider than ``width`` pixels; what is too much ends in an ellipsis."""
    # Fonts refuse lone surrogates, and draw control characters as boxes.
    drawable = text[:_DRAWN_CHARACTERS].encode("utf-8", "replace").decode()
    words = "".join(letter if letter.isprintable() else " " for letter in drawable).split()
    lines: list[str] = []
    line = ""
    for word in words:
        longer = f"{line} {word}" if line else word
        if font.getlength(longer) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        line = word
        # A word may be longer than a line: scripts that write without spaces have no others.
        while len(lines) <= most_lines and len(line) > (fits := _fitting(line, font, width)):
            lines.append(line[:fits])
            line = line[fits:]
    if line:
        lines.append(line)
    if len(lines) > most_lines or (lines and len(text) > _DRAWN_CHARACTERS):
        lines = lines[:most_lines]
        last = lines[-1]
        lines[-1] = last[: _fitting(last, font, width - font.getlength("…"))] + "…"
    return lines


def _fitting(line: str, font: _Font, width: float) -> int:
    """Return how many of a line's characters fit into so many pixels, at least 1."""
    lengths = range(1, len(line) + 1)
    return max(1, bisect.bisect_right(lengths, width, key=lambda length: font.getlength(line[:length])))


def _tune(film: Film) -> Iterator[AudioFrame]:
    import av

    luck = _luck(film, "tune")
    root = luck.choice(_ROOTS)
    samples_of_note = int(SAMPLES_PER_SECOND * _NOTE_SECONDS)
    left, played = round(film.seconds * SAMPLES_PER_SECOND), 0
    while left > 0:
        samples = min(left, samples_of_note)
        frame = av.AudioFrame(format="s16", layout="mono", samples=samples)
        frame.sample_rate = SAMPLES_PER_SECOND
        frame.pts = played
        frame.planes[0].update(_note(root + luck.choice(_PENTATONIC), samples_of_note)[: samples * 2])
        yield frame
        left -= samples
        played += samples


@lru_cache(maxsize=32)
def _note(semitone: int, samples: int) -> bytes:
    """Return the samples of a plucked note, so many semitones above 220 Hz."""
    turn = math.tau * 220 * 2 ** (semitone / 12) / SAMPLES_PER_SECOND
    fade = 4.0 / samples
    sounds = array("h")
    for n in range(samples):
        # The first 5 ms rise, so that no note begins with a click.
        loudness = 9000 * math.exp(-fade * n) * min(1.0, n / (0.005 * SAMPLES_PER_SECOND))
        sounds.append(round(loudness * math.sin(turn * n)))
    return sounds.tobytes()


class FilmStore:
    """
    Films on disk, each drawn when it is first asked for.

    :param directory: where they are kept; it must exist.
    :param max_bytes: above it, the films that nobody asked for longest are deleted, to be drawn again when needed.
    """

    def __init__(self, directory: Path, *, max_bytes: int = 256 * 1024 * 1024) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, int] = OrderedDict()
        self._drawing: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self.drawn = 0

    def find(self, film: Film) -> Path | None:
        """Return the film's file if it is there."""
        name = self._name(film)
        with self._lock:
            if name not in self._kept:
                return None
            self._kept.move_to_end(name)
            return self._directory / name

    def fetch(self, film: Film, *, modified_at: float) -> Path:
        """
        Return the film's file, drawing it if it is not there. Blocks while it is drawn.

        :param modified_at: epoch seconds to date the file with, so that a film drawn again stays the same to caches.
        """
        name = self._name(film)
        with self._lock:
            drawing = self._drawing.setdefault(name, threading.Lock())
        try:
            with drawing:
                return self.find(film) or self._draw(film, name, modified_at)
        finally:
            with self._lock:
                self._drawing.pop(name, None)

    def _draw(self, film: Film, name: str, modified_at: float) -> Path:
        with tempfile.TemporaryDirectory(dir=self._directory) as directory:
            unfinished = Path(directory) / name
            render(film, unfinished)
            os.utime(unfinished, (modified_at, modified_at))
            path = unfinished.replace(self._directory / name)
        self._keep(name, path)
        return path

    def _keep(self, name: str, path: Path) -> None:
        with self._lock:
            self.drawn += 1
            self._kept[name] = path.stat().st_size
            while sum(self._kept.values()) > self._max_bytes and len(self._kept) > 1:
                oldest, _ = self._kept.popitem(last=False)
                (self._directory / oldest).unlink(missing_ok=True)

    @staticmethod
    def _name(film: Film) -> str:
        return f"{hashlib.sha256(repr(film).encode('utf-8', 'replace')).hexdigest()[:40]}.mp4"
