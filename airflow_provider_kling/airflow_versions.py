"""What this Airflow has that an older one lacks. All that depends on Airflow's version asks here."""

from __future__ import annotations

from airflow import __version__

_AIRFLOW = tuple(int(part) for part in __version__.split(".")[:2])

AIRFLOW_V_3_3_PLUS = _AIRFLOW >= (3, 3)
"""Task state store, retry policies, ``on_kill`` of triggers."""
