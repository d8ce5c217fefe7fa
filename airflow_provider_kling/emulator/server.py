"""Runs the emulated service: a thread, a port, a directory for what it draws."""

from __future__ import annotations

import asyncio
import errno
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import quote

from aiohttp import web

from airflow_provider_kling.emulator.app import BASE_PATHS, MAX_BODY_BYTES, ServiceApp
from airflow_provider_kling.emulator.callbacks import Callbacks
from airflow_provider_kling.emulator.connections import ConnectionCounter, reset_connection
from airflow_provider_kling.emulator.control import PATH as CONTROL_PATH
from airflow_provider_kling.emulator.control import ControlApp
from airflow_provider_kling.emulator.faults import Fault, FaultPlan
from airflow_provider_kling.emulator.film import FilmStore, require_extra
from airflow_provider_kling.emulator.journal import Journal
from airflow_provider_kling.emulator.service import Failure, VideoService
from airflow_provider_kling.emulator.settings import DEFAULT_KEY, Settings

if TYPE_CHECKING:
    import ssl
    from types import TracebackType

    from airflow_provider_kling.emulator.ledger import Ledger

DEFAULT_CONN_ID = "kling_default"

_REOPEN_SECONDS = 30.0


class PortInUseError(OSError):
    """Something else listens on the port."""


class KlingEmulator:
    """
    A stand-in for the Kling Omni-Video service, on loopback, in a thread of its own.

    ::

        with KlingEmulator(latency=0.5) as service:
            monkeypatch.setenv("AIRFLOW_CONN_KLING_DEFAULT", service.connection_uri)
            ...
            assert len(service.ledger.paid("my video")) == 1

    It makes real videos, charges for them once, and goes wrong as :meth:`inject` tells it to.

    :param host: address to listen on. Anyone who can reach it can use it.
    :param port: port to listen on; 0 for any free one.
    :param api_key: the key of the account that there is.
    :param accounts: USD by key, where there are to be several; ``api_key`` is then the first of them.
    :param faults: faults from the start.
    :param ledger_file: where to keep what was paid, so that another emulator can go on after this one was killed.
        Uploads are kept beside it.
    :param result_host: host of the links to results, which is another one than that of the service; on loopback
        ``localhost``, where that leads there.
    :param clock: returns epoch seconds.
    :param tls: makes it speak TLS.
    :param settings: the fields of :class:`~airflow_provider_kling.emulator.settings.Settings`.
    :raises ValueError: where a setting is not allowed.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str = DEFAULT_KEY,
        accounts: Mapping[str, Decimal | float | str] | None = None,
        faults: Iterable[Fault] = (),
        ledger_file: str | Path | None = None,
        result_host: str | None = None,
        clock: Callable[[], float] = time.time,
        tls: ssl.SSLContext | None = None,
        **settings: Any,
    ) -> None:
        self._settings = Settings(**settings)
        self._accounts = {key: Decimal(str(usd)) for key, usd in (accounts or {}).items()} or {
            api_key: self._settings.balance
        }
        self.api_key: str = next(iter(self._accounts))
        self._host, self._port = host, port
        self._result_host = result_host
        self._ledger_file = Path(ledger_file).resolve() if ledger_file is not None else None
        self._clock = clock
        self._tls = tls
        self.faults = FaultPlan(secrets.token_hex(16) if self._settings.seed is None else self._settings.seed)
        for fault in faults:
            self.faults.add(fault)
        self._thread: threading.Thread | None = None
        self._service: VideoService | None = None

    # Life

    def start(self) -> Self:
        """
        Begin to serve; returns when the port is open.

        :raises EmulatorExtraMissingError: where the packages that draw videos are not installed.
        :raises PortInUseError: where something else listens on the port.
        :raises JournalError: where the ledger's file cannot be used.
        """
        if self._thread is not None:
            raise RuntimeError("This emulator is running already")
        require_extra()
        with ExitStack() as undo:
            listener = undo.enter_context(closing(_listen(self._host, self._port)))
            self._port = listener.getsockname()[1]
            self._set_up(undo)
            started: Future[None] = Future()
            thread = threading.Thread(
                target=self._run, args=(listener, started), name="kling-emulator", daemon=True
            )
            thread.start()
            problem = started.exception()
            if problem is not None:
                thread.join()
                raise problem
            self._thread, self._at_end = thread, undo.pop_all()
        return self

    def stop(self) -> None:
        """End: connections are closed, what was drawn is deleted. The ledger stays readable, as of now."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self.service.freeze()
        self._loop.call_soon_threadsafe(self._ending.set)
        thread.join()
        self._at_end.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _set_up(self, undo: ExitStack) -> None:
        directory = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="kling-emulator-")))
        journal, self._uploads = None, directory / "uploads"
        if self._ledger_file is not None:
            journal = undo.enter_context(closing(Journal(self._ledger_file)))
            self._uploads = self._ledger_file.with_name(f"{self._ledger_file.name}.uploads")
        self._films = FilmStore(directory)
        self._executor = undo.enter_context(ThreadPoolExecutor(2, "kling-emulator-film"))
        self._service = VideoService(self._settings, self._accounts, clock=self._clock, journal=journal)
        if journal is not None:
            self._service.restore(journal)

    def _run(self, listener: socket.socket, started: Future[None]) -> None:
        try:
            asyncio.run(self._serve(listener, started))
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    async def _serve(self, listener: socket.socket, started: Future[None]) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        self._connections = ConnectionCounter()
        self._offline_until = 0.0
        self.service.ledger.connections_now = self._connections.now
        service_app = ServiceApp(
            self.service,
            self.faults,
            self._films,
            uploads=self._uploads,
            executor=self._executor,
            links_base=self._links_base(),
            connections=self._connections,
            refuse=self._refuse,
        )
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        ControlApp(self.service, self.faults, self._connections, self._refuse).add_routes(app)
        service_app.add_routes(app)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        self._web_server = cast("web.Server", runner.server)
        self._reopening: asyncio.Task[None] | None = None
        await self._open(listener)
        callbacks = asyncio.create_task(Callbacks(self.service, self.faults, service_app.links).run())
        try:
            started.set_result(None)
            await self._ending.wait()
        finally:
            self._listening.close()
            for task in (callbacks, self._reopening):
                if task is not None:
                    task.cancel()
                    await asyncio.wait([task])
            await runner.cleanup()

    # Address

    @property
    def base_url(self) -> str:
        """What stands for ``https://apimodels.app/api/v1``."""
        return f"{self.origin}{BASE_PATHS[0]}"

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)  # noqa: S104 - only compared
        return self._url(host)

    @property
    def control_url(self) -> str:
        """Where other processes ask for the ledger and set faults."""
        return f"{self.origin}{CONTROL_PATH}"

    @property
    def connection_uri(self) -> str:
        """An Airflow connection to it, as the value of ``AIRFLOW_CONN_KLING_DEFAULT``."""
        return f"kling://:{quote(self.api_key, safe='')}@{quote(self.base_url, safe='')}"

    @property
    def connection_env(self) -> dict[str, str]:
        """The environment in which Airflow's connection ``kling_default`` leads here."""
        return {f"AIRFLOW_CONN_{DEFAULT_CONN_ID.upper()}": self.connection_uri}

    def _url(self, host: str) -> str:
        scheme = "https" if self._tls else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self._port}"

    def _links_base(self) -> str:
        if self._result_host is not None:
            return self._url(self._result_host)
        if self._host == "127.0.0.1" and _leads_to("localhost", self._host):
            return self._url("localhost")
        return self.origin

    # What tests ask and do

    @property
    def service(self) -> VideoService:
        """
        The service behind the port.

        :raises RuntimeError: before it was started.
        """
        if self._service is None:
            raise RuntimeError("This emulator was not started: use it in a with statement, or call start()")
        return self._service

    @property
    def ledger(self) -> Ledger:
        """What it saw, and what was paid."""
        return self.service.ledger

    def inject(self, fault: Fault | str, **how: Any) -> int:
        """
        Add a fault.

        :param fault: the fault, or its kind with the other fields of :class:`Fault` as ``how``:
            ``service.inject("answer", status=503, call="query", times=3)``.
        :return: its number, for ``service.faults``.
        :raises ValueError: where there is no such fault.
        """
        if isinstance(fault, str):
            fault = Fault(**{"kind": fault, **how})
        return self.faults.add(fault)

    def configure(self, **changes: Any) -> None:
        """
        Change settings; tasks that were made before keep the times they have.

        :raises ValueError: where a value is not allowed.
        """
        self.service.settings = self.service.settings.changed(**changes)

    def advance(self, seconds: float) -> None:
        """Move the service's clock ahead by real seconds, so that tasks end and links expire without a wait."""
        self.service.advance(seconds)

    def complete(self, task_id: str) -> None:
        """
        Complete a task now.

        :raises KeyError: where there is none of that id.
        :raises ValueError: where it is over already.
        """
        self.service.finish(task_id)

    def fail(
        self,
        task_id: str,
        fail_code: str | None = None,
        message: str = "Ended by a test",
        *,
        retryable: bool | None = None,
    ) -> None:
        """
        Let a task fail now.

        :raises KeyError: where there is none of that id.
        :raises ValueError: where it is over already.
        """
        self.service.finish(task_id, Failure(fail_code, message, retryable))

    def reset(self) -> None:
        """Forget tasks, uploads, bills and faults."""
        self.faults.clear()
        self.service.reset()

    @contextmanager
    def offline(self) -> Iterator[None]:
        """Refuse connections while the block runs; those that are open are reset."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        try:
            yield
        finally:
            asyncio.run_coroutine_threadsafe(self._reopen(), self._loop).result()

    # The port

    def _refuse(self, seconds: float) -> None:
        self._offline_until = max(self._offline_until, self._loop.time() + seconds)
        if self._reopening is None or self._reopening.done():
            self._reopening = self._loop.create_task(self._stay_offline())

    async def _stay_offline(self) -> None:
        await self._close()
        while (left := self._offline_until - self._loop.time()) > 0:  # noqa: ASYNC110 - a time that moves
            await asyncio.sleep(left)
        await self._reopen()

    async def _open(self, listener: socket.socket) -> None:
        self._listening = await self._loop.create_server(
            lambda: self._connections.accept(self._web_server), sock=listener, ssl=self._tls, backlog=1024
        )

    async def _close(self) -> None:
        self._listening.close()
        for connection in self._connections.open_to_users():
            reset_connection(connection)

    async def _reopen(self) -> None:
        last = self._loop.time() + _REOPEN_SECONDS
        while True:
            try:
                listener = _listen(self._host, self._port)
            except PortInUseError:
                # An outgoing connection of this machine may have been given the port meanwhile.
                if self._loop.time() > last:
                    raise
                await asyncio.sleep(0.05)
            else:
                return await self._open(listener)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                error.errno,
                f"Port {port} on {host} is in use. Stop what listens there, give another port, or 0 for any free one",
            ) from None
        raise OSError(error.errno, f"Cannot listen on {host}, port {port}: {error.strerror}") from None


def _leads_to(name: str, address: str) -> bool:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return any(place[0] == address for *_, place in found)
