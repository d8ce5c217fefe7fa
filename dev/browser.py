"""A real Chromium: this machine's own, or the one that Playwright brings."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Playwright

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_INSTALL_LIMIT = 600.0  # seconds
_START_LIMIT = 180_000.0  # ms: a busy machine has taken longer than the 30 s that are usual
_MISSING = """There is no Chromium to look at the page with, and Playwright could not install one:

{why}

Install one (Debian and Ubuntu: sudo apt-get install chromium), or run: {python} -m playwright install chromium"""


class NoBrowserError(Exception):
    """There is no Chromium that starts. The text is for a person and says what to do."""


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """
    Run Chromium without a window.

    :raises NoBrowserError: there is none that starts, and none could be installed.
    """
    # Only the newest Airflow's environment has it.
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        path = find_chromium(playwright)
        try:
            browser = playwright.chromium.launch(
                executable_path=path,
                timeout=_START_LIMIT,
                # Chromium's own sandbox does not work for root, which is who runs in many containers.
                args=["--no-sandbox"] if os.geteuid() == 0 else [],
            )
        except Error as error:  # such as a library of the system that it lacks
            raise NoBrowserError(f"{path} does not start:\n\n{error.message[-2000:]}") from error
        try:
            yield browser
        finally:
            browser.close()


def find_chromium(playwright: Playwright) -> str:
    """
    Return the path of a Chromium; Playwright installs its own where there is none.

    :raises NoBrowserError: there is none, and none could be installed.
    """
    for program in _PROGRAMS:
        if found := shutil.which(program):
            return found
    own = playwright.chromium.executable_path
    if not Path(own).exists():
        install = [sys.executable, "-m", "playwright", "install", "chromium"]
        try:
            tried = subprocess.run(install, capture_output=True, text=True, timeout=_INSTALL_LIMIT)
            why = (tried.stdout + tried.stderr).strip()[-2000:]
        except subprocess.TimeoutExpired:
            why = f"It took more than {_INSTALL_LIMIT:.0f} s."
        if not Path(own).exists():
            raise NoBrowserError(_MISSING.format(why=why, python=sys.executable))
    return own
