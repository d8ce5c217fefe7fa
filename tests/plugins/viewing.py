"""The page's routes in Airflow's own API server, people who may see this and that, and videos that are stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_kling.api.task import TaskState, VideoTask
from airflow_provider_kling.card import result_card
from airflow_provider_kling.manifest import SUFFIX, Manifest, manifest_document
from airflow_provider_kling.output_path import Coordinates
from airflow_provider_kling.page_address import PATH
from airflow_provider_kling.result import Asked, video_result
from airflow_provider_kling.storage import StoredFile

BASE_URL = "https://airflow.example.com/af"
PROMPT = "A lighthouse in a storm, seen from the sea"
ASKED = Asked({"model": "kling-v3-omni", "prompt": PROMPT}, 5.0, 0.32)


@dataclass(frozen=True)
class People:
    """Makes clients of Airflow's API server, each logged in as somebody."""

    app: Any
    client: Any

    def log_in(self, name: str, role: str = "viewer") -> dict[str, str]:
        """Return what a request of somebody brings."""
        from airflow.api_fastapi.app import get_auth_manager
        from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

        token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=name, role=role))
        return {"Cookie": f"_token={token}"}


@pytest.fixture(scope="session")
def people(airflow_db: None) -> Iterator[People]:
    from airflow.api_fastapi import app as airflow_app
    from fastapi.testclient import TestClient

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW__CORE__AUTH_MANAGER", "tests.rights.RightsByDag")
        patch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
        # Airflow asks a plugin for its apps once in a process: the receiver of callbacks has to be among them.
        patch.setenv("AIRFLOW__KLING__CALLBACK_BASE_URL", BASE_URL)
        airflow_app.purge_cached_app()
        app = airflow_app.create_app()
        with TestClient(app, follow_redirects=False) as client:
            yield People(app, client)
    airflow_app.purge_cached_app()


@pytest.fixture
def rights(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that tells which Dags somebody may read."""

    from tests.rights import RIGHTS

    def tell(**dags_of_people: list[str]) -> None:
        monkeypatch.setenv(RIGHTS, json.dumps(dags_of_people))

    return tell


class Viewer:
    """Somebody with a browser, at the page's routes."""

    def __init__(self, people: People, login: dict[str, str]) -> None:
        self._client = people.client
        self._login = login

    def request(self, method: str, url: str, **headers: str) -> Any:
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        return self._client.request(method, url, headers=self._login | {"Accept-Encoding": "identity"} | told)

    def get(self, url: str, **headers: str) -> Any:
        return self.request("GET", url, **headers)


@pytest.fixture
def viewer(people: People) -> Viewer:
    """Return somebody who may read all Dags."""
    return Viewer(people, people.log_in("anne"))


@pytest.fixture
def page(people: People) -> Callable[[str], Viewer]:
    """Return a function that returns somebody by name."""
    return lambda name: Viewer(people, people.log_in(name))


def address(waiter: Any, kind: str = "files/0", *, map_index: int = -1) -> str:
    """Return the address of a task's file or list."""
    run = quote(waiter.run_id, safe="")
    return f"{PATH}/dags/{waiter.dag_id}/runs/{run}/tasks/{waiter.task_id}/{map_index}/{kind}"


def whose(waiter: Any) -> Coordinates:
    return Coordinates(waiter.dag_id, waiter.run_id, waiter.task_id)


def store(
    coordinates: Coordinates,
    path: str,
    content: bytes,
    *,
    kling_task_id: str = "k-1",
    index: int = 0,
    asked: Asked | None = ASKED,
    **of_file: Any,
) -> StoredFile:
    """Store a video as a task does: the file, and its manifest beside it."""
    ObjectStoragePath(path).write_bytes(content)
    return describe(
        coordinates,
        path,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        kling_task_id=kling_task_id,
        index=index,
        asked=asked,
        **of_file,
    )


def describe(
    coordinates: Coordinates,
    path: str,
    *,
    size: int,
    sha256: str = "ab" * 32,
    kling_task_id: str = "k-1",
    index: int = 0,
    asked: Asked | None = ASKED,
    **of_file: Any,
) -> StoredFile:
    """Write the manifest of a file that is there already."""
    file = StoredFile(path, path + SUFFIX, index, size, sha256, **({"media_type": "video/mp4"} | of_file))
    document = manifest_document(made(kling_task_id), asked, coordinates)
    manifest = Manifest.of(file, results=1, document=document)
    ObjectStoragePath(path + SUFFIX).write_bytes(manifest.to_bytes())
    return file


def made(kling_task_id: str = "k-1") -> VideoTask:
    link = f"https://r2.apimodels.app/{kling_task_id}.mp4"
    return VideoTask(task_id=kling_task_id, state=TaskState.COMPLETED, result_urls=(link,))


def card(*files: StoredFile, kling_task_id: str = "k-1") -> dict[str, Any]:
    """Return the card that a task leaves of a video with these files."""
    return result_card(video_result(made(kling_task_id), ASKED, files=files))
