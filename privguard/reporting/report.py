"""A directory of results from the records of a sweep, finished or still running."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from matplotlib.figure import Figure

from privguard.records import AttackRecord, CellRecord
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
    shown = leaks(rows, cells, evidence.load, "probe")
    note = ""
    if evidence.pictures is not None and evidence.pictures.drawable:
        states = (state for leak in shown for pair in leak.states() for state in pair)
        note = evidence.pictures.draw(states)
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
    shown = leaks(rows, cells, evidence.load, "probe")
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
    shown: Sequence[Leak],
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


def _notes(
    rows: Sequence[FrontierRow], shown: Sequence[Leak], pictures: Pictures | None, note: str
) -> list[str]:
    """What is missing from the section that shows reconstructions, and how to get it."""
    attacked = {(row.defense, row.level) for row in rows if row.release == "probe" and row.attack}
    missing = len(attacked) - len(shown)
    notes = []
    if not attacked:
        notes.append("Nothing to show yet: no probe release has been attacked.")
    elif missing:
        notes.append(
            f"The strongest attack's reconstructions were not kept for {missing} of "
            f"{len(attacked)} levels: these were recorded by an earlier version. Run "
            "`privguard attack DIR` on this directory to attack its kept releases again, "
            "without training."
        )
    undrawn = pictures is not None and any(
        pictures.picture(pair[0]) is None for leak in shown for pair in leak.states()
    )
    if undrawn:
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
