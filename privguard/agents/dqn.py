"""Federated double DQN (van Hasselt et al. 2016, arXiv 1509.06461) for discrete actions."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import Tensor, nn

from attacks.transitions import Transitions
from privguard.agents.networks import dense, flatten_storage, initialise, nature_cnn
from privguard.recipes import DQNSettings


class DoubleDQN:
    """A Q-network over all actions, dense or, for stacked frames, convolutional.

    ``shared`` is what clients send gradients of.
    """

    def __init__(
        self,
        state_shape: tuple[int, ...],
        action_count: int,
        settings: DQNSettings,
        discount: float,
        generator: torch.Generator,
    ) -> None:
        self.settings = settings
        self.discount = discount
        self.action_count = action_count
        self.broadcast = torch.zeros(0)
        if len(state_shape) == 3:
            layers = nature_cnn(
                state_shape, settings.hidden, action_count, layer_norm=settings.layer_norm
            )
        else:
            sizes = [math.prod(state_shape), *settings.hidden, action_count]
            layers = dense(sizes, layer_norm=settings.layer_norm)
        self.shared = nn.ModuleDict({"q": nn.Sequential(*layers)})
        initialise(self.shared, generator)
        self.target = copy.deepcopy(self.shared).requires_grad_(False)
        self.weights = flatten_storage(self.shared)
        self.target_weights = flatten_storage(self.target)

    @torch.no_grad()
    def act(self, states: np.ndarray) -> np.ndarray:
        """Greedy actions (n,) in states (n, *state_shape)."""
        return self.shared["q"](torch.from_numpy(states)).argmax(dim=-1).numpy()

    def explore(
        self, greedy: np.int64, noise: None, rng: np.random.Generator
    ) -> tuple[np.int64, None]:
        """One epsilon-greedy action; its noise has no memory."""
        if rng.random() < self.settings.exploration:
            return self.random_action(rng), None
        return greedy, None

    def random_action(self, rng: np.random.Generator) -> np.int64:
        """A uniform action."""
        return rng.integers(self.action_count)

    def begin_round(self, generator: torch.Generator) -> None:
        """Nothing of double DQN's target is random."""

    def td_target(self, z: Transitions) -> Tensor:
        """y (n,) with the action chosen by the shared and valued by the target network.

        The greedy choice is piecewise constant, so y is differentiable through the value alone.
        """
        with torch.no_grad():
            best = self.shared["q"](z.next_state).argmax(dim=-1, keepdim=True)
        value = self.target["q"](z.next_state).gather(-1, best).squeeze(-1)
        return z.reward + self.discount * (1 - z.terminated) * value

    def losses(self, z: Transitions, target: Tensor) -> Tensor:
        """Per-record loss (n,): 0.5 (Q(s, a) - y)^2."""
        return self._losses(self.shared, z, target)

    def loss(self, shared: nn.Module, z: Transitions) -> Tensor:
        """Mean loss of a batch as the server knows it.

        ``z.action`` is (n,) int64, or (n, actions) weights where an attack relaxes the choice.
        """
        return self._losses(shared, z, self.td_target(z)).mean()

    def _losses(self, shared: nn.Module, z: Transitions, target: Tensor) -> Tensor:
        assert isinstance(shared, nn.ModuleDict)
        values = shared["q"](z.state)
        if z.action.dim() == 1:
            taken = values.gather(-1, z.action[:, None]).squeeze(-1)
        else:
            taken = (values * z.action).sum(dim=-1)
        return 0.5 * (taken - target) ** 2

    def learning_rates(self) -> list[tuple[int, int, float]]:
        """(start, stop, learning rate) of the Q-network's part of ``weights``: all of it."""
        return [(0, len(self.weights), self.settings.learning_rate)]

    @property
    def adam_epsilon(self) -> float:
        """Of the server's optimizer."""
        return self.settings.adam_epsilon

    def local_learning_rates(self) -> dict[str, float]:
        """The one local step size, by name of the shared parameters."""
        rate = self.settings.local_learning_rate
        return {name: rate for name, _ in self.shared.named_parameters()}

    def update_targets(self) -> None:
        """Moves the target network by tau towards the shared one."""
        self.target_weights.lerp_(self.weights, self.settings.tau)
