"""The ensemble keeps the most probable answer, without looking at the truth."""

from __future__ import annotations

import pytest
import torch

from attacks import Channel, Observation, Prior, Transitions, get_attack
from attacks.conformance_problems import chain_problem
from attacks.reference import Reference
from attacks.scores import score
from attacks.strongest import STANDARD
from tests.attacks.conftest import Client


@pytest.fixture(scope="module")
def prior(hopper: Transitions) -> Prior:
    return Prior.fit(hopper[:300])


def test_it_is_exact_for_one_record_and_for_a_batch(hopper: Transitions, prior: Prior) -> None:
    client = Client.build(11, 3, hidden=64, layer_norm=False)
    reference = Reference.fit(hopper[1200:], template=hopper.template())
    for rows in ([700], [700, 800, 900]):
        answer = get_attack("strongest").reconstruct(
            client.observe(hopper[rows]), prior=prior, seed=0
        )
        assert score(answer, hopper[rows], prior, reference)["ra"] == 1.0


def test_it_is_never_less_probable_than_its_members(hopper: Transitions, prior: Prior) -> None:
    client = Client.build(11, 3, hidden=64)
    clean = client.observe(hopper[900])
    generator = torch.Generator().manual_seed(0)
    noisy = Observation(
        client.model,
        {n: g + 0.1 * torch.randn(g.shape, generator=generator) for n, g in clean.gradient.items()},
        client.loss,
        1,
        clean.template,
        Channel(noise_std=0.1),
    )
    best = get_attack("strongest").reconstruct(noisy, prior=prior, seed=0)
    alone = get_attack("map").reconstruct(noisy, prior=prior, seed=0)
    assert best.objective <= alone.objective
    assert best.notes.startswith("by ")


def test_members_without_their_knowledge_are_left_out(hopper: Transitions) -> None:
    client = Client.build(11, 3, hidden=32)
    blind = Prior.none(hopper.template())
    answer = get_attack("strongest").reconstruct(client.observe(hopper[5]), prior=blind, seed=0)
    assert not answer.notes.startswith("by rgia")
    assert float((answer.transitions.state - hopper[5].state).abs().max()) < 1e-3


def test_it_decides_discrete_actions() -> None:
    problem = chain_problem()
    prior = Prior.fit(problem.transitions[100:], template=problem.template)
    for row in range(4):
        answer = get_attack("strongest").reconstruct(problem.observe([row]), prior=prior, seed=0)
        assert torch.equal(answer.transitions.action, problem.transitions[row].action)


def test_the_suite_is_frozen() -> None:
    assert STANDARD == ("analytic", "spear", "map", "rgia")
