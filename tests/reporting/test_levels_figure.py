import matplotlib.pyplot as plt
import pytest

from privguard.reporting.frontier import frontier_rows
from privguard.reporting.frontier_row import FrontierRow
from privguard.reporting.levels_figure import levels_figure
from tests.reporting.record_factory import sweep


@pytest.mark.parametrize("best", [0.5, 1.6])
def test_every_return_is_drawn_inside_its_axes(best: float) -> None:
    rows = [
        row.model_copy(update={"normalized_return_mean": best}) if row.level is not None else row
        for row in frontier_rows(*sweep())
    ]
    figure = levels_figure(rows)
    below = figure.axes[len(figure.axes) // 2 :]
    for axes in below:
        low, high = axes.get_ylim()
        points = [line for line in axes.get_lines() if line.get_marker() != "None"]
        drawn = [float(y) for point in points for y in point.get_ydata()]
        assert drawn
        assert all(low <= y <= high for y in drawn)
    plt.close(figure)


def test_the_legend_fits_beside_a_single_defence_and_tells_attacks_apart() -> None:
    rows = [row for row in frontier_rows(*sweep()) if row.undefended or row.defense == "gaussian"]
    attacks = ("analytic", "cocktail", "dlg", "geiping", "learned", "map", "rgia", "spear")
    figure = levels_figure(
        [row.model_copy(update={"attack": attack}) for row in rows for attack in attacks]
    )
    figure.canvas.draw()
    (legend,) = figure.legends
    extent = legend.get_window_extent()
    assert extent.x0 >= 0
    assert extent.x1 <= figure.bbox.width
    assert extent.y0 >= 0
    handles = {handle.get_label(): handle for handle in legend.legend_handles}
    patterns = {str(handles[name]._unscaled_dash_pattern) for name in attacks}
    assert len(patterns) == len(attacks)
    plt.close(figure)


def test_the_legend_names_only_what_is_drawn() -> None:
    rows = [row for row in frontier_rows(*sweep()) if row.undefended or row.defense == "gaussian"]
    ended_well = [row.model_copy(update={"state": "ok", "limit_ra": None}) for row in rows]
    with_marks = [row.model_copy(update={"state": "diverged", "limit_ra": 0.5}) for row in rows]
    plain, marked = (labels(chosen) for chosen in (ended_well, with_marks))
    assert marked - plain == {"at the floor", "collapsed or failed"}
    assert plain < marked


def labels(rows: list[FrontierRow]) -> set[str]:
    figure = levels_figure(rows)
    (legend,) = figure.legends
    found = {text.get_text() for text in legend.get_texts()}
    plt.close(figure)
    return found
