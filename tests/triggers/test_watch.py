"""Many videos that wait in one event loop, in virtual time."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import pytest
from airflow.providers.common.compat.sdk import BaseHook
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from airflow_provider_kling.hooks.async_client import MAX_CONNECTIONS
from airflow_provider_kling.triggers import watch as module
from airflow_provider_kling.triggers.watch import (
    LONGEST_PAUSE,
    RECOVERY,
    RENEWAL_INTERVAL,
    SLOT,
    STARTS_A_TICK,
    TICK,
    Pace,
    watching,
)
from airflow_provider_kling.waiting import JITTER, MAX_FAILURES, Outcome, Over, Waiting
from tests.hooks.conftest import KEY, Connect
from tests.hooks.loopback import Answer, Loopback, Received, task_answer
from tests.triggers.virtual_time import Asked, Service, in_no_time, now

pytestmark = pytest.mark.acceptance

LINK = "https://r2.example/v.mp4"
SLACK = 0.2
"""Seconds between being due and being asked for where nothing is in the way: a few ticks."""


@pytest.fixture
def rate(connect: Connect) -> Callable[[float], None]:
    """Define the connection, with so many queries a second."""
    return lambda per_second: connect(max_queries_per_second=per_second)


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return when connections were looked up."""
    at: list[float] = []
    in_thread: Any = BaseHook.get_connection

    def get_connection(conn_id: str) -> Any:
        at.append(now())
        return in_thread(conn_id)

    monkeypatch.setattr(BaseHook, "get_connection", staticmethod(get_connection))
    if awaited := getattr(BaseHook, "aget_connection", None):

        async def aget_connection(conn_id: str) -> Any:
            at.append(now())
            return await awaited(conn_id)

        monkeypatch.setattr(BaseHook, "aget_connection", staticmethod(aget_connection))
    return at


@pytest.fixture
def told() -> Iterator[list[str]]:
    """Return what the triggerer's own log is told, in no task's context."""
    lines: list[str] = []
    handler = logging.Handler()

    def emit(record: logging.LogRecord) -> None:
        assert not contextvars.copy_context(), "this goes to one task's log"
        lines.append(record.getMessage())

    handler.emit = emit  # type: ignore[method-assign]
    module.log.addHandler(handler)
    yield lines
    module.log.removeHandler(handler)


LOG = logging.getLogger("airflow.task")


async def wait_for(
    task_id: str,
    *,
    lasts: float = 3600,
    interval: float = 10,
    conn_id: str = "kling_default",
    log: Any = LOG,
) -> Over:
    waiting = Waiting(task_id, deadline=time.time() + lasts, poll_interval=interval, started=time.time())
    async with watching(conn_id) as watch:
        return await watch.until_over(waiting, log=log)


async def wait_for_many(count: int, *, seconds: float = math.inf, **how: Any) -> list[Over]:
    """Let so many videos wait side by side, for so many seconds at the most."""
    users = [asyncio.create_task(wait_for(f"task-{number}", **how)) for number in range(count)]
    _, unfinished = await asyncio.wait(users, timeout=None if math.isinf(seconds) else seconds)
    for each in unfinished:
        each.cancel()
    await asyncio.gather(*unfinished, return_exceptions=True)
    return [user.result() for user in users if user not in unfinished]


def gaps(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def most_within(times: list[float], seconds: float) -> int:
    """Return how many lie within the fullest stretch of so many seconds."""
    most = first = 0
    for last, at in enumerate(times):
        while times[first] <= at - seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


# When each is asked for


def test_while_there_is_room_each_is_asked_for_once_an_interval(service: Service, rate: Any) -> None:
    rate(20)
    in_no_time(lambda: wait_for_many(50, seconds=600))
    for number in range(50):
        first, *between = gaps([0, *service.times_of(f"task-{number}")])
        assert 10 * (1 - JITTER) <= first <= 10 * (1 + JITTER) + SLACK + 0.5 + SLOT
        assert len(between) >= 50
        assert all(9 <= gap - 0.1 <= 11.7 + SLOT for gap in between)
    assert max(gaps(service.times_of("task-0"))) - min(gaps(service.times_of("task-0"))) > 0.1  # jitter


def test_with_more_than_the_rate_allows_all_are_asked_for_less_often_and_alike(
    service: Service, rate: Any
) -> None:
    rate(5)
    in_no_time(lambda: wait_for_many(200, seconds=1000))
    asked = Counter(asked.task_id for asked in service.asked)
    assert len(asked) == 200
    # Chance moves each a little within the round of all, so who began early and gained is asked for once more.
    assert all(abs(times - 1000 / (200 / 5)) <= 1 for times in asked.values())
    for number in range(200):
        assert max(gaps(service.times_of(f"task-{number}"))) <= 200 / 5 + 10 * (1 + JITTER)
        steady = [at for at in service.times_of(f"task-{number}") if at > 100]
        assert max(gaps(steady)) == pytest.approx(200 / 5, rel=0.1)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    intervals=st.lists(st.floats(0.5, 60), min_size=1, max_size=30),
    per_second=st.floats(0.5, 50),
    latencies=st.lists(st.floats(0, 3), min_size=1, max_size=7),
)
@example(intervals=[1.0, 1.0, 0.5, 0.5, 1.0, 0.5], per_second=0.5, latencies=[0.0])
@example(intervals=[1.0, 1.0], per_second=16.0, latencies=[0.0])
def test_nobody_starves_and_the_rate_holds(
    service: Service, rate: Any, intervals: list[float], per_second: float, latencies: list[float]
) -> None:
    rate(per_second)
    service.asked.clear()
    latency = dict(enumerate(latencies))
    service.latency = lambda asked: latency[int(asked.task_id[5:]) % len(latency)]
    seconds = 20 + 5 * max(*intervals, len(intervals) / per_second)

    async def story() -> None:
        async with asyncio.TaskGroup() as group:
            for number, interval in enumerate(intervals):
                group.create_task(several(number, interval))

    async def several(number: int, interval: float) -> None:
        user = asyncio.create_task(wait_for(f"task-{number}", interval=interval, lasts=1e6))
        await asyncio.wait([user], timeout=seconds)
        user.cancel()

    in_no_time(story)
    asked = defaultdict(list)
    for each in service.asked:
        asked[each.task_id].append(each.at)
    for number, interval in enumerate(intervals):
        own = interval * (1 + JITTER) + service.latency(Asked(0, f"task-{number}", ""))
        round_of_all = (len(intervals) + 1) / per_second
        times = [0.0, *asked[f"task-{number}"], seconds]
        assert max(gaps(times)) <= own + round_of_all + SLACK + SLOT
    if len(set(intervals)) == len(set(latencies)) == 1:
        fair = max(
            intervals[0] * (1 + JITTER) + latencies[0] + SLACK + SLOT, (len(intervals) + 1) / per_second
        )
        assert min(len(times) for times in asked.values()) >= seconds // fair - 2
    for stretch in (1.0, 10.0):
        assert most_within(service.times, stretch) <= per_second * (stretch + module.CREDIT) + 1


def test_the_configuration_sets_the_rate_and_the_connection_beats_it(
    service: Service, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__KLING__MAX_QUERIES_PER_SECOND", "2")
    for extra, expected in (({}, 2), ({"max_queries_per_second": "7"}, 7)):
        connect(**extra)
        service.asked.clear()
        in_no_time(lambda: wait_for_many(200, seconds=110))
        assert len(service.asked) == pytest.approx(expected * 100, rel=0.05)


@pytest.mark.parametrize("setting", ["many", "0", "-1", "nan", "inf"])
def test_a_rate_that_is_none_does_not_cost_the_videos(
    service: Service,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    log_text: Callable[[], str],
    setting: str,
) -> None:
    monkeypatch.setenv("AIRFLOW__KLING__MAX_QUERIES_PER_SECOND", setting)
    connect()
    service.answer = lambda asked: task_answer("completed", LINK, task_id=asked.task_id)
    [over] = in_no_time(lambda: wait_for_many(1))
    assert over.outcome is Outcome.COMPLETED
    assert "max_queries_per_second" in log_text()
    assert "going on with 20" in log_text()


def test_a_crowd_that_is_due_at_once_is_not_started_at_once(service: Service, rate: Any) -> None:
    rate(1e6)
    monkey_interval = 10
    in_no_time(lambda: wait_for_many(2000, seconds=30, lasts=5, interval=monkey_interval))
    together = Counter(service.times)
    assert len(service.asked) == 2000
    assert max(together.values()) <= STARTS_A_TICK


def test_no_more_queries_are_under_way_than_the_session_has_connections(service: Service, rate: Any) -> None:
    rate(1e6)
    service.latency = lambda _: 5.0
    in_no_time(lambda: wait_for_many(1000, seconds=120))
    assert service.most_under_way == MAX_CONNECTIONS
    assert len({asked.task_id for asked in service.asked}) == 1000


def test_whoever_gets_no_answer_holds_up_nobody(service: Service, rate: Any) -> None:
    rate(20)
    service.latency = lambda asked: 1e5 if asked.task_id == "task-0" else 0.1
    in_no_time(lambda: wait_for_many(20, seconds=300))
    assert len(service.times_of("task-0")) == 1
    assert all(len(service.times_of(f"task-{number}")) >= 24 for number in range(1, 20))


# The deadline


def test_the_last_query_is_at_the_deadline_whatever_the_rate(service: Service, rate: Any) -> None:
    rate(0.5)
    overs = in_no_time(lambda: wait_for_many(300, lasts=90))
    assert {over.outcome for over in overs} == {Outcome.TIMED_OUT}
    assert len(overs) == 300
    for number in range(300):
        assert 90 <= service.times_of(f"task-{number}")[-1] <= 95
    assert len(service.asked) <= 300 + 90 * 0.5 + 1


def test_the_last_query_is_at_the_deadline_whatever_patience_the_service_asks_for(
    service: Service, rate: Any
) -> None:
    rate(20)
    service.answer = lambda asked: (
        Answer(429, b"", {"Retry-After": "200"})
        if asked.at < 60
        else task_answer("completed", LINK, task_id=asked.task_id)
    )
    overs = in_no_time(lambda: wait_for_many(10, lasts=60))
    assert {over.outcome for over in overs} == {Outcome.COMPLETED}
    assert all(60 <= service.times_of(f"task-{number}")[-1] <= 61 for number in range(10))


def test_deadlines_that_passed_while_no_triggerer_ran_are_asked_for_at_once_and_once(
    service: Service, rate: Any
) -> None:
    rate(1)
    service.answer = lambda asked: task_answer(
        "completed" if int(asked.task_id[5:]) % 2 else "processing", LINK, task_id=asked.task_id
    )
    overs = in_no_time(lambda: wait_for_many(100, lasts=-60))
    assert Counter(over.outcome for over in overs) == {Outcome.COMPLETED: 50, Outcome.TIMED_OUT: 50}
    assert len(service.asked) == 100
    assert max(service.times) <= 5


# A service that asks for patience


def test_one_429_slows_all_of_the_connection_down_and_it_recovers(service: Service, rate: Any) -> None:
    rate(10)
    turned_away: list[Asked] = []

    def answer(asked: Asked) -> Answer:
        if asked.at > 100 and not turned_away:
            turned_away.append(asked)
            return Answer(429, b"", {"Retry-After": "30"})
        return task_answer("processing", task_id=asked.task_id)

    service.answer = answer
    in_no_time(lambda: wait_for_many(200, seconds=400))
    [first] = turned_away
    paused = [at for at in service.times if first.at + 0.1 < at < first.at + 30]
    assert paused == []
    resumed = first.at + 30.1
    of_second = Counter(int(at - resumed) for at in service.times if at >= resumed)
    assert of_second[1] in (4, 5, 6)
    full = [of_second[second] for second in range(int(RECOVERY), int(RECOVERY) + 100)]
    assert sum(full) == pytest.approx(1000, rel=0.02)
    assert [of_second[second] for second in range(0, 60, 10)] == sorted(
        of_second[second] for second in range(0, 60, 10)
    )


def test_answers_to_what_was_under_way_count_once(service: Service, rate: Any) -> None:
    rate(50)
    service.latency = lambda _: 1.0
    service.answer = lambda asked: (
        Answer(429) if 20 < asked.at < 21 else task_answer("processing", task_id=asked.task_id)
    )
    in_no_time(lambda: wait_for_many(1000, seconds=40))
    # Fifty were turned away. Halved for each of them, next to nothing would go on.
    assert len([at for at in service.times if 23 < at < 33]) == pytest.approx(250, rel=0.3)


def test_a_service_that_turns_all_away_is_still_asked_now_and_then(service: Service, rate: Any) -> None:
    rate(20)
    service.answer = lambda _: Answer(429)
    in_no_time(lambda: wait_for_many(1000, seconds=1000))
    late = [at for at in service.times if at > 200]
    assert 0.2 <= len(late) / 800 <= 2
    assert max(gaps(late)) <= 1 / (20 * module.SLOWEST) + 1


def test_an_endless_patience_asked_for_by_one_answer_holds_the_others_for_minutes_only(
    service: Service, rate: Any
) -> None:
    rate(20)
    service.answer = lambda asked: (
        Answer(429, b"", {"Retry-After": "86400"})
        if asked.task_id == "task-0"
        else task_answer("processing", task_id=asked.task_id)
    )
    in_no_time(lambda: wait_for_many(10, seconds=1000, lasts=1e6))
    [refused] = service.times_of("task-0")
    for number in range(1, 10):
        after = [at for at in service.times_of(f"task-{number}") if at > refused + 1]
        assert LONGEST_PAUSE <= after[0] - refused <= LONGEST_PAUSE + 20
        assert len(after) > 50


def test_the_triggerer_is_told_that_the_service_turns_queries_away(
    service: Service, rate: Any, told: list[str]
) -> None:
    rate(20)
    service.answer = lambda asked: (
        Answer(429, b"", {"Retry-After": "30"})
        if asked.at < 12
        else task_answer("completed", LINK, task_id=asked.task_id)
    )
    in_no_time(lambda: wait_for_many(30))
    assert len(told) == 1
    assert "turns queries of connection 'kling_default' away" in told[0]


def test_a_pace_recovers_from_any_trouble_within_a_minute() -> None:
    pace = Pace(20)
    for second in range(100):
        pace.slow_down(second, asked_at=second, retry_after=None)
        assert pace.rate(second) >= 20 * module.SLOWEST
    assert pace.rate(100) < 2
    assert pace.rate(101 + RECOVERY) == 20


# One bad answer hurts one video


def test_each_ends_as_its_own_answers_say(service: Service, rate: Any) -> None:
    rate(1000)
    of = {
        0: task_answer("completed", LINK, task_id="task-0"),
        1: task_answer("failed", task_id="task-1", failCode="INVALID_INPUT"),
        2: Answer(404, {"code": 404}),
        3: Answer(503),
        4: Answer(200, b"<html>"),
        5: task_answer("completed", task_id="task-5"),
        6: Answer(402, {"code": 402}),
    }
    service.answer = lambda asked: of.get(
        int(asked.task_id[5:]), task_answer("processing", task_id=asked.task_id)
    )
    overs = in_no_time(lambda: wait_for_many(50, lasts=600))
    assert [over.outcome for over in overs] == [
        Outcome.COMPLETED,
        Outcome.FAILED,
        Outcome.REFUSED,
        Outcome.LOST_CONTACT,
        Outcome.LOST_CONTACT,
        Outcome.NO_RESULT,
        Outcome.REFUSED,
        *[Outcome.TIMED_OUT] * 43,
    ]
    assert all(len(service.times_of(f"task-{number}")) >= 50 for number in range(7, 50))


def test_a_log_that_breaks_ends_its_own_wait_only(service: Service, rate: Any) -> None:
    class Broken:
        def log(self, *_: Any) -> None:
            raise OSError("no space left")

    rate(1000)

    async def story() -> None:
        broken = asyncio.create_task(wait_for("broken", log=Broken()))
        others = asyncio.create_task(wait_for_many(5, seconds=100))
        with pytest.raises(OSError, match="no space left"):
            await broken
        await others

    in_no_time(story)
    assert all(len(service.times_of(f"task-{number}")) >= 8 for number in range(5))


def test_what_is_said_about_a_video_is_said_where_it_is_waited_for(service: Service, rate: Any) -> None:
    """Airflow tells by the context which task's log a line belongs to."""
    mine: contextvars.ContextVar[str] = contextvars.ContextVar("mine", default="nobody's")
    said: dict[str, set[str]] = defaultdict(set)

    class Log:
        def log(self, _: int, text: str, *args: Any) -> None:
            said[mine.get()].add((text % args).split()[1])

    async def one(task_id: str) -> None:
        mine.set(task_id)
        await wait_for(task_id, log=Log(), lasts=100)

    async def story() -> None:
        await asyncio.gather(*(one(f"task-{number}") for number in range(20)))

    rate(1000)
    in_no_time(story)
    assert said == {f"task-{number}": {f"task-{number}"} for number in range(20)}


# The connection


def test_a_changed_key_is_picked_up_and_no_video_is_given_up(
    service: Service, connect: Connect, lookups: list[float]
) -> None:
    def answer(asked: Asked) -> Answer:
        if asked.at > 200:
            return task_answer("completed", LINK, task_id=asked.task_id)
        if asked.at > 100 and asked.key != "sk_new":
            return Answer(401, {"code": 401})
        return task_answer("processing", task_id=asked.task_id)

    service.answer = answer
    connect(max_queries_per_second=100)

    async def story() -> list[Over]:
        users = asyncio.create_task(wait_for_many(500))
        await asyncio.sleep(99)
        connect(password="sk_new", max_queries_per_second=50)
        return await users

    overs = in_no_time(story)
    assert {over.outcome for over in overs} == {Outcome.COMPLETED}
    assert len(overs) == 500
    assert len(lookups) == 2
    assert {asked.key for asked in service.asked if asked.at < 99} == {KEY}
    assert {asked.key for asked in service.asked if asked.at > 102} == {"sk_new"}
    # What else the connection says counts as well.
    assert len([at for at in service.times if 110 < at < 190]) == pytest.approx(80 * 50, rel=0.05)


def test_a_session_that_is_out_of_date_is_closed_when_its_last_query_has_ended(
    service: Service, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[tuple[str, int]] = []
    close = aiohttp.ClientSession.close

    async def watched(session: aiohttp.ClientSession) -> None:
        if not session.closed:
            closed.append((session.headers["Authorization"].removeprefix("Bearer "), now_in_whole_seconds()))
        await close(session)

    def now_in_whole_seconds() -> int:
        return round(now())

    monkeypatch.setattr(aiohttp.ClientSession, "close", watched)
    connect(password="sk_old")
    service.latency = lambda asked: 60 if asked.task_id == "slow" else 0.1
    service.answer = lambda asked: (
        Answer(401)
        if asked.at > 20 and asked.key == "sk_old"
        else task_answer("processing", task_id=asked.task_id)
    )

    async def story() -> list[Over]:
        connect(password="sk_old")
        slow = asyncio.create_task(wait_for("slow", lasts=100))
        await asyncio.sleep(8)
        quick = asyncio.create_task(wait_for("quick", lasts=92))
        await asyncio.sleep(7)
        connect(password="sk_new")
        return list(await asyncio.gather(slow, quick))

    assert {over.outcome for over in in_no_time(story)} == {Outcome.TIMED_OUT}
    [(old, old_at), (new, new_at)] = closed
    assert (old, new) == ("sk_old", "sk_new")
    first_of_slow = service.times_of("slow")[0]
    assert old_at == round(first_of_slow + 60)
    assert new_at >= 100


def test_ten_thousand_refusals_are_one_failure_each_and_no_storm(
    service: Service, connect: Connect, lookups: list[float], told: list[str]
) -> None:
    connect(max_queries_per_second=200)
    service.answer = lambda asked: (
        Answer(401, {"code": 401, "msg": "key revoked"})
        if asked.at > 15
        else task_answer("processing", task_id=asked.task_id)
    )
    overs = in_no_time(lambda: wait_for_many(10_000))
    assert Counter(over.outcome for over in overs) == {Outcome.REFUSED: 10_000}
    assert all("key revoked" in str(over.error) for over in overs)
    lasted = service.times[-1] - 15
    assert 2 <= len(lookups) <= lasted / RENEWAL_INTERVAL + 2
    assert min(gaps(lookups)) >= RENEWAL_INTERVAL - 0.5
    assert len(told) == 1
    assert "stops asking with connection 'kling_default'" in told[0]
    assert "key revoked" in told[0]


def test_a_key_that_is_wrong_from_the_start_is_not_looked_up_again(
    service: Service, connect: Connect, lookups: list[float]
) -> None:
    connect()
    service.answer = lambda _: Answer(403, {"code": 403})
    overs = in_no_time(lambda: wait_for_many(20))
    assert {over.outcome for over in overs} == {Outcome.REFUSED}
    assert len(lookups) == 1


def test_where_the_connection_cannot_be_looked_up_again_a_refusal_is_a_failed_query(
    service: Service, connect: Connect, failing_lookups: Callable[[BaseException], list[str]]
) -> None:
    connect()
    service.answer = lambda asked: (
        Answer(401) if asked.at > 25 else task_answer("processing", task_id=asked.task_id)
    )

    async def story() -> list[Over]:
        users = asyncio.create_task(wait_for_many(10))
        await asyncio.sleep(24)
        failing_lookups(RuntimeError("the API server is away"))
        return await users

    assert {over.outcome for over in in_no_time(story)} == {Outcome.LOST_CONTACT}
    for number in range(10):
        assert len([at for at in service.times_of(f"task-{number}") if at > 25]) == MAX_FAILURES


def test_failing_lookups_are_failed_queries_of_each_video_and_no_storm(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    at: list[float] = []

    def get_connection(conn_id: str) -> Any:
        at.append(now())
        raise RuntimeError("the API server is away")

    async def aget_connection(conn_id: str) -> Any:
        return get_connection(conn_id)

    monkeypatch.setattr(BaseHook, "get_connection", staticmethod(get_connection))
    monkeypatch.setattr(BaseHook, "aget_connection", staticmethod(aget_connection), raising=False)
    monkeypatch.setenv("AIRFLOW__KLING__MAX_QUERIES_PER_SECOND", "1000")
    ended: list[float] = []

    async def one(number: int) -> Over:
        over = await wait_for(f"task-{number}")
        ended.append(now())
        return over

    async def story() -> list[Over]:
        return await asyncio.gather(*(one(number) for number in range(500)))

    overs = in_no_time(story)
    assert {over.outcome for over in overs} == {Outcome.LOST_CONTACT}
    assert all("the API server is away" in str(over.error) for over in overs)
    assert min(ended) >= MAX_FAILURES * 10 * (1 - JITTER)
    assert min(gaps(at)) >= module.LOOKUP_INTERVAL
    assert MAX_FAILURES <= len(at) <= 60


def test_a_connection_that_is_found_again_serves_all(
    service: Service, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.answer = lambda asked: task_answer("completed", LINK, task_id=asked.task_id)
    found_from = 25.0
    in_thread, awaited = BaseHook.get_connection, getattr(BaseHook, "aget_connection", None)

    def get_connection(conn_id: str) -> Any:
        if now() < found_from:
            raise RuntimeError("the API server is away")
        return in_thread(conn_id)

    async def aget_connection(conn_id: str) -> Any:
        return await awaited(conn_id) if awaited and now() >= found_from else get_connection(conn_id)

    monkeypatch.setattr(BaseHook, "get_connection", staticmethod(get_connection))
    monkeypatch.setattr(BaseHook, "aget_connection", staticmethod(aget_connection), raising=False)
    connect()
    overs = in_no_time(lambda: wait_for_many(50))
    assert {over.outcome for over in overs} == {Outcome.COMPLETED}
    assert min(service.times) >= found_from


# Coming and going


def test_whoever_is_cancelled_takes_nobody_along(service: Service, rate: Any) -> None:
    rate(20)
    service.answer = lambda asked: (
        task_answer("completed", LINK, task_id=asked.task_id)
        if asked.at > 100
        else task_answer("processing", task_id=asked.task_id)
    )
    service.latency = lambda _: 2.0

    async def one(number: int) -> Any:
        try:
            return (await wait_for(f"task-{number}")).outcome
        except asyncio.CancelledError as error:
            return error.args  # by which Airflow tells whether a person did it

    async def story() -> list[Any]:
        users = [asyncio.create_task(one(number)) for number in range(100)]
        for number, at in enumerate([0.1, 5, 9.5, 10, 10.5, 11, 12, 13, 20, 40]):
            await asyncio.sleep(at - now())
            users[number * 10].cancel(f"number {number}")
        return await asyncio.gather(*users)

    assert in_no_time(story) == [
        Outcome.COMPLETED if number % 10 else (f"number {number // 10}",) for number in range(100)
    ]


def test_whoever_is_cancelled_in_the_moment_of_its_query_leaves_its_place_to_others(
    service: Service, rate: Any
) -> None:
    """A query that is cancelled before its first step never begins."""
    rate(20)
    service.answer = lambda asked: task_answer("completed", LINK, task_id=asked.task_id)

    async def story() -> Over:
        async with watching("kling_default") as watch:

            def wait(task_id: str) -> asyncio.Task[Over]:
                now = time.time()
                waiting = Waiting(task_id, deadline=now + 3600, poll_interval=10, started=now)
                return asyncio.create_task(watch.until_over(waiting, log=LOG, ask_now=True))

            asyncio.get_running_loop().call_later(TICK, lambda: gone.cancel())
            gone, other = wait("task-0"), wait("task-1")
            over = await asyncio.wait_for(other, 60)
            assert gone.cancelled()
            return over

    assert in_no_time(story).outcome is Outcome.COMPLETED
    assert service.times_of("task-0") == []


def test_the_first_query_of_a_video_that_nobody_asked_for_yet_is_made_at_once(
    service: Service, rate: Any
) -> None:
    rate(20)

    async def story() -> None:
        waiting = Waiting("task-1", deadline=time.time() + 100, poll_interval=60, started=time.time())
        async with watching("kling_default") as watch:
            await watch.until_over(waiting, log=LOG, ask_now=True)

    in_no_time(story)
    first, second, last = service.times
    assert first <= SLACK
    assert 54 <= second <= 67
    assert last >= 100


def test_videos_that_left_long_before_their_deadline_are_forgotten(service: Service, rate: Any) -> None:
    rate(1000)

    async def story() -> int:
        async with watching("kling_default"):
            for _ in range(20):
                await wait_for_many(500, seconds=15, lasts=1e7)
            await wait_for_many(1, seconds=1)
            gc.collect()
            loop = asyncio.get_running_loop()
            # Not isinstance(), which has lazy modules look for what may not be installed.
            turns = [each for each in gc.get_objects() if type(each) is module._Turn]
            return sum(turn.over.get_loop() is loop for turn in turns)

    assert in_no_time(story) <= 200


def test_the_last_one_out_closes_the_connections_and_they_are_few(connect: Connect) -> None:
    def script(request: Received) -> Answer:
        return task_answer("processing", task_id=request.target.rpartition("=")[2])

    with Loopback(script=script, delay=0.05) as real:
        connect(real.url, max_queries_per_second=10_000)

        async def story() -> None:
            users = asyncio.create_task(wait_for_many(400, interval=0.3))
            while len(real.received) < 1500:
                await asyncio.sleep(0.01)
            users.cancel()
            await asyncio.gather(users, return_exceptions=True)
            for each in asyncio.all_tasks() - {asyncio.current_task()}:
                each.cancel()
            while real.open:
                await asyncio.sleep(0.01)

        asyncio.run(story())
        assert real.most_open <= MAX_CONNECTIONS
        assert real.connections <= MAX_CONNECTIONS


def test_each_event_loop_and_each_connection_has_a_watch_of_its_own(connect: Connect) -> None:
    async def of(*conn_ids: str) -> list[Any]:
        watches = []
        for conn_id in conn_ids:
            async with watching(conn_id) as first, watching(conn_id) as second:
                assert first is second
                watches.append(first)
        return watches

    one = asyncio.run(of("kling_default", "kling_other"))
    two = asyncio.run(of("kling_default"))
    assert len({id(each) for each in one + two}) == 3


def test_nothing_is_looked_up_before_the_first_query(lookups: list[float]) -> None:
    in_no_time(lambda: wait_for_many(5, seconds=8))
    assert lookups == []


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(
    recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    monkeypatch.setattr(module.log, "disabled", False)  # as a migration of Airflow's database leaves it
    gc.freeze()  # what other tests have left is not looked through again
    yield
    gc.collect()
    left = [str(warning.message) for warning in recwarn if issubclass(warning.category, ResourceWarning)]
    assert not [each for each in left if "client session" in each.lower()]
    assert not any(module._watches.values())
