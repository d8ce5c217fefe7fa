"""
The page "Kling videos": its static files, and the routes that read what Airflow's own API does not give.

Airflow mounts the apps of plugins without asking who comes. So the routes ask themselves, with Airflow's own rights:
whoever may read a Dag's XComs may see its videos. The static files hold no data and are for all.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, TypeVar
from urllib.parse import quote

import anyio
import anyio.to_thread
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.core_api.security import requires_access_dag
from airflow.providers.common.compat.sdk import AirflowConfigException
from anyio.lowlevel import RunVar
from fastapi import Depends, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from airflow_provider_kling import config
from airflow_provider_kling.output_path import Coordinates
from airflow_provider_kling.page_address import NAME, PATH
from airflow_provider_kling.plugins.byte_range import wanted
from airflow_provider_kling.plugins.stored_videos import (
    NotPlayedError,
    Reason,
    StoredVideo,
    card_of,
    find_list,
    find_video,
    kling_tasks_of,
    open_video,
    read_piece,
)

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from airflow_provider_kling.plugins.byte_range import Wanted

THREADS = 8
"""
Threads of one process that read from storages for viewers.

They are none of those that answer Airflow's own requests, and a viewer has one only while bytes for it are read.
"""
MOST_STREAMS = 200
"""Files of one process that are being sent at once. Each holds up to two pieces in memory."""
FIRST_PIECE_BYTES = 128 * 1024
"""What is read first: often the player wants no more than the beginning of a part."""
MOST_PIECE_BYTES = 512 * 1024
MOST_IN_LIST = 100
"""Videos of a list that one answer tells of."""

_STATIC = FilePath(__file__).parent / "page"
_INDEX = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; "
    "media-src {media}; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
_OF_ALL = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_OF_DATA = {"Cache-Control": "private, no-store", "Content-Security-Policy": "default-src 'none'; sandbox"}
_UNSAFE_IN_NAME = re.compile(r"[^A-Za-z0-9._=@+-]")

log = logging.getLogger(__name__)
_T = TypeVar("_T")
_threads: RunVar[anyio.CapacityLimiter] = RunVar("kling_gallery_threads")
_streams: RunVar[anyio.CapacityLimiter] = RunVar("kling_gallery_streams")


def create_app() -> FastAPI:
    """Make the app that Airflow mounts at :data:`~airflow_provider_kling.page_address.PATH`."""
    app = FastAPI(title=NAME, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    policy = _POLICY.format(media=" ".join(["'self'", *_media_hosts()]))

    @app.api_route("/", methods=["GET", "HEAD"])
    def index(request: Request) -> Response:
        """Give the page."""
        return _static(request, _INDEX, policy)

    @app.api_route("/static/{name}", methods=["GET", "HEAD"])
    def static(request: Request, name: str) -> Response:
        """Give a file that the page consists of."""
        if name not in {path.name for path in _STATIC.iterdir() if path.suffix in _TYPES} - {_INDEX}:
            raise StarletteHTTPException(404)
        return _static(request, name, policy)

    may_read = [Depends(requires_access_dag("GET", DagAccessEntity.XCOM))]
    of_task = "/dags/{dag_id}/runs/{run_id}/tasks/{task_id}/{map_index}"

    @app.api_route(of_task + "/files/{index}", methods=["GET", "HEAD"], dependencies=may_read)
    async def play(
        request: Request,
        whose: Annotated[Coordinates, Depends(_coordinates)],
        index: Annotated[int, Path(ge=0, le=1000)],
        item: Annotated[int | None, Query(ge=0, le=1_000_000)] = None,
        download: bool = False,
    ) -> Response:
        """Give a stored file, or the part of it that is asked for."""
        video = await _in_thread(lambda: find_video(whose, index, item))
        part = wanted(request.method, request.headers, size=video.size, tag=video.tag)
        return await _play(request, video, part, is_download=download)

    @app.get(of_task + "/videos", dependencies=may_read)
    async def videos(
        whose: Annotated[Coordinates, Depends(_coordinates)],
        offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
        limit: Annotated[int, Query(ge=1, le=MOST_IN_LIST)] = 50,
    ) -> JSONResponse:
        """Tell of some of the videos of a list."""
        page = await _in_thread(lambda: find_list(whose, offset=offset, limit=limit))
        cards: list[dict[str, Any]] = [{} for _ in page.results]

        async def look(place: int) -> None:
            make = functools.partial(card_of, whose, offset + place, page.results[place])
            cards[place] = await _in_thread(make)

        async with anyio.create_task_group() as group:
            for place in range(len(cards)):
                group.start_soon(look, place)
        told = {"total": page.total, "offset": offset, "limit": limit, "videos": cards}
        return JSONResponse(told, headers=_OF_ALL | _OF_DATA)

    @app.get(of_task + "/kling-tasks", dependencies=may_read)
    async def kling_tasks(whose: Annotated[Coordinates, Depends(_coordinates)]) -> JSONResponse:
        """Tell which Kling tasks are a list's, so that what other tasks tell of them is not taken for more videos."""
        stored, others = await _in_thread(lambda: kling_tasks_of(whose))
        return JSONResponse({"stored": stored, "others": others}, headers=_OF_ALL | _OF_DATA)

    @app.exception_handler(NotPlayedError)
    async def not_played(_: Request, error: NotPlayedError) -> JSONResponse:
        status = 503 if error.reason is Reason.UNAVAILABLE else 404
        told = {"detail": str(error), "reason": error.reason.value}
        return JSONResponse(told, status, _OF_ALL | _OF_DATA)

    @app.exception_handler(RequestValidationError)
    async def unusable(_: Request, __: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": "Unprocessable Content"}, 422, _OF_ALL | _OF_DATA)

    @app.exception_handler(StarletteHTTPException)
    async def other(_: Request, error: StarletteHTTPException) -> JSONResponse:
        headers = {**(error.headers or {}), **_OF_ALL, **_OF_DATA}
        return JSONResponse({"detail": error.detail}, error.status_code, headers)

    app.add_middleware(_TakesCareOfPath)
    return app


def _media_hosts() -> list[str]:
    try:
        return config.media_hosts()
    except AirflowConfigException as error:
        # A wrong setting must not keep the API server from starting.
        log.warning("%s. Only the service's own links play.", error)
        return [config.DEFAULT_MEDIA_HOSTS]


def _coordinates(
    dag_id: str, run_id: str, task_id: str, map_index: Annotated[int, Path(ge=-1, le=2**31 - 1)]
) -> Coordinates:
    return Coordinates(dag_id, run_id, task_id, map_index)


def _static(request: Request, name: str, policy: str) -> Response:
    content = (_STATIC / name).read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_OF_ALL, "Content-Security-Policy": policy, "ETag": tag, "Cache-Control": "no-cache"}
    if wanted("HEAD", request.headers, size=len(content), tag=tag).status == 304:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=_TYPES[FilePath(name).suffix])


async def _play(request: Request, video: StoredVideo, part: Wanted, *, is_download: bool) -> Response:
    headers = {
        **_OF_ALL,
        "Accept-Ranges": "bytes",
        "ETag": video.tag,
        # It is asked for anew each time, since rights may be taken away; what is known already is not sent again.
        "Cache-Control": "private, no-cache",
        "Content-Security-Policy": "sandbox",
    }
    if part.status in (304, 412):
        return Response(status_code=part.status, headers=headers)
    if part.status == 416:
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{video.size}"})
    headers |= {
        "Content-Type": video.manifest.file.media_type,
        "Content-Length": str(part.length),
        "Content-Disposition": _disposition(video.manifest.file.name, is_download=is_download),
    }
    if part.status == 206:
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{video.size}"
    if "gzip" in request.headers.get("accept-encoding", ""):
        # Airflow compresses whatever does not say this, also videos before Airflow 3.2.
        headers["Content-Encoding"] = "identity"
    if request.method == "HEAD" or not part.length:
        return Response(status_code=part.status, headers=headers)
    streams, stream = _limiter(_streams, MOST_STREAMS), object()
    try:
        streams.acquire_on_behalf_of_nowait(stream)
    except anyio.WouldBlock:
        busy = {**_OF_ALL, **_OF_DATA, "Retry-After": "5"}
        return JSONResponse({"detail": "Too many videos are played at once; try again."}, 503, busy)
    try:
        # Before the answer begins, since it cannot tell of a failure once it has.
        file = await _in_thread(lambda: open_video(video))
        try:
            first = await _in_thread(
                functools.partial(read_piece, video, file, part.start, min(FIRST_PIECE_BYTES, part.length))
            )
        except BaseException:
            file.close()
            raise
    except BaseException:
        streams.release_on_behalf_of(stream)
        raise
    return _Playing(video, part, file, first, headers, done=lambda: streams.release_on_behalf_of(stream))


class _Playing(Response):
    """Sends a part of a file, piece by piece, as fast as the viewer takes it."""

    def __init__(
        self,
        video: StoredVideo,
        part: Wanted,
        file: BinaryIO,
        first: bytes,
        headers: Mapping[str, str],
        *,
        done: Callable[[], None],
    ) -> None:
        super().__init__(status_code=part.status, headers=headers)
        self._video = video
        self._part = part
        self._file = file
        self._first = first
        self._done = done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with anyio.create_task_group() as group:

                async def watch() -> None:
                    while (await receive())["type"] != "http.disconnect":
                        pass
                    group.cancel_scope.cancel()

                group.start_soon(watch)
                # Nothing can be answered any more; the server cuts the connection, and the log has the reason.
                with suppress(NotPlayedError, OSError):
                    await self._send(send)
                group.cancel_scope.cancel()
        finally:
            self._done()
            with anyio.CancelScope(shield=True), suppress(Exception):
                await _in_thread(self._file.close)

    async def _send(self, send: Send) -> None:
        """Read and send. Between two pieces no thread is held: a viewer may be slow."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        at, piece = self._part.start, self._first
        while True:
            at += len(piece)
            is_last = at >= self._part.stop
            await send({"type": "http.response.body", "body": piece, "more_body": not is_last})
            if is_last:
                return
            length = min(2 * len(piece), MOST_PIECE_BYTES, self._part.stop - at)
            piece = await _in_thread(functools.partial(read_piece, self._video, self._file, at, length))


def _disposition(name: str, *, is_download: bool) -> str:
    kind = "attachment" if is_download else "inline"
    plain = _UNSAFE_IN_NAME.sub("_", name)
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


async def _in_thread(function: Callable[[], _T]) -> _T:
    return await anyio.to_thread.run_sync(function, limiter=_limiter(_threads, THREADS))


def _limiter(variable: RunVar[anyio.CapacityLimiter], most: int) -> anyio.CapacityLimiter:
    # One for each event loop: a limiter belongs to the one that it was made in.
    try:
        return variable.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(most)
        variable.set(limiter)
        return limiter


class _TakesCareOfPath:
    """Lets the app be found behind a proxy that takes the path of ``[api] base_url`` away, and refuses odd bytes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            root, path = scope.get("root_path", ""), scope["path"]
            if "\0" in path:  # a database may refuse it with an error of its own
                await JSONResponse({"detail": "Not Found"}, 404, _OF_ALL | _OF_DATA)(scope, receive, send)
                return
            if path.startswith(f"{PATH}/") and not path.startswith(f"{root}/"):
                scope["path"] = root + path.removeprefix(PATH)
        await self._app(scope, receive, send)
