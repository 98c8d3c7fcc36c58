"""Greedy evaluation of a policy, and the two policies that it must beat to be worth anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np

from privguard.agents import Agent
from privguard.environments import EnvironmentSpec
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


def baseline_returns(
    agent: Agent, envs: Sequence[gym.Env], spec: EnvironmentSpec, seed: int, repeats: int
) -> tuple[float, float]:
    """Mean return of a uniformly random policy and of the one that plays zero (or action 0)."""
    rng = numpy_generator(seed, "random policy")

    def random_policy(states: np.ndarray) -> np.ndarray:
        return np.stack([agent.random_action(rng) for _ in states])

    def zero_policy(states: np.ndarray) -> np.ndarray:
        return np.stack([agent.zero_action() for _ in states])

    means = []
    for policy in (random_policy, zero_policy):
        returns: list[float] = []
        for repeat in range(repeats):
            seeds = evaluation_seeds(seed, f"baseline {repeat}", len(envs))
            returns += evaluate(policy, envs, seeds, None).returns
        means.append(float(np.mean(returns)))
    return means[0], means[1]
