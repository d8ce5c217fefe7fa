"""
What runs inside Airflow's API server.

Every Airflow process imports this module, so it loads nothing but what they have loaded already.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from airflow.plugins_manager import AirflowPlugin

from airflow_provider_kling.airflow_versions import AIRFLOW_V_3_1_PLUS
from airflow_provider_kling.config import SECTION


class KlingPlugin(AirflowPlugin):
    """Adds the receiver of callbacks to the API server, where ``[kling] callback_base_url`` is set."""

    name = "kling"

    @cached_property
    def fastapi_apps(self) -> list[Any]:  # type: ignore[override]
        """The apps that Airflow mounts; it asks for them in the API server and where plugins are listed."""
        from airflow.providers.common.compat.sdk import conf

        if not AIRFLOW_V_3_1_PLUS or not conf.get(SECTION, "callback_base_url", fallback=None):
            return []
        from airflow_provider_kling.callbacks import PATH
        from airflow_provider_kling.plugins.callbacks import create_app

        return [{"app": create_app(), "url_prefix": PATH, "name": "Callbacks of Kling Omni-Video"}]
