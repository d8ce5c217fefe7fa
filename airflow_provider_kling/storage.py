"""Results into object storage or onto local disk: whole, checked, and each with its manifest beside it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from uuid import uuid4

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook, ObjectStoragePath
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from airflow_provider_kling.api.errors import (
    DownloadError,
    KlingError,
    NoResultError,
    ResultExpiredError,
)
from airflow_provider_kling.api.media import (
    MediaLibraryMissingError,
    UnreadableMediumError,
    VideoFacts,
    read_video,
)
from airflow_provider_kling.exceptions import STAYS_PAID, OutputUnusableError, StorageError
from airflow_provider_kling.hooks.download import (
    VIDEO_TYPES,
    Fetched,
    InBackground,
    ResultStream,
    Write,
    fetch,
    whole_file,
)
from airflow_provider_kling.manifest import MAX_MANIFEST_BYTES, SUFFIX, Manifest, manifest_document
from airflow_provider_kling.output_path import uri_of

if TYPE_CHECKING:
    from airflow_provider_kling.api.task import VideoTask
    from airflow_provider_kling.hooks.kling import KlingHook
    from airflow_provider_kling.output_path import Coordinates, OutputPath

SIDE_BY_SIDE = 4
"""How many results of one Kling task are fetched at a time."""
BLOCK_BYTES = 5 * 1024 * 1024
"""What is sent to object storage at a time. S3 takes no less, and 10,000 of them for one file: 50 GB."""
READ_BYTES = 1024 * 1024

_LOCAL = ("", "file", "local")
_OF_A_VERSION = (
    "ETag",
    "etag",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "generation",
    "modified",
)
"""Names by which file systems tell when, or as what, a file was written."""
_WITHOUT_DIRECTORIES = frozenset(
    (
        "s3",
        "s3a",
        "s3n",
        "gs",
        "gcs",
        "abfs",
        "abfss",
        "az",
        "adl",
        "wasb",
        "wasbs",
        "oss",
        "oci",
        "r2",
        "b2",
        "obs",
    )
)
"""Stores whose directories are names only; to make one there could make a bucket."""


@dataclass(frozen=True)
class StoredFile:
    """
    A result that lies where the author wants it.

    :param path: the file, with the connection id where there is one; ``ObjectStoragePath(path)`` opens it.
    :param manifest_path: the manifest beside it.
    :param index: which of the Kling task's results it is, from 0.
    :param size_bytes: its size.
    :param sha256: its SHA-256, hexadecimal.
    :param media_type: such as ``video/mp4``.
    :param duration_seconds: length, seconds, read from the file; None where it could not be looked into.
    :param width: pixels, read from the file.
    :param height: pixels, read from the file.
    :param frame_rate: frames a second, read from the file.
    :param has_sound: whether the file has a track of sound.
    """

    path: str
    manifest_path: str
    index: int
    size_bytes: int
    sha256: str
    media_type: str
    duration_seconds: float | None = None
    width: int | None = None
    height: int | None = None
    frame_rate: float | None = None
    has_sound: bool | None = None

    @property
    def uri(self) -> str:
        """The file as others may name it, for assets and lineage: a URI without the connection id."""
        return uri_of(self.path)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON, for XCom."""
        return asdict(self)


class ResultStorage:
    """
    Stores the results of Kling tasks for one Airflow task.

    :param hook: the service.
    :param output: where the files go.
    :param coordinates: whose they are.
    :param log: where to tell about it.
    """

    def __init__(self, hook: KlingHook, output: OutputPath, coordinates: Coordinates, *, log: Any) -> None:
        self._hook = hook
        self._output = output
        self._coordinates = coordinates
        self._log = log
        self._results: dict[str, int] = {}
        self._has_told_of_media = False

    def check(self) -> None:
        """
        Make sure that there is such a storage, as far as that can be told without asking it.

        :raises OutputUnusableError: where its kind or its connection is not known here.
        """
        place = self._output.name(self._coordinates, "any")
        try:
            if self._output.conn_id:
                BaseHook.get_connection(self._output.conn_id)
            Place.at(place)
        except Exception as error:
            raise OutputUnusableError(
                f"output_path {self._output.template!r} cannot be used here: {told(error)}",
                # Airflow says "not defined" also where it could not be asked.
                retryable=isinstance(error, AirflowNotFoundException),
            ) from error

    def find(self, kling_task_id: str) -> list[StoredFile] | None:
        """
        Look for the results of a Kling task where they would be stored.

        Each file is read to its end, since only that tells that it is whole.

        :return: all of them in order; None where one is missing, or is not what its manifest says.
        :raises StorageError: where the place cannot be asked.
        """
        with self._telling(kling_task_id, f"could not be looked for in {self._output.template!r}"):
            first = self._find_one(kling_task_id, 0)
            if first is None:
                return None
            found, results = [first[0]], first[1]
            for index in range(1, results):
                other = self._find_one(kling_task_id, index)
                if other is None:
                    return None
                found.append(other[0])
        self._results[kling_task_id] = results
        return found

    def remembered(self, kling_task_id: str) -> VideoTask | None:
        """
        Return a completed Kling task as the manifest of its stored video tells of it, without links.

        :return: None where :meth:`find` finds nothing.
        :raises StorageError: where the place cannot be asked.
        """
        found = self.find(kling_task_id)
        if found is None:
            return None
        with self._telling(kling_task_id, f"could not be looked for in {self._output.template!r}"):
            manifest = Place.at(found[0].path).manifest()
        return manifest.task() if manifest is not None else None

    def has_kept(self, path: str, kling_task_id: str, size_bytes: int | None) -> bool:
        """
        Tell whether the one result of a Kling task lies where it would be stored, by its size and without reading it.

        :param path: where it was stored.
        :param size_bytes: how large it was then.
        """
        extension = posixpath.splitext(path)[1].removeprefix(".")
        place = self._place(kling_task_id, 0, extension)
        try:
            return place.uri == path and size_bytes is not None and place.size() == size_bytes
        except Exception as error:  # noqa: BLE001 - any storage has errors of its own
            self._log.info("Cannot look for %s: %s", path, told(error))
            return False

    def store(self, task: VideoTask) -> list[StoredFile]:
        """
        Store all results of a completed task, each with a manifest that tells of the file.

        One that is there already and is what its manifest says is not fetched again.

        :return: the files, in the order of the service's links.
        :raises NoResultError: where the service gives no link.
        :raises ResultExpiredError: where the links are dead, also those that the service gave when asked anew.
        :raises StorageError: where a result could not be fetched, or not written.
        """
        count = len(task.result_urls)
        if not count:
            raise NoResultError(
                f"Kling task {task.task_id} is completed without a link", task_id=task.task_id
            )
        self._results[task.task_id] = count
        links = _Links(self._hook, task)
        with ThreadPoolExecutor(min(SIDE_BY_SIDE, count), thread_name_prefix="kling-result") as threads:
            stored = [threads.submit(self._store_one, task, index, links) for index in range(count)]
        # Only now: what the others have fetched stays, and a retry need not fetch it again.
        return [each.result() for each in stored]

    def write_manifests(self, files: Sequence[StoredFile], document: Mapping[str, Any]) -> None:
        """
        Write all that is known of stored files beside them.

        :param files: of one Kling task.
        :param document: what :func:`~airflow_provider_kling.manifest.manifest_document` returned.
        :raises StorageError: where one cannot be written.
        """
        kling_task_id = str(document["kling_task_id"])
        for file in files:
            with self._telling(kling_task_id, f"has no manifest: {file.manifest_path} could not be written"):
                self._write_manifest(
                    file, document, results=max(len(files), self._results.get(kling_task_id, 1))
                )

    def writer(self, index: int, stream: ResultStream, write: Write) -> Write:
        """
        Return what takes the chunks of a result that begins to arrive. A subclass may watch or stop it here.

        :param index: which of the results, from 0; it begins anew where a download has to.
        :param write: writes a chunk. What is raised instead leaves no file behind.
        """
        return write

    def _store_one(self, task: VideoTask, index: int, links: _Links) -> StoredFile:
        try:
            found = self._find_one(task.task_id, index)
        except Exception as error:  # noqa: BLE001 - any storage has errors of its own
            # To fetch it costs nothing but time, so that is no reason to stop.
            self._log.info(
                "Kling task %s: cannot look for what is stored already: %s", task.task_id, told(error)
            )
            found = None
        if found is not None and found[1] == len(task.result_urls):
            self._log.info("%s is there already, and whole.", found[0].path)
            return found[0]
        opened: list[Place] = []

        @contextlib.contextmanager
        def open_target(stream: ResultStream) -> Iterator[Write]:
            opened.append(self._place(task.task_id, index, stream.extension))
            self._warn_of_another(opened[-1], task.task_id)
            with opened[-1].whole() as write:
                yield self.writer(index, stream, write)

        with self._telling(task.task_id, f"could not be stored in {self._output.template!r}"):
            fetched = self._fetch(links, index, open_target)
            stored = self._described(opened[-1], index, fetched)
            document = manifest_document(task, coordinates=self._coordinates)
            self._write_manifest(stored, document, results=len(task.result_urls))
        self._log.info("Stored %s: %d bytes, SHA-256 %s.", stored.path, stored.size_bytes, stored.sha256)
        return stored

    def _fetch(
        self,
        links: _Links,
        index: int,
        open_target: Callable[[ResultStream], contextlib.AbstractContextManager[Write]],
    ) -> Fetched:
        link = links.given[index]
        try:
            return fetch(self._hook.get_conn(), link, open_target)
        except ResultExpiredError as error:
            self._log.warning("%s Asking the service for a fresh link.", error.what + ".")
            try:
                return fetch(self._hook.get_conn(), links.fresh(index), open_target)
            except ResultExpiredError as again:
                raise ResultExpiredError(
                    f"The video of Kling task {links.kling_task_id} is gone: its link is dead, and so is the one that "
                    "the service gave when it was asked anew",
                    task_id=links.kling_task_id,
                    code=again.code,
                    next_step=(
                        "It was billed, and the service deletes results after 7 days. A retry cannot fetch it; to "
                        "have it, it must be made and paid for once more."
                    ),
                ) from error

    def _described(self, place: Place, index: int, fetched: Fetched) -> StoredFile:
        stored = StoredFile(
            path=place.uri,
            manifest_path=place.uri + SUFFIX,
            index=index,
            size_bytes=fetched.size_bytes,
            sha256=fetched.sha256,
            media_type=fetched.media_type,
        )
        facts = self._facts(place)
        if facts is None:
            return stored
        return replace(
            stored,
            duration_seconds=facts.duration_seconds,
            width=facts.width,
            height=facts.height,
            frame_rate=facts.frame_rate,
            has_sound=facts.has_sound,
        )

    def _facts(self, place: Place) -> VideoFacts | None:
        try:
            with place.open() as file:
                return read_video(file)
        except MediaLibraryMissingError:
            if not self._has_told_of_media:
                self._has_told_of_media = True
                self._log.info(
                    "Length and pixels of the video are not read: that needs PyAV, which the extra "
                    "airflow-provider-kling[media] installs."
                )
        except UnreadableMediumError as error:
            self._log.warning("%s is stored as the service sent it, but %s.", place.uri, error)
        except Exception as error:  # noqa: BLE001 - any storage has errors of its own
            self._log.warning(
                "%s is stored, but cannot be read to tell its length: %s", place.uri, told(error)
            )
        return None

    def _find_one(self, kling_task_id: str, index: int) -> tuple[StoredFile, int] | None:
        extensions = ("mp4",) if self._output.has_fixed_extension else tuple(VIDEO_TYPES)
        for extension in extensions:
            place = self._place(kling_task_id, index, extension)
            manifest = place.manifest()
            if manifest is None or (manifest.kling_task_id, manifest.index) != (kling_task_id, index):
                continue
            if manifest.file.name != place.name or not place.holds(
                manifest.file.size_bytes, manifest.file.sha256
            ):
                self._log.warning("%s is not what its manifest says.", place.uri)
                continue
            facts = manifest.file.model_dump(exclude={"name"})
            return StoredFile(
                path=place.uri, manifest_path=place.uri + SUFFIX, index=index, **facts
            ), manifest.results
        return None

    def _warn_of_another(self, place: Place, kling_task_id: str) -> None:
        """Tell which video is about to be replaced: with a fixed name, each run replaces that of the one before."""
        try:
            if not place.size():
                return
            manifest = place.manifest()
        except Exception:  # noqa: BLE001 - only a warning hangs on it
            return
        if manifest is None:
            self._log.warning("%s is replaced; no manifest tells what it was.", place.uri)
        elif manifest.kling_task_id != kling_task_id:
            self._log.warning(
                "%s is replaced: it was the video of Kling task %s, and becomes that of %s.",
                place.uri,
                manifest.kling_task_id,
                kling_task_id,
            )

    def _write_manifest(self, stored: StoredFile, document: Mapping[str, Any], *, results: int) -> None:
        manifest = Manifest.of(stored, results=results, document=document)
        with contextlib.suppress(Exception):  # what was known before is a gift
            before = Place.at(stored.path).manifest()
            manifest = manifest.beside(before) if before is not None else manifest
        content = manifest.to_bytes()
        with Place.at(stored.manifest_path).whole() as write:
            write(content)

    def _place(self, kling_task_id: str, index: int, extension: str) -> Place:
        return Place.at(self._output.name(self._coordinates, kling_task_id, index, extension))

    @contextlib.contextmanager
    def _telling(self, kling_task_id: str, what: str) -> Iterator[None]:
        """Let every error leave with the paid task's id, and with what a retry does."""
        try:
            yield
        except (StorageError, ResultExpiredError):
            raise
        except DownloadError as error:
            raise StorageError(
                error.what, task_id=kling_task_id, code=error.code, next_step=STAYS_PAID
            ) from error
        except KlingError as error:
            # Such as a refused key where a fresh link was asked for.
            raise StorageError(
                f"The video of Kling task {kling_task_id} {what}: {error}",
                task_id=kling_task_id,
                next_step=STAYS_PAID,
                retryable=error.retryable,
            ) from error
        except Exception as error:
            raise StorageError(
                f"The video of Kling task {kling_task_id} {what}: {told(error)}", task_id=kling_task_id
            ) from error


class _Links:
    """The links of one task; all of them are asked for anew at most once."""

    def __init__(self, hook: KlingHook, task: VideoTask) -> None:
        self.kling_task_id = task.task_id
        self.given = task.result_urls
        self._hook = hook
        self._lock = threading.Lock()
        self._renewed: tuple[str, ...] | None = None

    def fresh(self, index: int) -> str:
        with self._lock:
            if self._renewed is None:
                self._renewed = self._hook.get_task(self.kling_task_id).result_urls
        if index >= len(self._renewed):
            raise ResultExpiredError(
                f"The link to the video of Kling task {self.kling_task_id} is dead, and the service gives no other"
            )
        return self._renewed[index]


class NoPlainFileError(OSError):
    """What lies on local disk under a name is a symbolic link, a pipe, a device or a directory."""


class OtherFileError(OSError):
    """A file or the manifest beside it is not what it was a moment ago."""


@dataclass(frozen=True)
class Place:
    """
    A file in a storage, there or not.

    :param uri: the file as ``ObjectStoragePath`` takes it, the connection id in it.
    :param path: the same as its file system takes it.
    :param fs: the file system.
    """

    uri: str
    path: str
    fs: Any

    @classmethod
    def at(cls, uri: str) -> Place:
        """Return the place of a file. That looks the connection up and asks the storage nothing."""
        place = ObjectStoragePath(uri)
        # For the first file system in a process Airflow imports those of all providers, such as boto3.
        fs = LocalFileSystem() if place.protocol in _LOCAL else place.fs
        return cls(uri, place.path, fs)

    @property
    def name(self) -> str:
        """The file's name, without the directory."""
        return posixpath.basename(self.path)

    @property
    def _protocols(self) -> tuple[str, ...]:
        protocol = self.fs.protocol
        return (protocol,) if isinstance(protocol, str) else tuple(protocol)

    @property
    def _is_local(self) -> bool:
        return not set(self._protocols).isdisjoint(_LOCAL)

    def open(self) -> contextlib.AbstractContextManager[BinaryIO]:
        """Open the file to read it from its beginning."""
        # fsspec's own block of 50 MB would be read ahead, and kept.
        opened = self.fs.open(self.path, "rb", block_size=READ_BYTES)
        return cast("contextlib.AbstractContextManager[BinaryIO]", opened)

    def open_in_pieces(self) -> BinaryIO:
        """
        Open the file for reads here and there: each asks the storage for just the bytes that are read.

        Of an object that is replaced meanwhile S3 gives no more bytes.
        """
        return cast("BinaryIO", self.fs.open(self.path, "rb", block_size=READ_BYTES, cache_type="none"))

    def open_plain(self) -> BinaryIO:
        """
        Open the file as :meth:`open_in_pieces` does, and on local disk only where it is a file itself.

        Whoever may write a directory can put a link to any file of this machine there, or a pipe that never ends.

        :raises NoPlainFileError: where it is something else.
        """
        if not self._is_local:
            return self.open_in_pieces()
        self.check_plain()
        try:
            return _open_plain(self.path)
        except FileNotFoundError:
            raise
        except OSError:
            self.check_plain()
            raise

    def open_beside(self, manifest: Manifest) -> BinaryIO:
        """
        Open the file as :meth:`open_plain` does, if the manifest that was read lies beside it.

        On local disk a directory on the way can be a link, and lead elsewhere since the manifest was read. So both are
        opened in one and the same directory, whatever its name leads to meanwhile.

        :raises OtherFileError: where another manifest is there, or none, or the file has another size.
        :raises NoPlainFileError: where it is no file itself.
        """
        if not self._is_local:
            return self.open_in_pieces()
        self.check_plain()
        # Whoever may not list a directory may still open what is in it.
        directory = os.open(self._parent, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            file = _open_plain(self.name, directory)
            try:
                found = _manifest_in(directory, self.name + SUFFIX)
            except BaseException:
                file.close()
                raise
        finally:
            os.close(directory)
        is_whole = os.fstat(file.fileno()).st_size == manifest.file.size_bytes
        if found is None or not found.is_of_same_file(manifest) or not is_whole:
            file.close()
            raise OtherFileError(f"{self.path} is not the file any more that its manifest told of")
        return file

    def check_plain(self) -> None:
        """
        Make sure that on local disk there is a file itself.

        :raises FileNotFoundError: where there is nothing.
        :raises NoPlainFileError: where it is something else.
        """
        if self._is_local and not stat.S_ISREG(os.lstat(self.path).st_mode):
            raise NoPlainFileError(f"{self.path} is no plain file")

    def version(self) -> tuple[str, ...] | None:
        """Return what changes with the file's content, None where the storage tells nothing of that kind."""
        self.fs.invalidate_cache(self._parent)
        info = self.fs.info(self.path)
        told = tuple(f"{name}={info[name]}" for name in _OF_A_VERSION if info.get(name) is not None)
        return (*told, f"{info.get('ino')} {info.get('size')}") if told else None

    def size(self) -> int | None:
        """Return the file's size, None where there is none."""
        self.fs.invalidate_cache(self._parent)
        try:
            found = self.fs.info(self.path)
        except FileNotFoundError:
            return None
        return int(found["size"]) if found.get("type") != "directory" else None

    def check_size(self, size: int) -> None:
        """
        Make sure that the file is there with so many bytes.

        :raises OSError: where it is not.
        """
        found = self.size()
        if found != size:
            raise OSError(f"of the {size} bytes that were sent to {self.path}, {found or 0} are there")

    def holds(self, size: int, sha256: str) -> bool:
        """Tell whether the file is there with just this content."""
        if self.size() != size:
            return False
        digest = hashlib.sha256()
        with self.open() as file:
            while chunk := file.read(READ_BYTES):
                digest.update(chunk)
        return digest.hexdigest() == sha256

    def manifest(self, *, must_be_plain: bool = False) -> Manifest | None:
        """
        Return the manifest beside the file, None where there is none that can be used.

        :param must_be_plain: whether to open it as :meth:`open_plain` does.
        :raises NoPlainFileError: where it must be plain and is not.
        """
        place = replace(self, path=self.path + SUFFIX, uri=self.uri + SUFFIX)
        if not place.size():
            return None
        with place.open_plain() if must_be_plain else place.open() as file:
            return Manifest.read(file.read(MAX_MANIFEST_BYTES + 1))

    def whole(self) -> contextlib.AbstractContextManager[Write]:
        """Write the file so that it appears under its name only when the block is left without an error."""
        return whole_file(Path(self.path)) if self._is_local else self._whole_object()

    @contextlib.contextmanager
    def _whole_object(self) -> Iterator[Write]:
        if _WITHOUT_DIRECTORIES.isdisjoint(self._protocols):
            self.fs.makedirs(self._parent, exist_ok=True)
        partial = f"{self._parent}/.{uuid4().hex}.part"
        written = 0

        def count_and_write(chunk: bytes) -> None:
            nonlocal written
            file.write(chunk)
            written += len(chunk)

        file = self.fs.open(partial, "wb", block_size=BLOCK_BYTES)
        try:
            with InBackground(count_and_write) as write:
                yield write
            file.close()
            replace(self, path=partial).check_size(written)
            self.fs.mv(partial, self.path)
            self.check_size(written)
        except BaseException:
            _abandon(file)
            with contextlib.suppress(Exception):
                self.fs.rm_file(partial)
            raise

    @property
    def _parent(self) -> str:
        return posixpath.dirname(self.path)


def _open_plain(path: str, directory: int | None = None) -> BinaryIO:
    """
    Open a file on local disk, and nothing that has come into its place since it was looked at.

    :param directory: descriptor of the directory that the path starts from.
    """
    # A pipe is not waited for, and is found out once it is open.
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=directory)
    file = os.fdopen(opened, "rb")
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        file.close()
        raise NoPlainFileError(f"{path} is no plain file")
    return file


def _manifest_in(directory: int, name: str) -> Manifest | None:
    try:
        with _open_plain(name, directory) as file:
            return Manifest.read(file.read(MAX_MANIFEST_BYTES + 1))
    except FileNotFoundError:
        return None


def _abandon(file: Any) -> None:
    """Close a file that shall not come to be: fsspec would finish it, as if it were whole."""
    with contextlib.suppress(Exception):
        file.discard()  # where it is closed already too: an upload that could not be finished may still be there
    with contextlib.suppress(Exception):
        file.close()


def write_text(uri: str, text: str) -> None:
    """Write a text file so that it appears under its name only when all of it is written."""
    with Place.at(uri).whole() as write:
        write(text.encode())


def told(error: BaseException) -> str:
    """Return an error's class and text: those of storages often say little by one of them alone."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
