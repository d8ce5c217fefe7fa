"""
One session and one scheduler of queries for all videos of a connection that wait in this event loop.

A waiting video is an entry in a heap: it has no task, no timer and no connection of its own. What the schedule
promises:

- Whoever is due longest is asked for first. With N waiting and R queries a second allowed, each is asked for every
  ``max(interval, N / R)`` seconds, and none starves. Where intervals differ, all are late by the same time.
- The last query about a video, at its deadline, waits for neither the rate nor the patience that the service asked
  for. What gives is the rate: each video is asked for once in its life beyond it.
- A service that turns a query away (429) slows all of the connection down: nothing is asked while it wants to be left
  alone, then at half the rate, which recovers within :data:`RECOVERY` seconds.
- All else that happens to one query concerns one video.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import logging
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from airflow.providers.common.compat.sdk import AirflowConfigException

from airflow_provider_kling.api.errors import (
    KeyRefusedError,
    KlingError,
    RateLimitedError,
    ServiceError,
    UnreachableError,
    UnreadableAnswerError,
)
from airflow_provider_kling.config import DEFAULT_QUERIES_PER_SECOND, max_queries_per_second
from airflow_provider_kling.hooks.async_client import MAX_CONNECTIONS, AsyncKlingClient, look_up
from airflow_provider_kling.waiting import AskAgain, Over, note_to

if TYPE_CHECKING:
    from airflow_provider_kling.api.task import VideoTask
    from airflow_provider_kling.hooks.settings import ConnectionSettings
    from airflow_provider_kling.waiting import TaskLog, Waiting

log = logging.getLogger(__name__)

SLOT = 0.5
"""Seconds between two times at which queries begin to be made. Those of a slot share the event loop's wake-ups, which
cost more than what is done in them; a video is noticed a quarter of a second later for it, on average."""
TICK = 0.01
"""Seconds between two times at which queries of one slot are started, at the least."""
STARTS_A_TICK = 50
"""Queries started at a time: each takes the event loop a fraction of a millisecond, a new TLS connection more."""
CREDIT = SLOT
"""Seconds' worth of queries that may be made at once: those of a slot, or where the event loop was held up."""
RECOVERY = 60.0
"""Seconds from a standstill back to the full rate, once the service turned queries away."""
SLOWEST = 1 / 50
"""Share of the rate below which no 429 slows it down."""
LONGEST_PAUSE = 300.0
"""Seconds of Retry-After that one answer can impose on the others. For its own video it is honoured in full."""
RENEWAL_INTERVAL = 10.0
"""Seconds between two look-ups of a connection that the service seems not to like."""
LOOKUP_INTERVAL = 1.0
"""Seconds for which a look-up that failed is the answer to all who need it."""


class Pace:
    """
    How fast a service may be asked: evenly, and slower for a while after it turned a query away.

    :param limit: queries a second.
    """

    __slots__ = ("_reduced_at", "_reduced_to", "free_at", "limit")

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.free_at = -math.inf
        """When the next query may be made, epoch seconds."""
        self._reduced_to = math.inf
        self._reduced_at = -math.inf

    def rate(self, now: float) -> float:
        """Return how many queries a second may be made just now."""
        recovered = self.limit * max(0.0, now - self._reduced_at) / RECOVERY
        return min(self.limit, self._reduced_to + recovered)

    def set_limit(self, limit: float, now: float, *, under_way: int) -> None:
        """
        Go on at another rate.

        :param under_way: queries that were made at the old rate and have no answer yet.
        """
        self.limit = limit
        self.free_at = max(self.free_at, now - CREDIT + under_way / self.rate(now))

    def count(self, now: float) -> None:
        """Take note of a query that is made now."""
        self.free_at = max(self.free_at, now - CREDIT) + 1 / self.rate(now)

    def slow_down(self, now: float, *, asked_at: float, retry_after: float | None) -> bool:
        """
        Heed a service that turned a query away.

        What was asked before the last slowing down tells nothing new, except for how long to be patient.

        :param asked_at: when that query was made, epoch seconds.
        :param retry_after: seconds that the service wants to be left alone.
        :return: whether it is slower now.
        """
        resume_at = now + min(retry_after or 0.0, LONGEST_PAUSE)
        self.free_at = max(self.free_at, resume_at)
        if asked_at < self._reduced_at:
            return False
        self._reduced_to = max(self.rate(now) / 2, self.limit * SLOWEST)
        # It takes a second at least to see whether the lower rate will do.
        self._reduced_at = max(resume_at, now + 1)
        return True


class _Turn:
    """A waiting video."""

    __slots__ = ("at", "context", "is_over", "log", "over", "query", "waiting")

    def __init__(self, waiting: Waiting, log: TaskLog, over: asyncio.Future[Over]) -> None:
        self.waiting = waiting
        self.log = log
        # Airflow tells by the context to which task's log a line belongs.
        self.context = contextvars.copy_context()
        self.over = over
        self.at: float | None = None
        """When to ask next, epoch seconds; None while that is being done, and once it is over."""
        self.query: asyncio.Task[None] | None = None
        self.is_over = False


class _Session:
    """A client that is closed when it is out of date and the last query over it has ended."""

    __slots__ = ("_queries", "client", "is_retired")

    def __init__(self, client: AsyncKlingClient) -> None:
        self.client = client
        self.is_retired = False
        self._queries = 0

    async def get_task(self, task_id: str) -> VideoTask:
        self._queries += 1
        try:
            return await self.client.get_task(task_id)
        finally:
            self._queries -= 1
            await self._close_if_done()

    async def retire(self) -> None:
        self.is_retired = True
        await self._close_if_done()

    async def _close_if_done(self) -> None:
        if self.is_retired and not self._queries:
            await self.client.close()


class Watch:
    """
    All videos of one connection that wait in this event loop. :func:`watching` gives it.

    :param conn_id: id of a connection of type ``kling``.
    """

    def __init__(self, conn_id: str) -> None:
        self.conn_id = conn_id
        self.users = 0
        self._loop = asyncio.get_running_loop()
        self._pace = Pace(self._limit(None))
        self._numbers = itertools.count()
        self._due: list[tuple[float, int, _Turn]] = []
        self._deadlines: list[tuple[float, int, _Turn]] = []
        self._left = 0
        self._queries: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._session: _Session | None = None
        self._lookup: asyncio.Task[_Session] | None = None
        self._looked_up_at = -math.inf
        self._lookup_error: Exception | None = None
        self._refusal_is_told = False

    async def until_over(
        self, waiting: Waiting, *, log: TaskLog, ask_now: bool = False, since: float | None = None
    ) -> Over:
        """
        Wait until a video's wait is over. It may be cancelled at any time, which leaves the others alone.

        Nothing is raised for the video's, the service's or the connection's sake: that is in what is returned.

        :param log: where what is worth a line about this video goes, in the caller's context.
        :param ask_now: whether nobody has asked for this video yet; else the first query is one interval later.
        :param since: when the intervals began, epoch seconds, where that was before this wait.
        """
        turn = _Turn(waiting, log, self._loop.create_future())
        now = time.time()
        self._ask_at(turn, now if ask_now else waiting.begin(now, since=since).at)
        if not math.isinf(waiting.deadline):
            heapq.heappush(self._deadlines, (waiting.deadline, next(self._numbers), turn))
            self._set_timer()
        try:
            return await turn.over
        finally:
            self._leave(turn)

    async def close(self) -> None:
        """Break off what is under way and close the session."""
        if self._timer is not None:
            self._timer.cancel()
        under_way: list[asyncio.Task[None] | asyncio.Task[_Session]] = [*self._queries]
        if self._lookup is not None:
            under_way.append(self._lookup)
        for each in under_way:
            each.cancel()
        try:
            await asyncio.gather(*under_way, return_exceptions=True)
        finally:
            if self._session is not None:
                await self._session.retire()

    # The schedule

    def _ask_at(self, turn: _Turn, at: float) -> None:
        turn.at = at
        heapq.heappush(self._due, (at, next(self._numbers), turn))
        self._set_timer()

    def _leave(self, turn: _Turn) -> None:
        turn.is_over = True
        turn.at = None
        if turn.query is not None:
            turn.query.cancel()
        self._left += 1
        if self._left > 100 and self._left * 2 > max(len(self._due), len(self._deadlines)):
            self._forget_those_who_left()

    def _forget_those_who_left(self) -> None:
        self._left = 0
        self._due = [entry for entry in self._due if entry[2].at == entry[0]]
        self._deadlines = [entry for entry in self._deadlines if not entry[2].is_over]
        heapq.heapify(self._due)
        heapq.heapify(self._deadlines)

    def _set_timer(self) -> None:
        if not self._room():
            return  # the next that ends sets it, or the look-up
        while self._due and self._due[0][2].at != self._due[0][0]:
            heapq.heappop(self._due)
        while self._deadlines and self._deadlines[0][2].is_over:
            heapq.heappop(self._deadlines)
        now = time.time()
        at = math.inf
        if self._due:
            at = max(self._due[0][0], self._pace.free_at)
            if at > now:
                at = math.ceil(at / SLOT) * SLOT
        if self._deadlines:
            at = min(at, self._deadlines[0][0])
        if math.isinf(at):
            return
        when = self._loop.time() + max(TICK, at - now)
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._start_those_due)

    def _start_those_due(self) -> None:
        self._timer = None
        now = time.time()
        for _ in range(min(STARTS_A_TICK, self._room())):
            turn = self._next_last(now) or self._next_due(now)
            if turn is None:
                break
            turn.at = None
            turn.query = self._loop.create_task(self._take(turn), context=turn.context)
            self._queries.add(turn.query)
            # Not in the query itself: one that is cancelled before its first step never runs.
            turn.query.add_done_callback(partial(self._query_ended, turn))
        self._set_timer()

    def _room(self) -> int:
        # The connection may set the rate: until it has been looked up, one query stands for all.
        rate_is_known = self._session is not None or self._lookup_error is not None
        return max(0, (MAX_CONNECTIONS if rate_is_known else 1) - len(self._queries))

    def _next_last(self, now: float) -> _Turn | None:
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, turn = heapq.heappop(self._deadlines)
            if turn.at is not None:
                return turn
        return None

    def _next_due(self, now: float) -> _Turn | None:
        while self._due and self._due[0][0] <= now and self._pace.free_at <= now:
            at, _, turn = heapq.heappop(self._due)
            if turn.at == at:
                self._pace.count(now)
                return turn
        return None

    async def _take(self, turn: _Turn) -> None:
        try:
            decision = await self._ask(turn.waiting)
            note_to(turn.log, decision)
            if turn.over.done():
                pass  # cancelled just now
            elif isinstance(decision, Over):
                turn.over.set_result(decision)
            else:
                self._ask_at(turn, decision.at)
        except Exception as error:  # noqa: BLE001 - whoever waits shall not wait forever
            if not turn.over.done():
                turn.over.set_exception(error)

    def _query_ended(self, turn: _Turn, query: asyncio.Task[None]) -> None:
        if turn.query is query:
            turn.query = None
        self._queries.discard(query)
        self._set_timer()

    # One query

    async def _ask(self, waiting: Waiting) -> AskAgain | Over:
        try:
            task = await self._query(waiting.task_id)
        except KlingError as error:
            return waiting.on_error(error, time.time())
        except Exception as error:  # noqa: BLE001 - a trigger that raises fails its task, but not the video
            failure = KlingError(f"{type(error).__name__}: {error}", retryable=True)
            return waiting.on_error(failure, time.time())
        return waiting.on_task(task, time.time())

    async def _query(self, task_id: str) -> VideoTask:
        session = self._session or await self._looked_up()
        asked_at = time.time()
        try:
            try:
                return await session.get_task(task_id)
            except (KeyRefusedError, UnreachableError, UnreadableAnswerError) as error:
                renewed = await self._renewed(session)
                if renewed is None:
                    self._tell_refusal(error)
                    raise
            return await renewed.get_task(task_id)
        except RateLimitedError as error:
            now = time.time()
            if self._pace.slow_down(now, asked_at=asked_at, retry_after=error.retry_after):
                self._tell(
                    f"The service turns queries of connection {self.conn_id!r} away. They go on "
                    f"{f'in {self._pace.free_at - now:.0f} s ' if error.retry_after else ''}at a lower rate, which "
                    f"recovers within {RECOVERY:.0f} s."
                )
            raise

    # The connection

    async def _looked_up(self) -> _Session:
        if self._lookup is None:
            if self._lookup_error is not None and time.time() - self._looked_up_at < LOOKUP_INTERVAL:
                raise self._lookup_error.with_traceback(None)
            self._lookup = asyncio.create_task(self._look_up())
        # Who is cancelled takes nobody along.
        return await asyncio.shield(self._lookup)

    async def _look_up(self) -> _Session:
        try:
            settings = await look_up(self.conn_id)
            session = self._session
            if session is None or session.client.settings != settings or session.client.may_be_outdated:
                session = _Session(await AsyncKlingClient.of(settings))
            self._lookup_error = None
        except Exception as error:
            self._lookup_error = error
            raise
        finally:
            self._looked_up_at = time.time()
            self._lookup = None
        if session is not self._session:
            outdated, self._session = self._session, session
            self._pace.set_limit(self._limit(settings), time.time(), under_way=len(self._queries))
            if outdated is not None:
                if outdated.client.settings != settings:
                    self._refusal_is_told = False
                    self._tell(
                        f"Connection {self.conn_id!r} has changed: its videos are asked for with what it says now."
                    )
                await outdated.retire()
            self._set_timer()
        return session

    async def _renewed(self, session: _Session) -> _Session | None:
        """
        Look a connection up again that the service seems not to like.

        :param session: the session that the service did not like.
        :return: a session with other settings, None where those are still the same.
        """
        if self._session is session:
            if time.time() - self._looked_up_at >= RENEWAL_INTERVAL:
                await self._looked_up()
            elif self._lookup_error is not None:
                raise self._lookup_error.with_traceback(None)
        current = self._session
        if current is None or current.client.settings == session.client.settings:
            return None
        return current

    def _tell_refusal(self, error: ServiceError) -> None:
        if isinstance(error, KeyRefusedError) and not self._refusal_is_told:
            self._refusal_is_told = True
            self._tell(
                f"The triggerer stops asking with connection {self.conn_id!r}; the tasks go on from here. {error}"
            )

    @staticmethod
    def _tell(text: str) -> None:
        # In no task's context, so that it is in the triggerer's own log: it concerns all of them.
        contextvars.Context().run(log.warning, "%s", text)

    def _limit(self, settings: ConnectionSettings | None) -> float:
        if settings is not None and settings.max_queries_per_second is not None:
            return settings.max_queries_per_second
        try:
            return max_queries_per_second()
        except AirflowConfigException as error:
            log.error("%s; going on with %g.", error, DEFAULT_QUERIES_PER_SECOND)  # noqa: TRY400 - its text says all
            return DEFAULT_QUERIES_PER_SECOND


_watches: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Watch]] = WeakKeyDictionary()


@asynccontextmanager
async def watching(conn_id: str) -> AsyncIterator[Watch]:
    """
    Give the watch that all who wait in this event loop for videos of a connection share.

    The connection is looked up when the first query is due. The last one out closes the session.

    :param conn_id: id of a connection of type ``kling``.
    """
    of_loop = _watches.setdefault(asyncio.get_running_loop(), {})
    watch = of_loop.get(conn_id)
    if watch is None:
        watch = of_loop[conn_id] = Watch(conn_id)
    watch.users += 1
    try:
        yield watch
    finally:
        watch.users -= 1
        if watch.users == 0:
            del of_loop[conn_id]
            await watch.close()
