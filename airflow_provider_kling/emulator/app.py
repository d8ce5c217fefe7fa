"""The service over HTTP: its calls under both base paths, and the links to results and uploads."""

from __future__ import annotations

import asyncio
import functools
import html
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import BodyPartReader, hdrs, web

from airflow_provider_kling.api.media import BEGINNING_BYTES, MAX_VIDEO_BYTES, extension_of
from airflow_provider_kling.api.task import TaskState
from airflow_provider_kling.emulator import answers
from airflow_provider_kling.emulator.connections import reset_connection
from airflow_provider_kling.emulator.faults import Call, Facts, Fault, FaultPlan
from airflow_provider_kling.emulator.ledger import SeenCreate, SeenRequest
from airflow_provider_kling.emulator.prompts import prompt_of
from airflow_provider_kling.emulator.references import TAKEN, Medium, inspect
from airflow_provider_kling.emulator.service import Account, RefusalError

if TYPE_CHECKING:
    from airflow_provider_kling.emulator.connections import ConnectionCounter
    from airflow_provider_kling.emulator.film import FilmStore
    from airflow_provider_kling.emulator.service import Task, VideoService

BASE_PATHS = ("/api/v1", "/v1")
MAX_BODY_BYTES = 128 * 1024 * 1024
"""Seven images of 10 MB each in Base64, and room to spare."""

_CHUNK = 64 * 1024
_TELLING = 8
"""Characters of a key from which on it is not found in a request by chance."""
_TASK_GROUPS = ("fail", "latency", "no_link", "expired_link")


@dataclass
class _Answer:
    """What a request gets, and what the ledger has to know of it."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    task_id: str | None = None


@dataclass
class _Asked:
    """A request as the handlers of the calls see it."""

    request: web.Request
    call: Call
    task_id: str | None
    body: Any
    faults: dict[str, Fault]


class ServiceApp:
    """
    The web application of a service.

    :param service: what it serves.
    :param faults: what goes wrong.
    :param films: where results are drawn and kept.
    :param uploads: directory for uploads.
    :param executor: where films are drawn and uploads looked at.
    :param links_base: what links to results and uploads begin with.
    :param connections: counts connections.
    :param refuse: makes the port refuse connections for so many seconds.
    """

    def __init__(
        self,
        service: VideoService,
        faults: FaultPlan,
        films: FilmStore,
        *,
        uploads: Path,
        executor: Executor,
        links_base: str,
        connections: ConnectionCounter,
        refuse: Callable[[float], None],
    ) -> None:
        self._service = service
        self._faults = faults
        self._films = films
        self._uploads = uploads
        self._executor = executor
        self._links_base = links_base
        self._connections = connections
        self._refuse = refuse

    def add_routes(self, app: web.Application) -> None:
        """Add the service's paths to an application."""
        calls: tuple[tuple[str, str, Call, Callable[[_Asked, Account], Awaitable[Any]]], ...] = (
            (hdrs.METH_POST, "/video/generations", "create", self._create),
            (hdrs.METH_GET, "/video/generations", "query", self._query),
            (hdrs.METH_POST, "/files", "upload", self._upload),
            (hdrs.METH_GET, "/balance", "balance", self._balance),
            (hdrs.METH_GET, "/records/{task_id}", "record", self._record),
            (hdrs.METH_GET, "/models", "models", self._models),
        )
        for base in BASE_PATHS:
            for method, path, call, handle in calls:
                app.router.add_route(method, base + path, self._handler(call, handle))
        app.router.add_get(r"/videos/{task_id:[0-9a-z]+}{link:(-\d+)?}.mp4", self._result)
        app.router.add_get(r"/uploads/{upload_id:[0-9a-z]+}.{extension:\w+}", self._uploaded)
        app.router.add_route("*", "/{path:.*}", self._unknown)

    def links(self, task: Task) -> list[str]:
        """Return the links to a task's results, as a callback has them."""
        if task.failure is not None:
            return []
        return [self._link(task, task.link)]

    def _link(self, task: Task, number: int) -> str:
        version = f"-{number}" if number > 1 else ""
        return f"{self._links_base}/videos/{task.id}{version}.mp4"

    # Every call

    def _handler(
        self, call: Call, handle: Callable[[_Asked, Account], Awaitable[Any]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def serve(request: web.Request) -> web.StreamResponse:
            task_id = request.query.get("task_id") if call == "query" else request.match_info.get("task_id")
            body = await _read_json(request) if call == "create" else None
            asked = _Asked(request, call, task_id, body, {})
            asked.faults = self._strike(asked)
            fault = asked.faults.get("answer")
            if fault is None or fault.is_handled:
                answer = await self._answer(asked, handle)
            else:
                answer = _Answer(0, b"", task_id=task_id)
            if fault is not None and fault.kind == "answer":
                answer = _replaced(fault, answer.task_id)
            return await self._send(asked, answer, fault)

        return serve

    def _strike(self, asked: _Asked) -> dict[str, Fault]:
        if self._faults.is_empty:
            return {}
        body = asked.body if isinstance(asked.body, dict) else {}
        prompt = prompt_of(body) if asked.call == "create" else self._service.prompt_of_task(asked.task_id)
        return self._faults.take(
            Facts(asked.call, prompt=prompt, task_id=asked.task_id, headers=asked.request.headers, body=body)
        )

    async def _answer(self, asked: _Asked, handle: Callable[[_Asked, Account], Awaitable[Any]]) -> _Answer:
        try:
            account = self._service.authenticate(asked.request.headers.get(hdrs.AUTHORIZATION))
            data = await handle(asked, account)
        except RefusalError as refusal:
            headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
            body = answers.error(refusal.status, refusal.message)
            return _Answer(refusal.status, _dump(body), headers=headers, task_id=asked.task_id)
        drift = asked.faults.get("shape")
        return _Answer(200, _dump(answers.success(data, drift.shape if drift else ())), task_id=asked.task_id)

    async def _send(self, asked: _Asked, answer: _Answer, fault: Fault | None) -> web.StreamResponse:
        broken = fault is not None and fault.kind in ("reset", "lost_answer", "refuse")
        self._enter(asked, answer.task_id, None if broken else answer.status)
        if delay := asked.faults.get("delay"):
            await asyncio.sleep(delay.pause)
        if fault is not None and broken:
            if fault.kind == "refuse":
                self._refuse(fault.pause)
            reset_connection(asked.request.transport)
            return web.Response()
        if fault is not None and fault.kind in ("cut", "stall"):
            return await _send_in_halves(asked.request, answer, fault)
        return web.Response(
            status=answer.status,
            body=answer.body,
            content_type=answer.content_type,
            headers=answer.headers or None,
        )

    def _enter(self, asked: _Asked, task_id: str | None, status: int | None) -> None:
        now, kinds = self._service.now(), tuple(fault.kind for fault in asked.faults.values())
        self._connections.saw(asked.request, "download" if asked.call == "download" else "api")
        ledger = self._service.ledger
        seen = _seen(asked.request, asked.call, now, status, task_id, kinds)
        if asked.call == "download" and _holds_key(asked.request, self._service.keys):
            seen = replace(seen, carried_key=True)
        ledger.saw_request(seen)
        if asked.call == "create":
            ledger.saw_create(SeenCreate(now, prompt_of(asked.body), task_id, status, kinds))

    # The calls

    async def _create(self, asked: _Asked, account: Account) -> Any:
        if asked.body is _UNREADABLE:
            raise RefusalError(400, "Invalid request: the body is not JSON of up to 128 MiB")
        faults = {kind: fault for kind, fault in asked.faults.items() if kind in _TASK_GROUPS}
        task = self._service.create(account, asked.body, faults)
        asked.task_id = task.id
        return answers.created(task, self._service.now())

    async def _query(self, asked: _Asked, account: Account) -> Any:
        if not asked.task_id:
            raise RefusalError(400, "Invalid request: task_id is missing")
        task = self._service.query(account, asked.task_id)
        now, links = self._service.now(), []
        if task.state(now) is TaskState.COMPLETED:
            number = self._service.link_number(task)
            links = [] if number is None else [self._link(task, number)]
        return answers.queried(task, now, links)

    async def _balance(self, asked: _Asked, account: Account) -> Any:
        return self._service.balance(account)

    async def _record(self, asked: _Asked, account: Account) -> Any:
        return self._service.record(account, asked.task_id or "")

    async def _models(self, asked: _Asked, account: Account) -> Any:
        return self._service.models()

    async def _upload(self, asked: _Asked, account: Account) -> Any:
        path, medium = await self._receive(asked.request)
        upload = self._service.upload(medium, str(path))
        return {"publicUrl": f"{self._links_base}/uploads/{upload.id}.{medium.extension}"}

    async def _receive(self, request: web.Request) -> tuple[Path, Medium]:
        if request.content_type != "multipart/form-data":
            raise RefusalError(
                400, "Invalid request: the body must be multipart/form-data with a field 'file'"
            )
        loop = asyncio.get_running_loop()
        try:
            async for part in await request.multipart():
                if isinstance(part, BodyPartReader) and part.name == "file":
                    path = await self._keep(part)
                    return path, await loop.run_in_executor(self._executor, _inspect, path)
        except ValueError:
            raise RefusalError(400, "Invalid request: the multipart body cannot be read") from None
        raise RefusalError(400, "Invalid request: the field 'file' is missing")

    async def _keep(self, part: BodyPartReader) -> Path:
        chunk = await part.read_chunk(_CHUNK)
        extension = extension_of(chunk[:BEGINNING_BYTES])
        if extension not in TAKEN:
            raise RefusalError(400, "Unsupported file: jpg, png, mp4 and mov are taken")
        self._uploads.mkdir(exist_ok=True)
        path = self._uploads / f"{time.time_ns():x}.{extension}"
        size = 0
        try:
            with path.open("xb") as file:
                while chunk:
                    size += len(chunk)
                    _check_size(size)
                    file.write(chunk)
                    chunk = await part.read_chunk(_CHUNK)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    # Links

    async def _result(self, request: web.Request) -> web.StreamResponse:
        task_id = request.match_info["task_id"]
        link = int(request.match_info["link"][1:] or 1)

        async def find() -> Path:
            film, made_at = self._service.find_film(task_id, link)
            found = self._films.find(film)
            if found is not None:
                return found
            draw = functools.partial(self._films.fetch, film, modified_at=made_at)
            return await asyncio.get_running_loop().run_in_executor(self._executor, draw)

        return await self._serve_file(request, task_id, "mp4", find)

    async def _uploaded(self, request: web.Request) -> web.StreamResponse:
        async def find() -> Path:
            return Path(self._service.find_upload(request.match_info["upload_id"]).path)

        return await self._serve_file(request, None, request.match_info["extension"], find)

    async def _serve_file(
        self,
        request: web.Request,
        task_id: str | None,
        extension: str,
        find: Callable[[], Awaitable[Path]],
    ) -> web.StreamResponse:
        asked = _Asked(request, "download", task_id, None, {})
        asked.faults = self._strike(asked)
        fault = asked.faults.get("answer")
        if fault is not None and not fault.is_handled:
            return await self._send(asked, _replaced(fault, task_id), fault)
        try:
            path = await find()
        except RefusalError as refusal:
            answer = _Answer(refusal.status, refusal.message.encode(), "text/plain", task_id=task_id)
            return await self._send(asked, answer, fault)
        media_type = _MEDIA_TYPES.get(extension, "application/octet-stream")
        if fault is not None:
            return await self._send(asked, _file_answer(request, path, media_type, task_id), fault)
        self._enter(asked, task_id, 206 if hdrs.RANGE in request.headers else 200)
        if delay := asked.faults.get("delay"):
            await asyncio.sleep(delay.pause)
        return web.FileResponse(path, chunk_size=_CHUNK, headers={hdrs.CONTENT_TYPE: media_type})

    async def _unknown(self, request: web.Request) -> web.StreamResponse:
        self._connections.saw(request, "api")
        seen = _seen(request, "unknown", self._service.now(), 404, None, ())
        self._service.ledger.saw_request(seen)
        body = answers.error(404, f"There is no {request.method} {request.path}")
        return web.json_response(body, status=404)


_UNREADABLE = object()
_MEDIA_TYPES = {"mp4": "video/mp4", "mov": "video/quicktime", "jpg": "image/jpeg", "png": "image/png"}


def _seen(
    request: web.Request,
    call: str,
    now: float,
    status: int | None,
    task_id: str | None,
    kinds: tuple[str, ...],
) -> SeenRequest:
    headers = request.headers
    return SeenRequest(
        at=now,
        call=call,
        method=request.method,
        path=request.path,
        status=status,
        task_id=task_id,
        faults=kinds,
        user_agent=headers.get(hdrs.USER_AGENT, ""),
        carried_key=hdrs.AUTHORIZATION in headers,
    )


def _holds_key(request: web.Request, keys: Iterable[str]) -> bool:
    """Tell whether a key is anywhere in a request to a link, where none belongs."""
    said = (request.path_qs, *request.headers.values())
    return any(key in text for key in keys if len(key) >= _TELLING for text in said)


async def _read_json(request: web.Request) -> Any:
    try:
        return json.loads(await request.read())
    except (ValueError, RecursionError, web.HTTPRequestEntityTooLarge):
        return _UNREADABLE


def _inspect(path: Path) -> Medium:
    with path.open("rb") as file:
        return inspect(file)


def _check_size(size: int) -> None:
    if size > MAX_VIDEO_BYTES:
        raise RefusalError(400, f"The file is too large: at most {MAX_VIDEO_BYTES} bytes are taken")


def _dump(body: Any) -> bytes:
    return json.dumps(body).encode()


def _replaced(fault: Fault, task_id: str | None) -> _Answer:
    """Return the answer that a fault gives in place of the service's own."""
    status = fault.status or 500
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Error"
    answer = _Answer(status, b"", "text/html", task_id=task_id)
    if fault.body == "json":
        code = status if fault.code is None else fault.code
        answer.body = _dump(answers.error(code, fault.message or phrase, at=fault.message_at))
        answer.content_type = "application/json"
    elif fault.body == "null":
        answer.body, answer.content_type = b"null", "application/json"
    elif fault.body == "text":
        answer.body, answer.content_type = (fault.message or "upstream error").encode(), "text/plain"
    elif fault.body == "html":
        title = html.escape(fault.message or f"{status} {phrase}")
        page = (
            f"<!DOCTYPE html>\n<html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>"
        )
        answer.body = page.encode()
    if fault.retry_after is not None:
        at = formatdate(time.time() + fault.retry_after, usegmt=True)
        answer.headers["Retry-After"] = at if fault.retry_after_as == "date" else str(fault.retry_after)
    return answer


def _file_answer(request: web.Request, path: Path, media_type: str, task_id: str | None) -> _Answer:
    """Return a file, or the range of it that is asked for, as an answer that can be broken."""
    content = path.read_bytes()
    about = path.stat()
    # As aiohttp makes it for an answer that nothing breaks.
    etag = f'"{about.st_mtime_ns:x}-{about.st_size:x}"'
    headers: dict[str, str] = {hdrs.ACCEPT_RANGES: "bytes", hdrs.ETAG: etag}
    if hdrs.RANGE not in request.headers or request.headers.get(hdrs.IF_RANGE, etag) != etag:
        return _Answer(200, content, media_type, headers, task_id)
    try:
        start, stop, _ = request.http_range.indices(len(content))
    except ValueError:
        start = stop = 0
    if start >= stop:
        headers[hdrs.CONTENT_RANGE] = f"bytes */{len(content)}"
        return _Answer(416, b"", media_type, headers, task_id)
    headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{stop - 1}/{len(content)}"
    return _Answer(206, content[start:stop], media_type, headers, task_id)


async def _send_in_halves(request: web.Request, answer: _Answer, fault: Fault) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.content_type = answer.content_type
    response.content_length = len(answer.body)
    await response.prepare(request)
    half = len(answer.body) // 2
    await response.write(answer.body[:half])
    if fault.kind == "cut":
        # An orderly close: the client sees fewer bytes than were announced.
        response.force_close()
        if request.transport is not None:
            request.transport.close()
        return response
    await asyncio.sleep(fault.pause)
    await response.write(answer.body[half:])
    await response.write_eof()
    return response
