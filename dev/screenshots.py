"""
Make the pictures of the page of videos for the documentation, ``docs/images/videos-*.png``.

    python -m dev.environments --run dev.screenshots

A real Airflow runs Dags with the emulator, and a real Chromium looks at them. Then the runs are moved back in time, as
if they had been made over a month, and some are left without a recorded cost.
"""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from dev.browser import NoBrowserError, chromium
from dev.environments import CHECKOUT
from dev.local_airflow import AirflowFailedError, LocalAirflow

if TYPE_CHECKING:
    from PIL.Image import Image
    from playwright.sync_api import Browser, Frame, Page

IMAGES = CHECKOUT / "docs" / "images"
MOST_BYTES = 300_000
"""The largest that a picture may be."""
COLOURS = 256
PAGE = "/plugin/kling-videos"

_DAGS = """
from airflow.sdk import DAG
from airflow_provider_kling.operators.batch import KlingGenerateVideoBatchOperator
from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator

STORED = {"output_path": "FOLDER", "poll_interval": 1}
PROMPTS = {
    "travel_reels": [
        "A lighthouse in fog, waves rolling in, the camera rising slowly",
        "A red kite over the dunes at sunset",
        "Rice terraces at dawn, mist drifting between them",
        "A night train crossing a viaduct, seen from a drone",
    ],
    "product_clips": [
        "Steam rising from a tiny espresso cup, macro lens",
        "A watch face turning in dark water, studio light",
        "Running shoes splash through a puddle in slow motion",
    ],
    "weather_studio": [
        "A girl dancing on the beach at sunset, cinematic lighting",
        "Snow falls on a city square, people under umbrellas",
        "Storm clouds gather over a wheat field, time lapse",
    ],
}
for dag_id, prompts in PROMPTS.items():
    with DAG(dag_id, schedule=None):
        for number, prompt in enumerate(prompts):
            KlingGenerateVideoOperator(
                task_id=f"clip_{number + 1}", prompt=prompt, duration=5, sound=number % 2 == 0,
                mode="pro" if number == 1 else "std", **STORED,
            )
with DAG("weather_refused", schedule=None):
    KlingGenerateVideoOperator(task_id="clip", prompt="A scene that nobody may see", **STORED)
with DAG("weather_today", schedule=None):
    KlingGenerateVideoOperator(task_id="clip", prompt="Sunbeams through a forest after rain", deferrable=True, **STORED)
with DAG("storyboards", schedule=None):
    KlingGenerateVideoBatchOperator(
        task_id="scenes", duration=3, max_in_flight=8, **STORED,
        requests=[f"A journey by train, scene {n} of 8" for n in range(1, 9)],
    )
"""
_WAITING = ("weather_today", "clip")
_FAILING = "weather_refused"
_FINISHED = ("travel_reels", "product_clips", "weather_studio", "storyboards")
_ROUNDS = 2


@dataclass(frozen=True)
class Picture:
    """
    One of them.

    :param name: its file's, without the ending.
    :param query: what the page is opened with.
    """

    name: str
    theme: str
    width: int
    height: int
    query: str = ""


PICTURES = (
    Picture("videos-light", "light", 1280, 860),
    Picture("videos-dark", "dark", 1280, 860),
    Picture("videos-phone-light", "light", 390, 844),
    Picture("videos-phone-dark", "dark", 390, 844),
    Picture("videos-list", "light", 1280, 720, "?dag=storyboards"),
)


def main() -> int:
    """Make all of them; return 0 if they are there."""
    try:
        with (
            tempfile.TemporaryDirectory(prefix="kling-screenshots-") as directory,
            chromium() as browser,
            _airflow_with_videos(Path(directory)) as airflow,
        ):
            for picture in PICTURES:
                _make(picture, browser, airflow)
    except (NoBrowserError, AirflowFailedError, TimeoutError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def _airflow_with_videos(directory: Path) -> Iterator[LocalAirflow]:
    from airflow_provider_kling.emulator import KlingEmulator

    dags, videos = directory / "dags", directory / "videos"
    dags.mkdir()
    (dags / "videos.py").write_text(_DAGS.replace("FOLDER", str(videos)))
    with (
        KlingEmulator(latency="lognormal:3:0.3", settling=0, scale=0.5, result_host="127.0.0.1") as service,
        LocalAirflow(
            directory / "home",
            dags=[dags],
            connections={"kling_default": service.connection_uri},
            config={"kling": {"media_hosts": service.origin}},
        ) as airflow,
    ):
        service.inject(
            "fail", prompt="nobody may see", fail_code="content_policy", message="Content refused by policy"
        )
        for _ in range(_ROUNDS):
            runs = {dag_id: airflow.trigger(dag_id) for dag_id in _FINISHED}
            for dag_id, run_id in runs.items():
                if airflow.wait_for_run(dag_id, run_id) != "success":
                    raise AirflowFailedError(airflow.why_run_failed(dag_id, run_id))
        airflow.wait_for_run(_FAILING, airflow.trigger(_FAILING))
        _spread(airflow)
        service.configure(latency="never")
        run_id = airflow.trigger(_WAITING[0])
        airflow.api.wait_for_task(_WAITING[0], run_id, _WAITING[1], "deferred")
        yield airflow


def _spread(airflow: LocalAirflow) -> None:
    """Move the videos back in time, each by other days, and leave some of them without a recorded cost."""
    now = datetime.now(UTC)
    with contextlib.closing(sqlite3.connect(airflow.database, timeout=60)) as connection, connection:
        rows = connection.execute(
            "SELECT dag_run_id, task_id, map_index, value FROM xcom WHERE key = 'kling_video' "
            "ORDER BY dag_run_id, task_id"
        ).fetchall()
        for number, (run, task_id, map_index, text) in enumerate(rows):
            value = json.loads(text)
            if value["kind"] == "list":
                back = timedelta(days=2 + 11 * (number % 2), hours=3)
            elif value["state"] == "failed":
                back = timedelta(hours=5)
            else:
                back = timedelta(hours=1.5 + 37 * (number * 5 % len(rows)))
            if number % 5 == 0 and value["kind"] == "video":
                value["recorded_cost_usd"] = None
            for name in ("submitted_at", "completed_at"):
                if value.get(name):
                    value[name] = (datetime.fromisoformat(value[name]) - back).isoformat()
            stamp = (now - back).strftime("%Y-%m-%d %H:%M:%S.%f")
            connection.execute(
                "UPDATE xcom SET value = ?, timestamp = ? "
                "WHERE key = 'kling_video' AND dag_run_id = ? AND task_id = ? AND map_index = ?",
                (json.dumps(value), stamp, run, task_id, map_index),
            )


def _make(picture: Picture, browser: Browser, airflow: LocalAirflow) -> None:
    context = browser.new_context(
        viewport={"width": picture.width, "height": picture.height},
        color_scheme="dark" if picture.theme == "dark" else "light",
        base_url=airflow.url,
    )
    try:
        page = context.new_page()
        page.goto(f"{PAGE}{picture.query}")
        _wait_until_it_stands_still(page)
        content = page.screenshot(animations="disabled")
    finally:
        context.close()
    path = IMAGES / f"{picture.name}.png"
    path.write_bytes(_smaller(content))
    print(f"{path.relative_to(CHECKOUT)}: {path.stat().st_size:,} bytes", flush=True)
    if path.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{path} is larger than {MOST_BYTES:,} bytes.")


def _wait_until_it_stands_still(page: Page) -> None:
    frame: Frame | None = page.wait_for_selector("iframe[title='Kling videos']").content_frame()  # type: ignore[union-attr]
    assert frame is not None
    frame.wait_for_function(
        """() => {
          const seen = [...document.querySelectorAll("article.card")].filter((card) => {
            const { top, bottom } = card.getBoundingClientRect();
            return bottom > 0 && top < innerHeight && !card.closest("[hidden]");
          });
          const videos = seen.flatMap((card) => [...card.querySelectorAll("video")]).filter((video) => {
            const { top, bottom } = video.getBoundingClientRect();
            return bottom > 0 && top < innerHeight;
          });
          return seen.length > 0 && seen.every((card) => !card.hasAttribute("aria-busy"))
            && videos.every((video) => video.readyState >= 2)
            && document.querySelector(".money-state")?.textContent === "";
        }""",
        timeout=60_000,
    )
    page.wait_for_timeout(1000)  # for what fades in


def _smaller(png: bytes) -> bytes:
    """Write a picture in fewer bytes; in fewer colours only where that is not enough."""
    import PIL.Image

    with PIL.Image.open(io.BytesIO(png)) as image:
        whole = _written(image.convert("RGB"))
        return whole if len(whole) <= MOST_BYTES else _written(image.convert("RGB").quantize(COLOURS))


def _written(image: Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


if __name__ == "__main__":
    sys.exit(main())
