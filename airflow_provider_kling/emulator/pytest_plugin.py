"""
The pytest fixture ``kling_emulator``, for tests of Dags that make videos.

A test that takes it has the service running, with Airflow's connection ``kling_default`` leading to it. Videos are
ready and settled at once, unless a marker says otherwise: ``@pytest.mark.kling_emulator(latency=2, balance=10)``, with
the arguments of :class:`~airflow_provider_kling.emulator.KlingEmulator`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_kling.emulator import KlingEmulator


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers", "kling_emulator(**arguments): arguments of KlingEmulator for the fixture kling_emulator"
    )


@pytest.fixture
def kling_emulator(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[KlingEmulator]:
    """Run the emulated Kling service for one test; Airflow's connection ``kling_default`` leads to it."""
    from airflow_provider_kling.emulator import KlingEmulator

    arguments: dict[str, Any] = {"latency": 0, "settling": 0}
    # The marker nearest to the test wins over those of its class and module.
    for marker in reversed(list(request.node.iter_markers("kling_emulator"))):
        arguments |= marker.kwargs
    with KlingEmulator(**arguments) as service:
        for name, value in service.connection_env.items():
            monkeypatch.setenv(name, value)
        yield service
