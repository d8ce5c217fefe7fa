"""The control: an operator that asks without looking into a ledger, as those do that keep none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from airflow_provider_kling.exceptions import raising_to_airflow
from airflow_provider_kling.generation import Generation
from airflow_provider_kling.hooks.kling import KlingHook
from airflow_provider_kling.ledger import Ledger, SubmissionKey
from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator


class BlindGenerateVideoOperator(KlingGenerateVideoOperator):
    """Remembers nothing: each attempt asks anew."""

    @contextmanager
    def _generation(self, context: Any) -> Iterator[Generation]:
        with closing(KlingHook(self.kling_conn_id)) as hook, raising_to_airflow():
            yield Generation(self, context, hook, Ledger(None, SubmissionKey.of(context)), self._request())
