"""Interval plot of a comparison: one line a level, one marker a run, the aggregate with its bar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from privguard.reporting.comparison import ALL_RUNS, Comparison, ComparisonRow
from privguard.reporting.returns import UNDEFENDED
from privguard.reporting.style import GREY, INK, freeze_layout, message_figure, new_figure, tidy
from privguard.reporting.wording import short_number

LOWEST = -1.0
"""Returns below are drawn at the edge: how far below idling a broken policy lies tells nothing."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")


def comparison_figure(comparison: Comparison, across: Literal[1, 2] = 2) -> Figure:
    """Normalised return and leakage, levels running down from weak to private.

    Two panels ``across`` share their levels; one above the other they suit a narrow screen.
    """
    levels = list(dict.fromkeys((row.defense, row.level) for row in comparison.rows))
    if not levels:
        return message_figure("Nothing to compare yet: no cell has finished.")
    tall = 0.3 * len(levels)
    figure = new_figure(10.5, 1.6 + tall) if across == 2 else new_figure(5, 3 + 2 * tall)
    earned, leaked = figure.subplots(1, 2, sharey=True) if across == 2 else figure.subplots(2, 1)
    place = {level: -index for index, level in enumerate(levels)}
    for axes, name in ((earned, "return"), (leaked, "leakage")):
        for row in comparison.rows:
            _interval(axes, row, name, place[row.defense, row.level], comparison.runs)
        for defense in dict.fromkeys(level[0] for level in levels):
            lowest = min(at for (name_, _), at in place.items() if name_ == defense)
            axes.axhline(lowest - 0.5, color="0.85", linewidth=0.8, zorder=0)
        tidy(axes)
        axes.grid(visible=False, axis="y")
    earned.axvline(comparison.limits.min_reward, color=GREY, linestyle="--", linewidth=1)
    leaked.axvline(comparison.limits.max_leakage, color=GREY, linestyle="--", linewidth=1)
    earned.set_xlim(left=LOWEST - 0.1)
    leaked.set_xlim(-0.03, 1.03)
    for axes in (earned, leaked)[: 3 - across]:
        axes.set_yticks(list(place.values()), [level_name(*level) for level in levels], fontsize=8)
        axes.set_ylim(-len(levels) + 0.4, 0.6)
    earned.set_title("normalised return (0: idle, 1: undefended)")
    leaked.set_title("leakage of the strongest attack")
    figure.legend(
        handles=_legend(comparison), loc="outside lower center", ncols=3 * across, frameon=False,
        fontsize=8,
    )  # fmt: skip
    freeze_layout(figure)
    return figure


def _interval(
    axes: Axes, row: ComparisonRow, name: str, height: float, runs: Sequence[str]
) -> None:
    mean, low, high = (getattr(row, f"{name}_iqm{end}") for end in ("", "_low", "_high"))
    if mean is None:
        return
    # Runs lie a little above the aggregate, side by side in their order.
    color, marker, size, at = INK, "|", 10.0, height - 0.12
    if row.run != ALL_RUNS:
        index = runs.index(row.run)
        color, marker = _run_style(index, len(runs))
        size, at = 5.0, height + 0.32 - 0.3 * (index + 1) / (len(runs) + 1)
    points = np.maximum(
        [mean, mean if low is None else low, mean if high is None else high], LOWEST
    )
    axes.plot(points[1:], [at, at], color=color, linewidth=3 if row.run == ALL_RUNS else 1)
    axes.plot(points[0], at, color=color, marker=marker, markersize=size, linestyle="none")


def _run_style(index: int, runs: int) -> tuple[str, str]:
    palette = sns.color_palette("colorblind", runs).as_hex()
    return palette[index], MARKERS[index % len(MARKERS)]


def _legend(comparison: Comparison) -> list[Line2D]:
    handles = []
    for index, name in enumerate(comparison.runs):
        color, marker = _run_style(index, len(comparison.runs))
        handles.append(Line2D([], [], color=color, marker=marker, linewidth=1, label=name))
    if any(row.run == ALL_RUNS for row in comparison.rows):
        handles.append(Line2D([], [], color=INK, linewidth=3, label="IQM over all runs, 95%"))
    handles.append(Line2D([], [], color=GREY, linestyle="--", label="allowed"))
    return handles


def level_name(defense: str, level: float | None) -> str:
    """E.g. 'gaussian 0.1'."""
    if defense == UNDEFENDED:
        return "undefended"
    return defense if level is None else f"{defense} {short_number(level)}"
