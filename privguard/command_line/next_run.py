"""What to run next, as an exact command, where no level qualifies or the evidence is thin."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from pydantic import BaseModel, ConfigDict

from privguard.budgets import BudgetName, budget
from privguard.command_line.options import default_attacks
from privguard.knowledge import DEFAULT_FRACTION
from privguard.recipes import agent_settings
from privguard.refinement import MAX_CELLS, Planned, Refinement, affordable, coarse, planned
from privguard.reporting.frontier_row import FrontierRow
from privguard.reporting.limits import Limits
from privguard.reporting.recommendation import Recommendation
from privguard.reporting.returns import UNDEFENDED
from privguard.reporting.statistics import SEEDS_TO_TRUST
from privguard.spec import DefenseGrid, SweepSpec, format_level


class NextRun(BaseModel):
    """One run that would settle something; what comes after it depends on what it shows."""

    model_config = ConfigDict(frozen=True)

    reason: str
    command: str


def next_run(
    spec: SweepSpec,
    rows: Sequence[FrontierRow],
    answer: Recommendation,
    directory: Path,
) -> NextRun | None:
    """The next run of the sweep in ``directory``; None where the answer stands on enough seeds."""
    control = next((row for row in rows if row.defense == UNDEFENDED), None)
    attacked = any(row.attack is not None and row.defense != UNDEFENDED for row in rows)
    only_control = all(grid.template == UNDEFENDED for grid in spec.defenses)
    if control is None or control.return_mean is None or not (attacked or only_control):
        reason = "the sweep has not yet trained and attacked an undefended and a defended level"
        return NextRun(reason=reason, command=sweep_command_line(spec, directory))
    if spec.budget == "smoke":
        reason = "the smoke budget only shows that everything works: its policies learn nothing"
        return _longer_budget(spec, directory, reason)
    if control.normalized_return_mean is None:
        reason = "the undefended policy has not learnt, so no reward can be kept or lost"
        return _longer_budget(spec, directory, reason)
    choice = answer.choice
    if choice is not None:
        return _confirmation(spec, rows, answer, directory)
    refinement = Refinement(answer.limits)
    steps = planned(spec, rows, refinement)
    if any(step.hopeful for step in steps):
        reason = "between the measured levels, or with more seeds, one may keep the limits"
        return NextRun(reason=reason, command=_refine(spec, steps, directory, answer.limits))
    reason = (
        "refining cannot help: every defence leaks or costs too much on its whole axis; a larger "
        "minibatch averages more of a defence's noise out"
    )
    return NextRun(reason=reason, command=_larger_batch(spec, directory))


def _confirmation(
    spec: SweepSpec, rows: Sequence[FrontierRow], answer: Recommendation, directory: Path
) -> NextRun | None:
    choice = answer.choice
    assert choice is not None
    settled = answer.status == "recommended"
    if settled and choice.seeds >= SEEDS_TO_TRUST:
        return None
    refines = not settled and choice.identified_qualifies(answer.limits)
    steps = planned(spec, rows, Refinement(answer.limits)) if refines else []
    if steps:
        reason = f"intervals around {choice.text} are too wide: adds seeds until they decide"
        return NextRun(reason=reason, command=_refine(spec, steps, directory, answer.limits))
    wanted = max(SEEDS_TO_TRUST, choice.seeds + 1 if settled else 2 * choice.seeds)
    reason = f"{choice.seeds} seeds are too few to rely on {choice.text}"
    more = coarse(spec).model_copy(update={"seeds": wanted})
    return NextRun(reason=reason, command=sweep_command_line(more, directory))


def _refine(spec: SweepSpec, steps: Sequence[Planned], directory: Path, limits: Limits) -> str:
    """A refinement that takes the first of ``steps``, with more cells where all are spent."""
    options = ["--refine"]
    if not affordable(spec, steps, MAX_CELLS)[0]:
        spent = len(spec.cells()) - len(coarse(spec).cells())
        options += ["--max-cells", str(spent + MAX_CELLS)]
    default = Limits()
    if limits.max_leakage != default.max_leakage:
        options += ["--max-leakage", f"{limits.max_leakage:g}"]
    if limits.max_reward_loss != default.max_reward_loss:
        options += ["--max-reward-loss", f"{limits.max_reward_loss:g}"]
    return sweep_command_line(spec, directory, *options)


def _longer_budget(spec: SweepSpec, directory: Path, reason: str) -> NextRun:
    names = get_args(BudgetName)
    longer = names[min(names.index(spec.budget) + 1, len(names) - 1)]
    seeds = (
        budget(longer, spec.env, spec.observation).seeds if spec.budget == "smoke" else spec.seeds
    )
    # Attacks that the smoke budget left out by default come back with a longer one.
    defaults = spec.attacks == default_attacks(spec.knowledge, spec.budget)
    attacks = default_attacks(spec.knowledge, longer) if defaults else spec.attacks
    changed = {"budget": longer, "seeds": seeds, "attacks": attacks}
    command = sweep_command_line(coarse(spec).model_copy(update=changed), directory)
    return NextRun(reason=reason, command=command)


def _larger_batch(spec: SweepSpec, directory: Path) -> str:
    from privguard.environments import environment_spec

    settings = agent_settings(
        environment_spec(spec.env), spec.batch_size, spec.local_steps, spec.observation
    )
    larger = coarse(spec).model_copy(update={"batch_size": 2 * settings.batch_size})
    return sweep_command_line(
        larger, directory.with_name(f"{directory.name}-batch{larger.batch_size}")
    )


def sweep_command_line(spec: SweepSpec, directory: Path, *options: str) -> str:
    """The command that asks for the coarse grid of ``spec``, with further ``options``.

    Options that say what is the default anyway are left out.
    """
    from privguard.environments import environment_spec
    from privguard.grids import default_grids

    words = ["privguard", "sweep", "--env", spec.env]
    grids = coarse(spec).defenses
    own = environment_spec(spec.env).sweep_grids(spec.observation)
    if list(grids) != default_grids(spec.clients, spec.local_steps, own):
        named = [grid for grid in grids if grid.template != "none"]
        for grid in named:
            words += ["--defense", grid_text(grid)]
        if not named:
            words += ["--defense", "none"]
    if spec.attacks != default_attacks(spec.knowledge, spec.budget):
        for attack in spec.attacks:
            words += ["--attack", attack]
    knowledge = spec.knowledge
    fraction = knowledge.prior_fraction
    chosen: list[tuple[str, object, object]] = [
        ("--obs", spec.observation, "default"),
        ("--seeds", spec.seeds, budget(spec.budget, spec.env, spec.observation).seeds),
        ("--clients", spec.clients, 4),
        ("--batch-size", spec.batch_size, None),
        ("--local-steps", spec.local_steps, 1),
        ("--probe-batch-size", spec.probe_batch_size, 1),
        ("--knowledge", knowledge.kind, "samples"),
        ("--prior-fraction", None if fraction == DEFAULT_FRACTION else fraction, None),
        ("--budget", spec.budget, "quick"),
        ("--out", str(directory), str(Path("reports") / spec.env)),
    ]
    for option, value, default in chosen:
        if value != default:
            words += [option, str(value)]
    return shlex.join([*words, *options])


def grid_text(grid: DefenseGrid) -> str:
    """The grid as ``--defense`` reads it, e.g. ``clip=1+gaussian=0.1,1``."""
    levels = [format_level(level) for level in grid.levels]
    if len(levels) == 1:
        # A single level is written twice: that marks the stage that is swept in a composition.
        levels *= 2 if "+" in grid.template else 1
    return grid.template.replace("{level}", ",".join(levels))
