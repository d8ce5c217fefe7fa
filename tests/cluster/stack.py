"""The processes of a chaos run: Airflow on one machine or as a cluster, its database and broker, the emulator."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import psutil
import requests
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from dev.airflow_api import ApiError
from dev.local_airflow import COMPONENTS, LocalAirflow
from dev.processes import LOOPBACK, GuardedProcess, free_port, inherited_environment

DAGS = Path(__file__).parent / "dags"
CONN_ID = "kling_chaos"
KEY = "sk_chaos_0123456789abcdef"

HEARTBEAT_TIMEOUT = 25
"""Seconds without a heartbeat after which Airflow gives a task to another worker. Its default is 300."""
JUST_BEGUN = 8.0
"""Seconds from the start of a task's process in which its connection to the service is a submit or a first query."""

_TASK_TITLE = "airflow worker -- "
_EXECUTOR_TITLE = "airflow worker -- LocalExecutor"
_SERVICE_START_TIMEOUT = 300.0

SETTINGS: dict[str, dict[str, str]] = {
    # What takes minutes by default takes seconds here, so that a short run sees it happen.
    "scheduler": {
        "scheduler_idle_sleep_time": "0.5",
        "scheduler_heartbeat_sec": "2",
        "scheduler_health_check_threshold": "12",
        "orphaned_tasks_check_interval": "10",
        "task_instance_heartbeat_timeout": str(HEARTBEAT_TIMEOUT),
        "task_instance_heartbeat_timeout_detection_interval": "5",
        "task_queued_timeout": "30",
        "task_queued_timeout_check_interval": "5",
        "num_stuck_in_queued_retries": "20",
    },
    "triggerer": {"job_heartbeat_sec": "2", "triggerer_health_check_threshold": "12"},
    "workers": {"min_heartbeat_interval": "3"},
    "core": {"parallelism": "8", "max_active_tasks_per_dag": "32"},
}


class StackError(Exception):
    """Something that the run needs is missing or did not start. The text says what to do."""


class Service:
    """
    The emulator as a process of its own, with a ledger file that survives its death.

    :param home: where its ledger and its log are.
    :param arguments: its further command line.
    :param seed: what its faults and latencies repeat themselves under.
    """

    def __init__(self, home: Path, arguments: Sequence[str], *, seed: int) -> None:
        self._seed = seed
        self._starts = 0
        self.port = free_port()
        self.ledger = home / "service-ledger.jsonl"
        self._command = [
            *(sys.executable, "-m", "airflow_provider_kling.emulator", "--port", str(self.port)),
            *("--api-key", KEY, "--ledger", str(self.ledger), *arguments),
        ]
        self._process = GuardedProcess(
            "service",
            self._command,
            environment=inherited_environment(),
            directory=home,
            log=home / "service.log",
        )

    @property
    def is_running(self) -> bool:
        """Whether it runs."""
        return self._process.is_running

    def start(self) -> None:
        """
        Start it and wait until it answers.

        :raises StackError: it does not.
        """
        # Under one seed every start would draw the same luck from the beginning.
        self._process.command = [*self._command, "--seed", f"{self._seed}/{self._starts}"]
        self._starts += 1
        self._process.start()
        deadline = time.monotonic() + _SERVICE_START_TIMEOUT
        while True:
            with contextlib.suppress(requests.RequestException):
                self.ask("settings")
                return
            if time.monotonic() > deadline or not self._process.is_running:
                raise StackError(f"The emulator did not start:\n{self._process.tail()}")
            time.sleep(0.1)

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()

    def stop(self) -> None:
        """End it."""
        self._process.stop()

    def ask(self, path: str, method: str = "GET") -> Any:
        """Call one of its own paths, ``/_emulator/…``."""
        answer = requests.request(method, f"http://{LOOPBACK}:{self.port}/_emulator/{path}", timeout=60)
        answer.raise_for_status()
        return answer.json()


class Stack(ABC):
    """
    Everything that runs, and what the saboteur may do to it.

    :param home: where everything is kept.
    :param service_arguments: further command line of the emulator.
    :param seed: see :class:`Service`.
    :param without_ledger: whether the Dags use the operator that remembers nothing.
    """

    airflow: LocalAirflow
    task_hosts: Sequence[str]
    """Names of the components below which tasks run."""

    def __init__(
        self, home: Path, *, service_arguments: Sequence[str], seed: int, without_ledger: bool
    ) -> None:
        self.home = home
        self.service = Service(home, service_arguments, seed=seed)
        self._frozen: set[str] = set()
        self._down: set[str] = set()
        self.ended_by_themselves: Counter[str] = Counter()
        self._environment = {
            "CHAOS_LEDGER_PATH": f"file://{home / 'ledger'}",
            **({"CHAOS_WITHOUT_LEDGER": "1"} if without_ledger else {}),
        }
        self._running = ExitStack()

    @property
    @abstractmethod
    def database_url(self) -> str:
        """The metadata database, for SQLAlchemy."""

    @abstractmethod
    def _start_servers(self) -> None:
        """Start what Airflow itself needs."""

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            starting.callback(self.service.stop)
            self.service.start()
            self._running = starting
            self._start_servers()
            starting.enter_context(self.airflow)
            self.airflow.api.call("POST", "connections", json=self._connection())
            self._running = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def _connection(self) -> dict[str, Any]:
        return {
            "connection_id": CONN_ID,
            "conn_type": "kling",
            "host": f"http://{LOOPBACK}:{self.service.port}/api/v1",
            "password": KEY,
            "extra": json.dumps({"connect_timeout": 2, "read_timeout": 5}),
        }

    # What the run asks for

    def dag_ids(self) -> list[str]:
        """Return the Dags that make videos, when all of them have been read."""
        # Half of the videos are called back.
        hows = ("deferred", "called_back", "held", "called_back")
        ids = [f"chaos_{ledger}_{how}" for how in hows for ledger in ("store", "files")]
        for dag_id in ids:
            self.airflow.api.wait_for_dag(dag_id)
            self.airflow.api.unpause(dag_id)
        return ids

    def clear(self, dag_id: str, run_id: str, task_id: str, map_index: int) -> None:
        """Clear a task instance, as a person would who finds it failed; SQLite may just be busy, so try for a while."""
        wish = {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": [task_id if map_index < 0 else [task_id, map_index]],
            "only_failed": False,
            "reset_dag_runs": True,
        }
        deadline = time.monotonic() + 60
        while True:
            try:
                self.airflow.api.call("POST", f"dags/{dag_id}/clearTaskInstances", json=wish)
            except (ApiError, requests.RequestException):
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)
            else:
                return

    def query(self, statement: str) -> list[dict[str, Any]]:
        """Read from the metadata database, which may just be down: then try again for a while."""
        engine = create_engine(self.database_url)
        deadline = time.monotonic() + 60
        try:
            while True:
                try:
                    with engine.connect() as connection:
                        return [dict(row) for row in connection.execute(text(statement)).mappings()]
                except SQLAlchemyError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.5)
        finally:
            engine.dispose()

    # What the saboteur does

    def names(self, role: str) -> list[str]:
        """Return the processes of a role that run and are not frozen."""
        if role == "service":
            return ["service"] if self.service.is_running else []
        return sorted(
            name
            for name, process in self.airflow.components.items()
            if name.startswith(role) and process.is_running and name not in self._frozen
        )

    def tasks(self, *, in_call: bool) -> list[int]:
        """Return the process ids of running tasks, or of those that have just begun to talk to the service."""
        pids = [
            pid
            for name in self.task_hosts
            if name in self.airflow.components and name not in self._frozen
            for pid in self.airflow.components[name].pids
            if _is_task(pid) and not _is_frozen(pid)
        ]
        return [pid for pid in pids if not in_call or self._is_in_call(pid)]

    def _is_in_call(self, pid: int) -> bool:
        try:
            process = psutil.Process(pid)
            return time.time() - process.create_time() < JUST_BEGUN and any(
                connection.raddr and connection.raddr.port == self.service.port
                for connection in process.net_connections("tcp")
                if connection.status == psutil.CONN_ESTABLISHED
            )
        except psutil.Error:
            return False

    def revive(self) -> None:
        """Start again what has ended by itself, as whatever runs Airflow in production does."""
        for name, process in self.airflow.components.items():
            if not process.is_running and name not in self._down:
                self.ended_by_themselves[name] += 1
                self.airflow.start_component(name)

    def kill(self, name: str) -> None:
        """Kill a process with all that it started."""
        self._down.add(name)
        if name == "service":
            self.service.kill()
        else:
            self.airflow.kill(name)

    def start(self, name: str) -> None:
        """Start a process again."""
        self._down.discard(name)
        if name == "service":
            self.service.start()
        else:
            self.airflow.start_component(name)

    def kill_task(self, pid: int) -> bool:
        """Kill a task's process; False where it is gone already."""
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def kill_supervisor(self, pid: int) -> bool:
        """Kill the process that supervises the task; False where it is gone already."""
        try:
            parent = psutil.Process(pid).ppid()
        except psutil.NoSuchProcess:
            return False
        # An orphan's parent is not the supervisor any more.
        known = {known for name in self.task_hosts for known in self.airflow.components[name].pids}
        return parent in known and self.kill_task(parent)

    def freeze(self, name: str) -> Callable[[], None]:
        """Stop a process with all that it started, and return what lets it go on."""
        self._frozen.add(name)
        pids = self.airflow.components[name].pids
        _signal(pids, signal.SIGSTOP)

        def thaw() -> None:
            _signal(pids, signal.SIGCONT)
            self._frozen.discard(name)

        return thaw

    def freeze_task(self, pid: int) -> Callable[[], None] | None:
        """Stop a task with its supervisor, and return what lets them go on; None where it is gone already."""
        try:
            pids = [psutil.Process(pid).ppid(), pid]
        except psutil.NoSuchProcess:
            return None
        if pids[0] not in {known for name in self.task_hosts for known in self.airflow.components[name].pids}:
            return None
        _signal(pids, signal.SIGSTOP)
        return lambda: _signal(pids, signal.SIGCONT)

    def restart_database(self, down: float) -> None:
        """Shut the metadata database down at once, and start it again after some seconds."""
        raise NotImplementedError("this stack's database is a file")


class SingleNode(Stack):
    """Airflow on SQLite with the LocalExecutor."""

    task_hosts = ("scheduler",)

    def __init__(self, home: Path, **how: Any) -> None:
        super().__init__(home, **how)
        port = free_port()
        self.airflow = LocalAirflow(
            home / "airflow",
            dags=[DAGS],
            environment=self._environment,
            port=port,
            config=_settings(_called_back_at(port)),
        )

    @property
    def database_url(self) -> str:
        """The metadata database, for SQLAlchemy."""
        return f"sqlite:///{self.airflow.database}"

    def _start_servers(self) -> None:
        pass


class Cluster(Stack):
    """PostgreSQL, Redis, and Airflow with the CeleryExecutor: two of everything but the Dag processor."""

    task_hosts = ("worker-1", "worker-2")

    def __init__(self, home: Path, **how: Any) -> None:
        super().__init__(home, **how)
        self._postgres = Postgres(home)
        self._redis_port = free_port()
        self._redis = GuardedProcess(
            "redis",
            [
                *(_program("redis-server"), "--port", str(self._redis_port), "--bind", LOOPBACK),
                *("--save", "", "--appendonly", "no"),
            ],
            environment=inherited_environment(),
            directory=home,
            log=home / "redis.log",
        )
        broker = f"redis://{LOOPBACK}:{self._redis_port}/0"
        ports = {1: free_port(), 2: free_port()}
        worker = ("celery", "worker", "--concurrency", "8", "--skip-serve-logs", "--without-mingle")
        components = {
            "api-server-1": ("api-server",),
            "api-server-2": ("api-server", "--port", str(ports[2])),
            "scheduler-1": COMPONENTS["scheduler"],
            "scheduler-2": COMPONENTS["scheduler"],
            "dag-processor": COMPONENTS["dag-processor"],
            "triggerer-1": COMPONENTS["triggerer"],
            "triggerer-2": COMPONENTS["triggerer"],
            "worker-1": (*worker, "--celery-hostname", "worker-1@chaos"),
            "worker-2": (*worker, "--celery-hostname", "worker-2@chaos"),
        }
        self.airflow = LocalAirflow(
            home / "airflow",
            dags=[DAGS],
            environment=self._environment,
            port=ports[1],
            components=components,
            component_environment={
                f"{role}-{number}": {
                    "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://{LOOPBACK}:{ports[number]}/execution/"
                }
                for role in ("worker", "scheduler", "triggerer")
                for number in (1, 2)
            },
            config=_settings(
                {
                    **_called_back_at(ports[1]),
                    "core": {"executor": "CeleryExecutor", "parallelism": "32"},
                    "database": {"sql_alchemy_conn": self.database_url},
                    "celery": {
                        "broker_url": broker,
                        "result_backend": f"db+{self.database_url}",
                        "worker_prefetch_multiplier": "1",
                        "operation_timeout": "5.0",
                    },
                }
            ),
        )

    @property
    def database_url(self) -> str:
        """The metadata database, for SQLAlchemy."""
        return self._postgres.url

    def _start_servers(self) -> None:
        self._running.callback(self._postgres.remove)
        self._postgres.create()
        self._running.callback(self._redis.stop)
        self._redis.start()

    def restart_database(self, down: float) -> None:
        """Shut the metadata database down at once, and start it again after some seconds."""
        self._postgres.crash()
        time.sleep(down)
        self._postgres.start()


class Postgres:
    """
    A PostgreSQL server of our own on loopback.

    It refuses to run as root: then it runs as the user ``postgres``, in a directory that this one can reach.

    :param home: where its log is.
    """

    def __init__(self, home: Path) -> None:
        self.port = free_port()
        self._as_user: list[str] = []
        self._programs = Path(_program("postgres")).resolve().parent
        self._data = Path(tempfile.mkdtemp(prefix="kling-chaos-postgres-"))
        if os.geteuid() == 0:
            shutil.chown(self._data, "postgres", "postgres")
            self._as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"]
        self._process = GuardedProcess(
            "postgres",
            [
                *self._as_user,
                *(str(self._programs / "postgres"), "-D", str(self._data), "-p", str(self.port)),
                *("-c", f"listen_addresses={LOOPBACK}", "-c", f"unix_socket_directories={self._data}"),
                # What is tested is a crash of processes, not of the machine.
                *("-c", "fsync=off", "-c", "max_connections=400"),
            ],
            environment=inherited_environment(),
            directory=self._data,
            log=home / "postgres.log",
        )

    @property
    def url(self) -> str:
        """Where it is, for SQLAlchemy."""
        return f"postgresql+psycopg2://airflow@{LOOPBACK}:{self.port}/airflow"

    @property
    def pids(self) -> list[int]:
        """The ids of its processes."""
        return self._process.pids

    def create(self) -> None:
        """Make the server and Airflow's database."""
        self._run(
            "initdb", "-D", str(self._data), "-U", "airflow", "-A", "trust", "-E", "UTF8", "--no-locale"
        )
        self.start()
        self._run("createdb", "-h", LOOPBACK, "-p", str(self.port), "-U", "airflow", "airflow")

    def start(self) -> None:
        """
        Start it and wait until it takes connections.

        :raises StackError: it does not.
        """
        self._process.start()
        deadline = time.monotonic() + 60
        ready = [str(self._programs / "pg_isready"), "-q", "-h", LOOPBACK, "-p", str(self.port)]
        while subprocess.run(ready).returncode:
            if not self._process.is_running or time.monotonic() > deadline:
                raise StackError(f"PostgreSQL did not start:\n{self._process.tail()}")
            time.sleep(0.2)

    def crash(self) -> None:
        """Shut it down without ending anything in an orderly way: it recovers when it is started."""
        _signal(self._process.pids, signal.SIGQUIT)
        deadline = time.monotonic() + 30
        while self._process.is_running and time.monotonic() < deadline:
            time.sleep(0.1)
        self._process.stop()

    def remove(self) -> None:
        """End it and remove its data."""
        if self._process.is_running:
            self.crash()
        shutil.rmtree(self._data, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        result = subprocess.run(
            [*self._as_user, str(self._programs / program), *arguments],
            cwd=self._data,
            capture_output=True,
            text=True,
        )
        if result.returncode:
            raise StackError(f"{program} failed:\n{result.stdout}{result.stderr}")


def _program(name: str) -> str:
    places = [
        os.environ.get("PATH", ""),
        *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)),
    ]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise StackError(
            f"{name} is needed and not there. On Debian and Ubuntu: sudo apt-get install postgresql redis-server; "
            "on macOS: brew install postgresql redis. `make chaos-short` needs neither."
        )
    return found


def _settings(further: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    return {
        section: {**SETTINGS.get(section, {}), **further.get(section, {})}
        for section in dict.fromkeys([*SETTINGS, *further])
    }


def _called_back_at(port: int) -> dict[str, dict[str, str]]:
    """Return the settings for callbacks. The net under them is close: those that are lost must not outlast the run."""
    return {
        "kling": {"callback_base_url": f"http://{LOOPBACK}:{port}", "callback_poll_interval": "20"},
    }


def _is_task(pid: int) -> bool:
    try:
        title = (psutil.Process(pid).cmdline() or [""])[0]
    except psutil.Error:
        return False
    return title.startswith(_TASK_TITLE) and not title.startswith(_EXECUTOR_TITLE)


def _is_frozen(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE))
    except psutil.Error:
        return True


def _signal(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
