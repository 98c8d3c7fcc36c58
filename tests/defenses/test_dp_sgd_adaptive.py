"""Adaptive clipping: the quantile it follows, what it costs, and that it survives a checkpoint."""

import math

import pytest
import torch

import defenses
from defenses import DefenseError


def clipped(gradients, norm):
    norms = gradients.norm(dim=1, keepdim=True)
    return gradients * (norm / (norms + 1e-6)).clamp(max=1.0)


def norm_of(session):
    return session.describe()[0]["clip_norm"]


@pytest.mark.parametrize("quantile", [0.25, 0.75])
def test_the_norm_settles_at_the_quantile(problem, quantile):
    norms = problem.per_sample_gradients().norm(dim=1)
    defense = defenses.parse(f"dp-sgd-adaptive=0.1@quantile={quantile}@count_noise=0.5")
    settled = []
    with problem.bind(defense) as session:
        for round_ in range(150):
            session.mean_release(problem.losses, problem.owner)
            session.end_round()
            if round_ >= 50:
                settled.append(norm_of(session))
    share = sum(float((norms <= norm).double().mean()) for norm in settled) / len(settled)
    assert share == pytest.approx(quantile, abs=0.05)


def test_each_round_clips_to_the_norm_that_it_states(problem):
    defense = defenses.parse("dp-sgd-adaptive=0@clip=0.5")
    gradients = problem.per_sample_gradients()
    with problem.bind(defense) as session:
        for _ in range(3):
            expected = problem.sums(clipped(gradients, norm_of(session))) / 8
            releases = session.release(problem.losses, problem.owner)
            torch.testing.assert_close(releases, expected, atol=1e-6, rtol=1e-5)
            session.end_round()
        assert norm_of(session) != 0.5


def test_gradient_and_count_together_spend_the_noise_multiplier():
    defense = defenses.parse("dp-sgd-adaptive=0.5@count_noise=2.0@clip=3.0")
    (stated,) = defense.describe(batch_size=8)
    on_gradient = stated["noise_std"] * 8 / 3.0
    # Two independent Gaussian mechanisms: their inverse variances, in sensitivities, add up. The
    # centred count has sensitivity 1/2.
    together = (on_gradient**-2 + (2.0 / 0.5) ** -2) ** -0.5
    assert together == pytest.approx(0.5)
    accountant = defense.accountant()
    assert accountant is not None
    assert accountant.noise_multiplier == 0.5


def test_probes_do_not_move_the_norm_and_a_checkpoint_keeps_it(problem):
    defense = defenses.parse("dp-sgd-adaptive=0.1")
    with problem.bind(defense) as session:
        session.mean_release(problem.losses, problem.owner)
        session.end_round()
        before = norm_of(session)
        session.release(problem.losses, problem.owner, batch_size=1)
        assert norm_of(session) == before
        saved = session.state()
    with problem.bind(defense) as session:
        assert norm_of(session) == 10.0
        session.load_state(saved)
        assert norm_of(session) == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dp-sgd-adaptive=4", "below twice count_noise"),
        ("dp-sgd-adaptive=0.1@quantile=1", "between 0 and 1"),
        ("dp-sgd-adaptive=0.1@clip=0", "0.001 to 1e6"),
        ("dp-sgd-adaptive=0.1@rate=nan", "above 0 and up to 1"),
        (f"dp-sgd-adaptive=0.1@count_noise={math.inf}", "finite number above 0"),
    ],
)
def test_options_out_of_range_are_one_line(text, says):
    with pytest.raises(DefenseError, match=says) as caught:
        defenses.parse(text)
    assert "\n" not in str(caught.value)
