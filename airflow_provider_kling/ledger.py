"""
Remembers a submission across retries, restarts and crashes, so that no video is bought twice or lost.

The service has no idempotency key and no list of tasks. So an intent is written before the POST and the task id
right after it, under a key that every attempt of one task instance shares. What the next attempt finds tells it
what to do; :mod:`airflow_provider_kling.submission` decides that.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

from airflow.providers.common.compat.sdk import ObjectStoragePath
from pydantic import BaseModel, ConfigDict, ValidationError

from airflow_provider_kling.airflow_versions import AIRFLOW_V_3_3_PLUS
from airflow_provider_kling.api.errors import KlingError, Paid
from airflow_provider_kling.arguments import ledger_at
from airflow_provider_kling.disk import sync_directory
from airflow_provider_kling.output_path import Coordinates

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

_GENERATION = re.compile(r"[0-9]{6}\.json")

VERSION = 1
"""Version of the record's form. A record of another version is left alone."""
STORE_KEY = "kling_submission"
"""Key of the record in Airflow's task state store."""


class LedgerError(KlingError):
    """The ledger could not be read or written, or does not belong to this attempt any more; nothing was sent."""

    default_retryable = True
    default_next_step = (
        "Without it a video could be bought twice, so nothing was sent. A retry tries the ledger again."
    )


class RecordState(StrEnum):
    """How far a submission has come."""

    INTENT = "intent"
    """A POST may have been made; its outcome is not known."""
    SUBMITTED = "submitted"
    """The service took the task; its id is known."""
    COMPLETED = "completed"
    """The video was delivered."""
    FREE = "free"
    """Nothing was bought: the service turned the request away, or the task failed."""


class SubmissionKey(BaseModel):
    """What all attempts of a task instance share. The try number and the task instance's id change with each."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    dag_id: str
    run_id: str
    task_id: str
    map_index: int

    @classmethod
    def of(cls, context: Context) -> SubmissionKey:
        """Read it from a task's context."""
        return cls(**asdict(Coordinates.of(context)))

    @property
    def path(self) -> str:
        """A relative directory for this key alone, readable and safe."""
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]
        return "/".join((_slug(self.dag_id), _slug(self.run_id), f"{_slug(self.task_id)}.{digest}"))


class Record(BaseModel):
    """
    What the ledger holds of one submission.

    :param fingerprint: of the request and the connection; see :func:`fingerprint`.
    :param state: how far it has come.
    :param generation: which record of this submission it is, from 1.
    :param owner: the attempt that wrote the intent.
    :param intent_at: when the POST was last about to be made, epoch seconds.
    :param deadline: until when the video is waited for, epoch seconds; fixed at the submission.
    :param kling_task_id: the service's task id.
    :param submitted_at: when the service took the task, epoch seconds.
    :param earlier: task ids, or ``unknown``, of submissions that this one took the place of.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    version: int = VERSION
    key: SubmissionKey
    fingerprint: str
    state: RecordState
    generation: int
    owner: str
    intent_at: float
    deadline: float
    kling_task_id: str | None = None
    submitted_at: float | None = None
    earlier: tuple[str, ...] = ()


def fingerprint(identity: Mapping[str, Any], *, kling_conn_id: str, base_url: str) -> str:
    """
    Tell requests apart: what is asked for and whom.

    The callback URL differs between attempts, and a key may be replaced by another one of the same account,
    so neither counts.

    :param identity: the request's body, with each file that is uploaded as its checksum: its URL differs each time.
    """
    body = {name: value for name, value in identity.items() if name != "callback_url"}
    asked = {"body": body, "kling_conn_id": kling_conn_id, "base_url": base_url}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class LedgerStore(ABC):
    """
    Where the records of one submission are kept. Its errors may be of any class.

    Each intent is a generation of its own. Who writes generation N first owns it; nobody overwrites another one's.
    """

    is_lasting: ClassVar[bool] = True
    """Whether what is kept outlives the attempt."""

    @property
    def claims(self) -> bool:
        """Whether a new generation that was written is this attempt's for certain, and need not be read again."""
        return False

    @property
    @abstractmethod
    def place(self) -> str:
        """Where a person finds the record."""

    @abstractmethod
    def read(self) -> str | None:
        """Return the newest record's text; None only where there certainly is none."""

    @abstractmethod
    def write(self, text: str, generation: int, *, new: bool) -> None:
        """
        Keep a record's text, all of it or nothing.

        :param generation: which record of this submission it is, from 1.
        :param new: this generation must not be there yet; raises ``FileExistsError`` where the store can tell.
        """


class TaskStateLedgerStore(LedgerStore):
    """
    Airflow's task state store (3.3 and later), which holds the newest generation only.

    A superseded attempt cannot write there, so there is one writer at a time. When such an attempt reads, it is
    told "not there": that is why an intent is always written before a POST.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    @property
    def claims(self) -> bool:
        """Whether a new generation is this attempt's for certain: a superseded attempt cannot write."""
        return True

    @property
    def place(self) -> str:
        """Where a person finds the record."""
        return f"Airflow's task state store, key {STORE_KEY!r}"

    def read(self) -> str | None:
        """Return the newest record's text; None only where there certainly is none."""
        value = self._store.get(STORE_KEY)
        return value if value is None or isinstance(value, str) else json.dumps(value)

    def write(self, text: str, generation: int, *, new: bool) -> None:
        """Keep a record's text for ever: Airflow's own retention could end before the last retry."""
        from airflow.sdk.execution_time.context import NEVER_EXPIRE

        self._store.set(STORE_KEY, text, retention=NEVER_EXPIRE)


class FileLedgerStore(LedgerStore):
    """
    JSON files in a directory on local disk or object storage, for any version of Airflow.

    On local disk a generation is claimed atomically. Object storage promises no such thing through Airflow, so there
    two attempts that live at the same time can both believe to own it, if they write within the same moment.
    """

    def __init__(self, directory: ObjectStoragePath) -> None:
        self._directory = directory
        self._local = Path(directory.path) if directory.protocol in ("", "file", "local") else None

    @classmethod
    def at(cls, path: str, key: SubmissionKey) -> FileLedgerStore:
        """Open the one of a submission below a ``ledger_path``, where its worker and the receiver meet."""
        return cls(ObjectStoragePath(path) / key.path)

    @property
    def claims(self) -> bool:
        """Whether a new generation is this attempt's for certain: on local disk, where it is claimed by a hard link."""
        return self._local is not None

    @property
    def place(self) -> str:
        """Where a person finds the record."""
        return str(self._directory)

    def read(self) -> str | None:
        """Return the newest record's text; None only where there certainly is none."""
        names = [name for name in self.names() if _GENERATION.fullmatch(name)]
        return self.read_file(names[-1]) if names else None

    def write(self, text: str, generation: int, *, new: bool) -> None:
        """Keep a record's text under its name only when all of it is written."""
        self.write_file(f"{generation:06}.json", text, new=new)

    def names(self) -> list[str]:
        """Return the names of the files that are there, in order."""
        try:
            if self._local is not None:
                return sorted(path.name for path in self._local.iterdir())
            storage = self._directory.fs
            storage.invalidate_cache()
            # The path's own iterdir cannot tell a directory that is not there from one that cannot be listed just now.
            found = storage.ls(self._directory.path, detail=False)
            return sorted(path.rstrip("/").rpartition("/")[2] for path in found)
        except FileNotFoundError:
            return []

    def read_file(self, name: str) -> str:
        """Return the text of a file that is there."""
        return str(((self._local or self._directory) / name).read_text(encoding="utf-8"))

    def write_file(self, name: str, text: str, *, new: bool = False) -> None:
        """
        Keep a text under a name, all of it or nothing.

        :param new: there must be no such file yet; raises ``FileExistsError`` where the store can tell.
        """
        if self._local is None:
            # An object appears whole or not at all.
            path = self._directory / name
            # Listed anew: the path's own exists answers from a listing that may be as old as this process.
            if new and name in self.names():
                raise FileExistsError(str(path))
            path.write_text(text, encoding="utf-8")
            return
        self._local.mkdir(parents=True, exist_ok=True)
        partial = self._local / f".{uuid4().hex}"
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            if new:
                (self._local / name).hardlink_to(partial)
            else:
                partial.replace(self._local / name)
        finally:
            partial.unlink(missing_ok=True)
        sync_directory(self._local)


class Ledger:
    """
    The record of one submission, as one attempt sees it.

    :param store: where it is kept; None for nowhere, and then nothing is remembered.
    :param key: whose submission it is.
    :param owner: what tells this attempt apart from others; drawn by chance unless given.
    """

    write_tries: ClassVar[int] = 5
    """How often the task id is written before it counts as lost."""

    def __init__(self, store: LedgerStore | None, key: SubmissionKey, *, owner: str | None = None) -> None:
        self._store = store
        self._key = key
        self._owner = owner or uuid4().hex

    @property
    def is_kept(self) -> bool:
        """Whether anything is remembered for the next attempt."""
        return self._store is not None and self._store.is_lasting

    @property
    def place(self) -> str:
        """Where a person finds the record."""
        return self._store.place if self._store else "nowhere"

    def find(self) -> Record | None:
        """
        Return what an earlier attempt left, None only where there certainly is nothing.

        :raises LedgerError: where it cannot be told, or where what is there is no record of this submission.
        """
        if self._store is None:
            return None
        try:
            text = self._store.read()
        except LedgerError:
            raise
        except Exception as error:
            raise LedgerError(f"The ledger at {self.place} could not be read: {_told(error)}") from error
        return None if text is None else self._parse(text)

    def intend(self, asked: str, *, deadline: float, replaced: Record | None = None) -> Record:
        """
        Write that a POST is about to be made.

        :param asked: the request's fingerprint.
        :param deadline: until when the video will be waited for, epoch seconds.
        :param replaced: the record that this one takes the place of; its task id stays named in the new one.
        :raises LedgerError: where it cannot be written, or another attempt was quicker.
        """
        record = Record(
            key=self._key,
            fingerprint=asked,
            state=RecordState.INTENT,
            generation=replaced.generation + 1 if replaced else 1,
            owner=self._owner,
            intent_at=time.time(),
            deadline=deadline,
            earlier=_earlier(replaced),
        )
        self._write(record, new=True)
        if self._store is not None and not self._store.claims:
            self._check_owner()
        return record

    def renew(self, record: Record) -> Record:
        """
        Write the intent once more, right before a POST that comes later than it.

        :raises LedgerError: where another attempt has taken over.
        """
        self._check_owner()
        renewed = record.model_copy(update={"intent_at": time.time()})
        self._write(renewed)
        return renewed

    def submitted(self, record: Record, kling_task_id: str, *, at: float | None = None) -> Record:
        """
        Write the task id that the service gave.

        :param at: when it took the task, epoch seconds; None for just now.
        :raises LedgerError: where it cannot be written: the task is paid for, and only this process knows it.
        """
        done = record.model_copy(
            update={
                "state": RecordState.SUBMITTED,
                "kling_task_id": kling_task_id,
                "submitted_at": time.time() if at is None else at,
            }
        )
        for left in reversed(range(self.write_tries)):
            try:
                self._write(done)
                break
            except LedgerError as error:
                if not left:
                    error.task_id, error.paid = kling_task_id, Paid.MAYBE
                    error.next_step = (
                        "The video was asked for and will be billed. Should this attempt end before it is delivered, "
                        "the next one cannot know of it: note the id."
                    )
                    raise
                time.sleep(0.2)
        return done

    def completed(self, record: Record) -> Record:
        """
        Write that the video was delivered.

        :raises LedgerError: where it cannot be written.
        """
        return self._close(record, RecordState.COMPLETED)

    def free(self, record: Record) -> Record:
        """
        Write that nothing was bought, or nothing that is of use, so that the next attempt may ask again.

        :raises LedgerError: where it cannot be written.
        """
        named = record.earlier if record.kling_task_id is None else (*record.earlier, record.kling_task_id)
        return self._close(record.model_copy(update={"earlier": named}), RecordState.FREE)

    def _close(self, record: Record, state: RecordState) -> Record:
        closed = record.model_copy(update={"state": state})
        self._write(closed)
        return closed

    def _check_owner(self) -> None:
        if self._store is None:
            return
        found = self.find()
        if found is None or found.owner != self._owner:
            raise LedgerError(
                f"Another attempt of this task has taken over the ledger at {self.place}",
                next_step="This attempt sends nothing more; the other one carries on.",
            )

    def _write(self, record: Record, *, new: bool = False) -> None:
        if self._store is None:
            return
        try:
            self._store.write(record.model_dump_json(), record.generation, new=new)
        except LedgerError:
            raise
        except FileExistsError as error:
            raise LedgerError(
                f"Another attempt of this task has just written to the ledger at {self.place}",
                next_step="Nothing was sent. A retry goes on from what it wrote.",
            ) from error
        except Exception as error:
            raise LedgerError(f"The ledger at {self.place} could not be written: {_told(error)}") from error

    def _parse(self, text: str) -> Record:
        problem = None
        try:
            document = json.loads(text)
            version = document.get("version") if isinstance(document, dict) else None
            if version != VERSION:
                problem = f"it is of version {version!r}, this package writes {VERSION}"
            else:
                record = Record.model_validate(document)
                if record.key == self._key:
                    return record
                problem = f"it is the record of {record.key}"
        except ValidationError as error:
            problem = f"it is damaged: {error.error_count()} of its fields are not as they should be"
        except ValueError:
            problem = "it is damaged, or was cut short when it was written"
        raise LedgerError(
            f"The ledger at {self.place} cannot be used: {problem}",
            next_step=(
                "It is left as it is, and nothing was sent, since a video may have been paid for already. "
                "Look into it; once you know, move it away and clear the task."
            ),
        )


def open_ledger(context: Context, ledger_path: str | None) -> Ledger:
    """
    Open the ledger of a task instance.

    :param ledger_path: directory on local disk or object storage; None for Airflow's own task state store, where
        there is one.
    :raises AirflowFailException: where that directory would be another one on another worker.
    """
    key = SubmissionKey.of(context)
    store: LedgerStore | None = None
    state_store = context.get("task_state_store") if AIRFLOW_V_3_3_PLUS else None
    if ledger_path:
        store = FileLedgerStore.at(ledger_at(ledger_path), key)
    elif state_store is not None:
        store = TaskStateLedgerStore(state_store)
    return Ledger(store, key)


def _earlier(record: Record | None) -> tuple[str, ...]:
    if record is None:
        return ()
    if record.state is RecordState.FREE:
        return record.earlier
    return (*record.earlier, record.kling_task_id or "unknown")


def _slug(name: str) -> str:
    # The digest in the file's name tells names apart that look alike after this.
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)[:80] or "_"


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
