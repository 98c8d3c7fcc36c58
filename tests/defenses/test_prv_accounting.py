"""Opacus' PRV analysis behind a guard: against Opacus itself, against RDP, and where it stops."""

import math

import pytest
from opacus.accountants import PRVAccountant as OpacusPRV

import defenses
from defenses.accounting import RATE_GRID, Accountant
from defenses.prv_accounting import PRVAccountant

DELTA = 1e-5


def after(accountant, rates):
    for rate in rates:
        accountant.step(rate)
    return accountant


@pytest.mark.parametrize("noise", [0.8, 2.0])
def test_a_constant_rate_gives_what_opacus_gives(noise):
    rate = math.exp(-450 * RATE_GRID)  # on the grid of rates, so that nothing is rounded
    ours = after(PRVAccountant(noise), [rate] * 400)
    oracle = after_opacus(noise, [rate] * 400)
    assert ours.accounted_by(DELTA) == "PRV (Opacus)"
    # Both bounds lie above the truth by at most twice their allowed errors.
    assert ours.epsilon(DELTA) == pytest.approx(oracle, abs=0.05, rel=0.03)


def after_opacus(noise, rates):
    accountant = OpacusPRV()
    for rate in rates:
        accountant.step(noise_multiplier=noise, sample_rate=rate)
    return accountant.get_epsilon(DELTA)


def test_a_growing_replay_spends_less_than_rdp_says_and_more_than_opacus_says():
    rates = [32 / (500 + 20 * (round_ // 20)) for round_ in range(600)]
    prv, rdp = after(PRVAccountant(1.0), rates), after(Accountant(1.0), rates)
    exact = after_opacus(1.0, rates)
    assert exact - 0.02 <= prv.epsilon(DELTA) < 0.98 * rdp.epsilon(DELTA)
    assert prv.epsilon(DELTA) == pytest.approx(exact, rel=0.06)


def test_with_little_noise_the_grid_would_not_fit_and_rdp_stands():
    rates = [0.05] * 500
    prv, rdp = after(PRVAccountant(0.05), rates), after(Accountant(0.05), rates)
    assert prv.epsilon(DELTA) == rdp.epsilon(DELTA)
    assert prv.accounted_by(DELTA) == "RDP (Opacus; PRV's grid would be too large)"


def test_no_round_no_noise_and_every_record_every_round():
    assert PRVAccountant(1.0).epsilon(DELTA) == 0.0
    assert after(PRVAccountant(0.0), [0.1]).epsilon(DELTA) == float("inf")
    always = after(PRVAccountant(2.0), [1.0] * 4)
    # Four Gaussian mechanisms of noise 2 are one of noise 1: Balle and Wang 2018, exactly 4.38.
    assert 4.37 < always.epsilon(DELTA) < 4.6 < after(Accountant(2.0), [1.0] * 4).epsilon(DELTA)


def test_dp_sgd_chooses_its_analysis():
    assert isinstance(defenses.parse("dp-sgd=1@accounting=prv").accountant(), PRVAccountant)
    assert type(defenses.parse("dp-sgd=1").accountant()) is Accountant
    with pytest.raises(defenses.DefenseError, match="accounting=gdp: the analysis must be rdp or"):
        defenses.parse("dp-sgd=1@accounting=gdp")


def test_rounds_of_different_noise_are_composed_at_the_least_of_it():
    mixed = PRVAccountant(2.0, factor=0.8, every=100)
    after(mixed, [0.01] * 400)
    constant, weakest = (after(PRVAccountant(noise), [0.01] * 400) for noise in (2.0, 1.0))
    assert constant.epsilon(DELTA) < mixed.epsilon(DELTA) < weakest.epsilon(DELTA)
