"""Training curves: return against environment steps, one panel a defence, one shade a level."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import cycle

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from privguard.records import CellRecord
from privguard.reporting.returns import UNDEFENDED, return_scale
from privguard.reporting.statistics import finite, mean_or_none
from privguard.reporting.style import (
    DASHES,
    GREY,
    INK,
    defense_styles,
    freeze_layout,
    message_figure,
    new_figure,
    tidy,
)
from privguard.reporting.wording import short_number

Curve = tuple[list[float], list[float]]

DEPTH_SHOWN = 0.6
"""How far below idling the axis reaches, as a share of the height above it."""


def training_figure(cells: Sequence[CellRecord]) -> Figure:
    """Mean over seeds and episodes at each evaluation; darker is more private.

    Every panel shows the undefended curve and the idle return for reference. Policies far below
    idling are cut off at the axis, which the figure says.
    """
    cells = [cell for cell in cells if cell.evaluations]
    if not cells:
        return message_figure("Nothing to draw yet: no cell has been evaluated.")
    groups: dict[str, dict[float | None, list[CellRecord]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        groups[cell.defense][cell.level].append(cell)
    reference = [cell for cell in cells if cell.defense == UNDEFENDED]
    defenses = [name for name in defense_styles(groups) if name in groups and name != UNDEFENDED]
    panels = defenses or [UNDEFENDED]
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)

    figure = new_figure(4.3 * columns, 3.3 * lines + 0.4)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes, defense in zip(grid, panels, strict=False):
        if defense != UNDEFENDED:
            _levels(axes, groups[defense])
        _reference(axes, reference, cells)
        axes.set_title("undefended" if defense == UNDEFENDED else defense)
        axes.legend(
            fontsize=7,
            frameon=False,
            loc="upper left",
            ncols=2,
            title=_level_name(groups[defense]),
            title_fontsize=8,
        )
        tidy(axes)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[: len(panels)][-columns:]:
        axes.tick_params(labelbottom=True)
    cut = _limits(grid[0], cells)
    grid[0].xaxis.set_major_formatter(FuncFormatter(_thousands))
    figure.supxlabel("environment steps (all clients)", fontsize=10)
    figure.supylabel("return" + (", cut off below" if cut else ""), fontsize=10)
    freeze_layout(figure)
    return figure


def _levels(axes: Axes, levels: dict[float | None, list[CellRecord]]) -> None:
    first = next(iter(levels.values()))[0]
    sign = -1 if first.private_end == "low" else 1
    ordered = sorted(levels, key=lambda level: sign * (level or 0.0))
    shades = sns.color_palette("flare", len(ordered))
    for level, shade, dash in zip(ordered, shades, cycle(DASHES), strict=False):
        x, y = mean_curve(levels[level])
        broken = any(cell.state != "ok" for cell in levels[level])
        label = "" if level is None else short_number(level)
        sns.lineplot(
            x=x,
            y=y,
            ax=axes,
            color=shade,
            linewidth=1.5,
            linestyle=(0, dash or None),
            label=f"{label} (broken)" if broken else label or first.defense,
            errorbar=None,
        )


def _reference(axes: Axes, undefended: list[CellRecord], cells: Sequence[CellRecord]) -> None:
    if undefended:
        x, y = mean_curve(undefended)
        sns.lineplot(
            x=x, y=y, ax=axes, color=INK, linewidth=1.3, linestyle="--", label="undefended"
        )
    random = mean_or_none(cell.random_return for cell in cells)
    zero = mean_or_none(cell.zero_return for cell in cells)
    for value, name, dash in ((zero, "zero action", "-."), (random, "random", ":")):
        if value is not None:
            axes.axhline(value, color=GREY, linestyle=dash, linewidth=1, label=name, zorder=1)


def mean_curve(cells: Sequence[CellRecord]) -> Curve:
    """Mean return at each evaluation round over the seeds that have reached it."""
    returns: dict[int, list[float]] = defaultdict(list)
    steps: dict[int, list[float]] = defaultdict(list)
    for cell in cells:
        for evaluation in cell.evaluations:
            values = finite(evaluation.returns)
            if values.size:
                returns[evaluation.round].append(float(values.mean()))
                steps[evaluation.round].append(evaluation.environment_steps)
    rounds = sorted(returns)
    x = [float(np.mean(steps[round_])) for round_ in rounds]
    return x, [float(np.mean(returns[round_])) for round_ in rounds]


def _limits(axes: Axes, cells: Sequence[CellRecord]) -> bool:
    """Keep one collapsed policy from flattening all others; returns whether anything is cut."""
    means = finite(
        mean_or_none(evaluation.returns) for cell in cells for evaluation in cell.evaluations
    )
    if not means.size:
        return False
    scale = return_scale(cells)
    anchors = finite([scale.idle, mean_or_none(cell.random_return for cell in cells)])
    top = max(float(means.max()), *anchors.tolist()) if anchors.size else float(means.max())
    lowest = float(means.min())
    floor = lowest
    if scale.idle is not None:
        height = max(top - scale.idle, 1e-9)
        floor = max(lowest, min(*anchors.tolist(), scale.idle - DEPTH_SHOWN * height))
    margin = 0.05 * (top - floor) or 1.0
    axes.set_ylim(floor - margin, top + 6 * margin)
    return lowest < floor - margin


def _level_name(levels: dict[float | None, list[CellRecord]]) -> str | None:
    return next((cell.level_name for cells in levels.values() for cell in cells), None)


def _thousands(value: float, _: object) -> str:
    return f"{value / 1000:g}k" if value else "0"
