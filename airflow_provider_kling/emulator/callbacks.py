"""Tells the users of a task that it is over: once, or again and again until they answer 2xx."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import TYPE_CHECKING

import aiohttp

from airflow_provider_kling.emulator import answers
from airflow_provider_kling.emulator.faults import Facts, FaultPlan
from airflow_provider_kling.emulator.ledger import SentCallback

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_kling.emulator.service import Task, VideoService

_MOST_AT_A_TIME = 256


class Callbacks:
    """
    Sends the callbacks of a service, from one event loop.

    A callback that is not answered with 2xx in time is sent again after each of the settings' delays, and then, in
    the background, at an interval until the window since the task's end is over.

    :param service: whose tasks it tells about.
    :param faults: what goes wrong with them.
    :param links: returns a task's links.
    """

    def __init__(self, service: VideoService, faults: FaultPlan, links: Callable[[Task], list[str]]) -> None:
        self._service = service
        self._faults = faults
        self._links = links
        self._changed = asyncio.Event()
        self._deliveries: dict[asyncio.Task[None], Task] = {}
        self._slots = asyncio.Semaphore(_MOST_AT_A_TIME)

    async def run(self) -> None:
        """Send callbacks until cancelled."""
        loop = asyncio.get_running_loop()

        def changed() -> None:
            # A call may come from another thread while the loop ends.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._wake)

        self._service.on_over = changed
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            try:
                while True:
                    for delivery, task in self._deliveries.items():
                        if not self._service.remembers(task):
                            delivery.cancel()
                    for task in self._service.take_over():
                        delivery = loop.create_task(self._deliver(session, task))
                        self._deliveries[delivery] = task
                        delivery.add_done_callback(self._deliveries.pop)
                    await self._sleep_until(self._service.next_over(), once=True)
            finally:
                self._service.on_over = lambda: None
                for delivery in self._deliveries:
                    delivery.cancel()
                await asyncio.gather(*self._deliveries, return_exceptions=True)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _sleep_until(self, at: float | None, *, once: bool = False) -> None:
        """
        Sleep until a time of the service's clock, which a test may move.

        :param at: epoch seconds; None for no end.
        :param once: return as well when the service has news.
        """
        while True:
            left = None if at is None else at - self._service.now()
            if left is not None and left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()
                if once:
                    return

    async def _deliver(self, session: aiohttp.ClientSession, task: Task) -> None:
        facts = Facts("callback", prompt=task.prompt, task_id=task.id, body=task.body)
        struck = self._faults.take(facts)
        if "answer" in struck:
            return
        if slow := struck.get("delay"):
            await asyncio.sleep(slow.pause)
        copies = struck["duplicate"].copies if "duplicate" in struck else 1
        attempt = 1
        at: float | None = self._service.now()
        while at is not None:
            await self._sleep_until(at)
            tries = await asyncio.gather(*(self._send(session, task, attempt) for _ in range(copies)))
            if any(accepted for accepted, _ in tries):
                return
            at = self._next_try(task, attempt, max(ended for _, ended in tries))
            attempt += 1

    def _next_try(self, task: Task, attempt: int, ended: float) -> float | None:
        """Return when to try again after an attempt that ended without success; None for not any more."""
        settings = self._service.settings
        if attempt <= len(settings.callback_retry_delays):
            return ended + settings.callback_retry_delays[attempt - 1] * settings.time_scale
        at = ended + settings.callback_redelivery_interval * settings.time_scale
        last = task.ends_at + settings.callback_redelivery_window * settings.time_scale
        return at if at <= last else None

    async def _send(self, session: aiohttp.ClientSession, task: Task, attempt: int) -> tuple[bool, float]:
        url = task.callback_url or ""
        body = json.dumps(answers.called_back(task, self._links(task))).encode()
        status, problem = None, None
        async with self._slots:
            at, began = self._service.now(), time.monotonic()
            try:
                async with (
                    asyncio.timeout(self._service.settings.callback_timeout),
                    session.post(
                        url,
                        data=body,
                        headers={"Content-Type": "application/json"},
                        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
                        allow_redirects=False,
                    ) as answer,
                ):
                    status = answer.status
            except TimeoutError:
                problem = "no answer in time"
            except (aiohttp.ClientError, OSError, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
        sent = SentCallback(at, task.id, url, attempt, status, problem, round(time.monotonic() - began, 4))
        ended = self._service.now()
        with self._service.lock:
            if self._service.remembers(task):
                self._service.ledger.sent_callback(sent)
        return sent.was_accepted, ended
