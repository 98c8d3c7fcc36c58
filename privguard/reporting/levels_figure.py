"""Privacy and reward against the level, one column a defence, always more private to the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from privguard.records import ReleaseKind
from privguard.reporting.flags import by_privacy, privacy_sign
from privguard.reporting.frontier_axes import CLIP_BELOW, horizontal_axis
from privguard.reporting.frontier_row import FrontierRow
from privguard.reporting.statistics import mean_or_none
from privguard.reporting.style import (
    GREY,
    INK,
    SeriesStyle,
    defense_styles,
    freeze_layout,
    message_figure,
    new_figure,
    note,
    tidy,
)
from privguard.reporting.wording import short_number
from privguard.reporting.worst_case import headline

LOGARITHMIC_SPAN = 20.0
"""Levels whose largest is more than this many times the smallest are drawn on a log axis."""

_DASHES = (
    "--",
    ":",
    "-.",
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (1, 3)),
    (0, (6, 2)),
    (0, (8, 2, 2, 2)),
    (0, (2, 2, 2, 2, 6, 2)),
)

LEGEND_COLUMN = 1.9
"""Inches that the longest entry of the legend takes."""


def levels_figure(rows: Sequence[FrontierRow], *, release: ReleaseKind = "probe") -> Figure:
    """Reconstruction accuracy above, return below; attacks as dashed lines, the worst case solid.

    Normalised return, or the raw one while nothing can be normalised.
    """
    drawable = [row for row in rows if row.level is not None and row.release in (release, None)]
    if not drawable:
        return message_figure("Nothing to draw yet: no defended level has finished.")
    styles = defense_styles(row.defense for row in drawable)
    defenses = [name for name in styles if any(row.defense == name for row in drawable)]
    attacks = sorted({row.attack for row in drawable if row.attack is not None})
    dashes = dict(zip(attacks, _DASHES * (1 + len(attacks) // len(_DASHES)), strict=False))
    controls = [row for row in rows if row.undefended and row.release == release]
    normalized = any(row.normalized_return_mean is not None for row in drawable)

    width = max(6.0, 2.5 * len(defenses) + 1)
    figure = new_figure(width, 5.8)
    grid = figure.subplots(2, len(defenses), sharey="row", sharex="col", squeeze=False)
    for (above, below), defense in zip(grid.T, defenses, strict=True):
        own = [row for row in drawable if row.defense == defense]
        _accuracy(above, own, controls, styles[defense], dashes, release)
        _reward(below, own, rows, styles[defense], normalized=normalized)
        above.set_title(defense)
        _level_axis(below, own)
        tidy(above)
        tidy(below)
    grid[0, 0].set_ylabel("reconstruction accuracy")
    grid[0, 0].set_ylim(-0.04, 1.06)
    grid[1, 0].set_ylabel("normalised return" if normalized else "return")
    if normalized:
        axis = horizontal_axis(drawable)
        grid[1, 0].set_ylim(axis.low, axis.high)
    figure.legend(
        handles=_legend(dashes, drawable),
        loc="outside lower center",
        ncols=min(6, int(width / LEGEND_COLUMN)),
        frameon=False,
        fontsize=9,
    )
    freeze_layout(figure)
    return figure


def _accuracy(
    axes: Axes,
    rows: Sequence[FrontierRow],
    controls: Sequence[FrontierRow],
    style: SeriesStyle,
    dashes: Mapping[str, Any],
    release: ReleaseKind,
) -> None:
    for attack, dash in dashes.items():
        own = by_privacy(headline([row for row in rows if row.attack == attack], release))
        x, y = [row.level for row in own], [row.ra_mean for row in own]
        sns.lineplot(x=x, y=y, ax=axes, color=style.color, linestyle=dash, alpha=0.8, linewidth=1.1)
    worst = by_privacy(headline(rows, release))
    _measured(axes, worst, "ra", style)
    limits = [(row.level or 0.0, row.limit_ra) for row in worst if row.limit_ra is not None]
    axes.plot(
        [level for level, _ in limits],
        [limit for _, limit in limits],
        color=GREY,
        marker="_",
        linestyle=(0, (1, 2)),
        zorder=3,
    )
    if not worst:
        note(axes, "not attacked yet")
    strongest = headline(controls, release)
    if strongest and strongest[0].ra_mean is not None:
        axes.axhline(strongest[0].ra_mean, color=INK, linewidth=1, zorder=1)
    prior = mean_or_none(row.ra_prior for row in worst)
    if prior is not None:
        axes.axhline(prior, color=INK, linestyle=(0, (5, 3)), linewidth=1, zorder=1)


def _reward(
    axes: Axes,
    rows: Sequence[FrontierRow],
    all_rows: Sequence[FrontierRow],
    style: SeriesStyle,
    *,
    normalized: bool,
) -> None:
    name = "normalized_return" if normalized else "return"
    # Every row of a level carries the same return.
    levels = {row.level: row for row in rows if getattr(row, f"{name}_mean") is not None}
    ordered = by_privacy(list(levels.values()))
    _measured(axes, ordered, name, style, floor=CLIP_BELOW if normalized else None)
    idle = 0.0 if normalized else mean_or_none(row.idle_return for row in rows)
    if idle is not None:
        axes.axhline(idle, color=GREY, linestyle=":", linewidth=1.2, zorder=1)
    control = mean_or_none(getattr(row, f"{name}_mean") for row in all_rows if row.undefended)
    if control is not None:
        axes.axhline(control, color=INK, linewidth=1, zorder=1)


def _measured(
    axes: Axes,
    rows: Sequence[FrontierRow],
    name: str,
    style: SeriesStyle,
    *,
    floor: float | None = None,
) -> None:
    """Means with intervals; hollow and crossed if broken, an arrow if below the axis."""
    means = [(row, getattr(row, f"{name}_mean")) for row in rows]
    drawn = [(row, mean if floor is None else max(mean, floor), mean) for row, mean in means]
    levels = [row.level or 0.0 for row in rows]
    axes.plot(levels, [y for _, y, _ in drawn], color=style.color, linewidth=1.8, zorder=2)
    for row, y, mean in drawn:
        low, high = getattr(row, f"{name}_low"), getattr(row, f"{name}_high")
        level = row.level or 0.0
        if low is not None and high is not None and y == mean:
            axes.plot([level, level], [low, high], color=style.color, alpha=0.6, zorder=3)
        axes.plot(
            level,
            y,
            marker=style.marker,
            markersize=7,
            markerfacecolor=style.color if row.usable else "white",
            markeredgecolor="white" if row.usable else style.color,
            clip_on=False,
            zorder=4,
        )
        if not row.usable:
            axes.plot(level, y, "x", color=GREY, markersize=6, clip_on=False, zorder=5)
        if y != mean:
            axes.annotate(
                short_number(round(mean, 2)),
                (level, y),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=GREY,
            )


def _level_axis(axes: Axes, rows: Sequence[FrontierRow]) -> None:
    """Only the measured levels as ticks, turned so that more private lies to the right."""
    levels = sorted({row.level for row in rows if row.level is not None})
    if levels[0] > 0 and levels[-1] / levels[0] > LOGARITHMIC_SPAN:
        axes.set_xscale("log")
    axes.set_xticks(levels, [short_number(level) for level in levels], fontsize=8)
    axes.minorticks_off()
    if len(levels) > 1 and privacy_sign(rows[0]) < 0:
        axes.invert_xaxis()
    axes.set_xlabel(f"{rows[0].level_name or 'level'} (more private →)", fontsize=10)


def _legend(dashes: Mapping[str, Any], rows: Sequence[FrontierRow]) -> list[Line2D]:
    """Entries for what ``rows`` show."""
    handles = [Line2D([], [], color=GREY, linewidth=2, marker="o", label="worst case")]
    handles += [
        Line2D([], [], color=GREY, linewidth=1.1, linestyle=dash, label=attack)
        for attack, dash in dashes.items()
    ]
    handles.append(Line2D([], [], color=INK, linewidth=1, label="undefended"))
    if any(row.limit_ra is not None for row in rows):
        floor = Line2D([], [], color=GREY, marker="_", linestyle=(0, (1, 2)), label="at the floor")
        handles.append(floor)
    handles += [
        Line2D([], [], color=INK, linewidth=1, linestyle=(0, (5, 3)), label="guess from the prior"),
        Line2D([], [], color=GREY, linewidth=1.2, linestyle=":", label="idle policy"),
    ]
    if not all(row.usable for row in rows):
        cross = Line2D(
            [], [], color=GREY, marker="x", linestyle="none", label="collapsed or failed"
        )
        handles.append(cross)
    return handles
