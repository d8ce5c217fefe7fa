"""What every test needs before it imports Airflow: a home of its own, and none of the developer's settings."""

from __future__ import annotations

import atexit
import base64
import gc
import logging
import os
import secrets
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from airflow.models.dagrun import DagRun
    from airflow.providers.common.compat.sdk import DAG

AIRFLOW = tuple(int(part) for part in version("apache-airflow").split(".")[:2])

# Airflow reads its configuration when it is imported, which is when a test module is: a fixture would come too late.
for name in list(os.environ):
    if name.startswith(("AIRFLOW", "_AIRFLOW", "KLING_")) or name.lower().endswith("_proxy"):
        del os.environ[name]

_HOME = tempfile.mkdtemp(prefix="airflow-home-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)

(Path(_HOME) / "dags").mkdir()
os.environ |= {
    "AIRFLOW_HOME": _HOME,
    "AIRFLOW__CORE__DAGS_FOLDER": f"{_HOME}/dags",
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(32),
    "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{_HOME}/airflow.db",
    # What no test has set up is not looked for in a cloud.
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
}

# Coverage follows into the workers of pytest-xdist, but not into what tests start: to load Airflow took twice as long.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)

# A machine that is slow is no fault of what is tested. What else the default says, such as that of CI, stays.
settings.register_profile(
    "unhurried", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unhurried")


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known."""
    config.addinivalue_line(
        "markers", "integration: needs a real Airflow, whose processes take seconds to start"
    )
    config.addinivalue_line(
        "markers",
        "acceptance: takes processes, a load or all combinations: one of those unit tests that `make test` leaves out",
    )
    config.addinivalue_line(
        "markers",
        "untraced: goes through the same lines over and over: coverage, which doubles its time, does not watch it",
    )
    config.addinivalue_line(
        "markers",
        "receivers_own_limits: the receiver of callbacks waits no longer than it does for strangers",
    )


def pytest_sessionfinish() -> None:
    """Save what coverage has seen: a worker of pytest-xdist that takes long to end is killed, its figures with it."""
    if (coverage := _coverage()) is not None:
        coverage.save()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Have coverage look away from tests marked ``untraced``."""
    coverage = _coverage() if item.get_closest_marker("untraced") else None
    if coverage is None:
        return (yield)
    coverage.stop()
    try:
        return (yield)
    finally:
        coverage.start()


def _coverage() -> Any:
    """Return what measures coverage in this process, if it does."""
    module = sys.modules.get("coverage")
    return module.Coverage.current() if module else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in ``integration/`` and ``browser/``, so that it can be chosen or left out."""
    here = Path(__file__).parent
    for item in items:
        if {here / "integration", here / "browser"} & set(item.path.parents):
            item.add_marker(pytest.mark.integration)


def pytest_collection_finish() -> None:
    """Have Python look for garbage in what tests make only: Airflow and its libraries are most of the objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def airflow_db() -> None:
    """Make Airflow's metadata database. It takes seconds, once for all tests that ask for it."""
    from airflow.utils.db import initdb

    initdb()


@pytest.fixture
def run_dag(airflow_db: None) -> Callable[..., DagRun]:
    """Return a function that runs a Dag in this process, by ``dag.test()`` with its arguments, and returns the run."""

    def run(dag: DAG, **arguments: Any) -> DagRun:
        store_dag(dag)
        return dag.test(**arguments)

    return run


def store_dag(dag: DAG) -> None:
    """
    Put a Dag into the database, as the Dag processor does with one that it reads.

    From 3.0 on its assets have to be there for a run, and from 3.1 on the Dag itself.
    """
    if AIRFLOW < (3, 0):
        return
    from airflow.dag_processing.bundles.manager import DagBundlesManager

    if AIRFLOW < (3, 2):
        from airflow.models.dagbag import DagBag
    else:
        from airflow.dag_processing.dagbag import DagBag
    DagBundlesManager().sync_bundles_to_db()
    bag = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
    if AIRFLOW < (3, 1):
        dag.relative_fileloc = Path(dag.fileloc).name
        bag.bag_dag(dag)
        bag.sync_to_db("dags-folder", None)
        return
    if AIRFLOW < (3, 2):
        from airflow.models.dagbag import sync_bag_to_db
    else:
        from airflow.dag_processing.dagbag import sync_bag_to_db
    bag.bag_dag(dag)
    sync_bag_to_db(bag, bundle_name="dags-folder", bundle_version=None)


@pytest.fixture
def task_log(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], list[str]]:
    """Return a function that returns what was logged so far, line by line; where to, differs between Airflows."""
    for name in ("airflow", "airflow.task"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    caplog.set_level(logging.INFO)
    printed: list[str] = []

    def lines() -> list[str]:
        printed.extend(capsys.readouterr().out.splitlines())
        return printed if AIRFLOW >= (3, 0) else [record.getMessage() for record in caplog.records]

    return lines
