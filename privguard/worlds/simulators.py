"""The public environment itself, put into a state and stepped: the strongest prior knowledge.

What a state does not say, a simulator cannot know:

- Positions left out of the observation (x; for Ant also y) are set to zero. Dynamics and rewards
  depend on their change alone, so nothing is lost.
- Hopper and Walker2d clip observed velocities to +-10: a clipped one is taken as +-10, and the
  step from such a state is wrong.
- A contact force that Ant's 105 numbers report was caused by the step before. Stepping does not
  need it, and the next state's are computed.
- Ant measures its displacement between body positions that MuJoCo computed inside the last
  Runge-Kutta stage of each step, not at its end. The first of the two belongs to the step before,
  so its rewards are off by how far accelerations changed within that one substep. Measured over
  3,000 steps: 2e-4 (median), 5e-3 (90%), 7e-2 (a foot striking), where rewards vary by 0.7.
- The solver starts cold, in the true run from the forces of the step before. It converges to the
  same forces up to its tolerance.
"""

from __future__ import annotations

import functools
from typing import Any

import mujoco
import numpy as np
import torch
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv
from torch import Tensor

from attacks.prior import Simulator
from privguard.environments import environment_spec, make_environment, observation_scale
from privguard.errors import BadInput
from privguard.worlds.mujoco_states import positions

_BROKEN = [
    int(kind)
    for kind in (
        mujoco.mjtWarning.mjWARN_BADQPOS,
        mujoco.mjtWarning.mjWARN_BADQVEL,
        mujoco.mjtWarning.mjWARN_BADQACC,
    )
]


def make_simulator(env: str, observation: str = "default") -> Simulator:
    """``find_simulator`` for who cannot do without.

    Raises:
        BadInput: the environment cannot be put into an observed state.
    """
    simulator = find_simulator(env, observation)
    if simulator is None:
        raise BadInput(
            f"--knowledge simulator: {env} cannot be put into an observed state "
            "(allowed there: none, samples)"
        )
    return simulator


@functools.cache
def find_simulator(env: str, observation: str = "default") -> Simulator | None:
    """The simulator of an environment, one a process; None if it has none.

    It maps states (B, S) and actions (B, A), or (B,) discrete ones, to next states (B, S) and
    rewards (B,) of the states' type. Deterministic; a call leaves no trace in the next one. Rows
    that cannot be stepped (NaN, or numbers beyond any physics) come back NaN.
    """
    made = make_environment(env, observation).unwrapped
    if isinstance(made, MujocoEnv):
        assert made.observation_space.shape is not None
        scale = observation_scale(environment_spec(env), made.observation_space.shape)
        return _MujocoSimulator(made, *scale)
    if isinstance(made, FrozenLakeEnv):
        return _FrozenLakeSimulator(made)
    made.close()
    return None


class _MujocoSimulator:
    """Observations [qpos without the skipped ones, qvel, ...] of Gymnasium's v5 environments."""

    def __init__(self, env: Any, centre: np.ndarray, unit: np.ndarray) -> None:
        self._env = env
        self._centre, self._unit = centre, unit
        self._seen: int = env.model.nq - env.observation_structure["skipped_qpos"]

    def __call__(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        states = state.detach().cpu().double().reshape(len(state), -1).numpy()
        actions = action.detach().cpu().double().reshape(len(action), -1).numpy()
        after = np.full(states.shape, np.nan)
        rewards = np.full(len(states), np.nan)
        for row, (s, a) in enumerate(zip(states, actions, strict=True)):
            if np.isfinite(s).all() and np.isfinite(a).all():
                after[row], rewards[row] = self._step(self._centre + self._unit * s, a)
        return (
            torch.from_numpy((after - self._centre) / self._unit).reshape(state.shape).to(state),
            torch.from_numpy(rewards).to(state),
        )

    def _step(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, float]:
        env, model, data = self._env, self._env.model, self._env.data
        mujoco.mj_resetData(model, data)
        env.set_state(positions(env, state), state[self._seen : self._seen + model.nv])
        after, reward, *_ = env.step(action)
        # MuJoCo answers impossible numbers with a reset; what follows it is no prediction.
        if any(data.warning[kind].number for kind in _BROKEN):
            return np.full(len(after), np.nan), np.nan
        return after, float(reward)


class _FrozenLakeSimulator:
    """Expectations over the transition table: certainties unless the lake is slippery."""

    def __init__(self, env: FrozenLakeEnv) -> None:
        cells, actions = len(env.P), len(env.P[0])
        self._after = torch.zeros(cells, actions, cells, dtype=torch.float64)
        self._reward = torch.zeros(cells, actions, dtype=torch.float64)
        for cell, by_action in env.P.items():
            for action, outcomes in by_action.items():
                for probability, after, reward, _ in outcomes:
                    self._after[cell, action, after] += probability
                    self._reward[cell, action] += probability * reward
        env.close()

    def __call__(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The state's cell is its largest entry; relaxed actions (B, 4) give mixtures."""
        cell = state.detach().cpu().argmax(dim=1)
        chosen = action.detach().cpu()
        if not chosen.is_floating_point():
            chosen = torch.nn.functional.one_hot(chosen, self._reward.shape[1])
        weights = chosen.double()
        after = torch.einsum("ba,bas->bs", weights, self._after[cell])
        reward = torch.einsum("ba,ba->b", weights, self._reward[cell])
        return after.to(state), reward.to(state)
