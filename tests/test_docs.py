"""What the documents promise to be whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from airflow_provider_kling import get_provider_info
from airflow_provider_kling.api.request import VideoRequest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]


def test_every_field_of_a_request_is_explained() -> None:
    text = (ROOT / "docs" / "request.md").read_text()
    explained = {
        name
        for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    assert explained == set(VideoRequest.model_fields)


def test_every_setting_is_named_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    for name in get_provider_info()["config"]["kling"]["options"]:
        assert f"`{name}`" in text or f"[kling] {name}`" in text, name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", document.read_text()):
        file = document.parent / target if target else document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            known = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in known, f"{target}#{anchor}"
