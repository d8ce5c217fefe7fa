"""What OpenLineage is told of a video: the references that went into it and the files that came out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_kling.result import Asked
    from airflow_provider_kling.storage import StoredFile

_REFERENCES = (("image_list", "image_url"), ("video_list", "video_url"))


def lineage(asked: Asked | None, files: Sequence[StoredFile]) -> OperatorLineage[Any, Any]:
    """
    Return a task's inputs and outputs, for the standard methods of its operator.

    :param asked: what was asked for, None where that is not known.
    :param files: where the video was stored.
    """
    # Airflow calls those methods only where the provider for OpenLineage is installed.
    from airflow.providers.common.compat.openlineage.facet import Dataset
    from airflow.providers.openlineage.extractors import OperatorLineage

    return OperatorLineage(
        inputs=[Dataset(*names) for names in _named(_references(asked.request if asked else {}))],
        outputs=[Dataset(*names) for names in _named(file.uri for file in files)],
    )


def lineage_of_files(uris: Sequence[str]) -> OperatorLineage[Any, Any]:
    """
    Return what a task tells that made many videos: only its outputs.

    :param uris: of the stored files.
    """
    from airflow.providers.common.compat.openlineage.facet import Dataset
    from airflow.providers.openlineage.extractors import OperatorLineage

    return OperatorLineage(inputs=[], outputs=[Dataset(*names) for names in _named(iter(uris))])


def _references(request: Mapping[str, Any]) -> Iterator[str]:
    for field, key in _REFERENCES:
        for item in request.get(field) or ():
            value = item.get(key) if isinstance(item, Mapping) else None
            if isinstance(value, str):
                yield value


def _named(references: Iterator[str]) -> Iterator[tuple[str, str]]:
    """Name each by OpenLineage's naming: a bucket or host and what lies in it; a local file and its path."""
    for reference in references:
        try:
            parts = urlsplit(reference)
            authority = parts.netloc.rpartition("@")[2]
        except ValueError:
            continue
        if parts.scheme in ("", "file"):
            if "/" in reference and "." in reference:  # a file in Base64 is none of these
                yield "file", str(Path(parts.path).absolute())
        elif authority:
            yield f"{parts.scheme}://{authority}", parts.path.lstrip("/") or "/"
