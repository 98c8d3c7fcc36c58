import csv

import numpy as np
import pytest

from privguard.reporting.profiles_figure import profiles_figure
from privguard.reporting.run_scores import (
    LevelStatistics,
    level_statistics,
    normalized_returns,
    worst_leakages,
)
from privguard.reporting.tables import write_csv
from tests.reporting.record_factory import IDLE, attack, cell, sweep


def test_all_seeds_share_one_scale():
    cells = [
        cell(seed=0, returns=[IDLE + 100]),
        cell(seed=1, returns=[IDLE + 300]),
        cell("gaussian", 0.1, seed=0, returns=[IDLE + 100, IDLE + 200]),
    ]
    scores = normalized_returns(cells)
    assert scores["none", None][0].tolist() == pytest.approx([0.5])
    assert scores["none", None][1].tolist() == pytest.approx([1.5])
    assert scores["gaussian", 0.1][0].tolist() == pytest.approx([0.5, 1.0])
    assert normalized_returns([cell(returns=[IDLE - 1]), cell("gaussian", 0.1)]) == {}


def test_leakage_is_that_of_the_strongest_attack():
    here = cell()
    records = [attack(here, leakage=0.9), attack(here, "dlg", leakage=0.2)]
    assert worst_leakages([here], records)["none", None][0].mean() > 0.8


def test_statistics_are_paired_and_written_as_they_are(tmp_path):
    cells, attacks = sweep(range(4), attacks=("rgia",), deployed=False, targets=4)
    rows = level_statistics(cells, attacks)
    assert len(rows) == len({(cell.defense, cell.level) for cell in cells})
    weak = next(row for row in rows if (row.defense, row.level) == ("dp-sgd", 0.1))
    assert weak.seeds == 4
    assert weak.return_iqm_low < weak.return_iqm < weak.return_iqm_high
    assert weak.return_difference == pytest.approx(weak.return_iqm - 1, abs=0.05)
    write_csv(tmp_path / "statistics.csv", LevelStatistics, rows)
    with (tmp_path / "statistics.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [row["defense"] for row in written] == [row.defense for row in rows]
    assert written[0]["return_difference"] == ""
    assert float(written[1]["leakage_iqm"]) == pytest.approx(rows[1].leakage_iqm, abs=1e-5)


def test_the_profile_figure_draws_every_level():
    cells, _ = sweep(range(3), attacks=())
    figure = profiles_figure(cells)
    panel = next(axes for axes in figure.axes if axes.get_title(loc="left") == "gaussian")
    # Six levels and the undefended reference, and the line at idle.
    assert len(panel.lines) == 8
    heights = np.concatenate([line.get_ydata() for line in panel.lines])
    assert heights.min() >= 0
    assert heights.max() <= 1
