"""
What the service does, without HTTP: accounts, tasks over time, bills, uploads, links.

Nothing runs here: each call first brings the books up to its own time, so ten thousand waiting tasks cost nothing
until someone asks.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import io
import json
import math
import random
import re
import secrets
import string
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Any, cast

from airflow_provider_kling.api.errors import InvalidRequestError
from airflow_provider_kling.api.pricing import estimate
from airflow_provider_kling.api.request import (
    DEFAULT_DURATION_SECONDS,
    DEFAULT_MODE,
    MODEL_LIMITS,
    VideoRequest,
)
from airflow_provider_kling.api.task import TaskState
from airflow_provider_kling.emulator.film import Film, FrameSize, frame_size
from airflow_provider_kling.emulator.journal import FORM, Journal, JournalError
from airflow_provider_kling.emulator.ledger import Bill, Ledger, SeenTask
from airflow_provider_kling.emulator.prompts import prompt_of
from airflow_provider_kling.emulator.references import Medium, inspect

if TYPE_CHECKING:
    from airflow_provider_kling.emulator.faults import Fault
    from airflow_provider_kling.emulator.settings import Settings

MODEL_PREFIX = "kling-video/"
"""What the service puts before a model's id in its answers."""
CURRENCY = "USD"

_ID_LETTERS = string.digits + string.ascii_lowercase
_PENDING_SHARE = 0.1
_KEPT_CHARACTERS = 2000
"""How much of an image in Base64 is kept."""
_MOST_LEVELS = 32
"""How deep a body may be nested; the service's own fields need 3."""
_OWN_LINK = re.compile(r"/(videos|uploads)/([0-9a-z]+)(?:-\d+)?\.(?:mp4|mov|jpg|png)\Z")
_FAIL_MESSAGES = {
    None: "Content policy violation",
    "CONTENT_MODERATION": "Content policy violation",
    "INVALID_INPUT": "The input cannot be used",
    "UPSTREAM_BUSY": "The upstream is busy, please try again later",
    "UPSTREAM_FAILED": "The upstream failed",
    "TIMEOUT": "The task took too long",
    "INTERNAL_ERROR": "Internal error",
}


class RefusalError(Exception):
    """
    The service says no.

    :param status: HTTP status, and ``code`` of the body.
    :param message: its words.
    :param retry_after: seconds for the ``Retry-After`` header.
    """

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after


@dataclass
class Account:
    """
    A customer.

    :param key: the API key.
    :param total: USD that it holds.
    :param frozen: USD of these held for tasks that run.
    :param running: how many tasks run.
    """

    key: str
    total: Decimal
    frozen: Decimal = Decimal(0)
    running: int = 0
    allowance: float | None = None
    counted_at: float = 0.0

    @property
    def available(self) -> Decimal:
        """USD that can be spent now."""
        return self.total - self.frozen


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a task fails."""

    code: str | None
    message: str
    retryable: bool | None = None


@dataclass(slots=True)
class Task:
    """
    A task, and what is to become of it.

    :param ends_at: epoch seconds; infinite until it is told to end.
    :param price: USD held while it runs, and charged once it is completed.
    :param hidden_links: how many queries of the completed task show no link.
    :param link_status: what its link answers instead of the video.
    :param link: number of the link shown now; an expired one can be renewed.
    """

    id: str
    account: str
    body: Mapping[str, Any]
    prompt: str
    film: Film
    created_at: float
    begins_at: float
    ends_at: float
    price: Decimal
    failure: Failure | None = None
    hidden_links: int = 0
    link_status: int | None = None
    link_renews: bool = False
    link: int = 1
    faults: tuple[str, ...] = ()
    is_settled: bool = False
    bills: int = 0
    queries: int = 0
    told_at: float | None = None
    downloads: int = 0

    @property
    def model(self) -> str:
        """The model as answers name it."""
        return f"{MODEL_PREFIX}{self.body['model']}"

    @property
    def callback_url(self) -> str | None:
        """Where to tell that it is over."""
        url = self.body.get("callback_url")
        return url if isinstance(url, str) else None

    def state(self, now: float) -> TaskState:
        """Return its state at a time."""
        if now >= self.ends_at:
            return TaskState.COMPLETED if self.failure is None else TaskState.FAILED
        return TaskState.PROCESSING if now >= self.begins_at else TaskState.PENDING


@dataclass(frozen=True)
class Upload:
    """A file that was uploaded."""

    id: str
    medium: Medium
    path: str
    at: float


@dataclass
class _Plan:
    latency: float
    failure: Failure | None = None
    hidden_links: int = 0
    link_status: int | None = None
    link_renews: bool = False
    kinds: list[str] = field(default_factory=list)


class VideoService:
    """
    The service's behaviour. Safe to use from several threads.

    :param settings: how it behaves.
    :param accounts: USD by API key.
    :param clock: returns epoch seconds.
    :param journal: where all that counts is kept across runs, if anywhere.
    """

    def __init__(
        self,
        settings: Settings,
        accounts: Mapping[str, Decimal],
        *,
        clock: Callable[[], float] = time.time,
        journal: Journal | None = None,
    ) -> None:
        self.settings = settings
        self.seed: int | str = secrets.token_hex(16) if settings.seed is None else settings.seed
        self.lock = threading.RLock()
        self.ledger = Ledger(
            self.lock, settle=self.settle, tasks=self.seen_tasks, task=self.seen_task, journal=journal
        )
        self.on_over: Callable[[], None] = lambda: None
        """Called, from any thread, when a task with a callback was made, is over or forgotten, or the clock moved."""
        self._clock = clock
        self._ahead = 0.0
        self._journal = journal
        self._beginnings = dict(accounts)
        self._numbers = 0
        self._begin()

    def _begin(self) -> None:
        self._accounts = {key: Account(key, usd) for key, usd in self._beginnings.items()}
        self._tasks: dict[str, Task] = {}
        self._uploads: dict[str, Upload] = {}
        self._running: list[tuple[float, str]] = []
        self._calling: list[tuple[float, str]] = []
        self._to_call: deque[Task] = deque()

    @property
    def keys(self) -> tuple[str, ...]:
        """The API keys that it accepts."""
        return tuple(self._beginnings)

    # Time

    def now(self) -> float:
        """Return the service's time, epoch seconds."""
        return self._clock() + self._ahead

    def advance(self, seconds: float) -> None:
        """
        Move the service's clock ahead.

        :raises ValueError: where it would go back.
        """
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"The clock goes ahead only: {seconds!r} is no number of seconds from 0")
        with self.lock:
            self._ahead += seconds
            self._write("advance", seconds=seconds)
            self.settle()
        self.on_over()

    def freeze(self) -> None:
        """Let the service's time stand still and its journal be: from now on its books can only be read."""
        with self.lock:
            self.settle()
            now = self._clock()
            self._clock = lambda: now
            self._journal = None
            self.ledger.close()

    def settle(self) -> None:
        """Close the books on every task that is over by now: charge for it, or give back what was held."""
        with self.lock:
            now, called = self.now(), False
            while self._running and self._running[0][0] <= now:
                task = self._tasks[heapq.heappop(self._running)[1]]
                if not task.is_settled and task.ends_at <= now:
                    self._close(task)
                    called = called or task.callback_url is not None
        if called:
            self.on_over()

    def _close(self, task: Task, *, write: bool = True) -> None:
        account = self._account(task.account)
        task.is_settled = True
        account.frozen -= task.price
        account.running -= 1
        if task.failure is None:
            account.total -= task.price
            task.bills += 1
            self.ledger.billed(
                Bill(task.ends_at, task.id, task.account, task.prompt, task.price), write=write
            )
        if task.callback_url is not None:
            self._to_call.append(task)

    def _account(self, key: str) -> Account:
        # An earlier run, whose tasks the journal brought back, may have had other accounts.
        return self._accounts.setdefault(key, Account(key, Decimal(0)))

    # Calls of the service

    def authenticate(self, authorization: str | None) -> Account:
        """
        Return the account that an ``Authorization`` header stands for, and count the request against its limit.

        :raises RefusalError: 401 for a key that is not valid, 429 above the limit of requests.
        """
        scheme, _, key = (authorization or "").partition(" ")
        if scheme != "Bearer" or key not in self._beginnings:
            raise RefusalError(401, "Unauthorized: the API key is missing or not valid")
        with self.lock:
            account = self._accounts[key]
            limit = self.settings.max_requests_per_second
            if limit is not None:
                now = self.now()
                burst = max(1.0, limit)
                grown = (
                    burst
                    if account.allowance is None
                    else account.allowance + (now - account.counted_at) * limit
                )
                account.allowance, account.counted_at = min(burst, grown), now
                if account.allowance < 1.0:
                    wait = math.ceil((1.0 - account.allowance) / limit)
                    raise RefusalError(429, "Too many requests", retry_after=max(1, wait))
                account.allowance -= 1.0
            return account

    def create(self, account: Account, body: Any, faults: Mapping[str, Fault]) -> Task:
        """
        Make a task. From here on it will be billed, unless it fails.

        :param body: the request's JSON.
        :param faults: those that change what becomes of the task, by their kind.
        :raises RefusalError: 400 for a wrong body, 402 without enough money, 429 above the limit of tasks.
        """
        request = self._read(body)
        with self.lock:
            self.settle()
            base_seconds, reference_fault = self._look_at_references(request)
            price = self._price(request, base_seconds)
            if price > account.available:
                raise RefusalError(
                    402, f"Insufficient credits: {price} USD needed, {account.available} USD available"
                )
            plan = self._plan(faults)
            if plan.failure is None and reference_fault is not None:
                plan.failure = Failure("INVALID_INPUT", reference_fault, retryable=False)
            limit = self.settings.max_running_tasks
            if limit is not None and account.running >= limit:
                message = f"Concurrency limit exceeded (1303): at most {limit} tasks at a time"
                if self.settings.when_full == "reject":
                    raise RefusalError(429, message)
                plan.latency, plan.failure = 0.0, Failure("UPSTREAM_BUSY", message)
            task = self._make(account, request, body, plan, price, base_seconds)
            self._write("task", number=self._numbers, **_task_as_json(task))
            self._enter(task)
            if task.callback_url is not None:
                self.on_over()
            return task

    def query(self, account: Account, task_id: str) -> Task:
        """
        Return a task that is asked for, and count the query.

        :raises RefusalError: 404 for a task that this account does not have.
        """
        with self.lock:
            self.settle()
            task = self._own(account, task_id)
            task.queries += 1
            if task.told_at is None and task.ends_at <= (now := self.now()):
                task.told_at = now
            return task

    def link_number(self, task: Task) -> int | None:
        """Return the number of the link that a query of a completed task shows; None while it shows none."""
        with self.lock:
            if task.hidden_links > 0:
                task.hidden_links -= 1
                return None
            return task.link

    def balance(self, account: Account) -> dict[str, Any]:
        """Return the answer to ``GET /balance``."""
        with self.lock:
            self.settle()
            return {
                "balance": _number(account.available),
                "total": _number(account.total),
                "frozen": _number(account.frozen),
                "currency": CURRENCY,
            }

    def record(self, account: Account, task_id: str) -> dict[str, Any]:
        """
        Return the answer to ``GET /records/{taskId}``.

        :raises RefusalError: 404 for a task that this account does not have.
        """
        with self.lock:
            self.settle()
            task = self._own(account, task_id)
            settled_at = task.ends_at + self.settings.settling * self.settings.time_scale
            settled = self.now() >= settled_at
            amount = task.price if task.failure is None else Decimal(0)
            return {
                "taskId": task.id,
                "settled": settled,
                "credits": _number(amount if settled else task.price),
                "currency": CURRENCY,
            }

    def models(self) -> list[dict[str, Any]]:
        """Return the answer to ``GET /models``."""
        return [{"id": model, "type": "video"} for model in (*MODEL_LIMITS, *self.settings.extra_models)]

    def upload(self, medium: Medium, path: str) -> Upload:
        """Keep a file that was uploaded."""
        with self.lock:
            self._numbers += 1
            upload = Upload(self._id("upload", self._numbers, length=16), medium, path, self.now())
            self._uploads[upload.id] = upload
            self._write(
                "upload",
                number=self._numbers,
                id=upload.id,
                path=path,
                at=upload.at,
                medium={
                    "extension": medium.extension,
                    "seconds": medium.seconds,
                    "fault": medium.fault,
                },
            )
            return upload

    # Links, which need no key

    def find_upload(self, upload_id: str) -> Upload:
        """
        Return an upload.

        :raises RefusalError: where there is none, or none any more.
        """
        with self.lock:
            upload = self._uploads.get(upload_id)
            if upload is None:
                raise RefusalError(404, "No such file")
            if self.now() >= upload.at + self._retention:
                raise RefusalError(self.settings.expired_status, "This file has expired")
            return upload

    def find_film(self, task_id: str, link: int) -> tuple[Film, float]:
        """
        Return what a result's link leads to, and when it was made, epoch seconds.

        :raises RefusalError: where there is no such result, or not any more.
        """
        with self.lock:
            self.settle()
            task = self._tasks.get(task_id)
            if task is None or link > task.link or task.state(self.now()) is not TaskState.COMPLETED:
                raise RefusalError(404, "No such file")
            task.downloads += 1
            if self.now() >= task.ends_at + self._retention:
                raise RefusalError(self.settings.expired_status, "This link has expired")
            if task.link_status is not None and link == 1:
                if task.link_renews:
                    task.link = 2
                raise RefusalError(task.link_status, "This link has expired")
            return task.film, task.ends_at

    # Tests

    def finish(self, task_id: str, failure: Failure | None = None) -> None:
        """
        End a task now.

        :param failure: why it fails; None completes it.
        :raises KeyError: where there is none of that id.
        :raises ValueError: where it is over already.
        """
        with self.lock:
            self.settle()
            task = self._tasks[task_id]
            if task.is_settled:
                raise ValueError(f"Task {task_id} is {task.state(self.now())} already")
            task.failure = failure
            task.ends_at = self.now()
            task.begins_at = min(task.begins_at, task.ends_at)
            self._write(
                "finish",
                id=task_id,
                at=task.ends_at,
                failure=None if failure is None else [failure.code, failure.message, failure.retryable],
            )
            self._close(task)
        self.on_over()

    def seen_tasks(self) -> list[SeenTask]:
        """Return all tasks as they are now."""
        with self.lock:
            self.settle()
            now = self.now()
            return [_seen(task, now) for task in self._tasks.values()]

    def seen_task(self, task_id: str) -> SeenTask:
        """
        Return a task as it is now.

        :raises KeyError: where there is none of that id.
        """
        with self.lock:
            self.settle()
            return _seen(self._tasks[task_id], self.now())

    def prompt_of_task(self, task_id: str | None) -> str:
        """Return a task's prompt; nothing where there is no such task."""
        task = self._tasks.get(task_id or "")
        return task.prompt if task else ""

    def reset(self) -> None:
        """Forget all tasks, uploads and bills; accounts have what they began with. The clock stays where it is."""
        with self.lock:
            self._begin()
            self.ledger.forget()
            self._write("reset")
        self.on_over()

    def remembers(self, task: Task) -> bool:
        """Tell whether a task has not been forgotten since."""
        with self.lock:
            return self._tasks.get(task.id) is task

    # Callbacks

    def take_over(self) -> list[Task]:
        """Return the tasks with a callback that are over since the last time, to be called about."""
        with self.lock:
            self.settle()
            over = list(self._to_call)
            self._to_call.clear()
            return over

    def next_over(self) -> float | None:
        """Return when the next task with a callback will be over, epoch seconds; None where none runs."""
        with self.lock:
            while self._calling:
                ends_at, task_id = self._calling[0]
                task = self._tasks[task_id]
                if not task.is_settled:
                    return ends_at
                heapq.heappop(self._calling)
            return None

    # Journal

    def restore(self, journal: Journal) -> None:
        """
        Go on where an earlier run ended: its tasks went on meanwhile, as the service's would.

        :raises JournalError: where the file is no journal.
        """
        with self.lock:
            for event in journal.replay():
                try:
                    self._restore(event.pop("event"), event)
                except (KeyError, TypeError, ValueError) as error:
                    raise JournalError(f"{journal.path} does not fit together: {error!r}") from error
            journal.write("start", form=FORM, at=self.now())
            self.settle()
            accepted = {sent.task_id for sent in self.ledger.callbacks() if sent.was_accepted}
            window = self.settings.callback_redelivery_window * self.settings.time_scale
            self._to_call = deque(
                task
                for task in self._to_call
                if task.id not in accepted and task.ends_at + window > self.now()
            )

    def _restore(self, event: str, facts: dict[str, Any]) -> None:
        self._numbers = max(self._numbers, facts.pop("number", 0))
        if event == "task":
            self._enter(_task_from_json(facts))
        elif event == "bill":
            self._close(self._tasks[facts["task_id"]], write=False)
        elif event == "finish":
            task = self._tasks[facts["id"]]
            task.ends_at = facts["at"]
            task.failure = None if facts["failure"] is None else Failure(*facts["failure"])
            heapq.heappush(self._running, (task.ends_at, task.id))
        elif event == "upload":
            upload = Upload(facts["id"], Medium(**facts["medium"]), facts["path"], facts["at"])
            self._uploads[upload.id] = upload
        elif event == "advance":
            self._ahead += facts["seconds"]
        elif event == "reset":
            self._begin()
            self.ledger.forget()
        elif event in ("create", "callback"):
            self.ledger.restore(event, facts)

    def _write(self, event: str, **facts: Any) -> None:
        if self._journal is not None:
            self._journal.write(event, **facts)

    # Parts of create

    def _read(self, body: Any) -> VideoRequest:
        if not isinstance(body, dict):
            raise RefusalError(400, "Invalid request: the body must be a JSON object")
        if _is_deeper(body, _MOST_LEVELS):
            raise RefusalError(400, "Invalid request: the body is nested too deeply")
        if not isinstance(body.get("model"), str) or not body["model"]:
            raise RefusalError(400, "Invalid request: model is missing")
        if body["model"] not in MODEL_LIMITS and body["model"] not in self.settings.extra_models:
            raise RefusalError(400, f"Invalid request: model {body['model']!r} is not supported")
        try:
            request = VideoRequest.from_body(body)
            faults = [*_written_otherwise(body, request.to_body())]
            faults += [
                f"{local.field}: {local.reference!r} is neither a URL nor Base64"
                for local in request.local_references()
            ]
        except InvalidRequestError as error:
            faults = [*map(str, error.faults)]
        if faults:
            raise RefusalError(400, f"Invalid request: {'; '.join(faults)}")
        return request

    def _look_at_references(self, request: VideoRequest) -> tuple[float | None, str | None]:
        """Return the length of the video to be edited, and what is wrong with a reference."""
        base_seconds = self.settings.base_video_seconds if request.base_video else None
        fault = None
        urls = [(image.image_url, False) for image in request.image_list or ()]
        urls += [(video.video_url, True) for video in request.video_list or ()]
        for url, wants_video in urls:
            medium = self._find_reference(url)
            if medium is None:
                continue
            if wants_video and medium.is_video and base_seconds is not None:
                base_seconds = medium.seconds
            if self.settings.check_references and fault is None:
                fault = medium.fault
                if fault is None and medium.is_video is not wants_video:
                    fault = f"{url} is {'no video' if wants_video else 'no image'}"
        return base_seconds, fault

    def _find_reference(self, url: str) -> Medium | None:
        """Look at what the emulator has itself; None for a URL elsewhere, of which it knows nothing."""
        if "://" not in url:
            return inspect(io.BytesIO(base64.b64decode(url))) if self.settings.check_references else None
        own = _OWN_LINK.search(url)
        if own is None:
            return None
        place, name = own.groups()
        if place == "uploads":
            upload = self._uploads.get(name)
            if upload is not None:
                expired = self.now() >= upload.at + self._retention
                return Medium("", fault=f"{url} has expired") if expired else upload.medium
        elif name in self._tasks:
            task = self._tasks[name]
            ready = task.ends_at <= self.now() < task.ends_at + self._retention and task.failure is None
            return Medium("mp4", task.film.seconds, None if ready else f"{url} has expired")
        return None

    def _price(self, request: VideoRequest, base_seconds: float | None) -> Decimal:
        per_second = self.settings.extra_models.get(request.model)
        if per_second is not None:
            return per_second * _whole_seconds(request, base_seconds)
        # Neither None nor a range: the model is known, and so is the length of the video to be edited.
        return cast("Decimal", estimate(request, base_video_seconds=base_seconds))

    def _plan(self, faults: Mapping[str, Fault]) -> _Plan:
        self._numbers += 1
        luck = random.Random(f"{self.seed}/task/{self._numbers}")  # noqa: S311
        plan = _Plan(self.settings.latency.draw(luck), kinds=[fault.kind for fault in faults.values()])
        if latency := faults.get("latency"):
            plan.latency = latency.pause
        if fail := faults.get("fail"):
            plan.failure = Failure(
                fail.fail_code,
                fail.message or _FAIL_MESSAGES.get(fail.fail_code, "The task failed"),
                fail.retryable,
            )
            plan.latency = 0.0 if fail.at_once else plan.latency
        if no_link := faults.get("no_link"):
            plan.hidden_links = no_link.queries
        if expired_link := faults.get("expired_link"):
            plan.link_status = expired_link.status or self.settings.expired_status
            plan.link_renews = expired_link.renews
        return plan

    def _make(
        self,
        account: Account,
        request: VideoRequest,
        body: Mapping[str, Any],
        plan: _Plan,
        price: Decimal,
        base_seconds: float | None,
    ) -> Task:
        now, latency = self.now(), plan.latency * self.settings.time_scale
        task_id = f"cl{self._id('task', self._numbers, length=23)}"
        prompt = prompt_of(body)
        keeps_sound = any(video.keep_original_sound == "yes" for video in request.video_list or ())
        film = Film(
            task_id=task_id,
            prompt=prompt,
            seconds=float(base_seconds or request.duration or DEFAULT_DURATION_SECONDS),
            size=frame_size(
                request.mode if request.mode in ("std", "pro") else DEFAULT_MODE,
                request.aspect_ratio if request.aspect_ratio in ("9:16", "1:1") else "16:9",
                self.settings.scale,
            ),
            sound=request.sound == "on" or keeps_sound,
        )
        return Task(
            id=task_id,
            account=account.key,
            body=_shortened(body),
            prompt=prompt,
            film=film,
            created_at=now,
            begins_at=now + latency * _PENDING_SHARE if math.isfinite(latency) else now,
            ends_at=now + latency,
            price=price,
            failure=plan.failure,
            hidden_links=plan.hidden_links,
            link_status=plan.link_status,
            link_renews=plan.link_renews,
            faults=tuple(plan.kinds),
        )

    def _enter(self, task: Task) -> None:
        account = self._account(task.account)
        account.frozen += task.price
        account.running += 1
        self._tasks[task.id] = task
        heapq.heappush(self._running, (task.ends_at, task.id))
        if task.callback_url is not None:
            heapq.heappush(self._calling, (task.ends_at, task.id))

    def _own(self, account: Account, task_id: str) -> Task:
        task = self._tasks.get(task_id)
        if task is None or task.account != account.key:
            raise RefusalError(404, f"Task {task_id} does not exist")
        return task

    @property
    def _retention(self) -> float:
        return self.settings.retention * self.settings.time_scale

    def _id(self, purpose: str, number: int, *, length: int) -> str:
        rest = int.from_bytes(hashlib.sha256(f"{self.seed}/{purpose}/{number}".encode()).digest())
        letters = []
        for _ in range(length):
            rest, letter = divmod(rest, len(_ID_LETTERS))
            letters.append(_ID_LETTERS[letter])
        return "".join(letters)


def _written_otherwise(body: Mapping[str, Any], plain: Mapping[str, Any]) -> Iterator[str]:
    """
    Tell what a body writes in another way than the service's page does.

    The client's own model takes what people write, such as a number of seconds; the service takes what is on its page.

    :param plain: the body as the client's model would have written it.
    """
    for name, value in body.items():
        if name not in plain:
            yield f"{name} must be left out rather than {json.dumps(value)[:100]}"
        elif plain[name] != value or type(plain[name]) is not type(value):
            yield f"{name} must be written as {json.dumps(plain[name])[:100]}"


def _is_deeper(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [
            inner
            for outer in layer
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(layer)


def _whole_seconds(request: VideoRequest, base_seconds: float | None) -> int:
    seconds = Decimal(str(base_seconds or request.duration or DEFAULT_DURATION_SECONDS))
    return int(seconds.quantize(Decimal(1), ROUND_HALF_UP))


def _number(usd: Decimal) -> float:
    return float(round(usd, 4))


def _shortened(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's body without the bulk of its images."""

    def short(image: Any) -> Any:
        url = image["image_url"]
        if len(url) <= _KEPT_CHARACTERS:
            return image
        return {**image, "image_url": f"{url[:_KEPT_CHARACTERS]}… ({len(url)} characters)"}

    images = body.get("image_list")
    return {**body, "image_list": [short(image) for image in images]} if images else dict(body)


def _seen(task: Task, now: float) -> SeenTask:
    return SeenTask(
        task_id=task.id,
        account=task.account,
        prompt=task.prompt,
        body=task.body,
        model=task.model,
        state=str(task.state(now)),
        seconds=task.film.seconds,
        price_usd=task.price,
        created_at=task.created_at,
        ends_at=task.ends_at if math.isfinite(task.ends_at) else None,
        fail_code=task.failure.code if task.failure else None,
        fail_message=task.failure.message if task.failure else None,
        times_billed=task.bills,
        queries=task.queries,
        told_at=task.told_at,
        downloads=task.downloads,
        faults=task.faults,
    )


def _task_as_json(task: Task) -> dict[str, Any]:
    ends_at = task.ends_at if math.isfinite(task.ends_at) else None
    return {**asdict(task), "price": str(task.price), "ends_at": ends_at}


def _task_from_json(facts: dict[str, Any]) -> Task:
    film = {**facts["film"], "size": FrameSize(*facts["film"]["size"])}
    failure = None if facts["failure"] is None else Failure(**facts["failure"])
    return Task(
        **{
            **facts,
            "price": Decimal(facts["price"]),
            "ends_at": math.inf if facts["ends_at"] is None else facts["ends_at"],
            "film": Film(**film),
            "failure": failure,
            "faults": tuple(facts["faults"]),
        }
    )
