"""The live page in a real browser: it reloads by itself and keeps what its reader chose."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

selenium = pytest.importorskip("selenium", reason="selenium is not installed")

from selenium.webdriver import Chrome  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

from privguard.command_line.watch import serve  # noqa: E402
from privguard.grids import chosen_grids  # noqa: E402
from privguard.reporting.report import write_page  # noqa: E402
from privguard.spec import SweepSpec  # noqa: E402
from privguard.store import Store  # noqa: E402
from tests.reporting.browser import browser, complaints, screen  # noqa: E402
from tests.reporting.record_factory import sweep  # noqa: E402

__all__ = ["browser"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    store = Store.create(directory)
    spec = SweepSpec(
        env="hopper", defenses=tuple(chosen_grids(["gaussian"], 4)), attacks=("map",), seeds=2
    )
    store.put_sweep(spec, "privguard sweep --env hopper")
    store.close()
    return directory


@pytest.fixture
def address(run: Path) -> Iterator[str]:
    server = serve(run, 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_new_report_appears_and_leaves_the_readers_choices_alone(
    browser: Chrome, run: Path, address: str
) -> None:
    patience = WebDriverWait(browser, 60)
    browser.get(address)
    assert browser.find_element(By.TAG_NAME, "h1").text == "No report yet"
    cells, attacks = sweep([0], targets=4)
    write_page(run, cells, attacks, command="privguard sweep")
    patience.until(lambda page: page.find_elements(By.ID, "measure"))
    patience.until(lambda page: "0 of 10 cells" in page.find_element(By.ID, "privguard-watch").text)

    Select(browser.find_element(By.ID, "measure")).select_by_value("identified")
    button = browser.find_element(By.XPATH, "//ul[@id='defenses']//button[contains(., 'clip')]")
    button.click()
    browser.execute_script("window.before = true")
    more = sweep(range(2), targets=4)
    write_page(run, *more, command="privguard sweep")
    patience.until(lambda page: not page.execute_script("return window.before ?? false"))
    patience.until(lambda page: page.find_elements(By.CSS_SELECTOR, "[aria-pressed=false]"))
    chosen = Select(browser.find_element(By.ID, "measure")).first_selected_option
    assert chosen.get_attribute("value") == "identified"
    chart = browser.find_element(By.CSS_SELECTOR, "#frontier-chart svg")
    assert "identified" in chart.get_attribute("aria-label")
    assert "clip" in browser.find_element(By.CSS_SELECTOR, "[aria-pressed=false]").text
    with screen(browser, 390, "dark"):
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    assert complaints(browser) == []
