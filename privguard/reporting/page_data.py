"""The data block of the page: everything that its charts draw, as plain JSON values.

The page does no statistics of its own: which row is the worst case, and what lies on the Pareto
front, is decided here, and every number is rounded as in ``frontier.csv``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from matplotlib.colors import to_hex

from privguard.records import CellRecord, ReleaseKind
from privguard.reporting.flags import by_privacy
from privguard.reporting.frontier_axes import CLIP_BELOW
from privguard.reporting.frontier_row import FrontierRow
from privguard.reporting.leaks import Leak
from privguard.reporting.leaks_data import Json, Picture, leaks_data
from privguard.reporting.levels_figure import LOGARITHMIC_SPAN
from privguard.reporting.limits import MAX_LEAKAGE, MAX_REWARD_LOSS
from privguard.reporting.returns import UNDEFENDED, return_scale
from privguard.reporting.statistics import mean_or_none
from privguard.reporting.style import defense_styles, series_styles
from privguard.reporting.tables import COLUMNS, rounded
from privguard.reporting.training_figure import mean_curve
from privguard.reporting.wording import level_text
from privguard.reporting.worst_case import headline, pareto

RELEASES = ("probe", "deployed")


def page_data(
    cells: Sequence[CellRecord],
    rows: Sequence[FrontierRow],
    shown: Mapping[ReleaseKind, Sequence[Leak]],
    picture: Picture,
) -> Json:
    """All charts' data; rows are named by their place in ``rows``."""
    places = {id(row): place for place, row in enumerate(rows)}
    return {
        "columns": list(COLUMNS),
        "rows": [
            {name: rounded(name, getattr(row, name)) for name in COLUMNS}
            | {"label": level_text(row), "usable": row.usable}
            for row in rows
        ],
        "defenses": _defenses(rows),
        "attacks": _attacks(rows),
        "views": {
            release: views
            for release in RELEASES
            if (views := _views([row for row in rows if row.release == release], places))
        },
        "trained": [places[id(row)] for row in _one_each(rows)],
        "normalized": any(row.normalized_return_mean is not None for row in rows),
        "limits": {"leakage": MAX_LEAKAGE, "loss": MAX_REWARD_LOSS, "clip": CLIP_BELOW},
        "training": _training(cells),
        **leaks_data(shown, places, picture),
    }


def _defenses(rows: Sequence[FrontierRow]) -> list[Json]:
    styles = defense_styles(row.defense for row in rows)
    present = {row.defense: row for row in rows}
    return [
        {
            "name": name,
            "color": None if name == UNDEFENDED else to_hex(style.color),
            "marker": style.marker,
            "dash": style.dash,
            "level_name": present[name].level_name,
            "private_end": present[name].private_end,
            "log": _logarithmic([r.level for r in rows if r.defense == name and r.level]),
        }
        for name, style in styles.items()
        if name in present
    ]


def _logarithmic(levels: Sequence[float]) -> bool:
    return bool(levels) and max(levels) > LOGARITHMIC_SPAN * min(levels)


def _attacks(rows: Sequence[FrontierRow]) -> list[Json]:
    names = sorted({row.attack for row in rows if row.attack is not None})
    return [
        {"name": name, "color": to_hex(style.color), "marker": style.marker, "dash": style.dash}
        for name, style in series_styles(names).items()
    ]


def _views(rows: Sequence[FrontierRow], places: dict[int, int]) -> Json:
    """By measure, which row stands for each level under all attacks and under each alone."""
    if not rows:
        return {}
    release = rows[0].release
    assert release is not None
    attacks = sorted({row.attack for row in rows if row.attack is not None})

    def ordered(chosen: Sequence[FrontierRow]) -> list[int]:
        names = dict.fromkeys(row.defense for row in chosen)
        own = [[row for row in chosen if row.defense == name] for name in names]
        return [places[id(row)] for group in own for row in by_privacy(group) or group]

    strongest = headline(rows, release)
    alone = {
        name: ordered(headline([row for row in rows if row.attack == name], release))
        for name in attacks
    }
    identified = _largest(rows, lambda row: row.identified_mean)
    nearest = _largest(rows, lambda row: None if row.nmse_mean is None else -row.nmse_mean)
    clearest = _largest(rows, lambda row: row.psnr_mean)
    worst = {"ra": strongest, "leakage": strongest, "identified": identified, "nmse": nearest}
    worst |= {"psnr": clearest} if clearest else {}
    return {
        "attacks": attacks,
        "worst": {measure: ordered(chosen) for measure, chosen in worst.items()},
        "alone": alone,
        "front": [places[id(row)] for row in pareto(strongest)],
    }


def _largest(
    rows: Sequence[FrontierRow], value: Callable[[FrontierRow], float | None]
) -> list[FrontierRow]:
    """For each (defence, level) the row with the largest value."""
    best: dict[tuple[object, ...], tuple[float, FrontierRow]] = {}
    for row in rows:
        found = value(row)
        key = (row.defense, row.level)
        if found is not None and (key not in best or found > best[key][0]):
            best[key] = (found, row)
    return [row for _, row in best.values()]


def _one_each(rows: Sequence[FrontierRow]) -> list[FrontierRow]:
    """One row of each (defence, level): enough for what does not depend on an attack."""
    return list({(row.defense, row.level): row for row in reversed(rows)}.values())[::-1]


def _training(cells: Sequence[CellRecord]) -> Json:
    """Mean return over seeds and episodes at each evaluation."""
    levels: dict[tuple[str, float | None], list[CellRecord]] = {}
    for cell in cells:
        if cell.evaluations:
            levels.setdefault((cell.defense, cell.level), []).append(cell)
    curves = []
    for (defense, level), own in levels.items():
        x, y = mean_curve(own)
        curves.append(
            {
                "defense": defense,
                "level": level,
                "broken": any(cell.state != "ok" for cell in own),
                "steps": x,
                "returns": [round(value, 1) for value in y],
            }
        )
    return {
        "curves": curves,
        "random": rounded("", mean_or_none(cell.random_return for cell in cells)),
        "zero": rounded("", mean_or_none(cell.zero_return for cell in cells)),
        "idle": rounded("", return_scale(cells).idle),
    }
