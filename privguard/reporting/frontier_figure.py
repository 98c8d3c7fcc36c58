"""The frontier: what the server learns against what the policy earns, one curve a defence.

The large panel is the worst case over attacks, the small ones the attacks by themselves. Error
bars are bootstrap 95% intervals both ways.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from privguard.records import ReleaseKind
from privguard.reporting.flags import by_privacy
from privguard.reporting.frontier_axes import (
    BOTTOM,
    MEASURES,
    HorizontalAxis,
    Measure,
    draw_reference,
    horizontal_axis,
    vertical_top,
)
from privguard.reporting.frontier_legend import frontier_legend
from privguard.reporting.frontier_row import FrontierRow
from privguard.reporting.labels import Label, place_labels
from privguard.reporting.style import (
    GREY,
    INK,
    SeriesStyle,
    defense_styles,
    freeze_layout,
    message_figure,
    new_figure,
    tidy,
)
from privguard.reporting.wording import level_text, short_number
from privguard.reporting.worst_case import headline, pareto


def frontier_figure(
    rows: Sequence[FrontierRow], *, release: ReleaseKind = "probe", measure: Measure = "ra"
) -> Figure:
    """Draw the rows of one environment and one kind of release.

    Without anything to draw the figure says so. Without a finished undefended cell the horizontal
    axis is the raw return.
    """
    attacked = [row for row in rows if row.release == release and row.leakage_mean is not None]
    drawable = [row for row in attacked if row.return_mean is not None]
    if not drawable:
        missing = "return" if attacked else f"attacked {release} release"
        return message_figure(f"Nothing to draw yet: no cell has a {missing}.")
    axis = horizontal_axis(drawable)
    styles = defense_styles(row.defense for row in rows)
    attacks = sorted({row.attack for row in drawable if row.attack is not None})

    figure = new_figure(13.5, 6.8)
    main, small = _panels(figure, len(attacks) if len(attacks) > 1 else 0)
    strongest = headline(drawable, release)
    front = pareto(strongest)
    _curves(main, strongest, axis, measure, styles, front=front, size=1.0)
    draw_reference(main, strongest, axis, measure, labelled=True)
    limited = _limits(main, strongest, axis, measure, styles)
    main.set_title(f"{drawable[0].env}: worst case over {_listing(attacks)}")
    main.set_xlabel(axis.label)
    main.set_ylabel(MEASURES[measure])
    for axes, attack in zip(small, attacks, strict=False):
        own = headline([row for row in drawable if row.attack == attack], release)
        _curves(axes, own, axis, measure, styles, front=[], size=0.6)
        draw_reference(axes, own, axis, measure, labelled=False)
        axes.set_title(f"{attack} alone")
    main.set_ylim(BOTTOM, vertical_top(strongest, measure))
    figure.legend(
        handles=frontier_legend(strongest, styles, with_front=bool(front), with_limits=limited),
        loc="outside lower center",
        ncols=6,
        frameon=False,
        fontsize=9,
    )
    figure.suptitle(_subtitle(drawable, release), x=0.012, ha="left", fontsize=9, color=GREY)
    freeze_layout(figure)
    labels = _labels(strongest, axis, measure, styles)
    place_labels(main, labels, size=8)
    return figure


def _panels(figure: Figure, small: int) -> tuple[Axes, list[Axes]]:
    """A large panel, and beside it small ones in two columns that share its axes."""
    if not small:
        return figure.add_subplot(), []
    lines = (small + 1) // 2
    grid = figure.add_gridspec(lines, 4, width_ratios=(1.1, 1.1, 0.8, 0.8))
    main = figure.add_subplot(grid[:, :2])
    # The small panels share its ticks; more of them would run into each other there.
    main.xaxis.set_major_locator(MaxNLocator(5))
    axes = []
    for index in range(small):
        cell = grid[index // 2, 2 + index % 2]
        axes.append(figure.add_subplot(cell, sharex=main, sharey=main))
        axes[-1].tick_params(labelleft=index % 2 == 0, labelbottom=index + 2 >= small, labelsize=8)
    return main, axes


def _curves(
    axes: Axes,
    rows: Sequence[FrontierRow],
    axis: HorizontalAxis,
    measure: Measure,
    styles: dict[str, SeriesStyle],
    *,
    front: Sequence[FrontierRow],
    size: float,
) -> None:
    for defense, style in styles.items():
        own = [row for row in rows if row.defense == defense]
        own = by_privacy(own) or own
        x = [axis.position(row) for row in own]
        y = [getattr(row, f"{measure}_mean") for row in own]
        axes.plot(
            x,
            y,
            color=style.color,
            linestyle=style.linestyle,
            linewidth=1.6 * size,
            alpha=0.75,
            zorder=2,
        )
        if own:
            axes.errorbar(
                x,
                y,
                xerr=_reach(own, axis.name, x),
                yerr=_reach(own, measure, y),
                linestyle="none",
                color=style.color,
                elinewidth=0.9 * size,
                alpha=0.55,
                zorder=3,
            )
        for row in own:
            _point(axes, row, axis, measure, style, size=size, on_front=row in front)
    axes.set_xlim(axis.low, axis.high)
    tidy(axes)


def _limits(
    axes: Axes,
    rows: Sequence[FrontierRow],
    axis: HorizontalAxis,
    measure: Measure,
    styles: dict[str, SeriesStyle],
) -> bool:
    """A dash where an attacker at the Bayesian floor would stand; whether there is any."""
    drawn = False
    for row in rows:
        if row.limit_ra is None:
            continue
        limit = row.limit_ra
        if measure == "leakage":
            prior = row.ra_prior or 0.0
            limit = max(0.0, (limit - prior) / (1 - prior))
        elif measure != "ra":
            continue
        color = styles[row.defense].color
        axes.plot(axis.position(row), limit, "_", color=color, markersize=15, mew=2.2, zorder=4)
        drawn = True
    return drawn


def _point(
    axes: Axes,
    row: FrontierRow,
    axis: HorizontalAxis,
    measure: Measure,
    style: SeriesStyle,
    *,
    size: float,
    on_front: bool,
) -> None:
    """One level: its marker, and a cross if its policy is broken."""
    x, y = axis.position(row), getattr(row, f"{measure}_mean")
    radius = (9 if not row.undefended else 17) * size
    axes.plot(
        x,
        y,
        linestyle="none",
        marker=style.marker,
        markersize=radius,
        markerfacecolor=style.color if row.usable else "white",
        markeredgecolor=INK if on_front else style.color if not row.usable else "white",
        markeredgewidth=1.6 if on_front else 1.0,
        alpha=1.0 if row.usable else 0.7,
        clip_on=False,
        zorder=5 if row.undefended else 4,
    )
    if not row.usable:
        axes.plot(x, y, "x", color=GREY, markersize=radius * 0.75, clip_on=False, zorder=5)
    if axis.value(row) < x:
        axes.annotate(
            "",
            (x, y),
            xytext=(-16 * size, 0),
            textcoords="offset points",
            arrowprops={"arrowstyle": "<-", "color": GREY, "linewidth": 1.1 * size},
            annotation_clip=False,
            zorder=3,
        )


def _reach(rows: Sequence[FrontierRow], name: str, centers: Sequence[float]) -> NDArray[np.float64]:
    """Lengths of the error bars, (2, rows); none for an unbounded interval or beyond the axis."""
    lengths = np.zeros((2, len(rows)))
    for index, (row, center) in enumerate(zip(rows, centers, strict=True)):
        low, high = getattr(row, f"{name}_low"), getattr(row, f"{name}_high")
        if low is not None and high is not None and center == getattr(row, f"{name}_mean"):
            lengths[:, index] = center - low, high - center
    return lengths


def _labels(
    rows: Sequence[FrontierRow],
    axis: HorizontalAxis,
    measure: Measure,
    styles: dict[str, SeriesStyle],
) -> list[Label]:
    labels = []
    for row in rows:
        text = "undefended" if row.undefended else level_text(row) or row.defense
        value, x = axis.value(row), axis.position(row)
        if value < x:
            text = f"{text} (return {short_number(round(value, 2))})"
        labels.append(Label(x, getattr(row, f"{measure}_mean"), text, styles[row.defense].color))
    return labels


def _listing(attacks: Sequence[str]) -> str:
    return f"{len(attacks)} attacks" if len(attacks) > 1 else attacks[0]


def _subtitle(rows: Sequence[FrontierRow], release: ReleaseKind) -> str:
    seeds = sorted({row.seeds for row in rows})
    span = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    batches = sorted({row.batch_size for row in rows if row.batch_size is not None})
    listed = ", ".join(str(batch) for batch in batches)
    known = sorted({row.knowledge for row in rows})
    prior = f"worst of {len(known)} prior knowledges · " if len(known) > 1 else ""
    return (
        f"{release} releases, records behind one release: {listed} · seeds a level: {span} · "
        f"{prior}bars: bootstrap 95% · numbers: levels · arrows: beyond the axis"
    )
