"""What this Airflow has that an older one lacks. All that depends on Airflow's version asks here."""

from __future__ import annotations

from airflow import __version__

AIRFLOW_VERSION = __version__
"""The version that is installed."""
_AIRFLOW = tuple(int(part) for part in AIRFLOW_VERSION.split(".")[:2])

AIRFLOW_V_3_1_PLUS = _AIRFLOW >= (3, 1)
"""Plugins with FastAPI apps that a deferred task can be resumed from."""
THREADS_MAY_ASK_AIRFLOW = not (3, 0) <= _AIRFLOW < (3, 2)
"""Whether several threads of a task may ask for connections and the like: in between, their answers get mixed up, and
the task hangs."""
AIRFLOW_V_3_3_PLUS = _AIRFLOW >= (3, 3)
"""Task state store, retry policies, ``on_kill`` of triggers."""
