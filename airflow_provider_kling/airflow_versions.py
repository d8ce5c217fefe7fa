"""What this Airflow has that an older one lacks. All that depends on Airflow's version asks here."""

from __future__ import annotations

from airflow import __version__

AIRFLOW_VERSION = __version__
"""The version that is installed."""
_AIRFLOW = tuple(int(part) for part in AIRFLOW_VERSION.split(".")[:2])

AIRFLOW_V_3_1_PLUS = _AIRFLOW >= (3, 1)
"""Plugins with FastAPI apps that a deferred task can be resumed from."""
AIRFLOW_V_3_3_PLUS = _AIRFLOW >= (3, 3)
"""Task state store, retry policies, ``on_kill`` of triggers."""
