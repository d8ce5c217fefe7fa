"""Opens files to be uploaded, here or in object storage, and sends them without holding them in memory."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_kling.api.errors import KlingError
from airflow_provider_kling.api.media import (
    BEGINNING_BYTES,
    UnreadableMediumError,
    extension_of,
    media_type_of,
)

BLOCK_BYTES = 1024 * 1024
"""How much of a file is read at a time."""
_READ_AHEAD_BYTES = 4 * 1024 * 1024
"""How much more object storage fetches with each request: fewer requests, and still little memory."""

_SUFFIXES = {"jpg": (".jpg", ".jpeg")}


class FileUnavailableError(KlingError):
    """A file to be uploaded could not be read just now."""

    default_retryable = True
    default_next_step = "Nothing was billed. A retry reads it again."


class UnusableFileError(KlingError, ValueError):
    """There is no such file to upload, or it may not be read; another attempt cannot help."""

    default_next_step = (
        "Nothing was billed. Correct the path, or what may be read there, then clear the task."
    )


class FileChangedError(KlingError):
    """A file became another one between being checked and being uploaded."""

    default_retryable = True
    default_next_step = "Nothing was billed. A retry checks and uploads what is there then."


@contextlib.contextmanager
def open_file(path: str | os.PathLike[str] | ObjectStoragePath) -> Iterator[BinaryIO]:
    """
    Open a file for reading in any order.

    :param path: a path (``~`` stands for the home directory) or the URI of a file in object storage, whose
        Airflow connection stands before an ``@``: ``s3://conn_id@bucket/key``.
    :raises UnusableFileError: where there is no such file, or it may not be read, also while it is read in the block.
    :raises FileUnavailableError: where it cannot be read just now, also while it is read in the block.
    """
    shown = os.fspath(path) if isinstance(path, os.PathLike) else str(path)
    try:
        file = _open(shown)
    except (IsADirectoryError, NotADirectoryError, ImportError, ValueError, RuntimeError) as error:
        # An unknown kind of storage, a missing provider package, a home directory of nobody.
        raise UnusableFileError(f"{shown} cannot be opened: {_told(error)}") from error
    except Exception as error:  # every storage has errors of its own
        raise error_of_file(shown, error) from error
    with file:
        try:
            yield file
        except (KlingError, UnreadableMediumError):
            raise
        except Exception as error:
            raise error_of_file(shown, error) from error


def error_of_file(shown: str, error: Exception) -> KlingError:
    """Tell what it means that a file could not be read."""
    if isinstance(error, FileNotFoundError):
        return UnusableFileError(f"{shown} is not there")
    if isinstance(error, PermissionError):
        return UnusableFileError(f"{shown} may not be read: {_told(error)}")
    return FileUnavailableError(f"{shown} could not be read: {_told(error)}")


def _open(shown: str) -> BinaryIO:
    scheme, separator, rest = shown.partition("://")
    if separator and scheme != "file":
        path: Any = ObjectStoragePath(shown)
        return cast("BinaryIO", path.open("rb", block_size=_READ_AHEAD_BYTES))
    local = Path(rest if separator else shown).expanduser()
    mode = local.stat().st_mode
    if not stat.S_ISREG(mode):
        # A pipe would let the task wait for ever, and a device has no end.
        raise IsADirectoryError("it is a directory" if stat.S_ISDIR(mode) else "it is no regular file")
    return local.open("rb")


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


class UploadBody:
    """
    The multipart body of an upload, read from its file block by block.

    :param file: seekable; sent from its beginning.
    :param name: its name; a suffix that is not that of its content is replaced by the right one.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        from urllib3.fields import RequestField
        from urllib3.filepost import choose_boundary

        file.seek(0)
        beginning = file.read(BEGINNING_BYTES)
        self._file = file
        self._file_bytes = file.seek(0, os.SEEK_END)
        field = RequestField("file", b"", filename=_named(name, extension_of(beginning)))
        field.make_multipart(content_type=media_type_of(beginning))
        boundary = choose_boundary()
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self._head = f"--{boundary}\r\n{field.render_headers()}".encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._digest = hashlib.sha256()
        self._left = memoryview(b"")
        self._file_left = 0
        self.was_read = False
        self.failure: Exception | None = None
        self.rewind()

    def rewind(self) -> None:
        """Go back to the beginning, to be sent once more."""
        self._file.seek(0)
        self._digest = hashlib.sha256()
        self._left = memoryview(self._head if self._file_bytes else self._head + self._tail)
        self._file_left = self._file_bytes
        self.was_read = False
        self.failure = None

    @property
    def sha256(self) -> str:
        """The checksum of what was sent of the file, in hexadecimal digits."""
        return self._digest.hexdigest()

    def __len__(self) -> int:
        return len(self._head) + self._file_bytes + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        while block := self.read(BLOCK_BYTES):
            yield block

    def read(self, size: int = BLOCK_BYTES) -> bytes:
        """
        Return the next bytes, none at the end.

        :raises OSError: where the file cannot be read; :attr:`failure` has the reason.
        """
        self.was_read = True
        if not self._left and self._file_left:
            self._left = memoryview(self._next_block())
        block, self._left = self._left[:size], self._left[size:]
        return bytes(block)

    def _next_block(self) -> bytes:
        try:
            block = self._file.read(min(BLOCK_BYTES, self._file_left))
            if not block:
                raise EOFError("it has become shorter")  # noqa: TRY301 - one way to tell of all that can go wrong
        except Exception as error:
            self.failure = error
            raise OSError(f"the file cannot be read: {error}") from error
        self._digest.update(block)
        self._file_left -= len(block)
        return block if self._file_left else block + self._tail


def file_name(path: str | os.PathLike[str] | ObjectStoragePath) -> str:
    """Return the last part of a path or URI."""
    return PurePosixPath(str(path)).name or "file"


def _named(name: str, extension: str | None) -> str:
    suffixes = _SUFFIXES.get(extension or "", (f".{extension}",))
    if extension is None or name.lower().endswith(suffixes):
        return name
    return f"{PurePosixPath(name).stem}.{extension}"
