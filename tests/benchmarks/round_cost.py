"""Where a training round's time goes, and what each defence costs.

    python tests/benchmarks/round_cost.py [--env ant] [--rounds 200]

Prints processor milliseconds on one thread, so that other work on the machine does not count.
"""

from __future__ import annotations

import cProfile
import pstats
import time
from typing import Annotated

import torch
import typer

from privguard.budgets import budget
from privguard.environments import environment_spec
from privguard.recipes import agent_settings
from privguard.spec import CellSpec
from privguard.training import CellTraining

DEFENSES: list[tuple[str, float | None]] = [
    ("none", None),
    ("gaussian={level}", 0.1),
    ("dp-sgd={level}", 0.1),
    ("clip={level}", 1.0),
    ("quantize={level}", 4),
    ("topk={level}", 0.01),
    ("secagg={level}", 4),
]
GROUPS = {
    "environment": ("gymnasium", "mujoco"),
    "torch operators": ("built-in method torch", "'torch._C", "torch._C"),
    "torch modules": ("torch/",),
    "Opacus": ("opacus/",),
    "privguard": ("privguard/", "defenses/", "attacks/"),
}


def training(env: str, defense: str, level: float | None) -> CellTraining:
    """A cell whose replay is filled and whose first rounds are over."""
    cell = CellSpec(
        env=env,
        defense=defense,
        level=level,
        budget=budget("quick", env),
        agent=agent_settings(environment_spec(env), None),
    )
    ready = CellTraining(cell)
    for _ in range(cell.budget.warmup_steps):
        ready.federation.collect(explore=False)
    for _ in range(20):
        ready.federation.round(0.0)
    return ready


def milliseconds(cell: CellTraining, rounds: int) -> tuple[float, float]:
    """Processor time of a round's environment steps and of its gradients."""
    started = time.process_time()
    for _ in range(rounds):
        cell.federation.collect(explore=True)
    between = time.process_time()
    for _ in range(rounds):
        cell.federation.round(0.0)
    ended = time.process_time()
    return 1e3 * (between - started) / rounds, 1e3 * (ended - between) / rounds


def profile(cell: CellTraining, rounds: int) -> dict[str, float]:
    """Share of the time spent inside each group of functions."""
    profiler = cProfile.Profile(time.process_time)
    profiler.enable()
    for _ in range(rounds):
        cell.federation.collect(explore=True)
        cell.federation.round(0.0)
    profiler.disable()
    stats = pstats.Stats(profiler)
    seconds = dict.fromkeys([*GROUPS, "other Python"], 0.0)
    for (file, _, name), (_, _, own, _, _) in stats.stats.items():  # type: ignore[attr-defined]
        place = f"{file} {name}"
        group = next(
            (group for group, marks in GROUPS.items() if any(mark in place for mark in marks)),
            "other Python",
        )
        seconds[group] += own
    total = sum(seconds.values())
    return {group: own / total for group, own in seconds.items()}


def main(
    env: Annotated[str, typer.Option(help="Environment.")] = "ant",
    rounds: Annotated[int, typer.Option(help="Rounds to average over.")] = 200,
) -> None:
    """Prints one line a defence, then the profile of the undefended and of the DP-SGD round."""
    torch.set_num_threads(1)
    reference = None
    print(f"{env}: milliseconds of one core a round")
    print(f"{'defence':<20}{'stepping':>10}{'gradients':>11}{'total':>8}{'x none':>8}")
    for defense, level in DEFENSES:
        cell = training(env, defense, level)
        stepping, gradients = milliseconds(cell, rounds)
        cell.close()
        total = stepping + gradients
        reference = reference or total
        name = cell.cell.defense_text
        print(
            f"{name:<20}{stepping:>10.2f}{gradients:>11.2f}{total:>8.2f}{total / reference:>8.2f}"
        )
    for defense, level in DEFENSES[0], DEFENSES[2]:
        cell = training(env, defense, level)
        shares = profile(cell, rounds)
        cell.close()
        print(f"\nprofile of {cell.cell.defense_text}")
        for group, share in sorted(shares.items(), key=lambda item: -item[1]):
            print(f"  {group:<16}{share:>6.0%}")


if __name__ == "__main__":
    typer.run(main)
