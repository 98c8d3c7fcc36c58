"""Closed-form inversion of one record from the first dense layers (no optimisation, no prior).

For a layer x -> W x + b of batch size one, dL/dW = d x^T and dL/db = d, so [dW | db] has rank one
and its right singular vector is (x, 1) up to scale: Phong et al. 2018 (IEEE TIFS 13(5)), Geiping et
al. 2020 (arXiv 2003.14053), section 3.1. Under Gaussian noise the top singular pair is the
layer's maximum-likelihood answer. Layers that read the state or (state, action) directly are found
by running the loss on records with distinguishable numbers.

A reward and a next state enter the gradient only through y = r + gamma V(s'), which one release
does not split. So s' is the prior's prediction f(s, a), and r the one that then explains the
gradient: the gradient is affine in r, hence r is a least-squares solution. Both are NaN if the
prior knows no dynamics. A discrete action that no first layer reads is the one that fits best.

Local steps on the same record (``attacks.local_training``) change d from step to step but not x, so
the sum of local gradients has rank one too and the answer is as exact as for one gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.attack import Attack, Reconstruction
from attacks.gradients.first_layers import FirstLayer, first_layers, stacked_gradients
from attacks.observation import Observation
from attacks.prior import Prior
from attacks.registry import register_attack
from attacks.rewards import Explained, explain, reconstruction
from attacks.transitions import Transitions, unflatten_state_action


@register_attack("analytic", summary="closed form of one record from the first dense layers")
@dataclass(frozen=True)
class Analytic(Attack):
    """Exact at batch size one without noise; has no hyper-parameters."""

    def unsupported(self, observation: Observation) -> str:
        """Needs one record, and a released dense layer with bias that reads the state."""
        if observation.batch_size != 1:
            return f"the closed form is for one record, the release mixes {observation.batch_size}"
        if not first_layers(observation):
            return "no released linear layer with a bias reads the state directly"
        return ""

    def solve(
        self, observations: Sequence[Observation], *, prior: Prior, seed: int
    ) -> list[Reconstruction]:
        """Deterministic: ``seed`` has no influence."""
        layers = first_layers(observations[0])
        return [self._solve(observation, layers, prior) for observation in observations]

    def _solve(
        self, observation: Observation, layers: list[FirstLayer], prior: Prior
    ) -> Reconstruction:
        like = next(iter(observation.parameters.values()))
        rows = _read_rows(observation, layers)[None].to(like)
        state, action = unflatten_state_action(rows, observation.template)
        state_fallback = prior.mean_transitions(1, observation.template).state.to(like)
        lost = state.isnan()
        state = torch.where(lost, state_fallback, state)
        notes = ["state coordinates without signal are the prior's mean"] if lost.any() else []
        candidates = [action]
        if observation.template.action_count is not None:
            if rows[:, observation.template.state_size :].isnan().any():
                candidates = list(torch.arange(observation.template.action_count)[:, None])
            candidates = [a.to(like.device) for a in candidates]
        explained = [_explain(observation, state, a, prior) for a in candidates]
        best = min(explained, key=lambda answer: answer.residual)
        return reconstruction(observation, best, notes)


def _read_rows(observation: Observation, layers: list[FirstLayer]) -> Tensor:
    """[state, action] (D,) float64 from all first layers, weighted by their signal energy.

    Layers that read the same columns are stacked: they share the right singular vector. Columns
    that no layer reads, or without any signal, are NaN.
    """
    template = observation.template
    size = template.state_size + template.action_size
    total = torch.zeros(size, dtype=torch.float64)
    energy = torch.zeros(size, dtype=torch.float64)
    for columns, stacked in stacked_gradients(observation.gradient, layers).items():
        read = _surviving_ratio if observation.channel.zeroed else _rank_one
        x, strength = read(stacked)
        index = torch.tensor(columns)
        total[index] += torch.where(strength > 0, strength * x, 0.0)
        energy[index] += strength
    return torch.where(energy > 0, total / energy.clamp_min(1e-300), math.nan)


def _rank_one(stacked: Tensor) -> tuple[Tensor, Tensor]:
    """x (n,) from [dW | db] (m, n + 1) by its top singular pair, and the bias part's energy."""
    _, singular, right = torch.linalg.svd(stacked, full_matrices=False)
    vector = right[0]
    energy = (singular[0] * vector[-1]) ** 2
    safe = vector[-1] if energy > 0 else torch.ones_like(vector[-1])
    return vector[:-1] / safe, energy.expand(len(vector) - 1)


def _surviving_ratio(stacked: Tensor) -> tuple[Tensor, Tensor]:
    """Least squares of dW = d x over the entries that were sent, column by column."""
    weight, bias = stacked[:, :-1], stacked[:, -1:]
    sent = (weight != 0) & (bias != 0)
    energy = (sent * bias.square()).sum(dim=0)
    return (sent * weight * bias).sum(dim=0) / energy.clamp_min(1e-300), energy


def _explain(observation: Observation, state: Tensor, action: Tensor, prior: Prior) -> Explained:
    """Completes (s, a), unless part of the action could not be read."""
    if not (action.is_floating_point() and bool(action.isnan().any())):
        return explain(observation, state, action, prior)
    unknown = torch.full_like(state.reshape(1, -1)[:, 0], math.nan)
    next_state = torch.full_like(state, math.nan)
    z = Transitions(state, action, unknown, next_state, torch.zeros_like(unknown))
    return Explained(z, math.nan)
