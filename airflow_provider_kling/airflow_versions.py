"""What this Airflow has that an older one lacks. All that depends on Airflow's version asks here."""

from __future__ import annotations

from importlib.metadata import version

_AIRFLOW = tuple(int(part) for part in version("apache-airflow").split(".")[:2])

AIRFLOW_V_3_3_PLUS = _AIRFLOW >= (3, 3)
"""Task state store, retry policies, ``on_kill`` of triggers."""
