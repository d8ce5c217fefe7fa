"""``check --callbacks``: the whole way to the receiver and back, over HTTP."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from airflow_provider_kling.callbacks import PATH
from airflow_provider_kling.emulator import KlingEmulator
from tests.cli.test_commands import Run, run
from tests.conftest import AIRFLOW

__all__ = ["run"]

if AIRFLOW < (3, 1):
    pytest.skip("this Airflow takes no callbacks", allow_module_level=True)

BASE_URL = "AIRFLOW__KLING__CALLBACK_BASE_URL"


@pytest.fixture
def receiver(airflow_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve the receiver as Airflow mounts it. Return where."""
    import uvicorn
    from fastapi import FastAPI

    from airflow_provider_kling.plugins import KlingPlugin

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setenv(BASE_URL, url)
        monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")
        [mounted] = [each for each in KlingPlugin().fastapi_apps if each["url_prefix"] == PATH]
        app = FastAPI()
        app.mount(mounted["url_prefix"], mounted["app"])
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield url
        server.should_exit = True
        thread.join()


def test_it_says_that_callbacks_arrive(kling_emulator: KlingEmulator, receiver: str, run: Run) -> None:
    done = run("check", "--callbacks")
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[1] == f"{receiver} takes callbacks, and refuses forged ones."


def test_without_the_flag_nothing_is_sent(
    kling_emulator: KlingEmulator, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(BASE_URL, raising=False)
    assert run("check").status == 0


def test_a_missing_setting_is_named(
    kling_emulator: KlingEmulator, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(BASE_URL, raising=False)
    done = run("check", "--callbacks")
    assert done.status == 1
    assert "callback_base_url" in done.err


def test_an_api_server_with_another_key_is_told_as_such(
    kling_emulator: KlingEmulator, receiver: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_provider_kling.callbacks import CallbackToken

    sign = CallbackToken.sign
    monkeypatch.setattr(CallbackToken, "sign", lambda token, key: sign(token, f"{key} of the worker"))
    done = run("check", "--callbacks")
    assert done.status == 1
    assert "HTTP 404" in done.err
    assert "another key" in done.err


def test_an_address_that_nobody_listens_on_is_told_without_the_token(
    kling_emulator: KlingEmulator, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BASE_URL, "http://127.0.0.1:9/af")
    done = run("check", "--callbacks")
    assert done.status == 1
    assert "cannot be called from here" in done.err
    assert "callbacks/" not in done.err


@pytest.mark.parametrize(
    ("status", "told"), [(200, "not Airflow's receiver"), (302, "redirect"), (503, "see its log")]
)
def test_something_else_that_answers_there_is_told_as_such(
    kling_emulator: KlingEmulator, run: Run, monkeypatch: pytest.MonkeyPatch, status: int, told: str
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Location", "/login")
            self.end_headers()
            self.wfile.write(b"<html>Log in</html>")

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv(BASE_URL, f"http://127.0.0.1:{server.server_port}")
        done = run("check", "--callbacks")
        server.shutdown()
        thread.join()
    assert done.status == 1
    assert f"HTTP {status}" in done.err
    assert told in done.err


def test_a_connection_of_another_type_is_told_as_such(
    kling_emulator: KlingEmulator, receiver: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = kling_emulator.connection_uri.replace("kling://", "http://", 1)
    monkeypatch.setenv("AIRFLOW_CONN_KLING_DEFAULT", uri)
    done = run("check", "--callbacks")
    assert done.status == 1
    assert "type 'http'" in done.err
    assert "type 'kling'" in done.err
