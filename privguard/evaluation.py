"""Greedy evaluation of a policy, and the two policies that it must beat to be worth anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import gymnasium as gym
import numpy as np

from privguard.environments import make_environment
from privguard.seeding import derive_seed, numpy_generator

Policy = Callable[[np.ndarray], np.ndarray]
"""Observations (n, ...) to actions (n, ...)."""


@dataclass(frozen=True)
class Episodes:
    """Undiscounted results of a number of episodes."""

    returns: list[float]
    forward_returns: list[float]
    """Forward part of the reward; empty where the environment states none."""
    lengths: list[int]


def evaluate(
    policy: Policy, envs: Sequence[gym.Env], seeds: Sequence[int], forward_key: str | None
) -> Episodes:
    """One episode in each environment, all played together so that the policy acts in batches."""
    states = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]
    returns, forward, lengths = np.zeros(len(envs)), np.zeros(len(envs)), np.zeros(len(envs), int)
    playing = list(range(len(envs)))
    while playing:
        actions = policy(np.stack([states[i] for i in playing]))
        still = []
        for i, action in zip(playing, actions, strict=True):
            states[i], reward, terminated, truncated, info = envs[i].step(action)
            returns[i] += float(reward)
            lengths[i] += 1
            if forward_key is not None:
                forward[i] += info[forward_key]
            if not (terminated or truncated):
                still.append(i)
        playing = still
    return Episodes(
        returns=returns.tolist(),
        forward_returns=forward.tolist() if forward_key is not None else [],
        lengths=lengths.tolist(),
    )


def evaluation_seeds(seed: int, moment: str | int, count: int) -> list[int]:
    """Reset seeds of one evaluation; the same for every defence, so that returns are paired."""
    return [derive_seed(seed, "evaluation", moment, i) % 2**31 for i in range(count)]


def baseline_policies(space: gym.Space, rng: np.random.Generator) -> dict[str, Policy]:
    """The two policies that know nothing: uniformly random, and always zero (or action 0)."""
    if isinstance(space, gym.spaces.Discrete):
        count = int(space.n)
        return {
            "random": lambda states: rng.integers(count, size=len(states)),
            "zero": lambda states: np.zeros(len(states), dtype=np.int64),
        }
    assert isinstance(space, gym.spaces.Box)
    low, high = space.low, space.high
    return {
        "random": lambda states: rng.uniform(low, high, (len(states), *low.shape)).astype(
            low.dtype
        ),
        "zero": lambda states: np.zeros((len(states), *low.shape), dtype=low.dtype),
    }


def baseline_returns(
    envs: Sequence[gym.Env], seed: int, policy: str, episodes: int
) -> tuple[list[float], list[int]]:
    """Returns and lengths of ``episodes`` episodes (at least) of a baseline policy."""
    rng = numpy_generator(seed, "random policy")
    chosen = baseline_policies(envs[0].action_space, rng)[policy]
    returns: list[float] = []
    lengths: list[int] = []
    while len(returns) < episodes:
        seeds = evaluation_seeds(seed, f"baseline {len(returns)}", len(envs))
        result = evaluate(chosen, envs, seeds, None)
        returns += result.returns
        lengths += result.lengths
    return returns, lengths


@cache
def baseline_means(
    env: str, observation: str, seed: int, episodes: int, together: int
) -> tuple[float, float]:
    """Mean returns of the random and of the zero-action policy over ``episodes`` (at least).

    ``together`` are played at a time. All cells of a seed share them: a process takes them once.
    """
    envs = [make_environment(env, observation) for _ in range(together)]
    random, zero = (
        float(np.mean(baseline_returns(envs, seed, policy, episodes)[0]))
        for policy in ("random", "zero")
    )
    for one in envs:
        one.close()
    return random, zero


def baseline_episodes(
    env: str, observation: str, policy: str, episodes: int, seed: int
) -> dict[str, float]:
    """Mean and standard deviation of a baseline policy's return, and its mean episode length."""
    envs = [make_environment(env, observation)]
    returns, lengths = baseline_returns(envs, seed, policy, episodes)
    envs[0].close()
    return {
        "mean": float(np.mean(returns)),
        "std": float(np.std(returns)),
        "length": float(np.mean(lengths)),
    }
