"""``index.html``: the report as one file that can be mailed and read without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files

import jinja2
from markupsafe import Markup, escape

from privguard.records import CellRecord, ReleaseKind
from privguard.reporting.answer import answer
from privguard.reporting.frames import is_stack
from privguard.reporting.frontier_row import FrontierRow
from privguard.reporting.leaks import Leak
from privguard.reporting.leaks_data import Json
from privguard.reporting.page_tables import defense_tables, training_table
from privguard.reporting.summary import Summary

_SCRIPTS = ("charts.js", "frontier.js", "panels.js", "leaks.js", "page.js")

_ASSUMPTIONS = (
    "Reconstruction accuracy (RA): the share of state and action coordinates found to within a "
    "tenth of their standard deviation; of pixels, to within 8 of 255 grey levels. Identified: the "
    "share of records whose reconstruction is nearer to the true one than to 999 others. NMSE: "
    "squared error in units of each coordinate's variance, so guessing the mean scores about 1.",
    "The floor is the local Bayesian Cramér-Rao bound under the best Gaussian prior: it limits "
    "every attack that knows no more than that. It is given where the defence's noise has a "
    "likelihood.",
    "ε, where there is one, is an upper bound on what any observer of all rounds learns of one "
    "unit; the attacks are lower bounds on what this server learns of single releases. They need "
    "not meet.",
)


def render_page(
    summary: Summary,
    rows: Sequence[FrontierRow],
    cells: Sequence[CellRecord],
    data: Json,
    *,
    leaks: Mapping[ReleaseKind, Sequence[Leak]],
    notes: Sequence[str],
    specification: str,
) -> str:
    """The page's HTML, with its data, styles and scripts inside.

    Args:
        summary: the words.
        rows: the numbers of its tables.
        cells: the training curves and the machines.
        data: the charts' data, from ``page_data``.
        leaks: the examples that ``data`` holds.
        notes: what to say where examples or pictures are missing.
        specification: of the sweep, as JSON; empty if unknown.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("privguard.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _code
    every = [leak for own in leaks.values() for leak in own]
    return environment.get_template("page.html.j2").render(
        summary=summary,
        answer=answer(summary.recommendation, rows),
        tables=defense_tables(rows),
        training=training_table(cells),
        leaks=every,
        pictured=bool(data["pictures"]),
        images=any(row.psnr_mean is not None for row in rows),
        stacks=any(is_stack(state) for leak in every for state in leak.states()),
        notes=notes,
        assumptions=_ASSUMPTIONS,
        machines=sorted({cell.machine for cell in cells if cell.machine}),
        specification=specification,
        style=page_part("page.css"),
        script=Markup("\n").join(page_part(name) for name in _SCRIPTS),
        data=_embedded(data),
    )


def _code(text: str) -> Markup:
    """Text whose commands stand between backticks, as in Markdown."""
    parts = str(escape(text)).split("`")
    marked = [f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts)]
    return Markup("".join(marked))


def page_part(name: str) -> Markup:
    """A file of ours, as it is."""
    text = files("privguard.reporting").joinpath("templates", name).read_text(encoding="utf-8")
    return Markup(text)


def _embedded(data: Json) -> Markup:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
