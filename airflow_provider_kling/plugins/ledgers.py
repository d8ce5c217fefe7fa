"""The ledgers of tasks as the receiver reads them, and completes them where a submission was lost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from airflow.models.taskinstance import TaskInstance
from sqlalchemy import update

from airflow_provider_kling import config
from airflow_provider_kling.airflow_versions import AIRFLOW_V_3_3_PLUS
from airflow_provider_kling.batch_ledger import HOME_KEY, BatchLedger, FilePages, Pages
from airflow_provider_kling.batch_ledger import STORE_KEY as PAGES_KEY
from airflow_provider_kling.ledger import STORE_KEY, FileLedgerStore, Ledger, LedgerStore, SubmissionKey
from airflow_provider_kling.plugins.database import asking, lock


def open_ledger(key: SubmissionKey) -> Ledger | None:
    """Open the ledger of a task instance, as :func:`~airflow_provider_kling.ledger.open_ledger` does on a worker."""
    path = config.ledger_path()
    if path is not None:
        return Ledger(FileLedgerStore.at(path, key), key)
    return Ledger(MetadataLedgerStore(key), key) if AIRFLOW_V_3_3_PLUS else None


def open_batch_ledger(key: SubmissionKey) -> BatchLedger | None:
    """Open the ledger of a task that makes many videos, as its worker does; None where it outlives no attempt."""
    path = config.ledger_path()
    if path is not None:
        return BatchLedger(FilePages.at(path, key), key)
    return BatchLedger(MetadataPages(key), key) if AIRFLOW_V_3_3_PLUS else None


class MetadataLedgerStore(LedgerStore):
    """
    Airflow's task state store from the side of the API server (3.3 and later).

    The task's own worker may write at the same time. So what is written takes the place of what was read, or of
    nothing.

    :param key: whose record it is.
    """

    def __init__(self, key: SubmissionKey) -> None:
        from airflow.state import TaskScope

        self._scope = TaskScope(
            dag_id=key.dag_id, run_id=key.run_id, task_id=key.task_id, map_index=key.map_index
        )
        self._read: str | None = None

    @property
    def place(self) -> str:
        """Where a person finds the record."""
        return f"Airflow's task state store, key {STORE_KEY!r}"

    def read(self) -> str | None:
        """Return the record's text; None where there is none, or a worker keeps it in a place of its own."""
        from airflow.state import get_state_backend

        with asking() as session:
            self._read = get_state_backend().get(self._scope, STORE_KEY, session=session)
        value = None if self._read is None else json.loads(self._read)
        return value if isinstance(value, str) else None

    def write(self, text: str, generation: int, *, new: bool) -> None:
        """
        Put a record in the place of the one that was read.

        :raises FileExistsError: where there is another one by now.
        """
        from airflow.models.task_state_store import TaskStateStoreModel

        with asking() as session:
            written: Any = session.execute(
                update(TaskStateStoreModel)
                .where(
                    TaskStateStoreModel.dag_id == self._scope.dag_id,
                    TaskStateStoreModel.run_id == self._scope.run_id,
                    TaskStateStoreModel.task_id == self._scope.task_id,
                    TaskStateStoreModel.map_index == self._scope.map_index,
                    TaskStateStoreModel.key == STORE_KEY,
                    TaskStateStoreModel.value == self._read,
                )
                .values(value=json.dumps(text), updated_at=datetime.now(UTC), expires_at=None)
                .execution_options(synchronize_session=False)
            )
            if written.rowcount != 1:
                raise FileExistsError(self.place)


class MetadataPages(Pages):
    """
    The pages of a list in Airflow's task state store, from the side of the API server (3.3 and later).

    Its worker overwrites whole pages with what it knows. So what a callback tells has a page of its own.

    :param key: whose pages they are.
    """

    def __init__(self, key: SubmissionKey) -> None:
        from airflow.state import TaskScope

        self._key = key
        self._scope = TaskScope(**key.model_dump())

    @property
    def place(self) -> str:
        """Where a person finds them."""
        return f"Airflow's task state store, keys {PAGES_KEY!r}_N"

    def read(self, attempt: int) -> Iterator[tuple[int | None, Any]]:
        """Return all pages; none where a worker keeps them in a place of its own."""
        documents = []
        with asking() as session:
            number = 0
            while (document := self._page(session, f"{PAGES_KEY}_{number}")) is not None:
                documents.append(document)
                number += 1
            if (document := self._page(session, HOME_KEY)) is not None:
                documents.append(document)
        for document in documents:
            yield None, document

    def write(self, attempt: int, number: int, document: Mapping[str, Any]) -> None:
        """Refuse: the pages are their worker's."""
        raise NotImplementedError("the pages are their worker's")

    def bring_home(self, name: str, document: Mapping[str, Any]) -> None:
        """Add an entry to the page of what callbacks told."""
        from airflow.state import get_state_backend

        key = self._key
        with asking() as session:
            # The page may not be there yet, so what is locked is the task instance.
            lock(
                session,
                TaskInstance.dag_id == key.dag_id,
                TaskInstance.run_id == key.run_id,
                TaskInstance.task_id == key.task_id,
                TaskInstance.map_index == key.map_index,
            )
            home = self._page(session, HOME_KEY) or {"videos": {}}
            page = {**document, "videos": {**home["videos"], **document["videos"]}}
            get_state_backend().set(self._scope, HOME_KEY, json.dumps(page), expires_at=None, session=session)

    def _page(self, session: Any, key: str) -> dict[str, Any] | None:
        from airflow.state import get_state_backend

        text = get_state_backend().get(self._scope, key, session=session)
        value = None if text is None else json.loads(text)
        return value if isinstance(value, dict) and "videos" in value else None
