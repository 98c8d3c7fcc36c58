"""How fast the undefended agent learns on one core.

    python tests/benchmarks/learning.py [ENV ...] [--obs default] [--seeds 1] [--rounds N]

Prints the return after each evaluation beside the random and the zero-action policy.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
import typer

from privguard.budgets import budget
from privguard.environments import environment_spec
from privguard.recipes import agent_settings
from privguard.spec import CellSpec
from privguard.training import CellTraining, Progress

LOCOMOTION = ["halfcheetah", "hopper", "walker2d", "ant"]


def main(
    envs: Annotated[list[str] | None, typer.Argument(help="Environments.")] = None,
    obs: Annotated[str, typer.Option(help="Observation, e.g. ram.")] = "default",
    seeds: Annotated[int, typer.Option(help="Seeds.")] = 1,
    rounds: Annotated[int | None, typer.Option(help="Rounds, instead of quick's.")] = None,
) -> None:
    """Trains and prints."""
    torch.set_num_threads(1)
    for env in envs or LOCOMOTION:
        for seed in range(seeds):
            learn(env, obs, seed, rounds)


def learn(env: str, obs: str, seed: int, rounds: int | None) -> None:
    """One undefended cell."""
    quick = budget("quick", env, obs)
    numbers = quick if rounds is None else quick.model_copy(update={"rounds": rounds})
    settings = agent_settings(environment_spec(env), None, observation=obs)
    cell = CellTraining(
        CellSpec(env=env, observation=obs, seed=seed, budget=numbers, agent=settings)
    )
    random, zero = cell.baselines()
    print(f"{env} seed {seed}: random {random:.0f}, zero action {zero:.0f}", flush=True)

    def show(progress: Progress) -> None:
        last = cell.evaluations[-1] if cell.evaluations else None
        if last is not None and last.round == progress.round:
            forward = (
                f", forward {np.mean(last.forward_returns):.0f}" if last.forward_returns else ""
            )
            print(
                f"  round {last.round:>6} ({last.environment_steps} steps, {last.seconds:.0f} s, "
                f"{progress.rounds_per_second:.0f}/s): return {np.mean(last.returns):.0f}{forward}",
                flush=True,
            )

    cell.run(show)
    cell.close()


if __name__ == "__main__":
    typer.run(main)
