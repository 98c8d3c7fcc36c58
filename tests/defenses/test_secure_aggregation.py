"""The defence: fixed point, groups, drop-outs and views."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import defenses
from defenses import DefenseError, ThresholdError
from defenses.secagg_protocol.encoding import FixedPoint
from defenses.secagg_protocol.groups import answers_needed
from defenses.secure_aggregation import SecureAggregation


def aggregator(new_generator, clients=4, parameters=4096, seed=0, **options):
    return SecureAggregation(**options).bind(clients, parameters, new_generator(seed))


numbers = st.one_of(st.floats(), st.sampled_from([65536.0, -65536.0, 3.5e38, -1e-320]))


@given(
    rows=st.integers(1, 3).flatmap(
        lambda width: st.lists(
            st.lists(numbers, min_size=width, max_size=width), min_size=1, max_size=9
        )
    ),
    spare=st.integers(0, 2**20),
    value_range=st.floats(2.0**-40, 2.0**40),
)
def test_no_sum_overflows_and_every_sum_is_exact(rows, spare, value_range):
    encoding = FixedPoint(value_range, terms=len(rows) + spare)
    words = encoding.encode(torch.tensor(rows, dtype=torch.float64))
    total = encoding.decode(words.sum(axis=0, dtype=np.uint64))
    step = Fraction(2) ** -encoding.fraction_bits
    for column, found in zip(zip(*rows, strict=True), total.tolist(), strict=True):
        clamped = [0.0 if x != x else max(-value_range, min(value_range, x)) for x in column]
        exact = sum(round(Fraction(x) / step) for x in clamped)
        assert abs(exact) + spare * (Fraction(value_range) / step + Fraction(1, 2)) < 2**63
        assert found == float(exact * step)
    outside = sum(not abs(x) <= value_range for row in rows for x in row)
    assert encoding.saturation_rate == pytest.approx(outside / np.size(rows))


def test_a_step_that_could_overflow_is_refused():
    assert FixedPoint(1.0, terms=4, fraction_bits=60).step == 2.0**-60
    with pytest.raises(ValueError, match="at most 60 do not"):
        FixedPoint(1.0, terms=4, fraction_bits=61)


def test_fixed_point_is_exact_to_its_last_bit(new_generator):
    protocol = aggregator(new_generator)
    # 2^16 range, 4 clients: 62 - 18 fractional bits.
    assert protocol.encoding.fraction_bits == 44
    assert protocol.error_bound == 2.0**-45
    releases = torch.randn(4, 4096, generator=new_generator(1), dtype=torch.float64)
    mean = protocol.aggregate(releases).mean
    assert (mean - releases.mean(0)).abs().max() <= protocol.error_bound


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


@pytest.mark.parametrize(("size", "groups"), [(None, [(0, 1, 2, 3)]), (2, [(0, 1), (2, 3)])])
def test_views_are_the_means_of_groups(new_generator, size, groups):
    releases = torch.randn(4, 4096, generator=new_generator(5))
    aggregate = SecureAggregation(size).bind(4, 4096, new_generator(0)).aggregate(releases)
    assert [view.members for view in aggregate.views] == groups
    for view in aggregate.views:
        expected = releases[list(view.members)].double().mean(0)
        assert (view.mean.double() - expected).abs().max() < 3e-7
    torch.testing.assert_close(aggregate.mean, releases.mean(0))


def test_the_mean_is_over_those_who_stayed(new_generator):
    releases = torch.randn(12, 64, generator=new_generator(5))
    protocol = SecureAggregation(6, dropout=0.2).bind(12, 64, new_generator(0))
    sizes, closed = [], 0
    for _ in range(60):
        try:
            aggregate = protocol.aggregate(releases)
        except ThresholdError:
            closed += 1
            continue
        members = [client for view in aggregate.views for client in view.members]
        torch.testing.assert_close(aggregate.mean, releases[members].mean(0))
        for view in aggregate.views:
            assert len({client // 6 for client in view.members}) == 1
            torch.testing.assert_close(view.mean, releases[list(view.members)].mean(0))
        sizes += [len(view.members) for view in aggregate.views]
    # One in five leaves at one of four steps; the last of them comes after the upload.
    assert min(sizes) == 4
    assert 5.0 < np.mean(sizes) < 5.8
    assert closed < 10


def test_drop_outs_follow_the_generator_and_are_the_same_without_masks(new_generator):
    releases = torch.randn(4, 16, generator=new_generator(5))

    def rounds(seed, mean_of):
        protocol = aggregator(new_generator, 4, 16, seed, dropout=0.3)
        found = []
        for _ in range(20):
            try:
                found.append(mean_of(protocol).tolist())
            except ThresholdError as error:
                found.append(str(error))
        return found

    masked = rounds(0, lambda protocol: protocol.aggregate(releases).mean)
    assert masked == rounds(0, lambda protocol: protocol.mean(releases))
    assert masked != rounds(1, lambda protocol: protocol.mean(releases))
    assert any(isinstance(outcome, str) for outcome in masked)


@pytest.mark.parametrize(
    ("size", "threshold", "needed"),
    [(2, 2 / 3, 2), (3, 2 / 3, 2), (4, 2 / 3, 3), (6, 2 / 3, 4), (4, 1.0, 4), (100, 0.51, 51)],
)
def test_how_many_must_answer(size, threshold, needed):
    assert answers_needed(size, threshold) == needed


def test_groups_must_divide_the_clients(problem):
    for text in ("secagg=3", "secagg=8"):
        with pytest.raises(DefenseError, match="do not divide"):
            problem.bind(defenses.parse(text))
    problem.clients = 1
    for text in ("secagg", "distributed-dp=1"):
        with pytest.raises(DefenseError, match="at least 2"):
            problem.bind(defenses.parse(text))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        *((f"range={value}", "range must be above 0") for value in ("0", "-1", "inf", "1e30")),
        *((f"dropout={value}", "from 0 to below 1") for value in ("-0.1", "1", "nan")),
        *((f"threshold={value}", "above 0.5 and up to 1") for value in ("0.5", "1.1", "nan")),
    ],
)
def test_options_out_of_range_are_refused_in_one_line(option, message):
    with pytest.raises(DefenseError, match=message) as caught:
        defenses.parse(f"secagg=2@{option}")
    assert option.partition("=")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_description_names_the_clients_of_a_sum():
    assert defenses.parse("secagg").describe()[0]["clients"] is None
    assert defenses.parse("secagg").describe(clients=6)[0]["clients"] == 6
    assert defenses.parse("secagg=2").describe(clients=6)[0]["clients"] == 2
