"""What the gradient of each dense layer tells about the inputs of the records that it mixes.

A layer with inputs H (b, n) and output gradients D (b, m) has [dW | dc] = D^T [H | 1]. While b is
at most m and D has full rank, the row space of this gradient is spanned by the rows of [H | 1]: by
b vectors among n + 1 dimensions. So the inputs of every true record lie in it, whatever D is,
whatever comes after the layer, and whatever activation or norm made them.

Noise moves the row space. With singular values s_k and right singular vectors v_k, a true input
h = sum_k a_k v_k is left with an expected square (n + 1 - r) std^2 sum_k a_k^2 / s_k^2 outside of
it. ``RowSpace.metric`` takes that off: else a search prefers points that need no weak direction,
which are mixtures near the strongest records instead of records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attacks.bayes.posterior import received_by
from attacks.gradients.layer_calls import LayerCalls
from attacks.gradients.linear_layers import LinearLayer, linear_layers, probe_transitions
from attacks.observation import Observation
from attacks.transitions import Transitions

MOST_CORRECTION = 0.5
"""Largest share of a direction's square that is taken off for noise: weak ones are unreliable."""


@dataclass(frozen=True, eq=False)
class RowSpace:
    """The row space of one layer's received gradient, in float64.

    The last coordinate, the bias's, is scaled so that noise is the same in all of them.

    Attributes:
        layer: whose inputs are meant.
        last: what the constant input of the bias counts as.
        gradient: (m, n + 1) in units of the noise.
        basis: (n + 1, r) of the row space, as far as it is heard.
        error: (r,) square of the angle that noise turns each basis vector by, for each of the other
            dimensions.
        metric: (n + 1, n + 1) symmetric. h^T metric h is minus twice the log likelihood of a record
            with input h, up to a constant; not quite positive, see the module's text.
    """

    layer: LinearLayer
    last: float
    gradient: Tensor
    basis: Tensor
    error: Tensor
    metric: Tensor

    @classmethod
    def of(cls, observation: Observation, layer: LinearLayer, inputs: Tensor) -> RowSpace | None:
        """None where noise drowns all of it; ``inputs`` (N, n) are those of likely records."""
        assert layer.weight is not None
        assert layer.bias is not None
        precision = received_by([observation]).precision
        std_weight, std_bias = (float(precision[n]) ** -0.5 for n in (layer.weight, layer.bias))
        last = std_weight / std_bias
        weight = observation.gradient[layer.weight].detach().cpu().double()
        bias = observation.gradient[layer.bias].detach().cpu().double()
        gradient = torch.cat([weight, last * bias[:, None]], dim=1) / std_weight
        units, width = gradient.shape
        _, singular, right = torch.linalg.svd(gradient, full_matrices=False)
        # Noise alone reaches sqrt(units) + sqrt(width) (Marchenko and Pastur, 1967).
        heard = singular > units**0.5 + width**0.5
        heard[observation.batch_size :] = False
        rank = int(heard.sum())
        if rank == 0:
            return None
        basis = right[heard].T
        error = 1 / (singular[heard].square() - units)
        correction = ((width - rank) * error).clamp_max(MOST_CORRECTION)
        outside = torch.eye(width, dtype=torch.float64) - (basis * (1 + correction)) @ basis.T
        parts = with_one(inputs.cpu().double(), last) @ basis
        variance = float((parts.square() * error).sum(dim=1).mean())
        return cls(layer, last, gradient, basis, error, outside / variance)

    @property
    def room(self) -> int:
        """Dimensions outside of the row space: what one record is tested by."""
        return len(self.basis) - self.basis.shape[1]

    def full(self, inputs: Tensor) -> Tensor:
        """[h | last] (N, n + 1) of inputs (N, n)."""
        return with_one(inputs, self.last)

    def outside(self, inputs: Tensor) -> Tensor:
        """(N,) squares of the inputs (N, n) outside of the row space."""
        full = self.full(inputs)
        return (full - (full @ self.basis) @ self.basis.T).square().sum(dim=1)

    def misfit(self, inputs: Tensor) -> Tensor:
        """(N,) squares outside of the row space over what noise explains; ``room`` if true."""
        parts = (self.full(inputs) @ self.basis).square()
        return self.outside(inputs) / (parts @ self.error).clamp_min(1e-300)

    def unexplained(self, inputs: Tensor) -> float:
        """Mean square of the gradient, in units of the noise, that k inputs (k, n) leave over."""
        units, width = self.gradient.shape
        known = torch.linalg.qr(self.full(inputs).T)[0]
        left = self.gradient - (self.gradient @ known) @ known.T
        return float(left.square().sum()) / (units * max(1, width - len(inputs)))


def with_one(inputs: Tensor, last: float) -> Tensor:
    """[h | last] (N, n + 1) of inputs (N, n)."""
    return torch.cat([inputs, torch.full_like(inputs[:, :1], last)], dim=1)


def mixing_layers(observation: Observation) -> list[LinearLayer]:
    """Layers whose gradients determine row spaces: released, called once, with b units or more.

    That the layer's gradient is D^T [H | 1] is checked in numbers on two random records. Inputs
    must not depend on discrete actions, which a search cannot move.
    """
    layers = [
        layer
        for layer in linear_layers(observation)
        if layer.weight and layer.bias and layer.module.out_features >= observation.batch_size
    ]
    if not layers:
        return []
    like = next(iter(observation.parameters.values()))
    z = probe_transitions(observation.template, 2, like)
    with LayerCalls([layer.module for layer in layers]) as hooks:
        loss = observation.loss(observation.model, z)
    modules = [module for module, _, _ in hooks.calls]
    calls = {m: (x, out) for m, x, out in hooks.calls if modules.count(m) == 1}
    calls = {m: (x, out) for m, (x, out) in calls.items() if x.dim() == 2 and len(x) == 2}
    layers = [layer for layer in layers if layer.module in calls]
    if not layers:
        return []
    outputs = [calls[layer.module][1] for layer in layers]
    weights: list[Tensor] = [layer.module.weight for layer in layers]
    found = torch.autograd.grad(loss, outputs + weights, materialize_grads=True)
    moved = _moved_by_action(observation, z, layers)
    kept = []
    for layer, d, expected in zip(layers, found, found[len(layers) :], strict=False):
        formed = d.T @ calls[layer.module][0]
        tolerance = float(expected.abs().max()) * torch.finfo(like.dtype).eps ** 0.5
        if layer.module not in moved and torch.allclose(formed, expected, 0.0, tolerance):
            kept.append(layer)
    return kept


def _moved_by_action(
    observation: Observation, z: Transitions, layers: Sequence[LinearLayer]
) -> set[nn.Module]:
    """Layers whose inputs change with the discrete action."""
    if not observation.template.discrete:
        return set()
    seen = []
    for action in (z.action, z.action.flip(0)):
        with LayerCalls([layer.module for layer in layers]) as hooks:
            observation.loss(
                observation.model,
                Transitions(z.state, action, z.reward, z.next_state, z.terminated),
            )
        seen.append({module: x.detach() for module, x, _ in hooks.calls})
    return {m for m, x in seen[0].items() if not torch.equal(x, seen[1][m])}
