"""Airflow's metadata database as the plugin uses it. All of it blocks, so it runs in threads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow.models.connection import Connection
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from sqlalchemy import select, text, update
from sqlalchemy.exc import SQLAlchemyError

from airflow_provider_kling.hooks.settings import CONN_TYPE
from airflow_provider_kling.plugins.accounts import UnavailableError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from airflow_provider_kling.ledger import SubmissionKey
    from airflow_provider_kling.output_path import Coordinates


@contextmanager
def asking() -> Iterator[Session]:
    """
    Give a transaction.

    :raises UnavailableError: where the database cannot be asked.
    """
    try:
        with create_session() as session:
            yield session
    except (SQLAlchemyError, OSError) as error:
        # Its text may hold a statement's parameters.
        raise UnavailableError(f"the metadata database: {type(error).__name__}") from error


def check_database() -> None:
    """
    Ask the database for nothing.

    :raises UnavailableError: where it does not answer.
    """
    with asking() as session:
        session.execute(text("SELECT 1"))


def kling_conn_ids() -> frozenset[str]:
    """
    Return the ids of the connections of type ``kling`` that the database holds.

    :raises UnavailableError: where it does not answer.
    """
    with asking() as session:
        return frozenset(session.scalars(select(Connection.conn_id).where(Connection.conn_type == CONN_TYPE)))


def writes_can_run_side_by_side() -> bool:
    """Tell whether the database takes several writers at once: those of SQLite sleep until they may try again."""
    from airflow import settings

    return settings.engine is not None and settings.engine.dialect.name != "sqlite"


def lock(session: Session, *conditions: Any) -> bool:
    """
    Lock the task instance for which all of it holds, until the transaction's end. False where there is none.

    It is locked by writing to it: that holds on SQLite too, where a locking read locks nothing.
    """
    locked: Any = session.execute(
        update(TaskInstance)
        .where(*conditions)
        .values(trigger_id=TaskInstance.trigger_id)
        .execution_options(synchronize_session=False)
    )
    return bool(locked.rowcount == 1)


def xcom(session: Session, whose: SubmissionKey | Coordinates, name: str) -> Any:
    """
    Return an XCom of a task instance as the plain JSON that our tasks write; None where there is none.

    Nothing that somebody else wrote there becomes an object here. A text that is no JSON is returned as it is.
    """
    row = session.scalar(_xcom_row(whose, name))
    value = None if row is None else row.value
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def put_xcom(session: Session, key: SubmissionKey, name: str, value: Any) -> None:
    """Leave an XCom to a task instance, as plain JSON: so its worker would have stored it."""
    row = session.scalar(_xcom_row(key, name))
    if row is not None:
        row.value = value
        return
    run_number = session.scalar(
        select(DagRun.id).where(DagRun.dag_id == key.dag_id, DagRun.run_id == key.run_id)
    )
    row = XComModel(dag_run_id=run_number, key=name, value=value, **key.model_dump())
    session.add(row)
    session.flush()


def _xcom_row(whose: SubmissionKey | Coordinates, name: str) -> Any:
    return select(XComModel).where(
        XComModel.dag_id == whose.dag_id,
        XComModel.run_id == whose.run_id,
        XComModel.task_id == whose.task_id,
        XComModel.map_index == whose.map_index,
        XComModel.key == name,
    )
