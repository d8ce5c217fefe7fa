"""
How each call to the service is written and how each answer is read, without sending anything.

The synchronous and the asynchronous client carry these calls over the network and bring the answers back.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

from airflow_provider_kling.api.errors import (
    Operation,
    UnreadableAnswerError,
    error_for_status,
    error_for_unreadable,
)
from airflow_provider_kling.api.task import Balance, RecordedCost, VideoTask

if TYPE_CHECKING:
    from airflow_provider_kling.api.request import VideoRequest

DEFAULT_BASE_URL = "https://apimodels.app/api/v1"
CALLBACK_PATH = "/kling/callbacks"
"""Where callbacks are received in Airflow's API server. What follows it in an address is a secret."""

_DEFAULT_PATH = "/api/v1"
_DEFAULT_PATHS = {"api.apimodels.app": "/v1"}
"""The path of the base URL by host, where it is not :data:`_DEFAULT_PATH`."""
_SLASH = r"(?:\\*/|%(?:25)*2F)"
_CALLBACK = re.compile(rf"({CALLBACK_PATH.replace('/', _SLASH)}{_SLASH})[\w.~%-]+", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class ApiCall:
    """
    One call to the service.

    :param operation: what it is for.
    :param method: the HTTP method.
    :param path: what follows the base URL.
    :param params: the query string.
    :param json_body: the JSON body, None for no body.
    :param task_id: the task that the call is about.
    """

    operation: Operation
    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    json_body: Mapping[str, Any] | None = None
    task_id: str | None = None


@dataclass(frozen=True)
class ApiAnswer:
    """
    What came back for a call.

    :param status: the HTTP status.
    :param headers: the headers, whose names are compared without regard to case by whoever made the mapping.
    :param body: the body's bytes.
    :param key: what the call was made with.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    key: str = field(default="", repr=False)

    def quoted(self, text: str) -> str:
        """Return words of the service as they may be told: without the key, callback addresses without their token."""
        return _CALLBACK.sub(r"\1***", text.replace(self.key, "***") if self.key else text)


def normalise_base_url(text: str | None) -> str:
    """
    Return the base URL that a connection's host stands for, without a slash at its end.

    :param text: empty for the service itself; a host, or a URL with or without a path. Without a scheme it is
        ``https``; without a path it is the one that the service uses on that host.
    :raises ValueError: where the text is no such URL.
    """
    written = (text or "").strip()
    if not written:
        return DEFAULT_BASE_URL
    parts = urlsplit(written if "://" in written else f"https://{written}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        # First, and without quoting it: what is too much may be a secret.
        raise ValueError("the URL may hold scheme, host, port and path only")
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.netloc.endswith(":")  # what "https:/host" becomes
        or " " in written
        or not written.isprintable()
    ):
        raise ValueError(f"{written!r} is not the URL of a service: use something like {DEFAULT_BASE_URL}")
    parts.port  # noqa: B018 - raises ValueError where the port is no number
    path = parts.path.rstrip("/") or _DEFAULT_PATHS.get(parts.hostname, _DEFAULT_PATH)
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def create_call(request: VideoRequest) -> ApiCall:
    """Write the call that creates a task. It is the only one that costs money."""
    return ApiCall(
        operation=Operation.CREATE, method="POST", path="/video/generations", json_body=request.to_body()
    )


def query_call(task_id: str) -> ApiCall:
    """Write the call that asks for a task's state."""
    return ApiCall(
        operation=Operation.QUERY,
        method="GET",
        path="/video/generations",
        params={"task_id": task_id},
        task_id=task_id,
    )


def record_call(task_id: str) -> ApiCall:
    """Write the call that asks what a task really cost."""
    return ApiCall(
        operation=Operation.RECORD, method="GET", path=f"/records/{quote(task_id, safe='')}", task_id=task_id
    )


def balance_call() -> ApiCall:
    """Write the call that asks for the money left."""
    return ApiCall(operation=Operation.BALANCE, method="GET", path="/balance")


def models_call() -> ApiCall:
    """Write the call that asks for the models' ids."""
    return ApiCall(operation=Operation.MODELS, method="GET", path="/models")


def upload_call() -> ApiCall:
    """Write the call that uploads a reference file; the file itself goes into the multipart field ``file``."""
    return ApiCall(operation=Operation.UPLOAD, method="POST", path="/files")


def read_task(call: ApiCall, answer: ApiAnswer) -> VideoTask:
    """
    Read the answer to a create or a query.

    :raises ServiceError: where the answer is an error or no answer of this service.
    """
    payload = _read_payload(call, answer)
    task = VideoTask.from_payload(payload, task_id=call.task_id) if isinstance(payload, Mapping) else None
    if task is None or (call.task_id is not None and task.task_id != call.task_id):
        raise error_for_unreadable(
            call.operation, _excerpt(answer), status=answer.status, task_id=call.task_id
        )
    return replace(
        task,
        fail_code=task.fail_code and answer.quoted(task.fail_code),
        fail_message=task.fail_message and answer.quoted(task.fail_message),
    )


def read_callback(body: bytes) -> VideoTask | None:
    """
    Read what was posted to a callback URL. It is unsigned: a hint, to be believed only after a query.

    :return: None where it is not about a task.
    """
    document = _json(body)
    payload = _payload(document) if isinstance(document, Mapping) else None
    return VideoTask.from_payload(payload) if isinstance(payload, Mapping) else None


def read_cost(call: ApiCall, answer: ApiAnswer) -> RecordedCost | None:
    """
    Read the answer to :func:`record_call`.

    :return: None where the service does not offer this call, or answers it in another form.
    :raises ServiceError: where the answer is an error other than 404.
    """
    payload = _read_optional(call, answer)
    if not isinstance(payload, Mapping):
        return None
    return RecordedCost.from_payload(payload, task_id=call.task_id or "")


def read_balance(call: ApiCall, answer: ApiAnswer) -> Balance | None:
    """
    Read the answer to :func:`balance_call`.

    :return: None where the service does not offer this call, or answers it in another form.
    :raises ServiceError: where the answer is an error other than 404.
    """
    payload = _read_optional(call, answer)
    return Balance.from_payload(payload) if isinstance(payload, Mapping) else None


def read_models(call: ApiCall, answer: ApiAnswer) -> list[str] | None:
    """
    Read the answer to :func:`models_call`.

    :return: the ids; None where the service does not offer this call, or answers it in another form.
    :raises ServiceError: where the answer is an error other than 404.
    """
    payload = _read_optional(call, answer)
    if not isinstance(payload, list):
        return None
    ids = [item["id"] for item in payload if isinstance(item, Mapping) and isinstance(item.get("id"), str)]
    return ids if ids or not payload else None


def read_upload(call: ApiCall, answer: ApiAnswer) -> str:
    """
    Read the answer to :func:`upload_call`.

    :return: the URL of the uploaded file, good for 7 days.
    :raises ServiceError: where the answer is an error or holds no URL.
    """
    payload = _read_payload(call, answer)
    url = payload.get("publicUrl") if isinstance(payload, Mapping) else None
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise error_for_unreadable(call.operation, _excerpt(answer), status=answer.status)
    return url


def is_in_service_form(answer: ApiAnswer) -> bool:
    """Whether an answer, an error's too, looks like one of this service and not like any web server's."""
    document = _json(answer.body)
    return isinstance(document, Mapping) and (
        _code(document) is not None or _message(document, answer) is not None
    )


def retry_after_seconds(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """
    Read the ``Retry-After`` header.

    :param now: epoch seconds; the current time unless given.
    :return: seconds to wait, 0 or more; None where the header is missing or unreadable.
    """
    value = headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit() and len(value) < 10:
        return float(value)
    try:
        at = parsedate_to_datetime(value)
        if at.tzinfo is None:  # the old forms of an HTTP date name no zone, and mean GMT
            at = at.replace(tzinfo=UTC)
        return max(0.0, at.timestamp() - (time.time() if now is None else now))
    except (ValueError, OverflowError):
        return None


def _read_payload(call: ApiCall, answer: ApiAnswer) -> Any:
    document = _json(answer.body)
    code = _code(document)
    deciding = answer.status if answer.status >= 300 else code
    if deciding is not None and deciding >= 300:
        raise error_for_status(
            call.operation,
            deciding,
            code=code if answer.status >= 300 and code and code >= 300 else None,
            service_message=_message(document, answer) or _excerpt(answer) or None,
            task_id=call.task_id,
            retry_after=retry_after_seconds(answer.headers),
        )
    if not isinstance(document, (Mapping, list)):
        raise error_for_unreadable(
            call.operation, _excerpt(answer), status=answer.status, task_id=call.task_id
        )
    return _payload(document)


def _read_optional(call: ApiCall, answer: ApiAnswer) -> Any:
    try:
        return _read_payload(call, answer)
    except UnreadableAnswerError:  # 404, or a page in place of an answer: the call is not offered here
        return None


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _payload(document: Mapping[str, Any] | list[Any]) -> Any:
    if isinstance(document, Mapping) and isinstance(document.get("data"), (Mapping, list)):
        return document["data"]
    return document


def _code(document: Any) -> int | None:
    code = document.get("code") if isinstance(document, Mapping) else None
    if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) < 10:
        code = int(code)
    return code if isinstance(code, int) and not isinstance(code, bool) else None


def _message(document: Any, answer: ApiAnswer) -> str | None:
    if not isinstance(document, Mapping):
        return None
    error = document.get("error")
    nested = error.get("message") if isinstance(error, Mapping) else error
    for text in (document.get("msg"), document.get("message"), nested):
        if isinstance(text, str) and text.strip():
            return answer.quoted(text.strip())[:1000]
    return None


def _excerpt(answer: ApiAnswer) -> str:
    # In UTF-16 every other byte is zero, and nothing that is looked for would be found.
    text = answer.quoted(answer.body.decode("utf-8", "replace").replace("\0", ""))
    return " ".join(text[:2000].split())[:200]
