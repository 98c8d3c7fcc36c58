"""``frontier.csv``: the frontier as a table that other programs read."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from privguard.reporting.files import write_atomically
from privguard.reporting.frontier_row import FrontierRow

COLUMNS: tuple[str, ...] = tuple(FrontierRow.model_fields)
"""Header of ``frontier.csv``."""
_REQUIRED = {name for name, field in FrontierRow.model_fields.items() if field.is_required()}
"""What every table has; those of earlier versions lack some of the others."""


def write_frontier_csv(path: Path, rows: Sequence[FrontierRow]) -> None:
    """Write rows atomically; an undefined value is an empty field."""
    write_csv(path, FrontierRow, rows)


def write_csv(path: Path, kind: type[BaseModel], rows: Sequence[BaseModel]) -> None:
    """Write models of one ``kind`` atomically, a column a field, in the order of its fields."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(kind.model_fields)
    for row in rows:
        writer.writerow([_field(name, getattr(row, name)) for name in kind.model_fields])
    write_atomically(path, buffer.getvalue().encode())


def read_frontier_csv(path: Path) -> list[FrontierRow]:
    """Rows of a ``frontier.csv``, to six digits.

    Raises:
        ValueError: the file is not a frontier table; the message names the file and the line.
        OSError: it cannot be read.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        names = set(reader.fieldnames or ())
        if not _REQUIRED <= names <= set(COLUMNS):
            raise ValueError(f"{path} is not a frontier table: its columns differ")
        rows = []
        for record in reader:
            # An empty field is an undefined value, except for the one column of free text.
            values = {k: (v or None) if k != "knowledge" else v for k, v in record.items()}
            try:
                rows.append(FrontierRow.model_validate(values))
            except ValidationError as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    return rows


def rounded(name: str, value: Any) -> Any:
    """A column's value with the digits that the table gives it, of the same type."""
    # Levels identify a row, so they keep every digit; statistics have at most six.
    return float(f"{value:.6g}") if isinstance(value, float) and name != "level" else value


def _field(name: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return repr(value) if name == "level" else f"{value:.6g}"
    return str(value)
