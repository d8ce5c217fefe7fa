"""
What the emulator saw: requests, tasks, what was billed, callbacks, connections.

The judge of 'was this paid twice?': a bill is an entry of its own, written where an account is charged, and not
worked out from a task's state.
"""

from __future__ import annotations

import re
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from airflow_provider_kling.emulator.prompts import mentions

if TYPE_CHECKING:
    from airflow_provider_kling.emulator.journal import Journal

KEPT_REQUESTS = 10_000
"""How many of the latest requests are kept one by one; counts are kept of all."""


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """
    A request that came in.

    :param at: epoch seconds of the emulator's clock.
    :param call: what it was for; ``unknown`` where the service has no such path.
    :param status: HTTP status of the answer, None where the connection was reset instead.
    :param task_id: the task that it was about, or that it made.
    :param faults: kinds of the faults that struck it.
    :param user_agent: the header.
    :param carried_key: whether it carried an ``Authorization`` header; of a download, whether a key was anywhere in it.
    """

    at: float
    call: str
    method: str
    path: str
    status: int | None
    task_id: str | None
    faults: tuple[str, ...]
    user_agent: str
    carried_key: bool


@dataclass(frozen=True, slots=True)
class SeenCreate:
    """
    A POST that asked for a video, whether it got one or not.

    :param at: epoch seconds of the emulator's clock.
    :param prompt: what it asked for.
    :param task_id: the task that it made, None where it made none.
    :param status: HTTP status of the answer, None where the connection was reset instead.
    :param faults: kinds of the faults that struck it.
    """

    at: float
    prompt: str
    task_id: str | None
    status: int | None
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Bill:
    """
    An account was charged for a task.

    :param at: epoch seconds of the emulator's clock.
    :param usd: how much.
    """

    at: float
    task_id: str
    account: str
    prompt: str
    usd: Decimal


@dataclass(frozen=True, slots=True)
class SeenTask:
    """
    A task as it is now.

    :param task_id: its id.
    :param account: the account's key.
    :param prompt: its prompt, and those of its shots.
    :param body: the request's JSON; Base64 in it is cut short.
    :param state: ``pending``, ``processing``, ``completed``, ``failed``.
    :param seconds: length of the video.
    :param price_usd: what it costs once it is completed.
    :param created_at: epoch seconds. :param ends_at: when it is or will be over; None for never.
    :param fail_code: why it failed or will fail. :param fail_message: the same in words.
    :param times_billed: how often it was billed, at the most once.
    :param queries: how often it was asked for since the emulator was started.
    :param told_at: when a query first told that it is over, epoch seconds; None where none did.
    :param downloads: how often its video was asked for since the emulator was started.
    :param faults: kinds of the faults that change what becomes of it.
    """

    task_id: str
    account: str
    prompt: str
    body: Mapping[str, Any]
    model: str
    state: str
    seconds: float
    price_usd: Decimal
    created_at: float
    ends_at: float | None
    fail_code: str | None
    fail_message: str | None
    times_billed: int
    queries: int
    told_at: float | None
    downloads: int
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SentCallback:
    """
    One try to deliver a callback.

    :param at: when it was sent, epoch seconds. :param seconds: how long it took, real seconds.
    :param attempt: its number, from 1; duplicates have the same.
    :param status: the receiver's answer, None where there was none.
    :param error: why there was none.
    """

    at: float
    task_id: str
    url: str
    attempt: int
    status: int | None
    error: str | None
    seconds: float

    @property
    def was_accepted(self) -> bool:
        """Whether the receiver answered 2xx."""
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Connections:
    """
    Connections to the emulator, by what their first request was for.

    :param api: calls of the service. :param download: results and uploads. :param control: ``/_emulator/``.
    :param silent: no request yet, or none at all.
    :param open: open now. :param most_open: most at a time.
    """

    api: int
    download: int
    control: int
    silent: int
    open: int
    most_open: int

    @property
    def opened(self) -> int:
        """All that were opened, those to ``/_emulator/`` left out."""
        return self.api + self.download + self.silent


@dataclass(frozen=True)
class Tally:
    """What happened to the videos that bear one mark."""

    creates: list[SeenCreate] = field(default_factory=list)
    tasks: list[SeenTask] = field(default_factory=list)
    paid: list[Bill] = field(default_factory=list)

    @property
    def times_paid(self) -> int:
        """How many times it was paid."""
        return len(self.paid)

    @property
    def usd(self) -> Decimal:
        """What was paid in all, USD."""
        return sum((bill.usd for bill in self.paid), Decimal(0))


class Ledger:
    """
    What the emulator saw. All of it is as of now; safe to read from any thread.

    Videos are told apart by what their prompts say: put a mark of your own into each, and ask for it. ``prompt``
    arguments look for whole words: ``video-1`` is not found in ``video-10``.

    :param lock: held while it is written and read.
    :param settle: brings the service's books up to now.
    :param tasks: returns the service's tasks. :param task: returns the one of an id, or raises KeyError.
    :param journal: where creates, bills and callbacks are also written to, if anywhere.
    """

    def __init__(
        self,
        lock: threading.RLock,
        *,
        settle: Callable[[], None],
        tasks: Callable[[], list[SeenTask]],
        task: Callable[[str], SeenTask],
        journal: Journal | None = None,
    ) -> None:
        self._lock = lock
        self._settle = settle
        self._tasks = tasks
        self._task = task
        self._journal = journal
        self.connections_now: Callable[[], Connections] = lambda: Connections(0, 0, 0, 0, 0, 0)
        self.forget()

    def forget(self) -> None:
        """Begin anew, with nothing seen."""
        with self._lock:
            self._requests: deque[SeenRequest] = deque(maxlen=KEPT_REQUESTS)
            self._counts: Counter[tuple[str, int | None]] = Counter()
            self._key_leaks: list[SeenRequest] = []
            self._creates: list[SeenCreate] = []
            self._bills: list[Bill] = []
            self._callbacks: list[SentCallback] = []

    def close(self) -> None:
        """Write to the journal no more."""
        self._journal = None

    # Written by the service

    def saw_request(self, seen: SeenRequest) -> None:
        """Enter a request."""
        with self._lock:
            self._requests.append(seen)
            self._counts[seen.call, seen.status] += 1
            if seen.call == "download" and seen.carried_key:
                self._key_leaks.append(seen)

    def saw_create(self, seen: SeenCreate, *, write: bool = True) -> None:
        """Enter a POST that asked for a video."""
        with self._lock:
            self._creates.append(seen)
            if write and self._journal:
                self._journal.write("create", **as_json(seen))

    def billed(self, bill: Bill, *, write: bool = True) -> None:
        """Enter a charge."""
        with self._lock:
            self._bills.append(bill)
            if write and self._journal:
                self._journal.write("bill", **as_json(bill))

    def sent_callback(self, sent: SentCallback, *, write: bool = True) -> None:
        """Enter a try to deliver a callback."""
        with self._lock:
            self._callbacks.append(sent)
            if write and self._journal:
                self._journal.write("callback", **as_json(sent))

    def restore(self, event: str, facts: Mapping[str, Any]) -> None:
        """Enter what an earlier run wrote to the journal."""
        if event == "create":
            self.saw_create(SeenCreate(**{**facts, "faults": tuple(facts["faults"])}), write=False)
        else:
            self.sent_callback(SentCallback(**facts), write=False)

    # Read by tests

    def requests(self, call: str | None = None) -> list[SeenRequest]:
        """Return the latest 10,000 requests, or those of them that were for one call; none of earlier runs."""
        with self._lock:
            return [seen for seen in self._requests if call in (None, seen.call)]

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how many requests there were, by call and by the answer's status (``reset`` for none)."""
        with self._lock:
            counts: dict[str, dict[str, int]] = {}
            for (call, status), count in self._counts.items():
                counts.setdefault(call, {})[str(status or "reset")] = count
            return counts

    def count(self, call: str) -> int:
        """Return how many requests there were for one call."""
        return sum(self.counts().get(call, {}).values())

    def creates(self, prompt: str | None = None) -> list[SeenCreate]:
        """Return the POSTs that asked for a video, whatever became of them."""
        with self._lock:
            return [seen for seen in self._creates if prompt is None or mentions(seen.prompt, prompt)]

    def tasks(self, prompt: str | None = None, *, state: str | None = None) -> list[SeenTask]:
        """Return the tasks, in the order in which they were made."""
        return [
            task
            for task in self._tasks()
            if (prompt is None or mentions(task.prompt, prompt)) and state in (None, task.state)
        ]

    def task(self, task_id: str) -> SeenTask:
        """
        Return a task.

        :raises KeyError: where there is none of that id.
        """
        return self._task(task_id)

    def paid(self, prompt: str | None = None) -> list[Bill]:
        """Return the bills: ``len(ledger.paid("video-1"))`` is how often that video was paid."""
        with self._lock:
            self._settle()
            return [bill for bill in self._bills if prompt is None or mentions(bill.prompt, prompt)]

    def paid_usd(self, prompt: str | None = None) -> Decimal:
        """Return what was billed in all, USD."""
        return sum((bill.usd for bill in self.paid(prompt)), Decimal(0))

    def by_mark(self, pattern: str) -> dict[str, Tally]:
        r"""
        Return what happened to each video, for many at once.

        :param pattern: regular expression whose first group (or all of it) is the mark in a prompt, such as
            ``\[(video-\d+)\]``. What has no mark is left out.
        :raises ValueError: where it is no regular expression.
        """
        try:
            search = re.compile(pattern).search
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        tallies: dict[str, Tally] = {}

        def tally(prompt: str) -> Tally | None:
            found = search(prompt)
            if found is None:
                return None
            return tallies.setdefault(found[1 if found.re.groups else 0] or "", Tally())

        with self._lock:
            for create in self._creates:
                if (its := tally(create.prompt)) is not None:
                    its.creates.append(create)
            for task in self._tasks():
                if (its := tally(task.prompt)) is not None:
                    its.tasks.append(task)
            for bill in self._bills:
                if (its := tally(bill.prompt)) is not None:
                    its.paid.append(bill)
        return tallies

    def callbacks(self, task_id: str | None = None) -> list[SentCallback]:
        """Return the tries to deliver callbacks."""
        with self._lock:
            return [sent for sent in self._callbacks if task_id in (None, sent.task_id)]

    def key_leaks(self) -> list[SeenRequest]:
        """Return the requests that carried a key to the host of the results, where none belongs."""
        with self._lock:
            return list(self._key_leaks)

    def connections(self) -> Connections:
        """Return how many connections were opened, since the emulator was started."""
        return self.connections_now()

    def summary(self) -> dict[str, Any]:
        """Return the figures as JSON."""
        with self._lock:
            tasks, paid = self._tasks(), self.paid()
            billed = Counter(bill.task_id for bill in paid)
            return {
                "requests": self.counts(),
                "creates": len(self._creates),
                "tasks": {"all": len(tasks), **Counter(task.state for task in tasks)},
                "paid": {
                    "times": len(paid),
                    "usd": str(self.paid_usd()),
                    "tasks_billed_twice": [task_id for task_id, times in billed.items() if times > 1],
                },
                "callbacks": {
                    "sent": len(self._callbacks),
                    "accepted": sum(sent.was_accepted for sent in self._callbacks),
                },
                "key_leaks": len(self._key_leaks),
                "connections": {"opened": (now := self.connections()).opened, **asdict(now)},
            }


def as_json(entry: Any) -> dict[str, Any]:
    """Return an entry of the ledger as JSON; amounts are strings, so that they stay exact."""
    return {
        name: str(value) if isinstance(value, Decimal) else value for name, value in asdict(entry).items()
    }
