"""How near ``map`` comes to the Bayesian floor under Gaussian noise.

    python tests/benchmarks/map_floor.py [--env hopper] [--rounds 2000] [--targets 50]
        [--hidden 256,256 --no-layer-norm] [--std 0.001]...

Attacks clean probes of an untrained federation and of one trained for some rounds, with noise added
to the same gradients, and prints medians and means over targets beside the prior-only error. A line
passes if the median error is at most 1.3 times the median floor, which is asked where that floor is
under half of the prior's variance, and at most the prior's own.

"depth" says whether a search could have ended better: how much more probable the point that it
found is than the true record, in nats, mean over targets; and beside it what that is where the
posterior is one Gaussian, half the number of unknowns. Searches that missed the main mode lie
below.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Annotated

import numpy as np
import torch
import typer

from attacks.attack import Reconstruction
from attacks.bayes.problem import Problem
from attacks.bounds import record_information
from attacks.channel import Channel
from attacks.gradients.linear_layers import dense_layers
from attacks.observation import Observation
from attacks.prior import Prior
from attacks.registry import get_attack
from attacks.scores import score
from attacks.transitions import Transitions
from privguard.auditing import Audit
from privguard.budgets import budget
from privguard.environments import environment_spec
from privguard.knowledge import Knowledge
from privguard.recipes import agent_settings
from privguard.seeding import torch_generator
from privguard.spec import CellSpec
from privguard.training import CellTraining

STDS = (1e-3, 1e-2, 1e-1, 1.0)
LARGEST_RATIO, WORTH_ASKING = 1.3, 0.5


def audit(env: str, rounds: int, targets: int, critic: dict[str, object] | None = None) -> Audit:
    """An undefended federation with ``targets`` probes or more at its first and at its last round.

    ``critic`` changes the environment's own settings.
    """
    smoke = budget("smoke", env).model_copy(
        update={
            "rounds": rounds,
            "warmup_steps": 1000,
            "evaluations": 1,
            "captures": (0.0, 1.0),
            "probe_draws": -(-targets // 4),
        }
    )
    agent = agent_settings(environment_spec(env), None).model_copy(update=critic or {})
    cell = CellSpec(env=env, budget=smoke, agent=agent)
    training = CellTraining(cell)
    training.run()
    training.close()
    return Audit.prepare(cell, training.captures, Knowledge())


def noisy(observations: list[Observation], std: float) -> list[Observation]:
    """The same gradients with noise; the server knows its law."""
    generator = torch_generator(0, "noise", int(1e6 * std))
    return [
        dataclasses.replace(
            o,
            gradient={
                name: g + std * torch.randn(g.shape, generator=generator)
                for name, g in o.gradient.items()
            },
            channel=Channel(noise_std=std),
        )
        for o in observations
    ]


def depth(
    ready: Audit,
    observations: list[Observation],
    truth: list[Transitions],
    answers: list[Reconstruction],
) -> float:
    """How much more probable the points found are than the true records, in nats, on average."""
    layers = dense_layers(observations[0])
    assert layers is not None
    problem = Problem.of(observations, layers, ready.prior)
    records = []
    for observation, z in zip(observations, truth, strict=True):
        reward = problem.coordinates.equivalent_rewards(observation, layers, z)
        records.append(Reconstruction(dataclasses.replace(z, reward=reward), 0.0, 0.0))
    found = [answer.objective for answer in answers]
    return float(problem.values(records).mean()) - float(np.mean(found))


def verdict(floor: float, error: float, blind: float) -> str:
    """What the medians say."""
    if error > blind:
        return "FAIL: above the prior's own error"
    if floor >= WORTH_ASKING:
        return "pass (floor not asked for)"
    return "pass" if error <= LARGEST_RATIO * floor else "FAIL: above the floor"


def main(
    env: Annotated[str, typer.Option(help="Environment.")] = "hopper",
    rounds: Annotated[int, typer.Option(help="Rounds of the trained federation.")] = 2000,
    targets: Annotated[int, typer.Option(help="Probes at each moment.")] = 50,
    hidden: Annotated[str, typer.Option(help="Units of hidden layers, else the recipe's.")] = "",
    layer_norm: Annotated[bool | None, typer.Option(help="Else the recipe's.")] = None,
    std: Annotated[list[float] | None, typer.Option(help="Noise; repeat for several.")] = None,
) -> None:
    """Prints one line a noise level and moment."""
    torch.set_num_threads(1)
    critic: dict[str, object] = {}
    if hidden:
        critic["hidden"] = tuple(int(width) for width in hidden.split(","))
    if layer_norm is not None:
        critic["layer_norm"] = layer_norm
    ready = audit(env, rounds, targets, critic)
    assert ready.captures.reference is not None
    population = Prior.fit(ready.captures.reference, template=ready.template)
    settings = ready.cell.agent
    print(
        f"{env}, {settings.hidden}, layer norm {settings.layer_norm}: medians over {targets} "
        f"probes of batch 1, {ready.prior.samples} prior samples"
    )
    print(
        f"{'networks':<12}{'std':>7}{'floor':>10}{'map':>10}{'ratio':>7}{'prior':>8}"
        f"{'mean floor':>12}{'mean map':>10}{'depth':>14}{'s/target':>10}  verdict"
    )
    for index, capture in enumerate(ready.captures.captures):
        probes = capture.releases["probe"][:targets]
        clean = [ready.observe(capture, probe, "probe") for probe in probes]
        truth = [probe.truth for probe in probes]
        for deviation in std or STDS:
            observations = noisy(clean, deviation)
            information = record_information(observations, truth, population)
            assert information is not None
            floor = information.floor().numpy()
            started = time.process_time()
            answers = get_attack("map").reconstruct_many(observations, prior=ready.prior, seed=0)
            seconds = (time.process_time() - started) / len(truth)
            scores = [
                score(a, z, ready.prior, ready.reference)
                for a, z in zip(answers, truth, strict=True)
            ]
            nats = depth(ready, observations, truth, answers)
            depths = f"{nats:.1f} / {(ready.template.continuous_size + 1) / 2:.1f}"
            error = np.array([s["nmse"] for s in scores])
            blind = np.array([s["nmse_prior"] for s in scores])
            print(
                f"{'untrained' if index == 0 else f'{rounds} rounds':<12}{deviation:>7g}"
                f"{np.median(floor):>10.2g}{np.median(error):>10.2g}"
                f"{np.median(error) / np.median(floor):>7.2f}{np.median(blind):>8.2f}"
                f"{floor.mean():>12.2g}{error.mean():>10.2g}{depths:>14}{seconds:>10.2f}  "
                f"{verdict(float(np.median(floor)), float(np.median(error)), np.median(blind))}",
                flush=True,
            )


if __name__ == "__main__":
    typer.run(main)
