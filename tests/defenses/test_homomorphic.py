"""CKKS: exact fixed-point sums out of noisy ciphertexts."""

import sys

import numpy as np
import pytest
import torch
from scipy import stats

import defenses
from defenses import DefenseError
from defenses.homomorphic import SLOTS, Homomorphic
from privguard.grids import default_grids


def bound(new_generator, clients=4, parameters=5000, **options):
    pytest.importorskip("tenseal")
    return Homomorphic(**options).bind(clients, parameters, new_generator(0))


@pytest.mark.parametrize(("clients", "value_range"), [(2, 1.0), (4, 1024.0), (16, 1024.0)])
def test_the_mean_is_the_plain_one_within_half_a_step(new_generator, clients, value_range):
    protocol = bound(new_generator, clients, range=value_range)
    for magnitude in (1e-3, 0.1, 1.0):
        releases = torch.randn(clients, 5000, generator=new_generator(1), dtype=torch.float64)
        releases = (magnitude * value_range * releases).clamp(-value_range, value_range)
        aggregate = protocol.aggregate(releases)
        assert (aggregate.mean - releases.mean(0)).abs().max() <= protocol.error_bound
        assert torch.equal(aggregate.mean, protocol.mean(releases))
    # The sum of extremes that all agree, where encoding comes closest to the modulus.
    extreme = torch.full((clients, 5000), value_range, dtype=torch.float64)
    assert torch.equal(protocol.aggregate(extreme).mean, extreme[0])
    assert protocol.saturation_rate == 0
    assert protocol.error_bound <= value_range * 2.0**-38


def test_noise_stays_far_inside_a_step(new_generator):
    protocol = bound(new_generator)
    releases = torch.randn(4, 5000, generator=new_generator(1))
    protocol.aggregate(releases)
    # Half a step is at least 16 deviations of one slot's noise; 5,000 slots see 5 of them.
    assert 0 < protocol.largest_noise < 0.25


def test_noise_beyond_a_step_is_an_error(new_generator):
    protocol = bound(new_generator)
    protocol.encoding.fraction_bits += 10
    with pytest.raises(DefenseError, match="exceeds half a step"):
        protocol.aggregate(torch.randn(4, 5000, generator=new_generator(1)))


def test_the_server_has_no_key_and_sees_noise(new_generator):
    protocol = bound(new_generator)
    assert not protocol._server.has_secret_key()
    words = protocol.encoding.encode(torch.zeros(4, SLOTS))
    first, second = protocol.encrypt(words[0]), protocol.encrypt(words[0])
    assert first != second
    tenseal = pytest.importorskip("tenseal")
    with pytest.raises(ValueError, match="secret_key"):
        tenseal.ckks_vector_from(protocol._server, first[0]).decrypt()
    # The low bytes of two ciphertexts of the same zeros differ as two random ones would.
    difference = (
        np.frombuffer(first[0], np.uint8)[-100_000::8]
        ^ np.frombuffer(second[0], np.uint8)[-100_000::8]
    )
    assert stats.entropy(np.bincount(difference, minlength=256), base=2) > 7.9


def test_extremes_saturate_and_are_counted(new_generator):
    protocol = bound(new_generator, parameters=10, range=2.0)
    releases = torch.zeros(4, 10)
    releases[:, 0] = 1e30
    releases[0, 1] = torch.nan
    assert protocol.aggregate(releases).mean[:2].tolist() == [2.0, 0.0]
    assert protocol.saturation_rate == pytest.approx(5 / 40)


def test_stated_bytes_are_measured_bytes(new_generator):
    protocol = bound(new_generator)
    ciphertexts = protocol.encrypt(protocol.encoding.encode(torch.randn(4, 5000))[0])
    stated = defenses.parse("he").upload_bytes(5000)
    assert sum(map(len, ciphertexts)) == pytest.approx(stated, rel=0.01)


def test_without_tenseal_one_line_says_what_to_install(problem, monkeypatch):
    monkeypatch.setitem(sys.modules, "tenseal", None)
    with pytest.raises(DefenseError, match=r"^he needs TenSEAL: pip install privguard\[he\]$"):
        problem.bind(defenses.parse("he"))


def test_it_is_in_no_default_sweep():
    templates = [grid.template for grid in default_grids(4)]
    assert not any(template.startswith("he") for template in templates)
    assert "secagg={level}" in templates


@pytest.mark.parametrize("value", ["0", "-1", "inf", "1e9"])
def test_range_must_leave_resolution(value):
    with pytest.raises(DefenseError, match="range must be above 0"):
        defenses.parse(f"he@range={value}")
