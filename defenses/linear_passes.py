"""Inputs and output gradients of a module's linear layers, from one backward pass.

A linear layer's weight gradient is D^T X with inputs X (n, in) and gradients D (n, out) of the sum
of losses with respect to its outputs. Row i of D and X belongs to sample i, so D and X give every
sample's gradient, and any weighted sum of them, with no further pass.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

import torch
from torch import Tensor, nn

from defenses.registry import DefenseError
from defenses.stages import Losses


class LayerPass(NamedTuple):
    """One linear layer in one pass over n rows."""

    layer: nn.Linear
    inputs: Tensor
    """(n, in)."""
    deltas: Tensor
    """(n, out): gradients of the sum of losses with respect to the layer's outputs."""


class LinearPasses:
    """Runs losses through a module whose trainable layers are all linear."""

    def __init__(self, module: nn.Module) -> None:
        """Looks at the layers; leaves the module untouched."""
        self._layers = _linear_layers(module)
        """None: other layers are trainable, or losses use the layers in ways D and X miss."""
        self._verified: set[tuple[bool, ...]] = set()
        """Which layers took part, for every such set that was compared with autograd."""

    @property
    def applicable(self) -> bool:
        """Whether nothing that was seen so far stands against it."""
        return self._layers is not None

    def run(
        self, losses: Losses, rows: Tensor | slice, count: int
    ) -> tuple[Tensor, list[LayerPass]] | None:
        """Losses (count,) of ``rows`` and every layer that took part, or None: does not apply."""
        if self._layers is None:
            return None
        values, calls = _record_calls(losses, rows, count, self._layers)
        if not any(calls) or any(
            len(call) > 1 or any(x.dim() != 2 or len(x) != count for x, _ in call) for call in calls
        ):
            self._layers = None
            return None
        used = [(layer, *call[0]) for layer, call in zip(self._layers, calls, strict=True) if call]
        taking_part = tuple(map(bool, calls))
        verified = taking_part in self._verified
        deltas = torch.autograd.grad(
            values.sum(),
            [output for _, _, output in used],
            retain_graph=not verified,
            allow_unused=True,
            materialize_grads=True,
        )
        passes = [
            LayerPass(layer, inputs, delta)
            for (layer, inputs, _), delta in zip(used, deltas, strict=True)
        ]
        if not verified:
            # A parameter used outside its layer's forward (tied, penalised) is invisible to D and
            # X: compare once with autograd, else fall back for good.
            if not _agrees(values, self._layers, passes):
                self._layers = None
                return None
            self._verified.add(taking_part)
        return values.detach(), passes


def sample_losses(losses: Losses, rows: Tensor | slice, count: int) -> Tensor:
    """``losses(rows)``, checked to be one number for each of ``count`` rows.

    Raises:
        DefenseError: another shape, for example a mean over the rows.
    """
    values = losses(rows)
    if values.shape != (count,):
        raise DefenseError(f"losses must have shape ({count},), not {tuple(values.shape)}")
    return values


def _linear_layers(module: nn.Module) -> list[nn.Linear] | None:
    """All trainable layers, or None if some are not linear."""
    layers = []
    for layer in module.modules():
        if not any(p.requires_grad for p in layer.parameters(recurse=False)):
            continue
        # A subclass may compute something other than x W^T + b.
        if type(layer) is not nn.Linear:
            return None
        layers.append(layer)
    return layers


def _record_calls(
    losses: Losses, rows: Tensor | slice, count: int, layers: list[nn.Linear]
) -> tuple[Tensor, list[list[tuple[Tensor, Tensor]]]]:
    """The losses of ``rows``, with each layer's (input, output) of every call under grad."""
    calls: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layers]

    def recorder(call: list[tuple[Tensor, Tensor]]):  # type: ignore[no-untyped-def]
        def record(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:
                call.append((inputs[0].detach(), output))

        return record

    with ExitStack() as stack:
        for layer, call in zip(layers, calls, strict=True):
            stack.enter_context(layer.register_forward_hook(recorder(call)))
        return sample_losses(losses, rows, count), calls


def _agrees(values: Tensor, layers: list[nn.Linear], passes: list[LayerPass]) -> bool:
    """Whether D^T X and the sums of D are autograd's gradients of the sum of losses."""
    found: dict[Tensor, Tensor] = {}
    for layer, inputs, deltas in passes:
        found[layer.weight] = deltas.mT @ inputs
        if layer.bias is not None:
            found[layer.bias] = deltas.sum(dim=0)
    parameters = [p for layer in layers for p in layer.parameters() if p.requires_grad]
    expected = torch.autograd.grad(
        values.sum(), parameters, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return all(
        torch.allclose(
            found.get(p, torch.zeros_like(p)), gradient, rtol=1e-3, atol=1e-5, equal_nan=True
        )
        for p, gradient in zip(parameters, expected, strict=True)
    )
