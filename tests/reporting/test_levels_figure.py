import matplotlib.pyplot as plt
import pytest

from privguard.reporting.frontier import frontier_rows
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
