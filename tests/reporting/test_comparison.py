import csv
from html.parser import HTMLParser

import numpy as np
import pytest

from privguard.reporting.comparison import ALL_RUNS, Run, compare
from privguard.reporting.comparison_figure import comparison_figure
from privguard.reporting.comparison_page import write_comparison
from privguard.reporting.limits import Limits
from tests.reporting.record_factory import IDLE, attack, cell, sweep


def _run(name: str, levels: dict[float, tuple[float, float]], *, seeds: int = 4) -> Run:
    cells, attacks = [], []
    for seed in range(seeds):
        for level, (leaked, kept) in {None: (0.99, 1.0), **levels}.items():
            here = cell(
                "none" if level is None else "gaussian", level, seed, kept=kept, env=name,
                level_name="variance", private_end="high",
            )  # fmt: skip
            cells.append(here)
            attacks.append(attack(here, leakage=leaked, spread=0.01))
    return Run(name, cells, attacks)


def _row(comparison, run: str, level: float):
    (row,) = (r for r in comparison.rows if (r.run, r.level) == (run, level))
    return row


def test_runs_of_other_returns_compare_because_each_is_normalised_by_its_own():
    ant = _run("ant", {1.0: (0.05, 0.8)})
    hopper = _run("hopper", {1.0: (0.05, 0.8)})
    scaled = [
        c.model_copy(
            update={
                "final_returns": [value / 10 for value in c.final_returns],
                "random_return": c.random_return / 10,
                "zero_return": c.zero_return / 10,
            }
        )
        for c in hopper.cells
    ]
    comparison = compare([ant, Run("hopper", scaled, hopper.attacks)], Limits())
    assert _row(comparison, "ant", 1.0).return_iqm == pytest.approx(
        _row(comparison, "hopper", 1.0).return_iqm, abs=0.05
    )


def test_the_aggregate_is_the_iqm_over_all_seeds_of_all_runs():
    def exact(name: str, scores: list[float]) -> Run:
        cells = [cell(seed=seed, returns=[IDLE + 100], env=name) for seed in range(4)]
        cells += [
            cell("clip", 1.0, seed, returns=[IDLE + 100 * score], env=name)
            for seed, score in enumerate(scores)
        ]
        return Run(name, cells, [])

    comparison = compare(
        [exact("ant", [0.0, 0.1, 0.2, 0.3]), exact("hopper", [0.4, 0.5, 0.6, 9.0])], Limits()
    )
    row = _row(comparison, ALL_RUNS, 1.0)
    # Of eight seeds the two lowest and the two highest are left out.
    assert row.return_iqm == pytest.approx(np.mean([0.2, 0.3, 0.4, 0.5]))
    assert row.return_iqm_low < row.return_iqm < row.return_iqm_high
    assert row.seeds == 8
    assert row.leakage_iqm is None


def test_levels_that_one_run_lacks_are_shown_but_not_aggregated():
    comparison = compare(
        [_run("ant", {1.0: (0.05, 1.1), 2.0: (0.01, 1.1)}), _run("hopper", {1.0: (0.05, 1.1)})],
        Limits(),
    )
    assert [row.run for row in comparison.rows if row.level == 2.0] == ["ant"]
    assert comparison.shared == ["gaussian at variance 1"]
    nothing = compare(
        [_run("ant", {1.0: (0.05, 1.1)}), _run("hopper", {1.0: (0.5, 1.1)})], Limits()
    )
    assert nothing.shared == []


def test_a_run_without_a_scale_takes_the_aggregate_with_it_and_says_why():
    idle = [cell(seed=seed, returns=[IDLE - 5], env="hopper") for seed in range(2)]
    comparison = compare([_run("ant", {}), Run("hopper", idle, [])], Limits())
    assert _row(comparison, ALL_RUNS, None).return_iqm is None
    assert any("hopper has no normalised return" in note for note in comparison.notes)


def test_runs_need_names_of_their_own():
    run = _run("ant", {}, seeds=1)
    for runs in ([run], [run, run]):
        with pytest.raises(ValueError, match="name of its own"):
            compare(runs, Limits())


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self._in_cell = False

    def handle_starttag(self, tag, attributes):
        self._in_cell = tag == "td"
        if tag == "img":
            self.images.append(dict(attributes))

    def handle_data(self, data):
        if self._in_cell:
            self.cells.append(data)

    def handle_endtag(self, tag):
        self._in_cell = False


def test_page_figure_and_table_say_the_same(tmp_path):
    cells, attacks = sweep(range(2), attacks=("rgia",), deployed=False, targets=4)
    hopper = [c.model_copy(update={"env": "hopper"}) for c in cells]
    comparison = compare([Run("ant", cells, attacks), Run("hopper", hopper, attacks)], Limits())
    written = write_comparison(tmp_path, comparison)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in written}
    page = _Page()
    page.feed((tmp_path / "index.html").read_text())
    assert page.images[0]["src"].startswith("data:image/png;base64,")
    assert len(page.images[0]["alt"]) > 40
    with (tmp_path / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(comparison.rows)
    for row in rows:
        mean, low, high = (float(row[f"leakage_iqm{end}"]) for end in ("", "_low", "_high"))
        assert f"{mean:.2f} [{low:.2f}, {high:.2f}]" in page.cells
    figure = comparison_figure(comparison)
    earned, leaked = figure.axes
    levels = {(row.defense, row.level) for row in comparison.rows}
    assert len(earned.get_yticks()) == len(levels)
    # An interval and a marker for each row, one dashed limit, one line under each defence.
    assert len(leaked.lines) == 2 * len(rows) + 1 + len({defense for defense, _ in levels})
