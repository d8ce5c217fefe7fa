"""The emulator as a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import requests

COMMAND = [sys.executable, "-m", "airflow_provider_kling.emulator"]


@dataclass(frozen=True)
class Running:
    process: subprocess.Popen[str]
    printed: str
    base_url: str
    api_key: str

    @property
    def origin(self) -> str:
        return self.base_url.removesuffix("/api/v1")

    @property
    def control_url(self) -> str:
        return f"{self.origin}/_emulator"

    def control(self, method: str, path: str, json: Any = None, **params: str) -> requests.Response:
        url = f"{self.control_url}/{path}"
        return requests.request(method, url, json=json, params=params, timeout=120)


@contextmanager
def run(*arguments: str) -> Iterator[Running]:
    process = subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "AIRFLOW_CONN" in line:
                break
        printed = "".join(lines)
        found = re.search(r"base URL +(\S+)\n +key +(\S+)", printed)
        assert found, printed
        yield Running(process, printed, found[1], found[2])
    finally:
        process.terminate()
        process.wait(120)
        process.stdout.close()
