"""The frontier's legend: what the lines, stars, dashes and crosses stand for."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.lines import Line2D

from privguard.reporting.frontier_row import FrontierRow
from privguard.reporting.style import GREY, INK, SeriesStyle


def frontier_legend(
    rows: Sequence[FrontierRow],
    styles: dict[str, SeriesStyle],
    *,
    with_front: bool,
    with_limits: bool,
) -> list[Line2D]:
    """Handles of the defences that ``rows`` have, and of the signs that stand beside them."""
    names = {row.defense: row.level_name for row in rows}
    handles = [
        Line2D(
            [],
            [],
            color=style.color,
            marker=style.marker,
            markersize=13 if defense == "none" else 8,
            markeredgecolor="white",
            linestyle="none" if defense == "none" else style.linestyle,
            label="undefended" if defense == "none" else _legend_text(defense, names[defense]),
        )
        for defense, style in styles.items()
        if defense in names
    ]
    if with_front:
        handles.append(_symbol("o", "0.8", INK, "on the Pareto front"))
    if with_limits:
        handles.append(_symbol("_", GREY, GREY, "attacker at the Bayesian floor"))
    if not all(row.usable for row in rows):
        handles.append(_symbol("X", "white", GREY, "collapsed, diverged or failed"))
    return handles


def _legend_text(defense: str, level_name: str | None) -> str:
    return f"{defense} ({level_name})" if level_name else defense


def _symbol(marker: str, face: str, edge: str, label: str) -> Line2D:
    return Line2D(
        [],
        [],
        linestyle="none",
        marker=marker,
        markersize=8,
        markerfacecolor=face,
        markeredgecolor=edge,
        markeredgewidth=1.4,
        label=label,
    )
