from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_provider_kling.emulator import KlingEmulator
from tests.emulator.caller import Caller, Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def emulator(clock: Clock) -> Iterator[KlingEmulator]:
    """A service whose time stands still: a video takes 100 s of it."""
    with KlingEmulator(latency=100, seed=7, clock=clock) as running:
        yield running


@pytest.fixture
def caller(emulator: KlingEmulator) -> Caller:
    return Caller(emulator)
