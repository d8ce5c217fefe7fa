"""The page looks and behaves as a part of Airflow's UI, for everybody and on every screen."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from dev.many_videos import put_many
from tests.browser.conftest import ALONE, Studio
from tests.browser.screen import Screen

Look = Callable[..., Screen]
MANY = 1000
SERIOUS = {"serious", "critical"}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_takes_airflows_theme_and_colours(look: Look, theme: str) -> None:
    screen = look(theme=theme)
    screen.settle()
    own = screen.frame.evaluate("() => getComputedStyle(document.documentElement).backgroundColor")
    airflows = screen.page.evaluate(
        """() => {
          const probe = document.body.appendChild(document.createElement("div"));
          probe.style.background = "var(--chakra-colors-bg)";
          const colour = getComputedStyle(probe).backgroundColor;
          probe.remove();
          return colour;
        }"""
    )
    assert own == airflows
    assert screen.frame.evaluate("() => document.documentElement.dataset.theme") == theme


def test_the_page_follows_when_the_theme_is_changed_in_airflow(look: Look) -> None:
    screen = look(theme="light")
    screen.settle()
    screen.page.evaluate("() => { document.documentElement.className = 'dark'; }")
    screen.frame.wait_for_function("() => document.documentElement.dataset.theme === 'dark'")


@pytest.mark.parametrize("width", [360, 768, 1280, 3840])
def test_nothing_is_cut_off_on_any_screen(look: Look, width: int) -> None:
    screen = look(width=width, height=900)
    screen.settle()
    assert screen.frame.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    columns = screen.frame.evaluate(
        "() => getComputedStyle(document.getElementById('wall')).gridTemplateColumns.split(' ').length"
    )
    assert columns == {360: 1, 768: 2, 1280: 4, 3840: 11}[width]
    outside = screen.frame.evaluate(
        """() => [...document.querySelectorAll("#wall .card, #filters *, .head *")]
          .filter((node) => node.getClientRects().length && node.getBoundingClientRect().right > innerWidth + 1)
          .map((node) => node.outerHTML.slice(0, 80))"""
    )
    assert outside == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("path", [ALONE, f"{ALONE}?prompt=nothing+like+it"])
def test_axe_finds_nothing_serious(look: Look, theme: str, path: str) -> None:
    screen = look(path, theme=theme)
    screen.page.wait_for_function(
        """() => document.querySelector(".notice, #wall article:not([aria-busy]) .facts")
          && !document.querySelector("article[aria-busy]")"""
    )
    found: dict[str, Any] = Axe().run(screen.page).response
    told = [
        f"{rule['id']}: {node['html'][:120]} {node.get('failureSummary', '')}"
        for rule in found["violations"]
        if rule["impact"] in SERIOUS
        for node in rule["nodes"]
    ]
    assert told == []
    assert len(found["passes"]) > 10


def test_a_video_is_found_and_played_with_the_keyboard_alone(look: Look) -> None:
    screen = look("/plugin/kling-videos?dag=kling_studio&prompt=lighthouse")
    expect(screen.cards()).to_have_count(1)
    screen.inside.get_by_label("Prompt").focus()
    for _ in range(30):
        screen.page.keyboard.press("Tab")
        if screen.frame.evaluate("() => document.activeElement.classList.contains('play')"):
            break
    assert (
        screen.frame.evaluate("() => document.activeElement.getAttribute('aria-label')")
        == "Play: A lighthouse in fog"
    )
    assert screen.frame.evaluate("() => getComputedStyle(document.activeElement).outlineStyle") == "solid"

    screen.page.keyboard.press("Enter")

    video = screen.cards().first.locator("video")
    screen.wait_until_it_moves(video)
    assert screen.frame.evaluate("() => document.activeElement.tagName") == "VIDEO"
    screen.page.keyboard.press("Space")
    screen.frame.wait_for_function("(video) => video.paused", arg=video.element_handle())


def test_choosing_another_result_leaves_the_keyboard_where_it_is(look: Look, studio: Studio) -> None:
    left = studio.card("kling_studio", "portrait")
    # The second has a file of its own nowhere, so it tells why it cannot be played.
    studio.rewrite("kling_studio", "portrait", {**left, "files": left["files"] * 2})
    try:
        screen = look(f"{ALONE}?dag=kling_studio")
        screen.settle()
        card = screen.card("A lighthouse in fog")
        choice = card.get_by_label("Which of the results")
        download = card.get_by_role("link", name="Download")
        expect(download).to_have_attribute("href", re.compile(r"/files/0\?download=1$"))
        choice.focus()

        screen.page.keyboard.press("ArrowDown")

        expect(choice).to_have_value("1")
        expect(choice).to_be_focused()
        expect(download).to_have_attribute("href", re.compile(r"/files/1\?download=1$"))
        expect(card.locator(".stage")).to_contain_text("Cannot be played")
        expect(card.locator(".reason")).not_to_be_empty()
        expect(choice).to_be_focused()

        screen.page.keyboard.press("ArrowUp")

        expect(choice).to_have_value("0")
        expect(choice).to_be_focused()
        expect(card.locator(".reason")).to_have_count(0)
        screen.play(card)
    finally:
        studio.rewrite("kling_studio", "portrait", left)


def test_the_way_back_to_all_videos_leads_the_keyboard_to_the_heading(look: Look) -> None:
    screen = look(ALONE)
    screen.settle()
    heading = screen.inside.get_by_role("heading", name="Kling videos")
    expect(screen.page.locator("body")).to_be_focused()  # and nothing takes it when the page is opened

    screen.card("A lighthouse in fog").get_by_role("button", name="Show alone").press("Enter")
    back = screen.inside.get_by_role("button", name="All videos")
    expect(back).to_be_focused()
    back.press("Enter")
    expect(heading).to_be_focused()

    screen.inside.get_by_label("State").select_option("failed")
    expect(screen.cards()).to_have_count(1)
    screen.inside.locator("#filters").get_by_role("button", name="Clear filters").press("Enter")
    expect(heading).to_be_focused()

    screen.inside.get_by_label("Prompt").fill("nowhere to be found")
    expect(screen.inside.get_by_role("heading", name="No video matches")).to_be_visible()
    expect(screen.inside.get_by_label("Prompt")).to_be_focused()
    screen.inside.locator(".notice").get_by_role("button", name="Clear filters").press("Enter")
    expect(heading).to_be_focused()


def test_a_screen_reader_hears_a_heading_for_each_video_and_the_sums_as_tables(look: Look) -> None:
    screen = look(f"{ALONE}?dag=kling_studio")
    screen.settle()
    expect(screen.inside.get_by_role("list", name="Videos, newest first")).to_be_visible()
    expect(screen.inside.get_by_role("article", name="A lighthouse in fog")).to_be_visible()
    expect(screen.inside.get_by_role("table", name="Spent by day")).to_be_attached()
    expect(screen.inside.get_by_role("table", name="Spent by Dag")).to_be_attached()


def test_of_a_thousand_videos_only_those_in_sight_are_loaded(look: Look, studio: Studio) -> None:
    put_many(
        studio.airflow, "kling_studio", studio.runs["kling_studio"], "portrait", into="kling_many", many=MANY
    )
    screen = look(f"{ALONE}?dag=kling_many&days=all", height=900)
    page = screen.page
    expect(page.locator("#count")).to_have_text(f"{MANY:,} videos")
    read: set[str] = set()
    page.on(
        "request",
        lambda request: read.add(request.url) if "/xcomEntries/kling_video" in request.url else None,
    )

    for _ in range(80):
        page.mouse.wheel(0, 4000)
        page.wait_for_timeout(60)
        if page.evaluate("() => document.querySelectorAll('#wall > li').length") >= MANY:
            break
    # Cards that were never seen are taller or less tall than they were thought to be, and on a slow machine
    # more of them are still to come: the end is met in some steps.
    page.wait_for_function(
        """(many) => {
          scrollTo(0, document.body.scrollHeight);
          const last = document.querySelector("#wall > li:last-child video");
          return document.querySelectorAll("#wall > li").length >= many && last !== null && last.readyState >= 2;
        }""",
        arg=MANY,
        polling=200,
    )
    # Those that have gone out of sight let go.
    loaded, in_sight = page.wait_for_function(
        """() => {
          const loaded = document.querySelectorAll("video[src]").length;
          const inSight = [...document.querySelectorAll("#wall > li")].filter((node) => {
            const { top, bottom } = node.getBoundingClientRect();
            return bottom > 0 && top < innerHeight;
          }).length;
          return 0 < loaded && loaded <= inSight && [loaded, inSight];
        }"""
    ).json_value()

    assert page.evaluate("() => document.querySelectorAll('#wall > li').length") == MANY
    assert 0 < loaded <= in_sight < 20
    # A jump to the end reads what is there, and not all that lies between.
    assert len(read) < MANY
