"""Atari games as a learner meets them: pixels as in Mnih et al. 2015, or bytes of the RAM.

Pixels: an agent step is four frames; the grey screens of the last two are joined by their maximum
(sprites flicker), shrunk to 84x84 by area and rounded; a state is the last four such frames. The
screens are ALE's own, the area average is two matrix products. RAM: what the console holds after
the four frames, as numbers of about one, and how each changed since the step before.

Actions stick: with probability ``STICKY`` a frame repeats the action of the one before (Machado et
al. 2018, arXiv 1709.06009). Without it the games are deterministic, and a greedy policy plays the
same episode again and again, which idle steps at the start do not change in Pong. As in Mnih et al.
an episode starts with up to 30 idle steps and ends after 18,000 frames, five minutes of play. All
chance comes from the episode's seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np

SIDE = 84
STACK = 4
SKIP = 4
STICKY = 0.25
NOOPS = 30
FRAMES = 18_000
"""Most frames of an episode, skipped ones counted."""
RAM_STEP = 16.0
"""Change of a RAM byte that counts as one."""

gym.register_envs(ale_py)


def make_atari(gym_id: str, observation: str, ram: Sequence[int], fire: int | None) -> gym.Env:
    """One game.

    Args:
        gym_id: e.g. "ALE/Pong-v5".
        observation: "default", (4, 84, 84) uint8, the newest frame last; or "ram", float32.
        ram: the bytes that "ram" shows; all 128 if empty.
        fire: the action that starts a life, which is then played at the start of each. Without it
            a policy that never serves would wait for the end of its five minutes.
    """
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    pixels = observation == "default"
    env = gym.make(
        gym_id,
        disable_env_checker=True,
        obs_type="grayscale" if pixels else "ram",
        frameskip=1,
        repeat_action_probability=STICKY,
        max_num_frames_per_episode=FRAMES,
    )
    env = Starts(ShrunkScreens(env) if pixels else RamBytes(env, ram), fire)
    return gym.wrappers.FrameStackObservation(env, STACK) if pixels else env


class ShrunkScreens(gym.Wrapper):
    """Plays each action for ``SKIP`` frames and shows the maximum of the last two, (84, 84)."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        assert env.observation_space.shape is not None
        height, width = env.observation_space.shape
        self._down, self._across = area_average(height, SIDE), area_average(width, SIDE).T
        self.observation_space = gym.spaces.Box(0, 255, (SIDE, SIDE), np.uint8)

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """The first screen alone."""
        screen, info = self.env.reset(**options)
        return self._shrunk(screen), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Rewards of the frames add up; the episode's last frame may come before the fourth."""
        total = 0.0
        screens: list[np.ndarray] = []
        for _ in range(SKIP):
            screen, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            screens.append(screen)
            if terminated or truncated:
                break
        return self._shrunk(np.max(screens[-2:], axis=0)), total, terminated, truncated, info

    def _shrunk(self, screen: np.ndarray) -> np.ndarray:
        small = self._down @ screen.astype(np.float32) @ self._across
        return np.rint(small).astype(np.uint8)


class RamBytes(gym.Wrapper):
    """Plays each action for ``SKIP`` frames and shows bytes of the RAM, and their last change.

    A byte becomes byte / 128 - 1, a change of ``RAM_STEP`` becomes one.
    """

    def __init__(self, env: gym.Env, chosen: Sequence[int]) -> None:
        super().__init__(env)
        assert env.observation_space.shape is not None
        self._chosen = np.array(list(chosen) or range(env.observation_space.shape[0]))
        self._bytes = np.zeros(len(self._chosen), np.float32)
        largest = np.repeat(np.array([1.0, 256 / RAM_STEP], np.float32), len(self._chosen))
        self.observation_space = gym.spaces.Box(-largest, largest, dtype=np.float32)

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Nothing has changed yet."""
        ram, info = self.env.reset(**options)
        self._bytes = ram[self._chosen].astype(np.float32)
        return self._shown(ram), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Rewards of the frames add up; the episode's last frame may come before the fourth."""
        total = 0.0
        for _ in range(SKIP):
            ram, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return self._shown(ram), total, terminated, truncated, info

    def _shown(self, ram: np.ndarray) -> np.ndarray:
        before, self._bytes = self._bytes, ram[self._chosen].astype(np.float32)
        return np.concatenate([self._bytes / 128 - 1, (self._bytes - before) / RAM_STEP])


class Starts(gym.Wrapper):
    """Idle steps at the start of an episode, and the serve at the start of each life."""

    def __init__(self, env: gym.Env, fire: int | None) -> None:
        super().__init__(env)
        self._fire = fire
        self._lives = 0

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Up to ``NOOPS`` idle steps, as many as the seed says, then the serve."""
        state, info = self.env.reset(**options)
        for _ in range(int(self.np_random.integers(NOOPS + 1))):
            state, _, terminated, truncated, info = self.env.step(0)
            if terminated or truncated:
                state, info = self.env.reset()
        if self._fire is not None:
            state, _, _, _, info = self.env.step(self._fire)
        self._lives = info["lives"]
        return state, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step, and the serve that follows a lost life."""
        state, reward, terminated, truncated, info = self.env.step(action)
        total = float(reward)
        if self._fire is not None and info["lives"] < self._lives:
            if not (terminated or truncated):
                state, reward, terminated, truncated, info = self.env.step(self._fire)
                total += float(reward)
            self._lives = info["lives"]
        return state, total, terminated, truncated, info


def area_average(size: int, smaller: int) -> np.ndarray:
    """(smaller, size) weights that average a line of ``size`` pixels over equal lengths."""
    edges = np.arange(smaller + 1) * size / smaller
    pixel = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (overlap.clip(min=0) * smaller / size).astype(np.float32)
