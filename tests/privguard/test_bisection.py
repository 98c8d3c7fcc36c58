"""The search for break points, on measurements whose truth is known."""

from __future__ import annotations

import math

import pytest

from privguard.bisection import LevelAxis, more_seeds, next_measurement
from privguard.reporting.break_points import LevelPoint, Threshold, locate

LEAKAGE = Threshold("leakage", 0.1)
REWARD = Threshold("reward", 0.95)
GAUSSIAN = LevelAxis(grid=(1e-5, 1e-3, 0.1, 10.0), private_end="high")


class World:
    """A defence whose quantity crosses its threshold at ``breaks``, measured with some noise."""

    def __init__(self, breaks: float, threshold: Threshold, axis: LevelAxis, noise: float) -> None:
        self.breaks, self.threshold, self.axis, self.noise = breaks, threshold, axis, noise
        self.seeds = dict.fromkeys(axis.grid, 2)

    def point(self, level: float) -> LevelPoint:
        sign = 1 if self.axis.private_end == "high" else -1
        # Decades beyond the break point; leakage and reward both fall there.
        beyond = sign * math.log10(level / self.breaks)
        mean = self.threshold.value - 0.2 * beyond
        half = self.noise / math.sqrt(self.seeds[level])
        return LevelPoint(level, self.seeds[level], True, mean, mean - half, mean + half)

    def points(self) -> list[LevelPoint]:
        high = self.axis.private_end == "high"
        return [self.point(level) for level in sorted(self.seeds, reverse=not high)]

    def settle(self, max_seeds: int = 10) -> int:
        """Measures what is asked for until nothing is; the number of cells it took."""
        cells = 0
        for _ in range(100):
            step = next_measurement(
                self.points(), self.threshold, self.axis, seeds=2, max_seeds=max_seeds
            )
            if step is None:
                return cells
            before = self.seeds.get(step.level, 0)
            assert step.seeds > before, "a step must add something"
            cells += step.seeds - before
            self.seeds[step.level] = step.seeds
        raise AssertionError("the search does not end")

    def bracket(self) -> tuple[float, float]:
        crossing = locate(self.points(), self.threshold)
        assert crossing.weak is not None
        assert crossing.strong is not None
        return crossing.weak.level, crossing.strong.level


@pytest.mark.parametrize("threshold", [LEAKAGE, REWARD])
@pytest.mark.parametrize("breaks", [2.3e-5, 7e-4, 0.05, 0.9, 8.7])
def test_a_bracket_closes_around_the_break_point(breaks: float, threshold: Threshold) -> None:
    world = World(breaks, threshold, GAUSSIAN, noise=0.001)
    cells = world.settle()
    weak, strong = world.bracket()
    assert weak <= breaks <= strong
    assert strong / weak <= 1.5
    # Four halvings of a factor of 100 with two seeds each, then a third seed at both ends.
    assert cells <= 4 * 2 + 2


def test_where_the_low_end_is_private_the_search_runs_the_other_way() -> None:
    axis = LevelAxis(grid=(10.0, 0.1), private_end="low")
    world = World(0.7, LEAKAGE, axis, noise=0.001)
    world.settle()
    weak, strong = world.bracket()
    assert strong <= 0.7 <= weak <= 1.5 * strong


def test_wide_intervals_get_seeds_up_to_the_limit() -> None:
    noisy = World(0.9, REWARD, GAUSSIAN, noise=0.04)
    noisy.settle(max_seeds=10)
    weak, strong = noisy.bracket()
    assert max(noisy.seeds[weak], noisy.seeds[strong]) == 10
    assert noisy.seeds[1e-5] == 2, "seeds belong at the bracket alone"
    calm = World(0.9, REWARD, GAUSSIAN, noise=0.002)
    calm.settle()
    assert {calm.seeds[level] for level in calm.bracket()} == {3}


def test_whole_numbers_stop_at_neighbours() -> None:
    bits = LevelAxis((8, 2, 1), "low", minimum=1, maximum=16, whole_numbers=True)
    world = World(5.5, LEAKAGE, bits, noise=0.001)
    world.settle()
    assert world.bracket() == (6, 5)
    assert all(level == int(level) for level in world.seeds)


def test_a_grid_that_ends_too_early_is_left_by_two_decades_at_most() -> None:
    world = World(300.0, LEAKAGE, GAUSSIAN, noise=0.001)
    world.settle()
    weak, strong = world.bracket()
    assert weak <= 300 <= strong <= 1.5 * weak
    far = World(1e6, LEAKAGE, GAUSSIAN, noise=0.001)
    far.settle()
    assert max(far.seeds) == 1000
    assert locate(far.points(), LEAKAGE).strong is None
    early = World(2e-7, REWARD, GAUSSIAN, noise=0.001)
    early.settle()
    low, high = early.bracket()
    assert low <= 2e-7 <= high <= 1.5 * low


def test_bounds_of_a_level_are_respected() -> None:
    clients = LevelAxis((2, 4), "high", minimum=2, maximum=4, whole_numbers=True)
    world = World(100.0, LEAKAGE, clients, noise=0.001)
    world.settle()
    assert sorted(world.seeds) == [2, 4]
    groups = LevelAxis((2, 12), "high", 2, 12, True, accepts=lambda level: 12 % level == 0)
    divided = World(4.5, LEAKAGE, groups, noise=0.001)
    divided.settle()
    assert divided.bracket() == (4, 6)
    fraction = LevelAxis((0.1, 0.001), "low", maximum=1.0)
    kept = World(3.0, REWARD, fraction, noise=0.001)
    kept.settle()
    assert max(kept.seeds) == 1.0


def test_the_grid_is_not_left_before_its_end_is_certain() -> None:
    points = [LevelPoint(level, 1, True, 0.5, 0.4, 0.6) for level in GAUSSIAN.grid]
    step = next_measurement(points, REWARD, GAUSSIAN, seeds=1, max_seeds=10)
    assert step is not None
    assert (step.level, step.seeds) == (1e-5, 3)
    step = next_measurement(points, REWARD, GAUSSIAN, seeds=1, max_seeds=1)
    assert step is not None
    assert step.level == 1e-6


def test_a_broken_policy_has_lost_its_reward_and_costs_no_more_seeds() -> None:
    points = [
        LevelPoint(1.0, 3, True, 1.0, 0.99, 1.01),
        LevelPoint(1.4, 3, False, None, None, None),
    ]
    assert next_measurement(points, REWARD, GAUSSIAN, seeds=3, max_seeds=10) is None


def test_chance_that_crosses_twice_promises_less() -> None:
    means = (0.5, 0.05, 0.3, 0.02)
    points = [
        LevelPoint(level, 3, True, mean, mean, mean)
        for level, mean in zip(GAUSSIAN.grid, means, strict=True)
    ]
    leaking = locate(points, LEAKAGE)
    assert leaking.weak is not None
    assert leaking.weak.level == 0.1
    losing = locate(points, Threshold("reward", 0.4))
    assert losing.strong is not None
    assert losing.strong.level == 1e-3


def test_seeds_grow_by_half_to_the_limit() -> None:
    assert [more_seeds(n, 10) for n in (1, 2, 3, 4, 6, 9, 10)] == [3, 3, 4, 6, 9, 10, 10]
