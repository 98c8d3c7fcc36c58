"""The floor is a floor: no attack beats it on records that follow the prior it assumes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attacks import Channel, Observation, Prior, Transitions, available_attacks, get_attack
from attacks.bounds import record_information
from tests.attacks.conftest import Client

TARGETS = 24
STD = 0.1
ATTACKS = sorted(name for name, info in available_attacks().items() if not info.ensemble)


def gaussian_records(hopper: Transitions, count: int, seed: int) -> Transitions:
    """Records of Hopper's own means and covariances, Gaussian and without an action box."""
    rng = np.random.default_rng(seed)
    columns = torch.cat([hopper.state, hopper.action], dim=1).double().numpy()
    drawn = rng.multivariate_normal(columns.mean(axis=0), np.cov(columns.T), size=count)
    rows = torch.from_numpy(drawn).float()
    state, action = rows[:, :11], rows[:, 11:]
    reward = torch.from_numpy(rng.standard_normal(count)).float()
    return Transitions(state, action, reward, state, torch.zeros(count))


@pytest.fixture(scope="module")
def noisy(hopper: Transitions) -> tuple[list[Observation], Transitions, Prior]:
    """Single records' releases under Gaussian noise, the records, and a prior of 2,000 others."""
    known, records = gaussian_records(hopper, 2000, 0), gaussian_records(hopper, TARGETS, 1)
    client = Client.build(11, 3, hidden=16)
    template = records.template(action_low=-10.0, action_high=10.0)
    generator = torch.Generator().manual_seed(2)
    observations = []
    for row in range(TARGETS):
        clean = client.observe(records[row : row + 1])
        gradient = {
            name: g + STD * torch.randn(g.shape, generator=generator)
            for name, g in clean.gradient.items()
        }
        observations.append(
            Observation(client.model, gradient, client.loss, 1, template, Channel(noise_std=STD))
        )
    return observations, records, Prior.fit(known, template=template)


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_is_below_the_floor(
    name: str, noisy: tuple[list[Observation], Transitions, Prior]
) -> None:
    observations, records, prior = noisy
    attack = get_attack(name)
    if attack.unsupported(observations[0]) or not set(attack.needs) <= prior.grants:
        pytest.skip("declines this release")
    found = record_information(
        observations, [records[row : row + 1] for row in range(TARGETS)], prior
    )
    assert found is not None
    floor = found.strict_floor()
    assert 0.01 < floor < 0.9
    answers = attack.reconstruct_many(observations, prior=prior, seed=0)
    sigma = prior.raw_std()
    true = torch.cat([records.state, records.action], dim=1)
    guessed = torch.cat(
        [torch.cat([a.transitions.state, a.transitions.action], dim=1) for a in answers]
    )
    errors = ((guessed - true) / sigma).square().mean(dim=1)
    standard_error = float(errors.std()) / TARGETS**0.5
    assert float(errors.mean()) >= floor - 3 * standard_error
