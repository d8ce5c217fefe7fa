"""What a video did cost, as the service has it on record."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from airflow_provider_kling.api.errors import KlingError
from airflow_provider_kling.api.protocol import read_cost, record_call

if TYPE_CHECKING:
    from airflow_provider_kling.api.task import RecordedCost
    from airflow_provider_kling.hooks.kling import KlingHook
    from airflow_provider_kling.waiting import TaskLog

DEFAULT_PATIENCE = 15.0
"""Seconds to wait for a record to be settled. It holds a worker, and the video is there already."""
FIRST_PAUSE = 1.0
"""Seconds from the first question to the second. Each further pause is twice as long."""
LEAST_ANSWER_SECONDS = 1.0
"""Seconds that even the last question gets."""


def recorded_cost(
    hook: KlingHook, task_id: str, *, patience: float = DEFAULT_PATIENCE, log: TaskLog
) -> RecordedCost | None:
    """
    Ask what a task really cost, for a short while until the amount is final.

    Nothing is raised for the service's sake: the video is made and paid for, whatever its record says.

    :param task_id: the service's id of a task that is over.
    :param patience: seconds to go on for; with 0 it is asked once.
    :param log: where to tell why there is no amount.
    :return: the final amount; None where the service does not tell, or not in time.
    """
    call = record_call(task_id)
    until = time.monotonic() + patience
    pause = FIRST_PAUSE
    while True:
        left = max(LEAST_ANSWER_SECONDS, until - time.monotonic())
        try:
            settings = hook.settings
            # Not hook.get_cost(): that repeats by itself, for longer than there is patience.
            answer = hook.get_conn().send(
                call, timeout=(min(left, settings.connect_timeout), min(left, settings.read_timeout))
            )
            record = read_cost(call, answer)
        except KlingError as error:
            if not error.retryable:
                log.log(logging.WARNING, "The cost of Kling task %s could not be learnt. %s", task_id, error)
                return None
            reason, pause = str(error), max(pause, error.retry_after or 0)
        else:
            if record is None:
                log.log(logging.INFO, "The service does not tell what Kling task %s cost.", task_id)
                return None
            if record.settled:
                return record
            reason = "The service has not settled it yet."
        if time.monotonic() + pause > until:
            log.log(
                logging.INFO,
                "The cost of Kling task %s is not known after %.0f s. %s",
                task_id,
                patience,
                reason,
            )
            return None
        time.sleep(pause)
        pause *= 2
