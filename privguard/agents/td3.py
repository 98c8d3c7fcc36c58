"""Federated TD3: the loss that a client differentiates, its target, and how it acts.

Fujimoto et al. 2018 (arXiv 1802.09477) with two changes. Critic and actor step together, so a
round's release is one joint gradient and, under DP-SGD, one mechanism. The target-smoothing noise
is one vector a round, drawn and broadcast by the server, so the target
y = r + gamma (1 - terminated) min Q'(s', pi'(s') + noise) is a function of the transition and of
what the server sent.
"""

from __future__ import annotations

import copy
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from attacks.transitions import Transitions
from privguard.agents.networks import (
    TwinCritic,
    actor,
    alias_frozen,
    flatten_storage,
    initialise,
)
from privguard.recipes import TD3Settings


class TD3:
    """Twin critics and a deterministic actor. ``shared`` is what clients send gradients of."""

    def __init__(
        self,
        state_size: int,
        action_low: np.ndarray,
        action_high: np.ndarray,
        settings: TD3Settings,
        discount: float,
        generator: torch.Generator,
    ) -> None:
        self.settings = settings
        self.discount = discount
        self.broadcast = torch.zeros(len(action_low))
        self.low, self.high = action_low.astype(np.float32), action_high.astype(np.float32)
        hidden, layer_norm = settings.hidden, settings.layer_norm
        inputs = state_size + len(action_low)
        self.shared = nn.ModuleDict(
            {
                "critic": TwinCritic(inputs, hidden, layer_norm=layer_norm),
                "actor": actor(
                    state_size,
                    torch.from_numpy(self.low),
                    torch.from_numpy(self.high),
                    hidden,
                    layer_norm=layer_norm,
                ),
            }
        )
        initialise(self.shared, generator)
        # Copied before anyone hooks the shared modules (Opacus cannot copy a hooked one).
        self.target = copy.deepcopy(self.shared).requires_grad_(False)
        self._frozen_critic = cast(TwinCritic, copy.deepcopy(self.shared["critic"]))
        self.weights = flatten_storage(self.shared)
        self.target_weights = flatten_storage(self.target)
        alias_frozen(self.shared["critic"], self._frozen_critic)

    @torch.no_grad()
    def act(self, states: np.ndarray) -> np.ndarray:
        """Greedy actions (n, A) in states (n, S)."""
        return self.shared["actor"](torch.from_numpy(states)).numpy()

    def explore(
        self, greedy: np.ndarray, noise: np.ndarray | None, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """A greedy action (A,) with correlated Gaussian noise, clipped to the box; and the noise.

        ``noise`` is what the step before returned, None at the start of an episode.
        """
        fresh = rng.standard_normal(greedy.shape)
        rho = self.settings.exploration_correlation
        noise = fresh if noise is None else rho * noise + (1 - rho**2) ** 0.5 * fresh
        half_width = (self.high - self.low) / 2
        action = greedy + self.settings.exploration * half_width * noise
        return np.clip(action, self.low, self.high).astype(np.float32), noise

    def random_action(self, rng: np.random.Generator) -> np.ndarray:
        """A uniform action (A,)."""
        return rng.uniform(self.low, self.high).astype(np.float32)

    def begin_round(self, generator: torch.Generator) -> None:
        """Draws the round's target-smoothing noise, the same for every record and client."""
        settings = self.settings
        noise = settings.smoothing * torch.randn(len(self.low), generator=generator)
        noise = noise.clamp(-settings.smoothing_limit, settings.smoothing_limit)
        self.broadcast.copy_(noise * torch.from_numpy(self.high - self.low) / 2)

    def td_target(self, z: Transitions) -> Tensor:
        """y (n,), differentiable in reward and next state; the target networks are frozen."""
        action = self.target["actor"](z.next_state) + self.broadcast
        action = torch.clamp(action, torch.from_numpy(self.low), torch.from_numpy(self.high))
        q1, q2 = self.target["critic"](z.next_state, action)
        return z.reward + self.discount * (1 - z.terminated) * torch.minimum(q1, q2)

    def losses(self, z: Transitions, target: Tensor) -> Tensor:
        """Per-record loss (n,): 0.5 (Q1 - y)^2 + 0.5 (Q2 - y)^2 - Q1_frozen(s, pi(s))."""
        return self._losses(self.shared, z, target)

    def loss(self, shared: nn.Module, z: Transitions) -> Tensor:
        """Mean loss of a batch as the server knows it: shared weights in, scalar out."""
        return self._losses(shared, z, self.td_target(z)).mean()

    def _losses(self, shared: nn.Module, z: Transitions, target: Tensor) -> Tensor:
        assert isinstance(shared, nn.ModuleDict)
        q1, q2 = shared["critic"](z.state, z.action)
        played = torch.cat([z.state, shared["actor"](z.state)], dim=-1)
        value = self._frozen_critic.q1(played).squeeze(-1)
        return 0.5 * (q1 - target) ** 2 + 0.5 * (q2 - target) ** 2 - value

    def learning_rates(self) -> list[tuple[int, int, float]]:
        """(start, stop, learning rate) of the critic's and the actor's part of ``weights``."""
        critic = sum(p.numel() for p in self.shared["critic"].parameters())
        return [
            (0, critic, self.settings.critic_learning_rate),
            (critic, len(self.weights), self.settings.actor_learning_rate),
        ]

    @property
    def adam_epsilon(self) -> float:
        """Of the server's optimizer: Adam's own."""
        return 1e-8

    def local_learning_rates(self) -> dict[str, float]:
        """The critics' and the actor's local step size, by name of the shared parameters."""
        rates = {
            "critic": self.settings.local_critic_learning_rate,
            "actor": self.settings.local_actor_learning_rate,
        }
        return {name: rates[name.split(".")[0]] for name, _ in self.shared.named_parameters()}

    def update_targets(self) -> None:
        """Moves the target networks by tau towards the shared ones (Polyak averaging)."""
        self.target_weights.lerp_(self.weights, self.settings.tau)
