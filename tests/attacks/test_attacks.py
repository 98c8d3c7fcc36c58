"""What each attack must achieve on real transitions."""

from __future__ import annotations

import statistics

import pytest
import torch
from torch import Tensor, nn

from attacks import Channel, Observation, Prior, Reconstruction, Transitions, get_attack
from attacks.conformance_problems import chain_problem
from attacks.matching import CROWD
from attacks.reference import Reference
from attacks.scores import score
from tests.attacks.conftest import Client, random_transitions


@pytest.fixture(scope="module")
def prior(hopper: Transitions) -> Prior:
    return Prior.fit(hopper[:300])


def state_action_error(answer: Reconstruction, truth: Transitions) -> float:
    ours = torch.cat([answer.transitions.state, answer.transitions.action], dim=1)
    true = torch.cat([truth.state, truth.action], dim=1)
    return float((ours - true).abs().max())


@pytest.mark.parametrize("layer_norm", [False, True])
def test_analytic_is_exact_for_one_record(
    hopper: Transitions, prior: Prior, layer_norm: bool
) -> None:
    client = Client.build(11, 3, layer_norm=layer_norm)
    for row in (400, 900, 1400):
        answer = get_attack("analytic").reconstruct(
            client.observe(hopper[row]), prior=prior, seed=0
        )
        assert state_action_error(answer, hopper[row]) < 1e-4
        assert answer.gme < 1e-3


def test_analytic_survives_clipping(hopper: Transitions, prior: Prior) -> None:
    client = Client.build(11, 3)
    clean = client.observe(hopper[700])
    clipped = Observation(
        client.model,
        {n: 0.03 * g for n, g in clean.gradient.items()},
        client.loss,
        1,
        clean.template,
        Channel.from_description([{"mechanism": "clip", "norm": 0.1}]),
    )
    answer = get_attack("analytic").reconstruct(clipped, prior=prior, seed=0)
    plain = get_attack("analytic").reconstruct(clean, prior=prior, seed=0)
    assert state_action_error(answer, hopper[700]) < 1e-4
    # The actor's gradient carries no target, so it gives the lost scale away.
    torch.testing.assert_close(
        answer.transitions.reward, plain.transitions.reward, rtol=1e-2, atol=1e-2
    )


def test_analytic_reads_the_surviving_entries_of_a_sparse_gradient(
    hopper: Transitions, prior: Prior
) -> None:
    client = Client.build(11, 3)
    clean = client.observe(hopper[700])
    threshold = clean.flat_gradient().abs().quantile(0.8)
    sparse = Observation(
        client.model,
        {n: torch.where(g.abs() > threshold, g, 0.0) for n, g in clean.gradient.items()},
        client.loss,
        1,
        clean.template,
        Channel.from_description([{"mechanism": "topk", "fraction": 0.2}]),
    )
    answer = get_attack("analytic").reconstruct(sparse, prior=prior, seed=0)
    errors = (answer.transitions.state - hopper[700].state).abs()[0]
    assert int((errors < 1e-3).sum()) >= 4


def test_analytic_solves_the_reward_given_the_next_state(hopper: Transitions, prior: Prior) -> None:
    truth = hopper[500]
    knowing = Prior.fit(hopper[:300], simulator=lambda s, a: (truth.next_state, truth.reward))
    client = Client.build(11, 3)
    answer = get_attack("analytic").reconstruct(client.observe(truth), prior=knowing, seed=0)
    torch.testing.assert_close(answer.transitions.reward, truth.reward, rtol=1e-3, atol=1e-3)


def test_analytic_says_why_it_cannot(hopper: Transitions) -> None:
    client = Client.build(11, 3)
    attack = get_attack("analytic")
    assert "mixes 2" in attack.unsupported(client.observe(hopper[:2]))
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 1))

    def loss(m: nn.Module, z: Transitions) -> Tensor:
        return (m(z.state[:, None]).squeeze(-1) - z.reward).square().mean()

    gradient = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    observation = Observation(model, gradient, loss, 1, hopper.template())
    assert "no released linear layer" in attack.unsupported(observation)
    with pytest.raises(ValueError, match="no released linear layer"):
        attack.reconstruct(observation, prior=Prior.none(hopper.template()), seed=0)


def test_analytic_finds_discrete_actions() -> None:
    problem = chain_problem()
    prior = Prior.none(problem.template)
    for row in range(8):
        answer = get_attack("analytic").reconstruct(problem.observe([row]), prior=prior, seed=0)
        truth = problem.transitions[row]
        assert torch.equal(answer.transitions.action, truth.action)
        torch.testing.assert_close(answer.transitions.state, truth.state, atol=1e-5, rtol=0.0)
        assert answer.transitions.reward.isnan().all()


def test_dlg_matches_an_undefended_gradient() -> None:
    client = Client.build(5, 2, hidden=32, layer_norm=False)
    observations = [
        client.observe(random_transitions(1, seed=k, dtype=torch.float32)) for k in range(5)
    ]
    prior = Prior.none(observations[0].template)
    attack = get_attack("dlg", iterations=600, restarts=6)
    answers = attack.reconstruct_many(observations, prior=prior, seed=0)
    assert statistics.median(a.gme for a in answers) < 0.02


def test_minibatches_are_matched_from_one_start(hopper: Transitions, prior: Prior) -> None:
    client = Client.build(11, 3, hidden=16)
    attack = get_attack("rgia", iterations=2, restarts=3)
    for size, starts in ((CROWD - 1, 3), (CROWD, 1)):
        rows = torch.arange(400, 400 + 10 * size, 10)
        answer = attack.reconstruct(client.observe(hopper[rows]), prior=prior, seed=0)
        assert len(answer.restarts) == starts


def test_rgia_reconstructs_hopper_at_batch_one(hopper: Transitions, prior: Prior) -> None:
    client = Client.build(11, 3)
    reference = Reference.fit(hopper[300:], template=hopper.template())
    rows = list(range(400, 2000, 160))
    answers = get_attack("rgia").reconstruct_many(
        [client.observe(hopper[row]) for row in rows], prior=prior, seed=0
    )
    scores = [score(a, hopper[r], prior, reference) for a, r in zip(answers, rows, strict=True)]
    assert statistics.median(s["ra"] or 0.0 for s in scores) > 0.8


def test_dynamics_regularisation_removes_pseudo_solutions(
    hopper: Transitions, prior: Prior
) -> None:
    client = Client.build(11, 3)
    observations = [client.observe(hopper[row]) for row in range(500, 1500, 200)]
    reference = Reference.fit(hopper[300:], template=hopper.template())
    errors = {}
    for name in ("dlg", "rgia"):
        answers = get_attack(name).reconstruct_many(observations, prior=prior, seed=0)
        scores = [
            score(a, hopper[r], prior, reference)
            for a, r in zip(answers, range(500, 1500, 200), strict=True)
        ]
        errors[name] = statistics.median(s["te"] or 0.0 for s in scores)
    assert errors["rgia"] < 0.5 * errors["dlg"]


def test_zero_prior_rgia_uses_no_prior_and_finds_fewer_pseudo_solutions_than_dlg(
    hopper: Transitions, prior: Prior
) -> None:
    client = Client.build(11, 3)
    rows = torch.arange(500, 1500, 200)
    observations = [client.observe(hopper[int(row)]) for row in rows]
    template = observations[0].template
    answers = {
        name: get_attack(name).reconstruct_many(observations, prior=Prior.none(template), seed=0)
        for name in ("dlg", "rgia-zero")
    }
    error = {
        name: statistics.median(
            float((answer.transitions.next_state - hopper[int(row)].next_state).norm())
            for answer, row in zip(found, rows, strict=True)
        )
        for name, found in answers.items()
    }
    assert error["rgia-zero"] < 0.5 * error["dlg"]
    informed, blind = (
        get_attack("rgia-zero", iterations=20).reconstruct(observations[0], prior=known, seed=0)
        for known in (prior, Prior.none(template))
    )
    assert torch.equal(informed.transitions.state, blind.transitions.state)


def test_an_attack_refuses_a_prior_without_what_it_needs(hopper: Transitions) -> None:
    observation = Client.build(11, 3).observe(hopper[0])
    with pytest.raises(ValueError, match="needs a prior with samples"):
        get_attack("rgia").reconstruct(observation, prior=Prior.none(hopper.template()), seed=0)
