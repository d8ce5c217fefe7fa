"""
Remembers the submissions of a whole list, so that a retry buys only what is not paid for.

Each video has a record of its own, as one alone has in :mod:`airflow_provider_kling.ledger`, and the same rules hold
for it. Its key is what is asked for, and which of the equal ones it is, so a list that comes back in another order
finds its videos. Many records share a page: what is written at once costs one call.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_kling.airflow_versions import AIRFLOW_V_3_3_PLUS
from airflow_provider_kling.arguments import ledger_at
from airflow_provider_kling.callbacks import submission_name
from airflow_provider_kling.ledger import (
    VERSION,
    FileLedgerStore,
    Ledger,
    LedgerError,
    LedgerStore,
    RecordState,
    SubmissionKey,
)
from airflow_provider_kling.xcom import own_xcom

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

PAGE_BYTES = 60_000
"""Largest page. Airflow's task state store takes values under 64 KB."""
PAGE_ENTRIES = 60
"""Records begun on one page: a finished one is seldom larger than 1 KB."""
STORE_KEY = "kling_videos"
"""Beginning of the keys of the pages in Airflow's task state store and in XCom."""
HOME_KEY = f"{STORE_KEY}_called_back"
"""Key of the page, in Airflow's task state store, of what callbacks tell of submissions that were lost."""

_CLAIM = re.compile(r"([0-9]{6})\.json")
_PAGE = re.compile(r"([0-9]{6})\.([0-9]{4})\.json")
_HOME = re.compile(r"[0-9a-f]+-[0-9]+\.json")
_RANK = {state.value: rank for rank, state in enumerate(RecordState)}
"""How far a record has come, among those of one generation."""
_DIGEST_CHARACTERS = 32


class Pages(ABC):
    """Where the pages of one list are kept. Errors may be of any class."""

    is_lasting: ClassVar[bool] = True
    """Whether they outlive the attempt."""

    @property
    @abstractmethod
    def place(self) -> str:
        """Where a person finds them."""

    def claim(self) -> int | None:
        """
        Begin an attempt, and leave every earlier one without a say.

        :return: the attempt's number, from 1; None where the store itself lets nobody but the newest attempt write.
        """
        return None

    def check(self, attempt: int) -> None:
        """
        Make sure that no later attempt has begun.

        :raises LedgerError: where one has.
        """
        return

    @abstractmethod
    def read(self, attempt: int) -> Iterator[tuple[int | None, Any]]:
        """Return all pages, of all attempts; with the number of each that this attempt may overwrite, else None."""

    @abstractmethod
    def write(self, attempt: int, number: int, document: Mapping[str, Any]) -> None:
        """Keep a page, all of it or nothing."""

    def bring_home(self, name: str, document: Mapping[str, Any]) -> None:
        """
        Keep what a callback tells of an entry, beside the pages: their attempt may be at work and overwrite these.

        :param name: the entry's.
        :param document: a page with this entry alone.
        """
        raise NotImplementedError(f"no callback can write to {self.place}")


class TaskStatePages(Pages):
    """Airflow's task state store (3.3 and later): a superseded attempt cannot write there."""

    def __init__(self, store: Any) -> None:
        self._store = store

    @property
    def place(self) -> str:
        """Where a person finds them."""
        return f"Airflow's task state store, keys {STORE_KEY!r}_N"

    def read(self, attempt: int) -> Iterator[tuple[int | None, Any]]:
        """Return all pages."""
        number = 0
        while (document := self._store.get(f"{STORE_KEY}_{number}")) is not None:
            yield number, document
            number += 1
        if (document := self._store.get(HOME_KEY)) is not None:
            yield None, document

    def write(self, attempt: int, number: int, document: Mapping[str, Any]) -> None:
        """Keep a page for ever: Airflow's own retention could end before the last retry."""
        from airflow.sdk.execution_time.context import NEVER_EXPIRE

        self._store.set(f"{STORE_KEY}_{number}", document, retention=NEVER_EXPIRE)


class FilePages(Pages):
    """
    JSON files on local disk or object storage.

    Each attempt writes pages of its own and overwrites none of another's, so one that was frozen and comes back
    spoils nothing.
    """

    def __init__(self, directory: ObjectStoragePath) -> None:
        self._files = FileLedgerStore(directory)
        self._owner = uuid4().hex

    @classmethod
    def at(cls, path: str, key: SubmissionKey) -> FilePages:
        """Open those of a list below a ``ledger_path``, where its worker and the receiver meet."""
        return cls(ObjectStoragePath(path) / key.path / "videos")

    @property
    def place(self) -> str:
        """Where a person finds them."""
        return self._files.place

    def claim(self) -> int:
        """Begin an attempt: its number is the first that nobody has."""
        attempt = max(self._claims(), default=0) + 1
        try:
            self._files.write(json.dumps({"owner": self._owner}), attempt, new=True)
        except FileExistsError as error:
            raise _overtaken(self.place) from error
        if json.loads(self._files.read_file(f"{attempt:06}.json")).get("owner") != self._owner:
            raise _overtaken(self.place)
        return attempt

    def check(self, attempt: int) -> None:
        """Make sure that no later attempt has begun."""
        if max(self._claims(), default=0) != attempt:
            raise _overtaken(self.place)

    def read(self, attempt: int) -> Iterator[tuple[int | None, Any]]:
        """Return all pages of all attempts."""
        for name in self._files.names():
            if found := _PAGE.fullmatch(name):
                number = int(found[2]) if int(found[1]) == attempt else None
                yield number, self._files.read_file(name)
            elif _HOME.fullmatch(name):
                yield None, self._files.read_file(name)

    def write(self, attempt: int, number: int, document: Mapping[str, Any]) -> None:
        """Keep a page under its name only when all of it is written."""
        self._files.write_file(f"{attempt:06}.{number:04}.json", json.dumps(document))

    def bring_home(self, name: str, document: Mapping[str, Any]) -> None:
        """Keep what a callback tells of an entry in a file of its own."""
        self._files.write_file(f"{name}.json", json.dumps(document))

    def _claims(self) -> list[int]:
        return [int(found[1]) for name in self._files.names() if (found := _CLAIM.fullmatch(name))]


class XComPages(Pages):
    """The task's own XCom: it lasts from one deferral to the next, and no longer than the attempt."""

    is_lasting = False

    def __init__(self, context: Context) -> None:
        self._context = context

    @property
    def place(self) -> str:
        """Where a person finds them."""
        return f"the task's XComs {STORE_KEY!r}_N"

    def read(self, attempt: int) -> Iterator[tuple[int | None, Any]]:
        """Return all pages."""
        number = 0
        while (document := own_xcom(self._context, f"{STORE_KEY}_{number}")) is not None:
            yield number, document
            number += 1

    def write(self, attempt: int, number: int, document: Mapping[str, Any]) -> None:
        """Keep a page."""
        self._context["ti"].xcom_push(key=f"{STORE_KEY}_{number}", value=document)


@dataclass(eq=False)
class Entry:
    """
    One video of the list.

    :param digest: of what is asked for: the beginning of its fingerprint.
    :param occurrence: which of the equal ones it is, from 0.
    :param fingerprint: the whole of it, as far as this process knows; see
        :func:`~airflow_provider_kling.ledger.fingerprint`.
    :param written: fingerprint of the request as it is written, where that names files: these may be gone by now.
    :param record: its record in the ledger, as JSON without what all records share.
    :param attempt: the last attempt that it belonged to.
    :param index: its place in that attempt's list, from 0.
    :param is_followed: whether that attempt has asked for it, or taken it up.
    :param is_attached: whether it took it up from an earlier one.
    :param ended: how it ended in that attempt, None while that is open. That of a completed video stays.
    """

    digest: str
    occurrence: int
    record: dict[str, Any] | None = None
    attempt: int = 0
    index: int = -1
    is_followed: bool = False
    is_attached: bool = False
    ended: dict[str, Any] | None = None
    written: str | None = None
    fingerprint: str = field(default="", repr=False)
    page: int | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Its key."""
        return f"{self.digest}-{self.occurrence}"

    @property
    def state(self) -> RecordState | None:
        """How far its submission has come; None where there is none."""
        return RecordState(self.record["state"]) if self.record else None

    @property
    def kling_task_id(self) -> str | None:
        """The service's task id, where the task is not one that failed."""
        if self.record is None or self.state is RecordState.FREE:
            return None
        return self.record.get("kling_task_id")

    @property
    def may_be_billed(self) -> bool:
        """Whether its video is or may be billed: it was asked for, and nobody knows that nothing came of that."""
        return self.state not in (None, RecordState.FREE)

    @property
    def submission(self) -> str | None:
        """What callbacks call its submission; None where there is none."""
        if self.record is None:
            return None
        return submission_name(str(self.record.get("owner")), int(self.record["generation"]), self.name)

    @property
    def came_home(self) -> bool:
        """Whether it ended as a request of unknown outcome, and a callback has told its task id since."""
        return self.ended is not None and not self.ended.get("task_id") and self.kling_task_id is not None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        told = {
            "record": self.record,
            "attempt": self.attempt,
            "index": self.index,
            "is_followed": self.is_followed,
            "is_attached": self.is_attached,
            "ended": self.ended,
            "written": self.written,
        }
        return {name: value for name, value in told.items() if value is not None and value is not False}

    @classmethod
    def from_json(cls, name: str, value: Mapping[str, Any]) -> Entry:
        """Read it. Raises one of ``KeyError``, ``TypeError``, ``ValueError`` where it is something else."""
        digest, _, occurrence = name.rpartition("-")
        record = value.get("record")
        if record is not None:
            RecordState(record["state"])
            int(record["generation"])
        return cls(
            digest,
            int(occurrence),
            record,
            int(value.get("attempt", 0)),
            int(value.get("index", -1)),
            bool(value.get("is_followed", False)),
            bool(value.get("is_attached", False)),
            value.get("ended"),
            value.get("written"),
        )

    def merge(self, other: Entry, *, is_changed: bool = False) -> None:
        """
        Take over what another copy of the same entry knows better.

        :param is_changed: whether this copy has changes that are not written yet. Then the other one is older in all
            but its record, which another process may have moved on.
        """
        if _progress(other.record) > _progress(self.record):
            self.record = other.record
        if not is_changed and (other.attempt, other.ended is not None) > (
            self.attempt,
            self.ended is not None,
        ):
            self.attempt, self.index = other.attempt, other.index
            self.is_followed, self.is_attached = other.is_followed, other.is_attached
            self.ended = other.ended
        self.page = other.page if self.page is None else self.page


class BatchLedger:
    """
    The records of all videos of one task instance, as one attempt sees them.

    What decides about money (an intent, a task id) is written at once where the store outlives the attempt; all else
    when :meth:`flush` is called.

    :param pages: where they are kept.
    :param key: whose they are.
    """

    def __init__(self, pages: Pages, key: SubmissionKey) -> None:
        self._pages = pages
        self._key = key
        self._owner = uuid4().hex
        self._entries: dict[str, Entry] = {}
        self._dirty: set[str] = set()
        self._written: set[int] = set()
        self._lock = threading.RLock()
        self.attempt = 0

    @property
    def is_kept(self) -> bool:
        """Whether anything is remembered for the next attempt."""
        return self._pages.is_lasting

    @property
    def place(self) -> str:
        """Where a person finds the records."""
        return self._pages.place

    def begin(self) -> None:
        """
        Begin a new attempt, and read what the earlier ones left.

        :raises LedgerError: where that cannot be read, or another attempt was quicker.
        """
        with self._telling("read"):
            claimed = self._pages.claim()
            self.attempt = claimed or 0
            self._load()
            if claimed is None:
                self.attempt = max((entry.attempt for entry in self._entries.values()), default=0) + 1

    def resume(self, attempt: int) -> None:
        """
        Go on with an attempt in another process.

        :raises LedgerError: where its records cannot be read.
        """
        self.attempt = attempt
        with self._telling("read"):
            self._load()

    def of_attempt(self) -> dict[int, Entry]:
        """Return what belongs to this attempt, by its place in the list."""
        return {entry.index: entry for entry in self._entries.values() if entry.attempt == self.attempt}

    def of_attempt_kept(self) -> list[Entry]:
        """Return what of this attempt is on a page, so that it will be there in the next process."""
        return [entry for entry in self.of_attempt().values() if entry.page is not None]

    def of_no_place(self) -> list[Entry]:
        """
        Return what earlier attempts bought, or may have bought, and this one has given no place in its list.

        What nobody has delivered comes first.
        """
        others = [
            entry for entry in self._entries.values() if entry.attempt != self.attempt and entry.may_be_billed
        ]
        return sorted(
            others, key=lambda entry: (entry.state is RecordState.COMPLETED, entry.attempt, entry.index)
        )

    def bind(self, index: int, fingerprint: str, written: str | None = None) -> Entry:
        """
        Return the entry for a place in this attempt's list: one that there is, where an earlier attempt left it.

        :param fingerprint: of what is asked for there.
        :param written: fingerprint of the request as it is written, where that names files.
        """
        digest, occurrence = fingerprint[:_DIGEST_CHARACTERS], 0
        while (entry := self._entries.get(Entry(digest, occurrence).name)) is not None:
            if entry.attempt != self.attempt:
                break
            occurrence += 1
        entry = entry or Entry(digest, occurrence)
        entry.fingerprint, entry.written = fingerprint, written
        self._entries[entry.name] = entry
        self._take(entry, index)
        return entry

    def bind_written(self, index: int, written: str) -> Entry | None:
        """
        Return the entry for a request whose files cannot be read any more.

        :param written: fingerprint of the request as it is written.
        :return: one that is paid for and has no other place yet; None where there is none.
        """
        for entry in self._entries.values():
            if entry.written == written and entry.attempt != self.attempt and entry.kling_task_id:
                self._take(entry, index)
                return entry
        return None

    def _take(self, entry: Entry, index: int) -> None:
        entry.attempt, entry.index = self.attempt, index
        entry.is_followed = entry.is_attached = False
        if entry.ended is not None and entry.ended.get("outcome") != "completed":
            entry.ended = None
        if entry.record is not None:
            self.touch(entry)

    def ledger_of(self, entry: Entry) -> Ledger:
        """Return one video's ledger."""
        return Ledger(_Slot(self, entry), self._key, owner=self._owner)

    def end(self, entry: Entry, ended: Mapping[str, Any]) -> None:
        """Note how a video ended in this attempt."""
        with self._lock:
            entry.ended = dict(ended)
            self.touch(entry)

    def reopen(self, entry: Entry) -> None:
        """Note that a video did not end yet."""
        with self._lock:
            entry.ended = None
            self.touch(entry)

    def called(self, submission: str) -> Entry | None:
        """
        Return the entry whose submission callbacks call so.

        :raises LedgerError: where the records cannot be read.
        """
        with self._telling("read"):
            self._load()
        return next((entry for entry in self._entries.values() if entry.submission == submission), None)

    def bring_home(self, entry: Entry, kling_task_id: str) -> bool:
        """
        Write which task became of a request whose answer was lost.

        :return: False where another video of the list is that task.
        :raises LedgerError: where it cannot be written.
        """
        if any(kling_task_id == its.kling_task_id for its in self._entries.values()):
            return False
        told = {
            "state": RecordState.SUBMITTED.value,
            "kling_task_id": kling_task_id,
            "submitted_at": time.time(),
        }
        home = Entry(entry.digest, entry.occurrence, {**(entry.record or {}), **told}, written=entry.written)
        with self._telling("written"):
            self._pages.bring_home(entry.name, self._page_of([home]))
        return True

    def flush(self) -> None:
        """
        Write all that is not written yet.

        :raises LedgerError: where it cannot be written.
        """
        with self._lock, self._telling("written"):
            pages = {self._entries[name].page for name in self._dirty}
            for page in sorted(page for page in pages if page is not None):
                self._write(page)

    def _load(self) -> None:
        for number, found in self._pages.read(self.attempt):
            if number is not None:
                self._written.add(number)
            document = json.loads(found) if isinstance(found, str) else found
            for name, value in self._videos(document).items():
                try:
                    entry = Entry.from_json(name, value)
                except (AttributeError, KeyError, TypeError, ValueError) as error:
                    raise _unusable(self.place, f"the record {name!r} is damaged") from error
                entry.page = number
                if name in self._entries:
                    self._entries[name].merge(entry, is_changed=name in self._dirty)
                else:
                    self._entries[name] = entry

    def _videos(self, document: Any) -> Mapping[str, Any]:
        if not isinstance(document, dict) or not isinstance(document.get("videos"), dict):
            raise _unusable(self.place, "a page is damaged, or was cut short when it was written")
        if document.get("version") != VERSION:
            raise _unusable(
                self.place,
                f"a page is of version {document.get('version')!r}, this package writes {VERSION}",
            )
        if document.get("key") != self._key.model_dump():
            raise _unusable(self.place, f"a page is of {document.get('key')}")
        videos: Mapping[str, Any] = document["videos"]
        return videos

    def touch(self, entry: Entry) -> None:
        """Note that an entry has changed, for the next :meth:`flush`."""
        with self._lock:
            if entry.page is None:
                entry.page = self._page_with_room()
            self._dirty.add(entry.name)

    def _page_with_room(self) -> int:
        counts: dict[int, int] = {}
        for entry in self._entries.values():
            if entry.page is not None:
                counts[entry.page] = counts.get(entry.page, 0) + 1
        last = max(counts, default=0)
        return last if counts.get(last, 0) < PAGE_ENTRIES else last + 1

    def _write(self, page: int) -> None:
        on_it = [entry for entry in self._entries.values() if entry.page == page]
        document = self._page_of(on_it)
        if len(json.dumps(document)) > PAGE_BYTES and len(on_it) > 1:
            # The new page first: what is on both for a moment is read as one.
            new = max(entry.page for entry in self._entries.values() if entry.page is not None) + 1
            for entry in on_it[len(on_it) // 2 :]:
                entry.page = new
            self._write(new)
            self._write(page)
            return
        # They are read one after the other to the first that is not there, so there may be no gap.
        for earlier in range(page):
            if earlier not in self._written:
                self._write(earlier)
        self._pages.write(self.attempt, page, document)
        self._written.add(page)
        self._dirty.difference_update(entry.name for entry in on_it)

    def _page_of(self, entries: list[Entry]) -> dict[str, Any]:
        return {
            "version": VERSION,
            "key": self._key.model_dump(),
            "videos": {entry.name: entry.to_json() for entry in entries},
        }

    def read_record(self, entry: Entry) -> str | None:
        """Return the text of an entry's record, None where there is none."""
        with self._lock:
            record = entry.record
            if record and record["state"] == RecordState.INTENT.value and record.get("owner") != self._owner:
                self._load()  # whoever wrote it may be alive, and learn the task id only now
            if entry.record is None:
                return None
            shared = {
                "version": VERSION,
                "key": self._key.model_dump(),
                "fingerprint": entry.fingerprint,
            }
            return json.dumps(shared | entry.record)

    def write_record(self, entry: Entry, text: str) -> None:
        """Keep the text of an entry's record; at once where money hangs on it."""
        with self._lock:
            before = entry.record
            record = json.loads(text)
            entry.record = {
                name: value
                for name, value in record.items()
                if name not in ("version", "key", "fingerprint") and value not in (None, [])
            }
            self.touch(entry)
            if not self.is_kept or record["state"] not in (RecordState.INTENT, RecordState.SUBMITTED):
                return
            assert entry.page is not None  # noqa: S101 - it was touched
            if record["state"] == RecordState.SUBMITTED:
                self._write(entry.page)
                return
            try:
                self._write(entry.page)
                # After the write: of two attempts that begin at the same time, one sees the other.
                self._pages.check(self.attempt)
            except Exception:
                entry.record = before  # nothing is sent
                with contextlib.suppress(Exception):
                    self._write(entry.page)
                raise

    def _telling(self, done: str) -> _Telling:
        return _Telling(self.place, done)


class _Slot(LedgerStore):
    """One entry, as a store for a single video's ledger."""

    def __init__(self, book: BatchLedger, entry: Entry) -> None:
        self._book = book
        self._entry = entry

    @property
    def is_lasting(self) -> bool:  # type: ignore[override]
        """Whether what is kept outlives the attempt."""
        return self._book.is_kept

    @property
    def place(self) -> str:
        """Where a person finds the record."""
        return f"{self._book.place}, record {self._entry.name}"

    def read(self) -> str | None:
        """Return the record's text; None only where there certainly is none."""
        return self._book.read_record(self._entry)

    def write(self, text: str, generation: int, *, new: bool) -> None:
        """Keep a record's text. Which attempt may write, the whole ledger knows."""
        self._book.write_record(self._entry, text)


class _Telling:
    """Lets every error of a store leave as one of the ledger."""

    def __init__(self, place: str, done: str) -> None:
        self._place = place
        self._done = done

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, LedgerError):
            raise LedgerError(
                f"The ledger at {self._place} could not be {self._done}: {type(error).__name__}: {error}"
            ) from error


def open_batch_ledger(context: Context, ledger_path: str | None) -> BatchLedger:
    """
    Open the ledger of a task instance that makes many videos.

    :param ledger_path: directory on local disk or object storage; None for Airflow's own task state store, where
        there is one. Where there is none, the task's XCom serves from one deferral to the next.
    :raises AirflowFailException: where that directory would be another one on another worker.
    """
    key = SubmissionKey.of(context)
    state_store = context.get("task_state_store") if AIRFLOW_V_3_3_PLUS else None
    pages: Pages
    if ledger_path:
        pages = FilePages.at(ledger_at(ledger_path), key)
    elif state_store is not None:
        pages = TaskStatePages(state_store)
    else:
        pages = XComPages(context)
    return BatchLedger(pages, key)


def _progress(record: Mapping[str, Any] | None) -> tuple[int, int, float]:
    if record is None:
        return (0, -1, 0.0)
    return int(record["generation"]), _RANK[record["state"]], float(record.get("intent_at") or 0)


def _overtaken(place: str) -> LedgerError:
    return LedgerError(
        f"Another attempt of this task has taken over the ledger at {place}",
        next_step="This attempt sends nothing more; the other one carries on.",
    )


def _unusable(place: str, problem: str) -> LedgerError:
    return LedgerError(
        f"The ledger at {place} cannot be used: {problem}",
        next_step=(
            "It is left as it is, and nothing was sent, since videos may have been paid for already. "
            "Look into it; once you know, move it away and clear the task."
        ),
    )
