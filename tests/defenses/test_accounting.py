"""The accountant against Opacus, and its conservative rounding."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant

import defenses
from defenses.accounting import Accountant, round_up

# The oracle advises on its orders.
pytestmark = pytest.mark.filterwarnings("ignore:Optimal order is the")


def opacus(noise_multiplier, history, delta=1e-5):
    accountant = RDPAccountant()
    accountant.history = [(noise_multiplier, rate, steps) for rate, steps in history]
    return accountant.get_epsilon(delta)


@given(st.floats(1e-6, 1.0))
def test_rates_round_up_by_at_most_one_percent(rate):
    assert rate <= round_up(rate) <= min(1.0, rate * 1.0101)
    assert round_up(round_up(rate)) == round_up(rate)


@pytest.mark.parametrize("noise", [0.05, 0.3, 1.0, 8.0])
@pytest.mark.parametrize("rate", [0.001, 0.1, 1.0])
def test_constant_rate_matches_opacus_on_the_conservative_side(rate, noise):
    accountant = Accountant(noise)
    for _ in range(500):
        accountant.step(rate)
    exact = opacus(noise, [(rate, 500)])
    assert exact <= accountant.epsilon(1e-5) <= 1.05 * exact + 1e-9
    assert accountant.epsilon(1e-5) == pytest.approx(opacus(noise, [(round_up(rate), 500)]))


def test_growing_replay_stays_small_and_conservative():
    accountant = Accountant(1.5)
    rates = [32 / (500 + round_) for round_ in range(1000)]
    for rate in rates:
        accountant.step(rate)
    assert accountant.steps == 1000
    assert len(accountant.state()["history"]) < 120
    exact = opacus(1.5, [(rate, 20) for rate in rates[::20]])
    assert accountant.epsilon(1e-5) == pytest.approx(exact, rel=0.05)


def test_state_continues_a_run():
    one, other = Accountant(1.0), Accountant(1.0)
    for rate in (0.1, 0.05, 0.05):
        one.step(rate)
    other.load_state(one.state())
    other.step(0.02)
    one.step(0.02)
    assert other.epsilon(1e-5) == one.epsilon(1e-5)
    with pytest.raises(ValueError, match="does not fit"):
        Accountant(2.0).load_state(one.state())


def test_edge_cases():
    assert Accountant(1.0).epsilon(1e-5) == 0.0
    noiseless = Accountant(0.0)
    noiseless.step(0.1)
    assert noiseless.epsilon(1e-5) == math.inf
    tiny = Accountant(0.003)
    tiny.step(0.1)
    assert tiny.epsilon(1e-5) > 1e4
    for rate in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match="sample rate"):
            noiseless.step(rate)
    for delta in (0.0, 1.0):
        with pytest.raises(ValueError, match="delta"):
            noiseless.epsilon(delta)
    with pytest.raises(ValueError, match="noise multiplier"):
        Accountant(-1.0)


def test_only_defences_with_a_guarantee_account():
    assert defenses.parse("none").accountant() is None
    assert defenses.parse("gaussian=1.0+secagg").accountant() is None
    accountant = defenses.parse("dp-sgd=0.3+quantize=8").accountant()
    assert accountant is not None
    assert accountant.noise_multiplier == 0.3
    assert any("Poisson" in sentence for sentence in accountant.assumptions())
