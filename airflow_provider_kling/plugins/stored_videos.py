"""
Finds what the page shows of a task: its XComs, the files that they name, and the list behind them.

An XCom is no proof: whoever may write a task's XComs could name any file there. So a file counts as a Dag's only where
the manifest beside it, which the storing task wrote, says so. All of it blocks, so it runs in threads.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, BinaryIO

from airflow_provider_kling.batch_result import Ended
from airflow_provider_kling.card import SCHEMA, XCOM_VIDEO, expires_at, file_on_card
from airflow_provider_kling.output_path import Coordinates, check_output_path
from airflow_provider_kling.plugins.accounts import UnavailableError
from airflow_provider_kling.plugins.database import asking, xcom
from airflow_provider_kling.storage import NoPlainFileError, Place, told

if TYPE_CHECKING:
    from airflow_provider_kling.manifest import Manifest

MOST_DOCUMENT_BYTES = 8 * 1024 * 1024
"""Largest document with a list's results that is read. Ten thousand videos take about 5 MB."""
_KEPT_DOCUMENTS = 4
_ALL = 1_000_000  # more videos than any list has
_VIDEO_TYPE = re.compile(r"video/[a-z0-9][a-z0-9.+-]{0,60}")
_MOST_PATH_CHARACTERS = 4096

_Version = tuple[str, tuple[str, ...] | None]
"""Where a document is, and what changes with its content."""

log = logging.getLogger(__name__)


class Reason(StrEnum):
    """Why a file is not played, as a word for programs."""

    NOT_STORED = "not_stored"
    GONE = "gone"
    REPLACED = "replaced"
    REFUSED = "refused"
    UNAVAILABLE = "unavailable"


_TEXTS = {
    Reason.NOT_STORED: "This task's XComs name no such stored file.",
    Reason.GONE: "The file is not where the task stored it, or its manifest is not beside it.",
    Reason.REPLACED: "The file was replaced by that of another video since.",
    Reason.REFUSED: "The file is not played: it was not stored for this Dag, or is a link to another file.",
    Reason.UNAVAILABLE: (
        "The storage cannot be read from the API server now: it needs the same connection and Airflow provider as the "
        "workers, and a restart where the connection was changed. Its log tells more."
    ),
}


class NotPlayedError(Exception):
    """
    A file is not there for this request.

    :param reason: why, in a word.
    """

    def __init__(self, reason: Reason) -> None:
        self.reason = reason
        super().__init__(_TEXTS[reason])


@dataclass(frozen=True)
class StoredVideo:
    """
    A file that belongs to a task's Dag.

    :param place: where it is.
    :param manifest: what the manifest beside it says; the file has the size that is written there.
    """

    place: Place
    manifest: Manifest

    @property
    def size(self) -> int:
        """Its size, bytes."""
        return self.manifest.file.size_bytes

    @property
    def tag(self) -> str:
        """Its entity tag: the checksum, in quotes."""
        return f'"{self.manifest.file.sha256}"'


@dataclass(frozen=True)
class ListPage:
    """
    Some of the videos of a list.

    :param total: how many there are.
    :param results: those from ``offset`` on, as results tell of them.
    """

    total: int
    results: list[dict[str, Any]]


def find_video(whose: Coordinates, index: int, item: int | None = None) -> StoredVideo:
    """
    Find a stored file of a task.

    :param whose: the task instance.
    :param index: which file of the Kling task, from 0.
    :param item: which video of a list, from 0; None where the task makes one.
    :raises NotPlayedError: where there is none that may be played.
    """
    if item is None:
        card = _card(whose)
        paths = [file.get("path") for file in _list(card.get("files")) if isinstance(file, Mapping)]
        kling_task_id = card.get("task_id")
    else:
        page = find_list(whose, offset=item, limit=1)
        if not page.results:
            raise NotPlayedError(Reason.NOT_STORED)
        [result] = page.results
        paths, kling_task_id = paths_of(result), result.get("task_id")
    if index >= len(paths):
        raise NotPlayedError(Reason.NOT_STORED)
    place, manifest = _proven(whose, paths[index], kling_task_id, index)
    try:
        size = place.size()
    except Exception as error:
        raise _unavailable(place.uri, error) from error
    if size is None:
        raise NotPlayedError(Reason.GONE)
    if size != manifest.file.size_bytes:
        log.warning(
            "%r of %s has %d bytes, and its manifest says %d: it is not played.",
            place.uri,
            whose,
            size,
            manifest.file.size_bytes,
        )
        raise NotPlayedError(Reason.REPLACED)
    return StoredVideo(place, manifest)


def open_video(video: StoredVideo) -> BinaryIO:
    """
    Open a stored file.

    :raises NotPlayedError: where that cannot be done.
    """
    try:
        return video.place.open_plain()
    except FileNotFoundError as error:
        raise NotPlayedError(Reason.GONE) from error
    except NoPlainFileError as error:
        raise _refused(video.place.uri, error) from error
    except Exception as error:
        raise _unavailable(video.place.uri, error) from error


def read_piece(video: StoredVideo, file: BinaryIO, start: int, length: int) -> bytes:
    """
    Read bytes of a stored file that :func:`open_video` opened.

    :return: at least one of them.
    :raises NotPlayedError: where they cannot be read, such as of a file that was replaced or cut off meanwhile.
    """
    try:
        file.seek(start)
        piece = file.read(length)
    except Exception as error:
        raise _unavailable(video.place.uri, error) from error
    if not piece:
        raise _unavailable(video.place.uri, EOFError(f"it ends before byte {start} of {video.size}"))
    return piece


def find_list(whose: Coordinates, *, offset: int, limit: int) -> ListPage:
    """
    Return some of the videos of a list, as its results tell of them.

    :param whose: the task instance.
    :raises NotPlayedError: where the results cannot be read, or are not this Dag's.
    """
    returned = _xcom(whose, "return_value")
    if isinstance(returned, Mapping) and isinstance(returned.get("results"), list):
        results = _list(returned["results"])
        total, some = len(results), results[offset : offset + limit]
    else:
        path = _card(whose).get("results_path")
        texts = [] if path is None else _results_in_document(whose, path)
        total, some = len(texts), [json.loads(text) for text in texts[offset : offset + limit]]
    return ListPage(total, [dict(result) if isinstance(result, Mapping) else {} for result in some])


def kling_tasks_of(whose: Coordinates) -> tuple[list[str], list[str]]:
    """
    Return the ids of a list's Kling tasks: of those whose videos it stored by its own word, and of all others.

    :param whose: the task instance.
    :raises NotPlayedError: where the results cannot be read, or are not this Dag's.
    """
    stored: list[str] = []
    others: list[str] = []
    for result in find_list(whose, offset=0, limit=_ALL).results:
        if isinstance(kling_task_id := result.get("task_id"), str):
            (stored if paths_of(result) else others).append(kling_task_id)
    return stored, others


def card_of(whose: Coordinates, item: int, result: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the card of one video of a list, with what the manifests of its files tell.

    :param item: which of them it is, from 0.
    :param result: as the list's results tell of it.
    """
    manifests = []
    for index, path in enumerate(paths_of(result)):
        try:
            manifests.append(_proven(whose, path, result.get("task_id"), index))
        except NotPlayedError:
            break
    card: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "video",
        "item": item,
        "state": next(
            (state.value for state in Ended if state == result.get("outcome")), Ended.UNRESOLVED.value
        ),
        "waits": True,
        **{name: result.get(name) for name in _COPIED},
        "files": [
            file_on_card({"path": place.uri, **manifest.file.model_dump(exclude={"name"})})
            for place, manifest in manifests
        ],
    }
    if manifests:
        first = manifests[0][1]
        card |= {"submitted_at": first.created_at, "completed_at": first.completed_at or card["completed_at"]}
        if first.request is not None:
            card["request"] = first.request
    link = result.get("video_url")
    if not paths_of(result) and isinstance(link, str) and link.startswith(("https://", "http://")):
        card["video_url"] = link
        if card["completed_at"] is not None:
            card["expires_at"] = expires_at(card["completed_at"])
    return card


_COPIED = (
    "task_id",
    "model",
    "duration_seconds",
    "completed_at",
    "generation_seconds",
    "estimated_cost_usd",
    "recorded_cost_usd",
    "reason",
    "error",
)


def paths_of(result: Mapping[str, Any]) -> list[Any]:
    """Return where the files of a video of a list are, as its result tells."""
    path = result.get("path")
    return _list(result.get("files")) or ([] if path is None else [path])


def _proven(whose: Coordinates, path: Any, kling_task_id: Any, index: int) -> tuple[Place, Manifest]:
    """
    Return the place of a file and its manifest, which says that it was stored for the Dag.

    Rights are the Dag's. So which of its tasks and runs stored the file first does not matter: a task that fetches a
    video finds the one that its maker stored.

    :raises NotPlayedError: where there is no such file.
    """
    _check_path(whose, path)
    try:
        place = Place.at(path)
        place.check_plain()
        manifest = place.manifest(must_be_plain=True)
    except FileNotFoundError as error:
        raise NotPlayedError(Reason.GONE) from error
    except NoPlainFileError as error:
        raise _refused(path, error) from error
    except Exception as error:
        raise _unavailable(path, error) from error
    if manifest is None:
        raise NotPlayedError(Reason.GONE)
    if manifest.dag_id != whose.dag_id:
        log.warning(
            "An XCom of %s names %.200r, which was stored for Dag %.200r: refused.",
            whose,
            path,
            manifest.dag_id,
        )
        raise NotPlayedError(Reason.REFUSED)
    if (manifest.kling_task_id, manifest.index) != (kling_task_id, index):
        raise NotPlayedError(Reason.REPLACED)
    if manifest.file.name != place.name or not _VIDEO_TYPE.fullmatch(manifest.file.media_type):
        log.warning(
            "The manifest beside %.200r, which an XCom of %s names, is of %.200r, a %.100r: refused.",
            path,
            whose,
            manifest.file.name,
            manifest.file.media_type,
        )
        raise NotPlayedError(Reason.REFUSED)
    return place, manifest


def _results_in_document(whose: Coordinates, path: Any) -> Sequence[str]:
    """
    Read the results of a list, each as JSON.

    :raises NotPlayedError: where they are not there, or not of the Dag.
    """
    _check_path(whose, path)
    try:
        place = Place.at(path)
        place.check_plain()
        version = place.version()
        document = _KEPT.get((path, version))
        if document is None:
            with place.open_plain() as file:
                content = file.read(MOST_DOCUMENT_BYTES + 1)
            document = _KEPT.parse((path, version), content)
    except FileNotFoundError as error:
        raise NotPlayedError(Reason.GONE) from error
    except NoPlainFileError as error:
        raise _refused(path, error) from error
    except Exception as error:
        raise _unavailable(path, error) from error
    if document.dag_id != whose.dag_id:
        log.warning("An XCom of %s names %.200r, which holds no results of its Dag: refused.", whose, path)
        raise NotPlayedError(Reason.REFUSED)
    return document.results


@dataclass(frozen=True)
class _Document:
    """
    A document with a list's results.

    :param dag_id: whose it is; None where it is no such document.
    :param results: one JSON text each: parsed they take many times the memory.
    """

    dag_id: Any = None
    results: Sequence[str] = ()

    @classmethod
    def of(cls, content: bytes) -> _Document:
        try:
            document = json.loads(content) if len(content) <= MOST_DOCUMENT_BYTES else None
            if not isinstance(document, Mapping):
                return cls()
            return cls(document.get("dag_id"), [json.dumps(each) for each in _list(document.get("results"))])
        except (ValueError, RecursionError):
            return cls()


class _Documents:
    """
    The documents that were read last: a player asks for many parts of a video, and each time it is looked up there.

    They are parsed one at a time, since that holds up all other threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[_Version, _Document] = OrderedDict()

    def get(self, version: _Version) -> _Document | None:
        """Return a document as it was kept."""
        with self._lock:
            if version in self._kept:
                self._kept.move_to_end(version)
            return self._kept.get(version)

    def parse(self, version: _Version, content: bytes) -> _Document:
        """Return a document out of what was read."""
        with self._lock:
            document = self._kept.get(version)
            if document is None:
                document = _Document.of(content)
                if version[1] is not None:
                    self._kept[version] = document
                    while len(self._kept) > _KEPT_DOCUMENTS:
                        self._kept.popitem(last=False)
            return document


_KEPT = _Documents()


def _check_path(whose: Coordinates, path: Any) -> None:
    """
    Refuse what no task of ours writes down, before any storage is asked.

    :raises NotPlayedError: for that.
    """
    why = "it is no text, or too long"
    if isinstance(path, str) and len(path) <= _MOST_PATH_CHARACTERS:
        try:
            check_output_path(path)
            return
        except ValueError as error:
            why = str(error)
    log.warning("An XCom of %s names %.200r, which no task stores: %.400s", whose, path, why)
    raise NotPlayedError(Reason.REFUSED)


def _card(whose: Coordinates) -> Mapping[str, Any]:
    card = _xcom(whose, XCOM_VIDEO)
    return card if isinstance(card, Mapping) else {}


def _xcom(whose: Coordinates, key: str) -> Any:
    try:
        with asking() as session:
            return xcom(session, whose, key)
    except UnavailableError as error:
        log.warning("What the page needs cannot be asked for: %s", error)
        raise NotPlayedError(Reason.UNAVAILABLE) from error


def _unavailable(path: str, error: Exception) -> NotPlayedError:
    log.warning("%.200r cannot be read: %.500s", path, told(error))
    return NotPlayedError(Reason.UNAVAILABLE)


def _refused(path: str, error: Exception) -> NotPlayedError:
    log.warning("%.200r is refused: %.500s", path, told(error))
    return NotPlayedError(Reason.REFUSED)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
