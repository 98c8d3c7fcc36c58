"""The first layers' answer weighed against the prior: exact without noise, better than either."""

from __future__ import annotations

import pytest
import torch

from attacks import Observation, Prior, Transitions, get_attack
from attacks.bayes.first_layer import shrunk_record
from attacks.bayes.posterior import received_by
from attacks.gradients.first_layers import first_layers
from tests.attacks.conftest import Client, noisy

ROWS = list(range(600, 2000, 70))


def _shrunk(observation: Observation, prior: Prior) -> torch.Tensor:
    """The record (K,) itself."""
    mean, factor = prior.whitening()
    received = received_by([observation])
    z = shrunk_record(
        {name: g[0] for name, g in received.gradient.items()},
        {name: p[0] for name, p in received.precision.items()},
        first_layers(observation),
        mean,
        factor,
    )
    return mean + factor @ z


@pytest.fixture(scope="module")
def prior(hopper: Transitions) -> Prior:
    rest = torch.tensor([row for row in range(len(hopper)) if row not in ROWS])
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(1))
    return Prior.fit(hopper[rest[order]][:300])


def _record(z: Transitions) -> torch.Tensor:
    return torch.cat([z.state.flatten(), z.action.flatten()]).double()


def test_without_noise_the_record_is_exact(hopper: Transitions, prior: Prior) -> None:
    client = Client.build(11, 3, hidden=64)
    generator = torch.Generator().manual_seed(0)
    truth = hopper[ROWS[0]]
    found = _shrunk(noisy(client, truth, 0.0, generator), prior)
    assert float((found - _record(truth)).norm() / _record(truth).norm()) < 1e-4


def test_under_noise_it_beats_the_closed_form_and_the_prior(
    hopper: Transitions, prior: Prior
) -> None:
    client = Client.build(11, 3, hidden=64)
    generator = torch.Generator().manual_seed(0)
    mean, factor = prior.whitening()
    errors = []
    for row in ROWS:
        observation = noisy(client, hopper[row], 0.1, generator)
        exact = get_attack("analytic").reconstruct(observation, prior=prior, seed=0).transitions
        answers = torch.stack([_shrunk(observation, prior), _record(exact), mean])
        away = torch.linalg.solve(factor, (answers - _record(hopper[row])).T)
        errors.append(away.square().mean(dim=0))
    shrunk, closed, blind = torch.stack(errors).median(dim=0).values.tolist()
    assert shrunk < 0.7 * closed
    assert shrunk < 0.7 * blind
