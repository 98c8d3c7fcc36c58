"""Noise multipliers for a wanted epsilon, against the accountant that prints it."""

import pytest

from defenses import DefenseError
from defenses.accounting import Accountant
from defenses.calibration import noise_multiplier_for

RATES = [32 / (500 + round_) for round_ in range(1000)]


def spent(noise_multiplier, delta=1e-4):
    accountant = Accountant(noise_multiplier)
    for rate in RATES:
        accountant.step(rate)
    return accountant.epsilon(delta)


@pytest.mark.parametrize("epsilon", [0.5, 8.0])
def test_the_planned_rounds_spend_the_wanted_epsilon_and_no_more(epsilon):
    found = noise_multiplier_for(epsilon, 1e-4, RATES)
    assert 0.97 * epsilon <= spent(found) <= epsilon
    assert found == float(f"{found:.3g}")


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), float("inf")])
def test_epsilon_must_be_a_number_above_zero(epsilon):
    with pytest.raises(DefenseError, match="above 0"):
        noise_multiplier_for(epsilon, 1e-4, RATES)


def test_an_epsilon_that_no_noise_reaches_is_refused():
    with pytest.raises(DefenseError, match="out of reach"):
        noise_multiplier_for(1e-9, 1e-4, RATES)
