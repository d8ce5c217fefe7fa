"""The trigger is tested against the same connections and servers as the hooks."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from tests.hooks.conftest import _no_settings_of_the_machine, certificate, connect, failing_lookups, log_text
from tests.triggers.virtual_time import Service

__all__ = ["_no_settings_of_the_machine", "certificate", "connect", "failing_lookups", "log_text"]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    """Return what answers queries in the service's place."""
    service = Service()

    async def request(session: aiohttp.ClientSession, method: str, url: str, **more: Any) -> Any:
        return await service.request(session, method, url, **more)

    monkeypatch.setattr(aiohttp.ClientSession, "_request", request)
    return service
