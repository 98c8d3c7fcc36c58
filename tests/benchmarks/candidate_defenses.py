"""Candidates for private and still useful training: leakage against return, short runs.

    python tests/benchmarks/candidate_defenses.py [--env halfcheetah] [--rounds 12000] [--seed 0]

Trains the environment's recipe with ``gaussian``, with ``adaptive-gaussian`` and on records that
each client perturbs once, before it first uses them, with noise of so many of their standard
deviations: the gradient of a moved record. What the server then sees, in however many rounds and
whatever weights it sends, is a function of the moved records, so a Gaussian prior of the true ones
bounds what it can know of a single one; printed as ``limit``, where no attack need be run: a clean
gradient gives its record away. Single seeds and policies that have
learnt little: orientation, not results.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
import typer
from scipy.stats import norm

from attacks.prior import Prior
from attacks.registry import get_attack
from attacks.transitions import Transitions
from privguard.auditing import Audit
from privguard.budgets import budget
from privguard.environments import environment_spec
from privguard.knowledge import Knowledge
from privguard.recipes import agent_settings
from privguard.replay import Replay, ReplayShapes
from privguard.reporting.frontier import leakage
from privguard.seeding import numpy_generator
from privguard.spec import CellSpec
from privguard.training import CellTraining

ARMS = (
    ("gaussian={level}", (0.1, 1.0, 10.0)),
    ("adaptive-gaussian={level}", (3.0, 10.0, 30.0)),
)
MOVED = (0.3, 1.0)
RESCALED_EVERY = 500


class MovedRecords(Replay):
    """A replay of perturbed transitions; a state is perturbed once, as s' and then as s."""

    def __init__(self, like: Replay, level: float, rng: np.random.Generator) -> None:
        columns = like.tensors()
        state, action = columns["state"], columns["action"]
        shapes = ReplayShapes(
            tuple(state.shape[1:]), state.dtype, tuple(action.shape[1:]), action.dtype
        )
        super().__init__(like.capacity, shapes)
        self._level, self._rng = level, rng
        self._true: list[np.ndarray] = []
        self._deviation = np.zeros(0)
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def add(
        self,
        state: np.ndarray,
        action: np.ndarray,
        reward: float,
        next_state: np.ndarray,
        terminated: bool,
    ) -> None:
        """Stores the transition moved by ``level`` running deviations of each coordinate."""
        self._true.append(np.concatenate([next_state, action, [reward]]))
        if len(self._true) == 2 or len(self._true) % RESCALED_EVERY == 0:
            self._deviation = np.std(self._true, axis=0)
        if len(self._true) < 2:
            return  # no scale yet, so it is never used
        size = len(state)
        noise = self._level * self._deviation * self._rng.standard_normal(len(self._deviation))
        if self._last is not None and np.array_equal(self._last[0], state):
            moved = self._last[1]
        else:
            fresh = self._rng.standard_normal(size)
            moved = state + self._level * self._deviation[:size] * fresh
        moved_next = next_state + noise[:size]
        self._last = (next_state, moved_next)
        super().add(
            moved,
            np.clip(action + noise[size:-1], -1, 1),
            reward + float(noise[-1]),
            moved_next,
            terminated,
        )


def trained(env: str, rounds: int, seed: int, template: str, level: float | None) -> CellTraining:
    """A cell that has not started yet."""
    short = budget("quick", env).model_copy(
        update={
            "rounds": rounds,
            "evaluations": 2,
            "final_evaluations": 1,
            "captures": (0.5, 1.0),
        }
    )
    return CellTraining(
        CellSpec(
            env=env,
            seed=seed,
            budget=short,
            agent=agent_settings(environment_spec(env), None),
            defense=template,
            level=level,
        )
    )


def moved_limit(reference: Transitions, level: float) -> float:
    """Leakage of an attacker that reads every moved record exactly, under a Gaussian prior."""
    prior = Prior.fit(reference)
    kept = prior.raw_std() > 1e-6
    scale = prior.raw_std()[kept].double()
    covariance = prior.joint_covariance().double()[kept][:, kept] / torch.outer(scale, scale)
    noise = torch.eye(len(scale), dtype=torch.float64) / level**2
    posterior = torch.linalg.inv(torch.linalg.inv(covariance) + noise).diagonal().sqrt()
    accuracy = float(np.mean(2 * norm.cdf(0.1 / posterior.numpy()) - 1))
    return leakage_of(accuracy, float(2 * norm.cdf(0.1) - 1))


def leakage_of(accuracy: float, chance: float) -> float:
    """As in the frontier."""
    return max(0.0, (accuracy - chance) / (1 - chance))


def line(name: str, training: CellTraining, leaked: float | None, limit: float | None) -> None:
    """One row of the table."""
    returned = float(np.mean(training.evaluations[-1].returns)) if training.evaluations else np.nan
    print(
        f"{name:<26}{returned:>9.0f}"
        + (f"{leaked:>11.3f}" if leaked is not None else f"{'-':>11}")
        + (f"{limit:>9.3f}" if limit is not None else f"{'-':>9}"),
        flush=True,
    )


def main(
    env: Annotated[str, typer.Option(help="Environment with continuous actions.")] = "halfcheetah",
    rounds: Annotated[int, typer.Option(help="Training rounds.")] = 12_000,
    seed: Annotated[int, typer.Option(help="Of every cell.")] = 0,
) -> None:
    """Prints return, leakage to ``strongest`` at batch 1, and that of an attacker at the limit."""
    torch.set_num_threads(1)
    print(f"{'defence':<26}{'return':>9}{'strongest':>11}{'limit':>9}")
    for template, levels in (("none", (None,)), *ARMS):
        for level in levels:
            training = trained(env, rounds, seed, template, level)
            training.run()
            audit = Audit.prepare(training.cell, training.captures, Knowledge())
            found = audit.run_attack(get_attack("strongest"), "strongest", "probe").record.targets
            leaked = float(np.mean([leakage(target) or 0.0 for target in found]))
            ceilings = [
                leakage_of(limit, t.scores["ra_prior"] or 0.0)
                for t in found
                if (limit := t.scores.get("limit_ra")) is not None
            ]
            name = template if level is None else template.format(level=f"{level:g}")
            line(name, training, leaked, float(np.mean(ceilings)) if level is not None else None)
            if template == "none":
                assert training.captures.reference is not None
                reference = training.captures.reference
    for level in MOVED:
        training = trained(env, rounds, seed, "none", None)
        for client in training.federation.clients:
            rng = numpy_generator(seed, "moved records", client.index)
            client.replay = MovedRecords(client.replay, level, rng)
        training.run()
        limit = moved_limit(reference, level)
        line(f"moved records, std {level:g}", training, None, limit)


if __name__ == "__main__":
    typer.run(main)
