"""What to compute: validated, hashable specifications that survive a round trip through JSON.

A ``SweepSpec`` expands into ``CellSpec``s, seed by seed over the whole grid: a first frontier over
all defences stands after the first seed. A cell's key is the hash of everything that changes
its numbers; attacks are not part of it, so a new attack never retrains a policy.
"""

from __future__ import annotations

import hashlib
import math
from typing import Annotated

from pydantic import Field, model_validator

from privguard.budgets import Budget, BudgetName, budget
from privguard.environments import environment_spec
from privguard.knowledge import DEFAULT_FRACTION, Knowledge
from privguard.recipes import LOCAL_TRAINING, DQNSettings, TD3Settings, agent_settings
from privguard.specification import Positive, Specification

RECIPE_VERSION = 2
"""Raised whenever the same specification would give other numbers than before."""


class CellSpec(Specification):
    """One (environment, defence, level, seed) and everything that changes its numbers."""

    env: str
    observation: str = "default"
    defense: str = "none"
    """The defence with ``{level}`` where its level stands, e.g. ``clip=1.0+gaussian={level}``."""
    level: float | None = None
    seed: int = Field(default=0, ge=0)
    clients: Positive = 4
    probe_batch_size: Positive = 1
    prior_fraction: float = Field(default=DEFAULT_FRACTION, ge=0, le=1)
    """Share of the training data captured as the default prior (what an attack is granted of it
    is the audit's choice: ``SweepSpec.knowledge``)."""
    budget: Budget
    agent: Annotated[TD3Settings | DQNSettings, Field(discriminator="kind")]

    @property
    def defense_text(self) -> str:
        """The defence as ``defenses.parse`` reads it, e.g. ``clip=1.0+gaussian=0.1``."""
        return defense_text(self.defense, self.level)

    @property
    def defense_name(self) -> str:
        """The defence without its level, e.g. ``clip=1.0+gaussian``."""
        return self.defense.replace("={level}", "")

    @property
    def planned_population(self) -> int:
        """Transitions that all clients collect if the training runs to its end."""
        steps = self.budget.warmup_steps + self.budget.rounds * self.agent.steps_per_round
        return self.clients * steps

    @property
    def key(self) -> str:
        """Hash of the specification: the same key is the same computation.

        Settings that change nothing are no part of it: those of local training in FedSGD, and a
        gradient norm that is not limited.
        """
        unused = set(LOCAL_TRAINING) if self.agent.local_steps == 1 else set()
        if self.agent.max_gradient_norm is None:
            unused.add("max_gradient_norm")
        text = f"{RECIPE_VERSION}:{self.model_dump_json(exclude={'agent': unused})}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class DefenseGrid(Specification):
    """One defence and the levels that it is swept over, e.g. ``gaussian`` at 0.1 and 1."""

    template: str
    """What precedes and follows the level, e.g. ``clip=1.0+gaussian={level}@option=2``."""
    levels: tuple[float, ...]
    """Empty for a defence without a level."""
    seeds: Positive | None = None
    """Seeds of these levels where they differ from the sweep's: a refinement adds such grids."""


def defense_text(template: str, level: float | None) -> str:
    """The defence ``template`` at ``level``, as ``defenses.parse`` reads it."""
    return template if level is None else template.format(level=format_level(level))


def format_level(level: float) -> str:
    """The shortest text that reads back as ``level``; whole numbers without a point."""
    if math.isfinite(level) and level == int(level) and abs(level) < 1e9:
        return str(int(level))
    return repr(level)


class SweepSpec(Specification):
    """A whole sweep."""

    env: str
    observation: str = "default"
    defenses: tuple[DefenseGrid, ...] = Field(min_length=1)
    attacks: tuple[str, ...]
    seeds: Positive
    clients: Positive = 4
    batch_size: Positive | None = None
    local_steps: Positive = 1
    probe_batch_size: Positive = 1
    budget: BudgetName = "quick"
    knowledge: Knowledge = Knowledge()
    """What the adversary knew beforehand; the cells do not depend on it."""

    @model_validator(mode="after")
    def _known_environment(self) -> SweepSpec:
        environment_spec(self.env)
        return self

    def cells(self) -> list[CellSpec]:
        """All cells, seed by seed over the whole grid; the undefended one first in each seed."""
        env = environment_spec(self.env)
        grids = sorted(self.defenses, key=lambda grid: grid.template != "none")
        # A level may stand in several grids, with different numbers of seeds: the largest counts.
        places = dict.fromkeys(
            (seed, grid.template, level)
            for seed in range(max(grid.seeds or self.seeds for grid in grids))
            for grid in grids
            if seed < (grid.seeds or self.seeds)
            for level in grid.levels or (None,)
        )
        return [
            CellSpec(
                env=self.env,
                observation=self.observation,
                defense=template,
                level=level,
                seed=seed,
                clients=self.clients,
                probe_batch_size=self.probe_batch_size,
                budget=budget(self.budget, self.env, self.observation),
                agent=agent_settings(env, self.batch_size, self.local_steps, self.observation),
            )
            for seed, template, level in places
        ]
