"""Which rows count: the strongest attack on each level, and the levels that no other beats."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from privguard.records import ReleaseKind
from privguard.reporting.frontier_row import FrontierRow


def worst_case(rows: Iterable[FrontierRow]) -> list[FrontierRow]:
    """Per (environment, defence, level, release, batch size, knowledge) the strongest row.

    That row's leakage is the headline: the largest mean over attacks. Equal leakages (all zero)
    are told apart by reconstruction accuracy. Rows without an attack are left out.
    """
    strongest: dict[tuple[object, ...], FrontierRow] = {}
    for row in rows:
        if row.leakage_mean is None:
            continue
        key = (row.env, row.defense, row.level, row.release, row.batch_size, row.knowledge)
        if key not in strongest or _strength(row) > _strength(strongest[key]):
            strongest[key] = row
    return list(strongest.values())


def headline(rows: Iterable[FrontierRow], release: ReleaseKind) -> list[FrontierRow]:
    """One row a (defence, level): the worst case over attacks, batch sizes and knowledges.

    Batch sizes differ within one picture where the defence sums clients before the server sees
    anything; where a level was probed at several, or attacked by adversaries of several
    knowledges, its worst case stands for it.
    """
    strongest: dict[tuple[object, ...], FrontierRow] = {}
    for row in worst_case(row for row in rows if row.release == release):
        key = (row.env, row.defense, row.level)
        if key not in strongest or _strength(row) > _strength(strongest[key]):
            strongest[key] = row
    return list(strongest.values())


def _strength(row: FrontierRow) -> tuple[float, float]:
    return row.leakage_mean or 0.0, row.ra_mean or 0.0


def pareto(rows: Iterable[FrontierRow]) -> list[FrontierRow]:
    """The rows that no other beats in both leakage and normalised return.

    Pass ``headline`` rows: a single attack's rows would flatter the defence. Levels with a
    collapsed, diverged or failed cell are neither on the front nor able to push others off it.
    Sorted from the most to the least rewarding.
    """
    eligible = [
        (row.normalized_return_mean, row.leakage_mean, row)
        for row in rows
        if row.usable and row.normalized_return_mean is not None and row.leakage_mean is not None
    ]
    front: list[FrontierRow] = []
    lowest = np.inf
    for _, leaked, row in sorted(eligible, key=lambda entry: (-entry[0], entry[1])):
        if leaked < lowest:
            front.append(row)
            lowest = leaked
    return front
