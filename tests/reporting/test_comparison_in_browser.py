"""The page of several runs in a real browser."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

selenium = pytest.importorskip("selenium", reason="selenium is not installed")

from selenium.webdriver import Chrome  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402

from privguard.reporting.comparison import Run, compare  # noqa: E402
from privguard.reporting.comparison_page import write_comparison  # noqa: E402
from privguard.reporting.limits import Limits  # noqa: E402
from tests.reporting.browser import browser, complaints, faint_texts, screen  # noqa: E402
from tests.reporting.record_factory import sweep  # noqa: E402

__all__ = ["browser"]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("comparison")
    runs = [Run(name, *sweep(range(2), targets=4)) for name in ("first", "second")]
    write_comparison(directory, compare(runs, Limits(max_leakage=0.5, max_reward_loss=0.3)))
    return directory


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_on_a_phone_and_a_desk_in_both_colour_schemes(
    browser: Chrome, comparison: Path, width: int, scheme: str
) -> None:
    browser.get((comparison / "index.html").as_uri())
    with screen(browser, width, scheme):
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        browser.execute_script("document.getElementById('words').open = true")
        assert faint_texts(browser) == []
        image = browser.find_element(By.CSS_SELECTOR, "img.drawn")
        drawn, natural, shown = browser.execute_script(
            "const [i] = arguments; return [i.alt, i.naturalWidth / i.naturalHeight, i.width]",
            image,
        )
        assert drawn.startswith("Interval plot")
        # Two panels side by side on a desk, one above the other on a phone, at full width.
        assert (natural > 0.9) == (width > 600)
        assert shown > 0.9 * (width - 60)
    assert complaints(browser) == []


def test_the_answer_and_the_table_say_what_the_csv_says(browser: Chrome, comparison: Path) -> None:
    browser.get((comparison / "index.html").as_uri())
    assert browser.find_element(By.ID, "answer").text.startswith("Means keep the limits in every")
    rows = list(csv.DictReader((comparison / "comparison.csv").open()))
    lines = browser.find_elements(By.CSS_SELECTOR, "tbody tr")
    assert len(lines) == len(rows)
    for row, line in zip(rows, lines, strict=True):
        cells = [cell.text for cell in line.find_elements(By.TAG_NAME, "td")]
        assert cells[0] == row["run"]
        for text, name in ((cells[1], "return_iqm"), (cells[2], "leakage_iqm")):
            assert float(text.split()[0]) == pytest.approx(float(row[name]), abs=0.0051)
