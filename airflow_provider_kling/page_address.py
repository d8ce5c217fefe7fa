"""Where the page "Kling videos" is in Airflow's UI. Every Airflow process may import this, so it loads nothing."""

from __future__ import annotations

from urllib.parse import urlencode, urlsplit

from airflow.providers.common.compat.sdk import conf

PATH = "/kling/videos"
"""Where the API server mounts the page, behind the path of ``[api] base_url``."""
ROUTE = "kling-videos"
"""What Airflow's UI calls it in its own addresses."""
NAME = "Kling videos"
"""What the menu calls it."""


def frame_address() -> str:
    """Return the address of what Airflow's UI puts into a frame, as an absolute path."""
    base = urlsplit(conf.get("api", "base_url", fallback="") or "").path.rstrip("/")
    return f"{base}{PATH}/"


def page_address(*, dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    """Return the address of the page, opened at a task's video; without a host where ``[api] base_url`` names none."""
    base = (conf.get("api", "base_url", fallback="") or "").rstrip("/")
    query = urlencode({"dag_id": dag_id, "run_id": run_id, "task_id": task_id, "map_index": map_index})
    return f"{base}/plugin/{ROUTE}?{query}"
