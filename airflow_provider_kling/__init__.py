"""
Apache Airflow provider for Kling Omni-Video.

Every Airflow process imports this module to learn what the provider offers, so it holds plain data only.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def get_provider_info() -> dict[str, Any]:
    """Tell Airflow what this provider offers, in the form of Airflow's ``provider_info.schema.json``."""
    return {
        "package-name": "airflow-provider-kling",
        "name": "Kling Omni-Video",
        "description": "Generate videos with Kling Omni-Video from an Airflow Dag.",
    }
