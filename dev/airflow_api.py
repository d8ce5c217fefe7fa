"""A small client of Airflow's REST API (``/api/v2``, Airflow 3)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote

import requests

GIVE_UP = 900.0
"""Seconds after which what is waited for will not come any more, on however busy a machine."""

_PAGE = 100
_POLL = 0.5
_SECONDS_PER_CALL = 90.0
_TASK_KEYS = ("dag_id", "run_id", "task_id", "map_index", "try_number", "ti_id")
_ON_EVERY_LINE = frozenset({"event", "timestamp", "level", "logger", "filename", "lineno", *_TASK_KEYS})


class ApiError(Exception):
    """
    Airflow's API refused a call.

    :param status: the HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class TaskInstance:
    """One task of a Dag run as Airflow sees it at one moment."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    """-1 where the task is not mapped."""
    state: str | None
    """``None`` before the scheduler has looked at it."""
    try_number: int
    has_trigger: bool
    """Whether a trigger waits for it."""
    details: Mapping[str, Any]
    """All that the API said, rendered fields among it."""

    @property
    def label(self) -> str:
        """Its name as people write it: with the index if it is mapped."""
        return self.task_id if self.map_index < 0 else f"{self.task_id}[{self.map_index}]"


class AirflowApi:
    """
    Airflow's REST API at a base URL such as ``http://127.0.0.1:8080``.

    :param login: name and password of the person who asks; without it Airflow has to let in anybody.
    :raises ApiError: from any method, when Airflow refuses the call.
    :raises requests.RequestException: from any method, when it cannot be reached.
    """

    def __init__(self, base_url: str, login: tuple[str, str] | None = None) -> None:
        self.base_url = base_url.rstrip("/")
        self._login = login
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy and no .netrc stands between us and the loopback interface

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        """Call ``/api/v2/<path>`` with arguments of ``requests`` (``params``, ``json``) and return the JSON answer."""
        response = self._send(method, path, **arguments)
        if response.status_code == requests.codes.unauthorized:
            self._log_in()
            response = self._send(method, path, **arguments)
        if not response.ok:
            raise ApiError(
                response.status_code,
                f"{method} {response.url}: {response.status_code} {response.text[:2000]}",
            )
        return response.json() if response.content else None

    def _send(self, method: str, path: str, **arguments: Any) -> requests.Response:
        return self._session.request(
            method, f"{self.base_url}/api/v2/{path}", timeout=_SECONDS_PER_CALL, **arguments
        )

    def _log_in(self) -> None:
        self._session.headers["Authorization"] = f"Bearer {self.token(self._login)}"

    def token(self, login: tuple[str, str] | None = None) -> str:
        """Return a new token of a person, by name and password; without these, Airflow has to let in anybody."""
        url = f"{self.base_url}/auth/token"
        if login is None:
            # With `[core] simple_auth_manager_all_admins` anybody gets a token.
            response = self._session.get(url, timeout=_SECONDS_PER_CALL)
        else:
            body = {"username": login[0], "password": login[1]}
            response = self._session.post(url, json=body, timeout=_SECONDS_PER_CALL)
        response.raise_for_status()
        return str(response.json()["access_token"])

    def health(self) -> dict[str, dict[str, str | None]]:
        """Return what Airflow says of its components' heartbeats."""
        return cast("dict[str, dict[str, str | None]]", self.call("GET", "monitor/health"))

    def import_errors(self) -> dict[str, str]:
        """Return the stack trace of every Dag file that could not be read, by file name."""
        found = self.call("GET", "importErrors", params={"limit": _PAGE})["import_errors"]
        return {error["filename"]: error["stack_trace"] for error in found}

    def dag_ids(self) -> set[str]:
        """Return the ids of the Dags that have been read."""
        return {dag["dag_id"] for dag in self._all("dags", "dags")}

    def unpause(self, dag_id: str) -> None:
        """Let a Dag's runs start."""
        self.call("PATCH", f"dags/{quote(dag_id, safe='')}", json={"is_paused": False})

    def trigger(
        self, dag_id: str, conf: Mapping[str, Any] | None = None, *, run_id: str | None = None
    ) -> str:
        """Start a run of a Dag that is not paused. Return its run id, which Airflow makes where none is given."""
        body: dict[str, Any] = {"conf": dict(conf or {}), "logical_date": None}
        if run_id is not None:
            body["dag_run_id"] = run_id
        return str(self.call("POST", f"dags/{quote(dag_id, safe='')}/dagRuns", json=body)["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return the state of a Dag run."""
        return str(self.call("GET", _run(dag_id, run_id))["state"])

    def run_ids(self, dag_id: str) -> list[str]:
        """Return the ids of a Dag's runs, oldest first."""
        return [run["dag_run_id"] for run in self._all(f"dags/{dag_id}/dagRuns", "dag_runs", order_by="id")]

    def task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        """Return the tasks of a run, mapped ones expanded, in the order of their names."""
        return sorted(
            (
                TaskInstance(
                    dag_id=found["dag_id"],
                    run_id=found["dag_run_id"],
                    task_id=found["task_id"],
                    map_index=found["map_index"],
                    state=found["state"],
                    try_number=found["try_number"],
                    has_trigger=found["trigger"] is not None,
                    details=found,
                )
                for found in self._all(f"{_run(dag_id, run_id)}/taskInstances", "task_instances")
            ),
            key=lambda task: (task.task_id, task.map_index),
        )

    def xcom(
        self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1
    ) -> Any:
        """Return the JSON value that a task has pushed under a key."""
        path = f"{_task(dag_id, run_id, task_id)}/xcomEntries/{quote(key, safe='')}"
        # As it is stored: which versions can also decode it, and how, differs.
        return self.call("GET", path, params={"map_index": map_index, "stringify": False})["value"]

    def xcom_keys(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> set[str]:
        """Return the keys that a task has pushed something under."""
        entries = self._all(
            f"{_task(dag_id, run_id, task_id)}/xcomEntries", "xcom_entries", map_index=map_index
        )
        return {entry["key"] for entry in entries if entry["map_index"] == map_index}

    def task_log(
        self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1
    ) -> str:
        """
        Return the log of one try as the UI shows it, the trigger's part included: one message a line.

        What else a message has, such as an exception's trace, follows it as JSON.
        """
        content = self.call(
            "GET",
            f"{_task(dag_id, run_id, task_id)}/logs/{try_number}",
            params={"map_index": map_index, "full_content": True},
            headers={"Accept": "application/json"},
        )["content"]
        return "\n".join(_line(entry) for entry in content)

    def wait_for_dag(self, dag_id: str, timeout: float = GIVE_UP) -> None:
        """
        Wait until a Dag has been read (at most ``timeout`` seconds).

        :raises TimeoutError: it has not been read. The text has the import errors, if there are any.
        """
        deadline = time.monotonic() + timeout
        while dag_id not in self.dag_ids():
            if time.monotonic() > deadline:
                errors = "\n".join(f"{file}:\n{trace}" for file, trace in self.import_errors().items())
                raise TimeoutError(
                    f"Dag {dag_id!r} was not read within {timeout:.0f} s. "
                    + (errors or "No file had an import error.")
                )
            time.sleep(_POLL)

    def watch_run(self, dag_id: str, run_id: str, timeout: float) -> Iterator[TaskInstance]:
        """
        Yield every task of a run whenever its state is seen to be another one, until the run is over.

        :raises TimeoutError: it was not over after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        seen: dict[str, tuple[str | None, int]] = {}
        while True:
            # Asked for first: what the tasks are like after a run has ended is what they were like at its end.
            run_state = self.run_state(dag_id, run_id)
            for task in self.task_instances(dag_id, run_id):
                now = (task.state, task.try_number)
                if seen.get(task.label) != now:
                    seen[task.label] = now
                    yield task
            if run_state in {"success", "failed"}:
                return
            if time.monotonic() > deadline:
                states = ", ".join(f"{label}: {state}" for label, (state, _) in seen.items())
                raise TimeoutError(
                    f"Run {run_id} of {dag_id} was not over after {timeout:.0f} s: {states or 'no task'}"
                )
            time.sleep(_POLL)

    def wait_for_run(self, dag_id: str, run_id: str, timeout: float = GIVE_UP) -> str:
        """
        Wait until a run is over (at most ``timeout`` seconds) and return its state, ``success`` or ``failed``.

        :raises TimeoutError: it was not over in time.
        """
        for _ in self.watch_run(dag_id, run_id, timeout):
            pass
        return self.run_state(dag_id, run_id)

    def wait_for_task(
        self,
        dag_id: str,
        run_id: str,
        task_id: str,
        state: str,
        *,
        map_index: int = -1,
        timeout: float = GIVE_UP,
    ) -> TaskInstance:
        """
        Wait until a task is in a state, such as ``deferred``, and return it.

        :raises TimeoutError: it was not within ``timeout`` seconds, or the run was over before.
        """
        deadline = time.monotonic() + timeout
        while True:
            over = self.run_state(dag_id, run_id) in {"success", "failed"}
            for task in self.task_instances(dag_id, run_id):
                if (task.task_id, task.map_index) == (task_id, map_index):
                    if task.state == state:
                        return task
                    if over or time.monotonic() > deadline:
                        raise TimeoutError(f"{task.label} of {dag_id} is {task.state}, not {state}")
            time.sleep(_POLL)

    def _all(self, path: str, key: str, **params: Any) -> Iterator[dict[str, Any]]:
        offset = 0
        while True:
            page = self.call("GET", path, params={"limit": _PAGE, "offset": offset, **params})
            yield from page[key]
            offset += len(page[key])
            if offset >= page["total_entries"] or not page[key]:
                return


def _run(dag_id: str, run_id: str) -> str:
    return f"dags/{quote(dag_id, safe='')}/dagRuns/{quote(run_id, safe='')}"


def _task(dag_id: str, run_id: str, task_id: str) -> str:
    return f"{_run(dag_id, run_id)}/taskInstances/{quote(task_id, safe='')}"


def _line(entry: str | dict[str, Any]) -> str:
    if isinstance(entry, str):
        return entry
    beside = {name: value for name, value in entry.items() if name not in _ON_EVERY_LINE}
    return (
        f"{entry.get('event', '')} {json.dumps(beside, default=str)}"
        if beside
        else str(entry.get("event", ""))
    )
