"""What OpenLineage is told of a video: the references that went into it and the files that came out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    return lineage_of_many([asked.request] if asked else (), [file.uri for file in files])


def lineage_of_many(requests: Iterable[Mapping[str, Any]], uris: Iterable[str]) -> OperatorLineage[Any, Any]:
    """
    Return the inputs and outputs of a task that made many videos; what several of them share is told once.

    :param requests: what was asked for, in the service's form.
    :param uris: of the stored files.
    """
    # Airflow calls those methods only where the provider for OpenLineage is installed.
    from airflow.providers.common.compat.openlineage.facet import Dataset
    from airflow.providers.openlineage.extractors import OperatorLineage

    references = (reference for request in requests for reference in _references(request))
    return OperatorLineage(
        inputs=[Dataset(*names) for names in dict.fromkeys(_named(references))],
        outputs=[Dataset(*names) for names in dict.fromkeys(_named(uris))],
    )


def _references(request: Mapping[str, Any]) -> Iterator[str]:
    for field, key in _REFERENCES:
        for item in request.get(field) or ():
            value = item.get(key) if isinstance(item, Mapping) else None
            if isinstance(value, str):
                yield value


def _named(references: Iterable[str]) -> Iterator[tuple[str, str]]:
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
