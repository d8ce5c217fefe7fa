"""Whether a task that waits in the triggerer was ended by a person."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

ON_KILL_SECONDS = 28.0
"""How long Airflow is asked for the task's state; a triggerer's first such question takes seconds."""
_ENDED = ("failed", "success", "skipped")


async def state_if_ended(task_instance: Any) -> str | None:
    """
    Return the state that a task was ended in, None where it is still to go on or that cannot be learnt.

    For ``on_kill`` of triggers (Airflow 3.3 and later): Airflow also calls it where a trigger moves to another
    triggerer or its task is resumed, so the task's state decides.
    """
    with suppress(Exception):
        state = await asyncio.wait_for(asyncio.to_thread(_state, task_instance), ON_KILL_SECONDS)
        if state in _ENDED:
            return state
    return None


def _state(ti: Any) -> str | None:
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    states = RuntimeTaskInstance.get_task_states(
        dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=ti.map_index
    )
    return next(iter(states.get(ti.run_id, {}).values()), None)
