"""Where results are stored in these tests: on local disk, and on an S3-compatible server."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_kling.api.task import TaskState, VideoTask
from airflow_provider_kling.hooks.kling import KlingHook
from airflow_provider_kling.output_path import Coordinates, OutputPath
from airflow_provider_kling.storage import ResultStorage
from tests.s3 import S3Server, s3_endpoint, s3_server

__all__ = ["s3_endpoint", "s3_server"]

COORDINATES = Coordinates("daily", "manual__2026-11-22T10:00:00+00:00", "make")
VIDEO = {"Content-Type": "video/mp4"}


class Storage:
    """A storage as its user sees it, and all that was logged."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.log = logging.getLogger(f"storage.{id(self)}")
        self.log.setLevel(logging.DEBUG)
        self.said: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: self.said.append(f"{record.levelname} {record.getMessage()}")  # type: ignore[method-assign]
        self.log.addHandler(handler)

    def open(self, template: str = "", coordinates: Coordinates = COORDINATES) -> ResultStorage:
        return ResultStorage(KlingHook(), OutputPath(self.base + template), coordinates, log=self.log)

    def names(self) -> list[str]:
        """All that lies there, hidden files too."""
        raise NotImplementedError

    def read(self, name: str) -> bytes:
        path: Any = ObjectStoragePath(self.base + name)
        with path.open("rb") as file:
            content: bytes = file.read()
        return content

    def write(self, name: str, content: bytes) -> None:
        path: Any = ObjectStoragePath(self.base + name)
        with path.open("wb") as file:
            file.write(content)

    def remove(self, name: str) -> None:
        ObjectStoragePath(self.base + name).unlink()

    def manifest(self, name: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.read(name + ".json"))
        return document


class Local(Storage):
    def __init__(self, directory: Path) -> None:
        super().__init__(f"{directory}/")
        self.directory = directory

    def names(self) -> list[str]:
        files = (path for path in self.directory.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.directory)) for path in files)


class S3(Storage):
    def __init__(self, server: S3Server) -> None:
        super().__init__(server.uri())
        self.server = server

    def names(self) -> list[str]:
        assert self.server.unfinished() == []
        return self.server.names()


@pytest.fixture
def local(tmp_path: Path) -> Local:
    directory = tmp_path / "films"
    directory.mkdir()
    return Local(directory)


@pytest.fixture
def s3(s3_server: S3Server) -> S3:
    return S3(s3_server)


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest) -> Storage:
    """Run a test on local disk and on the S3-compatible server."""
    found: Storage = request.getfixturevalue(request.param)
    return found


@pytest.fixture(autouse=True)
def service_host(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the connection lead nowhere; returns what lets it lead somewhere."""

    def lead(host: str) -> None:
        connection = {"conn_type": "kling", "password": "sk_test_0123456789", "host": host}
        monkeypatch.setenv("AIRFLOW_CONN_KLING_DEFAULT", json.dumps(connection))

    lead("http://127.0.0.1:9")
    return lead


@pytest.fixture(autouse=True)
def _no_naps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let nobody wait between two tries: that is not what these tests are about."""
    from airflow_provider_kling.hooks import download, sync_client

    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    monkeypatch.setattr(sync_client._PatientRetry, "sleep", lambda *_: None)
    return


def task(*links: str, task_id: str = "k-1", **more: Any) -> VideoTask:
    return VideoTask(
        task_id=task_id, state=TaskState.COMPLETED, result_urls=links, model="kling-v3-omni", **more
    )


def film(seconds: int = 2, *, sound: bool = False, size: tuple[int, int] = (320, 240)) -> bytes:
    """Make a real mp4 of so many seconds, 25 pictures each."""
    av = pytest.importorskip("av")
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height = size
        track = container.add_stream("aac", rate=44100) if sound else None
        for _ in range(25 * seconds):
            container.mux(stream.encode(av.VideoFrame(*size, "yuv420p")))
        container.mux(stream.encode(None))
        if track is not None:
            for _ in range(43 * seconds):
                frame = av.AudioFrame("fltp", track.layout.name, 1024)
                frame.sample_rate = 44100
                for plane in frame.planes:
                    plane.update(bytes(plane.buffer_size))
                container.mux(track.encode(frame))
            container.mux(track.encode(None))
    return target.getvalue()
