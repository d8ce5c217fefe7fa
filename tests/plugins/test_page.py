"""The page's own files, and how Airflow shows them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from airflow_provider_kling import plugins
from airflow_provider_kling.page_address import PATH
from airflow_provider_kling.plugins import gallery
from tests.plugins.viewing import People, Viewer

FILES = Path(plugins.__file__).parent / "page"
STATIC = sorted(path.name for path in FILES.iterdir() if path.name != "index.html")


@pytest.fixture
def anybody(people: People) -> Viewer:
    """Return somebody who is not logged in: the page's files hold no data."""
    return Viewer(people, {})


def policy_of(answer: Any) -> dict[str, list[str]]:
    parts = [part.split() for part in answer.headers["Content-Security-Policy"].split(";")]
    return {name: values for name, *values in parts}


def test_airflows_menu_leads_to_the_page(viewer: Viewer, people: People) -> None:
    found = viewer.request("GET", "/api/v2/plugins?limit=100", **people.log_in("root", "admin")).json()[
        "plugins"
    ]
    [view] = [view for each in found for view in each["external_views"] if each["name"] == "kling"]
    assert (view["name"], view["destination"], view["category"]) == ("Kling videos", "nav", "browse")
    assert view["url_route"] == "kling-videos"
    page = viewer.get(view["href"])
    assert page.status_code == 200
    assert "<title>Kling videos</title>" in page.text


@pytest.mark.parametrize("base_url", ["", "https://example.com", "https://example.com/af", "http://x/a/b/"])
def test_the_page_is_found_behind_the_path_of_airflow(monkeypatch: pytest.MonkeyPatch, base_url: str) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", base_url)
    [view] = plugins.KlingPlugin().external_views
    assert view["href"] == f"{urlsplit(base_url).path.rstrip('/')}{PATH}/"


def test_airflow_mounts_it_behind_a_proxys_path(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.api_fastapi import app as airflow_app
    from fastapi.testclient import TestClient

    monkeypatch.setattr(airflow_app, "API_ROOT_PATH", "/af/")
    with TestClient(airflow_app.create_app()) as client:
        # A proxy may take the path's beginning away, or leave it.
        for start in ("", "/af"):
            assert "<title>Kling videos</title>" in client.get(f"{start}{PATH}/").text
            assert client.get(f"{start}{PATH}/static/{STATIC[0]}").status_code == 200
            url = f"{start}{PATH}/dags/d/runs/r/tasks/t/-1/files/0"
            assert client.get(url).status_code == 401


@pytest.mark.parametrize("name", STATIC)
def test_each_file_of_the_page_has_its_type(anybody: Viewer, name: str) -> None:
    answer = anybody.get(f"{PATH}/static/{name}")
    assert answer.status_code == 200
    assert answer.content == (FILES / name).read_bytes()
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".png": "image/png"}
    assert answer.headers["Content-Type"].startswith(types[Path(name).suffix])
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_may_load_nothing_but_itself_and_the_services_videos(anybody: Viewer) -> None:
    policy = policy_of(anybody.get(f"{PATH}/"))
    assert policy == {
        "default-src": ["'none'"],
        "script-src": ["'self'"],
        "style-src": ["'self'"],
        "img-src": ["'self'"],
        "font-src": ["'self'"],
        "connect-src": ["'self'"],
        "media-src": ["'self'", "https://r2.apimodels.app"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
        "frame-ancestors": ["'self'"],
    }


def test_every_answer_has_a_policy_and_a_type_that_stays(anybody: Viewer, viewer: Viewer) -> None:
    of_task = [
        f"/dags/d/runs/r/tasks/t/{its}" for its in ("-1/files/0", "x/files/0", "-1/videos", "-1/kling-tasks")
    ]
    for url in ["/", f"/static/{STATIC[0]}", "/static/none.js", "/nothing", *of_task]:
        for somebody in (anybody, viewer):
            answer = somebody.get(PATH + url)
            assert "Content-Security-Policy" in answer.headers, url
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_the_page_has_nothing_inline_that_its_policy_would_have_to_allow() -> None:
    html = (FILES / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", html, re.IGNORECASE)
    assert all("src=" in script for script in re.findall(r"<script[^>]*>", html))
    for address in re.findall(r'(?:src|href)="([^"]*)"', html):
        assert not address.startswith(("http:", "https:", "//", "data:")), address


def test_what_the_page_refers_to_is_there() -> None:
    html = (FILES / "index.html").read_text()
    named = set(re.findall(r'="static/([^"]+)"', html))
    for path in FILES.glob("*.js"):
        named |= set(re.findall(r'from "\./([^"]+)"', path.read_text()))
    assert named <= set(STATIC)


@pytest.mark.parametrize(
    "name",
    [
        "index.html",
        "../gallery.py",
        "..%2fgallery.py",
        "%2e%2e/gallery.py",
        "..%5cgallery.py",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "start.js%00.css",
        "start.js/",
        ".",
        "",
        "START.JS",
    ],
)
def test_no_other_file_is_given(anybody: Viewer, name: str) -> None:
    answer = anybody.get(f"{PATH}/static/{name}")
    assert answer.status_code == 404
    assert b"import" not in answer.content


def test_a_file_that_the_browser_has_is_not_sent_again(anybody: Viewer) -> None:
    for url in (f"{PATH}/", f"{PATH}/static/{STATIC[0]}"):
        first = anybody.get(url)
        assert first.headers["Cache-Control"] == "no-cache"
        again = anybody.get(url, If_None_Match=first.headers["ETag"])
        assert (again.status_code, again.content) == (304, b"")
        assert "Content-Security-Policy" in again.headers
        assert anybody.request("HEAD", url).content == b""


def test_other_hosts_may_be_allowed_to_give_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastapi.testclient import TestClient

    def media() -> list[str]:
        return policy_of(TestClient(gallery.create_app()).get("/"))["media-src"]

    monkeypatch.setenv("AIRFLOW__KLING__MEDIA_HOSTS", "https://a.example.com, http://127.0.0.1:8000/")
    assert media() == ["'self'", "https://a.example.com", "http://127.0.0.1:8000"]
    monkeypatch.setenv("AIRFLOW__KLING__MEDIA_HOSTS", "")
    assert media() == ["'self'"]
    # A wrong setting opens nothing, and keeps no API server from starting.
    for wrong in ("*", "https://x; script-src *", "'unsafe-inline'", "data:", "https://x\n"):
        monkeypatch.setenv("AIRFLOW__KLING__MEDIA_HOSTS", f"{wrong} 'none'")
        assert media() == ["'self'", "https://r2.apimodels.app"]
