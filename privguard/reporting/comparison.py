"""Several runs side by side: environments, agents or settings that share defences and levels.

Every run is normalised by its own idle and undefended returns. A level that all runs have measured
is aggregated over them: the interquartile mean over all seeds of all runs, each run a task of the
stratified bootstrap (``aggregates``). Levels that only some runs have are shown, never aggregated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from privguard.records import AttackRecord, CellRecord
from privguard.reporting.aggregates import interquartile_mean
from privguard.reporting.break_points import privacy_order
from privguard.reporting.candidates import candidates
from privguard.reporting.frontier import frontier_rows
from privguard.reporting.limits import Limits
from privguard.reporting.recommendation import Recommendation, recommend
from privguard.reporting.returns import UNDEFENDED, return_scale
from privguard.reporting.run_scores import Level, RunScores, normalized_returns, worst_leakages
from privguard.reporting.statistics import UNDEFINED, Estimate

ALL_RUNS = "all runs"


@dataclass(frozen=True)
class Run:
    """The records of one environment's sweep, under a name that no other run has."""

    name: str
    cells: Sequence[CellRecord]
    attacks: Sequence[AttackRecord]


class ComparisonRow(BaseModel):
    """One row of ``comparison.csv``: one level in one run, or over all runs. None: undefined."""

    model_config = ConfigDict(frozen=True)

    run: str
    env: str
    """Empty over all runs."""
    defense: str
    level: float | None
    level_name: str | None
    seeds: int
    """Runs' seeds behind the returns, added up over all runs."""
    cells_not_ok: int
    return_iqm: float | None
    return_iqm_low: float | None
    return_iqm_high: float | None
    leakage_iqm: float | None
    leakage_iqm_low: float | None
    leakage_iqm_high: float | None


@dataclass(frozen=True)
class Comparison:
    """What the table, the figure and the page show."""

    runs: Sequence[str]
    rows: Sequence[ComparisonRow]
    answers: dict[str, Recommendation]
    """Of each run on its own."""
    shared: list[str]
    """Levels whose means keep the limits in every run."""
    common: int
    """Defended levels that all runs measured."""
    notes: list[str]
    limits: Limits


def compare(runs: Sequence[Run], limits: Limits) -> Comparison:
    """Compare two runs or more.

    Raises:
        ValueError: fewer than two runs, two of one name, or a run of several environments.
    """
    if len(runs) < 2 or len({run.name for run in runs}) < len(runs):
        raise ValueError("a comparison needs two runs or more, each with a name of its own")
    returns = {run.name: normalized_returns(run.cells) for run in runs}
    leakages = {run.name: worst_leakages(run.cells, run.attacks) for run in runs}
    rows = []
    for level in _levels(runs):
        rows += [
            _row(run, level, returns[run.name], leakages[run.name])
            for run in runs
            if any((cell.defense, cell.level) == level for cell in run.cells)
        ]
        if len([row for row in rows if (row.defense, row.level) == level]) == len(runs):
            rows.append(_aggregate(rows[-len(runs) :], level, returns, leakages))
    tables = {run.name: frontier_rows(run.cells, run.attacks) for run in runs}
    keeping = [
        {c.text for c in candidates(table, "probe") if c.means_qualify(limits)}
        for table in tables.values()
    ]
    return Comparison(
        runs=[run.name for run in runs],
        rows=rows,
        answers={name: recommend(table, limits) for name, table in tables.items()},
        shared=sorted(set.intersection(*keeping)),
        common=sum(row.run == ALL_RUNS and row.defense != UNDEFENDED for row in rows),
        notes=_notes(runs),
        limits=limits,
    )


def _levels(runs: Sequence[Run]) -> list[Level]:
    """All levels, the control first, each defence from its least to its most private level."""
    cells = [cell for run in runs for cell in run.cells]
    end = {cell.defense: cell.private_end for cell in cells}
    return sorted(
        {(cell.defense, cell.level) for cell in cells},
        key=lambda level: (
            level[0] != UNDEFENDED,
            level[0],
            privacy_order(level[1], end[level[0]]),
        ),
    )


def _row(run: Run, level: Level, returns: RunScores, leakages: RunScores) -> ComparisonRow:
    own = [cell for cell in run.cells if (cell.defense, cell.level) == level]
    return ComparisonRow(
        run=run.name,
        env=own[0].env,
        defense=level[0],
        level=level[1],
        level_name=own[0].level_name,
        seeds=len({cell.seed for cell in own if cell.final_returns}),
        cells_not_ok=sum(cell.state != "ok" for cell in own),
        **_columns("return", interquartile_mean([list(returns.get(level, {}).values())])),
        **_columns("leakage", interquartile_mean([list(leakages.get(level, {}).values())])),
    )


def _aggregate(
    rows: Sequence[ComparisonRow],
    level: Level,
    returns: dict[str, RunScores],
    leakages: dict[str, RunScores],
) -> ComparisonRow:
    return ComparisonRow(
        run=ALL_RUNS,
        env="",
        defense=level[0],
        level=level[1],
        level_name=rows[0].level_name,
        seeds=sum(row.seeds for row in rows),
        cells_not_ok=sum(row.cells_not_ok for row in rows),
        **_columns("return", _over_runs(level, returns)),
        **_columns("leakage", _over_runs(level, leakages)),
    )


def _over_runs(level: Level, scores: dict[str, RunScores]) -> Estimate:
    """Undefined where a run lacks the score: an aggregate over fewer runs is another quantity."""
    tasks = [list(run.get(level, {}).values()) for run in scores.values()]
    return interquartile_mean(tasks) if all(tasks) else UNDEFINED


def _columns(name: str, estimate: Estimate) -> dict[str, float | None]:
    return {
        f"{name}_iqm": estimate.mean,
        f"{name}_iqm_low": estimate.low,
        f"{name}_iqm_high": estimate.high,
    }


def _notes(runs: Sequence[Run]) -> list[str]:
    notes = []
    for run in runs:
        reason = return_scale(run.cells).reason
        if reason:
            notes.append(
                f"{run.name} has no normalised return, so no level of it can be recommended: "
                f"{reason}."
            )
    fewest = min(len({cell.seed for cell in run.cells}) for run in runs)
    if fewest < 2:
        notes.append(
            "A run with one seed is resampled by its episodes and targets: its interval does not "
            "cover how another seed would have ended."
        )
    if len({cell.env for run in runs for cell in run.cells}) > 1:
        notes.append(
            "The level of gaussian and of clip is absolute, while gradients differ in size between "
            "environments: the same number is not the same signal-to-noise ratio."
        )
    return notes
