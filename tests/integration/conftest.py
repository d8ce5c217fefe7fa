"""A real Airflow and the service that it asks, both started once for all tests in this folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from airflow_provider_kling.emulator import KlingEmulator
from dev.environments import CHECKOUT
from dev.local_airflow import COMPONENTS, LocalAirflow
from dev.processes import LOOPBACK, free_port
from tests.cluster.stack import Postgres, StackError
from tests.s3 import S3Server, s3_endpoint

__all__ = ["s3_endpoint"]

DAGS = Path(__file__).parent / "dags"
EXAMPLES = CHECKOUT / "example_dags"


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        "run_of(dag_id, *faults): the test is about a run of that Dag, whose calls these faults strike",
    )


@pytest.fixture(scope="session")
def service() -> Iterator[KlingEmulator]:
    """Run the emulated service in this process, so that a test can set faults and read the ledger."""
    with KlingEmulator(latency=2) as emulator:
        yield emulator


@pytest.fixture(scope="session")
def bucket(s3_endpoint: str) -> S3Server:
    """Make a bucket on an S3-compatible server, for all tests in this folder."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = S3Server(s3_endpoint, "kling-integration")
    server.client.create_bucket(Bucket=server.bucket)
    return server


def wait_until(what: Callable[[], Any], seconds: float = 900) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.2)
    return found


def answers(port: int, path: str = "/api/v2/monitor/health") -> bool:
    try:
        return requests.get(f"http://{LOOPBACK}:{port}{path}", timeout=30).ok
    except requests.RequestException:
        return False


@pytest.fixture(scope="session")
def airflow(
    service: KlingEmulator, bucket: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalAirflow]:
    """Run Airflow's own processes with the examples and the Dags of this folder; ``kling_default`` is the service."""
    home = tmp_path_factory.mktemp("airflow")
    print(f"AIRFLOW_HOME with all logs: {home}")  # pytest shows it with a failure, and keeps the folder
    for_tasks = free_port()
    with LocalAirflow(
        home,
        dags=[EXAMPLES, DAGS],
        # Tasks have an API server of their own. One server for people and for tasks can block itself on SQLite for a
        # minute: what it writes for people waits in its event loop for what it writes for a task, which needs the loop.
        components={
            "api-server-for-tasks": ("api-server", "--apps", "execution", "--port", str(for_tasks)),
            **COMPONENTS,
            "api-server": ("api-server", "--apps", "core"),
        },
        connections={"kling_default": service.connection_uri},
        environment=bucket.environment,
        # That a scheduler was killed with its tasks is noticed after 5 minutes unless Airflow is told otherwise. A
        # slow one is not to be taken for dead: who kills it, says so (``lose_scheduler``).
        config={
            "core": {"execution_api_server_url": f"http://{LOOPBACK}:{for_tasks}/execution/"},
            "scheduler": {
                "scheduler_health_check_threshold": "600",
                "orphaned_tasks_check_interval": "5",
            },
            # No Dag file changes here: each is read once.
            "dag_processor": {"min_file_process_interval": "86400"},
        },
    ) as running:
        wait_until(lambda: answers(for_tasks, "/execution/health"))
        # ``kling_default`` is in the environment, this one in Airflow's database.
        running.api.call(
            "POST",
            "connections",
            json={
                "connection_id": "kling_stored",
                "conn_type": "kling",
                "host": service.base_url,
                "password": service.api_key,
            },
        )
        yield running


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """Run a PostgreSQL server of our own with an empty database for Airflow in it, where there is one to be run."""
    pytest.importorskip("psycopg2", reason="`make callbacks` brings what Airflow needs for PostgreSQL")
    try:
        server = Postgres(tmp_path_factory.mktemp("postgresql"))
    except StackError as error:
        pytest.skip(str(error))
    try:
        server.create()
        yield server
    finally:
        server.remove()
