"""A user of the emulated service, over HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import requests

PROMPT = "A girl dancing on the beach at sunset"


def eventually(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait until something holds; the time is only how long to wait before giving up."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now: float = 1_705_123_450.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Service(Protocol):
    """What there is to know of an emulator, in this process or in another one."""

    @property
    def origin(self) -> str: ...

    @property
    def control_url(self) -> str: ...

    @property
    def api_key(self) -> str: ...


class Caller:
    """Calls the service with one key, over connections that are kept."""

    def __init__(self, emulator: Service, key: str | None = None, base_path: str = "/api/v1") -> None:
        self.emulator = emulator
        self.base = emulator.origin + base_path
        self.session = requests.Session()
        # No proxy and no certificates of the machine's own between a test and loopback.
        self.session.trust_env = False
        self.session.headers["Authorization"] = f"Bearer {key or emulator.api_key}"

    def post(self, **fields: Any) -> requests.Response:
        body = {"model": "kling-v3-omni", "prompt": PROMPT, **fields}
        return self.session.post(f"{self.base}/video/generations", json=body, timeout=120)

    def create(self, **fields: Any) -> str:
        answer = self.post(**fields)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["data"]["taskId"])

    def get(self, path: str, **params: str) -> requests.Response:
        return self.session.get(f"{self.base}{path}", params=params, timeout=120)

    def ask(self, task_id: str) -> requests.Response:
        return self.get("/video/generations", task_id=task_id)

    def query(self, task_id: str) -> dict[str, Any]:
        answer = self.ask(task_id)
        assert answer.status_code == 200, answer.text
        data = answer.json()["data"]
        assert isinstance(data, dict)
        return data

    def link(self, task_id: str) -> str:
        (link,) = self.query(task_id)["resultUrls"]
        return str(link)

    def balance(self) -> dict[str, Any]:
        return dict(self.get("/balance").json()["data"])

    def record(self, task_id: str) -> dict[str, Any]:
        return dict(self.get(f"/records/{task_id}").json()["data"])

    def upload(self, name: str, content: bytes) -> requests.Response:
        return self.session.post(f"{self.base}/files", files={"file": (name, content)}, timeout=120)

    def control(self, method: str, path: str, json: Any = None, **params: str) -> requests.Response:
        url = f"{self.emulator.control_url}/{path}"
        return requests.request(method, url, json=json, params=params, timeout=120)
