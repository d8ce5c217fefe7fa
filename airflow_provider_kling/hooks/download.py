"""Fetches a result: what the server sends is checked, taken up again after a cut, hashed, and written whole or not."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit
from uuid import uuid4

import requests
import urllib3.exceptions

from airflow_provider_kling.api.errors import EXCERPT_CHARACTERS, DownloadError, ResultExpiredError
from airflow_provider_kling.api.media import BEGINNING_BYTES, extension_of
from airflow_provider_kling.disk import sync_directory

if TYPE_CHECKING:
    from airflow_provider_kling.hooks.sync_client import KlingClient

CHUNK_BYTES = 256 * 1024
"""With :data:`_QUEUED_CHUNKS` on their way it is 1 MB: with more, memory is given back and asked for all the time."""
MAX_CUTS = 5
"""How often a download is cut before it is given up, unless more than :data:`PROGRESS_BYTES` came in between."""
PROGRESS_BYTES = 1024 * 1024
MAX_STARTS = 3
"""How often a download begins at its first byte, where the server cannot go on in the middle."""

VIDEO_TYPES = {"mp4": "video/mp4", "mov": "video/quicktime", "webm": "video/webm"}
"""Media type by extension, for all kinds of videos that results are known to be."""
_EXTENSIONS = {"video/mp4": "mp4", "application/mp4": "mp4", "video/x-m4v": "mp4"} | {
    media_type: extension for extension, media_type in VIDEO_TYPES.items()
}
_NO_VIDEO = re.compile(r"text/.*|image/.*|application/(json|xml|xhtml)|.*\+(json|xml)")
_DEAD = (403, 404, 410)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_MARKUP = re.compile(rb"\xef\xbb\xbf|\s*(<|\{\s*[\"}]|\[\s*[\"{])")
_QUEUED_CHUNKS = 4
_STEP_BYTES = 4 * 1024 * 1024
_BEHIND_BYTES = 32 * 1024 * 1024

Write = Callable[[bytes], object]
Get = Callable[[Mapping[str, str]], requests.Response]


class _CannotResumeError(DownloadError):
    """A download that was cut can only begin anew."""


@dataclass(frozen=True)
class Fetched:
    """
    A result that was fetched to its last byte.

    :param size_bytes: its size.
    :param sha256: its SHA-256, hexadecimal.
    :param media_type: such as ``video/mp4``.
    :param extension: ``mp4``, ``mov`` or ``webm``.
    """

    size_bytes: int
    sha256: str
    media_type: str
    extension: str


class ResultStream:
    """
    A result that is being read.

    :param get: makes the GET with more headers, and returns an answer whose body is not read yet.
    :param url: the link; what follows its question mark is shown to nobody.
    :raises ResultExpiredError: where the link is dead.
    :raises DownloadError: where it cannot be read or does not lead to a video.
    """

    def __init__(self, get: Get, url: str) -> None:
        self._get = get
        self._url = url
        self._shown, _, self._secret = url.partition("?")
        self._position = 0
        self._cuts = 0
        self._cut_at = 0
        self._ahead = b""
        self._response = self._ask({})
        self._take_up_first()

    def close(self) -> None:
        """Close the connection."""
        self._response.close()

    @property
    def size_bytes(self) -> int | None:
        """Its size, None where the server does not tell."""
        return self._size

    @property
    def extension(self) -> str:
        """``mp4``, ``mov`` or ``webm``: by the file's beginning, else its media type, else its link; else ``mp4``."""
        by_content = extension_of(self._beginning())
        if by_content in VIDEO_TYPES:
            return str(by_content)
        by_link = Path(urlsplit(self._shown).path).suffix.lower().removeprefix(".")
        return _EXTENSIONS.get(self._told_type) or (by_link if by_link in VIDEO_TYPES else "mp4")

    @property
    def media_type(self) -> str:
        """The media type that the server told, or where that says nothing, that of the :attr:`extension`."""
        if self._told_type.startswith("video/"):
            return self._told_type
        return VIDEO_TYPES[self.extension]

    def __iter__(self) -> Iterator[bytes]:
        """
        Read the file in chunks, over cuts of the connection.

        :raises ResultExpiredError: where the link died meanwhile.
        :raises DownloadError: where it cannot be read to its end.
        """
        self._beginning()
        while chunk := self._take():
            yield chunk

    def _beginning(self) -> bytes:
        if not self._ahead and not self._position:
            self._ahead = self._read()
            if not self._ahead:
                raise DownloadError(f"The file at {self._shown} is empty")
            while len(self._ahead) < BEGINNING_BYTES and (more := self._read()):
                self._ahead += more
            if _MARKUP.match(self._ahead):
                raise self._no_video(self._told_type or "text", self._ahead)
        return self._ahead

    def _take(self) -> bytes:
        if self._ahead:
            chunk, self._ahead = self._ahead, b""
            return chunk
        return self._read()

    def _read(self) -> bytes:
        while True:
            try:
                # Not iter_content(), which copies what it reads once more.
                chunk: bytes = self._response.raw.read(CHUNK_BYTES, decode_content=False)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                self._resume(str(error) or type(error).__name__)
                continue
            self._position += len(chunk)
            if chunk or self._size is None or self._position >= self._size:
                return chunk
            self._resume("it ended early")

    def _resume(self, reason: str) -> None:
        """Go on where the connection was cut."""
        self._response.close()
        of_all = "" if self._size is None else f" of {self._size}"
        told = f"The video at {self._shown} could not be read: cut after {self._position}{of_all} bytes ({reason})"
        if self._position > self._cut_at + PROGRESS_BYTES:
            self._cuts = 0
        self._cut_at = self._position
        while True:
            self._cuts += 1
            if self._cuts > MAX_CUTS:
                raise DownloadError(told)
            if self._position and self._validator is None:
                raise _CannotResumeError(
                    f"{told}, and the server gives nothing to tell by that it is still the same"
                )
            time.sleep(min(2.0**self._cuts, 10.0) * random.uniform(0.1, 0.2))  # noqa: S311
            try:
                self._response = self._ask(self._from_here())
            except ResultExpiredError:
                raise
            except DownloadError as error:
                told = error.what
                continue
            if not self._position:
                self._take_up_first()
            elif not self._goes_on():
                self._response.close()
                raise _CannotResumeError(f"{told}, and the server does not go on from there")
            return

    def _from_here(self) -> dict[str, str]:
        if not self._position:
            return {}
        return {"Range": f"bytes={self._position}-", "If-Range": str(self._validator)}

    def _goes_on(self) -> bool:
        response = self._response
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        if response.status_code != 206 or found is None or int(found[1]) != self._position:
            return False
        if found[3] != "*" and self._size is not None and int(found[3]) != self._size:
            return False
        return _validator(response) in (None, self._validator)

    def _ask(self, headers: Mapping[str, str]) -> requests.Response:
        try:
            # What is compressed on its way has no length to be checked, and nowhere to go on from.
            response = self._get({"Accept-Encoding": "identity", **headers})
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            # The library may quote an address that it was led to, and what follows there may be a signature.
            reason = re.sub(r"\?\S*", "?…", str(root_of(error)))
            raise DownloadError(f"The video at {self._shown} could not be read: {reason}") from None
        if response.status_code in _DEAD:
            response.close()
            raise ResultExpiredError(f"The link {self._shown} is dead", code=response.status_code)
        return response

    def _take_up_first(self) -> None:
        """Check the answer that begins with the file's first byte, and note what it says of the file."""
        response = self._response
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        if response.status_code != 200 or _NO_VIDEO.fullmatch(media_type):
            error = self._no_video(media_type or "nothing", self._excerpt(), code=response.status_code)
            response.close()
            raise error
        if encoding not in ("", "identity"):
            response.close()
            raise DownloadError(
                f"The video at {self._shown} comes compressed ({encoding}), which was not asked for: see whether a "
                "proxy does that"
            )
        length = response.headers.get("Content-Length", "").strip()
        self._told_type = media_type
        self._size = int(length) if length.isascii() and length.isdigit() else None
        self._validator = _validator(response)

    def _excerpt(self) -> bytes:
        try:
            content: bytes = self._response.raw.read(4 * EXCERPT_CHARACTERS, decode_content=True)
        except (urllib3.exceptions.HTTPError, OSError):
            return b""
        return content

    def _no_video(self, media_type: str, beginning: bytes, *, code: int | None = 200) -> DownloadError:
        text = " ".join(beginning[: 4 * EXCERPT_CHARACTERS].decode(errors="replace").split())
        if self._secret:  # a signature, maybe; error pages like to repeat it
            text = text.replace(self._secret, "…")
        quoted = f"; it begins: {text[:EXCERPT_CHARACTERS]!r}" if text else ""
        return DownloadError(
            f"The link {self._shown} does not give a video but {media_type}{quoted}", code=code
        )


class InBackground:
    """
    Does something with each chunk in a thread of its own, in order, a few chunks behind.

    When the block is left, all chunks are done. An error of the thread is raised where the next chunk is given.
    """

    def __init__(self, work: Write) -> None:
        self._work = work
        self._chunks: queue.Queue[bytes | None] = queue.Queue(_QUEUED_CHUNKS)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error_type is not None:
            self._work = _ignored  # what is still queued is of no use to anyone
        self._chunks.put(None)
        self._thread.join()
        if error_type is None and self._error is not None:
            raise self._error

    def __call__(self, chunk: bytes) -> None:
        """Hand a chunk over, and wait where too many are on their way already."""
        if self._error is not None:
            raise self._error
        self._chunks.put(chunk)

    def _run(self) -> None:
        while (chunk := self._chunks.get()) is not None:
            if self._error is None:
                try:
                    self._work(chunk)
                except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits for it
                    self._error = error


def fetch(
    client: KlingClient, url: str, open_target: Callable[[ResultStream], AbstractContextManager[Write]]
) -> Fetched:
    """
    Fetch a result to its last byte.

    :param open_target: opens what is written to. It is left with an error where the result did not arrive whole, and
        opened anew where the download has to begin anew.
    :raises ResultExpiredError: where the link is dead.
    :raises DownloadError: where it cannot be read to its end or is no video. What the target raises comes through.
    """
    for starts_left in reversed(range(MAX_STARTS)):
        try:
            with client.open_result(url) as stream:
                size, digest = 0, hashlib.sha256()
                extension, media_type = stream.extension, stream.media_type
                with open_target(stream) as write, InBackground(digest.update) as add_to_digest:
                    for chunk in stream:
                        add_to_digest(chunk)
                        write(chunk)
                        size += len(chunk)
                return Fetched(size, digest.hexdigest(), media_type, extension)
        except _CannotResumeError as error:
            if not starts_left:
                raise DownloadError(error.what) from error
    raise AssertionError("unreachable")  # pragma: no cover


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Write]:
    """
    Write a local file that appears under its name only when the block is left without an error, and then for good.

    :raises OSError: where it cannot be written. What was there before is still there then.
    """
    partial = path.with_name(f".{uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb", buffering=0) as file:
            yield _WrittenBehind(file)
            os.fsync(file.fileno())
        partial.replace(path)
        sync_directory(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


class _WrittenBehind:
    """
    Writes, and lets the disk begin with each few megabytes at once, so that it has little left to do at the end.

    What is on the disk is let go of: the file goes through memory that it has used before. Fresh memory costs more than
    all else here, most of all on a virtual machine, and the worker's other files are pushed out of it.
    """

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._written = 0
        self._begun = 0

    def __call__(self, chunk: bytes) -> None:
        left = memoryview(chunk)
        while left:
            left = left[self._file.write(left) :]
        self._written += len(chunk)
        if self._written - self._begun >= _STEP_BYTES and hasattr(os, "posix_fadvise"):
            self._begun = self._written
            # What is still on its way to the disk is not let go of: the next steps go through it once more.
            start = max(0, self._written - _BEHIND_BYTES)
            os.posix_fadvise(self._file.fileno(), start, self._written - start, os.POSIX_FADV_DONTNEED)


def root_of(error: BaseException) -> BaseException:
    """Return what urllib3 says inside the wrappings of requests and of its own retries."""
    inner = error.args[0] if error.args and isinstance(error.args[0], BaseException) else error
    reason = getattr(inner, "reason", None)
    return reason if isinstance(reason, BaseException) else inner


def _validator(response: Any) -> str | None:
    """Return what tells this state of the file from another one, byte by byte: a weak ETag does not."""
    etag = response.headers.get("ETag", "").strip()
    if etag and not etag.startswith("W/"):
        return str(etag)
    return response.headers.get("Last-Modified") or None


def _ignored(_: bytes) -> None:
    pass
