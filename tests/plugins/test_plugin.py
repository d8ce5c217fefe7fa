"""The plugin as every Airflow process loads it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from airflow_provider_kling import airflow_versions
from airflow_provider_kling.plugins import KlingPlugin


def test_airflow_finds_it_by_its_entry_point() -> None:
    [entry] = [
        each
        for each in entry_points(group="airflow.plugins")
        if each.value.startswith("airflow_provider_kling.")
    ]
    assert entry.load() is KlingPlugin


def test_loading_it_loads_nothing_heavy() -> None:
    code = (
        "import sys; from airflow.plugins_manager import AirflowPlugin; before = set(sys.modules);"
        "import airflow_provider_kling.plugins as p; p.KlingPlugin().external_views;"
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    ).stdout.split()
    assert not {"fastapi", "starlette", "aiohttp", "requests", "anyio"} & set(loaded)
    assert {name for name in loaded if name.startswith("airflow_provider_kling.")} == {
        "airflow_provider_kling.airflow_versions",
        "airflow_provider_kling.page_address",
        "airflow_provider_kling.plugins",
    }


def test_an_older_airflow_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_kling import plugins

    assert airflow_versions.AIRFLOW_V_3_1_PLUS
    assert KlingPlugin().fastapi_apps
    assert KlingPlugin().external_views
    monkeypatch.setattr(plugins, "AIRFLOW_V_3_1_PLUS", False)
    assert KlingPlugin().fastapi_apps == []
    assert KlingPlugin().external_views == []
