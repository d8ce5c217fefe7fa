"""The control: an operator that asks without looking into a ledger, as those do that keep none."""

from __future__ import annotations

from typing import Any

from airflow_provider_kling.ledger import Ledger, SubmissionKey
from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator


class BlindGenerateVideoOperator(KlingGenerateVideoOperator):
    """Remembers nothing: each attempt asks anew."""

    def _open_ledger(self, context: Any) -> Ledger:
        return Ledger(None, SubmissionKey.of(context))
