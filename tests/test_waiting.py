from __future__ import annotations

import json
import logging
import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_kling.api.errors import (
    ConnectionLookupError,
    ConnectionSettingsError,
    KeyRefusedError,
    KlingError,
    LostContactError,
    ModerationError,
    NoCreditsError,
    NoResultError,
    Operation,
    Paid,
    RateLimitedError,
    ServiceUnavailableError,
    TaskFailedError,
    TaskNotFoundError,
    TaskTimeoutError,
    UnreachableError,
    UnreadableAnswerError,
    error_for_status,
)
from airflow_provider_kling.api.task import TaskState, VideoTask
from airflow_provider_kling.waiting import (
    DEFAULT_POLL_INTERVAL,
    DEFER_NET,
    JITTER,
    MAX_ASKS_FOR_LINK,
    MAX_FAILURES,
    NOTE_INTERVAL,
    AskAgain,
    Note,
    Outcome,
    Over,
    PauseEvent,
    WaitEvent,
    Waiting,
    note_to,
)

NOW = 1_800_000_000.0
LINK = "https://r2.example/v.mp4"


def waiting(**settings: Any) -> Waiting:
    return Waiting("task-1", **({"deadline": NOW + 3600, "poll_interval": 10.0, "started": NOW} | settings))


def task(state: TaskState = TaskState.PROCESSING, *links: str, **fields: Any) -> VideoTask:
    word = fields.pop("service_state", state.value)
    return VideoTask(task_id="task-1", state=state, service_state=word, result_urls=links, **fields)


def busy(retry_after: float | None = None) -> RateLimitedError:
    return RateLimitedError("too many requests", retry_after=retry_after)


def away() -> ServiceUnavailableError:
    return ServiceUnavailableError("the service is away")


def goes_on(decision: AskAgain | Over) -> AskAgain:
    assert isinstance(decision, AskAgain)
    return decision


def is_over(decision: AskAgain | Over) -> Over:
    assert isinstance(decision, Over)
    assert (decision.error is None) is (decision.outcome is Outcome.COMPLETED)
    return decision


# The interval


def test_it_is_asked_one_interval_later_give_or_take_a_tenth() -> None:
    pauses = {goes_on(waiting().on_task(task(), NOW)).at - NOW for _ in range(200)}
    assert all(10 * (1 - JITTER) <= pause <= 10 * (1 + JITTER) for pause in pauses)
    assert max(pauses) - min(pauses) > 10 * JITTER


def test_a_wait_begins_with_a_pause() -> None:
    assert 9 <= waiting().begin(NOW).at - NOW <= 11


def test_a_wait_that_begins_late_asks_at_once() -> None:
    assert waiting(deadline=NOW - 5).begin(NOW).at == NOW


# The deadline


def test_the_last_question_is_asked_at_the_deadline_itself() -> None:
    wait = waiting(deadline=NOW + 3)
    assert wait.begin(NOW).at == NOW + 3
    assert goes_on(wait.on_task(task(), NOW)).at == NOW + 3
    assert goes_on(wait.on_error(away(), NOW)).at == NOW + 3
    assert goes_on(wait.on_error(busy(600), NOW)).at == NOW + 3


def test_a_video_that_is_done_at_the_deadline_is_not_given_up() -> None:
    for now in (NOW + 3600, NOW + 7200):
        over = is_over(waiting().on_task(task(TaskState.COMPLETED, LINK), now))
        assert over.outcome is Outcome.COMPLETED


def test_a_task_that_runs_at_the_deadline_is_given_up_and_said_to_go_on() -> None:
    over = is_over(waiting().on_task(task(service_state="rendering"), NOW + 3600))
    assert over.outcome is Outcome.TIMED_OUT
    assert isinstance(over.error, TaskTimeoutError)
    assert over.task is not None
    assert "task-1" in str(over.error)
    assert "2027-01-15T09:00:00" in str(over.error)
    assert "its state is rendering" in str(over.error)
    assert "may still be completed and billed" in str(over.error)
    assert over.error.paid is Paid.MAYBE


def test_an_error_at_the_deadline_is_told_with_it() -> None:
    over = is_over(waiting().on_error(away(), NOW + 3600))
    assert over.outcome is Outcome.TIMED_OUT
    assert over.task is None
    assert "the last query failed: the service is away" in str(over.error)


def test_the_deadline_stands_on_the_clock_and_not_on_the_count_of_questions() -> None:
    """Restarted by another process, the wait ends when the first one would have ended."""
    for _ in range(3):
        restarted = waiting()
        assert isinstance(restarted.on_task(task(), NOW + 3599), AskAgain)
        assert is_over(restarted.on_task(task(), NOW + 3600)).outcome is Outcome.TIMED_OUT


def test_the_net_lies_behind_the_deadline() -> None:
    assert waiting().net(NOW) == timedelta(seconds=3600) + DEFER_NET
    assert waiting().net(NOW + 3000) == timedelta(seconds=600) + DEFER_NET
    assert waiting().net(NOW + 9999) == DEFER_NET


# Failed queries


@pytest.mark.parametrize(
    "error",
    [
        away(),
        UnreachableError("refused"),
        UnreadableAnswerError("a page"),
        ConnectionLookupError("the API server is away"),
    ],
)
def test_failed_queries_are_borne_until_the_last_of_a_row(error: KlingError) -> None:
    wait = waiting()
    for _ in range(MAX_FAILURES - 1):
        assert 9 <= goes_on(wait.on_error(error, NOW)).at - NOW <= 11
    over = is_over(wait.on_error(error, NOW))
    assert over.outcome is Outcome.LOST_CONTACT
    assert isinstance(over.error, LostContactError)
    assert over.error.retryable
    assert over.error.task_id == "task-1"
    assert f"{MAX_FAILURES} queries in a row failed" in str(over.error)
    assert error.what in str(over.error)
    assert "The video is not affected" in str(over.error)


@pytest.mark.parametrize("most", [1, 2, 7])
def test_how_many_failures_are_borne_can_be_set(most: int) -> None:
    wait = waiting(max_failures=most)
    for _ in range(most - 1):
        goes_on(wait.on_error(away(), NOW))
    assert is_over(wait.on_error(away(), NOW)).outcome is Outcome.LOST_CONTACT


def test_an_answer_begins_the_count_anew() -> None:
    wait = waiting(max_failures=2)
    for _ in range(10):
        goes_on(wait.on_error(away(), NOW))
        goes_on(wait.on_task(task(), NOW))
    goes_on(wait.on_error(away(), NOW))
    assert is_over(wait.on_error(away(), NOW)).outcome is Outcome.LOST_CONTACT


def test_a_service_that_asks_for_patience_is_not_out_of_contact() -> None:
    wait = waiting(max_failures=2)
    goes_on(wait.on_error(away(), NOW))
    for _ in range(50):
        goes_on(wait.on_error(busy(), NOW))
    # Nor is it an answer: the failures around it are in a row.
    assert is_over(wait.on_error(away(), NOW)).outcome is Outcome.LOST_CONTACT


@pytest.mark.parametrize("error", [busy(77), ServiceUnavailableError("busy", retry_after=77)])
def test_retry_after_is_honoured(error: KlingError) -> None:
    assert goes_on(waiting().on_error(error, NOW)).at == NOW + 77


def test_retry_after_makes_nobody_hurry() -> None:
    assert goes_on(waiting().on_error(busy(1), NOW)).at >= NOW + 9


@pytest.mark.parametrize(
    ("status", "error_class"),
    [(401, KeyRefusedError), (402, NoCreditsError), (403, KeyRefusedError), (404, TaskNotFoundError)],
)
def test_some_answers_end_the_wait_at_once(status: int, error_class: type[KlingError]) -> None:
    error = error_for_status(Operation.QUERY, status, task_id="task-1")
    for now in (NOW, NOW + 9999):
        over = is_over(waiting().on_error(error, now))
        assert over.outcome is Outcome.REFUSED
        assert over.error is error
        assert isinstance(error, error_class)


def test_a_connection_that_is_unusable_ends_the_wait_at_once() -> None:
    error = ConnectionSettingsError("no key")
    assert is_over(waiting().on_error(error, NOW)) == Over(Outcome.REFUSED, error=error)


# Outcomes


def test_a_completed_task_is_handed_over() -> None:
    done = task(TaskState.COMPLETED, LINK)
    assert is_over(waiting().on_task(done, NOW)) == Over(Outcome.COMPLETED, done)


@pytest.mark.parametrize(
    ("code", "error_class", "retryable"),
    [("CONTENT_MODERATION", ModerationError, False), ("UPSTREAM_BUSY", TaskFailedError, True)],
)
def test_a_failed_task_is_told_as_what_it_failed_of(
    code: str, error_class: type[TaskFailedError], retryable: bool
) -> None:
    failed = task(TaskState.FAILED, fail_code=code, fail_message="no")
    for now in (NOW, NOW + 9999):
        over = is_over(waiting().on_task(failed, now))
        assert (over.outcome, over.task) == (Outcome.FAILED, failed)
        assert type(over.error) is error_class
        assert over.error.retryable is retryable


@pytest.mark.parametrize("poll_interval", [0.5, 10, 3600])
def test_a_link_that_is_missing_is_asked_for_a_bounded_number_of_times(poll_interval: float) -> None:
    wait = waiting(poll_interval=poll_interval)
    now, linkless = NOW + 3590, task(TaskState.COMPLETED)
    for _ in range(MAX_ASKS_FOR_LINK - 1):
        now = goes_on(wait.on_task(linkless, now)).at
    over = is_over(wait.on_task(linkless, now))
    assert over.outcome is Outcome.NO_RESULT
    assert isinstance(over.error, NoResultError)
    assert over.error.paid is Paid.YES
    assert f"{MAX_ASKS_FOR_LINK} answers held no link" in str(over.error)
    # The wait may outlast the deadline, since the video is made, but never the net that Airflow holds behind it.
    assert now < NOW + 3600 + DEFER_NET.total_seconds()


def test_a_link_that_comes_late_is_taken() -> None:
    wait = waiting()
    goes_on(wait.on_task(task(TaskState.COMPLETED), NOW))
    goes_on(wait.on_error(away(), NOW))
    assert is_over(wait.on_task(task(TaskState.COMPLETED, LINK), NOW)).outcome is Outcome.COMPLETED


# What is logged


def notes(decisions: Sequence[AskAgain | Over]) -> list[Note]:
    return [decision.note for decision in decisions if isinstance(decision, AskAgain) and decision.note]


def test_each_state_is_told_when_it_comes_with_the_time_so_far() -> None:
    wait = waiting()
    told = notes(
        [
            wait.on_task(task(TaskState.PENDING), NOW + 10),
            wait.on_task(task(TaskState.PENDING), NOW + 20),
            wait.on_task(task(TaskState.PROCESSING), NOW + 150),
        ]
    )
    assert [note.text for note in told] == [
        "Task task-1 is pending (10 seconds so far).",
        "Task task-1 is processing (2 minutes 30 seconds so far).",
    ]
    assert {note.level for note in told} == {logging.INFO}


def test_a_state_that_does_not_change_is_told_once_a_minute() -> None:
    wait = waiting()
    told = notes([wait.on_task(task(), NOW + second) for second in range(0, 600, 7)])
    assert len(told) == 10
    assert [note.text.partition(" (")[0] for note in told[1:]] == ["Task task-1 is still processing"] * 9


def test_an_unknown_state_is_warned_of_once_and_counts_as_running() -> None:
    wait = waiting()
    told = notes([wait.on_task(task(service_state="rendering"), NOW + second) for second in range(0, 50, 10)])
    told += notes([wait.on_task(task(service_state="polishing"), NOW + 50)])
    assert [note.level for note in told] == [logging.WARNING, logging.INFO]
    assert "'rendering', which this package does not know; it counts as running" in told[0].text
    assert "is polishing" in told[1].text


@pytest.mark.parametrize("error", [busy(), away()])
def test_trouble_is_told_at_once_and_then_once_a_minute(error: KlingError) -> None:
    wait = waiting(max_failures=10_000)
    told = notes([wait.on_error(error, NOW + second) for second in range(0, 600, 10)])
    assert len(told) == 10
    assert {note.level for note in told} == {logging.WARNING}
    assert f"Task task-1 could not be asked for: {error} Asking again in" in told[0].text


def test_a_contact_that_comes_and_goes_does_not_fill_the_log() -> None:
    wait = waiting()
    told = notes(
        [
            wait.on_task(task(), NOW + second) if second % 20 else wait.on_error(away(), NOW + second)
            for second in range(0, 600, 10)
        ]
    )
    assert len(told) <= 12


def test_a_missing_link_is_told_once() -> None:
    wait = waiting()
    told = notes([wait.on_task(task(TaskState.COMPLETED), NOW) for _ in range(5)])
    assert [note.text for note in told] == ["Task task-1 is completed; its link is not there yet."]


def test_notes_are_written_as_they_are_whatever_they_contain(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("test_waiting")
    caplog.set_level(logging.INFO)
    note_to(log, AskAgain(NOW, Note("50 %s of it", logging.WARNING)))
    note_to(log, AskAgain(NOW))
    note_to(log, Over(Outcome.COMPLETED, task(TaskState.COMPLETED, LINK)))
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, "50 %s of it")
    ]


# The event, and going on after it


def event(outcome: Outcome = Outcome.COMPLETED) -> WaitEvent:
    return WaitEvent(kling_task_id="task-1", outcome=outcome, deadline=NOW + 3600, submitted_at=NOW)


@pytest.mark.parametrize("outcome", Outcome)
def test_an_event_survives_json(outcome: Outcome) -> None:
    assert WaitEvent.from_dict(json.loads(json.dumps(event(outcome).to_dict()))) == event(outcome)


@pytest.mark.parametrize(
    "payload",
    [
        None,
        "completed",
        [],
        {},
        {**event().to_dict(), "outcome": "unheard of"},
        {**event().to_dict(), "outcome": None},
        {**event().to_dict(), "outcome": []},
        {**event().to_dict(), "kling_task_id": ""},
        {**event().to_dict(), "kling_task_id": 7},
        {**event().to_dict(), "deadline": "tomorrow"},
        {**event().to_dict(), "deadline": None},
        {key: value for key, value in event().to_dict().items() if key != "submitted_at"},
    ],
)
def test_what_is_no_event_is_never_taken_for_one(payload: Any) -> None:
    with pytest.raises(ValueError, match="not an event of KlingVideoTrigger: "):
        WaitEvent.from_dict(payload)


def test_an_event_of_a_newer_release_is_read() -> None:
    assert WaitEvent.from_dict({**event().to_dict(), "colour": "red"}) == event()


def test_what_is_no_event_is_quoted_in_part() -> None:
    with pytest.raises(ValueError, match="not an event") as raised:
        WaitEvent.from_dict("x" * 10_000)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("ends_at", [NOW + 60, math.inf])
def test_a_pause_survives_json(ends_at: float) -> None:
    uploads = {"ab12": ("https://files.example/a.png", NOW)}
    pause = PauseEvent(deadline=NOW + 3600, attempt_ends_at=ends_at, uploads=uploads)
    written = json.dumps(pause.to_dict(), allow_nan=False)
    assert PauseEvent.from_dict(json.loads(written)) == pause


@pytest.mark.parametrize(
    "uploads", [None, "x", ["x"], {"ab12": "x"}, {"ab12": [1, NOW]}, {"ab12": ["x", "y"]}]
)
def test_a_pause_whose_uploads_cannot_be_read_goes_on_without_them(uploads: Any) -> None:
    payload = PauseEvent(deadline=NOW + 3600).to_dict() | {"uploads": uploads}
    assert PauseEvent.from_dict(payload) == PauseEvent(deadline=NOW + 3600)


@pytest.mark.parametrize(
    "payload",
    [None, "", {}, {"deadline": NOW}, {"deadline": None, "attempt_ends_at": None}, {"deadline": "x"}],
)
def test_what_is_no_pause_is_never_taken_for_one(payload: Any) -> None:
    with pytest.raises(ValueError, match="not an event of KlingPauseTrigger: "):
        PauseEvent.from_dict(payload)


def resumed(outcome: Outcome, **settings: Any) -> Waiting:
    return Waiting.resumed(event(outcome), poll_interval=20, **settings)


@pytest.mark.parametrize("outcome", Outcome)
def test_a_resumed_wait_has_the_deadline_and_the_start_of_the_first(outcome: Outcome) -> None:
    wait = resumed(outcome)
    assert (wait.task_id, wait.deadline, wait.started) == ("task-1", NOW + 3600, NOW)
    assert 18 <= goes_on(wait.on_task(task(), NOW + 60)).at - (NOW + 60) <= 22
    assert is_over(wait.on_task(task(), NOW + 3600)).outcome is Outcome.TIMED_OUT


def test_after_lost_contact_one_more_failure_is_the_last() -> None:
    assert is_over(resumed(Outcome.LOST_CONTACT).on_error(away(), NOW)).outcome is Outcome.LOST_CONTACT
    assert (
        is_over(resumed(Outcome.LOST_CONTACT, max_failures=1).on_error(away(), NOW)).outcome
        is Outcome.LOST_CONTACT
    )
    recovered = resumed(Outcome.LOST_CONTACT)
    goes_on(recovered.on_task(task(), NOW))
    goes_on(recovered.on_error(away(), NOW))


def test_after_a_missing_link_one_more_answer_without_it_is_the_last() -> None:
    """Else worker and triggerer would hand the task to each other for ever."""
    assert (
        is_over(resumed(Outcome.NO_RESULT).on_task(task(TaskState.COMPLETED), NOW)).outcome
        is Outcome.NO_RESULT
    )


@pytest.mark.parametrize("outcome", [Outcome.COMPLETED, Outcome.FAILED, Outcome.TIMED_OUT, Outcome.REFUSED])
def test_an_event_is_not_believed(outcome: Outcome) -> None:
    """The service says something else, and that counts."""
    wait = resumed(outcome)
    goes_on(wait.on_error(away(), NOW))
    goes_on(wait.on_task(task(TaskState.COMPLETED), NOW))
    goes_on(wait.on_task(task(), NOW))


def test_the_errors_of_an_outcome_can_be_handed_between_processes() -> None:
    over = is_over(waiting().on_task(task(), NOW + 3600))
    assert str(pickle.loads(pickle.dumps(over.error))) == str(over.error)


# Whatever the service answers

ERRORS = st.one_of(
    st.builds(busy, st.one_of(st.none(), st.floats(0, 10_000))),
    st.builds(away),
    st.just(UnreachableError("refused")),
    st.just(KeyRefusedError("no")),
)
TASKS = st.one_of(
    st.sampled_from([task(TaskState.PENDING), task(TaskState.PROCESSING), task(service_state="rendering")]),
    st.sampled_from([task(TaskState.COMPLETED), task(TaskState.COMPLETED, LINK), task(TaskState.FAILED)]),
)
UNFINISHED = st.one_of(
    st.builds(busy, st.one_of(st.none(), st.floats(0, 10_000))),
    st.builds(away),
    st.sampled_from([task(TaskState.PENDING), task(TaskState.PROCESSING), task(service_state="rendering")]),
)


@dataclass
class Story:
    """How a wait went: when it asked, what it learnt, what it decided."""

    asked: list[float] = field(default_factory=list)
    learnt: list[VideoTask | KlingError] = field(default_factory=list)
    decisions: list[AskAgain | Over] = field(default_factory=list)
    over: Over | None = None


def live_through(
    wait: Waiting, answers: Sequence[VideoTask | KlingError], delay: float, began: float
) -> Story:
    """Let a wait ask whenever it wants to, with each answer late by the delay; the last answer is given for ever."""
    story, now = Story(), began
    begin = wait.begin(now)
    assert begin.at >= now
    decision: AskAgain | Over = begin
    while isinstance(decision, AskAgain):
        now = decision.at
        story.asked.append(now)
        answer = answers[min(len(story.learnt), len(answers) - 1)]
        story.learnt.append(answer)
        now += delay
        decision = wait.on_error(answer, now) if isinstance(answer, KlingError) else wait.on_task(answer, now)
        story.decisions.append(decision)
        if isinstance(decision, AskAgain):
            assert decision.at >= now
        assert len(story.asked) < 100_000
    story.over = decision
    return story


WAITS = st.fixed_dictionaries(
    {
        "deadline": st.floats(NOW - 100, NOW + 5000),
        "poll_interval": st.floats(1, 600),
        "max_failures": st.integers(1, 8),
    }
)


@given(
    chosen=WAITS,
    answers=st.lists(st.one_of(UNFINISHED, TASKS, ERRORS), min_size=1, max_size=30),
    delay=st.sampled_from([0.0, 0.01, 3.0, 45.0]),
)
@example({"deadline": NOW + 60, "poll_interval": 600, "max_failures": 5}, [task(TaskState.COMPLETED)], 0.0)
@example({"deadline": NOW + 600, "poll_interval": 1, "max_failures": 5}, [busy()], 0.0)
def test_every_wait_ends_once_and_in_time(
    chosen: dict[str, Any], answers: list[VideoTask | KlingError], delay: float
) -> None:
    deadline = chosen["deadline"]
    story = live_through(waiting(**chosen), answers, delay, NOW)

    over = is_over(story.over)  # type: ignore[arg-type]
    assert all(isinstance(decision, AskAgain) for decision in story.decisions[:-1])

    # After the deadline nobody asks, but for the link of a video that is made; a late beginning asks once.
    asked_late = [at for at in story.asked[1:] if at > deadline]
    linkless = sum(isinstance(each, VideoTask) and each.state is TaskState.COMPLETED for each in story.learnt)
    assert len(asked_late) <= linkless
    if not linkless:
        assert story.asked[-1] <= max(deadline, NOW)
    net = max(0.0, deadline - NOW) + DEFER_NET.total_seconds()
    assert story.asked[-1] - NOW <= net + delay * MAX_ASKS_FOR_LINK

    # What ended it is what was learnt last.
    last = story.learnt[-1]
    if over.outcome in (Outcome.COMPLETED, Outcome.FAILED, Outcome.NO_RESULT):
        assert over.task is last
    if over.outcome is Outcome.REFUSED:
        assert over.error is last
    if over.outcome is Outcome.TIMED_OUT:
        assert story.asked[-1] + delay >= deadline
    if over.outcome is Outcome.LOST_CONTACT:
        counted = [each for each in story.learnt if not isinstance(each, RateLimitedError)]
        row = counted[-chosen["max_failures"] :]
        assert len(row) == chosen["max_failures"]
        assert all(isinstance(each, KlingError) for each in row)


@given(
    poll_interval=st.floats(1, 60),
    answers=st.lists(UNFINISHED, min_size=1, max_size=60),
    delay=st.sampled_from([0.0, 0.5]),
)
def test_the_log_grows_by_a_line_a_minute_and_one_for_each_change(
    poll_interval: float, answers: list[VideoTask | KlingError], delay: float
) -> None:
    wait = waiting(deadline=NOW + 1800, poll_interval=poll_interval, max_failures=10_000)
    story = live_through(wait, answers, delay, NOW)
    states = [each.service_state for each in story.learnt if isinstance(each, VideoTask)]
    changes = sum(one != other for one, other in zip([None, *states], states, strict=False))
    trouble = any(isinstance(each, KlingError) for each in story.learnt)
    minutes = (story.asked[-1] + delay - NOW) / NOTE_INTERVAL
    # A first line about trouble comes at once, wherever in the minute that is.
    assert len(notes(story.decisions)) <= changes + 2 * minutes + trouble
    lines_about_trouble = [note for note in notes(story.decisions) if "could not be asked" in note.text]
    assert len(lines_about_trouble) <= minutes + 1


@given(answers=st.lists(UNFINISHED, max_size=20), link=st.integers(0, MAX_ASKS_FOR_LINK - 1))
def test_a_video_that_is_made_in_time_is_always_found(
    answers: list[VideoTask | KlingError], link: int
) -> None:
    """No order of faults, refusals for a while and missing links keeps it from its Dag."""
    wait = waiting(deadline=NOW + 10_000_000, max_failures=len(answers) + 1)
    script = [*answers, *[task(TaskState.COMPLETED)] * link, task(TaskState.COMPLETED, LINK)]
    story = live_through(wait, script, 0, NOW)
    assert story.over is not None
    assert story.over.outcome is Outcome.COMPLETED
    assert len(story.asked) == len(script)


def test_the_defaults_are_those_of_the_documentation() -> None:
    assert (DEFAULT_POLL_INTERVAL, MAX_FAILURES) == (10, 5)
    assert math.isclose(Waiting("a", deadline=NOW, started=NOW).poll_interval, 10)


@given(waited=st.floats(0, 10_000), interval=st.floats(1, 1_000), left=st.floats(0, 10_000))
def test_a_wait_that_goes_on_asks_when_the_next_interval_since_its_beginning_is_over(
    waited: float, interval: float, left: float
) -> None:
    now = 1_000_000.0
    waiting = Waiting("t", deadline=now + left, poll_interval=interval, started=now - waited)
    at = waiting.begin(now, since=now - waited).at
    assert now <= at <= now + min(left, interval * (1 + JITTER)) + 1e-6
    if waited < interval * (1 - JITTER) and left > interval * 2:
        assert at - (now - waited) >= interval * (1 - JITTER) - 1e-6, "not before the first of them is over"
