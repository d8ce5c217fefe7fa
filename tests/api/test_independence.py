"""The service's contract can be used, tested and read without Airflow."""

from __future__ import annotations

import json
import subprocess
import sys

LOAD_ALL = """
import importlib, json, pkgutil, sys
import airflow_provider_kling.api as api
for module in pkgutil.iter_modules(api.__path__):
    importlib.import_module(f"{api.__name__}.{module.name}")
print(json.dumps(sorted(sys.modules)))
"""


def test_the_contract_imports_neither_airflow_nor_an_http_library() -> None:
    result = subprocess.run([sys.executable, "-c", LOAD_ALL], capture_output=True, text=True, check=True)
    loaded = json.loads(result.stdout)

    assert "airflow_provider_kling.api.protocol" in loaded
    roots = {name.partition(".")[0] for name in loaded}
    assert not roots & {"airflow", "requests", "aiohttp", "httpx", "urllib3", "sqlalchemy"}
    ours = {name for name in loaded if name.startswith("airflow_provider_kling.")}
    assert all(name.startswith("airflow_provider_kling.api") for name in ours)
