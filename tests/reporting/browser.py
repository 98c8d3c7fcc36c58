"""A headless Chromium, for every page that is tested in one.

Without it these tests are skipped; ``PRIVGUARD_TEST_BROWSER=required`` makes it a must.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("selenium", reason="selenium is not installed")

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

# Containers run as root and share little memory; nothing here needs a network.
_ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    driver, binary = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or binary is None:
        message = "no Chromium with its driver here (Debian: chromium chromium-driver)"
        if os.environ.get("PRIVGUARD_TEST_BROWSER") == "required":
            pytest.fail(message)
        pytest.skip(message)
    options = ChromeOptions()
    options.binary_location = binary
    for argument in _ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


@contextmanager
def screen(browser: Chrome, width: int, scheme: str) -> Iterator[None]:
    """The browser as a screen of ``width`` pixels in a ``light`` or ``dark`` colour scheme."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    browser.refresh()
    yield
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def complaints(browser: Chrome) -> list[str]:
    """What the console has said since it was last asked."""
    return [entry["message"] for entry in browser.get_log("browser")]


def faint_texts(browser: Chrome, least: float = 4.5) -> list[str]:
    """Texts whose contrast with what lies behind them is below WCAG 2.1's for normal text."""
    script = Path(__file__).with_name("contrast.js").read_text(encoding="utf-8")
    found: list[str] = browser.execute_script(script, least)
    return found
