from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import Prior, Reconstruction, Transitions
from attacks.consistency import consistency
from attacks.reference import Reference
from attacks.scores import leakage, score
from tests.attacks.conftest import random_transitions

KNOWN = random_transitions(60, seed=1)
REFERENCE = Reference.fit(random_transitions(1500, seed=2), template=KNOWN.template())
PRIOR = Prior.fit(KNOWN)


def answer(z: Transitions, restarts: list[Transitions] | None = None) -> Reconstruction:
    return Reconstruction(z, objective=0.0, gme=0.0, restarts=restarts or [])


def test_the_truth_scores_perfectly() -> None:
    z = random_transitions(4, seed=3)
    scores = score(answer(z), z, PRIOR, REFERENCE)
    assert scores["ra"] == scores["identified"] == scores["reward_accuracy"] == 1.0
    assert scores["leakage"] == 1.0
    assert scores["nmse"] == scores["mse_next_state"] == 0.0


def test_the_priors_mean_scores_about_one_sigma_squared() -> None:
    truths = random_transitions(400, seed=4)
    blind = [
        score(answer(PRIOR.mean_transitions(1)), truths[i], PRIOR, REFERENCE) for i in range(400)
    ]
    for key in ("nmse_state", "nmse_action", "nmse_reward", "nmse_next_state", "nmse"):
        values = torch.tensor([float(s[key] or 0.0) for s in blind])
        assert 0.85 < float(values.mean()) < 1.2, key
    assert all(s["leakage"] == 0.0 for s in blind)
    assert sum(float(s["identified"] or 0.0) for s in blind) / 400 < 0.02
    assert blind[0]["ra"] == blind[0]["ra_prior"]


def test_the_real_environment_judges_dynamics_beside_the_adversarys_model() -> None:
    z = random_transitions(4, seed=3)

    def environment(state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return z.next_state + 3.0, z.reward

    scores = score(answer(z), z, PRIOR, REFERENCE, simulator=environment)
    assert scores["te_simulator"] == pytest.approx(3.0 * math.sqrt(5))
    assert scores["te"] != scores["te_simulator"]
    assert scores["te_simulator_prior"] is not None
    assert "te_simulator" not in score(answer(z), z, PRIOR, REFERENCE)


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(4)), st.floats(0.0, 2.0))
def test_scores_do_not_depend_on_the_order_of_rows(order: list[int], noise: float) -> None:
    z = random_transitions(4, seed=3)
    off = random_transitions(4, seed=5)
    guess = Transitions(
        z.state + noise * off.state,
        z.action,
        z.reward,
        z.next_state + off.reward[:, None],
        z.reward,
    )
    plain = score(answer(guess), z, PRIOR, REFERENCE)
    permuted = score(answer(guess[order]), z, PRIOR, REFERENCE)
    assert plain.keys() == permuted.keys()
    for key, value in plain.items():
        assert value == pytest.approx(permuted[key], rel=1e-9), key


@given(st.floats(0, 1), st.floats(0, 1))
def test_leakage_is_a_share(ra: float, ra_prior: float) -> None:
    value = leakage(ra, ra_prior)
    assert value is None or 0.0 <= value <= 1.0
    assert (value is None) == (ra_prior >= 1)


def test_unknown_fields_have_no_scores() -> None:
    z = random_transitions(2, seed=3)
    unknown = Transitions(
        z.state, z.action, z.reward * math.nan, z.next_state * math.nan, z.terminated
    )
    scores = score(answer(unknown), z, PRIOR, REFERENCE)
    assert scores["ra"] == 1.0
    for key in ("mse_reward", "nmse_reward", "reward_accuracy", "nmse_next_state", "te"):
        assert scores[key] is None
    nothing = Transitions(
        z.state * math.nan, z.action * math.nan, z.reward, z.next_state, z.terminated
    )
    scores = score(answer(nothing), z, PRIOR, REFERENCE)
    assert scores["ra"] is scores["identified"] is scores["leakage"] is None


def test_discrete_actions_are_right_or_wrong() -> None:
    base = random_transitions(900, seed=2)
    actions = torch.arange(900) % 3
    z = Transitions(base.state, actions, base.reward, base.next_state, base.terminated)
    reference = Reference.fit(z, template=z.template())
    prior = Prior.fit(z[:60], template=z.template())
    truth = z[:1]
    wrong = Transitions(
        truth.state, truth.action + 1, truth.reward, truth.next_state, truth.terminated
    )
    scores = score(answer(wrong), truth, prior, reference)
    assert scores["mse_action"] == 1.0
    assert scores["nmse_action"] == pytest.approx(1.5)
    assert scores["ra"] == pytest.approx(5 / 6)


def test_constant_coordinates_are_left_out() -> None:
    base = random_transitions(50, seed=2)
    state = torch.cat([base.state, torch.ones(50, 1)], dim=1)
    z = Transitions(state, base.action, base.reward, state, base.terminated)
    reference = Reference.fit(z, template=z.template())
    wrong = Transitions(
        z.state + torch.tensor([0, 0, 0, 0, 0, 9.0]), z.action, z.reward, z.state, z.terminated
    )
    scores = score(answer(wrong[:1]), z[:1], Prior.fit(z), reference)
    assert scores["ra"] == 1.0
    assert scores["nmse_state"] == 0.0


def test_restarts_that_agree_are_consistent() -> None:
    z = random_transitions(3, seed=3)
    off = random_transitions(3, seed=6)
    agreeing = [answer(z[i], [z[i], z[i]]) for i in range(3)]
    scores = consistency(agreeing, REFERENCE)
    assert scores["ed"] == pytest.approx(0.0)
    assert scores["ss"] == pytest.approx(1.0)
    assert scores["cd"] == pytest.approx(0.0, abs=1e-12)
    disagreeing = consistency([answer(z[i], [z[i], off[i]]) for i in range(3)], REFERENCE)
    assert disagreeing["ed"] is not None
    assert disagreeing["ed"] > 1.0
    assert consistency([answer(z[0])], REFERENCE) == {"ed": None, "ss": None, "cd": None}
