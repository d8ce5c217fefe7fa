"""
Hours of waiting pass in no time here: the clock goes on only where all in the event loop have nothing left to do.

What answers in the service's place stands where aiohttp would send a request.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import pytest

from tests.hooks.loopback import Answer, task_answer

T = TypeVar("T")

BEGINNING = 1_800_000_000.0


class _Selector(selectors.DefaultSelector):
    loop: VirtualTime

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.loop.in_threads:
            return super().select(0.01)
        if timeout is None:
            news = super().select(60)
            assert news, "all wait, and nothing will ever happen"
            return news
        self.loop.passed += max(0.0, timeout)
        return super().select(0)


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop in which time passes only where all wait."""

    def __init__(self) -> None:
        selector = _Selector()
        selector.loop = self
        self.passed = 0.0
        self.in_threads = 0
        super().__init__(selector)

    def time(self) -> float:
        return self.passed

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        self.in_threads += 1
        future = super().run_in_executor(executor, func, *args)

        def done(_: Any) -> None:
            self.in_threads -= 1

        future.add_done_callback(done)
        return future


def in_no_time(story: Callable[[], Coroutine[Any, Any, T]]) -> T:
    loop = VirtualTime()
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner(loop_factory=lambda: loop) as runner:
        patch.setattr(time, "time", lambda: BEGINNING + loop.passed)
        return runner.run(story())


def now() -> float:
    """Return the seconds since the story began."""
    return time.time() - BEGINNING


@dataclass(frozen=True)
class Asked:
    at: float
    task_id: str
    key: str


@dataclass
class _Response:
    status: int
    headers: Any
    content: bytes

    async def __aenter__(self) -> _Response:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def read(self) -> bytes:
        return self.content


class Service:
    """What answers queries in the service's place."""

    def __init__(self) -> None:
        self.answer: Callable[[Asked], Answer] = lambda asked: task_answer(
            "processing", task_id=asked.task_id
        )
        self.latency: Callable[[Asked], float] = lambda _: 0.1
        self.asked: list[Asked] = []
        self.under_way = 0
        self.most_under_way = 0

    async def request(
        self, session: aiohttp.ClientSession, method: str, url: str, *, params: dict[str, str], **_: Any
    ) -> Any:
        assert method == "GET"
        asked = Asked(now(), params["task_id"], session.headers["Authorization"].removeprefix("Bearer "))
        self.asked.append(asked)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(self.latency(asked))
            answer = self.answer(asked)
        finally:
            self.under_way -= 1
        return _Response(answer.status, answer.headers, answer.content)

    def times_of(self, task_id: str) -> list[float]:
        return [asked.at for asked in self.asked if asked.task_id == task_id]

    @property
    def times(self) -> list[float]:
        return [asked.at for asked in self.asked]
