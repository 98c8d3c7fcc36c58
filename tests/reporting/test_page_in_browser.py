"""The page in a real browser. Without Chromium these tests are skipped, or fail where it is a must.

``PRIVGUARD_TEST_BROWSER=required`` makes them a must.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privguard.examples import Example, Examples
from privguard.reporting.report import Evidence, write_page
from tests.reporting.record_factory import sweep

selenium = pytest.importorskip("selenium", reason="selenium is not installed")

from selenium.webdriver import Chrome, ChromeOptions, Keys  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("report")
    cells, attacks = sweep(range(2), targets=4)
    random = np.random.default_rng(0)

    def load(key: str) -> list[Examples]:
        true, action = random.normal(size=(1, 5)), random.normal(size=(1, 2))
        answer = Example(true, action, true + 0.01, action + 1)
        ones, zeros = np.ones(5), np.zeros(5)
        scale = (zeros, ones, zeros[:2], ones[:2])
        return [Examples("rgia", "probe", "samples (0.3%)", *scale, (0, 9), (answer, answer))]

    evidence = Evidence(load=load)
    write_page(directory, cells, attacks, command="privguard sweep", evidence=evidence)
    return directory


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
    # Containers run as root and share little memory.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = Chrome(options=options, service=Service(driver))
    yield opened
    opened.quit()


@pytest.fixture
def page(browser: Chrome, report: Path) -> Iterator[Chrome]:
    browser.set_window_size(1280, 900)
    browser.get((report / "index.html").as_uri())
    yield browser
    complaints = [entry["message"] for entry in browser.get_log("browser")]
    assert complaints == []


def points(page: Chrome) -> list[Any]:
    return page.find_elements(By.CSS_SELECTOR, "#frontier-chart .point")


def test_every_chart_is_drawn(page: Chrome) -> None:
    for host in ("frontier-chart", "levels", "scatter", "training"):
        assert page.find_elements(By.CSS_SELECTOR, f"#{host} svg"), host
    # Three levels of the synthetic grid lie in one place; each is a point of its own.
    assert len(points(page)) == 26
    assert page.find_element(By.ID, "answer").text.startswith(("No measured", "Deploy", "Tent"))


def test_a_defence_can_be_hidden_and_shown(page: Chrome) -> None:
    before = len(points(page))
    button = page.find_element(By.XPATH, "//ul[@id='defenses']//button[contains(., 'gaussian')]")
    button.send_keys(Keys.ENTER)
    assert button.get_attribute("aria-pressed") == "false"
    assert len(points(page)) == before - 6
    training = page.find_element(By.ID, "training").text
    assert "gaussian" not in training
    assert "topk" in training
    button.click()
    assert len(points(page)) == before


def test_measure_attack_and_release_can_be_chosen(page: Chrome) -> None:
    label = "#frontier-chart svg"
    drawn = [page.find_element(By.CSS_SELECTOR, label).get_attribute("aria-label")]
    for control, value, says in (
        ("measure", "leakage", "leakage against return"),
        ("measure", "identified", "identified"),
        ("measure", "nmse", "NMSE"),
        ("attack", "dlg", "NMSE"),
        ("release", "deployed", "deployed releases"),
    ):
        Select(page.find_element(By.ID, control)).select_by_value(value)
        drawn.append(page.find_element(By.CSS_SELECTOR, label).get_attribute("aria-label"))
        assert says in drawn[-1]
    titles = [point.get_attribute("aria-label") for point in points(page)]
    assert all("(dlg)" in title for title in titles)


def test_a_point_shows_its_row_of_the_table_to_mouse_and_keyboard(
    page: Chrome, report: Path
) -> None:
    rows = list(csv.DictReader((report / "frontier.csv").open()))
    first = points(page)[0]
    page.execute_script("arguments[0].focus()", first)
    for _ in range(3):
        page.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
        shown = {
            name.text: value.get_attribute("title")
            for name, value in zip(
                page.find_elements(By.CSS_SELECTOR, "#details dt"),
                page.find_elements(By.CSS_SELECTOR, "#details dd"),
                strict=True,
            )
        }
        keys = ("defense", "level", "attack", "release", "batch_size")
        (row,) = [r for r in rows if all(_same(r[key], shown.get(key, "")) for key in keys)]
        for name, value in shown.items():
            assert _same(row[name], value), name
        assert set(shown) == {name for name, value in row.items() if value != ""}
    assert page.find_element(By.ID, "tip").is_displayed()


def _same(field: str, shown: str) -> bool:
    """Whether a field of the table is what the page shows, as text or as a number."""
    if field == shown:
        return True
    try:
        return float(field) == float(shown)
    except ValueError:
        return False


def test_the_tables_say_what_the_csv_says(page: Chrome, report: Path) -> None:
    rows = [
        row
        for row in csv.DictReader((report / "frontier.csv").open())
        if (row["defense"], row["release"]) == ("topk", "probe")
    ]
    worst = {
        level: max(float(row["leakage_mean"]) for row in rows if row["level"] == level)
        for level in {row["level"] for row in rows}
    }
    table = page.find_element(By.CSS_SELECTOR, "table[aria-label^='topk, probe']")
    lines = table.find_elements(By.CSS_SELECTOR, "tbody tr")
    shown = {}
    for line in lines:
        level = float(line.find_element(By.CSS_SELECTOR, "th").get_attribute("textContent"))
        leakage = line.find_elements(By.CSS_SELECTOR, "td")[1].get_attribute("textContent")
        shown[level] = float(leakage.split()[0])
    assert shown == {float(level): round(value, 2) for level, value in worst.items()}


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_a_desk_in_both_colour_schemes(
    page: Chrome, width: int, scheme: str
) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    page.refresh()
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    paper = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[scheme]
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_everything_that_acts_is_reached_by_tab(page: Chrome) -> None:
    reached = set()
    body = page.find_element(By.TAG_NAME, "body")
    body.click()
    for _ in range(40):
        page.switch_to.active_element.send_keys(Keys.TAB)
        active = page.switch_to.active_element
        reached.add(active.get_attribute("id") or active.tag_name)
    assert {"release", "attack", "measure", "details", "button", "g", "a"} <= reached
