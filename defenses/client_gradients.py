"""Each client's mean gradient from one pass over the stacked minibatches of all clients.

A linear layer's weight gradient is D^T X with inputs X (n, in) and gradients D (n, out) of the sum
of losses with respect to its outputs. Row i of D and X belongs to sample i, so one forward and
backward pass for all clients gives the gradient of client c as D_c^T X_c: one batched product a
layer. Modules with other trainable layers, and minibatches of different sizes, get one backward
pass a client.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from defenses.layout import Layout
from defenses.registry import DefenseError
from defenses.stages import Losses


@dataclass
class _Slot:
    """Where one linear layer's parameters lie in the vector."""

    layer: nn.Linear
    weight: slice | None
    bias: slice | None


class ClientGradients:
    """The undefended source of gradients (a ``GradientSource``)."""

    nonfinite_count = 0

    def __init__(self, module: nn.Module, layout: Layout, clients: int) -> None:
        """Prepares for ``clients`` clients of ``module``; leaves the module untouched."""
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._layout = layout
        self._clients = clients
        self._slots = _linear_slots(module, layout)
        """None: use one backward pass per client."""
        self._verified = False

    def per_client(self, losses: Losses, owner: Tensor, batch_size: int) -> Tensor:
        """(clients, P): each client's sum of gradients / batch_size; zero for absent clients."""
        out = self._parameters[0].new_zeros(self._clients, self._layout.size)
        bounds = client_bounds(owner, self._clients)
        if owner.numel() > 0 and not (self._slots and self._closed_form(losses, bounds, out)):
            self._one_by_one(losses, bounds, out)
        return out.div_(batch_size)

    def mean(self, losses: Losses, owner: Tensor, batch_size: int) -> Tensor:
        """(P,): the mean of :meth:`per_client` over clients, from one backward pass."""
        if owner.numel() == 0:
            return self._parameters[0].new_zeros(self._layout.size)
        return self._gradient(sample_losses(losses, slice(None), len(owner))).div_(
            self._clients * batch_size
        )

    def close(self) -> None:
        """Nothing to undo."""

    def _gradient(self, losses: Tensor) -> Tensor:
        """(P,): gradient of the sum of ``losses``; zero where a parameter takes no part."""
        gradients = torch.autograd.grad(
            losses.sum(), self._parameters, allow_unused=True, materialize_grads=True
        )
        return self._layout.flatten(gradients)

    def _one_by_one(self, losses: Losses, bounds: list[int], out: Tensor) -> None:
        for client, (start, stop) in enumerate(pairwise(bounds)):
            if stop > start:
                rows = torch.arange(start, stop, device=out.device)
                out[client] = self._gradient(sample_losses(losses, rows, len(rows)))

    def _closed_form(self, losses: Losses, bounds: list[int], out: Tensor) -> bool:
        """Fills ``out`` layer by layer; False where it does not apply."""
        assert self._slots is not None
        rows, clients = bounds[-1], self._clients
        if any((stop - start) * clients != rows for start, stop in pairwise(bounds)):
            return False
        values, calls = _record_calls(losses, rows, [slot.layer for slot in self._slots])
        if any(
            len(call) > 1 or any(x.dim() != 2 or len(x) != rows for x, _ in call) for call in calls
        ):
            self._slots = None
            return False
        used = [(slot, call[0]) for slot, call in zip(self._slots, calls, strict=True) if call]
        deltas = torch.autograd.grad(
            values.sum(),
            [output for _, (_, output) in used],
            retain_graph=not self._verified,
            allow_unused=True,
            materialize_grads=True,
        )
        for (slot, (inputs, _)), delta in zip(used, deltas, strict=True):
            d, x = (t.reshape(clients, -1, t.shape[1]) for t in (delta, inputs))
            if slot.weight is not None:
                out[:, slot.weight] = (d.mT @ x).flatten(1)
            if slot.bias is not None:
                out[:, slot.bias] = d.sum(dim=1)
        if not self._verified:
            # A parameter used outside its layer's forward (tied, penalised) is invisible to the
            # closed form: compare once with autograd, else fall back for good.
            self._verified = torch.allclose(
                out.sum(0), self._gradient(values), rtol=1e-3, atol=1e-5, equal_nan=True
            )
            if not self._verified:
                self._slots = None
                return False
        return True


def sample_losses(losses: Losses, rows: Tensor | slice, count: int) -> Tensor:
    """``losses(rows)``, checked to be one number for each of ``count`` rows.

    Raises:
        DefenseError: another shape, for example a mean over the rows.
    """
    values = losses(rows)
    if values.shape != (count,):
        raise DefenseError(f"losses must have shape ({count},), not {tuple(values.shape)}")
    return values


def client_bounds(owner: Tensor, clients: int) -> list[int]:
    """Row ranges: client c owns rows bounds[c] .. bounds[c + 1] of the sorted ``owner`` (n,)."""
    counts = torch.bincount(owner, minlength=clients)
    return [0, *counts.cumsum(0).tolist()]


def _linear_slots(module: nn.Module, layout: Layout) -> list[_Slot] | None:
    """Slots of all linear layers, or None if other layers are trainable too."""
    ranges = {
        name: slice(offset, offset + size)
        for name, offset, size in zip(layout.names, layout.offsets, layout.sizes, strict=True)
    }
    slots = []
    for prefix, layer in module.named_modules():
        own = [name for name, p in layer.named_parameters(recurse=False) if p.requires_grad]
        if not own:
            continue
        # A subclass may compute something other than x W^T + b.
        if type(layer) is not nn.Linear:
            return None
        path = f"{prefix}." if prefix else ""
        slots.append(_Slot(layer, ranges.get(path + "weight"), ranges.get(path + "bias")))
    return slots


def _record_calls(
    losses: Losses, rows: int, layers: list[nn.Linear]
) -> tuple[Tensor, list[list[tuple[Tensor, Tensor]]]]:
    """The losses of all rows, with each layer's (input, output) of every call under grad."""
    calls: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layers]

    def recorder(call: list[tuple[Tensor, Tensor]]):  # type: ignore[no-untyped-def]
        def record(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:
                call.append((inputs[0].detach(), output))

        return record

    with ExitStack() as stack:
        for layer, call in zip(layers, calls, strict=True):
            stack.enter_context(layer.register_forward_hook(recorder(call)))
        return sample_losses(losses, slice(None), rows), calls
