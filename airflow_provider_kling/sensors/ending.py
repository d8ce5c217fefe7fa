"""How the deferred sensors end, as Airflow lets those end that poke on a worker."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    AirflowTaskTimeout,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import BaseSensorOperator


@contextmanager
def skipping_where_told(sensor: BaseSensorOperator) -> Iterator[None]:
    """
    Skip the task where the author wants that in place of the error that leaves the block.

    ``soft_fail`` skips what ends a task for good, ``never_fail`` every error. Airflow itself skips a resumed sensor for
    errors of its own classes only, and those of this package that may be retried are of none.

    :raises AirflowSkipException: in the place of the error.
    """
    try:
        yield
    except AirflowSkipException:
        raise
    except (AirflowSensorTimeout, AirflowTaskTimeout, AirflowFailException) as error:
        if sensor.soft_fail or sensor.never_fail:
            raise AirflowSkipException(str(error)) from error
        raise
    except Exception as error:
        if sensor.never_fail:
            raise AirflowSkipException(str(error)) from error
        raise
