"""How long a cell trains and how much of it is captured: all the numbers stand here."""

from __future__ import annotations

from typing import Literal

from privguard.environments import environment_spec
from privguard.specification import Positive, Specification

BudgetName = Literal["smoke", "quick", "standard", "full"]


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
    """Greedy episodes of each of these last evaluations."""
    curve_episodes: Positive
    """Greedy episodes of each evaluation before them, which only draw the training curve."""
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
    "ant": 48_000,
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
            curve_episodes=1,
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
        curve_episodes=2,
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
        episodes=1 if smoke else 5,
        curve_episodes=1,
        baseline_episodes=1 if smoke else 4,
        captures=(1.0,) if smoke else (0.0, 1.0),
        probe_draws=1,
        seeds=1 if smoke else 3,
    )
