"""Regression from many features: ridge, plus a small network on what it leaves over.

What the training data cannot support is taken away on data held out: each output's ridge strength,
the network's number of epochs, and at last a factor in [0, 1] on each output's deviation from its
mean. Where the features say nothing the answer is therefore the mean.

A regression that builds on another's estimates must see them as they are on new data. So every
sample is estimated by a regression that was fitted without it (cross-fitting).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FOLDS = 3
HELD_OUT = 6
"""Every sixth sample is held out."""
HIDDEN = 256
EPOCHS = 25
PATIENCE = 5
BATCH = 128
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 3e-2
LIMIT = 5.0
"""Standardised features are cut off here, so that no target is extrapolated far."""
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Trial ridges, times the number of samples."""


@dataclass(frozen=True, eq=False)
class Regression:
    """A fitted map of features (n, F) to outputs (n, K)."""

    _in_mean: Tensor
    _in_std: Tensor
    _ridge: Tensor
    _weights: Sequence[Tensor]
    _out_mean: Tensor
    _out_std: Tensor
    _trust: Tensor

    @classmethod
    def fit(cls, features: Tensor, outputs: Tensor, generator: torch.Generator) -> Regression:
        """Fits (n, F) to (n, K); all randomness is the generator's."""
        held = torch.arange(len(features), device=features.device) % HELD_OUT == HELD_OUT - 1
        in_mean, in_std = _moments(features[~held])
        out_mean, out_std = _moments(outputs[~held])
        x = ((features - in_mean) / in_std).clamp(-LIMIT, LIMIT)
        y = (outputs - out_mean) / out_std
        ridge = _ridge(x[~held], y[~held], x[held], y[held])
        weights = _network(x, y - x @ ridge, held, generator)
        guess = (x @ ridge + _forward(weights, x))[held]
        trust = (guess * y[held]).sum(dim=0) / guess.square().sum(dim=0).clamp_min(1e-12)
        return cls(in_mean, in_std, ridge, weights, out_mean, out_std, trust.clamp(0.0, 1.0))

    def __call__(self, features: Tensor) -> Tensor:
        """(n, F) to (n, K)."""
        x = ((features - self._in_mean) / self._in_std).clamp(-LIMIT, LIMIT)
        guess = self._trust * (x @ self._ridge + _forward(self._weights, x))
        return self._out_mean + self._out_std * guess


@dataclass(frozen=True, eq=False)
class CrossFitted:
    """The mean of ``FOLDS`` regressions, each fitted without one fold of the samples.

    Attributes:
        estimates: (n, K) of the samples themselves, each by the regression that has not seen it.
        error: (K,) mean squared error of ``estimates`` in units of the outputs' variance.
    """

    _regressions: Sequence[Regression]
    estimates: Tensor
    error: Tensor

    @classmethod
    def fit(cls, features: Tensor, outputs: Tensor, generator: torch.Generator) -> CrossFitted:
        """Fits (n, F) to (n, K); all randomness is the generator's."""
        fold = torch.arange(len(features), device=features.device) % FOLDS
        regressions, estimates = [], torch.zeros_like(outputs)
        for index in range(FOLDS):
            inside = fold == index
            fitted = Regression.fit(features[~inside], outputs[~inside], generator)
            estimates[inside] = fitted(features[inside])
            regressions.append(fitted)
        variance = outputs.var(dim=0, correction=0).clamp_min(1e-12)
        error = (estimates - outputs).square().mean(dim=0) / variance
        return cls(regressions, estimates, error)

    def __call__(self, features: Tensor) -> Tensor:
        """(n, F) to (n, K)."""
        return torch.stack([fitted(features) for fitted in self._regressions]).mean(dim=0)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each column; constant columns get deviation one."""
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
    return mean, torch.where(std > 1e-6 * (1 + mean.abs()), std, torch.ones_like(std))


def _ridge(x: Tensor, y: Tensor, x_held: Tensor, y_held: Tensor) -> Tensor:
    """Coefficients (F, K), each output with the strength that is best on the held-out samples."""
    values, vectors = torch.linalg.eigh((x.T @ x / len(x)).double())
    rotated = vectors.T @ (x.T @ y / len(x)).double()
    best = torch.zeros_like(rotated)
    best_error = y_held.double().square().mean(dim=0)
    for strength in STRENGTHS:
        tried = vectors @ (rotated / (values.clamp_min(0) + strength)[:, None])
        error = (x_held.double() @ tried - y_held).square().mean(dim=0)
        best = torch.where(error < best_error, tried, best)
        best_error = torch.minimum(error, best_error)
    return best.to(x)


def _forward(weights: Sequence[Tensor], x: Tensor) -> Tensor:
    w1, b1, w2, b2, w3, b3 = weights
    hidden = torch.nn.functional.silu(torch.addmm(b1, x, w1))
    hidden = torch.nn.functional.silu(torch.addmm(b2, hidden, w2))
    return torch.addmm(b3, hidden, w3)


def _network(x: Tensor, y: Tensor, held: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Weights that start as the zero map and are kept at their best epoch on held-out samples."""

    def draw(inputs: int, outputs: int) -> Tensor:
        drawn = torch.randn(inputs, outputs, generator=generator, dtype=torch.float64)
        return (drawn / math.sqrt(inputs)).to(x)

    width = y.shape[1]
    weights = [
        draw(x.shape[1], HIDDEN),
        x.new_zeros(HIDDEN),
        draw(HIDDEN, HIDDEN),
        x.new_zeros(HIDDEN),
        x.new_zeros(HIDDEN, width),
        x.new_zeros(width),
    ]
    best, best_error = [w.clone() for w in weights], float(y[held].square().mean())
    best_epoch = -1
    for w in weights:
        w.requires_grad_(True)
    optimiser = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    x_fit, y_fit = x[~held], y[~held]
    steps, step = EPOCHS * -(-len(x_fit) // BATCH), 0
    for epoch in range(EPOCHS):
        order = torch.randperm(len(x_fit), generator=generator)
        for rows in order.split(BATCH):
            error = (_forward(weights, x_fit[rows]) - y_fit[rows]).square().mean()
            for w, g in zip(weights, torch.autograd.grad(error, weights), strict=True):
                w.grad = g
            optimiser.param_groups[0]["lr"] = (
                LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
            )
            optimiser.step()
            step += 1
        with torch.no_grad():
            held_error = float((_forward(weights, x[held]) - y[held]).square().mean())
        if held_error < best_error:
            best_error, best, best_epoch = held_error, [w.detach().clone() for w in weights], epoch
        elif epoch - max(best_epoch, 0) >= PATIENCE:
            break
    return best
