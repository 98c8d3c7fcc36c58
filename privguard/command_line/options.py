"""From what the user typed to checked specifications, before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from pydantic import ValidationError

from privguard.budgets import BudgetName, budget
from privguard.catalogue import nearest
from privguard.environments import environment_spec
from privguard.errors import BadInput
from privguard.knowledge import Knowledge, chosen_knowledge
from privguard.recipes import agent_settings
from privguard.reporting.limits import Limits
from privguard.spec import SweepSpec

if TYPE_CHECKING:
    from privguard.refinement import Refinement


def make_spec(
    *,
    spec_file: Path | None,
    env: str,
    observation: str,
    defenses: Sequence[str],
    attacks: Sequence[str],
    seeds: int | None,
    clients: int,
    batch_size: int | None,
    local_steps: int,
    probe_batch_size: int,
    budget_name: str,
    knowledge: str,
    prior_fraction: float | None,
) -> SweepSpec:
    """The sweep that the options, or the file, describe; everything is checked before it starts.

    Raises:
        BadInput: one line that names the option, the value and what is allowed.
    """
    if spec_file is not None:
        spec = _read_spec(spec_file)
    else:
        if not env:
            raise BadInput("--env is missing (see `privguard list`)")
        environment_spec(env)
        positive("--clients", clients)
        positive("--local-steps", local_steps)
        positive("--probe-batch-size", probe_batch_size)
        for option, value in (("--seeds", seeds), ("--batch-size", batch_size)):
            if value is not None:
                positive(option, value)
        name = budget_by_name(budget_name)
        granted = chosen_knowledge(knowledge, prior_fraction)
        with plugins():
            from privguard.grids import chosen_grids, default_grids

            texts = calibrated_defenses(defenses, env, name, batch_size, observation)
            own = environment_spec(env).sweep_grids(observation)
            grids = (
                chosen_grids(texts, clients, own)
                if texts
                else default_grids(clients, local_steps, own)
            )
        spec = SweepSpec(
            env=env,
            observation=observation,
            defenses=tuple(grids),
            attacks=tuple(dict.fromkeys(attacks)) or default_attacks(granted, name),
            seeds=seeds if seeds is not None else budget(name, env, observation).seeds,
            clients=clients,
            batch_size=batch_size,
            local_steps=local_steps,
            probe_batch_size=probe_batch_size,
            budget=name,
            knowledge=granted,
        )
    check_spec(spec)
    return spec


def calibrated_defenses(
    texts: Sequence[str],
    env: str,
    name: BudgetName,
    batch_size: int | None = None,
    observation: str = "default",
) -> list[str]:
    """The defences with ``eps:X`` levels calibrated to the rounds that the budget plans.

    Raises:
        defenses.DefenseError: an epsilon that is out of reach, or of a defence without one.
    """
    from privguard.command_line.target_epsilon import Plan, with_noise_multipliers

    rounds = budget(name, env, observation)
    settings = agent_settings(environment_spec(env), batch_size, observation=observation)
    plan = Plan(
        rounds=rounds.rounds,
        warmup_steps=rounds.warmup_steps,
        steps_per_round=settings.steps_per_round,
        batch_size=settings.batch_size,
    )
    return [with_noise_multipliers(text, plan) for text in texts]


def make_limits(**values: float | None) -> Limits:
    """The limits that the options of the same names set.

    Raises:
        BadInput: one of them cannot be meant.
    """
    limits = Limits.model_validate(values)
    problem = limits.problem()
    if problem is not None:
        name, _, rest = problem.partition(" ")
        raise BadInput(f"--{name.replace('_', '-')} {rest}")
    return limits


def make_refinement(
    limits: Limits, refine: bool, max_cells: int | None, max_seeds: int | None
) -> Refinement | None:
    """The refinement that the options of the sweep ask for; None without ``--refine``.

    Raises:
        BadInput: a bound without ``--refine``, or below one.
    """
    bounds = {"--max-cells": max_cells, "--max-seeds": max_seeds}
    for option, value in bounds.items():
        if value is not None:
            if not refine:
                raise BadInput(f"{option} {value}: bounds a refinement; add --refine")
            positive(option, value)
    if not refine:
        return None
    from privguard.refinement import MAX_CELLS, MAX_SEEDS, Refinement

    return Refinement(limits, max_cells or MAX_CELLS, max_seeds or MAX_SEEDS)


def check_spec(spec: SweepSpec) -> None:
    """Finds what a worker would only find hours later: names, levels, observations, clients.

    Raises:
        BadInput: the first thing that is wrong.
    """
    import defenses
    from attacks.registry import get_attack
    from privguard.environments import make_environment
    from privguard.grids import check_clients
    from privguard.spec import defense_text

    make_environment(spec.env, spec.observation).close()
    check_knowledge(spec)
    with plugins():
        for name in spec.attacks:
            get_attack(name)
        for grid in spec.defenses:
            for level in grid.levels or (None,):
                defense = defenses.parse(defense_text(grid.template, level))
                if spec.local_steps > 1 and defense.per_sample is not None:
                    raise BadInput(
                        f"--local-steps {spec.local_steps}: {defense.text} acts on single samples, "
                        "of which an update shows nothing (clip=NORM+gaussian=VARIANCE acts on it)"
                    )
                check_clients(defense.text, spec.clients)


def check_knowledge(spec: SweepSpec) -> None:
    """Whether the adversary of ``spec`` can exist.

    Raises:
        BadInput: it is granted a simulator that the environment does not have.
    """
    if spec.knowledge.kind == "simulator":
        from privguard.worlds.simulators import make_simulator

        make_simulator(spec.env, spec.observation)


SMOKE_ATTACKS = ("analytic", "rgia", "rgia-zero")
"""Enough to see the command work within minutes."""


def default_attacks(knowledge: Knowledge, budget_name: BudgetName = "quick") -> tuple[str, ...]:
    """Every attack that ships, but none that stands in for one that can run, and no ensemble.

    The smoke budget gets the quick ones alone.
    """
    from attacks.registry import available_attacks

    known = available_attacks()
    runs = {name for name, attack in known.items() if set(attack.needs) <= knowledge.grants}
    return tuple(
        name
        for name, attack in known.items()
        if attack.instead_of not in runs
        and not attack.ensemble
        and (budget_name != "smoke" or name in SMOKE_ATTACKS)
    )


def budget_by_name(name: str) -> BudgetName:
    """The budget's name, checked."""
    allowed = list(get_args(BudgetName))
    if name not in allowed:
        raise BadInput(
            f"--budget {name}: unknown{nearest(name, allowed)} (allowed: {', '.join(allowed)})"
        )
    return cast(BudgetName, name)


def _read_spec(path: Path) -> SweepSpec:
    try:
        return SweepSpec.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"--spec {path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"--spec {path}: {where}: {first['msg']}") from None


def positive(option: str, value: int) -> None:
    """Refuses numbers below one in the option's name."""
    if value < 1:
        raise BadInput(f"{option} {value}: must be 1 or more")


@contextmanager
def plugins() -> Iterator[None]:
    """Turns what the two libraries say of a name or a level into bad input of ours."""
    from attacks.registry import UnknownAttack
    from defenses.registry import DefenseError

    try:
        yield
    except UnknownAttack as error:
        raise BadInput(f"--attack: {error}") from None
    except DefenseError as error:
        raise BadInput(f"--defense: {error}") from None
    except ModuleNotFoundError as error:
        raise BadInput(f"no module named {error.name!r}; is it installed?") from None
