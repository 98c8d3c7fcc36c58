"""The plane of the frontier: its axes, where they end, and the lines every panel shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from privguard.reporting.frontier_row import FrontierRow
from privguard.reporting.limits import MAX_LEAKAGE, MAX_REWARD_LOSS
from privguard.reporting.style import INK

Measure = Literal["ra", "leakage"]

MEASURES: dict[Measure, str] = {
    "ra": "reconstruction accuracy of (s, a)",
    "leakage": "leakage: reconstruction accuracy above the prior's, rescaled",
}
"""Label of the vertical axis."""

CLIP_BELOW = -0.3
"""Points with a lower normalised return are drawn at the edge: below 0 idling is better anyway."""

BOTTOM = -0.04


@dataclass(frozen=True)
class HorizontalAxis:
    """Normalised return, or the raw one while nothing can be normalised."""

    name: str
    """Prefix of the row's columns."""
    label: str
    low: float
    high: float

    @property
    def normalized(self) -> bool:
        """Whether 0 and 1 have their meaning."""
        return self.name == "normalized_return"

    def value(self, row: FrontierRow) -> float:
        """The row's return; NaN, which draws nothing, where it has none."""
        value: float | None = getattr(row, f"{self.name}_mean")
        return float("nan") if value is None else value

    def position(self, row: FrontierRow) -> float:
        """Where the row is drawn: at the edge if its return lies beyond it."""
        value = self.value(row)
        return CLIP_BELOW if self.normalized and value < CLIP_BELOW else value


def horizontal_axis(rows: Sequence[FrontierRow]) -> HorizontalAxis:
    """The axis for rows that all have a return."""
    normalized = [r.normalized_return_mean for r in rows if r.normalized_return_mean is not None]
    if normalized:
        low = max(min(0.0, *normalized), CLIP_BELOW)
        high = max(1.0, *normalized)
        label = "normalised return (0 = idle, 1 = undefended)"
        return HorizontalAxis("normalized_return", label, low - 0.06, high + 0.08)
    raw = [r.return_mean for r in rows if r.return_mean is not None]
    margin = 0.08 * (max(raw) - min(raw)) or 1.0
    label = "return (no finished undefended cell that learnt: not normalised)"
    return HorizontalAxis("return", label, min(raw) - margin, max(raw) + margin)


def vertical_top(rows: Sequence[FrontierRow], measure: Measure) -> float:
    """Upper limit of the vertical axis: all of it, unless everything lies in its lower half."""
    highest = max(getattr(row, f"{measure}_mean") for row in rows)
    return 1.06 if highest > 0.6 else max(0.3, 1.25 * highest)


def draw_reference(
    axes: Axes,
    rows: Sequence[FrontierRow],
    axis: HorizontalAxis,
    measure: Measure,
    *,
    labelled: bool,
) -> None:
    """The prior's level, the good corner, and where idling and the undefended policy lie."""
    priors = [row.ra_prior for row in rows if row.ra_prior is not None]
    chance = float(np.mean(priors)) if priors and measure == "ra" else 0.0
    axes.axhline(chance, color=INK, linestyle=(0, (5, 3)), linewidth=1, zorder=1)
    if measure == "ra" and priors:
        axes.axhspan(min(priors), max(priors), color="0.5", alpha=0.15, linewidth=0, zorder=0)
    if axis.normalized:
        for position in (0.0, 1.0):
            axes.axvline(position, color="0.75", linewidth=0.9, zorder=0)
        top = chance + MAX_LEAKAGE * (1 - chance)
        corner = (1 - MAX_REWARD_LOSS, BOTTOM)
        axes.add_patch(
            Rectangle(
                corner,
                axis.high - corner[0],
                top - corner[1],
                color="#009E73",
                alpha=0.16,
                linewidth=0,
                zorder=0,
            )
        )
        if labelled:
            axes.annotate(
                "good",
                (axis.high, corner[1]),
                xytext=(-4, 3),
                textcoords="offset points",
                ha="right",
                va="bottom",
                color="#00664b",
                fontsize=9,
                fontweight="bold",
            )
    if labelled:
        text = "guessing from the prior" if measure == "ra" else "nothing learnt from the gradient"
        axes.annotate(
            text,
            (0.5, chance),
            xycoords=("axes fraction", "data"),
            xytext=(0, -3),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=8,
            color=INK,
        )
