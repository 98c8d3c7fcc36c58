"""Scores of single runs on a common scale, level by level: the input of every aggregate.

Normalised return of an episode: (R - R_idle) / (R_undefended - R_idle), where R_undefended is the
mean over all undefended seeds of the environment. One scale for all seeds, so that a seed whose
undefended policy failed does not blow up its own scores.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from privguard.records import AttackRecord, CellRecord, ReleaseKind
from privguard.reporting.aggregates import interquartile_mean, paired_difference
from privguard.reporting.frontier import frontier_rows, leakage
from privguard.reporting.returns import UNDEFENDED, return_scale, returns_by_seed
from privguard.reporting.statistics import UNDEFINED, Array, finite, seed_mean
from privguard.reporting.worst_case import headline

Level = tuple[str, float | None]
"""Defence and level."""
RunScores = dict[Level, dict[int, Array]]
"""Items (episodes or targets) of each seed of each level; no array is empty."""


def normalized_returns(cells: Sequence[CellRecord]) -> RunScores:
    """Normalised returns of one environment's runs; empty where there is no scale.

    A diverged or failed cell without a return is no run here; tables count it apart.
    """
    scale = return_scale(cells)
    reached = seed_mean(list(scale.undefended.values()))
    if scale.reason or scale.idle is None or reached is None:
        return {}
    groups: dict[Level, list[CellRecord]] = defaultdict(list)
    for cell in cells:
        groups[cell.defense, cell.level].append(cell)
    height = reached - scale.idle
    scores = {
        level: {
            seed: (values - scale.idle) / height for seed, values in returns_by_seed(own).items()
        }
        for level, own in groups.items()
    }
    return {level: runs for level, runs in scores.items() if runs}


def worst_leakages(
    cells: Sequence[CellRecord], attacks: Sequence[AttackRecord], release: ReleaseKind = "probe"
) -> RunScores:
    """Leakage of each target under the attack that is strongest on its level."""
    level_of = {cell.key: (cell.defense, cell.level) for cell in cells}
    seed_of = {cell.key: cell.seed for cell in cells}
    strongest = {
        (row.defense, row.level): (row.attack, row.batch_size, row.knowledge)
        for row in headline(frontier_rows(cells, attacks), release)
    }
    scores: RunScores = defaultdict(dict)
    for record in attacks:
        level = level_of.get(record.cell_key)
        chosen = (record.attack, record.batch_size, record.knowledge)
        if level is None or record.release != release or strongest.get(level) != chosen:
            continue
        values = finite(leakage(target) for target in record.targets)
        if values.size:
            scores[level][seed_of[record.cell_key]] = values
    return dict(scores)


class LevelStatistics(BaseModel):
    """One row of ``statistics.csv``: one level over its seeds. None is not defined."""

    model_config = ConfigDict(frozen=True)

    env: str
    defense: str
    level: float | None
    seeds: int
    """Seeds with a return; an interval over one seed covers its episodes alone."""
    cells_not_ok: int
    return_iqm: float | None
    """Interquartile mean of the normalised return, over seeds."""
    return_iqm_low: float | None
    return_iqm_high: float | None
    return_difference: float | None
    """Mean difference of the normalised return to the undefended cell of the same seed; None for
    that cell itself."""
    return_difference_low: float | None
    return_difference_high: float | None
    leakage_iqm: float | None
    """Of the strongest attack on probe releases."""
    leakage_iqm_low: float | None
    leakage_iqm_high: float | None


def level_statistics(
    cells: Sequence[CellRecord], attacks: Sequence[AttackRecord]
) -> list[LevelStatistics]:
    """One row a level of one environment, in the order in which the levels were first finished."""
    returns = normalized_returns(cells)
    leakages = worst_leakages(cells, attacks)
    controls = returns.get((UNDEFENDED, None), {})
    rows = []
    for level in dict.fromkeys((cell.defense, cell.level) for cell in cells):
        own = [cell for cell in cells if (cell.defense, cell.level) == level]
        earned = returns.get(level, {})
        iqm = interquartile_mean([list(earned.values())])
        control = level == (UNDEFENDED, None)
        difference = UNDEFINED if control else paired_difference(earned, controls)
        leaked = interquartile_mean([list(leakages.get(level, {}).values())])
        rows.append(
            LevelStatistics(
                env=own[0].env,
                defense=level[0],
                level=level[1],
                seeds=len(returns_by_seed(own)),
                cells_not_ok=sum(cell.state != "ok" for cell in own),
                return_iqm=iqm.mean,
                return_iqm_low=iqm.low,
                return_iqm_high=iqm.high,
                return_difference=difference.mean,
                return_difference_low=difference.low,
                return_difference_high=difference.high,
                leakage_iqm=leaked.mean,
                leakage_iqm_low=leaked.low,
                leakage_iqm_high=leaked.high,
            )
        )
    return rows
