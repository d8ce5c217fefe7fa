"""
What runs inside Airflow's API server.

Every Airflow process imports this module, so it loads nothing but what they have loaded already.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from airflow.plugins_manager import AirflowPlugin

from airflow_provider_kling.airflow_versions import AIRFLOW_V_3_1_PLUS
from airflow_provider_kling.page_address import NAME, PATH, ROUTE, frame_address


class KlingPlugin(AirflowPlugin):
    """
    Adds the page of videos to Airflow's UI (Airflow 3.1 and later).

    It adds the receiver of callbacks to the API server as well, where ``[kling] callback_base_url`` is set.
    """

    name = "kling"

    @cached_property
    def external_views(self) -> list[Any]:  # type: ignore[override]
        """The page, as Airflow's UI shows it in a frame of its own."""
        if not AIRFLOW_V_3_1_PLUS:
            return []
        return [
            {
                "name": NAME,
                "href": frame_address(),
                "destination": "nav",
                "category": "browse",
                "url_route": ROUTE,
            }
        ]

    @cached_property
    def fastapi_apps(self) -> list[Any]:  # type: ignore[override]
        """The apps that Airflow mounts; it asks for them in the API server and where plugins are listed."""
        if not AIRFLOW_V_3_1_PLUS:
            return []
        from airflow.providers.common.compat.sdk import conf

        from airflow_provider_kling.config import SECTION
        from airflow_provider_kling.plugins.gallery import create_app as create_gallery

        apps = [{"app": create_gallery(), "url_prefix": PATH, "name": NAME}]
        if conf.get(SECTION, "callback_base_url", fallback=None):
            from airflow_provider_kling.callbacks import PATH as CALLBACKS
            from airflow_provider_kling.plugins.callbacks import create_app

            apps.append(
                {"app": create_app(), "url_prefix": CALLBACKS, "name": "Callbacks of Kling Omni-Video"}
            )
        return apps
