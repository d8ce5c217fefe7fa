"""What an Airflow connection of type ``kling`` says about how to reach the service."""

from __future__ import annotations

import math
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import airflow
from airflow.providers.common.compat.sdk import AirflowNotFoundException, mask_secret

import airflow_provider_kling
from airflow_provider_kling import config
from airflow_provider_kling.api.errors import ConnectionLookupError, ConnectionSettingsError
from airflow_provider_kling.api.pricing import PriceTable, read_price_changes
from airflow_provider_kling.api.protocol import normalise_base_url

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Connection

DEFAULT_CONN_ID = "kling_default"
CONN_TYPE = "kling"
DEFAULT_CONNECT_TIMEOUT = 10.0
"""Seconds to wait for a connection to the service."""
DEFAULT_READ_TIMEOUT = 30.0
"""Seconds to wait for the service to send something."""

MAX_PATIENCE = 60.0
"""Longest Retry-After, seconds, that a call waits for while it holds a worker."""

_TRUE = ("true", "1", "yes", "on")
_FALSE = ("false", "0", "no", "off")


@dataclass(frozen=True, kw_only=True)
class ConnectionSettings:
    """
    How to reach the service with one connection.

    :param conn_id: the connection's id.
    :param base_url: the service's base URL, without a slash at its end.
    :param key: the Bearer key.
    :param conn_type: the connection's type. Another than ``kling`` does for all but callbacks, whose receiver is open
        to strangers and must not try what they send against the passwords of databases and hosts.
    :param connect_timeout: seconds to wait for a connection.
    :param read_timeout: seconds to wait for the service to send something.
    :param verify: whether the service's certificate is checked, or the path of a CA bundle to check it with.
    :param proxies: proxy URLs by scheme (``http``, ``https``, ``all``); empty for those of the environment.
    :param max_queries_per_second: of one triggerer about all its waiting videos; None for what
        ``[kling] max_queries_per_second`` says.
    :param price_changes: prices of this account that differ, as the extra has them; they beat ``[kling] prices``.
    """

    conn_id: str
    base_url: str
    key: str = field(repr=False)
    conn_type: str = CONN_TYPE
    connect_timeout: float = DEFAULT_CONNECT_TIMEOUT
    read_timeout: float = DEFAULT_READ_TIMEOUT
    verify: bool | str = True
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)
    max_queries_per_second: float | None = None
    price_changes: Any = field(default=None, repr=False)

    @property
    def prices(self) -> PriceTable:
        """
        What the service charges this account: its own prices, else those of ``[kling] prices``, else the service's.

        Read only where money is at stake: a wrong price must not keep a triggerer from a video that is paid for.

        :raises ConnectionSettingsError: where one of the connection's is wrong, naming its key.
        :raises AirflowConfigException: where ``[kling] prices`` is wrong, naming the key.
        """
        try:
            return config.prices().override(read_price_changes(self.price_changes))
        except ValueError as error:
            name, _, problem = str(error).partition(": ")
            raise _unusable(self.conn_id, name, problem) from None

    @property
    def trusted(self) -> bool | str:
        """
        What checks the certificates of servers, in the form that ``requests`` takes.

        Where the connection names no CA bundle, it is that of the environment.
        """
        if self.verify is not True:
            return self.verify
        return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True

    @property
    def proxy(self) -> str | None:
        """
        The proxy for calls to the base URL; None for no proxy.

        Where the connection has any proxies, the environment's count for nothing, not even for a scheme that the
        connection leaves out.
        """
        from requests.utils import get_environ_proxies, select_proxy

        proxies = self.proxies or get_environ_proxies(self.base_url)
        return select_proxy(self.base_url, proxies)

    def tls(self) -> ssl.SSLContext | bool:
        """
        Make what checks the service's certificate, in the form that ``aiohttp`` takes.

        It trusts what ``requests`` trusts, so that the triggerer gets on wherever a worker does.

        :raises ConnectionSettingsError: where the CA bundle cannot be read.
        """
        from requests.utils import DEFAULT_CA_BUNDLE_PATH

        if self.trusted is False:
            return False
        bundle = DEFAULT_CA_BUNDLE_PATH if self.trusted is True else self.trusted
        try:
            is_directory = Path(bundle).is_dir()
            return ssl.create_default_context(
                cafile=None if is_directory else bundle, capath=bundle if is_directory else None
            )
        except (OSError, ValueError) as error:
            raise _unusable(self.conn_id, "ca_bundle", f"{bundle!r} cannot be read: {error}") from error

    @classmethod
    def from_connection(cls, connection: Connection, extra: Mapping[str, Any]) -> ConnectionSettings:
        """
        Read the connection.

        :param connection: made in the UI, from a URI or from JSON.
        :param extra: its extra, read already: in a triggerer that takes a call of its own.
        :raises ConnectionSettingsError: where the key is missing or something is unusable.
        """
        conn_id = connection.conn_id
        if not isinstance(extra, Mapping):
            raise _unusable(conn_id, "extra", "it is not a JSON object")
        try:
            base_url = normalise_base_url(_url(connection))
        except ValueError as error:
            raise _unusable(conn_id, "host", str(error)) from None
        proxies = _proxies(extra.get("proxies"), conn_id)
        for proxy in proxies.values():
            if password := urlsplit(proxy).password:
                mask_secret(password)
        return cls(
            conn_id=conn_id,
            base_url=base_url,
            key=_key(connection.password, conn_id),
            conn_type=connection.conn_type or "",
            connect_timeout=_seconds(extra, "connect_timeout", DEFAULT_CONNECT_TIMEOUT, conn_id),
            read_timeout=_seconds(extra, "read_timeout", DEFAULT_READ_TIMEOUT, conn_id),
            verify=_verify(extra, conn_id),
            proxies=proxies,
            max_queries_per_second=_rate(extra, conn_id),
            price_changes=extra.get("prices") or None,
        )


def lookup_error(conn_id: str, error: Exception) -> ConnectionSettingsError | ConnectionLookupError:
    """
    Tell apart a connection that is not defined from one that could not be looked up, as far as Airflow does.

    Airflow says "not defined" also where its API server or its database could not be asked. So that can be
    retried: an earlier attempt may have paid for a video that would be lost with the task.
    """
    if isinstance(error, AirflowNotFoundException):
        return ConnectionSettingsError(
            f"There is no connection {conn_id!r}, or Airflow could not look it up",
            next_step=f"A retry looks it up again. {_how_to_set(conn_id)}",
            retryable=True,
        )
    return ConnectionLookupError(f"Airflow could not be asked for connection {conn_id!r}: {error}")


def _how_to_set(conn_id: str) -> str:
    return (
        "Set the key as the password of a connection of type 'kling': "
        f"airflow connections add {conn_id} --conn-type kling --conn-password 'sk_…', or in the environment "
        f"AIRFLOW_CONN_{conn_id.upper()}='kling://:sk_…@'."
    )


def _unusable(conn_id: str, name: str, problem: str) -> ConnectionSettingsError:
    return ConnectionSettingsError(
        f"Connection {conn_id!r}, {name}: {problem}",
        next_step="Nothing was sent and nothing was billed. Correct the connection, then clear the task.",
    )


def _key(password: str | None, conn_id: str) -> str:
    key = password or ""
    problem = None
    if not key.strip():
        problem = "it has no key"
    elif key.lower().startswith("bearer"):
        problem = "the key begins with 'Bearer': give the key alone"
    elif not key.isascii() or not key.isprintable() or any(character.isspace() for character in key):
        problem = "the key holds white space or other characters that no key has"
    if problem:
        raise ConnectionSettingsError(
            f"Connection {conn_id!r}, password: {problem}",
            next_step=f"Nothing was sent and nothing was billed. {_how_to_set(conn_id)}",
        )
    return key


def _url(connection: Connection) -> str:
    """
    Put together the base URL.

    Airflow takes a URI apart into host, port and schema, where the schema is the path; people also write
    the protocol there.
    """
    host, schema = (connection.host or "").strip(), (connection.schema or "").strip().strip("/")
    if not host:
        return ""
    if schema in ("http", "https"):
        host, schema = (host if "://" in host else f"{schema}://{host}"), ""
    url = host if "://" in host else f"https://{host}"
    if connection.port and urlsplit(url).port is None:
        scheme, rest = url.split("://", 1)
        authority, slash, path = rest.partition("/")
        url = f"{scheme}://{authority}:{connection.port}{slash}{path}"
    return f"{url.rstrip('/')}/{quote(schema, safe='/')}" if schema else url


def _seconds(extra: Mapping[str, Any], name: str, default: float, conn_id: str) -> float:
    value = extra.get(name)
    if value in (None, ""):
        return default
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = -1
    if not 0 < seconds <= 3600 or isinstance(value, bool):
        raise _unusable(conn_id, name, f"{value!r} is not a number of seconds above 0, up to 3600")
    return seconds


def _rate(extra: Mapping[str, Any], conn_id: str) -> float | None:
    name = "max_queries_per_second"
    value = extra.get(name)
    if value in (None, ""):
        return None
    try:
        rate = float(value)
    except (TypeError, ValueError, OverflowError):
        rate = -1
    if not 0 < rate < math.inf or isinstance(value, bool):
        raise _unusable(conn_id, name, f"{value!r} is not a number of queries a second above 0")
    return rate


def _verify(extra: Mapping[str, Any], conn_id: str) -> bool | str:
    value, bundle = extra.get("verify"), extra.get("ca_bundle")
    word = str(value).strip().lower()
    if value in (None, "") or word in _TRUE:
        if bundle in (None, ""):
            return True
        if not isinstance(bundle, str):
            raise _unusable(conn_id, "ca_bundle", f"{bundle!r} is not the path of a file")
        return bundle
    if word in _FALSE:
        return False
    raise _unusable(
        conn_id, "verify", f"{value!r} is neither true nor false; the path of a CA bundle goes into ca_bundle"
    )


def _proxies(value: Any, conn_id: str) -> dict[str, str]:
    if value in (None, "", {}):
        return {}
    proxies = {"http": value, "https": value} if isinstance(value, str) else value
    if not isinstance(proxies, Mapping) or not all(_is_proxy(proxy) for proxy in proxies.values()):
        raise _unusable(
            conn_id, "proxies", "it is neither the URL of a proxy nor a mapping of schemes to URLs"
        )
    return {str(scheme): proxy for scheme, proxy in proxies.items()}


def _is_proxy(value: Any) -> bool:
    try:
        return isinstance(value, str) and "://" in value and bool(urlsplit(value).hostname)
    except ValueError:
        return False


def user_agent() -> str:
    """Return the User-Agent of every call, with the versions of this package and of Airflow."""
    return f"airflow-provider-kling/{airflow_provider_kling.__version__} apache-airflow/{airflow.__version__}"
