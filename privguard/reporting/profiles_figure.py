"""Performance profiles: the share of runs whose normalised return lies above each threshold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from privguard.records import CellRecord
from privguard.reporting.aggregates import performance_profile
from privguard.reporting.break_points import privacy_order
from privguard.reporting.returns import UNDEFENDED, return_scale
from privguard.reporting.run_scores import RunScores, normalized_returns
from privguard.reporting.statistics import Array
from privguard.reporting.style import (
    GREY,
    INK,
    defense_styles,
    freeze_layout,
    message_figure,
    new_figure,
    tidy,
)
from privguard.reporting.wording import short_number

LOWEST, HIGHEST = -1.0, 2.0
"""Thresholds outside are not drawn: how far below idling a broken policy lies tells nothing."""
POINTS = 301
DASHES = ("-", "--", "-.", ":")


def profiles_figure(cells: Sequence[CellRecord]) -> Figure:
    """One panel a defence, one curve a level; darker is more private, dots are the undefended.

    A curve further to the right is the better policy. Bands are pointwise 95% intervals of the
    stratified bootstrap; a level with one seed has one step and no band.
    """
    scores = normalized_returns(cells)
    if not scores:
        reason = return_scale(cells).reason or "no cell has finished"
        return message_figure(f"No performance profile: {reason}.")
    end = {cell.defense: cell.private_end for cell in cells}
    names = {cell.defense: cell.level_name for cell in cells}
    levels: dict[str, list[float | None]] = defaultdict(list)
    for defense, level in scores:
        levels[defense].append(level)
    panels = [name for name in defense_styles(levels) if name in levels and name != UNDEFENDED]
    panels = panels or [UNDEFENDED]
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = new_figure(4.3 * columns, 3.3 * lines + 0.4)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    thresholds = _thresholds(scores)
    for axes, defense in zip(grid, panels, strict=False):
        if defense != UNDEFENDED:
            ordered = sorted(levels[defense], key=lambda level: privacy_order(level, end[defense]))
            _curves(axes, scores, defense, ordered, thresholds)
        _curve(axes, scores, (UNDEFENDED, None), thresholds, INK, ":", "undefended")
        axes.axvline(0, color=GREY, linewidth=0.8, zorder=1)
        axes.set_title("undefended" if defense == UNDEFENDED else defense)
        axes.legend(
            fontsize=7, framealpha=0.8, edgecolor="none", title=names[defense], title_fontsize=8
        )
        tidy(axes)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[: len(panels)][-columns:]:
        axes.tick_params(labelbottom=True)
    grid[0].set_ylim(-0.03, 1.03)
    runs = sorted({len(seeds) for seeds in scores.values()})
    figure.supxlabel("threshold τ of the normalised return (0: idle, 1: undefended)", fontsize=10)
    figure.supylabel(f"share of runs above τ ({_seeds(runs)} a level)", fontsize=10)
    freeze_layout(figure)
    return figure


def _thresholds(scores: RunScores) -> Array:
    means = [float(items.mean()) for runs in scores.values() for items in runs.values()]
    low, high = max(LOWEST, min(0.0, *means)), min(HIGHEST, max(1.0, *means))
    return np.linspace(low - 0.05, high + 0.05, POINTS)


def _curves(
    axes: Axes,
    scores: RunScores,
    defense: str,
    levels: Sequence[float | None],
    thresholds: Array,
) -> None:
    shades = sns.color_palette("flare", len(levels))
    for index, (level, shade) in enumerate(zip(levels, shades, strict=True)):
        label = defense if level is None else short_number(level)
        dash = DASHES[index % len(DASHES)]
        _curve(axes, scores, (defense, level), thresholds, shade, dash, label)


def _curve(
    axes: Axes,
    scores: RunScores,
    level: tuple[str, float | None],
    thresholds: Array,
    color: tuple[float, float, float] | str,
    dash: str,
    label: str,
) -> None:
    runs = list(scores.get(level, {}).values())
    if not runs:
        return
    profile = performance_profile([runs], thresholds)
    axes.plot(
        thresholds,
        profile.share,
        color=color,
        linestyle=dash,
        linewidth=1.5,
        label=label,
        drawstyle="steps-pre",
    )
    if len(runs) > 1:
        axes.fill_between(
            thresholds, profile.low, profile.high, color=color, alpha=0.12, linewidth=0
        )


def _seeds(counts: Sequence[int]) -> str:
    if len(counts) > 1:
        return f"{counts[0]} to {counts[-1]} seeds"
    return "1 seed" if counts[0] == 1 else f"{counts[0]} seeds"
