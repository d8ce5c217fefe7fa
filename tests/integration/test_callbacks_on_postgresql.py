"""Callbacks while Airflow's database is down: two API servers, PostgreSQL, and a service that calls again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import requests

from airflow_provider_kling.callbacks import PATH, CallbackToken
from airflow_provider_kling.emulator import KlingEmulator
from dev.airflow_api import ApiError
from dev.local_airflow import COMPONENTS, LocalAirflow
from dev.processes import LOOPBACK
from tests.cluster.stack import Postgres
from tests.integration.conftest import DAGS, answers, wait_until
from tests.integration.test_callbacks import POLL_INTERVAL, Proxy, body, log_lines, proxy

__all__ = ["proxy"]

DAG_IDS = ("kling_called_back", "kling_called_back_list")


@pytest.fixture(scope="module")
def service() -> Iterator[KlingEmulator]:
    with KlingEmulator(latency="never", callback_redelivery_interval=5) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def airflow(
    service: KlingEmulator, proxy: Proxy, postgresql: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalAirflow]:
    home = tmp_path_factory.mktemp("airflow")
    print(f"AIRFLOW_HOME with all logs: {home}")
    first, second = proxy.ports
    with LocalAirflow(
        home,
        dags=[DAGS],
        port=first,
        components={**COMPONENTS, "api-server-2": ("api-server", "--port", str(second))},
        connections={"kling_default": service.connection_uri},
        config={
            "kling": {"callback_base_url": proxy.url, "callback_poll_interval": str(POLL_INTERVAL)},
            "database": {"sql_alchemy_conn": postgresql.url},
            "scheduler": {
                "scheduler_health_check_threshold": "10",
                "orphaned_tasks_check_interval": "5",
            },
        },
    ) as running:
        wait_until(lambda: answers(second))
        yield running


def test_a_database_that_is_down_is_a_reason_to_call_again(
    airflow: LocalAirflow, service: KlingEmulator, proxy: Proxy, postgresql: Postgres
) -> None:
    runs = {dag_id: airflow.trigger(dag_id) for dag_id in DAG_IDS}
    for dag_id, run_id in runs.items():
        airflow.api.wait_for_task(dag_id, run_id, "make", "deferred")
        airflow.wait_until_off_its_worker(dag_id, run_id, "make")
    made = [task for run_id in runs.values() for task in service.ledger.tasks(run_id)]
    assert len(made) == 7
    postgresql.crash()
    for task in made:
        service.complete(task.task_id)
    # Whichever API server is asked.
    for port in proxy.ports:
        token = str(made[0].body["callback_url"]).rpartition("/")[2]
        answer = requests.post(
            f"http://{LOOPBACK}:{port}{PATH}/{token}", json=body(made[0].task_id), timeout=120
        )
        assert (answer.status_code, answer.text) == (503, '{"detail":"Service Unavailable"}')
        read = CallbackToken.read(token)
        assert read is not None
        forged = f"http://{LOOPBACK}:{port}{PATH}/{read.sign('sk_guessed')}"
        assert requests.post(forged, json=body(made[0].task_id), timeout=120).status_code == 404
    wait_until(lambda: all(service.ledger.callbacks(task.task_id) for task in made))
    assert {sent.status for task in made for sent in service.ledger.callbacks(task.task_id)} <= {503, None}
    postgresql.start()
    wait_until(lambda: are_over(airflow, runs))
    for dag_id, run_id in runs.items():
        assert airflow.api.run_state(dag_id, run_id) == "success", airflow.why_run_failed(dag_id, run_id)
    made = [service.ledger.task(task.task_id) for task in made]
    assert all(service.ledger.callbacks(task.task_id)[-1].was_accepted for task in made)
    assert len(service.ledger.creates()) == len(service.ledger.paid()) == 7
    assert max(task.queries for task in made) <= 3
    log = log_lines(airflow)
    assert "cannot be asked now: the metadata database" in log
    assert log.count("its task was resumed;") == 2, "each once"


def are_over(airflow: LocalAirflow, runs: Mapping[str, str]) -> bool:
    """Tell whether all runs are over; what of Airflow gave up with its database is started again, as in production."""
    for name, component in airflow.components.items():
        if not component.is_running:
            airflow.start_component(name)
    try:
        return all(
            airflow.api.run_state(dag_id, run_id) in ("success", "failed") for dag_id, run_id in runs.items()
        )
    except (requests.RequestException, ApiError):
        return False
