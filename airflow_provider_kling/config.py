"""The provider's own section of Airflow's configuration, ``[kling]``."""

from __future__ import annotations

import logging
import math
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import AirflowConfigException, conf

from airflow_provider_kling.api.pricing import PriceTable, read_prices
from airflow_provider_kling.output_path import check_ledger_path
from airflow_provider_kling.waiting import MAX_FAILURES

if TYPE_CHECKING:
    from airflow_provider_kling.waiting import TaskLog

SECTION = "kling"

DEFAULT_QUERIES_PER_SECOND = 20.0
"""
Queries a second that one triggerer makes with one connection, at the most.

The service tells no limit. So 200 videos are asked for every 10 seconds.
"""

DEFAULT_CALLBACK_POLL_INTERVAL = 300.0
"""Seconds between two queries about a video whose end the service will tell: the net under lost callbacks."""

DEFAULT_MEDIA_HOSTS = "https://r2.apimodels.app"
"""Where the service's results are, as a browser names it."""
_ORIGIN = re.compile(r"https?://(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?")


def max_failed_queries() -> int:
    """
    Return how many queries in a row may fail before contact with the service counts as lost.

    :raises AirflowConfigException: where it is not a whole number above 0.
    """
    number = int(conf.getint(SECTION, "max_failed_queries", fallback=MAX_FAILURES))
    if number < 1:
        raise AirflowConfigException(f"[{SECTION}] max_failed_queries must be above 0; it is {number}")
    return number


def bearable_failures(log: TaskLog) -> int:
    """Return :func:`max_failed_queries` for a trigger, whose videos are paid for: a wrong setting must not end it."""
    try:
        return max_failed_queries()
    except AirflowConfigException as error:
        log.log(logging.ERROR, "%s; going on with %d.", error, MAX_FAILURES)
        return MAX_FAILURES


def max_queries_per_second() -> float:
    """
    Return how many queries a second one triggerer makes with one connection, at the most.

    :raises AirflowConfigException: where it is not a number above 0.
    """
    rate = float(conf.getfloat(SECTION, "max_queries_per_second", fallback=DEFAULT_QUERIES_PER_SECOND))
    if not 0 < rate < math.inf:
        raise AirflowConfigException(f"[{SECTION}] max_queries_per_second must be above 0; it is {rate:g}")
    return rate


def ledger_path() -> str | None:
    """
    Return the directory of the file ledger, on local disk or object storage; None where none is set.

    :raises AirflowConfigException: where it would be another one on another worker.
    """
    path = conf.get(SECTION, "ledger_path", fallback=None) or None
    if path is not None:
        try:
            check_ledger_path(path)
        except ValueError as error:
            raise AirflowConfigException(f"[{SECTION}] {error}") from None
    return path


def callback_base_url() -> str | None:
    """
    Return the URL under which the service reaches Airflow's API server, without a slash at its end; None for none.

    :raises AirflowConfigException: where it is no URL that something can be appended to.
    """
    url = (conf.get(SECTION, "callback_base_url", fallback=None) or "").strip().rstrip("/")
    if not url:
        return None
    problem = None
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not url.isprintable() or " " in url:
            problem = "it is no http or https URL"
        elif parts.query or parts.fragment:
            problem = "a path cannot be appended to it"
        elif parts.username is not None or parts.password is not None:
            problem = "it holds a login, which everybody who sees a callback's address would learn"
        _ = parts.port
    except ValueError:
        problem = "it is no http or https URL"
    if problem:
        raise AirflowConfigException(f"[{SECTION}] callback_base_url cannot be used: {problem}")
    return url


def require_callback_base_url() -> str:
    """
    Return the URL under which the service reaches Airflow's API server.

    :raises AirflowConfigException: where it is missing or wrong.
    """
    url = callback_base_url()
    if url is None:
        raise AirflowConfigException(
            f"callback=True needs [{SECTION}] callback_base_url: the URL under which the service on the Internet "
            "reaches Airflow's API server, such as https://airflow.example.com. Nothing was sent or billed."
        )
    return url


def callback_poll_interval() -> float:
    """
    Return the seconds between two queries about a video whose end the service will tell.

    :raises AirflowConfigException: where it is not a number above 0.
    """
    seconds = float(conf.getfloat(SECTION, "callback_poll_interval", fallback=DEFAULT_CALLBACK_POLL_INTERVAL))
    if not 0 < seconds < math.inf:
        raise AirflowConfigException(f"[{SECTION}] callback_poll_interval must be above 0; it is {seconds:g}")
    return seconds


def media_hosts() -> list[str]:
    """
    Return the origins besides Airflow's own from which the page of videos may play.

    :raises AirflowConfigException: where one of them is no origin.
    """
    told = conf.get(SECTION, "media_hosts", fallback=DEFAULT_MEDIA_HOSTS) or ""
    hosts = [host.rstrip("/") for host in re.split(r"[,\s]+", told) if host]
    for host in hosts:
        # They become a part of a header.
        if not _ORIGIN.fullmatch(host):
            raise AirflowConfigException(
                f"[{SECTION}] media_hosts: {host!r} is no origin; one is like https://media.example.com or "
                "https://*.example.com:8443, several are separated by commas"
            )
    return hosts


def prices() -> PriceTable:
    """
    Return the price table, with the prices of ``[kling] prices`` in place of the service's own.

    :raises AirflowConfigException: where one of them is wrong, naming its key.
    """
    try:
        return read_prices(conf.get(SECTION, "prices", fallback=None))
    except ValueError as error:
        raise AirflowConfigException(f"[{SECTION}] {error}") from None
