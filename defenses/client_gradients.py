"""Each client's mean gradient from one pass over the stacked minibatches of all clients.

The inputs X and output gradients D of linear layers (``linear_passes``) give the gradient of client
c as D_c^T X_c: one batched product a layer. Modules with other trainable layers, and minibatches of
different sizes, get one backward pass a client.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from defenses.layout import Layout
from defenses.linear_passes import LinearPasses, sample_losses
from defenses.stages import Losses


class ClientGradients:
    """The undefended source of gradients (a ``GradientSource``)."""

    nonfinite_count = 0

    def __init__(self, module: nn.Module, layout: Layout, clients: int) -> None:
        """Prepares for ``clients`` clients of ``module``; leaves the module untouched."""
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._layout = layout
        self._clients = clients
        self._passes = LinearPasses(module)
        self._slices: dict[Tensor, slice] = {
            p: slice(offset, offset + size)
            for p, offset, size in zip(self._parameters, layout.offsets, layout.sizes, strict=True)
        }

    def per_client(self, losses: Losses, owner: Tensor, batch_size: int) -> Tensor:
        """(clients, P): each client's sum of gradients / batch_size; zero for absent clients."""
        out = self._parameters[0].new_zeros(self._clients, self._layout.size)
        bounds = client_bounds(owner, self._clients)
        if owner.numel() > 0 and not self._closed_form(losses, bounds, out):
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
        rows, clients = bounds[-1], self._clients
        if any((stop - start) * clients != rows for start, stop in pairwise(bounds)):
            return False
        found = self._passes.run(losses, slice(None), rows)
        if found is None:
            return False
        for layer, inputs, deltas in found[1]:
            d, x = (t.reshape(clients, -1, t.shape[1]) for t in (deltas, inputs))
            if layer.weight.requires_grad:
                out[:, self._slices[layer.weight]] = (d.mT @ x).flatten(1)
            if layer.bias is not None and layer.bias.requires_grad:
                out[:, self._slices[layer.bias]] = d.sum(dim=1)
        return True


def client_bounds(owner: Tensor, clients: int) -> list[int]:
    """Row ranges: client c owns rows bounds[c] .. bounds[c + 1] of the sorted ``owner`` (n,)."""
    counts = torch.bincount(owner, minlength=clients)
    return [0, *counts.cumsum(0).tolist()]
