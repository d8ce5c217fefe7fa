"""What ``docs/callbacks.md`` tells people to put in front of Airflow."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest
import yaml

from airflow_provider_kling.callbacks import MAX_TOKEN_LENGTH, CallbackToken
from dev.environments import CHECKOUT
from tests.conftest import AIRFLOW

if AIRFLOW < (3, 1):
    pytest.skip("this Airflow takes no callbacks", allow_module_level=True)

from airflow_provider_kling.plugins import callbacks as receiver

NGINX = os.environ.get("NGINX") or shutil.which("nginx")
TOKENS = [
    CallbackToken(uuid.uuid4(), "A" * 12, conn_id).sign("sk_key")
    for conn_id in ("k", "kling_default", "ünder/way~1.2", "c" * 200)
]


def snippet(language: str) -> str:
    [found] = re.findall(
        rf"```{language}\n(.*?)```", (CHECKOUT / "docs" / "callbacks.md").read_text(), re.DOTALL
    )
    return str(found)


def assert_takes_tokens_only(pattern: str) -> None:
    for token in TOKENS:
        assert len(token) <= MAX_TOKEN_LENGTH
        assert re.search(pattern, f"/kling/callbacks/{token}"), token
        for other in (f"/kling/callbacks/{token}/", f"/x/kling/callbacks/{token}", "/api/v2/version", "/"):
            assert not re.search(pattern, other)
    assert not re.search(pattern, "/kling/callbacks/" + "A" * 300)


@pytest.mark.skipif(NGINX is None, reason="nginx is not here: set NGINX to its path")
def test_nginx_takes_its_snippet(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=airflow.example.com"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    text = snippet("nginx")
    text = text.replace("/etc/ssl/airflow.example.com.pem", str(certificate))
    text = text.replace("/etc/ssl/airflow.example.com.key", str(key))
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"pid {tmp_path}/nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{\n"
        + "".join(
            f"{name}_temp_path {tmp_path}/{name};\n"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        + text
        + "\n}\n"
    )
    done = subprocess.run(
        [str(NGINX), "-t", "-c", str(config), "-p", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def logs_of_server(text: str) -> list[str]:
    """Return where the server logs to; none of its locations may say otherwise."""
    assert not re.search(r"^ {8,}\w+_log\b", text, re.MULTILINE)
    return re.findall(r"^    (\w+_log .*)$", text, re.MULTILINE)


def test_nginx_opens_this_path_alone() -> None:
    text = snippet("nginx")
    assert text.count("{") == text.count("}")
    [pattern] = re.findall(r'location ~ "([^"]+)"', text)
    assert_takes_tokens_only(pattern)
    assert re.findall(r"location (?!~)(\S+) \{\s*return (\d+);", text) == [("/", "404")]
    assert "limit_except POST { deny all; }" in text
    assert "client_max_body_size 64k;" in text
    assert receiver.MOST_BYTES == 64 * 1024
    assert "access_log off;" in text
    # The error log quotes the address too: where Airflow is down, a call is refused, or there are too many.
    assert logs_of_server(text) == ["access_log off;", "error_log /dev/null;"]


def test_traefik_opens_this_path_alone() -> None:
    http = yaml.safe_load(snippet("yaml"))["http"]
    assert set(http) == {"routers", "middlewares", "services"}
    [router] = http["routers"].values()
    [pattern] = re.findall(r"PathRegexp\(`([^`]+)`\)", router["rule"])
    assert_takes_tokens_only(pattern)
    assert "Method(`POST`)" in router["rule"]
    assert set(router["middlewares"]) == set(http["middlewares"])
    assert router["service"] in http["services"]
    assert router["observability"] == {"accessLogs": False, "tracing": False}
    assert http["middlewares"]["kling-size"]["buffering"]["maxRequestBodyBytes"] == receiver.MOST_BYTES
