"""What Airflow itself takes for a task that goes to the triggerer and comes back, and does nothing else."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import pendulum
from airflow.providers.standard.triggers.temporal import DateTimeTrigger
from airflow.sdk import DAG, BaseOperator

VIDEOS = int(os.environ["BENCHMARK_VIDEOS"])
SECONDS = float(os.environ["BENCHMARK_JOB_SECONDS"])


class Nap(BaseOperator):
    """Sleeps in the triggerer for as long as a job takes."""

    def __init__(self, *, take: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.take = take

    def execute(self, context: Any) -> None:
        """Go to sleep."""
        moment = pendulum.now("UTC") + timedelta(seconds=SECONDS)
        self.defer(trigger=DateTimeTrigger(moment), method_name="wake_up")

    def wake_up(self, context: Any, event: Any = None) -> None:
        """Be done."""


with DAG("bare_defer", schedule=None, catchup=False):
    Nap.partial(task_id="nap").expand(take=list(range(VIDEOS)))
