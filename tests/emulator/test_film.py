from __future__ import annotations

import itertools
import random
import statistics
import threading
import time
from array import array
from pathlib import Path

import av
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageStat

from airflow_provider_kling.emulator import film as film_module
from airflow_provider_kling.emulator.film import (
    EmulatorExtraMissingError,
    Film,
    FilmStore,
    FrameSize,
    frame_size,
    render,
)
from tests.machine import slowness

SMALL = FrameSize(64, 36)


def pictures_of(path: Path) -> list[Image.Image]:
    with av.open(str(path)) as container:
        return [frame.to_image() for frame in container.decode(video=0)]  # type: ignore[no-untyped-call]


def difference(one: Image.Image, other: Image.Image) -> float:
    return sum(ImageStat.Stat(ImageChops.difference(one, other)).mean)


@pytest.mark.parametrize(
    ("mode", "aspect_ratio", "size"),
    [
        ("std", "16:9", (1280, 720)),
        ("std", "9:16", (720, 1280)),
        ("std", "1:1", (720, 720)),
        ("pro", "16:9", (1920, 1080)),
        ("pro", "9:16", (1080, 1920)),
        ("pro", "1:1", (1080, 1080)),
    ],
)
def test_at_full_scale_std_is_720p_and_pro_is_1080p(
    mode: str, aspect_ratio: str, size: tuple[int, int]
) -> None:
    assert frame_size(mode, aspect_ratio) == size


@given(st.sampled_from(["std", "pro"]), st.sampled_from(["16:9", "9:16", "1:1"]), st.floats(0.001, 2))
def test_at_any_scale_both_sides_are_even_as_h264_asks(mode: str, aspect_ratio: str, scale: float) -> None:
    width, height = frame_size(mode, aspect_ratio, scale)
    assert width % 2 == height % 2 == 0
    assert min(width, height) >= 32


@pytest.mark.parametrize("aspect_ratio", ["16:9", "9:16", "1:1"])
@pytest.mark.parametrize("seconds", [3, 10])
def test_a_film_has_the_asked_length_and_pixels(tmp_path: Path, aspect_ratio: str, seconds: int) -> None:
    size = frame_size("std", aspect_ratio, 0.1)
    path = tmp_path / "film.mp4"
    render(Film("cl1", "A prompt", seconds, size), path)
    with av.open(str(path)) as container:
        assert container.duration is not None
        assert container.duration / 1_000_000 == pytest.approx(seconds, abs=0.05)
        assert (container.streams.video[0].width, container.streams.video[0].height) == size
        assert not container.streams.audio


def test_browsers_play_it_as_it_loads(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    render(Film("cl1", "A prompt", 3, SMALL, sound=True), path)
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat"), "the index stands before the data"
    with av.open(str(path)) as container:
        video = container.streams.video[0].codec_context
        assert (video.name, video.pix_fmt) == ("h264", "yuv420p")
        assert container.streams.audio[0].codec_context.name == "aac"


def test_pictures_move_and_none_is_black(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    render(Film("cl1", "A prompt", 3, frame_size("std", "16:9", 0.25)), path)
    pictures = pictures_of(path)
    assert len(pictures) == 3 * 24
    assert all(ImageStat.Stat(picture.convert("L")).extrema[0][1] > 150 for picture in pictures)
    seconds = pictures[::24]
    assert all(difference(before, after) > 1 for before, after in itertools.pairwise(seconds))


def test_prompt_and_task_id_are_drawn_in(tmp_path: Path) -> None:
    size = frame_size("std", "16:9", 0.5)
    luck = film_module._luck(Film("x", "y", 1, size), "pictures").getstate()

    def draw(task_id: str, prompt: str) -> Image.Image:
        path = tmp_path / "film.mp4"
        render(Film(task_id, prompt, 0.1, size), path)
        return pictures_of(path)[0]

    def same_scenery(film: Film, purpose: str) -> object:
        luck_of_it = random.Random()
        luck_of_it.setstate(luck)
        return luck_of_it

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(film_module, "_luck", same_scenery)
        plain, other_id, other_prompt = draw("cl1", "A cat"), draw("dm2", "A cat"), draw("cl1", "My dog")
    width, height = size
    top, middle, bottom = (0, 0, width, 40), (0, 60, width, height - 90), (0, height - 60, width, height)
    assert difference(plain.crop(top), other_id.crop(top)) > 0.5
    assert difference(plain.crop(bottom), other_id.crop(bottom)) < 0.2
    assert difference(plain.crop(bottom), other_prompt.crop(bottom)) > 0.5
    assert difference(plain.crop(middle), other_prompt.crop(middle)) < 0.2


def test_sound_is_an_audible_track_of_the_films_length(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    render(Film("cl1", "A prompt", 4, SMALL, sound=True), path)
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    assert sum(frame.samples / frame.sample_rate for frame in frames) == pytest.approx(4, abs=0.1)
    samples = array("f", b"".join(bytes(frame.planes[0])[: frame.samples * 4] for frame in frames))
    halves = samples[: len(samples) // 2], samples[len(samples) // 2 :]
    for half in halves:
        assert (sum(sample * sample for sample in half) / len(half)) ** 0.5 > 0.03


def test_the_same_film_is_the_same_bytes_and_another_is_not(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.mp4" for n in range(3)]
    for path, task_id in zip(paths, ("cl1", "cl1", "cl2"), strict=True):
        render(Film(task_id, "A prompt", 3, SMALL, sound=True), path)
    assert paths[0].read_bytes() == paths[1].read_bytes() != paths[2].read_bytes()


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        " \n\t ",
        "\x00\x1b[31m\x7f",
        "女孩在日落时的海滩上跳舞" * 60,
        "مرحبا بالعالم " * 40,
        "👩‍👩‍👧‍👦🏴󠁧󠁢󠁥󠁮󠁧󠁿" * 50,
        "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢" * 20,
        "w" * 2500,
        "\ud800 alone \udfff",
        "\u202e backwards \u2028 line \ufffe\U0010ffff",
    ],
    ids=[
        "empty",
        "blank",
        "control",
        "chinese",
        "arabic",
        "emoji",
        "marks",
        "one long word",
        "surrogates",
        "odd",
    ],
)
def test_any_prompt_can_be_drawn(tmp_path: Path, prompt: str) -> None:
    path = tmp_path / "film.mp4"
    render(Film("cl1", prompt, 0.2, frame_size("std", "9:16", 0.1)), path)
    assert len(pictures_of(path)) == 5


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.text(st.characters(), max_size=300), st.text(max_size=40))
def test_no_text_breaks_the_drawing(prompt: str, task_id: str) -> None:
    bands = film_module._writing(Film(task_id, prompt, 1, SMALL))
    assert all(0 <= top < SMALL.height + 40 for top, _, _ in bands)


def test_lines_fit_the_width_and_what_is_too_much_ends_in_an_ellipsis() -> None:
    font = film_module._font(12)
    lines = film_module._wrap("a girl dancing " * 20 + "w" * 200, font, 120, most_lines=3)
    assert len(lines) == 3
    assert all(font.getlength(line) <= 120 for line in lines)
    assert lines[-1].endswith("…")
    assert film_module._wrap("short", font, 120, most_lines=3) == ["short"]


def test_a_clip_of_5_seconds_costs_less_than_half_a_second_of_cpu(tmp_path: Path) -> None:
    render(Film("warm", "up", 0.1, SMALL, sound=True), tmp_path / "warm.mp4")
    for prompt in ("A prompt", "女孩在日落时的海滩上跳舞" * 60):
        film = Film("cl1", prompt, 5, frame_size("std", "16:9", film_module.DEFAULT_SCALE), sound=True)
        costs = []
        for _ in range(20):  # what costs too much, does so each time; a busy machine does not
            before, began = slowness(), time.process_time()
            render(film, tmp_path / "film.mp4")
            cpu = time.process_time() - began
            costs.append(cpu / statistics.mean((before, slowness())))
            if costs[-1] < 0.5:
                break
        assert min(costs) < 0.5


def test_without_its_packages_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmulatorExtraMissingError, match=r"av, pillow.*airflow-provider-kling\[emulator\]"):
        film_module.require_extra()


class TestFilmStore:
    def test_a_film_is_drawn_when_first_asked_for_and_then_kept(self, tmp_path: Path) -> None:
        store, film = FilmStore(tmp_path), Film("cl1", "A prompt", 0.2, SMALL)
        assert store.find(film) is None
        path = store.fetch(film, modified_at=1_700_000_000)
        assert store.fetch(film, modified_at=1_700_000_000) == store.find(film) == path
        assert store.drawn == 1
        assert path.stat().st_mtime == 1_700_000_000
        assert [file.name for file in tmp_path.iterdir()] == [path.name]

    def test_many_who_ask_at_once_get_one_drawing(self, tmp_path: Path) -> None:
        store, film = FilmStore(tmp_path), Film("cl1", "A prompt", 1, SMALL)
        found: list[Path] = []
        threads = [
            threading.Thread(target=lambda: found.append(store.fetch(film, modified_at=0))) for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(found), len(set(found)), store.drawn) == (5, 1, 1)

    def test_above_its_limit_the_film_not_asked_for_longest_goes(self, tmp_path: Path) -> None:
        films = [Film(f"cl{n}", "A prompt", 0.2, SMALL) for n in range(3)]
        probe = tmp_path / "probe"
        probe.mkdir()
        size = max(FilmStore(probe).fetch(film, modified_at=0).stat().st_size for film in films)
        store = FilmStore(tmp_path, max_bytes=int(2.5 * size))
        first = store.fetch(films[0], modified_at=0)
        content = first.read_bytes()
        store.fetch(films[1], modified_at=0)
        store.find(films[0])
        store.fetch(films[2], modified_at=0)
        assert store.find(films[1]) is None
        assert store.find(films[0]) == first
        assert store.find(films[2]) is not None
        store.fetch(films[1], modified_at=0)
        assert store.find(films[0]) is None
        assert store.fetch(films[0], modified_at=0).read_bytes() == content

    def test_a_film_that_cannot_be_drawn_leaves_nothing_behind(self, tmp_path: Path) -> None:
        store = FilmStore(tmp_path)
        with pytest.raises(Exception, match=r"."):
            store.fetch(Film("cl1", "A prompt", 0.2, FrameSize(33, 33)), modified_at=0)
        assert list(tmp_path.iterdir()) == []
