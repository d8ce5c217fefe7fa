"""The demonstration says what is in its way, and asks before it spends."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from dev.environments import CHECKOUT


def demo(**environment: str) -> subprocess.CompletedProcess[str]:
    """Run it where nobody can be asked."""
    return subprocess.run(
        [sys.executable, "-m", "dev.demo"],
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def test_with_a_key_it_spends_nothing_unless_somebody_agrees() -> None:
    run = demo(KLING_API_KEY="sk_of_a_customer", KLING_BASE_URL="http://127.0.0.1:9/api/v1")
    assert run.returncode == 1
    assert "costs about 0.48 USD" in run.stderr
    assert "KLING_DEMO_YES=1" in run.stderr
    assert "sk_of_a_customer" not in run.stdout + run.stderr


def test_a_busy_port_is_named_before_anything_is_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        run = demo(PORT=str(port))
    assert run.returncode == 1
    assert f"Port {port} is taken" in run.stderr
    assert "make demo PORT=" in run.stderr


def test_a_port_that_is_none_is_refused() -> None:
    run = demo(PORT="eighty")
    assert run.returncode == 1
    assert "PORT=eighty is no port number" in run.stderr
