"""The learners: losses that clients differentiate, and how their policies act."""

from __future__ import annotations

import math
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from attacks.transitions import Transitions
from privguard.agents.dqn import DoubleDQN
from privguard.agents.td3 import TD3
from privguard.recipes import DQNSettings, TD3Settings


class Agent(Protocol):
    """What the federation asks of a learner."""

    shared: nn.ModuleDict
    """The networks whose gradients clients share."""
    weights: Tensor
    """(P,) all shared parameters, in ``named_parameters`` order; the modules are views of it."""
    target_weights: Tensor
    """(P,) the target networks' parameters, likewise."""

    broadcast: Tensor
    """What the server sends with the weights each round, e.g. TD3's target-smoothing noise."""

    @property
    def settings(self) -> TD3Settings | DQNSettings:
        """How it learns."""
        ...

    def begin_round(self, generator: torch.Generator) -> None:
        """Draws what the server broadcasts this round."""
        ...

    def act(self, states: np.ndarray) -> np.ndarray:
        """Greedy actions in a batch of states."""
        ...

    def explore(
        self, greedy: Any, noise: Any, rng: np.random.Generator
    ) -> tuple[Any, np.ndarray | None]:
        """A greedy action with exploration, and the noise to pass to the next step."""
        ...

    def random_action(self, rng: np.random.Generator) -> Any:
        """A uniformly random action."""
        ...

    def td_target(self, z: Transitions) -> Tensor:
        """y (n,) of a batch."""
        ...

    def losses(self, z: Transitions, target: Tensor) -> Tensor:
        """Per-record losses (n,) towards targets (n,)."""
        ...

    def loss(self, shared: nn.Module, z: Transitions) -> Tensor:
        """A batch's mean loss, as the server knows it."""
        ...

    def learning_rates(self) -> list[tuple[int, int, float]]:
        """(start, stop, learning rate) of each network's slice of ``weights``."""
        ...

    @property
    def adam_epsilon(self) -> float:
        """Of the server's optimizer."""
        ...

    def local_learning_rates(self) -> dict[str, float]:
        """Step size of a client's local steps, by name of the shared parameters."""
        ...

    def update_targets(self) -> None:
        """Moves the target networks towards the shared ones."""
        ...


def make_agent(
    env: gym.Env,
    settings: TD3Settings | DQNSettings,
    discount: float,
    generator: torch.Generator,
) -> Agent:
    """The learner that ``settings`` describe, for ``env``'s spaces.

    Raises:
        TypeError: the action space does not suit the learner.
    """
    assert env.observation_space.shape is not None
    shape = env.observation_space.shape
    space = env.action_space
    if isinstance(settings, TD3Settings) and isinstance(space, gym.spaces.Box):
        return TD3(math.prod(shape), space.low, space.high, settings, discount, generator)
    if isinstance(settings, DQNSettings) and isinstance(space, gym.spaces.Discrete):
        return DoubleDQN(shape, int(space.n), settings, discount, generator)
    raise TypeError(f"{settings.kind} cannot act in {space}")
