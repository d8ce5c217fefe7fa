"""Starting, ending, addresses."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import requests

from airflow_provider_kling.api.errors import TaskFailedError
from airflow_provider_kling.api.protocol import (
    ApiAnswer,
    ApiCall,
    balance_call,
    create_call,
    models_call,
    query_call,
    read_balance,
    read_cost,
    read_models,
    read_task,
    record_call,
)
from airflow_provider_kling.api.request import VideoRequest
from airflow_provider_kling.api.task import TaskState
from airflow_provider_kling.emulator import KlingEmulator
from airflow_provider_kling.emulator.app import ServiceApp
from airflow_provider_kling.emulator.film import EmulatorExtraMissingError
from airflow_provider_kling.emulator.server import PortInUseError
from tests.emulator.caller import Caller, Clock
from tests.emulator.certificate import make_certificate


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("kling-emulator")]


def test_it_serves_within_the_with_statement_and_leaves_nothing_behind() -> None:
    before = threads()
    with KlingEmulator(latency=0) as emulator:
        caller = Caller(emulator)
        directory = Path(emulator._films._directory)
        caller.session.get(caller.link(caller.create(duration="3")), timeout=120)
        assert directory.exists()
    assert threads() == before
    assert not directory.exists()
    with pytest.raises(requests.ConnectionError):
        requests.get(emulator.base_url, timeout=120)
    emulator.stop()


def test_it_can_be_started_again_on_the_same_port() -> None:
    emulator = KlingEmulator()
    with emulator:
        address = emulator.base_url
        Caller(emulator).create()
        with pytest.raises(RuntimeError, match="running already"):
            emulator.start()
    with emulator:
        assert emulator.base_url == address
        assert emulator.ledger.tasks() == []


def test_before_its_start_it_says_so() -> None:
    with pytest.raises(RuntimeError, match="was not started"):
        _ = KlingEmulator().ledger


def test_faults_can_be_there_from_the_start() -> None:
    emulator = KlingEmulator()
    emulator.inject("answer", status=503)
    with emulator:
        assert Caller(emulator).get("/balance").status_code == 503


def test_a_port_that_is_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortInUseError, match=f"Port {port} on 127.0.0.1 is in use.*another port"):
            KlingEmulator(port=port).start()
    with KlingEmulator(port=port) as emulator:
        assert urlsplit(emulator.base_url).port == port


def test_two_emulators_do_not_share_a_port() -> None:
    with KlingEmulator() as one, pytest.raises(PortInUseError):
        KlingEmulator(port=urlsplit(one.base_url).port or 0).start()


def test_an_address_that_is_not_of_this_machine_is_named() -> None:
    with pytest.raises(OSError, match=r"Cannot listen on 192\.0\.2\.1"):
        KlingEmulator(host="192.0.2.1").start()


def test_without_the_extra_it_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmulatorExtraMissingError, match=r"airflow-provider-kling\[emulator\]"):
        KlingEmulator().start()


def test_what_fails_while_it_starts_is_raised_and_leaves_the_port_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emulator = KlingEmulator()
    with monkeypatch.context() as patch:
        patch.setattr(ServiceApp, "add_routes", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            emulator.start()
    assert threads() == []
    with emulator:
        assert Caller(emulator).get("/models").status_code == 200


@pytest.mark.parametrize(
    ("host", "origin"),
    [("0.0.0.0", "http://127.0.0.1:"), ("::1", "http://[::1]:"), ("localhost", "http://localhost:")],
)
def test_its_address_can_be_called_whatever_it_listens_on(host: str, origin: str) -> None:
    try:
        emulator = KlingEmulator(host=host, latency=0).start()
    except OSError:
        pytest.skip(f"this machine has no {host}")
    try:
        assert emulator.base_url.startswith(origin)
        caller = Caller(emulator)
        assert caller.link(caller.create()).startswith(origin)
    finally:
        emulator.stop()


def test_links_to_results_are_on_localhost_where_that_leads_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for found, expected in (([(2, 1, 6, "", ("127.0.0.1", 0))], "localhost"), (OSError(), "127.0.0.1")):

        def look_up(*_: object, found: object = found, **__: object) -> object:
            if isinstance(found, OSError):
                raise found
            return found

        with monkeypatch.context() as patch:
            patch.setattr("socket.getaddrinfo", look_up)
            emulator = KlingEmulator(latency=0).start()
        with contextlib.ExitStack() as after:
            after.callback(emulator.stop)
            caller = Caller(emulator)
            assert urlsplit(caller.link(caller.create())).hostname == expected


def test_the_host_of_the_links_can_be_given() -> None:
    with KlingEmulator(latency=0, result_host="files.example") as emulator:
        caller = Caller(emulator)
        assert urlsplit(caller.link(caller.create())).hostname == "files.example"


def test_its_connection_uri_holds_all_that_airflow_needs() -> None:
    with KlingEmulator(api_key="sk_a/b?c") as emulator:
        assert list(emulator.connection_env) == ["AIRFLOW_CONN_KLING_DEFAULT"]
        uri = emulator.connection_env["AIRFLOW_CONN_KLING_DEFAULT"]
        scheme, rest = uri.split("://:")
        key, host = rest.split("@")
        assert (scheme, unquote(key), unquote(host)) == ("kling", "sk_a/b?c", emulator.base_url)


def test_importing_the_package_imports_nothing_else() -> None:
    code = (
        "import sys; import airflow_provider_kling.emulator, airflow_provider_kling.emulator.pytest_plugin as p;"
        "print([m for m in ('aiohttp', 'pydantic', 'av', 'PIL', 'airflow', 'requests') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_names_that_the_package_does_not_have_are_refused() -> None:
    import airflow_provider_kling.emulator as package

    with pytest.raises(AttributeError, match="nothing"):
        _ = package.nothing
    for name in package.__all__:
        assert getattr(package, name).__name__ == name


def test_after_it_was_offline_it_waits_for_its_port_to_be_free(
    caller: Caller, emulator: KlingEmulator
) -> None:
    port = urlsplit(emulator.base_url).port
    with emulator.offline():
        other = socket.create_server(("127.0.0.1", port or 0))
        closing = threading.Timer(0.2, other.close)
        closing.start()
    closing.join()
    assert caller.get("/models").status_code == 200


def test_it_speaks_tls(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with KlingEmulator(latency=0, tls=context) as emulator:
        caller = Caller(emulator)
        caller.session.verify = str(tmp_path / "cert.pem")
        assert emulator.base_url.startswith("https://")
        task_id = caller.create(duration="3")
        link = caller.link(task_id)
        assert link.startswith("https://")
        assert len(caller.session.get(link, timeout=120).content) > 1000
        emulator.inject("reset", call="query")
        with pytest.raises(requests.ConnectionError):
            caller.query(task_id)
        with pytest.raises(requests.exceptions.SSLError):
            requests.get(f"{emulator.base_url}/models", timeout=120)


def send(caller: Caller, call: ApiCall) -> ApiAnswer:
    answer = caller.session.request(
        call.method, caller.base + call.path, params=dict(call.params), json=call.json_body, timeout=120
    )
    return ApiAnswer(answer.status_code, answer.headers, answer.content)


def test_the_client_of_this_package_understands_all_of_its_answers(
    emulator: KlingEmulator, caller: Caller, clock: Clock
) -> None:
    call = create_call(VideoRequest(prompt="A cat", duration=5, sound=True))
    task = read_task(call, send(caller, call))
    assert task.state is TaskState.PENDING
    clock.now += 100
    call = query_call(task.task_id)
    done = read_task(call, send(caller, call))
    assert (done.state, done.generation_seconds, done.model) == (
        TaskState.COMPLETED,
        100,
        "kling-video/kling-v3-omni",
    )
    assert done.video_url
    call = balance_call()
    balance = read_balance(call, send(caller, call))
    assert balance is not None
    assert float(balance.available) == 999.522
    call = record_call(task.task_id)
    cost = read_cost(call, send(caller, call))
    assert cost is not None
    assert float(cost.amount) == 0.478
    call = models_call()
    assert "kling-v3-omni" in (read_models(call, send(caller, call)) or [])
    failed = caller.create()
    emulator.fail(failed, "UPSTREAM_BUSY")
    call = query_call(failed)
    assert isinstance(read_task(call, send(caller, call)).failure(), TaskFailedError)
