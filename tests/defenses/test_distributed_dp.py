"""Noise in the ring: its law, the clipping before it, and what may be claimed of it."""

import math

import numpy as np
import pytest
import torch
from opacus.accountants import RDPAccountant
from scipy import stats

import defenses
from defenses import DefenseError
from defenses.client_accounting import ClientAccountant
from defenses.distributed_dp import DistributedDP

WIDTH = 20_000


def bound(new_generator, clients=4, parameters=WIDTH, seed=0, **options):
    options = {"noise_multiplier": 1.0} | options
    return DistributedDP(**options).bind(clients, parameters, new_generator(seed))


def zeros(clients=4, parameters=WIDTH):
    return torch.zeros(clients, parameters, dtype=torch.float64)


def variance_test(noise, deviation):
    """Two-sided p-value of the sum of squares being that of N(0, deviation^2)."""
    below = stats.chi2(len(noise)).cdf((noise**2).sum() / deviation**2)
    return 2 * min(below, 1 - below)


@pytest.mark.parametrize(
    ("clients", "options", "expected"),
    [
        # Four clients, three of which must answer: each adds a third, and four answer.
        (4, {}, 1.0 * math.sqrt(4 / 3)),
        (4, {"threshold": 1.0}, 1.0),
        (6, {"noise_multiplier": 0.05, "clip": 2.0}, 0.1 * math.sqrt(6 / 4)),
        (2, {"noise_multiplier": 30.0}, 30.0),
    ],
)
def test_the_sums_noise_is_gaussian_with_the_stated_deviation(
    new_generator, clients, options, expected
):
    protocol = bound(new_generator, clients, **options)
    noise = clients * protocol.aggregate(zeros(clients)).mean.numpy()
    assert stats.kstest(noise, stats.norm(0, expected).cdf).pvalue > 1e-3
    assert variance_test(noise, expected) > 1e-3
    # The test can tell: a deviation five per cent off is rejected.
    assert variance_test(noise, 0.95 * expected) < 1e-6
    assert variance_test(noise, 1.05 * expected) < 1e-6
    assert abs(np.corrcoef(noise[::2], noise[1::2])[0, 1]) < 4 / math.sqrt(WIDTH / 2)


def test_each_client_adds_its_own_share(new_generator):
    protocol = bound(new_generator)
    shares = protocol.noised_words(zeros()).view(np.int64) * protocol.encoding.step
    for share in shares:
        assert stats.kstest(share, stats.norm(0, 1 / math.sqrt(3)).cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(shares) - np.eye(4)).max() < 4.5 / math.sqrt(WIDTH)
    again = bound(new_generator).noised_words(zeros())
    assert np.array_equal(again.view(np.int64) * protocol.encoding.step, shares)
    other = bound(new_generator, seed=1).noised_words(zeros())
    assert not (other == again).any()


def test_those_who_drop_out_take_their_noise_with_them(new_generator):
    protocol = bound(new_generator, 5, 4000, dropout=0.3, threshold=0.6)
    seen = set()
    for _ in range(30):
        try:
            (view,) = protocol.aggregate(zeros(5, 4000)).views
        except defenses.ThresholdError:
            continue
        answered = len(view.members)
        seen.add(answered)
        expected = math.sqrt(answered / 3)
        assert stats.kstest(answered * view.mean, stats.norm(0, expected).cdf).pvalue > 1e-4
    assert seen >= {3, 4, 5}


@pytest.mark.parametrize("colluding", [1, 2])
def test_colluding_clients_leave_the_honest_share_as_described(new_generator, colluding):
    protocol = bound(new_generator)
    shares = protocol.noised_words(zeros()).view(np.int64) * protocol.encoding.step
    # The server knows the sum and what its accomplices put into it.
    left = shares.sum(axis=0) - shares[:colluding].sum(axis=0)
    honest = 4 - colluding
    assert left.std() == pytest.approx(math.sqrt(honest / 3), rel=0.02)
    assert "sqrt(h / t)" in DistributedDP(1.0).describe(1)["guarantee"]


def test_whole_releases_are_clipped_and_rounding_stays_inside(new_generator):
    protocol = bound(new_generator, noise_multiplier=0.0, clip=2.0)
    releases = torch.randn(4, WIDTH, generator=new_generator(3))
    releases[1] *= 1e-4
    words = protocol.noised_words(releases).view(np.int64)
    norms = [math.sqrt(sum(int(x) ** 2 for x in row)) * protocol.encoding.step for row in words]
    assert norms[1] == pytest.approx(releases[1].norm().item(), rel=1e-6)
    for norm in norms[:1] + norms[2:]:
        assert 2 - 1e-6 < norm <= 2
    expected = releases * (2 / releases.norm(dim=1, keepdim=True)).clamp_max(1)
    torch.testing.assert_close(protocol.mean(releases), expected.mean(0))


def test_a_release_that_is_not_finite_counts_as_zeros(new_generator):
    protocol = bound(new_generator, parameters=8, noise_multiplier=0.0)
    releases = torch.full((4, 8), 0.1)
    releases[0, 3] = torch.nan
    releases[1, 2] = -torch.inf
    torch.testing.assert_close(protocol.aggregate(releases).mean, torch.full((8,), 0.05))
    assert protocol.saturation_rate == 0.5


@pytest.mark.parametrize("noise_multiplier", [1e-4, 0.01, 1.0, 1e4])
@pytest.mark.parametrize("clip", [1e-3, 1.0, 100.0])
def test_the_noise_spans_enough_steps_for_the_proof(new_generator, noise_multiplier, clip):
    protocol = bound(new_generator, 100, 10, noise_multiplier=noise_multiplier, clip=clip)
    assert protocol.noise_std / protocol.encoding.step >= 2**32
    # And float64 draws are finer than a step.
    assert protocol.noise_std / protocol.encoding.step < 2**50


def test_rounded_and_discrete_gaussian_differ_as_little_as_the_docstring_says():
    s = 40.0  # steps; small enough for the difference to be seen in float64
    k = np.arange(-16 * 40, 16 * 40 + 1)
    discrete = np.exp(-(k**2) / (2 * s**2))
    discrete /= discrete.sum()
    inside = np.abs(k) <= 6 * 40  # beyond, differences of cumulative probabilities lose digits
    rounded = stats.norm.cdf(k + 0.5, scale=s) - stats.norm.cdf(k - 0.5, scale=s)
    x = np.log(rounded[inside] / discrete[inside])
    assert (x >= -1 / (8 * s**2) - 1e-7).all()
    assert (x <= k[inside] ** 2 / (24 * s**4) + 1e-7).all()


def test_epsilon_is_opacus_rdp_at_rate_one():
    for noise_multiplier, rounds in ((1.0, 1), (2.0, 50), (80.0, 20_000)):
        accountant = ClientAccountant(noise_multiplier)
        for _ in range(rounds):
            accountant.step(0.01)
        reference = RDPAccountant()
        reference.history = [(noise_multiplier, 1.0, rounds)]
        ours = accountant.epsilon(1e-5)
        # Opacus takes the best of a fixed list of orders, which may miss the best of all.
        assert 0 < ours <= reference.get_epsilon(1e-5) * 1.001
        # Never below the Gaussian mechanism's own epsilon (Balle and Wang 2018, theorem 8).
        ratio = math.sqrt(rounds) / noise_multiplier
        delta = stats.norm.cdf(ratio / 2 - ours / ratio) - math.exp(ours) * stats.norm.cdf(
            -ratio / 2 - ours / ratio
        )
        assert delta <= 1e-5


def test_the_accountant_keeps_its_state_and_its_edges():
    accountant = ClientAccountant(2.0)
    assert accountant.epsilon(1e-5) == 0
    accountant.step(1.0)
    copy = ClientAccountant(2.0)
    copy.load_state(accountant.state())
    assert copy.epsilon(1e-5) == accountant.epsilon(1e-5)
    with pytest.raises(ValueError, match="does not fit"):
        ClientAccountant(1.0).load_state(accountant.state())
    free = ClientAccountant(0.0)
    free.step(1.0)
    assert free.epsilon(1e-5) == math.inf
    with pytest.raises(ValueError, match="delta"):
        accountant.epsilon(0.0)


def test_the_pipeline_accounts_for_clients():
    accountant = defenses.parse("distributed-dp=2.0").accountant()
    assert isinstance(accountant, ClientAccountant)
    assert accountant.noise_multiplier == 2.0
    assert "client" in accountant.unit
    assert any("Honest clients" in line for line in accountant.assumptions())
    (described,) = defenses.parse("distributed-dp=2.0@clip=3").describe(clients=4)
    assert described["noise_std"] == pytest.approx(6 / math.sqrt(3))
    assert "noise_std" not in defenses.parse("distributed-dp=2.0").describe()[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distributed-dp=1@clip=0", "clipping norm must be above 0"),
        ("distributed-dp=1@clip=inf", "clipping norm must be above 0"),
        ("distributed-dp=1@dropout=1", "from 0 to below 1"),
        ("distributed-dp=1@threshold=0.4", "above 0.5 and up to 1"),
        ("distributed-dp=-1", "noise multiplier"),
        ("distributed-dp=1+secagg", "at most one aggregation stage"),
        ("dp-sgd=1+distributed-dp=1", "at most one stage with an accountant"),
    ],
)
def test_bad_options_are_one_line(text, message):
    with pytest.raises(DefenseError, match=message) as caught:
        defenses.parse(text)
    assert "\n" not in str(caught.value)


def test_noise_that_the_words_cannot_carry_is_refused(new_generator):
    with pytest.raises(DefenseError, match="64-bit words cannot carry"):
        bound(new_generator, noise_multiplier=1e-12)
