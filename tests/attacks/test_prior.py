from __future__ import annotations

import math

import torch

from attacks import Prior, Transitions
from attacks.conformance_problems import chain_problem


def test_the_transition_model_beats_persistence(hopper: Transitions) -> None:
    prior = Prior.fit(hopper[:300])
    test = hopper[300:]
    predicted = prior.predict(test.state, test.action)
    assert predicted is not None
    scale = test.next_state.std(dim=0)
    model = ((predicted[0] - test.next_state) / scale).square().mean()
    persistence = ((test.state - test.next_state) / scale).square().mean()
    assert float(model) < 0.5 * float(persistence)


def test_fitting_is_deterministic_and_leaves_the_global_generator_alone(
    hopper: Transitions,
) -> None:
    before = torch.get_rng_state()
    first, second = (Prior.fit(hopper[:50], seed=3) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    at = (hopper.state[:5], hopper.action[:5])
    assert torch.equal(first.transition(*at), second.transition(*at))


def test_covariance_is_positive_definite_even_with_few_samples(hopper: Transitions) -> None:
    for samples in (1, 3, 300):
        covariance = Prior.fit(hopper[:samples]).joint_covariance()
        assert float(torch.linalg.eigvalsh(covariance.double()).min()) > 0


def test_covariance_keeps_correlations_when_samples_are_many(hopper: Transitions) -> None:
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(5000, 1, generator=generator).repeat(1, 2)
    state[:, 1] += 0.5 * torch.randn(5000, generator=generator)
    z = Transitions(state, state[:, :1], state[:, 0], state, torch.zeros(5000))
    covariance = Prior.fit(z).joint_covariance()
    torch.testing.assert_close(covariance[0, 1], torch.tensor(1.0), rtol=0.1, atol=0.0)


def test_one_hot_states_and_discrete_actions() -> None:
    problem = chain_problem()
    prior = Prior.fit(problem.transitions[:120], template=problem.template)
    test = problem.transitions[120:]
    predicted = prior.transition(test.state, test.action)
    assert float((predicted.argmax(1) == test.next_state.argmax(1)).float().mean()) > 0.95
    weights = torch.nn.functional.one_hot(test.action, 2).float()
    torch.testing.assert_close(prior.transition(test.state, weights), predicted)
    assert prior.mean_transitions(3).action.dtype == torch.int64


def test_pixels_are_converted_to_floating_point() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (8, 1, 6, 6), generator=generator, dtype=torch.uint8)
    z = Transitions(frames, torch.arange(8) % 2, torch.zeros(8), frames, torch.zeros(8))
    prior = Prior.fit(z)
    assert prior.mean_transitions(2).state.shape == (2, 1, 6, 6)
    assert prior.mean_transitions(2).state.is_floating_point()
    assert prior.transition(frames, z.action).shape == frames.shape


def test_zero_knowledge_knows_ranges_only(hopper: Transitions) -> None:
    template = hopper.template(action_low=[0.0, -1.0, -math.inf], action_high=[1.0, 1.0, 1.0])
    prior = Prior.none(template)
    assert prior.grants == frozenset()
    assert prior.mean_transitions(1).action.tolist() == [[0.5, 0.0, 0.0]]
    assert prior.predict(hopper.state[:1], hopper.action[:1]) is None
