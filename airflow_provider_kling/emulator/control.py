"""The emulator's own paths, ``/_emulator/``: what a test in another process asks for and sets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airflow_provider_kling.emulator.faults import Fault, FaultPlan
from airflow_provider_kling.emulator.ledger import as_json
from airflow_provider_kling.emulator.service import Failure
from airflow_provider_kling.emulator.settings import explain

if TYPE_CHECKING:
    from airflow_provider_kling.emulator.connections import ConnectionCounter
    from airflow_provider_kling.emulator.service import VideoService

PATH = "/_emulator"


class _Time(BaseModel):
    model_config = ConfigDict(extra="forbid")

    advance: float = Field(ge=0, allow_inf_nan=False)


class _Offline(BaseModel):
    model_config = ConfigDict(extra="forbid")

    seconds: float = Field(gt=0, le=600)


class _End(BaseModel):
    model_config = ConfigDict(extra="forbid")

    fail_code: str | None = None
    message: str | None = None
    retryable: bool | None = None
    failed: bool = False


class ControlApp:
    """
    The web application under ``/_emulator/``.

    ======================  ====================================================================================
    ``GET ledger``          the figures: requests, tasks, what was paid, callbacks, connections
    ``GET paid``            bills; ``?prompt=WORDS`` of the videos whose prompts hold these words
    ``GET tasks``           tasks; ``?prompt=WORDS``, ``?state=STATE``
    ``GET tasks/ID``        a task
    ``POST tasks/ID``       ends it now: ``{}`` completes it, ``{"failed": true, "fail_code": …}`` fails it
    ``GET creates``         POSTs that asked for a video; ``?prompt=WORDS``
    ``GET marks``           creates, tasks and bills by mark; ``?pattern=REGEX``, whose first group is the mark
    ``GET requests``        the latest requests; ``?call=CALL``
    ``GET callbacks``       tries to deliver callbacks; ``?task_id=ID``
    ``GET key-leaks``       requests that carried a key to a result's link
    ``GET faults``          faults, with how often each struck
    ``POST faults``         adds a fault; answers its ``id``
    ``DELETE faults[/ID]``  takes all faults away, or one
    ``GET settings``        the settings
    ``POST settings``       changes some of them
    ``POST time``           ``{"advance": SECONDS}`` moves the clock ahead
    ``POST offline``        ``{"seconds": S}`` refuses connections for so long
    ``POST reset``          forgets tasks, bills and faults
    ======================  ====================================================================================

    :param service: what it controls. :param faults: its faults. :param connections: counts connections.
    :param refuse: makes the port refuse connections for so many seconds.
    """

    def __init__(
        self,
        service: VideoService,
        faults: FaultPlan,
        connections: ConnectionCounter,
        refuse: Callable[[float], None],
    ) -> None:
        self._service = service
        self._ledger = service.ledger
        self._faults = faults
        self._connections = connections
        self._refuse = refuse

    def add_routes(self, app: web.Application) -> None:
        """Add the paths to an application."""
        routes: tuple[tuple[str, str, Callable[[web.Request], Awaitable[Any]]], ...] = (
            ("GET", "ledger", self._summary),
            ("GET", "paid", self._paid),
            ("GET", "tasks", self._tasks),
            ("GET", "tasks/{task_id}", self._task),
            ("POST", "tasks/{task_id}", self._end),
            ("GET", "creates", self._creates),
            ("GET", "marks", self._marks),
            ("GET", "requests", self._requests),
            ("GET", "callbacks", self._callbacks),
            ("GET", "key-leaks", self._key_leaks),
            ("GET", "faults", self._list_faults),
            ("POST", "faults", self._add_fault),
            ("DELETE", "faults", self._remove_faults),
            ("DELETE", "faults/{number}", self._remove_fault),
            ("GET", "settings", self._settings),
            ("POST", "settings", self._change_settings),
            ("POST", "time", self._advance),
            ("POST", "offline", self._offline),
            ("POST", "reset", self._reset),
        )
        for method, path, handle in routes:
            app.router.add_route(method, f"{PATH}/{path}", self._handler(handle))

    def _handler(
        self, handle: Callable[[web.Request], Awaitable[Any]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def serve(request: web.Request) -> web.StreamResponse:
            self._connections.saw(request, "control")
            try:
                return web.json_response(await handle(request))
            except KeyError as error:
                return web.json_response({"error": f"There is no {error.args[0]}"}, status=404)
            except ValidationError as error:
                return web.json_response({"error": explain(error)}, status=400)
            except (ValueError, TypeError) as error:
                return web.json_response({"error": str(error)}, status=400)

        return serve

    async def _summary(self, request: web.Request) -> Any:
        return self._ledger.summary()

    async def _paid(self, request: web.Request) -> Any:
        bills = self._ledger.paid(request.query.get("prompt"))
        return {
            "times": len(bills),
            "usd": str(sum(bill.usd for bill in bills)),
            "bills": [as_json(bill) for bill in bills],
        }

    async def _tasks(self, request: web.Request) -> Any:
        query = request.query
        return [as_json(task) for task in self._ledger.tasks(query.get("prompt"), state=query.get("state"))]

    async def _task(self, request: web.Request) -> Any:
        return as_json(self._ledger.task(request.match_info["task_id"]))

    async def _end(self, request: web.Request) -> Any:
        end = _End(**await _body(request))
        failure = None
        if end.failed or end.fail_code is not None:
            failure = Failure(end.fail_code, end.message or "Ended by a test", end.retryable)
        self._service.finish(request.match_info["task_id"], failure)
        return await self._task(request)

    async def _creates(self, request: web.Request) -> Any:
        return [as_json(create) for create in self._ledger.creates(request.query.get("prompt"))]

    async def _marks(self, request: web.Request) -> Any:
        tallies = self._ledger.by_mark(request.query.get("pattern", ""))
        return {
            mark: {
                "creates": len(tally.creates),
                "tasks": {task.task_id: task.state for task in tally.tasks},
                "times_paid": tally.times_paid,
                "usd": str(tally.usd),
            }
            for mark, tally in tallies.items()
        }

    async def _requests(self, request: web.Request) -> Any:
        return [as_json(seen) for seen in self._ledger.requests(request.query.get("call"))]

    async def _callbacks(self, request: web.Request) -> Any:
        return [as_json(sent) for sent in self._ledger.callbacks(request.query.get("task_id"))]

    async def _key_leaks(self, request: web.Request) -> Any:
        return [as_json(seen) for seen in self._ledger.key_leaks()]

    async def _list_faults(self, request: web.Request) -> Any:
        return self._faults.describe()

    async def _add_fault(self, request: web.Request) -> Any:
        return {"id": self._faults.add(Fault(**await _body(request)))}

    async def _remove_faults(self, request: web.Request) -> Any:
        self._faults.clear()
        return {}

    async def _remove_fault(self, request: web.Request) -> Any:
        number = request.match_info["number"]
        if not (number.isdecimal() and self._faults.remove(int(number))):
            raise KeyError(f"fault {number}")
        return {}

    async def _settings(self, request: web.Request) -> Any:
        return self._service.settings.model_dump(mode="json")

    async def _change_settings(self, request: web.Request) -> Any:
        self._service.settings = self._service.settings.changed(**await _body(request))
        return await self._settings(request)

    async def _advance(self, request: web.Request) -> Any:
        self._service.advance(_Time(**await _body(request)).advance)
        return {"now": self._service.now()}

    async def _offline(self, request: web.Request) -> Any:
        self._refuse(_Offline(**await _body(request)).seconds)
        return {}

    async def _reset(self, request: web.Request) -> Any:
        self._faults.clear()
        self._service.reset()
        return {}


async def _body(request: web.Request) -> dict[str, Any]:
    body = await request.json() if request.can_read_body else {}
    if not isinstance(body, dict):
        raise TypeError("The body must be a JSON object")
    return body
