"""``privguard list``: everything that can be named, without importing torch."""

from __future__ import annotations

from typing import Any

from privguard.budgets import BUDGETS, budget
from privguard.catalogue import attack_entries, defense_entries
from privguard.environments import ENVIRONMENTS

Catalogue = dict[str, list[dict[str, Any]]]

_DEFAULTS: dict[str, Any] = {"level": None, "grid": [], "in_default_sweep": True}
"""What a defence's decorator may leave out."""


def catalogue() -> Catalogue:
    """Environments, defences, attacks and budgets as plain data."""
    return {
        "environments": [
            {
                "name": spec.name,
                "id": spec.gym_id,
                "agent": spec.agent,
                "observations": ["default", *spec.observations],
                "summary": spec.summary,
            }
            for spec in ENVIRONMENTS.values()
        ],
        "defenses": [
            {"name": entry.name, **_DEFAULTS, **entry.properties}
            for entry in defense_entries().values()
        ],
        "attacks": [
            {"name": entry.name, **entry.properties} for entry in attack_entries().values()
        ],
        "budgets": [
            {
                "name": name,
                "rounds": {env: budget(name, env).rounds for env in ENVIRONMENTS},
                "summary": summary,
            }
            for name, summary in BUDGETS.items()
        ],
    }


def render(entries: Catalogue) -> str:
    """The catalogue as text for a terminal."""
    lines = ["Environments"]
    for env in entries["environments"]:
        lines.append(f"  {env['name']:<12} {env['id']:<16} {env['agent']:<4} {env['summary']}")
    lines += ["", "Defences (level: default grid; * part of a sweep that names none)"]
    width = max(len(defense["name"]) for defense in entries["defenses"])
    for defense in entries["defenses"]:
        grid = ", ".join(f"{level:g}" for level in defense["grid"])
        level = f" [{defense['level']}: {grid}]" if defense["level"] else ""
        mark = "*" if defense["in_default_sweep"] else " "
        lines.append(f"{mark} {defense['name']:<{width}} {defense['summary']}{level}")
    lines += ["", "Attacks"]
    lines += [f"  {attack['name']:<12} {attack['summary']}" for attack in entries["attacks"]]
    lines += ["", "Budgets"]
    lines += [f"  {budget['name']:<12} {budget['summary']}" for budget in entries["budgets"]]
    return "\n".join(lines)
