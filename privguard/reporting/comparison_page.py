"""The directory of a comparison: page, figure and table."""

from __future__ import annotations

import base64
from pathlib import Path

import jinja2

from privguard.reporting.comparison import ALL_RUNS, Comparison, ComparisonRow
from privguard.reporting.comparison_figure import comparison_figure, level_name
from privguard.reporting.files import write_atomically
from privguard.reporting.page import page_part
from privguard.reporting.style import figure_style, render
from privguard.reporting.tables import write_csv
from privguard.reporting.wording import interval_text


def write_comparison(directory: Path, comparison: Comparison) -> list[Path]:
    """Writes ``index.html``, ``comparison.png`` and ``comparison.csv``; returns their paths.

    Raises:
        OSError: the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with figure_style():
        picture = render(comparison_figure(comparison), "png")
        narrow = render(comparison_figure(comparison, across=1), "png")
    page, figure, table = (
        directory / name for name in ("index.html", "comparison.png", "comparison.csv")
    )
    write_atomically(page, comparison_page(comparison, picture, narrow).encode())
    write_atomically(figure, picture)
    write_csv(table, ComparisonRow, comparison.rows)
    return [page, figure, table]


def comparison_page(comparison: Comparison, picture: bytes, narrow: bytes) -> str:
    """HTML with the figures inside, so that it can be mailed; ``narrow`` is for small screens."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("privguard.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("comparison.html.j2").render(
        comparison=comparison,
        picture=base64.b64encode(picture).decode(),
        narrow=base64.b64encode(narrow).decode(),
        style=page_part("page.css"),
        table=[_cells(row) for row in comparison.rows],
        all_runs=ALL_RUNS,
    )


def _cells(row: ComparisonRow) -> tuple[str, ...]:
    return (
        level_name(row.defense, row.level),
        row.run,
        interval_text(row.return_iqm, row.return_iqm_low, row.return_iqm_high),
        interval_text(row.leakage_iqm, row.leakage_iqm_low, row.leakage_iqm_high),
        str(row.seeds),
        str(row.cells_not_ok),
    )
