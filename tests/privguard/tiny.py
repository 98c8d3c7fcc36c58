"""Cells small enough for a test and real in every part."""

from __future__ import annotations

from privguard.budgets import Budget
from privguard.environments import environment_spec
from privguard.recipes import agent_settings
from privguard.spec import CellSpec


def tiny_budget(**changes: object) -> Budget:
    numbers: dict[str, object] = {
        "name": "smoke",
        "rounds": 40,
        "warmup_steps": 60,
        "evaluations": 2,
        "final_evaluations": 1,
        "episodes": 2,
        "curve_episodes": 1,
        "baseline_episodes": 2,
        "captures": (0.0, 1.0),
        "probe_draws": 1,
        "seeds": 1,
    }
    return Budget.model_validate(numbers | changes)


def tiny_cell(
    env: str = "frozenlake",
    defense: str = "none",
    level: float | None = None,
    observation: str = "default",
) -> CellSpec:
    settings = agent_settings(environment_spec(env), batch_size=8, observation=observation)
    return CellSpec(
        env=env,
        observation=observation,
        defense=defense,
        level=level,
        budget=tiny_budget(),
        agent=settings.model_copy(update={"hidden": (16, 16)}),
    )
