"""Gradients of groups for convolutional networks, all groups in one pass.

A convolution with input windows U (b L, n), L places of one record under each other, and gradients
D (b L, m) at its outputs has the weight gradient D^T U, as a dense layer. With b L windows of n
numbers for n m weights it is cheaper to form it than to compare windows with each other; dense
layers, whose rows are records, keep the Gram form of ``dense``.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor, nn

from attacks.gradients.layer_calls import LayerCalls
from attacks.gradients.linear_layers import probe_transitions
from attacks.observation import Observation
from attacks.transitions import Transitions

Layer = nn.Linear | nn.Conv2d


class ConvGradients:
    """The same answers as ``LoopGradients``, for networks of convolutions and dense layers."""

    def __init__(
        self, observations: Sequence[Observation], restarts: int, layers: dict[str, Layer]
    ) -> None:
        """``layers`` are those of ``convolutional_layers``, by the prefix of their parameters."""
        self._observation = observations[0]
        self._layers = layers
        self._groups = len(observations) * restarts
        self._received = {
            name: torch.stack([o.gradient[name] for o in observations])
            .detach()
            .repeat_interleave(restarts, dim=0)
            for name in observations[0].gradient
        }
        self.target_square = sum(
            (g.flatten(1).square().sum(dim=1) for g in self._received.values()),
            start=torch.zeros(()),
        )
        self._hooks = LayerCalls(list(layers.values()))

    def __enter__(self) -> ConvGradients:
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
        self._hooks.calls.clear()
        # The loss is a mean over G b rows: G times it is the sum of the groups' own mean losses.
        loss = self._observation.loss(self._observation.model, z) * self._groups
        seen = {module: (x, out) for module, x, out in self._hooks.calls}
        outputs = [seen[layer][1] for layer in self._layers.values()]
        deltas = torch.autograd.grad(loss, outputs, create_graph=True)
        dot = square = loss.new_zeros(self._groups)
        for (prefix, layer), delta in zip(self._layers.items(), deltas, strict=True):
            x, d = _rows(layer, seen[layer][0], delta, self._groups)
            for more_dot, more_square in self._layer_terms(prefix, layer, x, d):
                dot, square = dot + more_dot, square + more_square
        return dot, square

    def _layer_terms(
        self, prefix: str, layer: Layer, x: Tensor, d: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Both terms of weight and bias, from x (G, rows, n) and d (G, rows, m)."""
        terms = []
        received = self._received.get(f"{prefix}weight")
        if received is not None:
            masked = self._observation.channel.zeroed
            received = received.flatten(2)
            if isinstance(layer, nn.Linear) and not masked:
                dot = (torch.bmm(x, received.mT) * d).sum(dim=(1, 2))
                square = (torch.bmm(d, d.mT) * torch.bmm(x, x.mT)).sum(dim=(1, 2))
            else:
                formed = torch.bmm(d.mT, x)
                dot = (formed * received).sum(dim=(1, 2))
                kept = formed * (received != 0) if masked else formed
                square = kept.square().sum(dim=(1, 2))
            terms.append((dot, square))
        received = self._received.get(f"{prefix}bias")
        if received is not None:
            formed = d.sum(dim=1)
            kept = formed * (received != 0) if self._observation.channel.zeroed else formed
            terms.append(((formed * received).sum(dim=1), kept.square().sum(dim=1)))
        return terms


def convolutional_layers(observation: Observation) -> dict[str, Layer] | None:
    """The layers that own all released parameters, or None if the forms here are invalid.

    It is tried out on random records, as in ``gradients.dense_layers``: each layer must be called
    once, and what one record of two adds must be that record's own gradient.
    """
    layers = {
        f"{name}." if name else "": module
        for name, module in observation.model.named_modules()
        if isinstance(module, Layer) and _plain(module)
    }
    owned = {
        f"{prefix}{part}"
        for prefix in layers
        for part in ("weight", "bias")
        if f"{prefix}{part}" in observation.gradient
    }
    if observation.local is not None or owned != set(observation.gradient):
        return None
    like = next(iter(observation.parameters.values()))
    z = probe_transitions(observation.template, 2, like)
    with LayerCalls(list(layers.values())) as hooks:
        loss = observation.loss(observation.model, z) * 2
    seen = {module: (x, out) for module, x, out in hooks.calls}
    if not len(hooks.calls) == len(seen) == len(layers):
        return None
    if any(x.dim() != (2 if isinstance(m, nn.Linear) else 4) for m, (x, _) in seen.items()):
        return None
    deltas = torch.autograd.grad(loss, [seen[layer][1] for layer in layers.values()])
    alone = observation.loss(observation.model, z[0])
    names, parameters = zip(*observation.parameters.items(), strict=True)
    expected = dict(
        zip(names, torch.autograd.grad(alone, parameters, materialize_grads=True), strict=True)
    )
    tolerance = torch.finfo(like.dtype).eps ** 0.5 * max(
        float(g.abs().max()) for g in expected.values()
    )
    for (prefix, layer), delta in zip(layers.items(), deltas, strict=True):
        x, d = _rows(layer, seen[layer][0], delta, 2)
        formed = {"weight": d[0].mT @ x[0], "bias": d[0].sum(dim=0)}
        for part, gradient in formed.items():
            own = expected.get(prefix + part)
            if own is not None and not torch.allclose(
                gradient, own.reshape(gradient.shape), rtol=0.0, atol=tolerance
            ):
                return None
    return layers


def _plain(module: Layer) -> bool:
    """Whether windows of the input and the weight make the output."""
    if isinstance(module, nn.Linear):
        return True
    return module.groups == 1 and module.padding_mode == "zeros" and module.padding != "same"


def _rows(layer: Layer, x: Tensor, delta: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Inputs (G, rows, n) and gradients (G, rows, m): a row is a record, or a place in one."""
    if isinstance(layer, nn.Conv2d):
        padding = (0, 0) if isinstance(layer.padding, str) else layer.padding
        x = F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride).mT
        delta = delta.flatten(2).mT
    return x.reshape(groups, -1, x.shape[-1]), delta.reshape(groups, -1, delta.shape[-1])
