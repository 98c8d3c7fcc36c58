"""Atari and car racing as a learner meets them, and a replay that stores every frame once."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import defenses
from attacks import Transitions
from attacks.observation import gradient_matching_error
from privguard.agents.networks import initialise, nature_cnn
from privguard.auditing import Audit
from privguard.checkpoints import Checkpoint, restore, take_checkpoint
from privguard.environments import make_environment, make_learning_environment
from privguard.knowledge import Knowledge
from privguard.replay import Replay, ReplayShapes
from privguard.spec import CellSpec
from privguard.training import CellTraining
from privguard.worlds.atari import ShrunkScreens, area_average
from privguard.worlds.car_racing import FastCarRacing
from privguard.worlds.frame_stacks import FrameStacks
from tests.privguard.tiny import tiny_budget, tiny_cell

FRAMES = ReplayShapes((4, 6, 5), torch.uint8, (), torch.int64)


def play(env: gym.Env, steps: int, seed: int = 0) -> list[tuple]:
    """Transitions under random actions; a new episode at each end."""
    rng = np.random.default_rng(seed)
    assert isinstance(env.action_space, gym.spaces.Discrete)
    state, _ = env.reset(seed=seed)
    seen = []
    for _ in range(steps):
        action = rng.integers(env.action_space.n)
        after, reward, terminated, truncated, info = env.step(action)
        seen.append((state, action, reward, after, terminated, info))
        state = env.reset(seed=seed + 1)[0] if terminated or truncated else after
    return seen


@pytest.mark.parametrize("name", ["pong", "qbert", "breakout", "seaquest", "carracing"])
def test_states_are_four_grey_frames_that_shift_by_one(name: str) -> None:
    env = make_environment(name)
    for state, _, _, after, _, _ in play(env, 12):
        assert state.shape == (4, 84, 84)
        assert state.dtype == np.uint8
        assert np.array_equal(state[1:], after[:-1])
    assert np.ptp(after) > 50
    assert env.observation_space.contains(after)
    env.close()


def test_the_area_average_keeps_the_mean_and_ales_own_shrinking_agrees() -> None:
    weights = area_average(210, 84)
    assert np.allclose(weights.sum(axis=1), 1)
    assert np.allclose(weights.sum(axis=0), 84 / 210)
    from ale_py.vector_env import AtariVectorEnv

    theirs = AtariVectorEnv("pong", num_envs=1, noop_max=0, repeat_action_probability=0.0)
    theirs.reset(seed=0)
    ours = ShrunkScreens(
        gym.make("ALE/Pong-v5", obs_type="grayscale", frameskip=1, repeat_action_probability=0.0)
    )
    ours.reset(seed=0)
    for _ in range(60):
        mine = ours.step(2)[0]
        their = theirs.step(np.array([2]))[0][0, -1]
        # Theirs starts a frame earlier, so ball and rackets are elsewhere: a few dozen pixels.
        assert (np.abs(mine.astype(int) - their.astype(int)) <= 1).mean() > 0.995


def test_clients_learn_from_clipped_rewards_and_evaluation_sees_the_score() -> None:
    score = [step[2] for step in play(make_environment("qbert", "ram"), 500)]
    learnt = [step[2] for step in play(make_learning_environment("qbert", "ram"), 500)]
    assert max(score) > 1
    assert learnt == np.clip(score, -1, 1).tolist()


def test_breakout_serves_by_itself() -> None:
    env = make_environment("breakout")
    env.reset(seed=0)
    steps, over = 0, False
    while not over:
        _, _, terminated, truncated, _ = env.step(0)
        over, steps = terminated or truncated, steps + 1
    assert terminated
    assert steps < 500


def test_episodes_start_differently_and_repeat_with_their_seed() -> None:
    env = make_environment("pong", "ram")
    first = [env.reset(seed=seed)[0] for seed in (1, 2, 1)]
    assert np.array_equal(first[0], first[2])
    assert not np.array_equal(first[0], first[1])
    assert first[0].shape == (8,)
    assert make_environment("seaquest", "ram").observation_space.shape == (256,)


def test_ram_shows_bytes_and_their_changes() -> None:
    for state, _, _, after, _, _ in play(make_environment("pong", "ram"), 80):
        assert after[4:] == pytest.approx((after[:4] - state[:4]) * 8, abs=1e-5)
        assert np.abs(after[:4]).max() <= 1


def test_car_racing_draws_what_gymnasium_draws() -> None:
    from gymnasium.envs.box2d.car_racing import CarRacing

    plain, fast = CarRacing(continuous=False), FastCarRacing(continuous=False)
    assert np.array_equal(plain.reset(seed=3)[0], fast.reset(seed=3)[0])
    for step in range(60):
        action = (3, 3, 1, 3, 2)[step % 5]
        a, b = plain.step(action), fast.step(action)
        assert a[1] == b[1]
        assert np.array_equal(a[0], b[0]), step


@pytest.mark.parametrize("capacity", [100, 23, 4])
@pytest.mark.parametrize("length", [7, 1])
def test_a_replay_of_frames_holds_exactly_what_went_in(capacity: int, length: int) -> None:
    rng = np.random.default_rng(0)
    replay, rows = Replay(capacity, FRAMES), []
    state = rng.integers(256, size=(4, 6, 5), dtype=np.uint8)
    for i in range(60):
        after = np.concatenate([state[1:], rng.integers(256, size=(1, 6, 5), dtype=np.uint8)])
        replay.add(state, np.int64(i), 0.0, after, i % length == length - 1)
        rows.append((state, after))
        # Episodes start with a full stack of one frame, or of any others.
        fresh = rng.integers(256, size=(4, 6, 5), dtype=np.uint8)
        fresh = np.repeat(fresh[:1], 4, axis=0) if i % 2 else fresh
        state = fresh if i % length == length - 1 else after
    copy = Replay(capacity, FRAMES)
    copy.restore(replay.tensors(), replay.added)
    for held in (replay, copy):
        z = held.rows(np.arange(held.size))
        for index, number in enumerate(z.action.tolist()):
            assert np.array_equal(z.state[index].numpy(), rows[number][0])
            assert np.array_equal(z.next_state[index].numpy(), rows[number][1])
    again = rng.integers(256, size=(1, 6, 5), dtype=np.uint8)
    for held in (replay, copy):
        held.add(state, np.int64(60), 0.0, np.concatenate([state[1:], again]), False)
    last = [held.rows(np.array([60 % capacity])) for held in (replay, copy)]
    assert torch.equal(last[0].state, torch.from_numpy(state)[None])
    assert torch.equal(last[0].next_state, last[1].next_state)


def test_frames_are_stored_once_and_states_that_do_not_shift_are_refused() -> None:
    stacks = FrameStacks(1000, (4, 84, 84))
    assert stacks._frames.nbytes < 1.4 * 1000 * 84 * 84
    state = np.zeros((4, 84, 84), np.uint8)
    with pytest.raises(ValueError, match="shifted by one frame"):
        stacks.put(0, state, state + 1, 0)


def pixel_cell() -> CellSpec:
    numbers = tiny_budget(rounds=6, warmup_steps=60, evaluations=2, episodes=1, captures=(1.0,))
    cell = tiny_cell("breakout")
    agent = cell.agent.model_copy(update={"batch_size": 4})
    return cell.model_copy(update={"budget": numbers, "agent": agent, "clients": 2})


def test_a_cell_on_pixels_is_resumed_exactly_and_its_captures_fit_their_records() -> None:
    taken: list[Checkpoint] = []

    def keep_first() -> None:
        if not taken:
            checkpoint = take_checkpoint(unbroken)
            tensors = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
            taken.append(Checkpoint(tensors, checkpoint.plain))

    cell = pixel_cell()
    unbroken = CellTraining(cell)
    unbroken.run(save_checkpoint=keep_first, checkpoint_seconds=0.0)
    resumed = CellTraining(cell)
    restore(resumed, taken[0])
    assert 0 < resumed.round < cell.budget.rounds
    resumed.run()
    left, right = unbroken.captures.pack()[0], resumed.captures.pack()[0]
    assert all(torch.equal(tensor, right[name]) for name, tensor in left.items())
    assert torch.equal(unbroken.agent.weights, resumed.agent.weights)
    audit = Audit.prepare(cell, unbroken.captures, Knowledge())
    assert (audit.template.state_low, audit.template.state_high) == (0.0, 255.0)
    for capture in unbroken.captures.captures:
        for kind, releases in capture.releases.items():
            for release in releases:
                z = release.truth
                observation = audit.observe(capture, release, kind)
                assert z.state.dtype == torch.uint8
                assert gradient_matching_error(observation, z) < 1e-4
                z = Transitions(
                    z.state.float(), z.action, z.reward, z.next_state.float(), z.terminated
                )
                assert gradient_matching_error(observation, z) < 1e-4
    unbroken.close()
    resumed.close()


@pytest.mark.parametrize("text", ["dp-sgd=0@clip=0.01", "none"])
def test_a_clients_release_of_a_convolutional_network_is_what_autograd_says(text: str) -> None:
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(*nature_cnn((4, 84, 84), (32,), 3, layer_norm=False))
    initialise(network, generator)
    states = torch.randint(256, (5, 4, 84, 84), generator=generator, dtype=torch.uint8)
    targets = torch.randn(5, generator=generator)
    owner = torch.tensor([0, 0, 0, 1, 1])

    def losses(rows: Tensor | slice) -> Tensor:
        return 0.5 * (network(states[rows])[:, 1] - targets[rows]) ** 2

    alone = []
    for row in range(5):
        loss = losses(slice(row, row + 1)).sum()
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        gradient = torch.cat([g.flatten() for g in gradients])
        scale = 1.0 if text == "none" else min(1.0, 0.01 / float(gradient.norm()))
        alone.append(scale * gradient)
    expected = torch.stack([sum(alone[:3]) / 4, sum(alone[3:]) / 4])
    with defenses.parse(text).bind(
        network, clients=2, batch_size=4, generator=generator
    ) as session:
        release = session.release(losses, owner)
        assert torch.allclose(release, expected, rtol=1e-3, atol=1e-6)
        assert torch.allclose(session.mean_release(losses, owner), expected.mean(dim=0), atol=1e-6)
