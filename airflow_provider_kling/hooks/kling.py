"""KlingHook: an Airflow connection as a client of the service, and where to get the asynchronous one."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from airflow.providers.common.compat.sdk import BaseHook

import airflow_provider_kling
from airflow_provider_kling.api.errors import (
    BadRequestError,
    ConnectionSettingsError,
    DownloadError,
    KeyRefusedError,
    KlingError,
    Operation,
    RateLimitedError,
    ResultExpiredError,
    ServiceError,
    ServiceUnavailableError,
    TaskNotFoundError,
    UnreachableError,
)
from airflow_provider_kling.api.protocol import (
    DEFAULT_BASE_URL,
    ApiAnswer,
    ApiCall,
    balance_call,
    create_call,
    is_in_service_form,
    models_call,
    query_call,
    read_balance,
    read_cost,
    read_models,
    read_task,
    read_upload,
    record_call,
    upload_call,
)
from airflow_provider_kling.config import max_failed_queries
from airflow_provider_kling.hooks.settings import (
    CONN_TYPE,
    DEFAULT_CONN_ID,
    MAX_PATIENCE,
    ConnectionSettings,
    lookup_error,
)
from airflow_provider_kling.waiting import (
    DEFAULT_POLL_INTERVAL,
    DEFAULT_TIMEOUT,
    AskAgain,
    Over,
    Waiting,
    note_to,
)

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from airflow.providers.common.compat.sdk import ObjectStoragePath

    from airflow_provider_kling.api.request import VideoRequest
    from airflow_provider_kling.api.task import Balance, RecordedCost, VideoTask
    from airflow_provider_kling.hooks.async_client import AsyncKlingClient
    from airflow_provider_kling.hooks.sync_client import KlingClient
    from airflow_provider_kling.hooks.upload import UploadBody
    from airflow_provider_kling.waiting import TaskLog

SUBMIT_TRIES = 3
"""How often a create is made that certainly never left, or that the service turned away with a 429."""
UPLOAD_TRIES = 3
"""How often an upload is made before its error is raised."""
TEST_TIMEOUT = 2.0
"""Seconds each for connecting and reading in a connection test: Airflow's UI waits less than 10."""

_T = TypeVar("_T")


class KlingHook(BaseHook):
    """
    A client of the service for one Airflow connection.

    The connection's password is the key and its host the base URL; its extra may hold ``connect_timeout`` and
    ``read_timeout`` (seconds), ``verify``, ``ca_bundle``, ``proxies`` and ``max_queries_per_second``. It is looked up
    at the first call.

    :param kling_conn_id: id of a connection of type ``kling``.
    """

    conn_name_attr = "kling_conn_id"
    default_conn_name = DEFAULT_CONN_ID
    conn_type = CONN_TYPE
    hook_name = "Kling Omni-Video"

    def __init__(self, kling_conn_id: str = DEFAULT_CONN_ID, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kling_conn_id = kling_conn_id
        self._settings: ConnectionSettings | None = None
        self._client: KlingClient | None = None
        self._told: set[Operation] = set()
        self.is_submitting = False
        """Whether a request for a video is on its way. It stays so where something else than its answer ended that."""

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """Describe the connection form to Airflow 3.1 and older, which do not read the provider's own metadata."""
        behaviour = _connection_type()["ui-field-behaviour"]
        return {name.replace("-", "_"): value for name, value in behaviour.items()}

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """Give the form's own fields to Airflow 3.1 and older."""
        from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
        from flask_babel import lazy_gettext
        from wtforms import BooleanField, StringField

        widgets: dict[str, Any] = {}
        for name, field in _connection_type()["conn-fields"].items():
            label, description = lazy_gettext(field["label"]), field["description"]
            if field["schema"]["type"] == "boolean":
                widgets[name] = BooleanField(
                    label, default=field["schema"]["default"], description=description
                )
            else:
                widgets[name] = StringField(label, widget=BS3TextFieldWidget(), description=description)
        return widgets

    @property
    def settings(self) -> ConnectionSettings:
        """
        What the connection says.

        :raises ConnectionSettingsError: where there is no such connection or it cannot be used.
        :raises ConnectionLookupError: where Airflow could not be asked for it.
        """
        if self._settings is None:
            try:
                connection = self.get_connection(self.kling_conn_id)
            except Exception as error:
                raise lookup_error(self.kling_conn_id, error) from error
            self._settings = ConnectionSettings.from_connection(connection, connection.extra_dejson)
        return self._settings

    def get_conn(self) -> KlingClient:
        """
        Return the client of the connection.

        :raises ConnectionSettingsError, ConnectionLookupError: as :attr:`settings` does.
        """
        if self._client is None:
            # Operators import this module too, and requests would be most of what that costs them.
            from airflow_provider_kling.hooks.sync_client import KlingClient

            self._client = KlingClient(self.settings)
        return self._client

    def close(self) -> None:
        """Close the connections to the service. The hook can be used again afterwards."""
        if self._client is not None:
            self._client.close()

    def async_client(self) -> AbstractAsyncContextManager[AsyncKlingClient]:
        """
        Give what asks the service from an event loop, as in a trigger of your own.

        ``async with KlingHook(conn_id).async_client() as client: await client.get_task(task_id)``. It asks for tasks
        and for the balance, once a call; what costs money or moves files is for a worker. All users of a connection in
        one event loop share one session, and it ends with the last of them.

        :raises ConnectionSettingsError, ConnectionLookupError: as :attr:`settings` does, when it is entered.
        """
        # Who only reads a Dag needs none of it.
        from airflow_provider_kling.hooks.async_client import shared_client

        return shared_client(self.kling_conn_id)

    def submit(self, request: VideoRequest, *, before_post: Callable[[], None] | None = None) -> VideoTask:
        """
        Ask for a video. The call costs money each time that it succeeds.

        It is repeated only where it certainly never left, or where the service turned it away (429).

        :param before_post: called right before each POST; what it raises stops that.
        :raises InvalidRequestError: where a reference is a file that was not uploaded.
        :raises ConnectionSettingsError, ConnectionLookupError: as :attr:`settings` does.
        :raises UnknownSubmissionError: where nobody can tell whether a task was created.
        :raises ServiceError: where the service refused the request; nothing was billed.
        """
        request.check_sendable()
        call = create_call(request)
        for attempt in range(1, SUBMIT_TRIES + 1):
            if before_post is not None:
                before_post()
            try:
                return self._post(call)
            except (UnreachableError, RateLimitedError) as error:
                pause = _pause(error, attempt)
                if attempt == SUBMIT_TRIES or pause > MAX_PATIENCE:
                    raise
                self.log.warning("%s Asking again in %.0f s.", error, pause)
                time.sleep(pause)
        raise AssertionError("unreachable")  # pragma: no cover

    def _post(self, call: ApiCall) -> VideoTask:
        self.get_conn()  # until here nothing can have been sent
        self.is_submitting = True
        try:
            task = self._ask(call, read_task)
        except KlingError:
            self.is_submitting = False  # it tells itself whether a task may have been created
            raise
        self.is_submitting = False
        return task

    def get_task(self, task_id: str) -> VideoTask:
        """
        Ask for a task's state. It is free, and repeated on passing faults.

        :raises ConnectionSettingsError, ConnectionLookupError: as :attr:`settings` does.
        :raises ServiceError: where there was no usable answer.
        """
        return self._ask(query_call(task_id), read_task, retries=True)

    def query_task(self, task_id: str) -> VideoTask:
        """
        Ask for a task's state once, without repeating: for whoever has a waiting policy of its own.

        :raises ConnectionSettingsError, ConnectionLookupError: as :attr:`settings` does.
        :raises ServiceError: where there was no usable answer.
        """
        return self._ask(query_call(task_id), read_task)

    def wait(
        self,
        task_id: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        poll_interval: float = DEFAULT_POLL_INTERVAL,
    ) -> VideoTask:
        """
        Wait until a task is completed.

        :param timeout: seconds from now to giving up.
        :param poll_interval: seconds between two queries.
        :raises TaskFailedError: the service reports it as failed.
        :raises TaskTimeoutError: it was not over in time; the service goes on with it.
        :raises NoResultError: it is completed, and answer after answer has no link to the video.
        :raises LostContactError: the service could not be asked, or the connection not be looked up, several times in
            a row.
        :raises ConnectionSettingsError: the connection cannot be used.
        :raises ServiceError: the service refuses to be asked.
        """
        now = time.time()
        over = self.wait_until_over(
            Waiting(
                task_id,
                deadline=now + timeout,
                poll_interval=poll_interval,
                started=now,
                max_failures=max_failed_queries(),
            )
        )
        if over.error is not None:
            raise over.error
        assert over.task is not None  # noqa: S101 - every outcome without an error has a task
        return over.task

    def wait_until_over(self, waiting: Waiting, *, log: TaskLog | None = None) -> Over:
        """
        Ask for a task until its wait is over, holding this thread. Nothing is raised for the video's sake.

        :param log: where to tell how it goes; the hook's own log where None is given.
        :raises ConnectionSettingsError: where the connection cannot be used.
        """
        while True:
            decision = self.ask_once(waiting, log=log)
            if isinstance(decision, Over):
                return decision
            time.sleep(max(0.0, decision.at - time.time()))

    def ask_once(self, waiting: Waiting, *, log: TaskLog | None = None) -> AskAgain | Over:
        """
        Ask for a task once, and decide what follows. A failed look-up of the connection counts as a failed query.

        :param log: where to tell how it goes; the hook's own log where None is given.
        :raises ConnectionSettingsError: where the connection cannot be used.
        """
        try:
            task = self.query_task(waiting.task_id)
        except KlingError as error:
            if isinstance(error, ConnectionSettingsError) and not error.retryable:
                raise
            decision = waiting.on_error(error, time.time())
        else:
            decision = waiting.on_task(task, time.time())
        note_to(self.log if log is None else log, decision)
        return decision

    def download(self, url: str, path: str | Path) -> Path:
        """
        Fetch a result into a local file. The key is not sent.

        The file appears under its name only when it is whole.

        :param url: a task's ``video_url``.
        :param path: the file to write; its directory is made if it is not there.
        :raises ConnectionSettingsError, ConnectionLookupError: as :attr:`settings` does.
        :raises ResultExpiredError: where the link is dead.
        :raises DownloadError: where the file could not be fetched or written.
        """
        from airflow_provider_kling.hooks.download import fetch, whole_file

        path = Path(path)
        try:
            fetch(self.get_conn(), url, lambda _: whole_file(path))
        except OSError as error:
            raise DownloadError(f"The video could not be written to {path}: {error}") from error
        return path

    def result_is_there(self, url: str) -> bool:
        """
        Tell whether a link to a result still works, without fetching the result.

        :return: False only where the service says that it is gone; a passing fault is no proof of that.
        :raises ConnectionSettingsError, ConnectionLookupError: as :attr:`settings` does.
        """
        try:
            with self.get_conn().open_result(url):
                return True
        except ResultExpiredError:
            return False
        except DownloadError:
            return True

    def upload_file(
        self, path: str | os.PathLike[str] | ObjectStoragePath, *, sha256: str | None = None
    ) -> str:
        """
        Upload a reference image or video. It costs nothing, and is repeated on passing faults.

        The file is sent as it is read, so its size costs no memory. What it is, its content tells.

        :param path: a local path, or a path or URI in object storage such as ``s3://conn_id@bucket/key``.
        :param sha256: what its checksum has to be, in hexadecimal digits; None for any.
        :return: its URL, which the service keeps for 7 days.
        :raises UnusableFileError: where there is no such file, or it may not be read.
        :raises FileUnavailableError: where it cannot be read just now.
        :raises FileChangedError: where it has another checksum.
        :raises ConnectionSettingsError, ConnectionLookupError: as :attr:`settings` does.
        :raises ServiceError: where the service did not take it.
        """
        from airflow_provider_kling.hooks.upload import UploadBody, file_name, open_file

        with open_file(path) as file:
            return self._upload(UploadBody(file, file_name(path)), str(path), sha256)

    def _upload(self, body: UploadBody, shown: str, sha256: str | None) -> str:
        from airflow_provider_kling.hooks.upload import FileChangedError, error_of_file

        for attempt in range(1, UPLOAD_TRIES + 1):
            body.rewind()
            try:
                url = self._ask(upload_call(), read_upload, upload=body)
            except (UnreachableError, RateLimitedError, ServiceUnavailableError) as error:
                if body.failure is not None:
                    raise error_of_file(shown, body.failure) from body.failure
                pause = _pause(error, attempt)
                if attempt == UPLOAD_TRIES or pause > MAX_PATIENCE:
                    error.next_step += " An upload costs nothing, and nothing was billed."
                    raise
                self.log.warning("%s Uploading %s again in %.0f s.", error, shown, pause)
                time.sleep(pause)
            else:
                if sha256 not in (None, body.sha256):
                    raise FileChangedError(f"{shown} was replaced while it was being used")
                return url
        raise AssertionError("unreachable")  # pragma: no cover

    def get_balance(self) -> Balance | None:
        """
        Ask for the money left.

        :return: None where the service does not tell.
        :raises ConnectionSettingsError, ConnectionLookupError: as :attr:`settings` does.
        :raises ServiceError: where there was no usable answer.
        """
        return self._ask_for_extra(balance_call(), read_balance)

    def get_cost(self, task_id: str) -> RecordedCost | None:
        """
        Ask what a task really cost.

        :return: None where the service does not tell.
        :raises ConnectionSettingsError, ConnectionLookupError: as :attr:`settings` does.
        :raises ServiceError: where there was no usable answer.
        """
        return self._ask_for_extra(record_call(task_id), read_cost)

    def list_models(self) -> list[str] | None:
        """
        Ask for the ids of the models.

        :return: None where the service does not tell.
        :raises ConnectionSettingsError, ConnectionLookupError: as :attr:`settings` does.
        :raises ServiceError: where there was no usable answer.
        """
        return self._ask_for_extra(models_call(), read_models)

    def test_connection(self) -> tuple[bool, str]:
        """
        Tell whether the connection works, without spending anything and without raising.

        A task id that cannot exist is asked for: whoever answers "no such task" is the service and took the key.
        """
        try:
            return self._test_connection()
        except KlingError as error:
            return False, str(error)
        except Exception as error:  # noqa: BLE001 - Airflow shows the text, whatever it is
            return False, f"{type(error).__name__}: {error}"
        finally:
            self.close()

    def _test_connection(self) -> tuple[bool, str]:
        base_url = self.settings.base_url
        timeout = (min(TEST_TIMEOUT, self.settings.connect_timeout), TEST_TIMEOUT)
        call = query_call(f"connection-test-{uuid4().hex}")
        answer = self.get_conn().send(call, timeout=timeout)
        try:
            read_task(call, answer)
        except KeyRefusedError as error:
            return False, f"{base_url} refuses the key. {error}"
        except (TaskNotFoundError, BadRequestError):
            if not is_in_service_form(answer):
                return False, (
                    f"{base_url} answers, but it is not this service (HTTP {answer.status}). Set the connection's "
                    f"host to the service's base URL, or leave it empty for {DEFAULT_BASE_URL}."
                )
        _ = self.settings.prices  # raises where they are wrong
        message = f"{base_url} takes the key."
        with contextlib.suppress(ServiceError):
            call = balance_call()
            if balance := read_balance(call, self.get_conn().send(call, timeout=timeout)):
                message += f" Balance: {balance.available} {balance.currency}."
        return True, message

    def _ask(
        self, call: ApiCall, read: Callable[[ApiCall, ApiAnswer], _T], *, retries: bool = False, **how: Any
    ) -> _T:
        return read(call, self.get_conn().send(call, retries=retries, **how))

    def _ask_for_extra(self, call: ApiCall, read: Callable[[ApiCall, ApiAnswer], _T | None]) -> _T | None:
        found = self._ask(call, read, retries=True)
        if found is None and call.operation not in self._told:
            self._told.add(call.operation)
            self.log.warning("The service does not offer the %s call; going on without it.", call.operation)
        return found


def _pause(error: ServiceError, attempt: int) -> float:
    """Return seconds to wait after a failed try: longer after each, and as long as the service asks for."""
    return max(error.retry_after or 0, 2.0**attempt * random.uniform(0.5, 1))  # noqa: S311


def _connection_type() -> dict[str, Any]:
    connection_type: dict[str, Any] = airflow_provider_kling.get_provider_info()["connection-types"][0]
    return connection_type
