"""Ring arithmetic, masks and views of secure aggregation."""

import numpy as np
import pytest
import torch
from scipy import stats

import defenses
from defenses import DefenseError
from defenses.secure_aggregation import SecureAggregation


def aggregator(new_generator, clients=4, parameters=4096, seed=0, **options):
    return SecureAggregation(**options).bind(clients, parameters, new_generator(seed))


def test_the_sum_is_exact_in_the_ring(new_generator):
    protocol = aggregator(new_generator)
    words = np.random.default_rng(0).integers(0, 2**64, (4, 4096), dtype=np.uint64)
    total = words.sum(axis=0, dtype=np.uint64)
    uploads = protocol.masked_uploads(words.copy())
    assert np.array_equal(uploads.sum(axis=0, dtype=np.uint64), total)
    assert not (uploads == words).any()


def test_one_upload_looks_uniform(new_generator):
    protocol = aggregator(new_generator)
    uploads = protocol.masked_uploads(protocol.encode(torch.zeros(4, 4096)))
    for upload in uploads:
        counts = np.bincount(upload.view(np.uint8), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-3
    # So do partial sums: only a complete group has no mask left.
    partial = uploads[:3].sum(axis=0, dtype=np.uint64)
    assert stats.chisquare(np.bincount(partial.view(np.uint8), minlength=256)).pvalue > 1e-3


def test_masks_are_new_in_every_round_and_follow_the_seed(new_generator):
    zeros = torch.zeros(4, 64)

    def two_rounds(seed):
        protocol = aggregator(new_generator, parameters=64, seed=seed)
        return [protocol.masked_uploads(protocol.encode(zeros)) for _ in range(2)]

    first, second = two_rounds(0)
    assert not (first == second).any()
    assert np.array_equal(first, two_rounds(0)[0])
    assert not (first == two_rounds(1)[0]).any()


@pytest.mark.parametrize(("size", "groups"), [(None, [(0, 1, 2, 3)]), (2, [(0, 1), (2, 3)])])
def test_views_are_the_means_of_groups(new_generator, size, groups):
    releases = torch.randn(4, 4096, generator=new_generator(5))
    aggregate = SecureAggregation(size).bind(4, 4096, new_generator(0)).aggregate(releases)
    assert [view.members for view in aggregate.views] == groups
    for view in aggregate.views:
        expected = releases[list(view.members)].double().mean(0)
        assert (view.mean.double() - expected).abs().max() < 3e-7
    torch.testing.assert_close(aggregate.mean, releases.mean(0))


def test_fixed_point_is_exact_to_its_last_bit(new_generator):
    protocol = aggregator(new_generator)
    # 2^16 range, 4 clients: 62 - 18 fractional bits.
    assert protocol.fraction_bits == 44
    releases = torch.randn(4, 4096, generator=new_generator(1), dtype=torch.float64)
    mean = protocol.decode_mean(protocol.masked_uploads(protocol.encode(releases)))
    assert (mean - releases.mean(0)).abs().max() <= 2.0**-45


def test_extremes_saturate_without_wrapping_and_are_counted(new_generator):
    protocol = aggregator(new_generator, parameters=10, range=2.0)
    releases = torch.zeros(4, 10)
    releases[:, 0] = 1e30
    releases[:, 1] = -torch.inf
    releases[0, 2] = torch.nan
    releases[:, 3] = 2.0
    mean = protocol.aggregate(releases).mean
    assert mean[:4].tolist() == [2.0, -2.0, 0.0, 2.0]
    assert protocol.saturation_rate == pytest.approx(9 / 40)


def test_groups_must_divide_the_clients(problem):
    for text in ("secagg=3", "secagg=8"):
        with pytest.raises(DefenseError, match="do not divide"):
            problem.bind(defenses.parse(text))
    problem.clients = 1
    with pytest.raises(DefenseError, match="at least 2"):
        problem.bind(defenses.parse("secagg"))


@pytest.mark.parametrize("value", ["0", "-1", "inf", "nan", "1e30"])
def test_range_must_fit_the_ring(value):
    with pytest.raises(DefenseError, match="range must be above 0"):
        defenses.parse(f"secagg=2@range={value}")
