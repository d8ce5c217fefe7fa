"""Airflow's UI with the page of videos in it, as a test sees it."""

from __future__ import annotations

from typing import Any, cast
from urllib.parse import urlsplit

from playwright.sync_api import Frame, FrameLocator, Locator, Page, expect

FRAME = "iframe[title='Kling videos']"
LOOKS_BLACK = 12
"""Mean brightness, 0 to 255, up to which a picture counts as black."""

_BRIGHTNESS = """(video) => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 36 });
  const pen = canvas.getContext("2d");
  pen.drawImage(video, 0, 0, 64, 36);
  const { data } = pen.getImageData(0, 0, 64, 36);
  let sum = 0;
  for (let at = 0; at < data.length; at += 4) sum += data[at] + data[at + 1] + data[at + 2];
  return sum / (3 * 64 * 36);
}"""


class Screen:
    """
    A tab of the browser.

    :param page: it.
    """

    def __init__(self, page: Page) -> None:
        self.page = page

    @property
    def is_alone(self) -> bool:
        """Whether the page of videos was opened without Airflow's UI around it."""
        return urlsplit(self.page.url).path.startswith("/kling/videos/")

    @property
    def inside(self) -> FrameLocator | Page:
        """The page of videos, in Airflow's frame or alone."""
        return self.page if self.is_alone else self.page.frame_locator(FRAME)

    @property
    def frame(self) -> Frame:
        """The same, for scripts."""
        if self.is_alone:
            return self.page.main_frame
        frame = self.page.wait_for_selector(FRAME).content_frame()  # type: ignore[union-attr]
        assert frame is not None
        return frame

    def cards(self) -> Locator:
        """The videos that are shown, lists left out."""
        return self.inside.locator("article.card:not(.list):visible")

    def card(self, words: str) -> Locator:
        """The video whose card has these words."""
        return self.inside.locator("article.card:not(.list)").filter(has_text=words)

    def settle(self) -> None:
        """Wait until every card that is in sight is read."""
        expect(self.inside.locator("article.card:visible").first).to_be_visible()
        self.frame.wait_for_function(
            """() => [...document.querySelectorAll("article.card[aria-busy]")].every((card) => {
              const { top, bottom } = card.getBoundingClientRect();
              return bottom < 0 || top > innerHeight || card.closest("[hidden]");
            })"""
        )

    def add_up(self) -> None:
        """Wait until all videos are added up. Before the sums are drawn, they do not say that one is missing."""
        expect(self.inside.locator("#money")).to_be_visible()
        expect(self.inside.locator(".money-state")).to_have_text("")

    def play(self, card: Locator) -> Locator:
        """Press Play on a card, wait until its time moves, and return the player."""
        card.get_by_role("button", name="Play").click()
        video = card.locator("video")
        self.wait_until_it_moves(video)
        return video

    def wait_until_it_moves(self, video: Locator) -> None:
        """Wait until a player has played for a moment."""
        self.frame.wait_for_function("(video) => video.currentTime > 0.3", arg=video.element_handle())

    @staticmethod
    def brightness(video: Locator) -> float:
        """Return how bright a player's picture is on the whole, 0 to 255."""
        return cast("float", video.evaluate(_BRIGHTNESS))

    def ask(self, path: str, **options: Any) -> Any:
        """Ask the API server with the person's own session."""
        return self.page.context.request.get(path, **options)
