"""A small learned model of the environment, (s, a) -> (s', r), fitted from the adversary's samples.

Ridge regression on standardised data, plus a tanh network for what the ridge leaves over. The
network starts at zero and is kept only as far as it helps on held-out samples, so with few samples
the model falls back to the ridge.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

HIDDEN = 64
STEPS = 400
CHECK_EVERY = 20
LEARNING_RATE = 5e-3
WEIGHT_DECAY = 1e-4
RIDGE = 1e-3


class TransitionModel:
    """Differentiable map of (B, D) rows [state, action] to next states (B, S) and rewards (B,).

    Attributes:
        leverage: (n,) each sample's pull on its own prediction by the ridge, in [0, 1): without it
            in the fit its error would be 1 / (1 - leverage) times as large (Allen's PRESS).
    """

    def __init__(
        self, rows: Tensor, state: Tensor, next_state: Tensor, reward: Tensor, *, seed: int
    ) -> None:
        """Fits to n samples: rows (n, D), state and next_state (n, S), reward (n,)."""
        self._state_size = state.shape[1]
        targets = torch.cat([next_state - state, reward[:, None]], dim=-1)
        self._in_mean, self._in_std = _moments(rows)
        self._out_mean, self._out_std = _moments(targets)
        x = (rows - self._in_mean) / self._in_std
        y = (targets - self._out_mean) / self._out_std
        gram = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
        self._ridge = torch.linalg.solve(gram, x.T @ y)
        self.leverage = (x * torch.linalg.solve(gram, x.T).T).sum(dim=1)
        self._network = _fit_network(x, y - x @ self._ridge, seed)

    def __call__(self, state: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Next states (B, S) and rewards (B,), for flat states (B, S) and their rows (B, D)."""
        x = (rows - self._in_mean) / self._in_std
        y = x @ self._ridge + _forward(self._network, x)
        out = y * self._out_std + self._out_mean
        return state + out[:, : self._state_size], out[:, -1]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation; constant columns get deviation one."""
    std = x.std(dim=0, correction=0)
    return x.mean(dim=0), torch.where(std > 1e-6, std, torch.ones_like(std))


def _forward(weights: list[Tensor], x: Tensor) -> Tensor:
    w1, b1, w2, b2 = weights
    return torch.tanh(x @ w1 + b1) @ w2 + b2


def _fit_network(x: Tensor, y: Tensor, seed: int) -> list[Tensor]:
    """Fits the residual y (n, K) from x (n, D); every fifth sample is held out."""
    generator = torch.Generator().manual_seed(seed)
    held = torch.arange(len(x)) % 5 == 4
    w1 = torch.randn(x.shape[1], HIDDEN, generator=generator, dtype=x.dtype)
    weights = [
        w1 / math.sqrt(x.shape[1]),
        torch.zeros(HIDDEN, dtype=x.dtype),
        torch.zeros(HIDDEN, y.shape[1], dtype=x.dtype),
        torch.zeros(y.shape[1], dtype=x.dtype),
    ]
    best = [w.clone() for w in weights]
    if not held.any():
        return best
    best_error = float(y[held].square().mean())
    for w in weights:
        w.requires_grad_(True)
    optimiser = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    x_fit, y_fit = x[~held], y[~held]
    for step in range(STEPS):
        error = (_forward(weights, x_fit) - y_fit).square().mean()
        for w, g in zip(weights, torch.autograd.grad(error, weights), strict=True):
            w.grad = g
        optimiser.step()
        if step % CHECK_EVERY == CHECK_EVERY - 1:
            with torch.no_grad():
                held_error = float((_forward(weights, x[held]) - y[held]).square().mean())
            if held_error < best_error:
                best_error, best = held_error, [w.detach().clone() for w in weights]
    return best
