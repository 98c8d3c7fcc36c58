"""One client of a federation: it plays in its own environment and keeps what it experiences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from privguard.replay import Replay
from privguard.seeding import derive_seed, numpy_generator

if TYPE_CHECKING:
    import gymnasium as gym


class Client:
    """One client: its own environment copy, replay and random streams."""

    def __init__(self, index: int, env: gym.Env, replay: Replay, seed: int) -> None:
        self.index = index
        self.env = env
        self.replay = replay
        self.seed = seed
        self.exploration_rng = numpy_generator(seed, "exploration", index)
        self.minibatch_rng = numpy_generator(seed, "minibatch", index)
        self.episodes = -1
        self.episode_steps = 0
        self.noise: np.ndarray | None = None
        self.state: np.ndarray = self._reset()

    def play(self, action: np.ndarray) -> None:
        """One environment step: stores the transition and starts a new episode at its end."""
        next_state, reward, terminated, truncated, _ = self.env.step(action)
        self.replay.add(self.state, action, float(reward), next_state, terminated)
        self.episode_steps += 1
        if terminated or truncated:
            self.replay.end_trajectory()
            self.state = self._reset()
        else:
            self.state = next_state

    def resume(self, episodes: int, episode_steps: int) -> None:
        """Brings the environment back to where a checkpoint left it.

        The episode is replayed from its own seed with the actions that the replay holds: exact in
        every deterministic environment, and nothing of a simulator's inside needs to be stored.
        """
        self.episodes = episodes - 1
        self.state = self._reset()
        for action in self.replay.recent_actions(episode_steps):
            self.state = self.env.step(action)[0]
        self.episode_steps = episode_steps

    def _reset(self) -> np.ndarray:
        self.episodes += 1
        self.episode_steps = 0
        self.noise = None
        seed = derive_seed(self.seed, "episode", self.index, self.episodes) % 2**31
        return self.env.reset(seed=seed)[0]
