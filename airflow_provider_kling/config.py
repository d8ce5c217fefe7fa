"""The provider's own section of Airflow's configuration, ``[kling]``."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import AirflowConfigException, conf

from airflow_provider_kling.api.pricing import PriceTable, read_prices
from airflow_provider_kling.waiting import MAX_FAILURES

if TYPE_CHECKING:
    from airflow_provider_kling.waiting import TaskLog

SECTION = "kling"

DEFAULT_QUERIES_PER_SECOND = 20.0
"""
Queries a second that one triggerer makes with one connection, at the most.

The service tells no limit. So 200 videos are asked for every 10 seconds.
"""


def max_failed_queries() -> int:
    """
    Return how many queries in a row may fail before contact with the service counts as lost.

    :raises AirflowConfigException: where it is not a whole number above 0.
    """
    number = int(conf.getint(SECTION, "max_failed_queries", fallback=MAX_FAILURES))
    if number < 1:
        raise AirflowConfigException(f"[{SECTION}] max_failed_queries must be above 0; it is {number}")
    return number


def max_queries_per_second() -> float:
    """
    Return how many queries a second one triggerer makes with one connection, at the most.

    :raises AirflowConfigException: where it is not a number above 0.
    """
    rate = float(conf.getfloat(SECTION, "max_queries_per_second", fallback=DEFAULT_QUERIES_PER_SECOND))
    if not 0 < rate < math.inf:
        raise AirflowConfigException(f"[{SECTION}] max_queries_per_second must be above 0; it is {rate:g}")
    return rate


def bearable_failures(log: TaskLog) -> int:
    """Return the same for a trigger, which a wrong setting must not keep from videos that are paid for."""
    try:
        return max_failed_queries()
    except AirflowConfigException as error:
        log.log(logging.ERROR, "%s; going on with %d.", error, MAX_FAILURES)
        return MAX_FAILURES


def ledger_path() -> str | None:
    """Return the directory of the file ledger, on local disk or object storage; None where none is set."""
    return conf.get(SECTION, "ledger_path", fallback=None) or None


def prices() -> PriceTable:
    """
    Return the price table, with the prices of ``[kling] prices`` in place of the service's own.

    :raises AirflowConfigException: where one of them is wrong, naming its key.
    """
    try:
        return read_prices(conf.get(SECTION, "prices", fallback=None))
    except ValueError as error:
        raise AirflowConfigException(f"[{SECTION}] {error}") from None
