"""The simulator predicts what really happened, from what the adversary can reconstruct."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attacks import Transitions
from privguard.environments import make_environment
from privguard.worlds.simulators import make_simulator

MUJOCO = [
    ("hopper", "default"),
    ("walker2d", "default"),
    ("halfcheetah", "default"),
    ("ant", "default"),
    ("ant", "contact"),
]


def play(env_name: str, observation: str = "default", steps: int = 600) -> Transitions:
    """Real transitions under smooth random actions, as an exploring policy plays them."""
    env = make_environment(env_name, observation)
    rng = np.random.default_rng(0)
    rows = []
    state, _ = env.reset(seed=0)
    drive = np.zeros(env.action_space.shape or ())
    for _ in range(steps):
        if env.action_space.shape:
            drive = 0.9 * drive + 0.3 * rng.standard_normal(drive.shape)
            action = np.clip(drive, -1, 1).astype(np.float32)
        else:
            action = rng.integers(4)
        after, reward, terminated, truncated, _ = env.step(action)
        rows.append((state, action, np.float32(reward), after, float(terminated)))
        state = env.reset()[0] if terminated or truncated else after
    env.close()
    return Transitions(*(torch.tensor(np.array(column)) for column in zip(*rows, strict=True)))


def unclipped(env: str, z: Transitions) -> Transitions:
    """Without the states whose velocities Hopper and Walker2d clipped: they are not recoverable."""
    if env not in ("hopper", "walker2d"):
        return z
    velocities = z.state[:, z.state.shape[1] // 2 :]
    return z[(velocities.abs() < 10).all(dim=1).nonzero().flatten()]


@pytest.mark.parametrize(("env", "observation"), MUJOCO)
def test_real_transitions_are_predicted(env: str, observation: str) -> None:
    z = unclipped(env, play(env, observation))
    assert len(z) > 100
    after, reward = make_simulator(env, observation)(z.state, z.action)
    assert after.dtype == z.state.dtype
    error = (after - z.next_state).abs().amax(dim=1)
    # A foot that just touches or just misses the ground may multiply the rounding of a state.
    assert float(error.quantile(0.99)) < 1e-4
    reward_error = (reward - z.reward).abs()
    if env == "ant":  # displacement from inside the step before: see the module
        assert float(reward_error.median()) < 1e-3
        assert float(reward_error.quantile(0.9)) < 2e-2
    else:
        assert float(reward_error.max()) < 1e-4


def test_a_clipped_velocity_is_not_recoverable() -> None:
    z = play("walker2d")
    clipped = (z.state[:, 8:].abs() >= 10).any(dim=1)
    after, _ = make_simulator("walker2d")(z.state[clipped], z.action[clipped])
    error = (after - z.next_state[clipped]).abs().amax(dim=1)
    assert float(error.median()) > 1e-2


@pytest.mark.parametrize(("env", "observation"), MUJOCO[:1] + MUJOCO[-1:])
def test_a_call_leaves_no_trace(env: str, observation: str) -> None:
    z = play(env, observation, steps=40)
    simulator = make_simulator(env, observation)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    forwards = simulator(z.state, z.action)
    backwards = simulator(z.state.flip(0), z.action.flip(0))
    assert torch.equal(forwards[0], backwards[0].flip(0))
    assert torch.equal(forwards[1], backwards[1].flip(0))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    assert make_simulator(env, observation) is simulator


def test_what_cannot_be_stepped_is_unknown_and_touches_no_other_row() -> None:
    z = play("hopper", steps=4)
    simulator = make_simulator("hopper")
    expected = simulator(z.state[3:], z.action[3:])
    state = z.state.clone()
    state[0, 0] = torch.nan
    state[1, 7] = 1e30
    action = z.action.clone()
    action[2, 0] = torch.nan
    after, reward = simulator(state, action)
    assert reward.isnan().tolist() == [True, True, True, False]
    assert after[:3].isnan().all()
    assert torch.equal(after[3:], expected[0])


def test_a_scaled_quaternion_is_the_same_orientation() -> None:
    z = play("ant", steps=5)
    state = z.state.clone()
    state[:, 1:5] *= 3  # the quaternion: not centred, one unit
    simulator = make_simulator("ant")
    torch.testing.assert_close(
        simulator(state, z.action)[0], simulator(z.state, z.action)[0], rtol=0, atol=1e-5
    )


def test_frozen_lake_is_its_transition_table() -> None:
    z = play("frozenlake", steps=300)
    simulator = make_simulator("frozenlake")
    after, reward = simulator(z.state, z.action)
    assert torch.equal(after, z.next_state)
    assert torch.equal(reward, z.reward)
    relaxed = torch.nn.functional.one_hot(z.action, 4).float()
    assert torch.equal(simulator(z.state, relaxed)[0], after)
