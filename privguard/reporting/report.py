"""A directory of results from the records of a sweep, finished or still running."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
from matplotlib.figure import Figure

from privguard.records import AttackRecord, CellRecord, ReleaseKind
from privguard.reporting.files import write_atomically
from privguard.reporting.frontier import frontier_rows
from privguard.reporting.frontier_figure import frontier_figure
from privguard.reporting.frontier_row import FrontierRow
from privguard.reporting.leaks import Leak, Load, leaks
from privguard.reporting.levels_figure import levels_figure
from privguard.reporting.page import render_page
from privguard.reporting.page_data import page_data
from privguard.reporting.profiles_figure import profiles_figure
from privguard.reporting.recommendation import recommend
from privguard.reporting.run_scores import LevelStatistics, level_statistics
from privguard.reporting.style import EXTENSIONS, figure_style, render
from privguard.reporting.summary import summarize, summary_markdown
from privguard.reporting.tables import write_csv, write_frontier_csv
from privguard.reporting.training_figure import training_figure


class Pictures(Protocol):
    """Draws a robot in an observed state, and remembers the drawing."""

    drawable: bool
    """Whether the environment has a robot to draw."""

    def picture(self, state: Any) -> bytes | None:
        """WebP of one state that has been drawn."""

    def draw(self, states: Iterable[Any]) -> str:
        """Draws what is missing; why it could not, or ''."""


@dataclass(frozen=True)
class Evidence:
    """What a page shows beside the records."""

    load: Load = lambda key: ()
    pictures: Pictures | None = None
    specification: str = ""
    """Of the sweep, as JSON."""


NO_EVIDENCE = Evidence()

Shown = Mapping[ReleaseKind, Sequence[Leak]]
"""What leaked, by kind of release."""


def write_report(
    directory: Path,
    cells: Sequence[CellRecord],
    attacks: Sequence[AttackRecord],
    *,
    command: str,
    planned_cells: int | None = None,
    evidence: Evidence = NO_EVIDENCE,
) -> list[Path]:
    """Write table, summary and page, then the figures for print; returns their paths.

    Any subset of a sweep will do: what is missing is said in its place. Every file is replaced
    atomically, so a reader of a running sweep never meets half a file. ``command`` is what
    reproduces the records, ``planned_cells`` how many the sweep will have in the end.

    Raises:
        ValueError: the cells belong to several environments; a frontier is of one.
        OSError: the directory cannot be written.
    """
    rows = _rows(cells, attacks)
    shown = _leaks(rows, cells, evidence.load)
    note = ""
    if evidence.pictures is not None and evidence.pictures.drawable:
        note = evidence.pictures.draw(_states(shown))
    written = _write_page(
        directory, cells, attacks, rows, shown, command, planned_cells, evidence, note
    )
    with figure_style():
        for stem, draw in _drawings(cells, rows):
            figure = draw()
            for extension in EXTENSIONS:
                written.append(directory / f"{stem}.{extension}")
                write_atomically(written[-1], render(figure, extension))
    return written


def write_page(
    directory: Path,
    cells: Sequence[CellRecord],
    attacks: Sequence[AttackRecord],
    *,
    command: str,
    planned_cells: int | None = None,
    evidence: Evidence = NO_EVIDENCE,
) -> list[Path]:
    """The quick part of ``write_report``: no figures for print and no new poses.

    Raises:
        ValueError: the cells belong to several environments.
        OSError: the directory cannot be written.
    """
    rows = _rows(cells, attacks)
    shown = _leaks(rows, cells, evidence.load)
    note = "they are drawn at the end of a sweep and by `privguard report DIR`"
    return _write_page(
        directory, cells, attacks, rows, shown, command, planned_cells, evidence, note
    )


def _rows(cells: Sequence[CellRecord], attacks: Sequence[AttackRecord]) -> list[FrontierRow]:
    environments = sorted({cell.env for cell in cells})
    if len(environments) > 1:
        raise ValueError(f"one report is for one environment, not {environments}")
    return frontier_rows(cells, attacks)


def _write_page(
    directory: Path,
    cells: Sequence[CellRecord],
    attacks: Sequence[AttackRecord],
    rows: Sequence[FrontierRow],
    shown: Shown,
    command: str,
    planned_cells: int | None,
    evidence: Evidence,
    note: str,
) -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    table, statistics = directory / "frontier.csv", directory / "statistics.csv"
    write_frontier_csv(table, rows)
    write_csv(statistics, LevelStatistics, level_statistics(cells, attacks))
    summary = summarize(
        cells,
        attacks,
        rows,
        recommend(rows),
        command=command,
        planned_cells=planned_cells,
    )
    pictures = evidence.pictures if evidence.pictures and evidence.pictures.drawable else None
    data = page_data(cells, rows, shown, pictures.picture if pictures else lambda state: None)
    page = render_page(
        summary,
        rows,
        cells,
        data,
        leaks=shown,
        notes=_notes(rows, shown, pictures, note),
        specification=evidence.specification,
    )
    written = [table, statistics]
    for name, text in (("summary.md", summary_markdown(summary)), ("index.html", page)):
        written.append(directory / name)
        write_atomically(written[-1], text.encode())
    return written


def _leaks(rows: Sequence[FrontierRow], cells: Sequence[CellRecord], load: Load) -> Shown:
    found: Shown = {kind: leaks(rows, cells, load, kind) for kind in get_args(ReleaseKind)}
    return found


def _states(shown: Shown) -> Iterator[Any]:
    return (state for own in shown.values() for leak in own for state in leak.states())


def _notes(
    rows: Sequence[FrontierRow], shown: Shown, pictures: Pictures | None, note: str
) -> list[str]:
    """What is missing from the section that shows reconstructions, and how to get it."""
    attacked = {(row.defense, row.level, row.release) for row in rows if row.attack}
    held = {(leak.row.defense, leak.row.level, kind) for kind, own in shown.items() for leak in own}
    notes = []
    if not attacked:
        notes.append("Nothing to show yet: no release has been attacked.")
    elif missing := {(defense, level) for defense, level, _ in attacked - held}:
        levels = {(defense, level) for defense, level, _ in attacked}
        notes.append(
            f"The strongest attack's reconstructions were not kept for {len(missing)} of "
            f"{len(levels)} levels: these were recorded by an earlier version. Run "
            "`privguard attack DIR` on this directory to attack its kept releases again, "
            "without training."
        )
    if pictures is not None and any(
        # A state that the attack does not know has no picture, wherever the page is drawn.
        np.isfinite(state).all() and pictures.picture(state) is None
        for state in _states(shown)
    ):
        notes.append(f"Poses are missing: {note}.")
    return notes


def _drawings(
    cells: Sequence[CellRecord], rows: Sequence[FrontierRow]
) -> list[tuple[str, Callable[[], Figure]]]:
    """File stem, and what draws it."""
    drawings = [("frontier", lambda: frontier_figure(rows))]
    if any(row.release == "deployed" for row in rows):
        drawings.append(("frontier_deployed", lambda: frontier_figure(rows, release="deployed")))
    return [
        *drawings,
        ("leakage", lambda: frontier_figure(rows, measure="leakage")),
        ("levels", lambda: levels_figure(rows)),
        ("training", lambda: training_figure(cells)),
        ("profiles", lambda: profiles_figure(cells)),
    ]
