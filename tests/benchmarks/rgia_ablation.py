"""What each part of RGIA's prior knowledge is worth.

    python tests/benchmarks/rgia_ablation.py [--env hopper] [--targets 16] [--rounds 3000]

Trains one undefended cell briefly, captures gradients of single records at the first round and
after the last, and attacks both with every variant. Prints a Markdown table for each. The variants
start from the same draws; nothing is chosen by looking at the truth.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from attacks import Prior, Transitions
from attacks.analytic import Analytic
from attacks.attack import Attack
from attacks.dlg import DLG
from attacks.rgia import RGIA
from attacks.rgia_zero import ZeroPriorRGIA
from privguard.audit.captures import CellCaptures
from privguard.auditing import Audit
from privguard.budgets import budget
from privguard.environments import environment_spec
from privguard.knowledge import Knowledge, chosen_knowledge
from privguard.recipes import agent_settings
from privguard.records import AttackRecord
from privguard.spec import CellSpec
from privguard.training import CellTraining

NONE, SAMPLES, SIMULATOR = (chosen_knowledge(k, None) for k in ("none", "samples", "simulator"))


@dataclass(frozen=True)
class SimulatorInTheLoop(RGIA):
    """R_f with the simulator's value and the learned model's slope."""

    def dynamics(self, z: Transitions, prior: Prior) -> Tensor:
        """Rows that the simulator cannot step are the model's."""
        assert prior.simulator is not None
        learned = prior.transition(z.state, z.action)
        exact, _ = prior.simulator(z.state.detach(), z.action.detach())
        exact = torch.where(exact.isnan(), learned.detach(), exact)
        return learned + (exact - learned).detach()


VARIANTS: list[tuple[str, Knowledge, Attack]] = [
    ("no regulariser (dlg)", SAMPLES, DLG(restarts=4)),
    (
        "no regulariser, prior's units",
        SAMPLES,
        RGIA(state_weight=0.0, reward_weight=0.0, dynamics_weight=0.0),
    ),
    ("+ R_s", SAMPLES, RGIA(reward_weight=0.0, dynamics_weight=0.0)),
    ("+ R_s + R_r", SAMPLES, RGIA(dynamics_weight=0.0)),
    ("+ R_s + R_r + R_f (rgia)", SAMPLES, RGIA()),
    ("ideal model: simulated at the end (rgia)", SIMULATOR, RGIA()),
    ("ideal model: in the loop and at the end", SIMULATOR, SimulatorInTheLoop()),
    (
        "zero prior: units and directions only",
        NONE,
        ZeroPriorRGIA(state_weight=0.0, dynamics_weight=0.0),
    ),
    ("zero prior: + R_s", NONE, ZeroPriorRGIA(dynamics_weight=0.0)),
    ("zero prior: + persistence", NONE, ZeroPriorRGIA(state_weight=0.0)),
    ("zero prior: both (rgia-zero)", NONE, ZeroPriorRGIA()),
    ("closed form (analytic)", NONE, Analytic()),
    ("closed form (analytic)", SAMPLES, Analytic()),
    ("closed form (analytic)", SIMULATOR, Analytic()),
]

Summary = Callable[[Sequence[float]], float]
COLUMNS: dict[str, Summary] = {
    "gme": statistics.median,
    "te": statistics.median,
    "te_simulator": statistics.median,
    "ra": statistics.fmean,
    "nmse": statistics.median,
    "nmse_next_state": statistics.median,
    "reward_accuracy": statistics.fmean,
}
RESTARTS = ("ed", "ss", "cd")


def main(
    env: Annotated[str, typer.Option(help="Environment.")] = "hopper",
    targets: Annotated[int, typer.Option(help="Records attacked at each moment.")] = 16,
    rounds: Annotated[int, typer.Option(help="Rounds of training before the second.")] = 3000,
    seed: Annotated[int, typer.Option(help="Seed of the cell.")] = 0,
) -> None:
    """Trains, attacks and prints."""
    torch.set_num_threads(1)
    cell, captures, policy_return = train(env, targets, rounds, seed)
    print(f"{env}, seed {seed}, {targets} targets; gme, te, nmse: medians; ra, reward: means.")
    for capture in captures.captures:
        one = dataclasses.replace(captures, captures=[capture])
        trained = f", return {policy_return:.0f}" if capture.round else ""
        print(f"\nRound {capture.round}{trained}\n")
        ablation(cell, one)


def train(env: str, targets: int, rounds: int, seed: int) -> tuple[CellSpec, CellCaptures, float]:
    """A cell's captures at the first and the last round, and its final return."""
    numbers = budget("quick", env).model_copy(
        update={"rounds": rounds, "captures": (0.0, 1.0), "evaluations": 1}
    )
    settings = agent_settings(environment_spec(env), None)
    cell = CellSpec(env=env, seed=seed, budget=numbers, agent=settings)
    draws = -(-targets // cell.clients)
    cell = cell.model_copy(update={"budget": numbers.model_copy(update={"probe_draws": draws})})
    training = CellTraining(cell)
    training.run()
    training.close()
    captures = training.captures
    for capture in captures.captures:
        del capture.releases["probe"][targets:]
    return cell, captures, float(np.mean(training.evaluations[-1].returns))


def ablation(cell: CellSpec, captures: CellCaptures) -> None:
    """The table of one capture: every variant, then the attacker that ignores the gradient."""
    audits = {k: Audit.prepare(cell, captures, k) for k in (NONE, SAMPLES, SIMULATOR)}
    print_row(["variant", "knows", *COLUMNS, *RESTARTS])
    print_row(["---"] * 2 + ["---:"] * (len(COLUMNS) + len(RESTARTS)))
    last: dict[Knowledge, AttackRecord] = {}
    for label, knowledge, attack in VARIANTS:
        # One seed name for all, so that variants differ by nothing but themselves.
        last[knowledge] = record = audits[knowledge].run_attack(attack, "rgia", "probe").record
        consistency = [number(record.restarts.get(key)) for key in RESTARTS]
        print_row([label, knowledge.kind, *summaries(record, ""), *consistency])
    for knowledge, record in last.items():
        print_row(["prior alone", knowledge.kind, *summaries(record, "_prior"), "", "", ""])


def summaries(record: AttackRecord, suffix: str) -> list[str]:
    """The columns of an attack, or with the suffix ``_prior`` of its chance lines."""
    cells = []
    for column, summary in COLUMNS.items():
        scores = [target.scores.get(column + suffix) for target in record.targets]
        known = [score for score in scores if score is not None]
        cells.append(number(summary(known) if known else None))
    return cells


def number(value: float | None) -> str:
    """Three significant digits; a dash where a score is undefined."""
    return "–" if value is None else f"{value:.3g}"


def print_row(cells: Sequence[str]) -> None:
    """One line of a Markdown table."""
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    typer.run(main)
