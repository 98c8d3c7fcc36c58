import numpy as np
import pytest

from privguard.reporting.statistics import (
    Estimate,
    bootstrap_mean,
    bootstrap_ratio,
    bootstrap_share,
    seed_mean,
)


def _groups(seeds: int, items: int = 20, spread: float = 1.0) -> list[np.ndarray]:
    random = np.random.default_rng(seeds)
    return [random.normal(0.3 * seed % 1, spread, items) for seed in range(seeds)]


def test_the_interval_contains_the_mean_and_repeats_exactly():
    for seeds in (1, 2, 3, 8):
        estimate = bootstrap_mean(_groups(seeds))
        assert estimate == bootstrap_mean(_groups(seeds))
        assert estimate.low < estimate.mean < estimate.high


def test_the_interval_covers_a_known_mean_at_its_stated_rate():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        offsets = random.normal(0, 1, 12)
        estimate = bootstrap_mean([random.normal(offset, 1, 10) for offset in offsets])
        covered += estimate.low <= 0 <= estimate.high
    assert 0.87 <= covered / 300 <= 0.98


def test_the_interval_shrinks_with_seeds():
    random = np.random.default_rng(1)

    def width(seeds: int) -> float:
        estimate = bootstrap_mean([random.normal(random.normal(), 0.1, 10) for _ in range(seeds)])
        return estimate.high - estimate.low

    few, more, many = (np.mean([width(seeds) for _ in range(20)]) for seeds in (3, 12, 48))
    assert few > 1.3 * more > 1.3 * 1.5 * many


def test_every_seed_weighs_the_same():
    assert seed_mean([np.zeros(100), np.ones(1)]) == 0.5
    assert bootstrap_mean([np.zeros(100), np.ones(1)]).mean == 0.5


def test_nothing_measured_is_undefined():
    assert bootstrap_mean([]).mean is None
    assert bootstrap_mean([np.array([])]).mean is None


def test_a_single_observation_has_no_interval():
    alone, pair = np.array([3.0]), np.array([3.0, 5.0])
    assert bootstrap_mean([alone]) == Estimate(3.0)
    assert bootstrap_mean([alone, np.array([])]) == Estimate(3.0)
    assert bootstrap_mean([alone, np.array([5.0])]).low == 3.0
    assert bootstrap_ratio([alone], [pair], offset=0) == Estimate(0.75)
    assert bootstrap_ratio([pair], [alone], offset=0).low is None
    assert bootstrap_share([np.ones(1)]) == Estimate(1.0, pytest.approx(0.025), 1.0)


def test_a_share_without_hits_is_not_certain_to_be_zero():
    none = bootstrap_share([np.zeros(12), np.zeros(12)])
    assert (none.mean, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 24))
    every = bootstrap_share([np.ones(24)])
    assert (every.low, every.high) == (pytest.approx(0.025 ** (1 / 24)), 1.0)
    some = bootstrap_share([np.array([0.0, 1.0] * 10)])
    assert some.low < 0.5 < some.high
    assert bootstrap_share([]).mean is None


def test_pairing_removes_what_seeds_share():
    random = np.random.default_rng(2)
    shared = [1000.0 * (1 + seed) for seed in range(4)]
    reference = [random.normal(level, 5, 10) for level in shared]
    half = [values / 2 for values in reference]
    paired = bootstrap_ratio(half, reference, offset=0.0)
    crossed = bootstrap_ratio(half, reference[::-1], offset=0.0)
    assert paired.mean == pytest.approx(0.5)
    assert paired.high - paired.low < 0.02 < crossed.high - crossed.low


def test_the_reference_is_one_without_uncertainty():
    groups = _groups(3)
    shifted = [group + 100 for group in groups]
    estimate = bootstrap_ratio(shifted, shifted, offset=10.0)
    assert (estimate.mean, estimate.low, estimate.high) == (1.0, 1.0, 1.0)


def test_seeds_may_be_missing_on_either_side():
    reference = [np.full(5, 10.0), np.full(5, 20.0)]
    estimate = bootstrap_ratio([np.full(5, 10.0), np.array([])], reference, offset=0.0)
    assert estimate.mean == pytest.approx(10 / 15)
    assert estimate.low == pytest.approx(10 / 15)
    assert estimate.high == pytest.approx(1.0)


def test_a_reference_that_may_not_beat_idling_has_no_bounded_interval():
    reference = [np.array([-1.0, 4.0]), np.array([-3.0, 3.0])]
    estimate = bootstrap_ratio([np.ones(2), np.ones(2)], reference, offset=0.0)
    assert estimate.mean is not None
    assert estimate.low is None
    assert bootstrap_ratio(reference, [np.zeros(2)] * 2, offset=1.0).mean is None


def test_both_sides_must_list_the_same_seeds():
    with pytest.raises(ValueError, match="same seeds"):
        bootstrap_ratio([np.ones(2)], [], offset=0.0)
