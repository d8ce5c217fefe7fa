"""What the tests of hooks and trigger share: connections, certificates, a clock that nobody has to wait for."""

from __future__ import annotations

import datetime
import ipaddress
import json
import logging
import math
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import BaseHook
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

KEY = "sk_live_8f3a0c5e7d914b62"

Connect = Callable[..., None]


@pytest.fixture(autouse=True)
def _no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Define the connection ``kling_default``, in the environment as people do."""

    def define(host: str = "", *, password: str = KEY, conn_id: str = "kling_default", **extra: Any) -> None:
        connection = {"conn_type": "kling", "password": password, "host": host, "extra": extra}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))

    return define


class Clock:
    """Time that passes only where someone sleeps."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0
        self.naps: list[float] = []

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "time", clock.time)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    return clock


@pytest.fixture
def failing_lookups(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Let Airflow fail to look a connection up, always or some times; returns the list of those that were asked for."""
    found = BaseHook.get_connection

    def fail(error: BaseException, *, times: float = math.inf) -> list[str]:
        asked: list[str] = []

        def get_connection(conn_id: str, *_: Any, **__: Any) -> Any:
            asked.append(conn_id)
            if len(asked) > times:
                return found(conn_id)
            raise error

        async def aget_connection(conn_id: str, *_: Any, **__: Any) -> Any:
            return get_connection(conn_id)

        monkeypatch.setattr(BaseHook, "get_connection", staticmethod(get_connection))
        monkeypatch.setattr(BaseHook, "aget_connection", staticmethod(aget_connection), raising=False)
        return asked

    return fail


@pytest.fixture
def log_text(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], str]:
    """Return all that was written so far by any logger, at any level; where to, differs between Airflows."""
    for name in ("airflow", "airflow.task"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    caplog.set_level(logging.DEBUG)
    printed: list[str] = []

    def text() -> str:
        printed.extend(capsys.readouterr())
        return "".join(printed) + "\n" + caplog.text

    return text


class Certificate:
    """A certificate for 127.0.0.1 that its maker signed himself."""

    def __init__(self, directory: Path) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "loopback")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
                critical=False,
            )
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        self.path = directory / "loopback.pem"
        self.path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_path = directory / "loopback.key"
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.load_cert_chain(self.path, key_path)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("certificate"))
