"""A real Airflow with videos in it, and a real Chromium that looks at them. Both are started once for this folder."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, expect

from airflow_provider_kling.emulator import KlingEmulator
from dev.browser import NoBrowserError, chromium
from dev.environments import CHECKOUT
from dev.local_airflow import LocalAirflow
from tests.browser.screen import Screen

DAGS = Path(__file__).parent / "dags"
FRAMED, ALONE = "/plugin/kling-videos", "/kling/videos/"
"""The page of videos in Airflow's UI, and without anything around it, which takes less time."""
PRODUCER, GUEST, STRANGER = "producer", "guest", "stranger"
PEOPLE = {PRODUCER: "admin", GUEST: "viewer", STRANGER: "viewer"}
"""Who there is, by role. The guest may read all Dags but one, and the stranger none."""
PASSWORD = "of a test"


PATIENCE, PATIENCE_WITH_PAGES = 120_000, 180_000  # ms
"""
How long what is to happen may take, and how long a page may take to come.

Many times what either takes on a quiet machine; what is waited for in vain is the only thing that takes longer by it.
"""

expect.set_options(timeout=PATIENCE)


@dataclass(frozen=True)
class Studio:
    """The Airflow whose Dags have run."""

    airflow: LocalAirflow
    service: KlingEmulator
    folder: Path
    runs: dict[str, str]
    """Run ids by Dag."""

    def start(self, dag_id: str, **params: Any) -> str:
        """Start a run of a Dag and return its id."""
        return self.airflow.trigger(dag_id, {"folder": str(self.folder), **params})

    def card(self, dag_id: str, task_id: str, map_index: int = -1) -> Any:
        """Return what a task of the first run left for the page."""
        return self.airflow.api.xcom(dag_id, self.runs[dag_id], task_id, "kling_video", map_index)

    def entries(self, dag_id: str) -> list[Any]:
        """Return what Airflow lists of all that the tasks of a Dag left for the page, without the values."""
        path = f"dags/{dag_id}/dagRuns/~/taskInstances/~/xcomEntries"
        return list(self.airflow.api.call("GET", path, params={"xcom_key": "kling_video"})["xcom_entries"])

    def rewrite(self, dag_id: str, task_id: str, card: Any) -> None:
        """
        Put something else where a task of the first run left its card.

        Not through the API: Airflow 3.1 encodes a value twice when it is changed there.
        """
        where = (dag_id, self.runs[dag_id], task_id, "kling_video")
        with contextlib.closing(sqlite3.connect(self.airflow.database, timeout=60)) as database, database:
            changed = database.execute(
                "UPDATE xcom SET value = ? WHERE dag_id = ? AND run_id = ? AND task_id = ? AND key = ?",
                (json.dumps(card), *where),
            )
            assert changed.rowcount == 1


@pytest.fixture(scope="session")
def service() -> Iterator[KlingEmulator]:
    """Run the emulated service in this process; its videos come from the host that the page may play from."""
    with KlingEmulator(latency=1, result_host="127.0.0.1", settling=0) as emulator:
        yield emulator


@pytest.fixture(scope="session")
def studio(service: KlingEmulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """Run Airflow and all Dags of this folder once; people log in, and not everybody may read everything."""
    home = tmp_path_factory.mktemp("airflow")
    folder = tmp_path_factory.mktemp("videos")
    passwords = home / "passwords.json"
    passwords.write_text(json.dumps(dict.fromkeys(PEOPLE, PASSWORD)))
    print(f"AIRFLOW_HOME with all logs: {home}")
    dag_ids = ("kling_studio", "kling_series", "kling_refused", "kling_secret")
    with LocalAirflow(
        home,
        dags=[DAGS],
        connections={"kling_default": service.connection_uri},
        login=(PRODUCER, PASSWORD),
        environment={
            "PYTHONPATH": str(CHECKOUT),
            "TEST_RIGHTS": json.dumps({GUEST: [*dag_ids[:3], "kling_waiting", "kling_many"], STRANGER: []}),
        },
        config={
            "core": {
                "auth_manager": "tests.rights.RightsByDag",
                "simple_auth_manager_all_admins": "False",
                "simple_auth_manager_users": ",".join(f"{name}:{role}" for name, role in PEOPLE.items()),
                "simple_auth_manager_passwords_file": str(passwords),
            },
            "kling": {"media_hosts": service.origin},
        },
    ) as airflow:
        service.inject("fail", prompt="nobody may see", fail_code="content_policy", message="Content refused")
        service.inject("fail", prompt="number 3 of a journey", message="The scene could not be drawn")
        found = Studio(airflow, service, folder, {})
        found.runs.update({dag_id: found.start(dag_id) for dag_id in dag_ids})
        for dag_id, run_id in found.runs.items():
            state = airflow.wait_for_run(dag_id, run_id)
            wanted = "failed" if dag_id == "kling_refused" else "success"
            assert state == wanted, airflow.why_run_failed(dag_id, run_id)
        yield found


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Start Chromium. A developer's machine may lack one; where the checks are final there has to be one."""
    with contextlib.ExitStack() as running:
        try:
            started = running.enter_context(chromium())
        except NoBrowserError as error:
            if os.environ.get("CI"):
                pytest.fail(str(error), pytrace=False)
            pytest.skip(str(error))
        yield started


@pytest.fixture
def look(browser: Browser, studio: Studio) -> Iterator[Callable[..., Screen]]:
    """
    Return what opens Airflow's UI for a person, at the page of videos unless told otherwise.

    The window is as high as it takes to see all of the videos: what is not in sight is not read.

    At the end no page may have hurt its Content-Security-Policy or thrown an error that nobody caught.
    """
    contexts: list[BrowserContext] = []
    troubles: list[str] = []

    def open_screen(
        path: str = FRAMED,
        *,
        person: str | None = PRODUCER,
        width: int = 1280,
        height: int = 2400,
        theme: str = "light",
        **options: Any,
    ) -> Screen:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=theme,
            base_url=studio.airflow.url,
            **options,
        )
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        context.set_default_navigation_timeout(PATIENCE_WITH_PAGES)
        if person is not None:
            token = studio.airflow.api.token((person, PASSWORD))
            context.add_cookies([{"name": "_token", "value": token, "url": studio.airflow.url}])
        context.add_init_script(
            "document.addEventListener('securitypolicyviolation',"
            " (it) => console.error(`CSP: ${it.violatedDirective} ${it.blockedURI} in ${location.href}`));"
        )
        page = context.new_page()
        page.on("console", lambda said: troubles.append(said.text) if said.text.startswith("CSP:") else None)
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.goto(path)
        return Screen(page)

    yield open_screen
    for context in contexts:
        context.close()
    assert troubles == []
