"""What to compute: validated, hashable specifications that survive a round trip through JSON.

A ``SweepSpec`` expands into ``CellSpec``s, seed by seed over the whole grid: a first frontier over
all defences stands after the first seed. A cell's key is the hash of everything that changes
its numbers; attacks are not part of it, so a new attack never retrains a policy.
"""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from privguard.environments import EnvironmentSpec, environment_spec
from privguard.knowledge import DEFAULT_FRACTION, Knowledge

RECIPE_VERSION = 2
"""Raised whenever the same specification would give other numbers than before."""

BudgetName = Literal["smoke", "quick", "standard", "full"]
Positive = Annotated[int, Field(gt=0)]


class Specification(BaseModel):
    """Base of all specifications: unknown fields are an error, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TD3Settings(Specification):
    """How the continuous-control agent learns."""

    kind: Literal["td3"] = "td3"
    hidden: tuple[Positive, ...] = (128, 128)
    layer_norm: bool = True
    critic_learning_rate: float = 1e-3
    actor_learning_rate: float = 5e-4
    decay_from: float = Field(default=0.6, ge=0, lt=1)
    """Share of the rounds after which the learning rates fall, linearly, to nothing."""
    tau: float = 0.005
    """Share of the way that target networks move each round."""
    smoothing: float = 0.2
    """Standard deviation of the target-smoothing noise, in half widths of the action box."""
    smoothing_limit: float = 0.5
    """The smoothing noise is clipped to this."""
    exploration: float = 0.2
    """Standard deviation of the exploration noise, in half widths of the action box."""
    exploration_correlation: float = 0.9
    """Correlation of one step's exploration noise with the step before (AR(1))."""
    steps_per_round: Positive = 1
    """Environment steps of each client between two releases."""
    batch_size: Positive = 64
    local_steps: Positive = 1
    """Gradient steps of a client in a round, each on a minibatch; 1 is FedSGD, more FedAvg."""
    local_critic_learning_rate: float = Field(default=1e-4, ge=0)
    """Of the client's plain gradient steps, public; small, since plain steps diverge where the loss
    is steep."""
    local_actor_learning_rate: float = Field(default=1e-3, ge=0)


class DQNSettings(Specification):
    """How the discrete-action agent learns."""

    kind: Literal["dqn"] = "dqn"
    hidden: tuple[Positive, ...] = (64, 64)
    layer_norm: bool = False
    learning_rate: float = 1e-3
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """Of the server's Adam: gradients of coordinates far below it move their weights little."""
    decay_from: float = Field(default=0.6, ge=0, lt=1)
    tau: float = 0.01
    exploration: float = 0.2
    """Probability of a random action."""
    steps_per_round: Positive = 1
    batch_size: Positive = 32
    local_steps: Positive = 1
    local_learning_rate: float = Field(default=0.05, ge=0)


_LOCAL_TRAINING = {
    "local_steps",
    "local_critic_learning_rate",
    "local_actor_learning_rate",
    "local_learning_rate",
}


class Budget(Specification):
    """How long a cell trains and how much of it is captured."""

    name: BudgetName
    rounds: Positive
    warmup_steps: Positive
    """Random steps of each client before the first round."""
    evaluations: Positive
    """Moments of evaluation, evenly spread; the last is at the end."""
    final_evaluations: Positive
    """How many of the last evaluations make the cell's utility."""
    episodes: Positive
    """Greedy episodes of each evaluation."""
    baseline_episodes: Positive
    """Episodes of the random and of the zero-action policy."""
    captures: tuple[float, ...]
    """Shares of the rounds at which releases are captured; 0 is the first round, 1 the last."""
    probe_draws: Positive
    """Probe batches of each client at each capture."""
    seeds: Positive
    """Seeds of a sweep unless told otherwise."""


BUDGETS: dict[BudgetName, str] = {
    "smoke": "seconds a cell and two attacks: to try the command; its policies have learnt nothing",
    "quick": "the shortest in which an undefended agent really learns: one to six minutes a cell; "
    "on frames a network trained a little, to see what leaks",
    "standard": "three times quick; on frames an hour a cell, still too short for most games",
    "full": "a million rounds a cell: for a cluster",
}

_QUICK_ROUNDS = {
    "ant": 60_000,
    "halfcheetah": 20_000,
    "hopper": 30_000,
    "walker2d": 40_000,
    "frozenlake": 1_500,
    "pong ram": 50_000,
    "qbert ram": 50_000,
    "breakout ram": 50_000,
    "seaquest ram": 50_000,
}


def budget(name: BudgetName, env: str, observation: str = "default") -> Budget:
    """The budget ``name`` for an environment: all its numbers stand here.

    ``quick`` is the shortest in which the undefended agent really learns, ``standard`` three times
    that, ``full`` a million environment steps of each client. Pixels have their own numbers.
    """
    if environment_spec(env).pixels(observation):
        return _pixel_budget(name)
    played = env if observation == "default" else f"{env} {observation}"
    quick = _QUICK_ROUNDS.get(played) or _QUICK_ROUNDS[env]
    warmup = 100 if env == "frozenlake" else 500
    if name == "smoke":
        return Budget(
            name=name,
            rounds=300,
            warmup_steps=min(warmup, 200),
            evaluations=2,
            final_evaluations=1,
            episodes=1,
            baseline_episodes=2,
            captures=(1.0,),
            probe_draws=1,
            seeds=1,
        )
    rounds = {
        "quick": quick,
        "standard": 3 * quick,
        "full": 1_000_000,
    }[name]
    return Budget(
        name=name,
        rounds=rounds,
        warmup_steps=warmup,
        evaluations=20,
        final_evaluations=3,
        episodes=5,
        baseline_episodes=10,
        captures=(0.0, 0.5, 1.0),
        probe_draws=2,
        seeds=3,
    )


def _pixel_budget(name: BudgetName) -> Budget:
    """The budget ``name`` for a convolutional network: a round costs some 30 ms on one core.

    Atari takes millions of frames, so ``quick`` trains a network only partly: it is long enough
    for leakage, not for reward. ``standard`` is an hour or so a cell, ``full`` a day or more.
    """
    smoke = name == "smoke"
    return Budget(
        name=name,
        rounds={"smoke": 20, "quick": 2_000, "standard": 100_000, "full": 1_000_000}[name],
        warmup_steps=40 if smoke else 500,
        evaluations=1 if smoke else 10,
        final_evaluations=1 if smoke else 3,
        episodes=1 if smoke else 2,
        baseline_episodes=1 if smoke else 4,
        captures=(1.0,) if smoke else (0.0, 1.0),
        probe_draws=1,
        seeds=1 if smoke else 3,
    )


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

        Settings of local training change nothing in FedSGD, so they are no part of its key.
        """
        unused = {"agent": _LOCAL_TRAINING} if self.agent.local_steps == 1 else None
        text = f"{RECIPE_VERSION}:{self.model_dump_json(exclude=unused)}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


_RECIPES: dict[str, TD3Settings | DQNSettings] = {
    # Small minibatches and an early fall of the rates: Ant's gait needs many rounds, then calm.
    "ant": TD3Settings(batch_size=32, decay_from=0.3),
}
"""Recipes that differ from their agent's own."""

# Mnih et al. 2015: a dense layer of 512 behind the convolutions; Adam's epsilon as in Hessel et al.
# 2018 (arXiv 1710.02298). With Adam's own, the first rounds' tiny gradients move every weight by
# the whole rate, and after a thousand rounds of Pong two of the first layer's 32 channels are left.
_PIXELS = DQNSettings(
    hidden=(512,), learning_rate=1e-4, adam_epsilon=1.5e-4, exploration=0.1, batch_size=8
)
_RAM = DQNSettings(
    hidden=(128, 128),
    layer_norm=True,
    learning_rate=5e-4,
    tau=0.005,
    exploration=0.1,
    batch_size=64,
)


def agent_settings(
    env: EnvironmentSpec,
    batch_size: int | None,
    local_steps: int = 1,
    observation: str = "default",
) -> TD3Settings | DQNSettings:
    """The environment's learning recipe, with another minibatch size if one is given."""
    if env.pixels(observation):
        settings: TD3Settings | DQNSettings = _PIXELS
    elif observation == "ram":
        settings = _RAM
    else:
        agents: dict[str, TD3Settings | DQNSettings] = {"td3": TD3Settings(), "dqn": DQNSettings()}
        settings = _RECIPES.get(env.name, agents[env.agent])
    changes = {"local_steps": local_steps}
    if batch_size is not None:
        changes["batch_size"] = batch_size
    return settings.model_copy(update=changes)


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
