"""
A stand-in for the Kling Omni-Video service on loopback: for trying out, for your own tests, for ours.

``python -m airflow_provider_kling.emulator`` runs it, :class:`KlingEmulator` runs it from Python, and the pytest
fixture ``kling_emulator`` runs it for a test. It makes real videos and needs the distribution's extra ``emulator``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_kling.emulator.faults import Fault
    from airflow_provider_kling.emulator.ledger import Ledger
    from airflow_provider_kling.emulator.server import KlingEmulator
    from airflow_provider_kling.emulator.settings import Settings

__all__ = ["Fault", "KlingEmulator", "Ledger", "Settings"]

_PLACES = {"Fault": "faults", "KlingEmulator": "server", "Ledger": "ledger", "Settings": "settings"}


def __getattr__(name: str) -> Any:
    # pytest imports this package in every run where the distribution is installed.
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
