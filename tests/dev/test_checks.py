"""How the checks run their commands."""

from __future__ import annotations

import sys

import pytest

from dev import checks


def test_a_command_that_says_nothing_for_too_long_is_ended_and_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks, "_LOOK_INTERVAL", 0.1)
    monkeypatch.setattr(checks, "_SILENCE_LIMIT", 1.0)
    hangs = "import faulthandler, time; faulthandler.enable(); print('begun', flush=True); time.sleep(600)"
    with checks._Processes() as processes:
        code, said = processes.run([sys.executable, "-c", hangs])
    assert code != 0
    assert "it hangs" in said


def test_a_command_that_takes_longer_but_goes_on_talking_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks, "_LOOK_INTERVAL", 0.05)
    # On a machine that stalls the pauses grow as well: then it is seen at a slower pace.
    for pace in (1, 4, 16):
        monkeypatch.setattr(checks, "_SILENCE_LIMIT", 0.8 * pace)
        talks = f"import time\nfor n in range(8):\n    print(n, flush=True); time.sleep({0.2 * pace})"
        with checks._Processes() as processes:
            code, said = processes.run([sys.executable, "-c", talks])
        if code == 0:
            break
    assert (code, said.split()) == (0, [*map(str, range(8))])
