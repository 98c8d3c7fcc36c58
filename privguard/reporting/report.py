"""A directory of results from the records of a sweep, finished or still running."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from privguard.records import AttackRecord, CellRecord
from privguard.reporting.files import write_atomically
from privguard.reporting.frontier import FrontierRow, frontier_rows
from privguard.reporting.frontier_figure import frontier_figure
from privguard.reporting.levels_figure import levels_figure
from privguard.reporting.page import render_page
from privguard.reporting.profiles_figure import profiles_figure
from privguard.reporting.recommendation import recommend
from privguard.reporting.run_scores import LevelStatistics, level_statistics
from privguard.reporting.style import figure_style, render
from privguard.reporting.summary import summarize, summary_markdown
from privguard.reporting.tables import write_csv, write_frontier_csv
from privguard.reporting.training_figure import training_figure

Drawing = tuple[str, str, tuple[str, ...], Callable[[], Figure]]
"""File stem, caption, file types, and what draws it."""


def write_report(
    directory: Path,
    cells: Sequence[CellRecord],
    attacks: Sequence[AttackRecord],
    *,
    command: str,
    planned_cells: int | None = None,
) -> list[Path]:
    """Write table, figures, summary and page; returns their paths.

    Any subset of a sweep will do: what is missing is said in its place. Every file is replaced
    atomically, so a reader of a running sweep never meets half a file. ``command`` is what
    reproduces the records, ``planned_cells`` how many the sweep will have in the end.

    Raises:
        ValueError: the cells belong to several environments; a frontier is of one.
        OSError: the directory cannot be written.
    """
    environments = sorted({cell.env for cell in cells})
    if len(environments) > 1:
        raise ValueError(f"one report is for one environment, not {environments}")
    directory.mkdir(parents=True, exist_ok=True)
    rows = frontier_rows(cells, attacks)
    written = [directory / "frontier.csv", directory / "statistics.csv"]
    write_frontier_csv(written[0], rows)
    write_csv(written[1], LevelStatistics, level_statistics(cells, attacks))

    pictures: dict[str, bytes] = {}
    with figure_style():
        for stem, caption, extensions, draw in _drawings(cells, rows):
            figure = draw()
            for extension in extensions:
                content = render(figure, extension)
                written.append(directory / f"{stem}.{extension}")
                write_atomically(written[-1], content)
                if extension == "png":
                    pictures[caption] = content

    summary = summarize(
        cells,
        attacks,
        rows,
        recommend(rows),
        command=command,
        planned_cells=planned_cells,
    )
    for name, text in (
        ("summary.md", summary_markdown(summary)),
        ("index.html", render_page(summary, pictures)),
    ):
        written.append(directory / name)
        write_atomically(written[-1], text.encode())
    return written


def _drawings(cells: Sequence[CellRecord], rows: Sequence[FrontierRow]) -> list[Drawing]:
    drawings: list[Drawing] = [
        (
            "frontier",
            "Frontier on probe releases, the worst case: reconstruction accuracy against reward. "
            "Lower right is good.",
            ("png", "pdf", "svg"),
            lambda: frontier_figure(rows),
        )
    ]
    if any(row.release == "deployed" for row in rows):
        drawings.append(
            (
                "frontier_deployed",
                "Frontier on deployed releases, the minibatches that trained the policy.",
                ("png",),
                lambda: frontier_figure(rows, release="deployed"),
            )
        )
    drawings += [
        (
            "leakage",
            "Leakage, which is 0 for an attacker who learns nothing, against reward.",
            ("png",),
            lambda: frontier_figure(rows, measure="leakage"),
        ),
        (
            "levels",
            "Reconstruction accuracy and return against each defence's level.",
            ("png",),
            lambda: levels_figure(rows),
        ),
        ("training", "Training curves.", ("png",), lambda: training_figure(cells)),
        (
            "profiles",
            "Performance profiles: share of runs whose normalised return lies above a threshold.",
            ("png",),
            lambda: profiles_figure(cells),
        ),
    ]
    return drawings
