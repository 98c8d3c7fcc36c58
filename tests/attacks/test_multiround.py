"""Releases of many rounds give away what one release hides: rewards and next states."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attacks import Prior, Transitions
from attacks.multiround import History, reconstruct_history
from attacks.target_equations import Expectation, Uses, pin_down
from tests.attacks.conftest import Client

ROUNDS, BATCH, REPLAY = 40, 6, 60


def client_of_round(number: int) -> Client:
    """The networks of one client, a little further in each round."""
    client = Client.build(11, 3, hidden=64, layer_norm=False, seed=3)
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for model in (client.model, client.target):
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += 0.05 * parameter.std() * noise if parameter.numel() > 1 else 0
    client.frozen.load_state_dict(client.model["critic"].state_dict())
    return client


@pytest.fixture(scope="module")
def replay(hopper: Transitions) -> Transitions:
    """Some consecutive transitions."""
    return hopper[slice(300, 300 + REPLAY)]


@pytest.fixture(scope="module")
def history(hopper: Transitions, replay: Transitions) -> History:
    generator = torch.Generator().manual_seed(0)
    observations = []
    for number in range(ROUNDS):
        rows = torch.randperm(REPLAY, generator=generator)[:BATCH]
        observations.append(client_of_round(number).observe(replay[rows]))
    known = torch.randperm(300, generator=generator)[:20]
    return reconstruct_history(observations, prior=Prior.fit(hopper[known]), seed=0)


def truth_of(history: History, replay: Transitions) -> Transitions:
    ours = torch.cat([history.transitions.state, history.transitions.action], dim=1)
    theirs = torch.cat([replay.state, replay.action], dim=1)
    distance, index = torch.cdist(ours.double(), theirs.double()).min(dim=1)
    assert float(distance.max()) < 1e-3
    return replay[index]


def test_the_whole_replay_is_found_once_each(history: History, replay: Transitions) -> None:
    assert history.explained >= 0.8 * ROUNDS
    assert 0.9 * REPLAY <= len(history.uses) <= REPLAY
    assert int(history.uses.sum()) == history.explained * BATCH
    truth_of(history, replay)


def test_stitched_records_have_their_next_state_and_reward(
    history: History, replay: Transitions
) -> None:
    sure = history.stitched.nonzero().flatten()
    assert len(sure) >= 0.6 * len(history.uses)
    ours, theirs = history.transitions[sure], truth_of(history, replay)[sure]
    alive = theirs.terminated == 0
    right = (ours.next_state - theirs.next_state).abs().amax(dim=1)[alive] < 1e-4
    assert float(right.float().mean()) >= 0.95
    close = (ours.reward - theirs.reward).abs() < 1e-2
    assert float(close.float().mean()) >= 0.95


def test_it_is_deterministic_and_needs_samples(hopper: Transitions, replay: Transitions) -> None:
    observations = [client_of_round(n).observe(replay[slice(4 * n, 4 * n + 4)]) for n in range(3)]
    prior = Prior.fit(hopper[:20])
    first, second = (reconstruct_history(observations, prior=prior, seed=1) for _ in range(2))
    assert torch.equal(first.transitions.next_state, second.transitions.next_state)
    with pytest.raises(ValueError, match="samples"):
        reconstruct_history(observations, prior=Prior.none(observations[0].template), seed=1)


def test_a_release_that_cannot_be_explained_is_left_out(
    hopper: Transitions, replay: Transitions
) -> None:
    observation = client_of_round(0).observe(replay[:4])
    noisy = replace(
        observation, gradient={n: torch.ones_like(g) for n, g in observation.gradient.items()}
    )
    with pytest.raises(ValueError, match="no release"):
        reconstruct_history([noisy], prior=Prior.fit(hopper[:20]), seed=0)


def test_the_true_next_state_implies_the_true_reward_in_every_round(replay: Transitions) -> None:
    z = replay[:1]
    guess = replace(z, next_state=z.next_state + 0.1, terminated=torch.zeros(1))
    uses = _uses(z, guess, rounds=5)
    implied = uses.implied_rewards(z.next_state, torch.zeros(1))
    torch.testing.assert_close(implied, z.reward.expand(1, 5), rtol=0, atol=1e-5)
    wrong = uses.implied_rewards(guess.next_state, torch.zeros(1))
    assert float(wrong.detach().std()) > 1e-3


def test_targets_of_more_rounds_pin_the_next_state_down(replay: Transitions) -> None:
    errors = {}
    for rounds in (1, 20, 40):
        distances = []
        for row in range(0, REPLAY, 10):
            z = replay[slice(row, row + 1)]
            guess = replace(z, next_state=z.next_state + 0.1, terminated=torch.zeros(1))
            expected = Expectation(
                guess.next_state, torch.full((11,), 0.1), float(z.reward) + 0.3, 0.3
            )
            state, reward = pin_down(_uses(z, guess, rounds), expected)
            distances.append(float((state - z.next_state).norm()))
            assert abs(reward - float(z.reward)) < 0.6
        errors[rounds] = sum(distances) / len(distances)
    assert errors[40] < 0.1 * 0.1 * 11**0.5
    assert errors[40] < 0.1 * errors[1]
    assert errors[40] < errors[20] < errors[1]


def _uses(z: Transitions, guess: Transitions, rounds: int) -> Uses:
    """Appearances whose rewards make up for the wrong next state, as an attack's answers do."""
    clients = [client_of_round(number) for number in range(rounds)]
    rewards = []
    for client in clients:
        at = [_target(client, x) for x in (z, guess)]
        rewards.append(z.reward + at[0] - at[1])
    return Uses(
        [client.observe(z) for client in clients],
        Transitions.cat([replace(guess, reward=reward) for reward in rewards]),
        torch.full((rounds,), 1e-5, dtype=torch.float64),
    )


@torch.no_grad()
def _target(client: Client, z: Transitions) -> torch.Tensor:
    played = client.target["actor"](z.next_state)
    q1, q2 = client.target["critic"](torch.cat([z.next_state, played], dim=-1))
    return 0.99 * torch.minimum(q1, q2)
