"""
The page of videos with a thousand of them, beside Airflow's own list of XComs, in a real Chromium.

Both are opened in Airflow's UI by a browser that has never been there, so both load Airflow's UI itself. What counts is
when the first video (the first row) can be seen, and what goes over the wire until the page is at rest.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import Check, Report, figure
from dev.browser import chromium
from dev.local_airflow import LocalAirflow
from dev.many_videos import put_many

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Frame, Page, Request

DAG_ID, TASK_ID = "kling_one", "make"
OURS, ALONE, XCOMS = "Kling videos", "Kling videos, without Airflow around it", "Airflow's XComs"
WIDTH, HEIGHT = 1280, 800
MOST_OF_THE_XCOMS = 1.5
"""The first video may take this much longer to be seen than Airflow's first XCom."""
MOST_IN_SIGHT = 12
"""Videos that fit into the window."""
_REST = 2000.0  # ms: Airflow's UI goes on asking for this and that, so there is no end to wait for
_LIMIT = 120.0
_DAG = """
from airflow.sdk import DAG
from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator

with DAG("kling_one", schedule=None):
    KlingGenerateVideoOperator(
        task_id="make", prompt="A lighthouse in fog", duration=5, poll_interval=1,
        output_path="FOLDER/{kling_task_id}.{ext}",
    )
"""
_FIRST_CARD = "() => document.querySelector('article.card .facts') !== null"
_FIRST_PICTURE = "() => [...document.querySelectorAll('video')].some((video) => video.readyState >= 2)"
_ADDED_UP = """() => {
  const money = document.getElementById("money");
  return !money.hidden && !money.querySelector(".money-state").textContent.startsWith("Adding up");
}"""
_FIRST_ROW = "() => document.querySelector('table tbody tr td a') !== null"
_SCROLL = """async () => {
  const gaps = [];
  let before = performance.now();
  const end = before + 5000;
  await new Promise((resolve) => requestAnimationFrame(function frame(now) {
    gaps.push(now - before);
    before = now;
    scrollBy(0, 60);
    if (now < end) requestAnimationFrame(frame); else resolve();
  }));
  return gaps;
}"""


@dataclass
class Opened:
    """
    What opening a page took.

    :param first: seconds until the first video's card, or the first row, was there.
    :param picture: seconds until the first picture of a video was there; 0 where there is none.
    :param bytes_first: bytes received until then. :param bytes_all: until the page was at rest.
    :param media_bytes: those of videos among them.
    :param requests: how many there were until then.
    """

    first: float
    picture: float
    bytes_first: int
    bytes_all: int
    media_bytes: int
    requests: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("--videos", type=int, default=1000, help="default: %(default)s")
    parser.add_argument(
        "--times", type=int, default=3, help="how often each is opened (default: %(default)s)"
    )
    given = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="kling-benchmark-") as directory, chromium() as browser:
        found, gaps, loaded = _measure(Path(directory), browser, given.videos, given.times)
    report = _report(given.videos, found, gaps, loaded)
    return 0 if report.publish(load) else 1


def _measure(
    directory: Path, browser: Browser, videos: int, times: int
) -> tuple[dict[str, list[Opened]], list[float], int]:
    from airflow_provider_kling.emulator import KlingEmulator

    dags = directory / "dags"
    dags.mkdir()
    (dags / "one.py").write_text(_DAG.replace("FOLDER", str(directory / "videos")))
    with (
        KlingEmulator(latency=1, settling=0) as service,
        LocalAirflow(
            directory / "home", dags=[dags], connections={"kling_default": service.connection_uri}
        ) as airflow,
    ):
        run_id = airflow.run(DAG_ID)
        # Spread over the last weeks, so that the page adds them up as well.
        put_many(airflow, DAG_ID, run_id, TASK_ID, into="kling_many", many=videos, newest=datetime.now(UTC))
        for name in ("scheduler", "dag-processor", "triggerer"):
            airflow.stop_component(name)  # nothing of them is measured, and they use the processors
        pages = {OURS: "/plugin/kling-videos", ALONE: "/kling/videos/", XCOMS: "/xcoms"}
        found: dict[str, list[Opened]] = {name: [] for name in pages}
        _open(
            browser, airflow, XCOMS, pages[XCOMS]
        )  # the API server loads what it needs with its first answers
        _open(browser, airflow, OURS, pages[OURS])
        for _ in range(times):
            for name, path in pages.items():
                found[name].append(_open(browser, airflow, name, path))
                print(f"  {name}: first after {found[name][-1].first:.2f} s", flush=True)
        gaps, loaded = _scroll(browser, airflow)
    return found, gaps, loaded


def _open(browser: Browser, airflow: LocalAirflow, name: str, path: str) -> Opened:
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, base_url=airflow.url)
    try:
        page = context.new_page()
        wire = _Wire(page)
        began = time.monotonic()
        page.goto(path, wait_until="commit")
        inside: Page | Frame = page
        if name == OURS:
            handle = page.wait_for_selector("iframe[title='Kling videos']", timeout=_LIMIT * 1000)
            frame = handle.content_frame() if handle else None
            assert frame is not None
            inside = frame
        inside.wait_for_function(
            _FIRST_ROW if name == XCOMS else _FIRST_CARD, timeout=_LIMIT * 1000, polling=20
        )
        first, bytes_first, picture = time.monotonic() - began, wire.received, 0.0
        if name != XCOMS:
            inside.wait_for_function(_FIRST_PICTURE, timeout=_LIMIT * 1000, polling=20)
            picture = time.monotonic() - began
            inside.wait_for_function(_ADDED_UP, timeout=_LIMIT * 1000, polling=100)
        page.wait_for_timeout(_REST)
        return Opened(first, picture, bytes_first, wire.received, wire.of_media, wire.requests)
    finally:
        context.close()


class _Wire:
    """Counts what a page and its frames receive."""

    def __init__(self, page: Page) -> None:
        self.received = self.of_media = self.requests = 0
        self._media: set[str] = set()
        session = page.context.new_cdp_session(page)
        session.send("Network.enable")
        session.on("Network.responseReceived", self._began)
        session.on("Network.dataReceived", self._got)
        page.on("request", self._asked)

    def _asked(self, _: Request) -> None:
        self.requests += 1

    def _began(self, event: dict[str, Any]) -> None:
        if event["type"] == "Media":
            self._media.add(event["requestId"])

    def _got(self, event: dict[str, Any]) -> None:
        count = event["encodedDataLength"]
        self.received += count
        if event["requestId"] in self._media:
            self.of_media += count


def _scroll(browser: Browser, airflow: LocalAirflow) -> tuple[list[float], int]:
    """Return the milliseconds between the frames of a scroll, and the most videos that were loaded after it."""
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, base_url=airflow.url)
    try:
        page = context.new_page()
        page.goto("/kling/videos/?dag=kling_many&days=all")
        page.wait_for_function(_FIRST_PICTURE, timeout=_LIMIT * 1000)
        gaps: list[float] = page.evaluate(_SCROLL)
        page.wait_for_timeout(1000)
        return gaps, int(page.evaluate("() => document.querySelectorAll('video[src]').length"))
    finally:
        context.close()


def _report(videos: int, found: dict[str, list[Opened]], gaps: list[float], loaded: int) -> Report:
    def middle(name: str, what: str) -> float:
        return statistics.median(getattr(opened, what) for opened in found[name])

    rows = [
        (
            name,
            figure(middle(name, "first")),
            figure(middle(name, "picture")) if middle(name, "picture") else "-",
            figure(middle(name, "bytes_first") / 1000),
            figure((middle(name, "bytes_all") - middle(name, "media_bytes")) / 1000),
            figure(middle(name, "media_bytes") / 1000),
            figure(middle(name, "requests")),
        )
        for name in found
    ]
    slow = sum(gap > 50 for gap in gaps)
    return Report(
        name="page",
        title=f"The page with {videos:,} videos, beside Airflow's own list of XComs",
        columns=(
            "page, opened for the first time",
            "first card or row, s",
            "first picture, s",
            "KB until then",
            "KB until at rest",
            "KB of videos",
            "requests",
        ),
        rows=rows,
        checks=(
            Check(
                "first card, as a share of Airflow's first XCom",
                middle(OURS, "first") / middle(XCOMS, "first"),
                MOST_OF_THE_XCOMS,
            ),
            Check("videos loaded after a scroll", loaded, MOST_IN_SIGHT),
        ),
        figures={
            "opened": {name: [asdict(each) for each in opened] for name, opened in found.items()},
            "frames": {"count": len(gaps), "over_50_ms": slow, "longest_ms": max(gaps)},
        },
        notes=(
            (
                f"Scrolling through the wall for 5 s drew {len(gaps)} frames without a graphics card; {slow} of them "
                f"came later than 50 ms after the one before, at most {max(gaps):.0f} ms."
            ),
            (
                "At rest: the sums are drawn as well. Up to 500 videos of the last 30 days are read for these, "
                "two at a time, and remembered for as long as the tab is open."
            ),
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
