from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from privguard.replay import Replay, ReplayShapes, stack

SHAPES = ReplayShapes((3,), torch.float32, (2,), torch.float32)


def filled(count: int, capacity: int = 100) -> Replay:
    replay = Replay(capacity, SHAPES)
    for i in range(count):
        replay.add(np.full(3, i), np.full(2, -i), float(i), np.full(3, i + 1), i % 10 == 9)
    return replay


def test_rows_come_back_as_they_went_in() -> None:
    z = filled(20).rows(np.array([4, 9]))
    assert z.state[:, 0].tolist() == [4, 9]
    assert z.action[:, 1].tolist() == [-4, -9]
    assert z.next_state[:, 2].tolist() == [5, 10]
    assert z.reward.tolist() == [4, 9]
    assert z.terminated.tolist() == [0, 1]


def test_the_oldest_transition_is_overwritten() -> None:
    replay = filled(12, capacity=10)
    assert replay.size == 10
    assert sorted(replay.rows(np.arange(10)).reward.tolist()) == list(range(2, 12))
    assert replay.recent_actions(3)[:, 0].tolist() == [-9, -10, -11]


def test_uniform_minibatches_have_the_size_asked_for() -> None:
    assert len(filled(20).sample(8, "uniform", np.random.default_rng(0))) == 8


def test_poisson_minibatches_include_each_row_independently() -> None:
    replay, rng = filled(100), np.random.default_rng(0)
    draws = [replay.sample(10, "poisson", rng) for _ in range(4000)]
    assert all(len(set(draw.tolist())) == len(draw) for draw in draws)
    sizes = np.array([len(draw) for draw in draws])
    expected = stats.binom(100, 0.1).pmf(np.arange(0, 25)) * len(draws)
    observed = np.bincount(sizes, minlength=25)[:25]
    common = expected > 5
    test = stats.chisquare(
        observed[common], expected[common] * observed[common].sum() / expected[common].sum()
    )
    assert test.pvalue > 0.001
    together = np.mean([7 in draw and 42 in draw for draw in map(set, draws)])
    assert together == pytest.approx(0.01, abs=0.006)


def test_poisson_takes_every_row_of_a_small_replay() -> None:
    assert len(filled(5).sample(8, "poisson", np.random.default_rng(0))) == 5


def test_trajectories_are_drawn_independently_and_give_one_row_each() -> None:
    replay, rng = Replay(100, SHAPES), np.random.default_rng(0)
    lengths = [1, 5, 30, 4]
    for trajectory, length in enumerate(lengths):
        for _ in range(length):
            replay.add(np.zeros(3), np.zeros(2), float(trajectory), np.zeros(3), False)
        if trajectory < 3:
            replay.end_trajectory()
    assert replay.units("poisson-trajectories") == 4, "the unfinished one counts"
    assert replay.sample_rate(1, "poisson-trajectories") == 0.25
    draws = [
        replay.rows(replay.sample(1, "poisson-trajectories", rng)).reward.int().tolist()
        for _ in range(4000)
    ]
    assert all(len(set(draw)) == len(draw) for draw in draws)
    shares = [np.mean([trajectory in draw for draw in draws]) for trajectory in range(4)]
    assert shares == pytest.approx([0.25] * 4, abs=0.025)
    assert np.mean([{0, 2} <= set(draw) for draw in draws]) == pytest.approx(1 / 16, abs=0.015)
    rows = np.concatenate([replay.sample(4, "poisson-trajectories", rng) for _ in range(2000)])
    inside = np.bincount(rows, minlength=40)[6:36]
    assert stats.chisquare(inside).pvalue > 0.001, "every row of a trajectory is as likely"


def test_an_ended_trajectory_counts_until_its_last_row_is_overwritten() -> None:
    replay = Replay(10, SHAPES)
    for i in range(16):
        replay.add(np.zeros(3), np.zeros(2), float(i // 4), np.zeros(3), False)
        if i % 4 == 3:
            replay.end_trajectory()
    assert replay.units("poisson-trajectories") == 3, "rows 6 to 15: half of one, and two"
    held = Replay(10, SHAPES)
    held.restore(replay.tensors(), replay.added)
    for each in (replay, held):
        rows = each.sample(3, "poisson-trajectories", np.random.default_rng(1))
        assert sorted(each.rows(rows).reward.tolist()) == [1, 2, 3]


def test_stacking_says_whose_each_row_is_even_for_an_empty_minibatch() -> None:
    batch, owner = stack(
        [filled(5), filled(5), filled(5)], [np.array([0, 1]), np.array([], int), np.array([4])]
    )
    assert owner.tolist() == [0, 0, 2]
    assert batch.reward.tolist() == [0, 1, 4]
