"""
Faults on demand: what goes wrong, for which calls, how often.

A fault is added beforehand and taken by the calls that match it. Of the faults that match one call the first of
each group counts: one that replaces or breaks the answer, one that delays it, one that changes its shape, and, for
a create, one of each kind that changes what becomes of the task.
"""

from __future__ import annotations

import itertools
import json
import random
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from airflow_provider_kling.emulator.prompts import mentions

Call = Literal["create", "query", "upload", "balance", "record", "models", "download", "callback"]
"""The calls of the service; ``download`` is a result's link, ``callback`` the service's own call to its user."""

Kind = Literal[
    "answer",
    "reset",
    "lost_answer",
    "refuse",
    "cut",
    "stall",
    "slow",
    "drift",
    "fail",
    "latency",
    "no_link",
    "expired_link",
    "drop",
    "duplicate",
]

Shape = Literal[
    "task_id",
    "status",
    "top_level",
    "videos",
    "video_url",
    "url",
    "result_json_string",
    "result_json_object",
    "unknown_state",
    "no_data",
    "data_is_null",
    "data_is_list",
    "data_is_text",
]
"""
The ways in which an answer can differ from the documented one.

``task_id``: instead of ``taskId``. ``status``: instead of ``state``. ``top_level``: the payload is not in ``data``.
``videos``, ``video_url``, ``url``, ``result_json_string``, ``result_json_object``: where the links are.
``unknown_state``: a state that no one has heard of. ``no_data``, ``data_is_null``, ``data_is_list``,
``data_is_text``: the payload is missing or is something else.
"""

_API_CALLS: frozenset[str] = frozenset({"create", "query", "upload", "balance", "record", "models"})
_GROUPS: Mapping[str, str] = {
    **dict.fromkeys(("answer", "reset", "lost_answer", "refuse", "cut", "stall", "drop"), "answer"),
    "slow": "delay",
    "drift": "shape",
}
_CALLS: Mapping[str, frozenset[str]] = {
    "answer": _API_CALLS | {"download"},
    "reset": _API_CALLS | {"download"},
    "lost_answer": _API_CALLS,
    "refuse": _API_CALLS | {"download"},
    "cut": _API_CALLS | {"download"},
    "stall": _API_CALLS | {"download"},
    "slow": _API_CALLS | {"download", "callback"},
    "drift": _API_CALLS,
    "fail": frozenset({"create"}),
    "latency": frozenset({"create"}),
    "no_link": frozenset({"create"}),
    "expired_link": frozenset({"create"}),
    "drop": frozenset({"callback"}),
    "duplicate": frozenset({"callback"}),
}
"""Which calls a kind of fault can strike."""
_DEFAULT_SECONDS = {"slow": 1.0, "stall": 1.0, "refuse": 1.0, "latency": 3600.0}


def _words(value: Any) -> Any:
    return [part for part in re.split(r"[+,\s]+", value) if part] if isinstance(value, str) else value


class Fault(BaseModel):
    """
    Something that goes wrong.

    What goes wrong:

    :param kind: one of

        * ``answer``: the call is answered with ``status``, ``code``, ``body`` and ``message``, and is not handled
          unless ``handled`` is on: then it is, and only its answer is replaced. ``status=200, code=500`` is an error
          in the service's other way to tell one.
        * ``reset``: the connection is reset before the call is handled. A create so treated made no task.
        * ``lost_answer``: the call is handled, then the connection is reset without an answer. A create made a task.
        * ``refuse``: the connection is reset, and for ``seconds`` the port refuses new ones.
        * ``cut``: the answer ends in its middle. ``stall``: it pauses in its middle for ``seconds``.
        * ``slow``: the answer (of a callback: the call) comes ``seconds`` later; it goes with any other fault.
        * ``drift``: the answer has the ``shape`` of another version of the service.
        * ``fail``: the task fails, with ``fail_code``, ``message`` and ``retryable``; with ``at_once`` its create
          answer says so already.
        * ``latency``: the task takes ``seconds`` of the service's time.
        * ``no_link``: the first ``queries`` queries of the completed task show no link.
        * ``expired_link``: the task's link answers ``status`` (403, 404 or 410); with ``renews`` the next query after
          that shows a link that works.
        * ``drop``: the callback is never sent. ``duplicate``: it is sent ``copies`` times at once.

    Which calls it strikes; all that is given must hold:

    :param call: the call; None for every call that this kind can strike, downloads and callbacks left out unless
        it strikes only these.
    :param prompt: words that the request's or the task's prompt holds, as whole ones.
    :param task_id: the task that the call is about.
    :param header: ``Name`` or ``Name: value`` of a request's header.
    :param field: ``name=value`` of a field of the request's body; ``name`` alone for its presence.

    How often:

    :param skip: so many matching calls pass untouched first.
    :param rate: share of the matching calls that it strikes, 0 to 1, drawn under the emulator's seed.
    :param times: how many calls it strikes before it is used up; ``always`` for no end. Left out, it is once, or
        ``always`` where a rate is given.

    How, for the kinds that name it:

    :param status: HTTP status. :param code: the body's ``code`` where it differs from the status.
    :param body: ``json`` in the service's form, ``html``, ``text`` (neither), ``empty`` or ``null``.
    :param message: error text. :param message_at: where the body has it.
    :param retry_after: seconds in the ``Retry-After`` header; ``retry_after_as`` ``date`` writes it as an HTTP date.
    :param seconds: real seconds, except for ``latency``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    call: Call | None = None
    prompt: str | None = None
    task_id: str | None = None
    header: str | None = None
    field: str | None = None
    skip: Annotated[int, Field(ge=0)] = 0
    rate: Annotated[float, Field(ge=0, le=1)] | None = None
    times: Annotated[int, Field(ge=1)] | Literal["always"] | None = None

    status: Annotated[int, Field(ge=200, le=599)] | None = None
    code: int | str | None = None
    body: Literal["json", "html", "text", "empty", "null"] = "json"
    message: str | None = None
    message_at: Literal["msg", "message", "error", "error.message"] = "msg"
    retry_after: Annotated[int, Field(ge=0)] | None = None
    retry_after_as: Literal["seconds", "date"] = "seconds"
    handled: bool = False
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    shape: Annotated[tuple[Shape, ...], BeforeValidator(_words)] = ()
    fail_code: str | None = None
    retryable: bool | None = None
    at_once: bool = False
    queries: Annotated[int, Field(ge=1)] = 2
    renews: bool = False
    copies: Annotated[int, Field(ge=2)] = 2

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.call is not None and self.call not in _CALLS[self.kind]:
            raise ValueError(
                f"{self.kind} cannot strike {self.call}: it strikes {', '.join(sorted(_CALLS[self.kind]))}"
            )
        if self.kind == "answer" and self.status is None:
            raise ValueError("answer needs a status, such as status=503")
        if self.kind == "drift" and not self.shape:
            raise ValueError(f"drift needs a shape, one or more of {', '.join(get_args(Shape))}")
        if self.kind == "expired_link" and self.status not in (None, 403, 404, 410):
            raise ValueError("expired_link takes status 403, 404 or 410")
        return self

    @property
    def group(self) -> str:
        """Faults of one group exclude each other in one call."""
        return _GROUPS.get(self.kind, self.kind)

    @property
    def limit(self) -> int | None:
        """How many calls it strikes, None for no end."""
        if self.times is None:
            return 1 if self.rate is None else None
        return None if self.times == "always" else self.times

    @property
    def pause(self) -> float:
        """Its ``seconds``, or what its kind has by default."""
        return _DEFAULT_SECONDS.get(self.kind, 0.0) if self.seconds is None else self.seconds

    @property
    def is_handled(self) -> bool:
        """Whether the service does what was asked although the answer is not its own."""
        return self.handled or self.kind in ("lost_answer", "cut", "stall")

    @classmethod
    def parse(cls, written: str) -> Fault:
        """
        Read a fault from a command line: JSON, or ``KIND:NAME=VALUE,NAME=VALUE`` (values without commas).

        :raises ValueError: where it is no fault.
        """
        if written.lstrip().startswith("{"):
            return cls(**json.loads(written))
        kind, _, rest = written.partition(":")
        given: dict[str, Any] = {}
        for pair in filter(None, (part.strip() for part in rest.split(","))):
            name, equals, value = pair.partition("=")
            given[name.strip()] = value.strip() if equals else "true"
        return cls(**{"kind": kind.strip(), **given})


@dataclass(frozen=True)
class Facts:
    """What is known of a call when faults are looked for."""

    call: Call
    prompt: str = ""
    task_id: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Planned:
    """A fault that was added, and what it has done."""

    id: int
    fault: Fault
    luck: random.Random
    met: int = 0
    struck: int = 0

    @property
    def is_used_up(self) -> bool:
        """Whether it strikes no more."""
        return self.fault.limit is not None and self.struck >= self.fault.limit

    def describe(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "id": self.id,
            **self.fault.model_dump(mode="json", exclude_defaults=True),
            "struck": self.struck,
            "used_up": self.is_used_up,
        }


class FaultPlan:
    """
    The faults that wait for their calls. Safe to use from several threads.

    :param seed: what draws by rate repeat themselves under.
    """

    def __init__(self, seed: int | str) -> None:
        self._seed = seed
        self._planned: list[Planned] = []
        self._waiting: tuple[Planned, ...] = ()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> int:
        """Add a fault and return its number."""
        with self._lock:
            number = next(self._numbers)
            self._planned.append(Planned(number, fault, random.Random(f"{self._seed}/{number}")))  # noqa: S311
            self._refresh()
            return number

    def remove(self, number: int) -> bool:
        """Take a fault away; False where there is none of that number."""
        with self._lock:
            before = len(self._planned)
            self._planned = [planned for planned in self._planned if planned.id != number]
            self._refresh()
            return len(self._planned) < before

    def clear(self) -> None:
        """Take all faults away."""
        with self._lock:
            self._planned.clear()
            self._refresh()

    def describe(self) -> list[dict[str, Any]]:
        """Return all faults, used up or not, with how often each struck."""
        with self._lock:
            return [planned.describe() for planned in self._planned]

    def struck(self, number: int) -> int:
        """
        Return how often a fault struck.

        :raises KeyError: where there is none of that number.
        """
        with self._lock:
            for planned in self._planned:
                if planned.id == number:
                    return planned.struck
        raise KeyError(number)

    @property
    def is_empty(self) -> bool:
        """Whether no fault waits for a call."""
        return not self._waiting

    def take(self, facts: Facts) -> dict[str, Fault]:
        """Return the faults that strike a call, by their group, and count them as used."""
        if not self._waiting:
            return {}
        taken: dict[str, Fault] = {}
        with self._lock:
            for planned in self._waiting:
                fault = planned.fault
                if fault.group in taken or not _matches(fault, facts):
                    continue
                if not _comes_into_play(fault, taken.get("answer")):
                    continue
                planned.met += 1
                if planned.met <= fault.skip or (
                    fault.rate is not None and planned.luck.random() >= fault.rate
                ):
                    continue
                planned.struck += 1
                taken[fault.group] = fault
            if taken:
                self._refresh()
        return taken

    def _refresh(self) -> None:
        waiting = [planned for planned in self._planned if not planned.is_used_up]
        # Those that break the answer come first: they decide whether the others come into play.
        waiting.sort(key=lambda planned: planned.fault.group != "answer")
        self._waiting = tuple(waiting)


def _comes_into_play(fault: Fault, answer: Fault | None) -> bool:
    """Tell whether a fault can show in a call whose answer is struck by another one."""
    return answer is None or answer.is_handled or fault.group == "delay"


def _matches(fault: Fault, facts: Facts) -> bool:
    if fault.call is None:
        able = _CALLS[fault.kind]
        if facts.call not in ((able & _API_CALLS) or able):
            return False
    elif facts.call != fault.call:
        return False
    return (
        (fault.prompt is None or mentions(facts.prompt, fault.prompt))
        and (fault.task_id is None or fault.task_id == facts.task_id)
        and (fault.header is None or _has_header(facts.headers, fault.header))
        and (fault.field is None or _has_field(facts.body, fault.field))
    )


def _has_header(headers: Mapping[str, str], wanted: str) -> bool:
    name, colon, value = wanted.partition(":")
    found = headers.get(name.strip())
    return found is not None and (not colon or found == value.strip())


def _has_field(body: Mapping[str, Any], wanted: str) -> bool:
    name, equals, value = wanted.partition("=")
    if name not in body:
        return False
    found = body[name]
    return not equals or value == (found if isinstance(found, str) else json.dumps(found))
