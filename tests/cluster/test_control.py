"""The operator of the control run, which remembers nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.operators.kling import KlingGenerateVideoOperator
from tests.cluster.dags.blind_operator import BlindGenerateVideoOperator
from tests.task_runs import TaskInstance, TaskStateStore, run_task

pytestmark = pytest.mark.kling_emulator(latency=0.05)


@pytest.mark.parametrize("deferrable", [True, False])
@pytest.mark.parametrize(
    ("kind", "bills"), [(BlindGenerateVideoOperator, 2), (KlingGenerateVideoOperator, 1)]
)
def test_only_without_a_ledger_the_second_attempt_at_a_video_pays_again(
    kling_emulator: KlingEmulator,
    tmp_path: Path,
    kind: type[KlingGenerateVideoOperator],
    bills: int,
    deferrable: bool,
) -> None:
    context = {"task_state_store": TaskStateStore()}
    for _ in range(2):
        run = run_task(
            lambda: kind(
                task_id="make",
                prompt="a red kite",
                poll_interval=0.05,
                deferrable=deferrable,
                ledger_path=str(tmp_path),
            ),
            ti=TaskInstance(),
            context=context,
        )
        assert run.value()["state"] == "completed"
    assert len(kling_emulator.ledger.paid()) == bills
