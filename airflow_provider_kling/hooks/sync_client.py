"""The synchronous client for workers, over ``requests``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import requests
import urllib3.exceptions
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.util.retry import Retry

from airflow_provider_kling.api.errors import error_for_transport
from airflow_provider_kling.api.protocol import ApiAnswer, ApiCall, retry_after_seconds
from airflow_provider_kling.hooks.download import ResultStream, root_of
from airflow_provider_kling.hooks.settings import MAX_PATIENCE, user_agent

if TYPE_CHECKING:
    from airflow_provider_kling.hooks.settings import ConnectionSettings
    from airflow_provider_kling.hooks.upload import UploadBody

GET_TRIES = 4
"""How often a GET is made before its error is raised."""
CHUNK_BYTES = 1024 * 1024


class KlingClient:
    """
    Asks the service from a thread, over sessions that it keeps.

    :param settings: how to reach the service.
    :raises ConnectionSettingsError: where the CA bundle cannot be read.
    """

    def __init__(self, settings: ConnectionSettings) -> None:
        if isinstance(settings.verify, str):
            settings.tls()  # tells of an unreadable CA bundle now: at a call it would pass for a fault of the network
        self.settings = settings
        self._sessions: dict[bool, requests.Session] = {}

    def close(self) -> None:
        """Close the connections to the service. The client can be used again afterwards."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()

    def send(
        self,
        call: ApiCall,
        *,
        retries: bool = False,
        timeout: tuple[float, float] | None = None,
        upload: UploadBody | None = None,
    ) -> ApiAnswer:
        """
        Make a call and bring back its answer, whatever its status.

        :param retries: whether a GET is repeated on passing faults.
        :param timeout: seconds for connecting and for reading, in place of the connection's.
        :param upload: the file to send.
        :raises ServiceError: where there was no answer.
        """
        body: _WatchedBody | UploadBody | None = upload
        content_type = upload.content_type if upload is not None else "application/json"
        if call.json_body is not None:
            body = _WatchedBody(json.dumps(call.json_body).encode())
        try:
            response = self.session(retries=retries).request(
                call.method,
                self.settings.base_url + call.path,
                params=call.params,
                data=body,
                headers={"Content-Type": content_type} if body is not None else None,
                timeout=timeout or self._timeout,
                # Given here and not to the session, where the environment would beat them.
                verify=self.settings.trusted,
                proxies=dict(self.settings.proxies),
                # A redirected POST could be made twice, or turn into a GET.
                allow_redirects=call.method == "GET",
            )
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise error_for_transport(
                call.operation,
                str(root_of(error)) or type(error).__name__,
                sent=body.was_read if body is not None else not isinstance(root_of(error), _NEVER_CONNECTED),
                tls=isinstance(error, requests.exceptions.SSLError),
                task_id=call.task_id,
            ) from error
        return ApiAnswer(response.status_code, response.headers, response.content, self.settings.key)

    def session(self, *, retries: bool) -> requests.Session:
        """
        Return a session that sends the key.

        :param retries: whether GETs are repeated on passing faults.
        """
        if retries not in self._sessions:
            session = self._keyless_session(retries=retries)
            session.auth = _BearerAuth(self.settings.key)
            self._sessions[retries] = session
        return self._sessions[retries]

    def _keyless_session(self, *, retries: bool) -> requests.Session:
        session = _Session()
        session.headers["User-Agent"] = user_agent()
        session.auth = _no_auth
        # The environment would fill in the schemes that the connection leaves out; for the triggerer it does not.
        session.trust_env = not self.settings.proxies
        adapter = HTTPAdapter(max_retries=_retry() if retries else Retry(0, read=False))
        session.mount("https://", adapter)
        session.mount("http://", adapter)
        return session

    @contextlib.contextmanager
    def open_result(self, url: str) -> Iterator[ResultStream]:
        """
        Open a result for reading. The key is not sent.

        :return: the file, to be read in chunks. Where the connection is cut, reading goes on over a new one.
        :raises ResultExpiredError: where the link is dead.
        :raises DownloadError: where it cannot be read or does not lead to a video; reading raises it too.
        """
        with self._keyless_session(retries=True) as session:

            def get(headers: Mapping[str, str]) -> requests.Response:
                return session.get(
                    url,
                    headers=headers,
                    stream=True,
                    timeout=self._timeout,
                    verify=self.settings.trusted,
                    proxies=dict(self.settings.proxies),
                )

            with contextlib.closing(ResultStream(get, url)) as stream:
                yield stream

    @property
    def _timeout(self) -> tuple[float, float]:
        return (self.settings.connect_timeout, self.settings.read_timeout)


class _Session(requests.Session):
    """Takes nothing from ``.netrc`` when it follows a redirect, and leaves the key behind with the host."""

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        strip = self.should_strip_auth(response.request.url, prepared_request.url)  # type: ignore[no-untyped-call]
        if strip:
            prepared_request.headers.pop("Authorization", None)


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Send no key, and nothing from ``.netrc`` in its place: a signed link beside a key is refused."""
    return request


class _BearerAuth(AuthBase):
    """Sends the key. An auth object beats ``.netrc``, a header does not."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class _WatchedBody:
    """
    A request's body that knows whether any of it was taken for sending.

    The exceptions of the HTTP library do not tell for sure whether a request left: a TLS error can come
    before or after the body. A body that nobody has read was never sent.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0
        self.was_read = False

    def __len__(self) -> int:
        return len(self._content) - self._position

    def __iter__(self) -> Iterator[bytes]:
        while chunk := self.read(CHUNK_BYTES):
            yield chunk

    def read(self, size: int = -1) -> bytes:
        self.was_read = True
        end = len(self._content) if size is None or size < 0 else self._position + size
        chunk = self._content[self._position : end]
        self._position += len(chunk)
        return chunk


class _PatientRetry(Retry):
    """Repeats GETs, but holds no worker for a Retry-After beyond :data:`MAX_PATIENCE`."""

    def get_retry_after(self, response: urllib3.BaseHTTPResponse) -> float | None:
        """Read the header as all of this package does; urllib3 raises where it cannot read it."""
        return retry_after_seconds(response.headers)

    def increment(self, *args: Any, **kwargs: Any) -> _PatientRetry:
        response = kwargs.get("response")
        asked = retry_after_seconds(response.headers) if response is not None else None
        if asked is not None and asked > MAX_PATIENCE:
            raise urllib3.exceptions.MaxRetryError(None, kwargs.get("url"), None)  # type: ignore[arg-type]
        return super().increment(*args, **kwargs)


def _retry() -> Retry:
    return _PatientRetry(
        total=GET_TRIES - 1,
        allowed_methods={"GET"},
        status_forcelist={429, 500, 502, 503, 504},
        backoff_factor=0.5,
        backoff_jitter=0.5,
        raise_on_status=False,
    )


_NEVER_CONNECTED = (
    urllib3.exceptions.NewConnectionError,
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.SSLError,
    urllib3.exceptions.ProxyError,
    urllib3.exceptions.LocationValueError,
)
