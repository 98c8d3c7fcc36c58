"""One look for all figures: colour-blind safe, and readable in black and white.

A defence keeps its colour and its marker in every figure and while a sweep grows. Everything is
set on ``Figure`` objects inside ``figure_style``; matplotlib's global state is left alone.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from privguard.reporting.returns import UNDEFENDED

DPI = 200
EXTENSIONS = ("png", "pdf", "svg")
GREY = "0.45"
INK = "0.15"

_FIXED_ORDER = ("gaussian", "dp-sgd", "clip", "quantize", "topk", "secagg", "he")
"""The defences that everybody has; others take the following slots in alphabetical order."""
_MARKERS = ("o", "s", "^", "D", "v", "<", "h", "p", ">", "P")

DASHES: tuple[tuple[float, ...], ...] = (
    (),
    (6, 2),
    (1.5, 1.5),
    (6, 2, 1.5, 2),
    (3, 1.5),
    (9, 2, 1.5, 2, 1.5, 2),
)


@dataclass(frozen=True)
class SeriesStyle:
    """How one line and its points are drawn."""

    color: tuple[float, float, float]
    marker: str
    dash: tuple[float, ...] = ()
    """Lengths of dashes and gaps in points; a solid line where empty."""

    @property
    def linestyle(self) -> Literal["-"] | tuple[float, Sequence[float]]:
        """The dash as matplotlib wants it."""
        return (0, self.dash) if self.dash else "-"


def defense_styles(defenses: Iterable[str]) -> dict[str, SeriesStyle]:
    """A distinct style for each defence; ``none`` is a black star."""
    names = set(defenses) - {UNDEFENDED}
    others = sorted(names - set(_FIXED_ORDER))
    order = [*_FIXED_ORDER, *others]
    palette = sns.color_palette("colorblind", len(_MARKERS))
    styles = {
        # The markers turn one step further each time the colours are used up.
        name: SeriesStyle(
            palette[slot % len(palette)],
            _MARKERS[(slot + slot // len(palette)) % len(_MARKERS)],
            DASHES[slot % len(DASHES)],
        )
        for slot, name in enumerate(order)
        if name in names
    }
    return {UNDEFENDED: SeriesStyle((0.0, 0.0, 0.0), "*"), **styles}


def series_styles(names: Iterable[str]) -> dict[str, SeriesStyle]:
    """A distinct style for each of a few lines that are no defences, in the order given."""
    palette = sns.color_palette("colorblind", len(_MARKERS))
    return {
        name: SeriesStyle(
            palette[slot % len(palette)],
            _MARKERS[slot % len(_MARKERS)],
            DASHES[slot % len(DASHES)],
        )
        for slot, name in enumerate(names)
    }


@contextmanager
def figure_style() -> Iterator[None]:
    """Seaborn's white grid at a readable size, for the figures made and saved inside."""
    settings = {
        **sns.axes_style("whitegrid"),
        **sns.plotting_context("notebook", font_scale=0.9),
        "axes.edgecolor": "0.6",
        "grid.color": "0.92",
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "svg.hashsalt": "privguard",
        "pdf.fonttype": 42,
    }
    with mpl.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that no global registry knows."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def freeze_layout(figure: Figure) -> None:
    """Settle the layout once: it is costly, and labels are placed on the settled one."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def render(figure: Figure, extension: str) -> bytes:
    """The file's content; the same figure gives the same bytes."""
    dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": None}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=extension, metadata=dates[extension])
    return buffer.getvalue()


def tidy(axes: Axes) -> None:
    """Take away what carries no information."""
    sns.despine(ax=axes)
    axes.tick_params(length=0)


def note(axes: Axes, text: str) -> None:
    """Say in the middle of an empty panel why it is empty."""
    axes.text(
        0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, wrap=True
    )


def message_figure(text: str) -> Figure:
    """A figure that only says why there is nothing to draw."""
    figure = new_figure(8, 3)
    axes = figure.subplots()
    axes.axis("off")
    note(axes, text)
    freeze_layout(figure)
    return figure
