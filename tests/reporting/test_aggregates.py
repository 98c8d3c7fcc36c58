import numpy as np
import pytest

from privguard.reporting.aggregates import (
    interquartile_mean,
    paired_difference,
    performance_profile,
)
from privguard.reporting.statistics import Estimate, coverage_text


def _task(runs: int, shift: float = 0.0, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.normal(random.normal(shift), 0.1, 10) for _ in range(runs)]


def test_the_iqm_is_the_mean_of_the_middle_half_of_all_runs():
    tasks = [[np.array([value, value + 2.0])] * 1 for value in (5.0, 1.0, 100.0, -50.0)]
    # Run scores 6, 2, 101, -49: the largest and the smallest of four are left out.
    assert interquartile_mean(tasks).mean == pytest.approx(4.0)
    assert interquartile_mean([[np.ones(3) * value for value in (0.0, 3.0, 9.0)]]).mean == 4.0


def test_an_outlying_run_moves_the_mean_but_not_the_iqm():
    task = _task(8)
    broken = [*task[:-1], task[-1] * 0 + 1000.0]
    assert abs(interquartile_mean([broken]).mean - interquartile_mean([task]).mean) < 1.5


def test_the_bootstrap_is_stratified_over_tasks():
    # Two tasks far apart, no spread within: resampling within each leaves nothing to vary.
    tasks = [[np.full(2, 0.0)] * 4, [np.full(2, 10.0)] * 4]
    estimate = interquartile_mean(tasks)
    assert (estimate.low, estimate.mean, estimate.high) == (5.0, 5.0, 5.0)


def test_the_interval_covers_the_known_mean_at_its_stated_rate():
    covered = 0
    for trial in range(200):
        estimate = interquartile_mean([_task(12, seed=trial), _task(12, seed=1000 + trial)])
        covered += estimate.low <= 0 <= estimate.high
    assert 0.86 <= covered / 200 <= 0.99


def test_one_run_is_resampled_by_its_items_and_says_so():
    single = interquartile_mean([_task(1)])
    assert single.low < single.mean < single.high
    assert "not how another seed" in coverage_text(1)
    assert "too narrow" in coverage_text(3)
    assert "too narrow" not in coverage_text(10)


def test_a_single_item_has_no_interval():
    one, two = np.array([1.0]), np.array([1.0, 2.0])
    assert interquartile_mean([[one]]) == Estimate(1.0)
    assert paired_difference({0: two}, {0: one}) == Estimate(0.5)
    assert paired_difference({0: one}, {0: two}) == Estimate(-0.5)


def test_pairing_removes_what_a_seed_does_to_both():
    random = np.random.default_rng(0)
    controls = {seed: random.normal(100 * seed, 1, 10) for seed in range(5)}
    runs = {seed: values - 3 for seed, values in controls.items()}
    estimate = paired_difference(runs, controls)
    assert estimate.mean == pytest.approx(-3)
    assert estimate.high - estimate.low < 1e-6
    # A seed that only one of them has says nothing about a difference.
    assert paired_difference(runs | {9: np.zeros(3)}, controls) == estimate
    assert paired_difference({9: np.zeros(3)}, controls).mean is None


def test_one_shared_seed_still_has_the_episodes_uncertainty():
    estimate = paired_difference({0: np.array([1.0, 2.0])}, {0: np.array([0.0, 4.0])})
    assert estimate.mean == pytest.approx(-0.5)
    assert (estimate.low, estimate.high) == (-3.0, 2.0)


def test_a_profile_is_the_share_of_runs_above_each_threshold():
    thresholds = np.array([-1.0, 0.0, 0.5, 1.5, 3.0])
    task = [np.full(2, value) for value in (0.0, 1.0, 2.0, 2.0)]
    profile = performance_profile([task], thresholds)
    assert profile.share.tolist() == [1.0, 0.75, 0.75, 0.5, 0.0]
    assert np.all(profile.low <= profile.share)
    assert np.all(profile.share <= profile.high)
    assert (profile.low[3], profile.high[3]) == (0.0, 1.0)
    # Every task weighs the same, however many runs it has.
    both = performance_profile([task, [np.full(2, -5.0)]], thresholds)
    assert both.share.tolist() == [0.5, 0.375, 0.375, 0.25, 0.0]
    with pytest.raises(ValueError, match="needs a run"):
        performance_profile([[]], thresholds)
