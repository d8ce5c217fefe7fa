from __future__ import annotations

import json
import ssl
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowNotFoundException, Connection

import airflow_provider_kling
from airflow_provider_kling.api.errors import ConnectionLookupError, ConnectionSettingsError
from airflow_provider_kling.api.pricing import PRICES
from airflow_provider_kling.hooks import settings as settings_module
from airflow_provider_kling.hooks.kling import KlingHook
from airflow_provider_kling.hooks.settings import ConnectionSettings, lookup_error, user_agent

from .conftest import KEY, Certificate, Connect

DEFAULT = "https://apimodels.app/api/v1"


def read(connection: Connection) -> ConnectionSettings:
    return ConnectionSettings.from_connection(connection, connection.extra_dejson)


def settings_of(monkeypatch: pytest.MonkeyPatch, value: str) -> ConnectionSettings:
    monkeypatch.setenv("AIRFLOW_CONN_KLING_DEFAULT", value)
    return KlingHook().settings


def made_in_the_ui(**fields: Any) -> Connection:
    """As Airflow's form makes it: what was left empty is there as an empty text or null."""
    extra = {"connect_timeout": None, "read_timeout": "", "verify": True, "ca_bundle": "", "proxies": ""}
    extra |= {"prices": ""}
    extra |= fields.pop("extra", {})
    return Connection(
        conn_id="kling_default",
        conn_type="kling",
        **({"host": "", "login": "", "password": KEY, "schema": "", "port": None} | fields),
        extra=json.dumps(extra),
    )


# One line is enough


def test_one_line_in_the_environment_is_a_whole_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(monkeypatch, "kling://:sk_x@")
    assert settings == ConnectionSettings(conn_id="kling_default", base_url=DEFAULT, key="sk_x")


@pytest.mark.parametrize(
    "uri",
    [
        f"kling://:{KEY}@127.0.0.1:8080/http",
        f"kling://http://:{KEY}@127.0.0.1:8080",
        f"kling://http://:{KEY}@127.0.0.1:8080/api%2Fv1",
        f"kling://:{KEY}@http%3A%2F%2F127.0.0.1%3A8080",
        f"kling://:{KEY}@http%3A%2F%2F127.0.0.1%3A8080%2Fapi%2Fv1%2F",
        f"kling://:{KEY}@http%3A%2F%2F127.0.0.1:8080",
    ],
)
def test_a_uri_can_lead_to_the_emulator(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    assert settings_of(monkeypatch, uri).base_url == "http://127.0.0.1:8080/api/v1"


# Three ways to make a connection, one client


@pytest.mark.parametrize(
    ("parts", "extra"),
    [
        ({}, {}),
        ({"host": "api.apimodels.app"}, {"read_timeout": 60}),
        ({"host": "gateway.example", "port": 8443, "schema": "kling/v1"}, {"connect_timeout": 2.5}),
        ({"host": "http://127.0.0.1:8080/api/v1"}, {"verify": False}),
        ({"host": "http://127.0.0.1", "port": 8080}, {"proxies": "http://proxy.example:3128"}),
    ],
)
def test_a_uri_json_and_the_form_make_the_same_client(
    monkeypatch: pytest.MonkeyPatch, parts: dict[str, Any], extra: dict[str, Any]
) -> None:
    in_the_ui = read(made_in_the_ui(**parts, extra=extra))

    as_json = {"conn_type": "kling", "password": KEY, **parts, "extra": extra}
    of_json = settings_of(monkeypatch, json.dumps(as_json))

    plain = Connection(
        conn_id="kling_default", conn_type="kling", password=KEY, **parts, extra=json.dumps(extra)
    )
    of_uri = settings_of(monkeypatch, plain.get_uri())

    assert in_the_ui == of_json == of_uri
    assert of_json.key == KEY


@pytest.mark.parametrize(
    ("parts", "base_url"),
    [
        ({"host": ""}, DEFAULT),
        ({"host": "  "}, DEFAULT),
        ({"host": None, "schema": None}, DEFAULT),
        ({"host": "apimodels.app"}, DEFAULT),
        ({"host": "https://apimodels.app/"}, DEFAULT),
        ({"host": "https://apimodels.app/api/v1"}, DEFAULT),
        ({"host": "https://apimodels.app/api/v1/"}, DEFAULT),
        ({"host": "https://api.apimodels.app"}, "https://api.apimodels.app/v1"),
        ({"host": "http://127.0.0.1:8080"}, "http://127.0.0.1:8080/api/v1"),
        ({"host": "http://127.0.0.1:8080/"}, "http://127.0.0.1:8080/api/v1"),
        ({"host": "http://127.0.0.1:8080/other/v2/"}, "http://127.0.0.1:8080/other/v2"),
        ({"host": "127.0.0.1", "port": 8080, "schema": "http"}, "http://127.0.0.1:8080/api/v1"),
        ({"host": "http://127.0.0.1:8080", "port": 9999}, "http://127.0.0.1:8080/api/v1"),
        ({"host": "http://127.0.0.1:8080", "schema": "https"}, "http://127.0.0.1:8080/api/v1"),
        ({"host": "gateway.example/kling/", "port": 8443}, "https://gateway.example:8443/kling"),
        ({"host": "gateway.example", "schema": "/kling/v1/"}, "https://gateway.example/kling/v1"),
        ({"host": "gateway.example", "schema": "k l"}, "https://gateway.example/k%20l"),
        ({"host": "http://[::1]", "port": 8080}, "http://[::1]:8080/api/v1"),
    ],
)
def test_host_port_and_schema_make_the_base_url(parts: dict[str, Any], base_url: str) -> None:
    assert read(made_in_the_ui(**parts)).base_url == base_url


@pytest.mark.parametrize(
    ("extra", "name", "value"),
    [
        ({"connect_timeout": "2.5"}, "connect_timeout", 2.5),
        ({"connect_timeout": ""}, "connect_timeout", 10),
        ({"connect_timeout": None}, "connect_timeout", 10),
        ({"read_timeout": 3600}, "read_timeout", 3600),
        ({"read_timeout": ""}, "read_timeout", 30),
        ({"verify": "False"}, "verify", False),
        ({"verify": False}, "verify", False),
        ({"verify": 0}, "verify", False),
        ({"verify": "no"}, "verify", False),
        ({"verify": ""}, "verify", True),
        ({"verify": " TRUE "}, "verify", True),
        ({"verify": None, "ca_bundle": "/etc/ca.pem"}, "verify", "/etc/ca.pem"),
        ({"verify": True, "ca_bundle": "/etc/ca.pem"}, "verify", "/etc/ca.pem"),
        ({"verify": False, "ca_bundle": "/etc/ca.pem"}, "verify", False),
        ({"proxies": ""}, "proxies", {}),
        ({"proxies": {}}, "proxies", {}),
        ({"proxies": "http://p:1"}, "proxies", {"http": "http://p:1", "https": "http://p:1"}),
        ({"proxies": {"https": "http://p:1"}}, "proxies", {"https": "http://p:1"}),
    ],
)
def test_the_extra_sets_how_the_service_is_reached(extra: dict[str, Any], name: str, value: Any) -> None:
    assert getattr(read(made_in_the_ui(extra=extra)), name) == value


# What is wrong is named


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"host": "ftp://files.example"}, "host"),
        ({"host": "https:/apimodels.app"}, "host"),
        ({"host": "https://api models.app"}, "host"),
        ({"host": "https://user:pass@apimodels.app"}, "host"),
        ({"host": "https://apimodels.app?key=1"}, "host"),
        ({"host": "https://apimodels.app:port"}, "host"),
        ({"host": "https://[::1", "port": 80}, "host"),
        ({"extra": {"connect_timeout": "soon"}}, "connect_timeout"),
        ({"extra": {"connect_timeout": 0}}, "connect_timeout"),
        ({"extra": {"connect_timeout": True}}, "connect_timeout"),
        ({"extra": {"connect_timeout": 10**400}}, "connect_timeout"),
        ({"extra": {"read_timeout": -1}}, "read_timeout"),
        ({"extra": {"read_timeout": "nan"}}, "read_timeout"),
        ({"extra": {"read_timeout": 3601}}, "read_timeout"),
        ({"extra": {"read_timeout": [30]}}, "read_timeout"),
        ({"extra": {"verify": "/etc/ca.pem"}}, "verify"),
        ({"extra": {"ca_bundle": 5}}, "ca_bundle"),
        ({"extra": {"proxies": "proxy.example:3128"}}, "proxies"),
        ({"extra": {"proxies": {"https": None}}}, "proxies"),
        ({"extra": {"proxies": "http://[::1"}}, "proxies"),
        ({"extra": {"proxies": ["http://p:1"]}}, "proxies"),
    ],
)
def test_an_unusable_value_is_named_with_its_field(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ConnectionSettingsError) as raised:
        read(made_in_the_ui(**fields))
    assert f"Connection 'kling_default', {named}: " in str(raised.value)
    assert "Correct the connection" in str(raised.value)
    assert "nothing was billed" in str(raised.value)
    assert not raised.value.retryable


def test_an_extra_that_is_a_list_is_named() -> None:
    connection = made_in_the_ui()
    with pytest.raises(ConnectionSettingsError, match="'kling_default', extra: it is not a JSON object"):
        ConnectionSettings.from_connection(connection, ["connect_timeout"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("password", "problem"),
    [
        (None, "it has no key"),
        ("", "it has no key"),
        ("  \n", "it has no key"),
        (f"Bearer {KEY}", "begins with 'Bearer'"),
        (f"bearer{KEY}", "begins with 'Bearer'"),
        (f" {KEY}", "white space"),
        (f"{KEY}\n", "white space"),
        (f"{KEY[:5]} {KEY[5:]}", "white space"),
        (f"{KEY[:5]}\x00{KEY[5:]}", "other characters"),
        (f"{KEY}…", "other characters"),
    ],
)
def test_a_key_that_cannot_be_one_is_refused_with_how_to_set_it(password: str | None, problem: str) -> None:
    with pytest.raises(ConnectionSettingsError) as raised:
        read(made_in_the_ui(password=password))
    text = str(raised.value)
    assert problem in text
    assert "airflow connections add kling_default --conn-type kling --conn-password" in text
    assert "AIRFLOW_CONN_KLING_DEFAULT='kling://:sk_…@'" in text
    assert "Nothing was sent and nothing was billed" in text
    assert KEY not in text
    assert KEY[5:] not in text


def test_a_connection_that_is_not_there_is_told_with_how_to_make_it() -> None:
    error = lookup_error("my_kling", AirflowNotFoundException("The conn_id `my_kling` isn't defined"))
    assert isinstance(error, ConnectionSettingsError)
    assert "There is no connection 'my_kling'" in str(error)
    assert error.retryable  # Airflow says the same where its API server is down
    assert "airflow connections add my_kling" in str(error)
    assert "AIRFLOW_CONN_MY_KLING=" in str(error)


def test_a_failed_lookup_is_no_missing_connection() -> None:
    error = lookup_error("my_kling", ConnectionResetError("the API server is away"))
    assert isinstance(error, ConnectionLookupError)
    assert error.retryable
    assert "the API server is away" in str(error)
    assert "no connection" not in str(error)


def test_the_commands_in_the_errors_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConnectionSettingsError) as raised:
        read(made_in_the_ui(password=""))
    name, _, value = str(raised.value).rpartition("environment ")[2].removesuffix(".").partition("=")
    assert name == "AIRFLOW_CONN_KLING_DEFAULT"
    assert settings_of(monkeypatch, value.strip("'").replace("sk_…", KEY)).key == KEY


# Secrets


def test_neither_key_nor_proxies_are_shown(connect: Connect) -> None:
    connect(proxies="http://user:s3cret-word@proxy.example:3128")
    shown = repr(KlingHook().settings)
    assert "kling_default" in shown
    assert KEY not in shown
    assert "s3cret-word" not in shown


def test_a_proxys_password_is_masked(monkeypatch: pytest.MonkeyPatch, connect: Connect) -> None:
    masked: list[Any] = []
    monkeypatch.setattr(settings_module, "mask_secret", masked.append)
    connect(
        proxies={"http": "http://user:s3cret-word@proxy.example:3128", "https": "http://proxy.example:3128"}
    )
    assert KlingHook().settings.proxies["https"] == "http://proxy.example:3128"
    assert masked == ["s3cret-word"]


def test_an_unusable_proxy_is_not_quoted() -> None:
    with pytest.raises(ConnectionSettingsError) as raised:
        read(made_in_the_ui(extra={"proxies": "user:s3cret-word@proxy.example:3128"}))
    assert "s3cret-word" not in str(raised.value)


# Proxies


def test_the_connections_proxy_beats_the_environments(
    monkeypatch: pytest.MonkeyPatch, connect: Connect
) -> None:
    monkeypatch.setenv("https_proxy", "http://of.environment:1")
    connect()
    assert KlingHook().settings.proxy == "http://of.environment:1"
    connect(proxies="http://of.connection:2")
    assert KlingHook().settings.proxy == "http://of.connection:2"


def test_no_proxy_of_the_environment_is_heeded(monkeypatch: pytest.MonkeyPatch, connect: Connect) -> None:
    monkeypatch.setenv("https_proxy", "http://of.environment:1")
    monkeypatch.setenv("no_proxy", "apimodels.app")
    connect()
    assert KlingHook().settings.proxy is None


# TLS


def test_verification_can_be_switched_off(connect: Connect) -> None:
    connect(verify=False)
    assert KlingHook().settings.tls() is False


def trusted(context: ssl.SSLContext | bool) -> int:
    assert isinstance(context, ssl.SSLContext)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    return context.cert_store_stats()["x509"]


def test_a_ca_bundle_is_trusted_alone(connect: Connect, certificate: Certificate) -> None:
    connect(ca_bundle=str(certificate.path))
    assert trusted(KlingHook().settings.tls()) == 1


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_without_a_bundle_the_triggerer_trusts_what_requests_trusts(
    monkeypatch: pytest.MonkeyPatch, connect: Connect, certificate: Certificate, name: str
) -> None:
    connect()
    assert trusted(KlingHook().settings.tls()) > 10
    monkeypatch.setenv(name, str(certificate.path))
    assert trusted(KlingHook().settings.tls()) == 1


def test_a_directory_of_certificates_will_do(connect: Connect, tmp_path: Path) -> None:
    connect(ca_bundle=str(tmp_path))
    assert trusted(KlingHook().settings.tls()) == 0


@pytest.mark.parametrize("content", [None, b"", b"not a certificate"])
def test_a_ca_bundle_that_cannot_be_read_is_named(
    connect: Connect, tmp_path: Path, content: bytes | None
) -> None:
    bundle = tmp_path / "ca.pem"
    if content is not None:
        bundle.write_bytes(content)
    connect(ca_bundle=str(bundle))
    hook = KlingHook()
    for use in (hook.settings.tls, hook.get_conn):
        with pytest.raises(ConnectionSettingsError, match=r"ca_bundle: .*ca\.pem"):
            use()


def test_the_user_agent_tells_both_versions() -> None:
    assert user_agent() == (
        f"airflow-provider-kling/{airflow_provider_kling.__version__} apache-airflow/{version('apache-airflow')}"
    )


# Prices of the account


OWN_PRICES = {"kling-v3-omni": {"std": {"plain": 0.05}}}


@pytest.mark.parametrize("prices", [OWN_PRICES, json.dumps(OWN_PRICES)], ids=["object", "text of the form"])
def test_the_extra_can_hold_prices_of_the_account(prices: Any) -> None:
    settings = read(made_in_the_ui(extra={"prices": prices}))
    expected = PRICES["kling-v3-omni", "std"]._replace(plain=Decimal("0.05"))
    assert settings.prices["kling-v3-omni", "std"] == expected
    assert settings.prices["kling-v3-omni", "pro"] == PRICES["kling-v3-omni", "pro"]


def test_without_prices_in_the_connection_those_of_the_configuration_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = read(made_in_the_ui())
    assert settings.prices == PRICES
    monkeypatch.setenv("AIRFLOW__KLING__PRICES", '{"kling-v3-omni": {"std": {"plain": 0.06}}}')
    assert settings.prices["kling-v3-omni", "std"].plain == Decimal("0.06")


def test_the_connections_prices_beat_the_configurations_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "AIRFLOW__KLING__PRICES",
        '{"kling-v3-omni": {"std": {"plain": 0.06, "sound": 0.09}}, "n": {"std": {"plain": 1}}}',
    )
    prices = read(made_in_the_ui(extra={"prices": {**OWN_PRICES, "n": {"std": {"sound": 2}}}})).prices
    assert prices["kling-v3-omni", "std"].plain == Decimal("0.05")
    assert prices["kling-v3-omni", "std"].sound == Decimal("0.09")
    assert prices["n", "std"][:2] == (1, 2)


@pytest.mark.parametrize(
    ("prices", "named"),
    [
        ({"kling-v3-omni": {"std": {"plain": "cheap"}}}, "prices.kling-v3-omni.std.plain: 'cheap'"),
        ('{"kling-v3-omni": {"std": {"plain": NaN}}}', "prices.kling-v3-omni.std.plain: NaN"),
        ({"kling-v3-omni": {"std": {"plain": True}}}, "prices.kling-v3-omni.std.plain: True"),
        ("cheap", "prices: it is not JSON"),
        ([1], "prices: [1] is not an object"),
    ],
)
def test_a_wrong_price_is_refused_where_prices_are_asked_for_and_not_before(prices: Any, named: str) -> None:
    settings = read(made_in_the_ui(extra={"prices": prices}))
    with pytest.raises(ConnectionSettingsError) as raised:
        _ = settings.prices
    assert f"Connection 'kling_default', {named}" in str(raised.value)
    assert "nothing was billed" in str(raised.value)
    assert not raised.value.retryable


def test_a_new_models_missing_price_is_told_where_prices_are_asked_for() -> None:
    settings = read(made_in_the_ui(extra={"prices": {"newer": {"std": {"sound": 1}}}}))
    with pytest.raises(ConnectionSettingsError, match=r"prices\.newer\.std\.plain: it is missing"):
        _ = settings.prices


def test_a_wrong_price_in_the_configuration_keeps_nobody_from_the_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW__KLING__PRICES", "cheap")
    assert read(made_in_the_ui()).base_url == DEFAULT
