"""The limits: closed forms, orderings and published values."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import Channel, Observation, Prior, Transitions, get_attack
from attacks.bounds import (
    RecordInformation,
    guo_bound,
    reconstruction_robustness,
    record_information,
)
from attacks.conformance_problems import chain_problem
from tests.attacks.conftest import Client


def information(hopper: Transitions, std: float, rows: list[int]) -> RecordInformation:
    client = Client.build(11, 3, hidden=32)
    observations = [
        Observation(
            client.model,
            client.observe(hopper[row]).gradient,
            client.loss,
            1,
            hopper.template(),
            Channel(noise_std=std),
        )
        for row in rows
    ]
    found = record_information(observations, [hopper[row] for row in rows], Prior.fit(hopper))
    assert found is not None
    return found


def test_floor_falls_from_the_prior_to_nothing(hopper: Transitions) -> None:
    rows = [500, 900, 1300]
    floors = [float(information(hopper, std, rows).floor().mean()) for std in (1e4, 1.0, 1e-2)]
    assert floors[0] == pytest.approx(1.0, abs=0.01)
    assert floors[0] > floors[1] > floors[2]
    assert floors[2] < 0.05


def test_no_floor_is_claimed_where_its_matrices_would_not_fit(hopper: Transitions) -> None:
    client, rows = Client.build(11, 3, hidden=32), hopper[:700]
    many = dataclasses.replace(client.observe(rows), channel=Channel(noise_std=1.0))
    assert record_information([many], [rows], Prior.fit(hopper)) is None
    assert "10,500 unknowns" in get_attack("map").unsupported(many)


def test_strict_floor_is_below_the_mean_of_local_ones(hopper: Transitions) -> None:
    found = information(hopper, 0.1, [500, 700, 900, 1100, 1300])
    assert found.strict_floor() <= float(found.floor().mean()) + 1e-9


def test_repeated_releases_equal_less_noise(hopper: Transitions) -> None:
    rows = [500, 900]
    once, less = information(hopper, 0.2, rows), information(hopper, 0.1, rows)
    torch.testing.assert_close(once.floor(releases=4), less.floor(), rtol=1e-3, atol=1e-6)


def test_expected_accuracy_rises_as_noise_falls(hopper: Transitions) -> None:
    accuracies = [
        float(information(hopper, std, [500, 900]).expected_accuracy().mean())
        for std in (1e4, 0.1, 1e-3)
    ]
    assert accuracies[0] == pytest.approx(0.08, abs=0.01)  # a tenth of a standard normal
    assert accuracies[0] < accuracies[1] < accuracies[2]


def test_no_floor_is_claimed_where_the_channel_is_not_gaussian(hopper: Transitions) -> None:
    client = Client.build(11, 3, hidden=32)
    clean = client.observe(hopper[5])
    coded = Observation(
        client.model,
        clean.gradient,
        client.loss,
        1,
        clean.template,
        Channel.from_description([{"mechanism": "quantize", "points": 3}]),
    )
    assert record_information([coded], [hopper[5]], Prior.fit(hopper)) is None
    chain = chain_problem()
    prior = Prior.fit(chain.transitions, template=chain.template)
    assert record_information([chain.observe([0])], [chain.transitions[0]], prior) is None


@pytest.mark.parametrize(
    ("sigma", "steps", "expected"),
    [(4, 1, 0.151), (2, 1, 0.217), (1, 1, 0.389), (0.5, 1, 0.764), (4, 16, 0.389)],
)
def test_reconstruction_robustness_closed_form(sigma: float, steps: int, expected: float) -> None:
    gamma = reconstruction_robustness(0.1, [(sigma, 1.0, steps)])
    assert gamma == pytest.approx(expected, abs=1e-3)
    # A rate just below one takes the other way, which may overstate the chance only.
    composed = reconstruction_robustness(0.1, [(sigma, 1 - 1e-9, steps)])
    assert gamma - 1e-8 <= composed <= gamma + 1e-3


def simulated_robustness(kappa: float, rounds: list[tuple[float, float, int]]) -> float:
    """Hayes, Mahloujifar and Balle 2023, algorithm 1: the likelihood ratio where a record is absent
    is drawn 400,000 times, and gamma is what its lowest part leaves."""
    rng = np.random.default_rng(0)
    total = np.zeros(400_000)
    for sigma, rate, count in rounds:
        for _ in range(count):
            x = sigma * rng.standard_normal(len(total))
            total += np.log1p(rate * np.expm1((2 * x - 1) / (2 * sigma**2)))
    ratios = np.sort(np.exp(total))
    return float(1 - ratios[: round((1 - kappa) * len(ratios))].sum() / ratios.sum())


@pytest.mark.parametrize(
    "rounds",
    [[(1.0, 0.05, 10)], [(0.6, 0.02, 5)], [(2.0, 0.3, 20)], [(1.0, 0.2, 6), (1.5, 0.05, 8)]],
)
def test_subsampled_rounds_agree_with_drawn_likelihood_ratios(
    rounds: list[tuple[float, float, int]],
) -> None:
    gamma = reconstruction_robustness(0.1, rounds)
    assert gamma == pytest.approx(simulated_robustness(0.1, rounds), abs=4e-3)
    halves = [(sigma, rate, part) for sigma, rate, n in rounds for part in (n // 2, n - n // 2)]
    assert reconstruction_robustness(0.1, halves) == pytest.approx(gamma, abs=1e-3)


def test_noise_too_small_to_count_leaves_the_chance_that_a_record_took_part() -> None:
    gamma = reconstruction_robustness(0.1, [(1e-3, 0.01, 3), (5.0, 0.01, 2)])
    assert gamma == pytest.approx(0.1 + 0.9 * (1 - 0.99**5))
    assert reconstruction_robustness(0.1, [(1e-3, 0.01, 60_000)]) == pytest.approx(1.0)
    assert reconstruction_robustness(0.1, []) == 0.1


@given(
    kappa=st.floats(0.001, 0.999),
    sigma=st.floats(0.1, 100),
    steps=st.integers(1, 1000),
    rate=st.sampled_from([1.0, 0.5, 0.01]),
)
@settings(max_examples=50, deadline=None)
def test_robustness_is_a_probability_above_the_blind_chance(
    kappa: float, sigma: float, steps: int, rate: float
) -> None:
    gamma = reconstruction_robustness(kappa, [(sigma, rate, steps)])
    assert kappa - 1e-6 <= gamma <= 1
    absent = (1 - rate) ** steps
    assert gamma <= kappa + (1 - kappa) * (1 - absent) + 1e-12


@given(st.floats(1e-3, 20))
def test_guo_bound(epsilon: float) -> None:
    assert guo_bound(epsilon) == pytest.approx(1 / (4 * (math.exp(epsilon) - 1)))
    assert guo_bound(epsilon, diameter=3.0) == pytest.approx(9 * guo_bound(epsilon))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="epsilon"):
        guo_bound(0.0)
    with pytest.raises(ValueError, match="kappa"):
        reconstruction_robustness(1.5, [(1.0, 1.0, 1)])
    with pytest.raises(ValueError, match="sample_rate"):
        reconstruction_robustness(0.5, [(1.0, 0.0, 1)])
