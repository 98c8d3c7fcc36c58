"""Gradients of many small groups of records, without forming them where possible.

``DenseGradients`` serves models whose released parameters all belong to linear layers that are
called once. With inputs X (b, n) and pre-activation gradients D (b, m) of one group, the layer's
gradient is D^T X, so

    ||D^T X||^2 = sum((D D^T) * (X X^T)),    <D^T X, G> = sum((D G) * X),

and its bias adds ones to X. ``LoopGradients`` serves any model, one group at a time. Both are for
gradients at the broadcast weights. See ``convolutional`` for convolutions, ``unrolled``
for sums of local gradients, ``choice`` for which of them is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from attacks.gradients.layer_calls import LayerCalls
from attacks.gradients.linear_layers import LinearLayer
from attacks.observation import Observation
from attacks.transitions import Transitions


class LoopGradients:
    """Gradients of groups by double backpropagation, for any model and loss."""

    def __init__(self, observations: Sequence[Observation], restarts: int) -> None:
        self._observation = observations[0]
        self._parameters = list(observations[0].parameters.values())
        received = torch.stack([o.flat_gradient() for o in observations])
        self._received = received.repeat_interleave(restarts, dim=0)
        self._mask = _surviving(observations[0], self._received)
        self.target_square = self._received.square().sum(dim=1)

    def __enter__(self) -> LoopGradients:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing to undo."""

    def terms(self, z: Transitions) -> tuple[Tensor, Tensor]:
        """<g~, g> and ||g~||^2 of each group, (G,) each, differentiable in z (G b rows)."""
        size = self._observation.batch_size
        dots, squares = [], []
        for index, received in enumerate(self._received):
            loss = self._observation.loss(
                self._observation.model, z[index * size : (index + 1) * size]
            )
            grads = torch.autograd.grad(
                loss, self._parameters, create_graph=True, materialize_grads=True
            )
            flat = torch.cat([g.reshape(-1) for g in grads])
            if self._mask is not None:
                flat = flat * self._mask[index]
            dots.append(flat @ received)
            squares.append(flat @ flat)
        return torch.stack(dots), torch.stack(squares)


class DenseGradients:
    """Gradients of groups for models made of linear layers, all groups in one pass."""

    def __init__(
        self, observations: Sequence[Observation], restarts: int, layers: Sequence[LinearLayer]
    ) -> None:
        self._observation = observations[0]
        self._layers = layers
        self._restarts = restarts
        self._targets = len(observations)
        self._received = {
            name: torch.stack([o.gradient[name] for o in observations]).detach()
            for name in observations[0].gradient
        }
        self._masked = observations[0].channel.zeroed
        flat = torch.stack([o.flat_gradient() for o in observations]).detach()
        self.target_square = flat.square().sum(dim=1).repeat_interleave(restarts)
        like = flat.new_ones
        modules = [layer.module for layer in layers]
        self._input_layers = torch.block_diag(*(like(m.in_features, 1) for m in modules))
        self._delta_layers = torch.block_diag(*(like(m.out_features, 1) for m in modules))
        self._with_weight = flat.new_tensor([float(layer.weight is not None) for layer in layers])
        self._with_bias = flat.new_tensor([float(layer.bias is not None) for layer in layers])
        self._hooks = LayerCalls([layer.module for layer in layers])

    def __enter__(self) -> DenseGradients:
        self._hooks.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hooks.__exit__(kind, error, trace)

    def terms(self, z: Transitions) -> tuple[Tensor, Tensor]:
        """<g~, g> and ||g~||^2 of each group, (G,) each, differentiable in z (G b rows)."""
        groups = self._targets * self._restarts
        self._hooks.calls.clear()
        # The loss is a mean over G b rows: G times it is the sum of the groups' own mean losses.
        loss = self._observation.loss(self._observation.model, z) * groups
        seen = {module: (x, out) for module, x, out in self._hooks.calls}
        outputs = [seen[layer.module][1] for layer in self._layers]
        deltas = torch.autograd.grad(loss, outputs, create_graph=True)
        inputs = [seen[layer.module][0] for layer in self._layers]
        if not self._masked:
            return self._gram_terms(inputs, deltas)
        parts = [
            self._formed_terms(*call) for call in zip(self._layers, inputs, deltas, strict=True)
        ]
        dots, squares = zip(*parts, strict=True)
        return torch.stack(dots).sum(dim=0), torch.stack(squares).sum(dim=0)

    def _gram_terms(
        self, inputs: Sequence[Tensor], deltas: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Both sums from each layer's inputs (G b, n) and deltas (G b, m)."""
        groups, size = self._targets * self._restarts, self._observation.batch_size
        projected = [
            self._projected(layer, x) for layer, x in zip(self._layers, inputs, strict=True)
        ]
        if size == 1:
            return self._single_terms(projected, deltas, inputs)
        dot = (torch.cat(projected, dim=1) * torch.cat(list(deltas), dim=1)).sum(dim=1)
        grams = _row_products(inputs, groups)
        grams = grams * self._with_weight[:, None] + self._with_bias[:, None]
        square = (_row_products(deltas, groups) * grams).flatten(1).sum(dim=1)
        return dot.reshape(groups, size).sum(dim=1), square

    def _single_terms(
        self, projected: Sequence[Tensor], deltas: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Both sums of single records."""
        dot, square = _SingleTerms.apply(
            *(torch.cat(list(parts), dim=1) for parts in (projected, deltas, inputs)),
            self._delta_layers,
            self._input_layers * self._with_weight,
            self._with_bias,
        )
        return dot, square

    def _projected(self, layer: LinearLayer, x: Tensor) -> Tensor:
        """G x, the received gradient applied to the layer's inputs: (G b, n) to (G b, m)."""
        per_target = x.reshape(self._targets, -1, x.shape[1])
        if layer.bias is None:
            assert layer.weight is not None
            out = torch.bmm(per_target, self._received[layer.weight].mT)
        elif layer.weight is None:
            bias = self._received[layer.bias][:, None]
            out = bias.expand(-1, per_target.shape[1], -1)
        else:
            bias = self._received[layer.bias][:, None]
            out = torch.baddbmm(bias, per_target, self._received[layer.weight].mT)
        return out.reshape(len(x), -1)

    def _formed_terms(self, layer: LinearLayer, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """The same over surviving coordinates only, which needs the gradients themselves."""
        groups, size = self._targets * self._restarts, self._observation.batch_size
        deltas = d.reshape(groups, size, -1)
        dot = square = d.new_zeros(groups)
        formed: dict[str | None, Tensor] = {
            layer.weight: torch.bmm(deltas.mT, x.reshape(groups, size, -1)),
            layer.bias: deltas.sum(dim=1),
        }
        for name, gradient in formed.items():
            if name is not None:
                received = self._received[name].repeat_interleave(self._restarts, dim=0)
                kept = (gradient * (received != 0)).reshape(groups, -1)
                dot = dot + (kept * received.reshape(groups, -1)).sum(dim=1)
                square = square + kept.square().sum(dim=1)
        return dot, square


class _SingleTerms(torch.autograd.Function):
    """<g~, g> and ||g~||^2 (G,) of single records, from all layers side by side.

    Few operations on long rows, backwards too: for single records each costs more than what it
    computes. The columns of deltas and of inputs belong to the layers that the matrices say.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        projected: Tensor,
        deltas: Tensor,
        inputs: Tensor,
        delta_layers: Tensor,
        input_layers: Tensor,
        with_bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        of_inputs = inputs.square() @ input_layers + with_bias
        of_deltas = deltas.square() @ delta_layers
        ctx.save_for_backward(
            projected, deltas, inputs, delta_layers, input_layers, of_inputs, of_deltas
        )
        return (projected * deltas).sum(dim=1), (of_inputs * of_deltas).sum(dim=1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, along_dot: Tensor, along_square: Tensor) -> tuple[Tensor | None, ...]:
        projected, deltas, inputs, delta_layers, input_layers, of_inputs, of_deltas = (
            ctx.saved_tensors
        )
        along_dot, twice = along_dot[:, None], 2 * along_square[:, None]
        of_square = ((twice * of_inputs) @ delta_layers.mT) * deltas
        along_deltas = torch.addcmul(of_square, along_dot, projected)
        along_inputs = ((twice * of_deltas) @ input_layers.mT) * inputs
        return along_dot * deltas, along_deltas, along_inputs, None, None, None


def _row_products(layers: Sequence[Tensor], groups: int) -> Tensor:
    """Inner products of each group's rows in each of L layers: (G b, n) each to (G, L, b b)."""
    grouped = [x.reshape(groups, len(x) // groups, -1) for x in layers]
    return torch.stack([torch.bmm(x, x.mT).flatten(1) for x in grouped], dim=1)


def _surviving(observation: Observation, received: Tensor) -> Tensor | None:
    return (received != 0).to(received.dtype) if observation.channel.zeroed else None
