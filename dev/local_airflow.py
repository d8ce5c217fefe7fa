"""A real Airflow 3 on this machine: its own processes, on SQLite with the LocalExecutor, in a directory of its own."""

from __future__ import annotations

import base64
import configparser
import contextlib
import fcntl
import json
import os
import secrets
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import requests

from dev.airflow_api import GIVE_UP, AirflowApi, ApiError, TaskInstance
from dev.processes import LOOPBACK, GuardedProcess, free_port, inherited_environment

_POLL = 0.25

COMPONENTS: Mapping[str, Sequence[str]] = {
    "api-server": ("api-server",),
    # Task logs are files on this machine, which the API server reads; nobody needs them served on all interfaces.
    "scheduler": ("scheduler", "--skip-serve-logs"),
    "dag-processor": ("dag-processor",),
    "triggerer": ("triggerer", "--skip-serve-logs"),
}
"""Airflow's long-running processes and their command lines. The API server is first: the others talk to it."""


class AirflowFailedError(Exception):
    """Airflow did not start or stay up. The text has the end of the log that says why."""


class LocalAirflow:
    """
    Airflow's scheduler, Dag processor, triggerer and API server as processes of this machine.

    A context manager: entering waits until all of them are healthy, leaving ends them. They also end when the process
    that started them dies, however it dies (see ``dev.guard``), so nothing is ever left running. Everything listens on
    loopback only and asks for no password, unless ``config`` says otherwise.

    :param home: ``AIRFLOW_HOME``: made if missing; the database, the logs and the secrets in it are used again.
    :param dags: folders that hold Dag files.
    :param connections: URIs (or JSON) by connection id, given to the processes as ``AIRFLOW_CONN_…``.
    :param environment: further environment variables of the processes.
    :param config: further settings of Airflow, values by option by section; they win over the ones chosen here.
    :param components: the processes in the order of their start, as command lines of ``airflow`` by name.
    :param component_environment: environment variables of single components, by component.
    :param login: name and password with which ``api`` asks, where ``config`` has people log in.
    :param port: of the API server and its UI; a free one if ``None``.
    :param python: the interpreter whose Airflow is run; this one if not given.
    :param start_timeout: seconds until a component that gives no sign of life is given up, on entering.
    :raises AirflowFailedError: on entering, when a component ends, is not healthy in time, or ``home`` is in use.
    """

    def __init__(
        self,
        home: Path,
        *,
        dags: Sequence[Path],
        connections: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        config: Mapping[str, Mapping[str, str]] | None = None,
        components: Mapping[str, Sequence[str]] = COMPONENTS,
        component_environment: Mapping[str, Mapping[str, str]] | None = None,
        login: tuple[str, str] | None = None,
        port: int | None = None,
        python: Path | None = None,
        start_timeout: float = GIVE_UP,
    ) -> None:
        self.home = home.resolve()
        self.dags = [folder.resolve() for folder in dags]
        self.port = port or free_port()
        self.api = AirflowApi(self.url, login)
        self._config = config or {}
        self._commands = components
        self._component_environment = component_environment or {}
        self._python = str(python or sys.executable)
        self._start_timeout = start_timeout
        self._lock: IO[str] | None = None
        self._started_at: dict[str, datetime] = {}
        self.components: dict[str, GuardedProcess] = {}
        self.environment = {
            **inherited_environment(),
            "AIRFLOW_HOME": str(self.home),
            **{f"AIRFLOW_CONN_{name.upper()}": uri for name, uri in (connections or {}).items()},
            **(environment or {}),
        }

    @property
    def url(self) -> str:
        """The address of the UI, and of the API below it."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def logs(self) -> Path:
        """The folder of all logs: ``components/<name>.log`` and Airflow's own ``dag_id=…/run_id=…/task_id=…``."""
        return self.home / "logs"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything and wait until it is healthy. On any error everything is stopped again."""
        self.home.mkdir(parents=True, exist_ok=True)
        try:
            self._take_lock()
            self._write_config()
            self._migrate_database()
            for name in self._commands:
                self.start_component(name)
            self.wait_until_healthy(self._start_timeout)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End everything and wait until it is gone. Does nothing if nothing runs."""
        for component in self.components.values():
            component.ask_to_stop()  # all of them first: they take their time, and can take it together
        for component in self.components.values():
            component.stop()
        if self._lock:
            self._lock.close()
            self._lock = None

    def start_component(self, name: str) -> None:
        """
        Start one of its components, for the first time or again after ``kill`` or ``stop_component``.

        Returns at once; ``wait_until_healthy`` waits for it.

        :raises RuntimeError: it runs already.
        """
        if name in self.components and self.components[name].is_running:
            raise RuntimeError(f"Airflow's {name} runs already")
        self.components[name] = GuardedProcess(
            name,
            [self._python, "-m", "airflow", *self._commands[name]],
            environment={**self.environment, **self._component_environment.get(name, {})},
            directory=self.home,
            log=self.component_log(name),
            # The directory is free for another start only when the last process in it is gone.
            held=[self._lock.fileno()] if self._lock else [],
        )
        self._started_at[name] = datetime.now(UTC)
        self.components[name].start()

    def stop_component(self, name: str) -> None:
        """Stop one component as an operator of Airflow would: it may tidy up."""
        self.components[name].stop()

    def kill(self, name: str) -> None:
        """
        Kill one component with all its processes (SIGKILL), as a crash of its machine would.

        With the scheduler go the tasks that the LocalExecutor is running.
        """
        self.components[name].kill()

    def lose_scheduler(self) -> None:
        """
        Kill the scheduler with the tasks that it runs, and start another one, which misses the first at once.

        Airflow misses a scheduler whose last sign of life is older than ``[scheduler]
        scheduler_health_check_threshold``. Here that sign is made an old one, in SQLite: with a threshold so short that
        one can wait for it, a scheduler on a busy machine takes itself for dead and starts its own tasks anew.
        """
        self._lose("scheduler", "SchedulerJob")

    def lose_triggerer(self) -> None:
        """Kill the triggerer, and start another one, which misses the first at once and takes over its triggers."""
        self._lose("triggerer", "TriggererJob")

    def _lose(self, name: str, job_type: str) -> None:
        self.kill(name)
        with contextlib.closing(sqlite3.connect(self.database, timeout=60)) as connection, connection:
            connection.execute(
                "UPDATE job SET latest_heartbeat = '2000-01-01 00:00:00.000000' WHERE job_type = ?",
                [job_type],
            )
        self.start_component(name)
        self.wait_until_healthy()

    def component_log(self, name: str) -> Path:
        """Return the file that has a component's output since ``home`` was made."""
        return self.logs / "components" / f"{name}.log"

    def wait_until_healthy(self, timeout: float = GIVE_UP) -> None:
        """
        Wait until every component has given a sign of life since it was last started.

        :raises AirflowFailedError: one has ended, or ``timeout`` seconds are over.
        """
        deadline = time.monotonic() + timeout
        while silent := self._silent_components():
            for name in silent:
                if not self.components[name].is_running:
                    raise AirflowFailedError(self._story(f"Airflow's {name} ended", name))
            if time.monotonic() > deadline:
                names = ", ".join(silent)
                raise AirflowFailedError(
                    self._story(f"Airflow's {names} gave no sign of life within {timeout:.0f} s", silent[0])
                )
            time.sleep(_POLL)

    def _silent_components(self) -> list[str]:
        try:
            health = self.api.health()
        except (requests.RequestException, ApiError):
            return list(self._commands)
        silent = []
        for name in self._commands:
            key = name.replace("-", "_")
            if key in health:
                heartbeat = health[key][f"latest_{key}_heartbeat"]
                # A heartbeat from before the start is that of a predecessor, which Airflow may still hold for alive.
                if not heartbeat or datetime.fromisoformat(heartbeat) < self._started_at[name]:
                    silent.append(name)
        return silent

    def _story(self, what: str, name: str) -> str:
        log = self.component_log(name)
        return f"{what}. The end of {log}:\n\n{self.components[name].tail()}"

    def trigger(
        self, dag_id: str, conf: Mapping[str, Any] | None = None, *, run_id: str | None = None
    ) -> str:
        """Wait until a Dag has been read, unpause it, start a run of it, and return the run's id."""
        self.api.wait_for_dag(dag_id)
        self.api.unpause(dag_id)
        return self.api.trigger(dag_id, conf, run_id=run_id)

    def wait_for_run(self, dag_id: str, run_id: str, timeout: float = GIVE_UP) -> str:
        """Wait until a run is over (at most ``timeout`` seconds) and return its state, ``success`` or ``failed``."""
        return self.api.wait_for_run(dag_id, run_id, timeout)

    def run(self, dag_id: str, conf: Mapping[str, Any] | None = None, timeout: float = GIVE_UP) -> str:
        """
        Run a Dag to its end and return the run's id.

        :raises AirflowFailedError: the run failed. The text says where and why.
        :raises TimeoutError: it was not over after ``timeout`` seconds.
        """
        run_id = self.trigger(dag_id, conf)
        if self.wait_for_run(dag_id, run_id, timeout) != "success":
            raise AirflowFailedError(self.why_run_failed(dag_id, run_id))
        return run_id

    def wait_until_off_its_worker(
        self, dag_id: str, run_id: str, task_id: str, timeout: float = GIVE_UP
    ) -> None:
        """
        Wait until the scheduler has taken note that a task which waits has left its worker.

        A task that is resumed before, within a second or two, can be failed by Airflow: the scheduler takes the end of
        the first worker for the end of the second.

        :raises TimeoutError: it was not so after ``timeout`` seconds.
        """
        told = f"TaskInstance Finished: dag_id={dag_id}, task_id={task_id}, run_id={run_id},"
        deadline = time.monotonic() + timeout
        while told not in self.component_log("scheduler").read_text(errors="replace"):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"The scheduler has not heard of the end of {task_id}'s worker in {timeout:.0f} s."
                )
            time.sleep(_POLL)

    def why_run_failed(self, dag_id: str, run_id: str) -> str:
        """Return the end of the log of every task of a run that failed, for a person."""
        parts = [f"Run {run_id} of {dag_id} failed."]
        for task in self.task_instances(dag_id, run_id):
            if task.state == "failed":
                log = self.api.task_log(dag_id, run_id, task.task_id, task.try_number, task.map_index)
                parts.append(f"The end of the log of {task.label}:\n" + "\n".join(log.splitlines()[-15:]))
        return "\n\n".join([*parts, f"All logs are in {self.logs}."])

    def task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        """Return the tasks of a run with their states."""
        return self.api.task_instances(dag_id, run_id)

    def query(self, statement: str, parameters: Sequence[object] = ()) -> list[dict[str, Any]]:
        """Read from the metadata database, in SQL; it cannot be written to. Rows are dictionaries by column."""
        with contextlib.closing(
            sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=30)
        ) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(statement, parameters)]

    @property
    def database(self) -> Path:
        """The file of the metadata database (SQLite)."""
        return self.home / "airflow.db"

    def log_files(self) -> Iterator[Path]:
        """Yield every log file there is: of the components, of tasks, and of triggers."""
        return (path for path in self.logs.rglob("*") if path.is_file())

    def run_airflow(self, *arguments: str) -> str:
        """
        Run one ``airflow`` command in this Airflow's environment and return its standard output.

        :raises AirflowFailedError: the command failed.
        """
        result = subprocess.run(
            [self._python, "-m", "airflow", *arguments],
            cwd=self.home,
            env=self.environment | {"COLUMNS": "1000"},  # or its tables are cut to the width of a terminal
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if result.returncode:
            raise AirflowFailedError(
                f"airflow {' '.join(arguments)} failed:\n\n{result.stdout}{result.stderr}"
            )
        return result.stdout

    def _take_lock(self) -> None:
        path = self.home / "lock"
        lock = path.open("a+")
        deadline = (
            time.monotonic() + 20
        )  # a predecessor that was killed needs a moment until its processes are gone
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    lock.seek(0)
                    owner = lock.read().strip()
                    lock.close()
                    raise AirflowFailedError(
                        f"Another Airflow runs in {self.home}, started by process {owner or '?'}. End that one first."
                    ) from None
                time.sleep(_POLL)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def _secrets(self) -> dict[str, str]:
        path = self.home / "secrets.json"
        if not path.exists():
            made = {
                "fernet_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
                "secret_key": secrets.token_urlsafe(32),
                "jwt_secret": secrets.token_urlsafe(64),
            }
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump(made, file)
        return dict(json.loads(path.read_text()))

    def _write_config(self) -> None:
        keys = self._secrets()
        bundles = [
            {
                "name": f"dags-{number}",  # not the folder's: Airflow keeps example_dags for itself
                "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
                "kwargs": {"path": str(folder), "refresh_interval": 5},
            }
            for number, folder in enumerate(self.dags, start=1)
        ]
        settings: dict[str, dict[str, str]] = {
            "core": {
                "executor": "LocalExecutor",
                "parallelism": "8",
                "load_examples": "False",
                "simple_auth_manager_all_admins": "True",
                "fernet_key": keys["fernet_key"],
                "execution_api_server_url": f"{self.url}/execution/",
                "dags_folder": str(self.dags[0]),
                # The default asks the name service for this machine's full name, for every task.
                "hostname_callable": "socket.gethostname",
            },
            # SQLite lets one process write at a time, and a busy machine can keep it waiting for longer than the usual
            # 5 s; so can the API server keep its tasks, below.
            "database": {"sql_alchemy_conn": f"sqlite:///{self.database}?timeout=60"},
            "logging": {"base_log_folder": str(self.logs)},
            "api": {
                "host": LOOPBACK,
                "port": str(self.port),
                "base_url": self.url,
                "workers": "1",
                "secret_key": keys["secret_key"],
            },
            "api_auth": {"jwt_secret": keys["jwt_secret"]},
            "dag_processor": {
                "dag_bundle_config_list": json.dumps(bundles),
                "dag_bundle_storage_path": str(self.home / "bundles"),
                "refresh_interval": "5",
                "bundle_refresh_check_interval": "1",
                "min_file_process_interval": "30",
            },
            "scheduler": {"scheduler_idle_sleep_time": "0.3"},
            "workers": {"execution_api_timeout": "120"},
            "usage_data_collection": {"enabled": "False"},
        }
        for section, options in self._config.items():
            settings.setdefault(section, {}).update(options)
        parser = configparser.ConfigParser(interpolation=None)
        # Airflow interpolates what it reads: a literal % is written twice.
        parser.read_dict(
            {
                section: {name: value.replace("%", "%%") for name, value in options.items()}
                for section, options in settings.items()
            }
        )
        path = self.home / "airflow.cfg"
        path.touch(mode=0o600)
        with path.open("w") as file:
            parser.write(file)

    def _migrate_database(self) -> None:
        # Migrating loads all of Airflow, which takes seconds: the second time the version says that it was done.
        done = self.home / "database-version"
        version = subprocess.run(
            [self._python, "-c", "from importlib.metadata import version; print(version('apache-airflow'))"],
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        if not (self.database.exists() and done.exists() and done.read_text() == version):
            self.run_airflow("db", "migrate")
            done.write_text(version)
