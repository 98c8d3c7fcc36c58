"""The Bayes-optimal attack: exact without noise, near the floor with it, aware of its channel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attacks import Channel, Observation, Prior, Transitions, get_attack
from attacks.bounds import record_information
from attacks.reference import Reference
from attacks.scores import score
from tests.attacks.conftest import Client, noisy

ROWS = list(range(600, 2000, 90))


@pytest.fixture(scope="module")
def known(hopper: Transitions) -> tuple[Prior, Prior, Reference]:
    """The adversary's prior, the best Gaussian one, and the scores' reference; no target in any."""
    rest = [row for row in range(len(hopper)) if row not in ROWS]
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(1))
    shuffled = hopper[torch.tensor(rest)[order]]
    population = Prior.fit(shuffled[300:])
    reference = Reference.fit(shuffled[300:], template=hopper.template())
    return Prior.fit(shuffled[:300]), population, reference


@pytest.mark.parametrize("layer_norm", [False, True])
def test_map_is_exact_without_noise(
    hopper: Transitions, known: tuple[Prior, Prior, Reference], layer_norm: bool
) -> None:
    client = Client.build(11, 3, hidden=64, layer_norm=layer_norm)
    truth = hopper[ROWS[:4]]
    answers = get_attack("map").reconstruct_many(
        [client.observe(truth[k]) for k in range(4)], prior=known[0], seed=0
    )
    found = torch.cat([torch.cat([a.transitions.state, a.transitions.action], 1) for a in answers])
    true = torch.cat([truth.state, truth.action], dim=1)
    assert float((found - true).norm() / true.norm()) < 1e-5


@pytest.mark.parametrize("std", [0.01, 0.3])
def test_map_reaches_the_bayesian_floor(
    hopper: Transitions, known: tuple[Prior, Prior, Reference], std: float
) -> None:
    adversary, population, reference = known
    client = Client.build(11, 3, hidden=64)
    generator = torch.Generator().manual_seed(0)
    truth = [hopper[row] for row in ROWS]
    observations = [noisy(client, z, std, generator) for z in truth]
    answers = get_attack("map").reconstruct_many(observations, prior=adversary, seed=0)
    scores = [score(a, z, adversary, reference) for a, z in zip(answers, truth, strict=True)]
    information = record_information(observations, truth, population)
    assert information is not None
    floor = information.floor()
    errors = np.array([s["nmse"] for s in scores])
    assert np.median(errors) < 1.3 * np.median(floor.numpy())
    # A floor is a floor: no luck takes the mean of 16 targets to a third of it.
    assert errors.mean() > float(floor.mean()) / 3


def test_map_uses_the_clipping_norm(
    hopper: Transitions, known: tuple[Prior, Prior, Reference]
) -> None:
    client = Client.build(11, 3, hidden=64)
    clean = client.observe(hopper[900])
    norm = float(clean.flat_gradient().norm())
    generator = torch.Generator().manual_seed(0)
    std = 0.002 * norm / clean.flat_gradient().numel() ** 0.5
    observation = Observation(
        client.model,
        {
            n: 0.1 * g + 0.1 * std * torch.randn(g.shape, generator=generator)
            for n, g in clean.gradient.items()
        },
        client.loss,
        1,
        clean.template,
        Channel.from_description(
            [{"mechanism": "dp-sgd", "clip_norm": 0.1 * norm, "noise_std": 0.1 * std}]
        ),
    )
    answer = get_attack("map").reconstruct(observation, prior=known[0], seed=0)
    assert score(answer, hopper[900], known[0], known[2])["ra"] == 1.0


@pytest.mark.parametrize(
    "mechanism",
    [
        {"mechanism": "quantize", "bits": 4, "points": 15},
        {"mechanism": "topk", "fraction": 0.1},
    ],
)
def test_map_reads_codes_and_sparse_gradients(
    hopper: Transitions, known: tuple[Prior, Prior, Reference], mechanism: dict[str, object]
) -> None:
    adversary, _, reference = known
    client = Client.build(11, 3, hidden=64)
    rows = ROWS[:6]
    generator = torch.Generator().manual_seed(0)
    observations = []
    for row in rows:
        clean = client.observe(hopper[row])
        threshold = clean.flat_gradient().abs().quantile(0.9)
        gradient = {}
        for name, g in clean.gradient.items():
            if mechanism["mechanism"] == "topk":
                gradient[name] = torch.where(g.abs() >= threshold, g, 0.0)
            else:
                step = g.abs().max() / 7
                gradient[name] = (
                    step * (g / step + torch.rand(g.shape, generator=generator)).floor()
                )
        observations.append(
            Observation(
                client.model,
                gradient,
                client.loss,
                1,
                clean.template,
                Channel.from_description([mechanism]),
            )
        )
    answers = get_attack("map").reconstruct_many(observations, prior=adversary, seed=0)
    scores = [score(a, hopper[r], adversary, reference) for a, r in zip(answers, rows, strict=True)]
    assert np.median([s["nmse"] for s in scores]) < 0.05
    assert np.median([s["nmse_prior"] for s in scores]) > 0.3


def test_map_never_does_worse_than_the_prior_under_heavy_noise(
    hopper: Transitions, known: tuple[Prior, Prior, Reference]
) -> None:
    adversary, _, reference = known
    client = Client.build(11, 3, hidden=64)
    generator = torch.Generator().manual_seed(0)
    truth = [hopper[row] for row in ROWS]
    observations = [noisy(client, z, 30.0, generator) for z in truth]
    answers = get_attack("map").reconstruct_many(observations, prior=adversary, seed=0)
    scores = [score(a, z, adversary, reference) for a, z in zip(answers, truth, strict=True)]
    assert np.mean([s["nmse"] for s in scores]) < 1.05 * np.mean([s["nmse_prior"] for s in scores])
