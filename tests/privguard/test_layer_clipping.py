"""``map`` against Opacus' per-layer clipping as a client really applies it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attacks import Prior, get_attack
from attacks.bayes.problem import Problem
from attacks.bounds import record_information
from attacks.channel import Clipping
from attacks.gradients.linear_layers import dense_layers
from attacks.scores import score
from privguard.auditing import Audit
from privguard.knowledge import Knowledge
from privguard.spec import CellSpec
from privguard.training import CellTraining
from tests.privguard.tiny import tiny_budget, tiny_cell

CLIP = 0.5


@pytest.fixture(scope="module")
def ready() -> Audit:
    """Probes at the first and the last round of a short training under ``dp-sgd-layer``."""
    numbers = tiny_budget(rounds=100, warmup_steps=200, evaluations=1, episodes=1, probe_draws=2)
    cell = tiny_cell("hopper", defense=f"dp-sgd-layer={{level}}@clip={CLIP}", level=0.003)
    cell = CellSpec.model_validate(cell.model_dump() | {"budget": numbers.model_dump()})
    training = CellTraining(cell)
    training.run()
    training.close()
    return Audit.prepare(cell, training.captures, Knowledge())


@pytest.mark.parametrize("moment", [0, 1])
def test_map_knows_that_every_tensor_is_clipped(ready: Audit, moment: int) -> None:
    capture = ready.captures.captures[moment]
    probes = capture.releases["probe"]
    observations = [ready.observe(capture, probe, "probe") for probe in probes]
    truth = [probe.truth for probe in probes]
    first = observations[0]
    tensors = len(first.gradient)
    assert first.channel.clips == (Clipping(CLIP, per_tensor=True),)
    assert first.channel.noise_std == pytest.approx(0.003 * CLIP * tensors**0.5)

    layers = dense_layers(first)
    assert layers is not None
    problem = Problem.of(observations, layers, ready.prior)
    rewards = [problem.coordinates.equivalent_rewards(first, layers, z) for z in truth]
    points = [problem.coordinates.encode(z, r) for z, r in zip(truth, rewards, strict=True)]
    # At the truth the misfit is half a chi-square of as many degrees as there are numbers.
    whitened = torch.stack(points)
    misfit = problem.posterior(None).value(whitened) - 0.5 * whitened.flatten(1).square().sum(1)
    count = first.flat_gradient().numel()
    assert (misfit - count / 2).abs().max() < 5 * (count / 2) ** 0.5

    answers = get_attack("map").reconstruct_many(observations, prior=ready.prior, seed=0)
    scores = [
        score(a, z, ready.prior, ready.reference) for a, z in zip(answers, truth, strict=True)
    ]
    assert ready.captures.reference is not None
    population = Prior.fit(ready.captures.reference, template=ready.template)
    information = record_information(observations, truth, population)
    assert information is not None
    floor = float(information.floor().median())
    assert floor < 0.5
    assert np.median([s["nmse"] for s in scores]) < 1.5 * floor
