"""One attempt of an Airflow task at a list of videos: wave after wave, each asked for once, until all are over."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NoReturn, TypeGuard, TypeVar

from airflow.providers.common.compat.sdk import AirflowConfigException

from airflow_provider_kling import config, metrics
from airflow_provider_kling.airflow_versions import THREADS_MAY_ASK_AIRFLOW
from airflow_provider_kling.api.errors import (
    InvalidRequestError,
    KeyRefusedError,
    KlingError,
    NoCreditsError,
    Paid,
    RateLimitedError,
    TooManyTasksError,
    UnknownSubmissionError,
    UnreachableError,
)
from airflow_provider_kling.api.pricing import Estimate, highest
from airflow_provider_kling.assets import tell_outlets_of_many
from airflow_provider_kling.batch_requests import Item, at_place, faults_of
from airflow_provider_kling.batch_result import (
    MOST_IN_XCOM,
    Ended,
    FailOn,
    VideosFailedError,
    completed,
    document,
    failed,
    failure,
    paths_in,
    summary,
    table,
    video_results,
)
from airflow_provider_kling.budget import check_balance, check_budget, shown
from airflow_provider_kling.callbacks import XCOM_OVER, CallbackAddress
from airflow_provider_kling.card import XCOM_VIDEO, CardState, leave_card, list_card
from airflow_provider_kling.costs import DEFAULT_PATIENCE, recorded_cost
from airflow_provider_kling.delivery import Delivery
from airflow_provider_kling.exceptions import OutputUnusableError, StorageError
from airflow_provider_kling.generation import busy_pause
from airflow_provider_kling.hooks.upload import FileUnavailableError
from airflow_provider_kling.ledger import LedgerError, Record, fingerprint
from airflow_provider_kling.order import Order
from airflow_provider_kling.output_path import Coordinates, OutputPath, uri_of
from airflow_provider_kling.result import error_text
from airflow_provider_kling.settlement import MOST_IDS_NAMED, Settlement
from airflow_provider_kling.submission import KilledError, Obtained, Submission
from airflow_provider_kling.waiting import DEFER_NET, AskAgain, Outcome, Over, WaitEvent, Waiting
from airflow_provider_kling.xcom import own_xcom

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_kling.api.request import Fault
    from airflow_provider_kling.api.task import RecordedCost, VideoTask
    from airflow_provider_kling.batch_ledger import BatchLedger, Entry
    from airflow_provider_kling.hooks.kling import KlingHook
    from airflow_provider_kling.operators.batch import KlingGenerateVideoBatchOperator
    from airflow_provider_kling.storage import StoredFile

SIDE_BY_SIDE = 8
"""How many videos are asked for, stored, or asked for their cost at a time on a worker."""
LEAST_DEFERRAL = 10.0
"""Seconds for which a task is deferred before it asks for more. A task that comes back within a few seconds of leaving
its worker can meet the executor's own event for that, and is failed by a scheduler that has other things to do."""
MAX_UNKNOWN_IN_A_ROW = 3
"""Submissions of unknown outcome in a row after which no more are made: each may be billed."""

_TOLD_OF_A_FILE = ("task_id", "model", "duration_seconds", "estimated_cost_usd", "recorded_cost_usd")

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True, kw_only=True)
class BatchState:
    """
    What a task that makes many videos tells itself across a deferral. Plain JSON, and small.

    :param attempt: the attempt's number in the ledger.
    :param attempt_ends_at: when Airflow's ``execution_timeout`` for this attempt is over, epoch seconds.
    :param room: how many may be at the service at a time just now.
    :param not_before: when a busy service may be asked again, epoch seconds.
    :param progress_at: when a video was last over, for another reason than that the service had too many; at first when
        the attempt began. Epoch seconds.
    :param known: how many entries of the ledger the attempt has.
    :param billable: how many of these stand for a video that is or may be billed.
    :param stopped: why no more are asked for; None while more are.
    :param stopped_for_good: whether a retry cannot help with that.
    """

    attempt: int
    attempt_ends_at: float
    room: int
    not_before: float
    progress_at: float
    known: int = 0
    billable: int = 0
    stopped: str | None = None
    stopped_for_good: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON, which knows no infinity."""
        return {
            "attempt": self.attempt,
            "attempt_ends_at": None if math.isinf(self.attempt_ends_at) else self.attempt_ends_at,
            "room": self.room,
            "not_before": self.not_before,
            "progress_at": self.progress_at,
            "known": self.known,
            "billable": self.billable,
            "stopped": self.stopped,
            "stopped_for_good": self.stopped_for_good,
        }

    @classmethod
    def from_dict(cls, value: Any) -> BatchState:
        """
        Read it.

        :raises ValueError: where it is something else.
        """
        try:
            ends_at = value["attempt_ends_at"]
            return cls(
                attempt=int(value["attempt"]),
                attempt_ends_at=math.inf if ends_at is None else float(ends_at),
                room=max(1, int(value["room"])),
                not_before=float(value["not_before"]),
                progress_at=float(value["progress_at"]),
                known=int(value["known"]),
                # An older release does not tell them apart, and its tasks may wait while this one is installed.
                billable=int(value.get("billable", value["known"])),
                stopped=value["stopped"],
                stopped_for_good=bool(value["stopped_for_good"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not an event of KlingVideosTrigger: {str(value)[:200]}") from error


@dataclass(frozen=True)
class BatchEvent:
    """
    What the trigger tells the task that waits: which of its videos are over, and how, as reason codes.

    It is a hint. Whoever receives it asks the service again.
    """

    over: Mapping[str, Outcome]
    state: BatchState

    @classmethod
    def from_dict(cls, payload: Any) -> BatchEvent:
        """
        Read an event's payload.

        :raises ValueError: where it is none: a missing event is not a success.
        """
        try:
            over = {str(task_id): Outcome(outcome) for task_id, outcome in payload["over"].items()}
            state = payload["state"]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not an event of KlingVideosTrigger: {str(payload)[:200]}") from error
        return cls(over, BatchState.from_dict(state))


class Batch:
    """
    What one process does for one attempt.

    :param operator: whose attempt it is.
    :param context: Airflow's context of the task.
    :param hook: the service.
    :param ledger: what earlier attempts left.
    :param items: what is asked for. Nothing yet where this process goes on with what was asked for before: see
        :meth:`resume`.
    :param results_at: where the document with all results goes; None where there is no place for it.
    """

    def __init__(
        self,
        operator: KlingGenerateVideoBatchOperator,
        context: Context,
        hook: KlingHook,
        ledger: BatchLedger,
        items: Sequence[Item] = (),
        results_at: str | None = None,
    ) -> None:
        self._operator = operator
        self._context = context
        self._hook = hook
        self._ledger = ledger
        self._items = items
        self._results_at = results_at
        self._log: Any = operator.log
        self._coordinates = Coordinates.of(context)
        # Read here, so that a wrong setting is told before anything is paid.
        self._max_failures = config.max_failed_queries()
        self._callback_interval = config.callback_poll_interval() if operator.callback else None
        self._told: set[str] = set()
        self._deliveries: dict[str | None, Delivery] = {}
        self._orders: dict[int, Order] = {}
        self._waits: dict[int, tuple[Waiting, float]] = {}
        self._entries: dict[int, Entry] = {}
        self._has_found_entries = False
        self._unknown_in_a_row = 0
        self._estimated_cost_usd: float | None = None
        self._card_before: Mapping[str, Any] | None = None
        self._counts_at_end: Mapping[str, Any] | None = None
        self._results_path: str | None = None
        self.ended: list[dict[str, Any] | None] = []
        """What was kept of each video, when all are over."""
        self._state = BatchState(
            attempt=0, attempt_ends_at=math.inf, room=operator.max_in_flight, not_before=0, progress_at=0
        )

    def start(self, attempt_ends_at: float) -> dict[str, Any]:
        """
        Take up what an earlier attempt asked for, ask for the rest, and see all of it through.

        :param attempt_ends_at: when Airflow's ``execution_timeout`` is over, epoch seconds.
        :return: what goes to XCom.
        :raises KlingError: where the task fails.
        """
        with self._telling_what_is_paid():
            self._ledger.begin()
            self._state = replace(
                self._state,
                attempt=self._ledger.attempt,
                attempt_ends_at=attempt_ends_at,
                progress_at=time.time(),
            )
            self._check_form()
            if len(self._items) > MOST_IN_XCOM and self._results_at is None:
                raise KlingError(
                    f"The outcome of {len(self._items)} videos is too much for XCom, which takes {MOST_IN_XCOM}",
                    next_step=(
                        "Nothing was sent and nothing was billed. Set output_path, or ledger_path: a document with all "
                        "results is kept there. A retry cannot help."
                    ),
                )
            self._find_entries()
            self._keep_what_is_there()
            self._check_money()
            self._announce()
            return self._go_on()

    def refuse(self, error: KlingError) -> NoReturn:
        """
        End an attempt that has no list, since that cannot be read.

        :param error: why.
        :raises KlingError: the error, which tells what earlier attempts paid for.
        :raises LedgerError: in its place, where the ledger cannot tell.
        """
        with self._telling_what_is_paid():
            if not self._operator.is_dry_run:
                self._ledger.begin()
            raise error

    def resume(
        self, event: BatchEvent, rendered: Callable[[], tuple[Sequence[Item], str | None]]
    ) -> dict[str, Any]:
        """
        Go on after the triggerer waited.

        :param event: what the trigger told.
        :param rendered: reads the list and where its results go, once it is known what is paid for by then.
        :return: what goes to XCom.
        :raises KlingError: where the task fails.
        """
        with self._telling_what_is_paid(), self._rendering_anew():
            self._state = event.state
            self._ledger.resume(event.state.attempt)
            self._entries = self._ledger.of_attempt()
            self._has_found_entries = True
            if len(self._entries) < event.state.known:
                raise LedgerError(
                    f"The ledger at {self._ledger.place} holds {len(self._entries)} of the {event.state.known} videos "
                    "that this attempt has asked for",
                    next_step=(
                        "What it does not hold would be bought again, so there is no retry. Bring its records back (do "
                        "all workers share that place?), then clear the task; or store the videos with "
                        "KlingDownloadVideoOperator."
                    ),
                    retryable=False,
                )
            # From here on the entries tell what is billed.
            self._state = replace(self._state, billable=0)
            self._items, self._results_at = rendered()
            for entry in self._entries.values():
                if entry.came_home:
                    self._log.info("requests[%d]: a callback told its Kling task id", entry.index)
                    self._ledger.reopen(entry)
            ended = {**event.over, **self._called_back()}
            over = [entry for entry in self._flying() if entry.kling_task_id in ended]
            waits = [
                Waiting.resumed(
                    WaitEvent(
                        kling_task_id=str(entry.kling_task_id),
                        outcome=ended[str(entry.kling_task_id)],
                        deadline=self._deadline(entry),
                        submitted_at=_submitted_at(entry),
                    ),
                    poll_interval=self._operator.poll_interval,
                    max_failures=self._max_failures,
                )
                for entry in over
            ]
            for entry, waiting in zip(over, waits, strict=True):
                self._waits[entry.index] = (waiting, 0)
            self._settle(self._ask(over))
            return self._go_on()

    def rehearse(self) -> dict[str, Any]:
        """
        Do all that comes before the first submit, and stop there.

        :return: what goes to XCom.
        :raises KlingError: where nothing would be asked for.
        """
        self._check_form()
        self._check_references(range(len(self._items)))
        most = check_budget(self._costs(range(len(self._items))), self._operator.max_cost_usd)
        if self._operator.check_balance:
            check_balance(self._hook, most, log=self._log)
        self._log.info(
            "Nothing is asked for: this is a dry run. %d videos, %s.",
            len(self._items),
            "cost not known" if most is None else f"estimated cost up to {shown(most)}",
        )
        results = [
            result
            | {
                "outcome": "dry_run",
                "estimated_cost_usd": self._order(result["index"]).asked.estimated_cost_usd,
            }
            for result in video_results([None] * len(self._items))
        ]
        counts = {**summary(()), "total": len(results)}
        counts["estimated_cost_usd"] = None if most is None else float(most)
        leave_card(self._context, lambda: list_card(counts, state=CardState.DRY_RUN), log=self._log)
        return counts | {
            "state": "dry_run",
            "results": results if len(results) <= MOST_IN_XCOM else None,
            "results_path": None,
        }

    @property
    def kling_task_ids(self) -> list[str]:
        """What this attempt has asked for or taken up, and what earlier ones paid for, in the list's order."""
        entries = sorted(self._entries.values(), key=lambda entry: entry.index)
        return [entry.kling_task_id for entry in entries if entry.kling_task_id is not None]

    def show_failure(self, error: BaseException) -> None:
        """Leave a card that says why this attempt fails."""
        self._show(CardState.FAILED, error)

    def _show(self, state: CardState, error: BaseException | None = None) -> None:
        """Leave a card that says how far the list is."""

        def make() -> dict[str, Any]:
            at_end = self._counts_at_end
            taken = [
                _submitted_at(entry) for entry in self._entries.values() if entry.kling_task_id is not None
            ]
            return list_card(
                self._counts() if at_end is None else at_end,
                state=state,
                submitted_at=min(taken, default=None),
                estimated_cost_usd=self._estimated() if at_end is None else None,
                results_path=self._results_path,
                error=error,
            )

        leave_card(self._context, make, log=self._log)

    def _counts(self) -> dict[str, Any]:
        """Count what has ended so far. What has not is not told as never asked for."""
        ended = [entry.ended for entry in self._entries.values() if entry.ended is not None]
        results = video_results(ended)
        total = len(self._items) or self._before().get("total", 0)
        return {**summary(results), "total": total, "recorded_videos": _recorded(results)}

    def _estimated(self) -> float | None:
        """Return what all of them cost by the estimate: after a deferral it is not worked out anew."""
        if self._estimated_cost_usd is None:
            self._estimated_cost_usd = self._before().get("estimated_cost_usd")
        return self._estimated_cost_usd

    def _before(self) -> Mapping[str, Any]:
        """Return the card that this attempt left before it was deferred; an empty one where there is none."""
        if self._card_before is None:
            before = own_xcom(self._context, XCOM_VIDEO)
            self._card_before = before if isinstance(before, Mapping) else {}
        return self._card_before

    @contextlib.contextmanager
    def _telling_what_is_paid(self) -> Iterator[None]:
        """Let no error that ends the attempt pass as if nothing were paid for, or lead to buying it again."""
        try:
            yield
        except VideosFailedError:
            raise  # it counts what is paid for
        except KlingError as error:
            if self._may_be_billed():
                self._tell_what_is_paid(error)
            raise

    @contextlib.contextmanager
    def _rendering_anew(self) -> Iterator[None]:
        """Let what renders otherwise than when this attempt began, which checked all of it, end no more than that."""
        try:
            yield
        except (InvalidRequestError, OutputUnusableError) as error:
            error.retryable = True
            error.next_step = (
                "It was right when this attempt began and renders otherwise now: has an upstream task been cleared, "
                "or its XCom been deleted?"
            )
            if self._ledger.is_kept or not self._may_be_billed():
                error.next_step += " A retry renders it anew."
            raise

    def _tell_what_is_paid(self, error: KlingError) -> None:
        if error.paid is Paid.NO:
            error.paid = Paid.MAYBE
            error.take_back_that_nothing_was_sent()
            named = _named(self._open_first())
            error.next_step += (
                " The videos that were asked for before go on, and each is billed when it is completed"
                f"{f': {named}. All of' if named else ';'} their Kling task ids are in the log."
            )
            if self._ledger.is_kept:
                error.next_step += (
                    f" What the ledger at {self._ledger.place} holds of them, the next attempt takes up and does not "
                    "buy again."
                )
        if not self._ledger.is_kept:
            error.retryable = False
            error.next_step += (
                " What it asked for is not remembered, so a retry would buy it again and is not made."
            )

    def _may_be_billed(self) -> bool:
        """Tell whether anything that the task asked for is or may be billed, as far as is known."""
        return bool(self._state.billable) or any(entry.may_be_billed for entry in self._concerned())

    def _open_first(self) -> list[str]:
        """Return the Kling task ids of what the task asked for, those that are not over yet before the others."""
        is_over = {
            entry.kling_task_id: entry.ended is not None
            for entry in sorted(self._concerned(), key=lambda entry: entry.index)
        }
        return sorted((its for its in is_over if its is not None), key=is_over.__getitem__)

    def _concerned(self) -> list[Entry]:
        """Return what this attempt has, and before it knows what that is, all that earlier ones bought."""
        earlier = () if self._has_found_entries else self._ledger.of_no_place()
        return [*self._entries.values(), *earlier]

    # Before anything is paid

    def _check_form(self) -> None:
        if self._operator.callback:
            config.require_callback_base_url()
        if faults := faults_of(self._items, self._operator.output_conn_id):
            raise InvalidRequestError(faults)
        # The document with the results lies beside the common place, whatever places the items name.
        for output_path in {self._operator.output_path or None, *(item.output_path for item in self._items)}:
            self._delivery(output_path).check()

    def _find_entries(self) -> None:
        faults = []
        for index in range(len(self._items)):
            try:
                self._entries[index] = self._bind(index)
            except InvalidRequestError as error:
                faults += [at_place(index, fault) for fault in error.faults]
        if faults:
            raise InvalidRequestError(faults)
        self._has_found_entries = True

    def _bind(self, index: int) -> Entry:
        order = self._order(index)
        written = self._fingerprint(order.request.to_body()) if order.request.local_references() else None
        try:
            return self._ledger.bind(index, self._fingerprint(order.identity()), written)
        except (InvalidRequestError, FileUnavailableError) as error:
            # A file that was uploaded may be gone by now. That must not cost the video that it was uploaded for.
            entry = self._ledger.bind_written(index, written) if written else None
            if entry is None:
                raise
            self._log.warning("requests[%d]: %s\nAn earlier attempt could still use it.", index, error)
            return entry

    def _fingerprint(self, identity: Mapping[str, Any]) -> str:
        return fingerprint(
            identity, kling_conn_id=self._hook.kling_conn_id, base_url=self._hook.settings.base_url
        )

    def _keep_what_is_there(self) -> None:
        """Look whether the videos that earlier attempts delivered are there still; the others are fetched again."""
        delivered = [entry for entry in self._entries.values() if entry.ended is not None]
        for entry, is_there in zip(delivered, self._side_by_side(self._is_there, delivered), strict=True):
            if not is_there:
                self._ledger.reopen(entry)

    def _is_there(self, entry: Entry) -> bool:
        ended = entry.ended or {}
        output_path = self._item(entry.index).output_path
        if output_path is None:
            link = ended.get("video_url")
            return bool(ended.get("path")) or (bool(link) and self._hook.result_is_there(str(link)))
        if len(ended.get("files") or ()) > 1 or not ended.get("path"):
            return False
        return self._delivery(output_path).has_kept(
            str(ended["path"]), str(ended.get("task_id")), ended.get("size_bytes")
        )

    def _check_money(self) -> None:
        open_ones = [index for index, entry in self._entries.items() if entry.kling_task_id is None]
        if not open_ones:
            return  # what is paid for is fetched, whatever the limit says by now
        self._check_references(open_ones)
        check_budget(self._costs(self._entries), self._operator.max_cost_usd)
        if self._operator.check_balance:
            known = [cost for cost in map(highest, self._costs(open_ones)) if cost is not None]
            needed = sum(known, start=Decimal(0)) if len(known) == len(open_ones) else None
            check_balance(self._hook, needed, log=self._log)

    def _check_references(self, indexes: Iterable[int]) -> None:
        """Hold the files of all requests to the service's limits, before the first of them is sent."""
        faults: list[Fault] = []
        for index in indexes:
            try:
                _ = self._order(index).cost
            except InvalidRequestError as error:
                faults += [at_place(index, fault) for fault in error.faults]
        if faults:
            raise InvalidRequestError(faults)

    def _costs(self, indexes: Iterable[int]) -> list[Estimate]:
        costs = []
        for index in indexes:
            try:
                costs.append(self._order(index).cost)
            except (KlingError, AirflowConfigException):
                continue  # paid for by an earlier attempt, and its files cannot be read any more
        return costs

    def _announce(self) -> None:
        taken_up = [entry for entry in self._entries.values() if entry.kling_task_id is not None]
        delivered = sum(entry.ended is not None for entry in taken_up)
        costs = [cost for cost in map(highest, self._costs(self._entries)) if cost is not None]
        self._estimated_cost_usd = float(sum(costs, start=Decimal(0))) if costs else None
        self._card_before = {}  # what is there is of an earlier attempt
        self._log.info(
            "Asking Kling for %d videos, at most %d at a time; estimated cost of all %s. Earlier attempts asked for %d "
            "of them, of which %d are delivered. The ledger is at %s.",
            len(self._items),
            self._operator.max_in_flight,
            f"up to {shown(sum(costs, start=Decimal(0)))}" if costs else "not known",
            len(taken_up),
            delivered,
            self._ledger.place,
        )
        self._warn_of_others()
        for warning in sorted(
            {text for index in self._entries for text in self._order(index).request.warnings()}
        ):
            self._log.warning("%s", warning)
        if not self._ledger.is_kept:
            self._log.warning(
                "These submissions are not remembered beyond this attempt: should it crash, a retry buys all videos "
                "again. Use Airflow 3.3 or later, or set [kling] ledger_path or the argument ledger_path."
            )

    def _warn_of_others(self) -> None:
        """Name what earlier attempts bought and this list asks for no more: nobody else will tell of it."""
        others = self._ledger.of_no_place()
        if not others:
            return
        ids = [entry.kling_task_id for entry in others if entry.kling_task_id is not None]
        named = [f"Kling tasks {_named(ids)}"] if ids else []
        if unknown := len(others) - len(ids):
            named.append(f"{unknown} of unknown id")
        delivered = sum(
            entry.ended is not None and entry.ended["outcome"] == Ended.COMPLETED for entry in others
        )
        self._log.warning(
            "Earlier attempts asked for %d %s not in this list any more, since it asks for something else by now, or "
            "through another connection: %s. %d of them are delivered; the others are left alone, and each is billed "
            "when it is completed. KlingDownloadVideoOperator stores a video by its Kling task id; all of these are "
            "in the ledger at %s. What this list asks for in their place is billed anew.",
            len(others),
            "video that is" if len(others) == 1 else "videos that are",
            " and ".join(named),
            delivered,
            self._ledger.place,
        )

    # The waves

    def _go_on(self) -> dict[str, Any]:
        while True:
            while overs := self._submit():
                self._settle(overs)
            self._ledger.flush()
            self._show(CardState.SUBMITTED)
            flying = self._flying()
            if flying or (self._state.stopped is None and self._to_do()):
                self._settle(self._wait(flying))
            else:
                return self._finish()

    def _flying(self) -> list[Entry]:
        """Return what this attempt has asked for or taken up, and what is not over yet."""
        return [entry for entry in self._entries.values() if entry.is_followed and entry.ended is None]

    def _to_do(self) -> list[int]:
        """Return what is to be asked for or taken up: first what is paid for."""
        entries = [(index, self._entries.get(index)) for index in range(len(self._items))]
        open_ones = [
            (entry is None or entry.kling_task_id is None, index)
            for index, entry in entries
            if entry is None or (entry.ended is None and not entry.is_followed)
        ]
        return [index for _, index in sorted(open_ones)]

    def _submit(self) -> list[tuple[Entry, Over]]:
        """
        Ask for as many more videos as there is room for, or take up what an earlier attempt asked for.

        :return: those of them that are over already.
        """
        taken_up: list[Entry] = []
        overs: list[tuple[Entry, Over]] = []
        flying = len(self._flying())
        to_do = self._to_do()
        while to_do and flying < self._state.room and self._may_ask(to_do[0]):
            index = to_do.pop(0)
            entry = self._entry(index)
            obtained = self._obtain(entry)
            if obtained is None:
                continue
            flying += 1
            entry.is_followed, entry.is_attached = True, obtained.is_from_earlier_attempt
            self._ledger.touch(entry)
            self._log.info("requests[%d]: Kling task id: %s", index, obtained.kling_task_id)
            if obtained.is_from_earlier_attempt:
                taken_up.append(entry)
            elif obtained.task is not None and obtained.task.state.is_terminal:
                decision = self._waiting(entry).on_task(obtained.task, time.time())
                if isinstance(decision, Over):
                    overs.append((entry, decision))
        return overs + self._ask(taken_up)

    def _may_ask(self, index: int) -> bool:
        entry = self._entries.get(index)
        if entry is not None and entry.kling_task_id is not None:
            return True  # it costs nothing
        now = time.time()
        if self._operator.is_killed:
            raise KilledError("The Airflow task was killed; no more videos are asked for")
        most = self._operator.max_failures
        if self._state.stopped is None and most is not None and self._count_failures() > most:
            self._stop(f"{self._count_failures()} failed, more than max_failures={most}")
        if self._state.stopped is None and now >= self._state.attempt_ends_at:
            self._stop("execution_timeout is over")
        return self._state.stopped is None and now >= self._state.not_before

    def _obtain(self, entry: Entry) -> Obtained | None:
        """
        Ask for a video or take it up, as a task for it alone would.

        :return: None where it is not at the service now; what that means for it and the others is noted.
        :raises KlingError: where nothing more can be done in this attempt.
        """
        before = entry.record
        try:
            address = self._address(entry)
            obtained = self._submission(entry, address).obtain(deadline=time.time() + self._operator.timeout)
        except (LedgerError, KilledError):
            raise
        except UnknownSubmissionError as error:
            if entry.record != before:
                # Sent now. What an earlier attempt has sent says nothing of the service as it is.
                self._unknown_in_a_row += 1
            self._end_without(entry, error)
            if self._unknown_in_a_row >= MAX_UNKNOWN_IN_A_ROW:
                self._stop(f"the outcome of {self._unknown_in_a_row} submissions in a row is not known")
            return None
        except (RateLimitedError, UnreachableError) as error:
            self._pause(error)
            return None
        except (KeyRefusedError, NoCreditsError) as error:
            self._stop(error, for_good=not error.retryable)
            return None
        except KlingError as error:
            self._end_without(entry, error)
            return None
        self._unknown_in_a_row = 0
        return obtained

    def _pause(self, error: KlingError) -> None:
        """
        Ask for fewer at a time, and for none for a while; at last for none any more.

        That is when no video has been over for as long as one may take. A request that was taken is none that is over:
        a service that takes each and fails it as one too many would be asked for ever.
        """
        now = time.time()
        until = now + busy_pause(error)
        flying = len(self._flying())
        room = max(1, min(self._state.room, flying))
        self._state = replace(self._state, not_before=until, room=room)
        has_begun = any(entry.is_followed or entry.ended for entry in self._entries.values())
        if (isinstance(error, UnreachableError) and not has_begun) or (
            not flying and until >= self._state.progress_at + self._operator.timeout
        ):
            self._stop(error)
            return
        self._log.warning(
            "%s. At most %d videos at a time for now; more are asked for in %.0f s.",
            error.what,
            room,
            until - now,
        )

    def _stop(self, why: str | KlingError, *, for_good: bool = False) -> None:
        if self._state.stopped is None:
            # It goes through the database, in the trigger's arguments.
            told = error_text(why, most_characters=500) if isinstance(why, KlingError) else why
            self._state = replace(self._state, stopped=told, stopped_for_good=for_good)
            self._log.error("No more videos are asked for: %s", why)

    # The wait

    def _wait(self, flying: list[Entry]) -> list[tuple[Entry, Over]]:
        # What ended while this worker was busy needs no further one.
        ended = self._called_back()
        if told := [entry for entry in flying if entry.kling_task_id in ended]:
            return self._ask(told)
        now = time.time()
        more = bool(self._to_do()) and self._state.stopped is None
        wake_at = None
        if more and len(flying) < self._state.room:
            wake_at = max(self._state.not_before, now + LEAST_DEFERRAL)
        if self._operator.deferrable:
            self._defer(flying, enough=(len(flying) + 1) // 2 if more else len(flying), wake_at=wake_at)
        return self._wait_here(flying, wake_at)

    def _defer(self, flying: list[Entry], *, enough: int, wake_at: float | None) -> None:
        # Imported here: who only reads a Dag needs no trigger.
        from airflow_provider_kling.triggers.batch import KlingVideosTrigger

        now = time.time()
        ends_at = max([*(self._deadline(entry) for entry in flying), wake_at or now, now])
        self._log.info(
            "Deferring: the triggerer waits for %d videos; %d of %d have ended.",
            len(flying),
            sum(entry.ended is not None for entry in self._entries.values()),
            len(self._items),
        )
        kept = self._ledger.of_attempt_kept()
        state = replace(self._state, known=len(kept), billable=sum(entry.may_be_billed for entry in kept))
        submissions = [entry.submission if self._is_called_back(entry) else None for entry in flying]
        self._operator.defer(
            trigger=KlingVideosTrigger(
                kling_conn_id=self._hook.kling_conn_id,
                videos=[
                    [entry.kling_task_id, self._deadline(entry), _submitted_at(entry)] for entry in flying
                ],
                poll_interval=self._operator.poll_interval,
                enough=enough,
                wake_at=wake_at,
                state=state.to_dict(),
                submissions=submissions if self._operator.callback else (),
                callback_poll_interval=self._callback_interval,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=ends_at - now) + DEFER_NET,
        )

    def _called_back(self) -> dict[str, Outcome]:
        """Return which videos callbacks have told to be over since this was last asked, and how they ended."""
        if not self._operator.callback:
            return {}
        try:
            told = own_xcom(self._context, XCOM_OVER) or {}
            new = {str(its): Outcome(how) for its, how in told.items() if its not in self._told}
        except Exception as error:  # noqa: BLE001 - the trigger finds out too, if later
            self._log.warning("What callbacks told cannot be read: %s: %s", type(error).__name__, error)
            return {}
        self._told.update(new)
        return new

    def _is_called_back(self, entry: Entry) -> bool:
        """Tell whether the service will tell of a video's end. Whose end was told once is not told of again."""
        if not self._operator.callback or entry.kling_task_id in self._told:
            return False
        return not self._item(entry.index).fields.get("callback_url")

    def _address(self, entry: Entry) -> CallbackAddress | None:
        called = self._is_called_back(entry)
        return CallbackAddress(self._context, self._hook, entry.name) if called else None

    def _wait_here(self, flying: list[Entry], wake_at: float | None) -> list[tuple[Entry, Over]]:
        """Hold this worker until one of them is over, or there is room for more."""
        while True:
            now = time.time()
            for entry in flying:
                if entry.index not in self._waits:
                    waiting = self._waiting(entry)
                    self._waits[entry.index] = (waiting, waiting.begin(now).at)
            due_at = min((self._waits[entry.index][1] for entry in flying), default=math.inf)
            time.sleep(max(0.0, min(due_at, wake_at or math.inf) - now))
            overs = self._ask([entry for entry in flying if self._waits[entry.index][1] <= time.time()])
            if overs or (wake_at is not None and time.time() >= wake_at):
                return overs

    def _ask(self, entries: Sequence[Entry]) -> list[tuple[Entry, Over]]:
        """Ask for each once, and return those that are over."""
        for entry in entries:
            self._waits.setdefault(entry.index, (self._waiting(entry), 0.0))
        overs = []
        asked = self._side_by_side(lambda entry: self._hook.ask_once(self._waits[entry.index][0]), entries)
        for entry, decision in zip(entries, asked, strict=True):
            if isinstance(decision, AskAgain):
                self._waits[entry.index] = (self._waits[entry.index][0], decision.at)
            else:
                del self._waits[entry.index]
                overs.append((entry, decision))
        return overs

    def _waiting(self, entry: Entry) -> Waiting:
        return Waiting(
            str(entry.kling_task_id),
            deadline=self._deadline(entry),
            poll_interval=self._operator.poll_interval,
            started=_submitted_at(entry),
            max_failures=self._max_failures,
        )

    def _deadline(self, entry: Entry) -> float:
        return min(float((entry.record or {})["deadline"]), self._state.attempt_ends_at)

    # What came of it

    def _settle(self, overs: Sequence[tuple[Entry, Over]]) -> None:
        """Store what is completed, side by side, and note how all of them ended."""
        if not overs:
            return
        if time.time() >= self._state.not_before:
            self._state = replace(self._state, room=min(self._operator.max_in_flight, self._state.room + 1))
        noticed_at = time.time()
        ready = []
        brought = list(self._side_by_side(self._bring, overs))
        if not all(_is_turned_away(found) for found in brought):
            self._state = replace(self._state, progress_at=time.time())
        for (entry, _), found in zip(overs, brought, strict=True):
            if _is_turned_away(found):
                self._open_again(entry)
                self._pause(found)
            elif isinstance(found, KlingError):
                self._end_without(entry, found)
            elif found is None:
                self._open_again(entry)
            else:
                ready.append((entry, *found))
        until = time.monotonic() + DEFAULT_PATIENCE

        def complete(its: tuple[Entry, VideoTask, list[StoredFile]]) -> dict[str, Any] | KlingError:
            entry, task, files = its
            # All of a wave have one patience: most are settled by now, and a worker waits for the others.
            patience = max(0.0, until - time.monotonic())
            recorded = recorded_cost(self._hook, task.task_id, patience=patience, log=self._log)
            is_counted = self._obtained(entry).was_delivered
            return self._complete(entry, task, files, recorded, None if is_counted else noticed_at)

        for (entry, _, _), result in zip(ready, self._side_by_side(complete, ready), strict=True):
            if isinstance(result, KlingError):
                self._end_without(entry, result)
            else:
                self._submission(entry).delivered(self._obtained(entry))
                self._ledger.end(entry, completed(result))

    def _bring(self, its: tuple[Entry, Over]) -> tuple[VideoTask, list[StoredFile]] | KlingError | None:
        """Return a completed task and its files, why there are none, or None where it has to be asked for anew."""
        entry, over = its
        delivery = self._delivery(self._item(entry.index).output_path)
        settlement = Settlement(
            self._submission(entry),
            delivery,
            on_expired_result=self._operator.on_expired_result,
            log=self._log,
        )
        obtained = self._obtained(entry)
        try:
            task = settlement.finish(obtained, over)
        except KlingError as error:
            return error
        try:
            return None if task is None else (task, delivery.store(task))
        except KlingError as error:
            settlement.say_what_a_retry_does(error, obtained)
            return error

    def _complete(
        self,
        entry: Entry,
        task: VideoTask,
        files: Sequence[StoredFile],
        recorded: RecordedCost | None,
        noticed_at: float | None,
    ) -> dict[str, Any] | KlingError:
        delivery = self._delivery(self._item(entry.index).output_path)
        asked = self._order(entry.index).asked if entry.index < len(self._items) else None
        try:
            return delivery.complete(task, asked, files, recorded, noticed_at=noticed_at)
        except KlingError as error:
            return error

    def _end_without(self, entry: Entry, error: KlingError) -> None:
        asked = self._order(entry.index).asked if entry.index < len(self._items) else None
        metrics.failed(error, asked)
        self._log.error("requests[%d]: %s", entry.index, error)
        told = failed(
            error,
            kling_task_id=entry.kling_task_id,
            # One that the service has is billed when it is completed, whatever keeps us from asking for it.
            paid=Paid.MAYBE if error.paid is Paid.NO and entry.kling_task_id else error.paid,
            estimated_cost_usd=asked.estimated_cost_usd if asked else None,
        )
        self._ledger.end(entry, told)

    def _open_again(self, entry: Entry) -> None:
        entry.is_followed = entry.is_attached = False
        self._ledger.touch(entry)

    def _count_failures(self) -> int:
        return sum(
            entry.ended is not None and entry.ended["outcome"] != Ended.COMPLETED
            for entry in self._entries.values()
        )

    def _finish(self) -> dict[str, Any]:
        total = max(len(self._items), max(self._entries, default=-1) + 1)
        ended = [entry.ended if (entry := self._entries.get(index)) else None for index in range(total)]
        results = video_results(ended)
        counts = summary(results)
        self._log.info("The videos of this task:\n%s", table(results))
        told = {**counts, "results": results, "results_path": None}
        if len(results) > MOST_IN_XCOM:
            told["results"] = None
        if self._results_at is not None:
            try:
                told["results_path"] = self._write_results(document(results, counts, self._coordinates))
            except StorageError:
                self._leave(told)
                raise
        self.ended = ended
        self._counts_at_end = {**counts, "recorded_videos": _recorded(results)}
        self._results_path = told["results_path"]
        if self._is_success(counts):
            self._show(CardState.COMPLETED)
            self._tell_outlets(told)
            return told
        self._leave(told)
        raise failure(
            results,
            ended,
            stopped=self._state.stopped,
            may_retry=self._state.stopped is not None and not self._state.stopped_for_good,
            is_kept=self._ledger.is_kept,
            results_at=told["results_path"] or "this task's XCom 'return_value'",
        )

    def _leave(self, told: Mapping[str, Any]) -> None:
        """Leave what there is: a task that fails returns nothing, and what it has is paid for."""
        self._context["ti"].xcom_push(key="return_value", value=told)

    def _tell_outlets(self, told: Mapping[str, Any]) -> None:
        files = []
        for index, its, path in paths_in(self.ended):
            extra = {name: its.get(name) for name in _TOLD_OF_A_FILE}
            files.append((uri_of(path), {**extra, "index": index, "path": path}))
        of_all = {name: value for name, value in told.items() if name != "results"}
        tell_outlets_of_many(self._context, self._operator.outlets, of_all, files, log=self._log)

    def _is_success(self, counts: Mapping[str, Any]) -> bool:
        missing = counts["total"] - counts["completed"]
        if counts[Ended.NOT_SUBMITTED]:
            return False  # whatever fail_on says: the list is not done
        if self._operator.fail_on is FailOn.ANY:
            return not missing
        return self._operator.fail_on is FailOn.NONE or not missing or bool(counts["completed"])

    def _write_results(self, text: str) -> str | None:
        from airflow_provider_kling.storage import write_text

        assert self._results_at is not None  # noqa: S101 - asked by the caller
        try:
            write_text(self._results_at, text)
        except Exception as error:
            retry = " A retry buys nothing and writes them again." if self._ledger.is_kept else ""
            raise StorageError(
                f"The results of all videos could not be written to {self._results_at}: "
                f"{type(error).__name__}: {error}",
                next_step=f"All that is made is paid for and stored.{retry}",
            ) from error
        return self._results_at

    # The parts of one video

    def _item(self, index: int) -> Item:
        # A list that renders shorter than it was when the attempt began has lost what its last videos were.
        return self._items[index] if index < len(self._items) else Item({}, self._operator.output_path)

    def _order(self, index: int) -> Order:
        if index not in self._orders:
            try:
                request = self._items[index].request
            except InvalidRequestError as error:
                raise InvalidRequestError([at_place(index, fault) for fault in error.faults]) from error
            self._orders[index] = Order(self._hook, request, log=self._log)
        return self._orders[index]

    def _entry(self, index: int) -> Entry:
        entry = self._entries.get(index)
        if entry is None:
            entry = self._entries[index] = self._bind(index)
        elif not entry.fingerprint:
            # This attempt has given it its place, however the list renders now.
            with contextlib.suppress(InvalidRequestError, FileUnavailableError):
                entry.fingerprint = self._fingerprint(self._order(index).identity())
        return entry

    def _delivery(self, output_path: str | None) -> Delivery:
        if output_path not in self._deliveries:
            try:
                output = OutputPath(output_path, self._operator.output_conn_id) if output_path else None
            except ValueError as error:
                raise OutputUnusableError(str(error)) from error
            self._deliveries[output_path] = Delivery(self._hook, self._context, output=output, log=self._log)
        return self._deliveries[output_path]

    def _submission(self, entry: Entry, callback: CallbackAddress | None = None) -> Submission:
        # The receiver knows no operator's own ledger.
        is_shared = self._operator.ledger_path in (None, config.ledger_path())
        return Submission(
            self._hook,
            self._ledger.ledger_of(entry),
            self._order(entry.index) if entry.index < len(self._items) else None,
            on_unknown_submission=self._operator.on_unknown_submission,
            log=self._log,
            is_killed=lambda: self._operator.is_killed,
            callback=callback,
            is_brought_home=callback is not None and is_shared,
        )

    def _obtained(self, entry: Entry) -> Obtained:
        text = self._ledger.read_record(entry)
        return Obtained(
            str(entry.kling_task_id),
            self._deadline(entry),
            _submitted_at(entry),
            is_from_earlier_attempt=entry.is_attached,
            record=None if text is None else Record.model_validate_json(text),
        )

    def _side_by_side(self, do: Callable[[_In], _Out], each: Sequence[_In]) -> Iterator[_Out]:
        if len(each) < 2 or not THREADS_MAY_ASK_AIRFLOW:
            return iter([do(one) for one in each])
        with contextlib.suppress(KlingError):
            self._hook.get_conn()  # once, and not once in each thread; who needs it tells what is wrong
        with ThreadPoolExecutor(min(SIDE_BY_SIDE, len(each)), thread_name_prefix="kling-batch") as threads:
            return iter(list(threads.map(do, each)))


def _is_turned_away(found: object) -> TypeGuard[TooManyTasksError]:
    """Tell whether the service failed a task only because it had too many. Its word that a retry is hopeless wins."""
    return isinstance(found, TooManyTasksError) and found.retryable


def _named(kling_task_ids: Sequence[str]) -> str:
    """Return them as text, of many the first and how many more there are; nothing where there is none."""
    named = ", ".join(kling_task_ids[:MOST_IDS_NAMED])
    more = len(kling_task_ids) - MOST_IDS_NAMED
    return f"{named} and {more} more" if more > 0 else named


def _submitted_at(entry: Entry) -> float:
    record = entry.record or {}
    return float(record.get("submitted_at") or record["intent_at"])


def _recorded(results: Sequence[Mapping[str, Any]]) -> int:
    return sum(result["recorded_cost_usd"] is not None for result in results)
