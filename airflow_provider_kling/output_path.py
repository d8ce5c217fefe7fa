"""
Where a stored video goes: what an ``output_path`` may be, and the name that comes of it.

A ``ledger_path`` is held to the same rule. Pure: nothing is opened or asked. What Airflow and the service put into a
name cannot lead out of the directory that the author wrote down.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

PLACEHOLDERS = ("dag_id", "run_id", "task_id", "map_index", "kling_task_id", "index", "ext")
VIDEO_SUFFIXES = (".mp4", ".mov", ".webm", ".m4v")
"""Endings by which the last part of a template is known as a file's name."""

MAX_VALUE_BYTES = 120
"""How much of a file's name one value may take, bytes in UTF-8."""
MAX_NAME_BYTES = 200
"""Longest file or directory name that is made: file systems take 255, and partial files and manifests add to it."""

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)(.*)", re.DOTALL)
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_WITHOUT_HOST = ("file", "local")
_HOST_IF_ANY = ("memory",)
_PATTERN_CHARACTERS = "*?[]#"
"""fsspec takes some of these for a pattern, and Airflow cuts a path at the others as a URL's."""
_UNQUOTED = "/:@+=,;~!$&'()*"
_UNSAFE = re.compile(r"[^\w.+=@-]")
_DASHED_TIME = re.compile(r"T(\d\d)-(\d\d)-(\d\d(?:\.\d+)?)(?:([+-]\d\d)-(\d\d))?")
_DIGEST = re.compile(r"=[0-9a-f]{10}")


@dataclass(frozen=True)
class Coordinates:
    """
    Which task instance a video is for.

    :param map_index: index of a mapped task, -1 where the task is not mapped.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1

    @classmethod
    def of(cls, context: Context) -> Coordinates:
        """Read them from a task's context."""
        return cls.of_instance(context["ti"])

    @classmethod
    def of_instance(cls, ti: Any) -> Coordinates:
        """Read them from a task instance, or from the key of one."""
        map_index = -1 if ti.map_index is None else ti.map_index
        return cls(dag_id=ti.dag_id, run_id=ti.run_id, task_id=ti.task_id, map_index=map_index)


NOWHERE = Coordinates("-", "-", "-")
"""For a video that no Airflow task asked for."""


class OutputPath:
    """
    A directory or a file's name for videos, with placeholders.

    The placeholders are ``{dag_id}``, ``{run_id}``, ``{task_id}``, ``{map_index}`` (-1 where the task is not mapped),
    ``{kling_task_id}``, ``{index}`` (of the videos of one Kling task, from 0) and ``{ext}``. A template whose last
    part has ``{ext}`` or ends like a video is a file's name; any other is a directory, in which the file is called
    ``{kling_task_id}.{ext}``.

    :param template: a URI that Airflow's ``ObjectStoragePath`` takes, or an absolute local path.
    :param conn_id: Airflow connection for the storage; the template itself may name it too (``s3://conn_id@bucket``).
    :raises ValueError: where the template cannot be used; it names what is wrong.
    """

    def __init__(self, template: str, conn_id: str | None = None) -> None:
        parts = _Parts.of(template)
        if conn_id and parts.conn_id and conn_id != parts.conn_id:
            raise ValueError(
                f"output_path names the connection {parts.conn_id!r}, and the connection {conn_id!r} was given "
                "beside it. Name one of them only."
            )
        self.template = template
        self.conn_id = conn_id or parts.conn_id
        self._parts = parts
        conn = f"{self.conn_id}@" if self.conn_id else ""
        scheme = parts.scheme or ("file" if conn else "")
        self._root = f"{scheme}://{conn}{parts.host}" if scheme else ""
        segments = list(parts.segments)
        if not parts.is_file:
            segments.append("{kling_task_id}.{ext}")
        *self._directories, self._file = segments
        self._placeholders = set(_PLACEHOLDER.findall("/".join(segments)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.template!r}, conn_id={self.conn_id!r})"

    @property
    def has_fixed_extension(self) -> bool:
        """Whether the file's name is the same whatever kind of video it holds."""
        return "ext" not in self._placeholders

    @property
    def tells_tasks_apart(self) -> bool:
        """Whether no two Kling tasks of one Airflow task get the same name."""
        return "kling_task_id" in self._placeholders

    def beside(self, coordinates: Coordinates, name: str) -> str:
        """
        Return the full URI of a file that goes with all of the videos, the connection id in it.

        It lies in the directory that all of them share.

        :param name: the file's name; placeholders in it are filled in.
        """
        shared = []
        for directory in self._directories:
            if set(_PLACEHOLDER.findall(directory)) & {"kling_task_id", "index", "ext"}:
                break
            shared.append(directory)
        values = {
            "dag_id": coordinates.dag_id,
            "run_id": coordinates.run_id,
            "task_id": coordinates.task_id,
            "map_index": str(coordinates.map_index),
        }
        safe = {placeholder: safe_value(value) for placeholder, value in values.items()}
        stem, suffix = posixpath.splitext(name)
        parts = [_shortened(_filled(directory, safe)) for directory in shared]
        parts.append(_shortened(_filled(stem, safe), suffix))
        return f"{self._root}/{'/'.join(parts)}"

    def name(self, coordinates: Coordinates, kling_task_id: str, index: int = 0, ext: str = "mp4") -> str:
        """
        Return the full URI of one video, the connection id in it.

        A second and third video of one Kling task get ``_1``, ``_2`` behind the stem, unless the template has
        ``{index}``. Those of a mapped task get ``_{map_index}``, unless it has that or ``{kling_task_id}``.

        :param kling_task_id: the service's task id.
        :param index: which of the videos of that task, from 0.
        :param ext: the file's extension without the dot.
        """
        values = {
            "dag_id": coordinates.dag_id,
            "run_id": coordinates.run_id,
            "task_id": coordinates.task_id,
            "map_index": str(coordinates.map_index),
            "kling_task_id": kling_task_id,
            "index": str(index),
            "ext": ext,
        }
        behind_stem = ""
        if coordinates.map_index >= 0 and not self._placeholders & {"map_index", "kling_task_id"}:
            behind_stem = f"_{coordinates.map_index}"
        if index > 0 and "index" not in self._placeholders:
            behind_stem += f"_{index}"
        safe = {name: safe_value(value) for name, value in values.items()}
        names = [_shortened(_filled(directory, safe)) for directory in self._directories]
        stem, suffix = _stem_and_suffix(self._file)
        stem, suffix = _filled(stem, safe), _filled(suffix, safe)
        names.append(_shortened(stem, behind_stem + suffix))
        return f"{self._root}/{'/'.join(names)}"


def check_output_path(template: str, conn_id: str | None = None) -> None:
    """
    Check a template that is known already, such as a literal one when the Dag is parsed.

    :raises ValueError: naming what is wrong and what is allowed.
    """
    OutputPath(template, conn_id)


def check_ledger_path(path: str) -> None:
    """
    Check where a ledger is kept: each attempt has to find what an earlier one wrote, whichever worker it runs on.

    :raises ValueError: naming what is wrong and what is allowed.
    """
    _check_place("ledger_path", path, _taken_apart(path))


def uri_of(path: str) -> str:
    """Return a stored file as others may name it, for assets and lineage: a URI without the connection id."""
    scheme, separator, rest = path.partition("://")
    if not separator:
        return f"file://{quote(path, safe=_UNQUOTED)}"
    netloc, slash, key = rest.partition("/")
    return f"{scheme}://{netloc.rpartition('@')[2]}{slash}{quote(key, safe=_UNQUOTED)}"


def safe_value(value: str) -> str:
    """
    Return a value as a part of a file's name: letters, digits and ``._-+=@`` only, and no dot in front.

    The colons of a time become dashes. Wherever else something has to be replaced or cut, a digest of the value is
    put behind it, so that two values never meet in one name.
    """
    safe = _UNSAFE.sub("_", unicodedata.normalize("NFKC", value).replace(":", "-"))
    safe = re.sub(r"^\.+", "_", safe)
    cut = _cut(safe, MAX_VALUE_BYTES)
    if cut and _with_colons(cut) == value and not _DIGEST.search(value[-11:]):
        return cut
    return f"{_cut(safe, MAX_VALUE_BYTES - 11) or '_'}={_digest(value)}"


@dataclass(frozen=True)
class _Parts:
    """What a template consists of."""

    scheme: str
    conn_id: str | None
    host: str
    segments: tuple[str, ...]
    is_file: bool

    @classmethod
    def of(cls, template: str) -> _Parts:
        if not isinstance(template, str) or not template:
            raise ValueError(f"output_path must be a path or URI as text, not {template!r}.")
        _check_characters(template)
        scheme, conn, host, path = place = _taken_apart(template)
        _check_place("output_path", template, place)
        if "{" in conn + host or "}" in conn + host:
            raise ValueError(
                f"output_path {template!r} has a placeholder in the bucket or connection; they may stand behind it "
                "only."
            )
        _check_placeholders(template, path)
        # "." and empty parts name the same place, and object stores would take them as names of their own.
        segments = tuple(part for part in path.split("/") if part not in ("", "."))
        if any(unquote(part) == ".." for part in segments):
            raise ValueError(f"output_path {template!r} has '..' in it; write the directory itself.")
        is_file = bool(segments) and not path.endswith("/") and _is_file_name(segments[-1])
        for part in segments:
            if len(part.encode()) > MAX_NAME_BYTES:
                raise ValueError(
                    f"output_path has a name of {len(part.encode())} bytes in it ({part[:40]!r}…); "
                    f"at most {MAX_NAME_BYTES} are taken."
                )
        return cls(scheme, conn or None, host, segments, is_file)


def _taken_apart(text: str) -> tuple[str, str, str, str]:
    """Return a place's scheme, connection id, bucket and path; each may be empty."""
    uri = _URI.fullmatch(text)
    scheme, netloc, path = uri.groups() if uri else ("", "", text)
    conn, _, host = netloc.rpartition("@")
    return scheme.lower(), conn, host, path


def _check_characters(template: str) -> None:
    if template != template.strip() or not template.isprintable():
        raise ValueError(
            f"output_path {template!r} has a control character, or a blank at its beginning or end; remove it."
        )
    if "\\" in template:
        raise ValueError(f"output_path {template!r} has a backslash; directories are separated by '/'.")
    # A question mark or "#" would end the path, and the others would make it a pattern.
    if found := sorted(set(template) & set(_PATTERN_CHARACTERS)):
        raise ValueError(
            f"output_path {template!r} has {' '.join(found)} in it, which cannot stand in a path here."
        )


def _check_place(name: str, text: str, place: tuple[str, str, str, str]) -> None:
    scheme, conn, host, path = place
    if not scheme and (not path.startswith("/") or path.startswith("//")):
        raise ValueError(
            f"{name} {text!r} is neither a URI such as 's3://bucket/videos' nor an absolute path such as "
            "'/data/videos'. A relative path would depend on where the worker happens to run."
        )
    if scheme in ("http", "https"):
        raise ValueError(f"{name} {text!r} is a web address, and nothing can be stored there.")
    if ":" in conn:
        raise ValueError(
            f"{name} has a user and a password in it. Put them into an Airflow connection, and name that: "
            f"'{scheme}://conn_id@{host}'."
        )
    if scheme in _WITHOUT_HOST and host:
        raise ValueError(
            f"{name} {text!r} names the host {host!r}; a local path has three slashes: "
            f"'{scheme}:///{host}{path}'."
        )
    if scheme and not host and scheme not in (*_WITHOUT_HOST, *_HOST_IF_ANY):
        raise ValueError(f"{name} {text!r} names no bucket: '{scheme}://bucket/directory'.")
    if host and set(host) <= {"."}:
        raise ValueError(f"{name} {text!r} has {host!r} where the bucket's name belongs.")


def _check_placeholders(template: str, path: str) -> None:
    allowed = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    for name in _PLACEHOLDER.findall(path):
        if name not in PLACEHOLDERS:
            raise ValueError(
                f"output_path {template!r} has the placeholder {{{name}}}, which there is not. There are {allowed}."
            )
    if set(_PLACEHOLDER.sub("", path)) & set("{}"):
        raise ValueError(
            f"output_path {template!r} has a brace that belongs to no placeholder. There are {allowed}."
        )


def _is_file_name(segment: str) -> bool:
    return "{ext}" in segment or segment.lower().endswith(VIDEO_SUFFIXES)


def _stem_and_suffix(name: str) -> tuple[str, str]:
    for suffix in (".{ext}", *VIDEO_SUFFIXES):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)], name[-len(suffix) :]
    return name, ""


def _filled(template: str, values: dict[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda found: values[found[1]], template)


def _shortened(stem: str, suffix: str = "") -> str:
    if len((stem + suffix).encode()) <= MAX_NAME_BYTES:
        return stem + suffix
    return f"{_cut(stem, MAX_NAME_BYTES - 11 - len(suffix.encode()))}={_digest(stem)}{suffix}"


def _cut(text: str, limit: int) -> str:
    return text.encode()[:limit].decode(errors="ignore")


def _with_colons(text: str) -> str:
    """Undo what becomes of the times in Airflow's run ids: whatever this does not undo, gets a digest."""
    return _DASHED_TIME.sub(
        lambda found: f"T{found[1]}:{found[2]}:{found[3]}" + (f"{found[4]}:{found[5]}" if found[4] else ""),
        text,
    )


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode(errors="surrogatepass")).hexdigest()[:10]
