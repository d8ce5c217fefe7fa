"""A video that is being made, watched on the page until it is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import quote

from playwright.sync_api import expect

from tests.browser.conftest import ALONE, Studio
from tests.browser.screen import LOOKS_BLACK, Screen

Look = Callable[..., Screen]
DAG_ID, TASK_ID = "kling_waiting", "slow"


@contextmanager
def never_done(studio: Studio) -> Iterator[None]:
    """Let the service take tasks and not end them by itself."""
    studio.service.configure(latency="never")
    try:
        yield
    finally:
        studio.service.configure(latency=1)


def submit(studio: Studio, prompt: str) -> tuple[str, str]:
    """Start a run whose task waits; return its run id and the service's task id."""
    run_id = studio.start(DAG_ID, prompt=prompt)
    studio.airflow.api.wait_for_task(DAG_ID, run_id, TASK_ID, "deferred")
    return run_id, str(studio.airflow.api.xcom(DAG_ID, run_id, TASK_ID, "kling_video")["task_id"])


def test_a_waiting_video_counts_the_time_and_turns_into_a_player_by_itself(
    look: Look, studio: Studio
) -> None:
    with never_done(studio):
        run_id, kling_task_id = submit(studio, "A snail on a wet leaf")
    screen = look()
    screen.settle()
    card = screen.card("A snail on a wet leaf")
    expect(card.locator(".stage")).to_contain_text("Being made")
    before = card.locator(".clock").inner_text()
    expect(card.locator(".clock")).not_to_have_text(before)
    expect(card.locator(".cost")).to_contain_text("estimated")
    screen.frame.evaluate("() => { window.isStillTheSame = true; }")

    studio.airflow.wait_until_off_its_worker(DAG_ID, run_id, TASK_ID)
    studio.service.complete(kling_task_id)

    expect(card.get_by_role("button", name="Play")).to_be_visible()
    assert screen.frame.evaluate("() => window.isStillTheSame")
    assert screen.brightness(screen.play(card)) > LOOKS_BLACK


def test_a_video_that_is_asked_for_while_another_waits_appears_by_itself(look: Look, studio: Studio) -> None:
    with never_done(studio):
        run_id, kling_task_id = submit(studio, "The first of two turtles")
        screen = look(ALONE)
        screen.settle()
        expect(screen.card("first of two turtles")).to_be_visible()
        other_run_id, other_task_id = submit(studio, "The second of two turtles")
        expect(screen.card("second of two turtles")).to_be_visible()
    assert "second" in screen.cards().first.inner_text()
    for run, task in ((run_id, kling_task_id), (other_run_id, other_task_id)):
        studio.airflow.wait_until_off_its_worker(DAG_ID, run, TASK_ID)
        studio.service.complete(task)
    for run in (run_id, other_run_id):
        studio.airflow.wait_for_run(DAG_ID, run)


def test_a_task_that_ended_without_a_word_is_not_shown_as_waiting(look: Look, studio: Studio) -> None:
    with never_done(studio):
        run_id, kling_task_id = submit(studio, "A moth that is told to go")
    task = f"dags/{DAG_ID}/dagRuns/{quote(run_id)}/taskInstances/{TASK_ID}"
    studio.airflow.api.call("PATCH", task, json={"new_state": "failed"})

    screen = look(ALONE)
    screen.settle()
    card = screen.card("A moth that is told to go")
    expect(card.locator(".stage")).to_contain_text("Unresolved")
    expect(card.locator(".reason")).to_contain_text("The task ended as “failed”")
    studio.service.complete(kling_task_id)


def test_nothing_is_asked_while_nothing_waits(look: Look, studio: Studio) -> None:
    screen = look(f"{ALONE}?dag=kling_studio")
    screen.settle()
    screen.add_up()
    asked: list[str] = []
    screen.page.on(
        "request", lambda request: asked.append(request.url) if "/xcomEntries" in request.url else None
    )
    time.sleep(12)  # longer than the page waits between two looks
    assert asked == []
