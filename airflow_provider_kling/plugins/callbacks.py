"""
The receiver of callbacks: one path, open to the Internet, that believes nothing of what it is told.

It goes from cheap to dear: the size of the body, the token, its form, the task that waits. Only then the service is
asked, and only what the service answers counts. Whatever is wrong with a call, the answer is the same.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

import anyio
import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from airflow_provider_kling import metrics
from airflow_provider_kling.api.errors import KlingError, TaskNotFoundError
from airflow_provider_kling.api.protocol import read_callback
from airflow_provider_kling.callbacks import PATH, CallbackToken
from airflow_provider_kling.plugins.accounts import Accounts, UnavailableError
from airflow_provider_kling.plugins.admission import Admission, BusyError, Strangers
from airflow_provider_kling.plugins.database import writes_can_run_side_by_side
from airflow_provider_kling.plugins.standing import Found, Standing
from airflow_provider_kling.plugins.waiting_lists import note
from airflow_provider_kling.plugins.waiting_tasks import find, record_submission, resume, tell_assets
from airflow_provider_kling.waiting import Outcome

if TYPE_CHECKING:
    from uuid import UUID

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from airflow_provider_kling.api.task import VideoTask
    from airflow_provider_kling.hooks.settings import ConnectionSettings

MOST_BYTES = 64 * 1024
"""Largest body, bytes. A genuine one has the request in it, of which a prompt is at most 2,500 characters."""
BODY_SECONDS = 3.0
"""Seconds for the body to arrive."""
QUERY_SECONDS = 4.0
"""Seconds for the service to answer a query."""
TURN_SECONDS = 5.0
"""Seconds to wait for a turn: who waits longer is told to come again, before any work was done for it."""
TURNS = 48
"""Callbacks that are looked up, asked about and acted on at once. The others wait, which costs next to nothing."""
THREADS = 4
"""
Threads that read from the database, and as many that write where it takes several writers.

What comes in at once must leave Airflow's own requests some connections to it.
"""
_SHOWN = 80

log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Answer(Enum):
    """What the caller gets to know."""

    TAKEN = 200
    NEVER_RIGHT = 404
    TOO_LARGE = 413
    COME_AGAIN = 503


_TEXTS = {
    Answer.TAKEN: "OK",
    Answer.NEVER_RIGHT: "Not Found",
    Answer.TOO_LARGE: "Content Too Large",
    Answer.COME_AGAIN: "Service Unavailable",
}


@dataclass(frozen=True)
class Verdict:
    """
    What became of a callback.

    :param outcome: as a word, for metrics.
    :param answer: what the caller gets to know.
    :param reason: for the log.
    """

    outcome: str
    answer: Answer
    reason: str


def _refused(reason: str) -> Verdict:
    return Verdict("refused", Answer.NEVER_RIGHT, reason)


def _needless(reason: str) -> Verdict:
    return Verdict("needless", Answer.TAKEN, reason)


def _later(reason: str) -> Verdict:
    return Verdict("later", Answer.COME_AGAIN, reason)


class Receiver:
    """Takes the callbacks that reach one process, in one event loop."""

    def __init__(self) -> None:
        self._admission = Admission()
        self._threads = anyio.CapacityLimiter(THREADS)
        self._writing_threads = anyio.CapacityLimiter(THREADS if writes_can_run_side_by_side() else 1)
        self._turns = asyncio.Semaphore(TURNS)
        self._same: WeakValueDictionary[tuple[UUID, str], asyncio.Lock] = WeakValueDictionary()
        self._accounts = Accounts(self._in_thread, Strangers())

    async def take(self, token: str, body: Callable[[], Awaitable[bytes | None]], *, address: str) -> Verdict:
        """
        Do what a callback calls for.

        :param token: out of its path.
        :param body: reads its body; None where it is too large.
        :param address: of the client.
        """
        try:
            with self._admission.enter(address):
                return await self._take(token, body, address)
        except BusyError:
            return _later("too many callbacks at once")
        except TimeoutError:
            return _later("it took too long")
        except UnavailableError as error:
            return _later(f"cannot be asked now: {error}")
        except Exception as error:
            # A fault of ours must not tell the world how it came about.
            log.debug("A callback could not be dealt with.", exc_info=True)
            return _later(f"unexpected {type(error).__name__}")

    async def close(self) -> None:
        """Close the connections to the service."""
        await self._accounts.close()

    async def _take(self, text: str, body: Callable[[], Awaitable[bytes | None]], address: str) -> Verdict:
        content = await _in_time(body())
        if content is None:
            return Verdict("refused", Answer.TOO_LARGE, f"its body has more than {MOST_BYTES} bytes")
        token = CallbackToken.read(text)
        if token is None:
            return _refused("its token is none of ours")
        settings = await self._accounts.whose_key_signed(text, token, address=address)
        if settings is None:
            return _refused("its token is not signed with a key of ours")
        told = read_callback(content)
        if told is None or not told.state.is_terminal:
            return _refused("its body tells of no video that is over")
        if token.is_for_check:
            return Verdict(
                "check", Answer.TAKEN, f"a check through connection {token.conn_id!r}: callbacks arrive"
            )
        async with self._turn(token):
            return await self._of_task(token, told.task_id, settings)

    async def _of_task(
        self, token: CallbackToken, kling_task_id: str, settings: ConnectionSettings
    ) -> Verdict:
        found = await self._in_thread(functools.partial(find, token, kling_task_id))
        about = f"{found.label}, Kling task {kling_task_id[:_SHOWN]!r}: "
        match found.standing:
            case Standing.NEEDS_NOTHING:
                return _needless(about + found.why)
            case Standing.WAITS_FOR_ANOTHER:
                return _refused(about + found.why)
            case Standing.IS_AT_WORK | Standing.HAS_JUST_DEFERRED if not found.can_be_noted:
                return _later(about + found.why)
            case Standing.WAITS if found.listed is not None and found.listed.is_noted:
                return await self._note(found, kling_task_id, about, None)
        task = await self._ask(settings, kling_task_id)
        if task is None:
            return _refused(about + "the service knows no such task")
        if not task.state.is_terminal:
            return _later(about + f"the service says that it is {task.service_state or task.state}")
        return await self._settle(found, token, task, about)

    async def _settle(self, found: Found, token: CallbackToken, task: VideoTask, about: str) -> Verdict:
        outcome = _outcome(task)
        match found.standing:
            case Standing.WAITS | Standing.IS_AT_WORK | Standing.HAS_JUST_DEFERRED:
                if outcome is Outcome.COMPLETED and not task.result_urls:
                    return _later(about + "it is completed, but its link is not there yet")
                if found.listed is not None:
                    return await self._note(found, task.task_id, about + f"{outcome}; ", outcome)
                if await self._write(functools.partial(resume, found, task.task_id, outcome)):
                    return Verdict("resumed", Answer.TAKEN, about + f"{outcome}; its task was resumed")
                return _needless(about + "its task was resumed already")
            case Standing.HAS_LOST_IT:
                if not await self._write(functools.partial(record_submission, found, token, task)):
                    return _needless(about + "it is not the video that its task asked for and lost")
                reason = about + "the answer to its request was lost; the ledger knows its id now"
                # Whoever waits for that answer may be about to wait for the video.
                return Verdict("recorded", Answer.COME_AGAIN if found.is_running else Answer.TAKEN, reason)
            case _:
                return await self._tell_assets(found, task, about, outcome)

    async def _note(self, found: Found, kling_task_id: str, about: str, outcome: Outcome | None) -> Verdict:
        noted = await self._write(functools.partial(note, found, kling_task_id, outcome))
        if noted is None:
            return _later(about + "its task has gone on meanwhile")
        if noted.is_resumed:
            return Verdict(
                "resumed",
                Answer.TAKEN,
                about + f"{noted.over} of {noted.of} videos are over; its task was resumed",
            )
        if not noted.of:
            # It may be past the place where it reads what is noted, and wait for this video in a moment.
            return Verdict("noted", Answer.COME_AGAIN, about + "noted for its task, which is at work")
        reason = about + f"noted: {noted.over} of {noted.of} videos are over"
        # Its task may be resumed in a moment only.
        return Verdict("noted", Answer.COME_AGAIN if noted.is_enough else Answer.TAKEN, reason)

    async def _tell_assets(self, found: Found, task: VideoTask, about: str, outcome: Outcome) -> Verdict:
        if outcome is Outcome.FAILED:
            return _needless(about + f"{task.failure()} No asset is told of it.")
        count = await self._write(functools.partial(tell_assets, found, task))
        if count is None:
            return _needless(about + "its assets were told already")
        return Verdict("announced", Answer.TAKEN, about + f"{count} assets were told")

    async def _ask(self, settings: ConnectionSettings, kling_task_id: str) -> VideoTask | None:
        """
        Ask the service, once and not for long.

        :return: None where it knows no such task.
        :raises UnavailableError: where it does not answer.
        """
        client = await self._accounts.client(settings)
        try:
            async with asyncio.timeout(QUERY_SECONDS):
                return await client.get_task(kling_task_id)
        except TaskNotFoundError:
            return None
        except (KlingError, TimeoutError) as error:
            raise UnavailableError(f"the service: {str(error) or 'no answer in time'}") from error

    @asynccontextmanager
    async def _turn(self, token: CallbackToken) -> AsyncIterator[None]:
        """
        Wait for a turn, and give it back. Of those that tell the same, one at a time has one: the rest learn from it.

        :raises TimeoutError: where none comes in time.
        """
        same = self._same.setdefault((token.ti_id, token.submission), asyncio.Lock())
        async with AsyncExitStack() as held:
            async with asyncio.timeout(TURN_SECONDS):
                await held.enter_async_context(same)
                await held.enter_async_context(self._turns)
            yield

    async def _in_thread(self, function: Callable[[], _T]) -> _T:
        return await anyio.to_thread.run_sync(function, limiter=self._threads)

    async def _write(self, function: Callable[[], _T]) -> _T:
        return await anyio.to_thread.run_sync(function, limiter=self._writing_threads)


def create_app() -> FastAPI:
    """Make the app that Airflow mounts. It publishes no schema: there is one path, and who needs it knows it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        receiver = receivers.get(asyncio.get_running_loop())
        if receiver is not None:
            await receiver.close()

    app = FastAPI(
        title="Callbacks of Kling Omni-Video",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    # What a receiver waits with belongs to the event loop that it was made in.
    receivers: WeakKeyDictionary[asyncio.AbstractEventLoop, Receiver] = WeakKeyDictionary()

    @app.post("/{token}", openapi_extra=_BODY, responses=_RESPONSES)
    async def receive(token: str, request: Request) -> JSONResponse:
        """Take what the service tells about a video that is over."""
        loop = asyncio.get_running_loop()
        receiver = receivers.get(loop)
        if receiver is None:
            receiver = receivers[loop] = Receiver()
        address = request.client.host if request.client else ""
        verdict = await receiver.take(token, functools.partial(_body, request), address=address)
        level = logging.WARNING if verdict.answer is Answer.COME_AGAIN else logging.INFO
        log.log(level, "Callback from %s: %s; answered %d.", address, verdict.reason, verdict.answer.value)
        metrics.called_back(verdict.outcome)
        return _answer(verdict.answer)

    @app.exception_handler(StarletteHTTPException)
    async def other(_: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)

    app.add_middleware(_HidesPath)
    return app


class _HidesPath:
    """Takes the token out of the path before anybody writes the path into an access log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        root, path = scope.get("root_path", ""), scope["path"]
        if path.startswith(f"{PATH}/") and not path.startswith(f"{root}/"):
            # A proxy took away the beginning, which is a part of [api] base_url.
            scope["path"] = root + path.removeprefix(PATH)

        def hide() -> None:
            scope["path"], scope["raw_path"] = f"{root}/***", f"{root}/***".encode()

        async def hiding(message: Message) -> None:
            if message["type"] == "http.response.start":
                hide()
            await send(message)

        try:
            await self._app(scope, receive, hiding)
        finally:
            hide()


async def _body(request: Request) -> bytes | None:
    """Read the body; None as soon as it is known to be too large."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > MOST_BYTES:
        return None
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MOST_BYTES:
            return None
    return bytes(content)


async def _in_time(reading: Awaitable[bytes | None]) -> bytes | None:
    async with asyncio.timeout(BODY_SECONDS):
        return await reading


def _answer(answer: Answer) -> JSONResponse:
    headers = {"Cache-Control": "no-store"}
    if answer is Answer.COME_AGAIN:
        headers["Retry-After"] = "1"
    if answer is Answer.TOO_LARGE:
        headers["Connection"] = "close"  # the rest of the body is not read
    return JSONResponse({"detail": _TEXTS[answer]}, answer.value, headers)


def _outcome(task: VideoTask) -> Outcome:
    return Outcome.FAILED if task.state.value == "failed" else Outcome.COMPLETED


_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["data"],
                    "properties": {
                        "data": {
                            "type": "object",
                            "required": ["taskId", "state"],
                            "properties": {
                                "taskId": {"type": "string"},
                                "state": {"type": "string", "enum": ["completed", "failed"]},
                                "model": {"type": "string"},
                                "param": {"type": "string"},
                                "resultJson": {"type": ["string", "null"]},
                                "failCode": {"type": ["string", "null"]},
                                "failMsg": {"type": ["string", "null"]},
                                "costTime": {"type": ["integer", "null"]},
                                "completeTime": {"type": ["integer", "null"]},
                                "createTime": {"type": ["integer", "null"]},
                            },
                        }
                    },
                }
            }
        },
    }
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    answer.value: {
        "description": _TEXTS[answer],
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["detail"],
                    "properties": {"detail": {"const": _TEXTS[answer]}},
                    "additionalProperties": False,
                }
            }
        },
    }
    for answer in Answer
}
