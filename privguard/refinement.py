"""After the coarse grid: levels and seeds around each defence's break points, step by step.

What to measure next depends only on what is recorded, and the levels added are kept in the run's
specification. So a refinement that was stopped goes on, and one that has ended computes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from defenses.registry import DefenseError
from privguard.bisection import LevelAxis, Measurement, more_seeds, next_measurement
from privguard.executors import Event, Executor
from privguard.grids import check_clients, swept_stage
from privguard.reporting.break_points import hopeless, level_points, locate, thresholds
from privguard.reporting.frontier import frontier_rows
from privguard.reporting.frontier_row import FrontierRow
from privguard.reporting.limits import Limits
from privguard.reporting.recommendation import recommend
from privguard.spec import DefenseGrid, SweepSpec, defense_text
from privguard.store import Store
from privguard.sweep import compute, report, selected_records

MAX_CELLS = 60
MAX_SEEDS = 10
CONTROL = "none"


@dataclass(frozen=True)
class Refinement:
    """What break points are looked for, and how much may be spent on them."""

    limits: Limits
    max_cells: int = MAX_CELLS
    """Cells beyond the coarse grid, those of earlier refinements of the run included."""
    max_seeds: int = MAX_SEEDS
    """Seeds of one level."""


@dataclass(frozen=True)
class Planned:
    """One level to measure, and why."""

    grid: DefenseGrid
    why: str
    hopeful: bool
    """Whether its defence may yet have a level that keeps the limits."""

    @property
    def text(self) -> str:
        """E.g. 'gaussian=0.032 with 3 seeds: leakage breaks between 0.01 and 0.1'."""
        levels = self.grid.levels or (None,)
        return (
            f"{defense_text(self.grid.template, levels[0])} with {self.grid.seeds} "
            f"seed{'s' if self.grid.seeds != 1 else ''}: {self.why}"
        )


def refine(
    spec: SweepSpec,
    store: Store,
    executor: Executor,
    command: str,
    refinement: Refinement,
    on_event: Callable[[Event], None],
    on_plan: Callable[[SweepSpec, Sequence[Planned]], None],
) -> SweepSpec:
    """Measures until every break point is settled or the cells are spent; the enlarged sweep.

    ``spec`` has been run. ``on_plan`` hears what is added before each batch of cells, and of an
    empty batch where more would be wanted than ``refinement.max_cells`` leaves.
    """
    before = spec
    while True:
        rows = frontier_rows(*selected_records(spec, store))
        wanted = planned(spec, rows, refinement)
        chosen, larger = affordable(spec, wanted, refinement.max_cells)
        if wanted:
            on_plan(larger, chosen)
        if not chosen:
            break
        spec = larger
        compute(spec, store, executor, command, on_event)
    if spec != before:
        report(spec, store, command)
    return spec


def planned(spec: SweepSpec, rows: Sequence[FrontierRow], refinement: Refinement) -> list[Planned]:
    """The next step towards every break point that is open, hopeful defences first.

    Once none is left, a tentative choice gets more seeds. Steps that the sweep already holds are
    left out: where their cells failed, asking again would not help.
    """
    steps = [
        step
        for template, levels in _coarse_levels(spec).items()
        for step in _steps(spec, template, levels, rows, refinement)
    ]
    steps = [step for step in steps if _added(spec, step)]
    if not steps:
        steps = [step for step in _choice(spec, rows, refinement) if _added(spec, step)]
    return sorted(steps, key=lambda step: not step.hopeful)


def affordable(
    spec: SweepSpec, wanted: Sequence[Planned], max_cells: int
) -> tuple[list[Planned], SweepSpec]:
    """The first of ``wanted`` that ``max_cells`` leaves room for, and the sweep with them."""
    chosen: list[Planned] = []
    allowed = len(coarse(spec).cells()) + max_cells
    larger = spec
    for step in wanted:
        candidate = extended(larger, [step.grid])
        if len(candidate.cells()) > allowed:
            break
        chosen.append(step)
        larger = candidate
    return chosen, larger


def coarse(spec: SweepSpec) -> SweepSpec:
    """The sweep without what refinements added."""
    return spec.model_copy(update={"defenses": tuple(g for g in spec.defenses if g.seeds is None)})


def extended(spec: SweepSpec, grids: Sequence[DefenseGrid]) -> SweepSpec:
    """The sweep with more levels or seeds, and with the undefended cells of the same seeds."""
    seeds = {
        (grid.template, level): grid.seeds or 0
        for grid in sorted((*spec.defenses, *grids), key=lambda grid: grid.seeds or 0)
        if grid.seeds is not None
        for level in grid.levels or (None,)
    }
    most = max(seeds.values(), default=0)
    if most > spec.seeds:
        seeds[CONTROL, None] = most
    added = [
        DefenseGrid(template=template, levels=() if level is None else (level,), seeds=count)
        for (template, level), count in seeds.items()
    ]
    return spec.model_copy(update={"defenses": (*coarse(spec).defenses, *added)})


def with_earlier_refinement(spec: SweepSpec, earlier: SweepSpec | None) -> SweepSpec:
    """``spec`` with the levels that refinements of the same cells added to the run before."""
    if earlier is None:
        return spec
    same = {"attacks", "seeds", "defenses", "knowledge"}
    if spec.model_dump(exclude=same) != earlier.model_dump(exclude=same):
        return spec
    templates = {grid.template for grid in spec.defenses}
    kept = [g for g in earlier.defenses if g.seeds is not None and g.template in templates]
    return extended(spec, kept)


def _coarse_levels(spec: SweepSpec) -> dict[str, tuple[float, ...]]:
    """The levels above 0 of each template of the coarse grid that has any."""
    levels: dict[str, tuple[float, ...]] = {}
    for grid in coarse(spec).defenses:
        positive = tuple(level for level in grid.levels if level > 0)
        if positive:
            levels[grid.template] = levels.get(grid.template, ()) + positive
    return levels


def _steps(
    spec: SweepSpec,
    template: str,
    levels: tuple[float, ...],
    rows: Sequence[FrontierRow],
    refinement: Refinement,
) -> list[Planned]:
    stage = swept_stage(template)
    if stage is None or stage.private_end is None:
        return []
    most = math.inf if stage.maximum is None else stage.maximum
    axis = LevelAxis(
        grid=levels,
        private_end=stage.private_end,
        minimum=stage.minimum or 0.0,
        maximum=min(most, spec.clients) if stage.level == "clients" else most,
        whole_numbers=stage.integer,
        accepts=lambda level: _buildable(defense_text(template, level), spec.clients),
    )
    defense = template.replace("={level}", "")
    points = {t: level_points(rows, defense, t.quantity) for t in thresholds(refinement.limits)}
    leakage, reward = (locate(points[t], t) for t in points)
    hopeful = not hopeless(leakage, reward, stage.private_end)
    steps = [
        next_measurement(points[t], t, axis, seeds=spec.seeds, max_seeds=refinement.max_seeds)
        for t in points
    ]
    return [_plan(template, step, hopeful=hopeful) for step in steps if step is not None]


@lru_cache
def _buildable(text: str, clients: int) -> bool:
    try:
        check_clients(text, clients)
    except DefenseError:
        return False
    return True


def _plan(template: str, step: Measurement, *, hopeful: bool) -> Planned:
    grid = DefenseGrid(template=template, levels=(step.level,), seeds=step.seeds)
    return Planned(grid, step.why, hopeful)


def _choice(spec: SweepSpec, rows: Sequence[FrontierRow], refinement: Refinement) -> list[Planned]:
    answer = recommend(rows, refinement.limits)
    choice = answer.choice
    if choice is None or answer.status != "tentative" or choice.seeds >= refinement.max_seeds:
        return []
    template = next(
        grid.template
        for grid in spec.defenses
        if grid.template.replace("={level}", "") == choice.defense
    )
    grid = DefenseGrid(
        template=template,
        levels=() if choice.level is None else (choice.level,),
        seeds=more_seeds(choice.seeds, refinement.max_seeds),
    )
    return [Planned(grid, f"the best level so far has only {choice.seeds} seeds", True)]


def _added(spec: SweepSpec, step: Planned) -> bool:
    known = {cell.key for cell in spec.cells()}
    return any(cell.key not in known for cell in extended(spec, [step.grid]).cells())
