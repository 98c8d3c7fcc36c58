"""The page in a real browser. Without Chromium these tests are skipped, or fail where it is a must.

``PRIVGUARD_TEST_BROWSER=required`` makes them a must.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from privguard.audit.examples import Example, Examples
from privguard.reporting.report import Evidence, write_page
from tests.reporting.record_factory import sweep

selenium = pytest.importorskip("selenium", reason="selenium is not installed")

from selenium.webdriver import Chrome, Keys  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

from tests.reporting.browser import browser, complaints, faint_texts, screen  # noqa: E402

__all__ = ["browser"]


class OnePicture:
    """Every state looks the same: what is tested is where pictures stand."""

    drawable = True

    def picture(self, state: Any) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), "brown").save(buffer, "webp")
        return buffer.getvalue()

    def draw(self, states: Any) -> str:
        return ""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("report")
    cells, attacks = sweep(range(2), targets=4)
    random = np.random.default_rng(0)

    def load(key: str) -> list[Examples]:
        ones, zeros = np.ones(5), np.zeros(5)
        scale = (zeros, ones, zeros[:2], ones[:2])
        kept = []
        for release, batch in (("probe", 1), ("deployed", 8)):
            true, action = random.normal(size=(batch, 5)), random.normal(size=(batch, 2))
            for name in ("analytic", "dlg", "geiping", "rgia"):
                answer = Example(true, action, true + 0.01, action + 1)
                targets = ((0, 9), (answer, answer), (batch, batch))
                kept.append(Examples(name, release, "samples (0.3%)", *scale, *targets))
        return kept

    evidence = Evidence(load=load, pictures=OnePicture())
    write_page(directory, cells, attacks, command="privguard sweep", evidence=evidence)
    return directory


@pytest.fixture
def page(browser: Chrome, report: Path) -> Iterator[Chrome]:
    browser.set_window_size(1280, 900)
    browser.get((report / "index.html").as_uri())
    yield browser
    assert complaints(browser) == []


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
    with screen(page, width, scheme):
        assert page.execute_script("return document.documentElement.scrollWidth") <= width
        paper = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"}[scheme]
        page.execute_script("document.querySelectorAll('details').forEach((d) => d.open = true)")
        assert faint_texts(page) == []


def test_everything_that_acts_is_reached_by_tab(page: Chrome) -> None:
    reached = set()
    body = page.find_element(By.TAG_NAME, "body")
    body.click()
    for _ in range(40):
        page.switch_to.active_element.send_keys(Keys.TAB)
        active = page.switch_to.active_element
        reached.add(active.get_attribute("id") or active.tag_name)
    assert {"release", "attack", "measure", "details", "button", "g", "a"} <= reached


def test_what_leaked_is_shown_of_minibatches_and_attack_by_attack(page: Chrome) -> None:
    release, reader, example = (
        Select(page.find_element(By.ID, name)) for name in ("leaked-release", "reader", "example")
    )

    def counts() -> tuple[int, int]:
        pictures = page.find_elements(By.CSS_SELECTOR, "#pictures img")
        return len(pictures), len(page.find_elements(By.CSS_SELECTOR, "#scatter svg"))

    pictures, charts = counts()
    assert pictures == 2 * charts
    assert len(example.options) == 2
    assert "single records" in page.find_element(By.ID, "leaked-release").text
    reader.select_by_value("all")
    # Every level was attacked by four; the secure sums only by those that can.
    several = counts()[1]
    assert charts < several <= 4 * charts
    reader.select_by_value("dlg")
    alts = [
        image.get_attribute("alt") for image in page.find_elements(By.CSS_SELECTOR, "#pictures img")
    ]
    assert all("dlg" in alt for alt in alts[1::2])
    assert all(alt.startswith("True state") for alt in alts[::2])
    release.select_by_value("deployed")
    assert [option.text for option in example.options][:3] == [
        "1 of 2: round 0, best match",
        "1 of 2: round 0, second best match",
        "1 of 2: round 0, third best match",
    ]
    notes = page.find_elements(By.CSS_SELECTOR, "[data-release]")
    assert [note.is_displayed() for note in notes] == [False, True]
    example.select_by_value("0.1")
    text = page.find_element(By.ID, "pictures").text
    assert "second best match of 8" in text
    assert "5 of 7 coordinates within 0.1" in text


def test_errors_have_intervals_as_in_the_csv(page: Chrome, report: Path) -> None:
    Select(page.find_element(By.ID, "measure")).select_by_value("nmse")
    rows = {
        (row["defense"], float(row["level"] or 0), row["attack"], row["release"]): row
        for row in csv.DictReader((report / "frontier.csv").open())
    }
    first = points(page)[-1]
    page.execute_script("arguments[0].focus()", first)
    shown = {
        name.text: value.get_attribute("title")
        for name, value in zip(
            page.find_elements(By.CSS_SELECTOR, "#details dt"),
            page.find_elements(By.CSS_SELECTOR, "#details dd"),
            strict=True,
        )
    }
    key = (shown["defense"], float(shown.get("level", 0)), shown["attack"], shown["release"])
    for end in ("low", "mean", "high"):
        assert float(shown[f"nmse_{end}"]) == float(rows[key][f"nmse_{end}"])
    assert float(shown["nmse_low"]) < float(shown["nmse_mean"]) < float(shown["nmse_high"])


def test_pictures_charts_and_headings_serve_those_who_do_not_see_them(page: Chrome) -> None:
    unnamed = "img:not([alt]), svg.chart:not([aria-label])"
    assert page.find_elements(By.CSS_SELECTOR, unnamed) == []
    levels = page.execute_script(
        "return [...document.querySelectorAll('h1, h2, h3, h4')].map((h) => Number(h.tagName[1]))"
    )
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    words = page.find_element(By.CSS_SELECTOR, "#words summary")
    words.send_keys(Keys.ENTER)
    assert (
        "Share of records that the reconstruction picks out"
        in page.find_element(By.ID, "words").text
    )
