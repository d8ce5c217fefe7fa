"""What a person sees on the wall of videos, in Airflow's own UI."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import ALONE, GUEST, STRANGER, Studio
from tests.browser.screen import LOOKS_BLACK, Screen

Look = Callable[..., Screen]
BETWEEN = "\N{SINGLE RIGHT-POINTING ANGLE QUOTATION MARK}"
TIMES = "\N{MULTIPLICATION SIGN}"


def test_the_menu_under_browse_leads_to_the_videos_newest_first(look: Look, studio: Studio) -> None:
    screen = look("/")
    screen.page.get_by_role("button", name="Browse").click()
    screen.page.get_by_role("menuitem", name="Kling videos").click()
    screen.settle()

    expect(screen.inside.get_by_role("heading", name="Kling videos")).to_be_visible()
    assert screen.cards().count() >= 8
    times = screen.inside.locator("ol#wall > li article.card > .body .run time").evaluate_all(
        "(all) => all.map((time) => Date.parse(time.dateTime))"
    )
    # They were asked for within seconds of each other, and are in the order of their ends.
    assert max(times) - min(times) < 3_600_000
    listed = [entry for dag_id in studio.runs for entry in studio.entries(dag_id)]
    listed.sort(key=lambda entry: entry["timestamp"], reverse=True)
    wanted = [f"{entry['dag_id']}{BETWEEN}{entry['task_id']}" for entry in listed]
    shown = screen.inside.locator("ol#wall > li > article > * > .place > .task").all_inner_texts()
    assert [re.sub(r"\s|\[\d+\]", "", text) for text in shown if "slow" not in text] == wanted


def test_a_card_tells_what_was_asked_for_how_long_it_took_and_what_it_cost(
    look: Look, studio: Studio
) -> None:
    screen = look(ALONE)
    screen.settle()
    card = screen.card("A girl dancing")
    left = studio.card("kling_studio", "beach")

    facts = card.locator(".facts li").all_inner_texts()
    assert {"kling-v3-omni", "std", "5 s", "sound"} <= set(facts)
    assert any(fact.startswith("made in") for fact in facts)
    assert any(TIMES in fact for fact in facts)
    assert f"${left['recorded_cost_usd']:.2f}" in card.locator(".cost").inner_text()
    assert "recorded" in card.locator(".cost").inner_text()
    expect(card.get_by_role("link", name="kling_studio", exact=True)).to_be_visible()
    expect(card.get_by_role("link", name="beach", exact=True)).to_be_visible()
    expect(card.get_by_role("link", name=studio.runs["kling_studio"], exact=True)).to_be_visible()


def test_a_long_prompt_is_short_and_whole_on_demand(look: Look) -> None:
    screen = look(ALONE)
    screen.settle()
    card = screen.card("A girl dancing")
    assert "her scarf in the wind" not in card.inner_text()

    card.get_by_role("button", name="Whole prompt").click()

    expect(card.get_by_role("heading")).to_contain_text("nothing else moves but her scarf in the wind.")
    card.get_by_role("button", name="Less").click()
    assert "her scarf in the wind" not in card.inner_text()


def test_a_stored_video_plays_in_place_and_seeks(look: Look) -> None:
    screen = look()
    screen.settle()
    answers: list[int] = []
    screen.page.on("response", lambda got: answers.append(got.status) if "/files/" in got.url else None)

    video = screen.play(screen.card("A girl dancing"))

    assert screen.brightness(video) > LOOKS_BLACK
    video.evaluate("(video) => { video.currentTime = 4; }")
    screen.frame.wait_for_function(
        "(video) => !video.seeking && video.currentTime > 4.05", arg=video.element_handle()
    )
    assert screen.brightness(video) > LOOKS_BLACK
    assert set(answers) <= {200, 206}


def test_every_video_in_sight_shows_its_first_frame_before_it_is_played(look: Look) -> None:
    screen = look(ALONE)
    screen.settle()
    card = screen.card("A lighthouse in fog")
    card.scroll_into_view_if_needed()
    video = card.locator("video")
    screen.frame.wait_for_function("(video) => video.readyState >= 2", arg=video.element_handle())

    assert screen.brightness(video) > LOOKS_BLACK
    assert video.evaluate("(video) => video.paused")


def test_the_file_is_downloaded_as_the_manifest_has_it(look: Look, studio: Studio) -> None:
    screen = look(accept_downloads=True)
    screen.settle()
    with screen.page.expect_download() as started:
        screen.card("A girl dancing").get_by_role("link", name="Download").click()
    content = Path(started.value.path()).read_bytes()

    (file,) = studio.card("kling_studio", "beach")["files"]
    assert hashlib.sha256(content).hexdigest() == file["sha256"]
    assert started.value.suggested_filename == file["name"]


def test_what_was_not_stored_plays_from_the_service_and_says_until_when(look: Look) -> None:
    screen = look(ALONE)
    screen.settle()
    card = screen.card("A paper boat")
    card.scroll_into_view_if_needed()

    expect(card).to_contain_text("Not stored: the link expires in 7 days")
    expect(card).to_contain_text("output_path")
    screen.play(card)


def test_an_expired_link_says_since_when_and_how_to_store_the_next_one(look: Look, studio: Studio) -> None:
    left = studio.card("kling_studio", "boat")
    studio.rewrite("kling_studio", "boat", {**left, "expires_at": "2020-01-02T03:04:05Z"})
    try:
        screen = look(ALONE)
        screen.settle()
        card = screen.card("A paper boat")
        expect(card).to_contain_text("Expired on 2020-01-02")
        expect(card).to_contain_text("Set output_path on the operator to keep the next one")
        assert card.locator("video").count() == 0
    finally:
        studio.rewrite("kling_studio", "boat", left)


def test_a_prompt_with_markup_stays_text(look: Look) -> None:
    screen = look(ALONE)
    screen.settle()
    card = screen.card("a market")

    expect(card.get_by_role("heading")).to_contain_text("<script>document.title = 'taken'</script><img src=x")
    assert card.locator("script, img").count() == 0
    assert screen.frame.title() == "Kling videos"
    assert screen.page.title() != "taken"


def test_a_failed_video_shows_its_reason(look: Look) -> None:
    screen = look(ALONE)
    screen.settle()
    card = screen.card("nobody may see")

    expect(card.locator(".stage")).to_contain_text("Failed")
    expect(card.locator(".reason")).to_contain_text("Content refused")
    expect(card.locator(".cost")).to_contain_text("Not billed")


def test_a_mapped_task_shows_a_card_for_each_index(look: Look) -> None:
    screen = look(ALONE)
    screen.settle()
    expect(screen.card("A red kite").locator(".task")).to_contain_text("kites[0]")
    expect(screen.card("A blue kite").locator(".task")).to_contain_text("kites[1]")


def test_a_list_shows_how_it_went_and_all_its_videos(look: Look) -> None:
    screen = look(ALONE)
    screen.settle()
    of_list = screen.inside.locator("article.list")
    of_list.scroll_into_view_if_needed()

    expect(of_list.get_by_role("heading", name="List of 5 videos")).to_be_visible()
    expect(of_list.locator(".progress-words")).to_have_text("4 completed, 1 failed")
    videos = of_list.locator("article.card")
    expect(videos).to_have_count(5)
    expect(videos.nth(2)).to_contain_text("The scene could not be drawn")
    card = videos.filter(has_text="Scene number 2")
    card.scroll_into_view_if_needed()
    assert screen.brightness(screen.play(card)) > LOOKS_BLACK


def test_filters_live_in_the_address(look: Look) -> None:
    screen = look()
    screen.settle()
    screen.inside.get_by_label("State").select_option("failed")
    expect(screen.inside.locator("#count")).to_have_text("1 video")
    expect(screen.cards()).to_have_count(1)
    assert "state=failed" in screen.page.url

    screen.page.reload()
    screen.settle()
    expect(screen.inside.get_by_label("State")).to_have_value("failed")
    expect(screen.inside.locator("#count")).to_have_text("1 video")

    screen.inside.get_by_role("button", name="Clear filters").click()
    expect(screen.card("A girl dancing")).to_be_visible()
    assert "state=" not in screen.page.url


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("prompt=kite", {"kites[0]", "kites[1]"}),
        ("prompt=LIGHTHOUSE&dag=kling_studio", {"portrait"}),
        ("dag=kling_secret", {"vault"}),
        ("dag=kling_refused&state=failed", {"refused"}),
        ("model=kling-v3-omni&prompt=vault", {"vault"}),
    ],
)
def test_an_address_with_filters_shows_what_they_say(look: Look, query: str, shown: set[str]) -> None:
    screen = look(f"{ALONE}?{query}")
    expect(screen.cards()).to_have_count(len(shown))
    assert {
        text.partition(BETWEEN)[2].strip() for text in screen.cards().locator(".task").all_inner_texts()
    } == shown


def test_words_in_the_prompt_find_the_videos_of_a_list(look: Look) -> None:
    screen = look(f"{ALONE}?prompt=number+4")
    expect(screen.cards()).to_have_count(1)
    expect(screen.cards()).to_contain_text("Scene number 4")


def test_no_match_says_so_and_how_to_go_on(look: Look) -> None:
    screen = look(f"{ALONE}?prompt=nowhere+to+be+found")
    expect(screen.inside.get_by_role("heading", name="No video matches")).to_be_visible()
    screen.inside.locator(".notice").get_by_role("button", name="Clear filters").click()
    expect(screen.card("A girl dancing")).to_be_visible()


def test_the_operator_link_opens_the_page_at_that_video(look: Look, studio: Studio) -> None:
    run_id = studio.runs["kling_studio"]
    links = studio.airflow.api.call(
        "GET", f"dags/kling_studio/dagRuns/{quote(run_id)}/taskInstances/kites/links", params={"map_index": 1}
    )
    link = links["extra_links"]["Kling video"]
    assert link
    screen = look(link)

    expect(screen.cards()).to_have_count(1)
    expect(screen.cards()).to_contain_text("A blue kite over the sea")
    assert "task_id=kites" in screen.page.url
    assert screen.brightness(screen.play(screen.cards().first)) > LOOKS_BLACK
    screen.inside.get_by_role("button", name="All videos").click()
    expect(screen.card("A girl dancing")).to_be_visible()
    assert "task_id" not in screen.page.url


def test_the_link_among_a_tasks_details_leads_to_its_video(look: Look, studio: Studio) -> None:
    run_id = quote(studio.runs["kling_studio"])
    screen = look(f"/dags/kling_studio/runs/{run_id}/tasks/kites/mapped/1/details")
    link = screen.page.get_by_role("link", name="Kling video", exact=True)
    expect(link).to_be_visible()
    # Airflow 3.1 opens all such links in a tab of their own, later ones only those that lead elsewhere.
    if link.get_attribute("target") == "_blank":
        with screen.page.expect_popup() as opened:
            link.click()
        screen = Screen(opened.value)
    else:
        link.click()

    expect(screen.cards()).to_have_count(1)
    expect(screen.cards()).to_contain_text("A blue kite over the sea")


def test_links_lead_airflow_around_the_frame_to_the_task(look: Look, studio: Studio) -> None:
    screen = look()
    screen.settle()
    screen.card("A blue kite").get_by_role("link", name="kites[1]").click()

    screen.page.wait_for_url(re.compile(r"/dags/kling_studio/runs/.+/tasks/kites/mapped/1"))
    expect(screen.page.get_by_text("kites").first).to_be_visible()
    screen.page.go_back()
    expect(screen.card("A blue kite")).to_be_visible()


def test_the_sums_are_those_of_the_videos_with_recorded_and_estimated_told_apart(
    look: Look, studio: Studio
) -> None:
    screen = look(ALONE)
    screen.settle()
    table = screen.inside.locator(".money table").nth(1)
    expect(table.locator("tbody tr")).not_to_have_count(0)
    screen.add_up()

    sums = {
        row.locator("th").inner_text(): [cell.inner_text() for cell in row.locator("td").all()]
        for row in table.locator("tbody tr").all()
    }
    tasks = [("beach", -1), ("portrait", -1), ("market", -1), ("boat", -1), ("kites", 0), ("kites", 1)]
    cards = [studio.card("kling_studio", *task) for task in tasks]
    recorded = sum(card["recorded_cost_usd"] or 0 for card in cards)
    estimated = sum(card["estimated_cost_usd"] for card in cards if card["recorded_cost_usd"] is None)
    assert sums["kling_studio"] == [f"${recorded:.2f}", f"${estimated:.2f}", "6"]
    assert "kling_refused" not in sums
    assert screen.inside.get_by_role("img", name="Spent by day").is_visible()


def test_a_lists_video_that_another_dag_fetched_is_shown_and_counted_once(look: Look, studio: Studio) -> None:
    returned = studio.airflow.api.xcom("kling_series", studio.runs["kling_series"], "scenes", "return_value")
    run_id = studio.start("kling_fetched", kling_task_id=returned["results"][0]["task_id"])
    try:
        state = studio.airflow.wait_for_run("kling_fetched", run_id)
        assert state == "success", studio.airflow.why_run_failed("kling_fetched", run_id)
        (entry,) = studio.entries("kling_fetched")
        screen = look(ALONE)
        screen.settle()
        # The Dag is offered as soon as the page has met its video, and the video goes when the list has told of it.
        expect(screen.inside.get_by_label("Dag").locator("option[value=kling_fetched]")).to_be_attached()
        expect(screen.inside.locator("#wall > li:visible").filter(has_text=entry["run_id"])).to_have_count(0)
        table = screen.inside.locator(".money table").nth(1)
        of_series = table.locator("tbody tr").filter(has_text="kling_series").locator("td")
        expect(of_series.nth(2)).to_have_text("4")
        expect(table.locator("tbody tr").filter(has_text="kling_fetched")).to_have_count(0)

        # Where its list is not shown, the video is.
        screen.inside.get_by_label("Dag").select_option("kling_fetched")
        expect(screen.cards()).to_have_count(1)
        expect(screen.cards()).to_contain_text("fetch")
        assert screen.brightness(screen.play(screen.cards().first)) > LOOKS_BLACK
    finally:
        studio.airflow.api.call("DELETE", f"dags/kling_fetched/dagRuns/{quote(run_id)}")


def test_who_may_not_read_a_dag_sees_none_of_it(look: Look, studio: Studio) -> None:
    run_id = studio.runs["kling_secret"]
    screen = look(person=GUEST)
    screen.settle()
    expect(screen.card("A girl dancing")).to_be_visible()
    screen.add_up()
    assert screen.card("vault").count() == 0
    assert "kling_secret" not in screen.frame.content()

    of_task = f"/kling/videos/dags/kling_secret/runs/{quote(run_id, safe='')}/tasks/vault/-1"
    assert screen.ask(f"{of_task}/files/0").status == 403
    assert screen.ask(f"{of_task}/videos").status == 403
    may = f"/kling/videos/dags/kling_studio/runs/{quote(studio.runs['kling_studio'], safe='')}/tasks/beach/-1"
    assert screen.ask(f"{may}/files/0").status == 200

    screen.page.goto("/plugin/kling-videos?dag=kling_secret")
    expect(screen.inside.get_by_role("heading", name="You may not see this")).to_be_visible()
    address = f"dag_id=kling_secret&run_id={quote(run_id, safe='')}&task_id=vault&map_index=-1"
    screen.page.goto(f"/plugin/kling-videos?{address}")
    expect(screen.inside.get_by_role("heading", name="You may not see this")).to_be_visible()


def test_without_a_session_the_route_gives_nothing_and_the_page_leads_to_the_login(
    look: Look, studio: Studio
) -> None:
    screen = look(ALONE, person=None)
    expect(screen.page.get_by_role("heading", name="You are not logged in")).to_be_visible()
    expect(screen.page.get_by_role("link", name="Log in")).to_have_attribute(
        "href", re.compile(r"/api/v2/auth/login\?next=http")
    )
    of_task = (
        f"/kling/videos/dags/kling_secret/runs/{quote(studio.runs['kling_secret'], safe='')}/tasks/vault/-1"
    )
    assert screen.ask(f"{of_task}/files/0").status == 401


def test_an_airflow_without_videos_says_how_to_make_one(look: Look) -> None:
    screen = look(ALONE, person=STRANGER)
    expect(screen.inside.get_by_role("heading", name="No videos yet")).to_be_visible()
    expect(screen.inside.locator(".notice")).to_contain_text("KlingGenerateVideoOperator")


def test_an_api_server_that_fails_is_told_and_asked_again(look: Look) -> None:
    screen = look("/")
    failing = json.dumps({"detail": "The database is away"})
    screen.page.route("**/xcomEntries?*", lambda route: route.fulfill(status=500, body=failing))
    screen.page.goto("/plugin/kling-videos")
    notice = screen.inside.locator(".notice")
    expect(notice).to_contain_text("Airflow answered 500: The database is away")

    screen.page.unroute("**/xcomEntries?*")
    notice.get_by_role("button", name="Try again").click()
    expect(screen.card("A girl dancing")).to_be_visible()
    expect(screen.inside.get_by_role("heading", name="Kling videos")).to_be_focused()


def test_a_file_that_is_gone_is_told_on_its_card(look: Look, studio: Studio) -> None:
    (file,) = studio.card("kling_studio", "market")["files"]
    path = Path(file["path"])
    hidden = path.rename(path.with_suffix(".away"))
    try:
        screen = look(ALONE)
        screen.settle()
        card = screen.card("a market")
        card.scroll_into_view_if_needed()
        expect(card.locator(".stage")).to_contain_text("Cannot be played")
        expect(card.locator(".reason")).not_to_be_empty()
    finally:
        hidden.rename(path)
