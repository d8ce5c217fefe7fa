"""Addresses that a service on the internet cannot fetch from, however they are written."""

from __future__ import annotations

import socket

import pytest

from airflow_provider_kling.api.reachability import why_unreachable

LOOPBACK = [
    "127.0.0.1",
    "127.1",
    "0x7f.1",
    "0x7F000001",
    "2130706433",
    "0177.0.0.1",
    "127.0.0.1.",
    "\uff11\uff12\uff17.0.0.1",
    "127\u30020\u30020\u30021",
    "%31%32%37.0.0.1",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[2002:7f00:1::]",
]
OTHERS = [
    ("0.0.0.0", "unspecified"),
    ("0", "unspecified"),
    ("[::]", "unspecified"),
    ("169.254.169.254", "link-local"),
    ("[fe80::1%25eth0]", "link-local"),
    ("10.1.2.3", "private network"),
    ("172.16.0.1", "private network"),
    ("172.31.255.255", "private network"),
    ("192.168.1.1", "private network"),
    ("3232235777", "private network"),
    ("100.64.0.1", "private network"),
    ("[fd12::1]", "private network"),
    ("[::ffff:10.0.0.1]", "private network"),
    ("224.0.0.1", "multicast"),
    ("255.255.255.255", "private network"),
]
NAMES = [
    "localhost",
    "LOCALHOST.",
    "a.localhost",
    "printer.local",
    "vault.corp.internal",
    "nas.home.arpa",
    "minio",
]


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_is_known_in_every_spelling(host: str) -> None:
    why = why_unreachable(f"http://{host}:8080/a.png?x=1")
    assert why is not None
    assert "is a loopback address" in why


@pytest.mark.parametrize(("host", "kind"), OTHERS)
def test_addresses_that_lead_nowhere_from_the_internet_are_known(host: str, kind: str) -> None:
    assert kind in str(why_unreachable(f"https://{host}/a.png"))


@pytest.mark.parametrize("name", NAMES)
def test_names_of_private_networks_are_known(name: str) -> None:
    why = why_unreachable(f"https://{name}/a.png")
    assert why is not None
    assert why.startswith(name.lower())


def test_an_odd_spelling_is_told_with_what_it_stands_for() -> None:
    assert why_unreachable("http://0x7f.1/") == "0x7f.1 is 127.0.0.1, which is a loopback address"
    assert why_unreachable("http://10.0.0.1/") == "10.0.0.1 is an address of a private network"


def test_a_user_in_front_of_the_host_hides_nothing() -> None:
    assert why_unreachable("https://example.com@127.0.0.1/a.png")
    assert why_unreachable("https://127.0.0.1@example.com/a.png") is None


@pytest.mark.parametrize(
    "host",
    [
        "example.com",
        "r2.apimodels.app",
        "8.8.8.8",
        "172.32.0.1",
        "[2606:4700::1111]",
        "localhost.example.com",
        "internal.example.com",
        "local-files.org",
        "1.2.3.4.5",
        "127.0.0.1.example.com",
        "b\u00fccher.example",
    ],
)
def test_nothing_is_said_against_others_and_nothing_is_looked_up(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(*_: object) -> None:
        raise AssertionError("it was looked up")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "gethostbyname", look_up)
    assert why_unreachable(f"https://{host}/a.png") is None


@pytest.mark.parametrize("url", ["http://[1", "http://", "/data/a.png", ""])
def test_what_has_no_host_is_left_to_others(url: str) -> None:
    assert why_unreachable(url) is None
