"""What can be named on the command line, read without importing torch.

Attacks and defences register with a decorator whose arguments are literals; this module reads them
from the source, so that ``privguard list`` and the checks of bad input answer at once.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One registered attack or defence: its name and the literal arguments of its decorator."""

    name: str
    properties: dict[str, Any] = field(default_factory=dict)


def registered(package: str, decorator: str) -> dict[str, Entry]:
    """All entries that the files of ``package`` register with ``decorator``, by name."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    entries = [
        entry
        for folder in spec.submodule_search_locations
        for path in sorted(Path(folder).glob("*.py"))
        for entry in _entries(path, decorator)
    ]
    return {entry.name: entry for entry in entries}


def attack_entries() -> dict[str, Entry]:
    """Every attack that ships, by name."""
    return registered("attacks", "register_attack")


def defense_entries() -> dict[str, Entry]:
    """Every defence that ships, by name."""
    return registered("defenses", "register_defense")


def nearest(name: str, names: list[str]) -> str:
    """A hint such as ``; did you mean 'ant'?``, or nothing if no name is near."""
    near = difflib.get_close_matches(name.lower(), names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _entries(path: Path, decorator: str) -> list[Entry]:
    source = path.read_text(encoding="utf-8")
    if f"@{decorator}(" not in source:
        return []
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == decorator:
                properties = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg}
                found.append(Entry(ast.literal_eval(call.args[0]), properties))
    return found
