"""
The record beside each stored video, ``<name>.json``: what was asked for, what was made, and how to tell it is whole.

It holds none of the service's links: they die after 7 days, and until then whoever has one has the video.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import pendulum
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import airflow_provider_kling
from airflow_provider_kling.api.task import TaskState, VideoTask
from airflow_provider_kling.output_path import NOWHERE
from airflow_provider_kling.result import iso, recorded_usd, without_secrets

if TYPE_CHECKING:
    from airflow_provider_kling.api.task import RecordedCost
    from airflow_provider_kling.output_path import Coordinates
    from airflow_provider_kling.result import Asked
    from airflow_provider_kling.storage import StoredFile

SCHEMA_VERSION = 1
"""Version of the manifest's form. A manifest of another version counts as none."""
SUFFIX = ".json"
"""What a manifest's name has behind that of its video."""
MAX_MANIFEST_BYTES = 1024 * 1024
"""What is larger than this was not written here."""

_Count = Annotated[int, Field(ge=0, strict=True)]
_Measure = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Form(BaseModel):
    # Fields of later versions of this package are left alone.
    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)


class ManifestFile(_Form):
    """
    The video as it was stored.

    :param name: its name, without the directory.
    :param size_bytes: its size.
    :param sha256: its SHA-256, hexadecimal.
    :param media_type: such as ``video/mp4``.
    :param duration_seconds: length, seconds, read from the file; None where it was not looked into.
    :param width: pixels, read from the file. :param height: the same.
    :param frame_rate: frames a second, read from the file.
    :param has_sound: whether the file has a track of sound.
    """

    name: str
    size_bytes: _Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    media_type: str
    duration_seconds: _Measure | None = None
    width: _Count | None = None
    height: _Count | None = None
    frame_rate: _Measure | None = None
    has_sound: bool | None = None


class ManifestCost(_Form):
    """
    What the video cost: all results of a Kling task together.

    :param estimated_usd: by the price table, USD; None where no price is known.
    :param recorded_usd: by the service's records, USD; None until they are settled, and where the service has none.
    :param currency: of both.
    """

    estimated_usd: float | None = None
    recorded_usd: float | None = None
    currency: str = "USD"


class Manifest(_Form):
    """
    What is known of one stored video.

    :param schema_version: :data:`SCHEMA_VERSION`.
    :param provider_version: version of this package that wrote it.
    :param kling_task_id: the service's task id.
    :param index: which of that task's results it is, from 0.
    :param results: how many results that task has.
    :param model: the model.
    :param request: what was asked for, files in Base64 and the callback URL left out; None where it is not known.
    :param map_index: index of a mapped task, -1 where the task is not mapped.
    :param created_at: when the service took the task, ISO 8601. :param completed_at: when it was done.
    :param stored_at: when the file was stored.
    :param generation_seconds: how long the service worked on it, seconds.
    """

    schema_version: Literal[1]
    provider_version: str | None = None
    kling_task_id: str
    index: _Count
    results: Annotated[int, Field(ge=1, le=1000, strict=True)] = 1
    model: str | None = None
    request: dict[str, Any] | None = None
    dag_id: str | None = None
    run_id: str | None = None
    task_id: str | None = None
    map_index: int | None = None
    created_at: str | None = None
    completed_at: str | None = None
    stored_at: str | None = None
    generation_seconds: float | None = None
    file: ManifestFile
    cost: ManifestCost = ManifestCost()

    @classmethod
    def of(cls, stored: StoredFile, *, results: int, document: Mapping[str, Any]) -> Self:
        """
        Describe a stored file.

        :param results: how many results the Kling task has.
        :param document: what :func:`manifest_document` returned.
        """
        file = ManifestFile(
            name=posixpath.basename(stored.path),
            size_bytes=stored.size_bytes,
            sha256=stored.sha256,
            media_type=stored.media_type,
            duration_seconds=stored.duration_seconds,
            width=stored.width,
            height=stored.height,
            frame_rate=stored.frame_rate,
            has_sound=stored.has_sound,
        )
        return cls.model_validate({**document, "index": stored.index, "results": results, "file": file})

    @classmethod
    def read(cls, text: bytes) -> Self | None:
        """Read a manifest; None for whatever is no manifest of this form."""
        if len(text) > MAX_MANIFEST_BYTES:
            return None
        try:
            return cls.model_validate(json.loads(text))
        except (ValidationError, ValueError, RecursionError):
            return None

    def is_of_same_file(self, other: Manifest) -> bool:
        """Tell whether it is about the same video of the same Dag, in the same file. Costs may be known by now."""
        return (self.dag_id, self.kling_task_id, self.index, self.file) == (
            other.dag_id,
            other.kling_task_id,
            other.index,
            other.file,
        )

    def beside(self, before: Manifest) -> Manifest:
        """
        Return this manifest with what an earlier one of the same file knew and this one does not.

        Who stored the file, and when, stays as it was.
        """
        if (before.kling_task_id, before.index, before.file.sha256) != (
            self.kling_task_id,
            self.index,
            self.file.sha256,
        ):
            return self
        known = before.model_dump(exclude_none=True)
        new = self.model_dump(exclude_none=True)
        kept = ("stored_at", "dag_id", "run_id", "task_id", "map_index", "model", "request")
        told = {**known, **new, **{name: known[name] for name in kept if name in known}}
        told["cost"] = {**known["cost"], **new["cost"]}
        return Manifest.model_validate(told)

    def task(self) -> VideoTask:
        """Return the Kling task as it was when its video was stored; what cannot be read of it is left out."""
        return VideoTask(
            task_id=self.kling_task_id,
            state=TaskState.COMPLETED,
            model=self.model,
            created_at=_time(self.created_at),
            completed_at=_time(self.completed_at),
            generation_seconds=self.generation_seconds,
        )

    def to_bytes(self) -> bytes:
        """Return it as JSON for people and programs, in UTF-8."""
        return (json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n").encode()


def _time(text: str | None) -> pendulum.DateTime | None:
    try:
        return None if text is None else pendulum.instance(datetime.fromisoformat(text))
    except ValueError:
        return None


def manifest_document(
    task: VideoTask,
    asked: Asked | None = None,
    coordinates: Coordinates | None = None,
    recorded: RecordedCost | None = None,
) -> dict[str, Any]:
    """
    Return what the manifests of all results of a Kling task share.

    :param asked: what was asked for, where that is known.
    :param coordinates: which task instance it was stored for.
    :param recorded: what the service recorded as its cost.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "provider_version": airflow_provider_kling.__version__,
        "kling_task_id": task.task_id,
        "model": (asked.model if asked else None) or task.model,
        "request": without_secrets(asked.request) if asked else None,
        **dict.fromkeys(("dag_id", "run_id", "task_id", "map_index")),
        **(asdict(coordinates) if coordinates and coordinates != NOWHERE else {}),
        "created_at": iso(task.created_at),
        "completed_at": iso(task.completed_at),
        "stored_at": iso(pendulum.now("UTC")),
        "generation_seconds": task.generation_seconds,
        "cost": {
            "estimated_usd": asked.estimated_cost_usd if asked else None,
            "recorded_usd": recorded_usd(recorded),
            "currency": "USD",
        },
    }
