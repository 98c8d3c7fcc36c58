"""``index.html``: the report as one file that can be mailed, pictures included."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import jinja2

from privguard.reporting.summary import HEADLINE_COLUMNS, Summary


def render_page(summary: Summary, pictures: Mapping[str, bytes]) -> str:
    """HTML with the PNG ``pictures`` embedded, under their captions and in their order."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("privguard.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    embedded = [
        (caption, base64.b64encode(content).decode()) for caption, content in pictures.items()
    ]
    template = environment.get_template("page.html.j2")
    return template.render(summary=summary, columns=HEADLINE_COLUMNS, pictures=embedded)
