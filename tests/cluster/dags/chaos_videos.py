"""
The Dags of the chaos run: one video and several mapped ones, waiting deferred and not, with each kind of ledger.

Each prompt bears the key of its task instance, so that the judge can tell whose bill is whose.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG

from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator

PROMPT = "A clip for [{{ ti.dag_id }}|{{ ti.run_id }}|{{ ti.task_id }}|{{ ti.map_index }}]"

Operator = KlingGenerateVideoOperator
if os.environ.get("CHAOS_WITHOUT_LEDGER"):
    from blind_operator import BlindGenerateVideoOperator as Operator

LEDGERS = {"store": None, "files": os.environ["CHAOS_LEDGER_PATH"]}


def arguments(ledger_path: str | None, *, deferrable: bool) -> dict[str, Any]:
    return {
        "prompt": PROMPT,
        "kling_conn_id": "kling_chaos",
        "deferrable": deferrable,
        "ledger_path": ledger_path,
        "poll_interval": 1.5,
        "timeout": timedelta(minutes=15),
        "retries": 100,  # an attempt that is killed costs one
        "retry_delay": timedelta(seconds=1),
    }


for ledger, path in LEDGERS.items():
    for how, is_deferrable in (("deferred", True), ("held", False)):
        with DAG(f"chaos_{ledger}_{how}", schedule=None, catchup=False, max_active_runs=50) as dag:
            Operator(task_id="single", duration=3, **arguments(path, deferrable=is_deferrable))
            Operator.partial(task_id="mapped", **arguments(path, deferrable=is_deferrable)).expand(
                duration=[3, 4, 5]
            )
        globals()[dag.dag_id] = dag
