"""Which units of a layer are active, where solved activations cannot tell: by the bias's gradient.

A unit whose activation is as small as the errors of what was solved may be active or not, and one
wrong unit makes every equation of the layers below wrong. But the gradient of a channel's bias is
the sum of the output gradients of its active units, each of another size, so that it names the unit
that is missing or too many.
"""

from __future__ import annotations

import torch
from torch import Tensor

UNCERTAIN = 32
"""Units of a channel, those with activations nearest to zero, that may be wrong."""

LIKELY = 10
"""Units of a channel of which up to four may be wrong: a background repeats one tiny activation."""

NEAR = 1e-2
"""Share of the largest activation above which none is."""

AGREES = 2e-5
"""Error of a bias's gradient, relative to one unit's, that counts as none."""


def settle_active(values: Tensor, deltas: Tensor, bias_gradient: Tensor, active: Tensor) -> Tensor:
    """``active`` (b, m, ...) with at most four units a channel changed so that the biases agree.

    Args:
        values: (b, m, ...) activations as solved for, errors and all.
        deltas: gradients of the loss with respect to the activations.
        bias_gradient: (m,) received.
    """
    settled = active.clone(memory_format=torch.contiguous_format)
    for channel, received in enumerate(bias_gradient):
        d = deltas[:, channel].flatten()
        on = settled[:, channel].flatten().clone()
        size = d.abs().mean().clamp_min(1e-300)
        missing = received - (d * on).sum()
        if missing.abs() <= AGREES * size:
            continue
        distance = values[:, channel].flatten().abs()
        near = distance.argsort()[:UNCERTAIN]
        # Inactive units are solved for as zero: those that came out positive are nearer to active.
        positive = torch.where(on, 0.0, values[:, channel].flatten())
        candidates = torch.cat([positive.argsort(descending=True)[:LIKELY], near])
        candidates = candidates[distance[candidates] <= NEAR * values.abs().max()]
        candidates = torch.tensor(list(dict.fromkeys(candidates.tolist())), dtype=torch.long)
        flips = _explaining(torch.where(on, -d, d)[candidates], missing, AGREES * size)
        on[candidates[flips]] ^= True
        settled[:, channel] = on.reshape(settled[:, channel].shape)
    return settled


def _explaining(changes: Tensor, missing: Tensor, tolerance: Tensor) -> Tensor:
    """Indices of the fewest of ``changes`` that add up to ``missing``; none if none do.

    Pairs are sought among all, more only among the first few: else chance would find some.
    """
    for count, among in ((1, len(changes)), (2, len(changes)), (3, LIKELY), (4, LIKELY)):
        if count <= len(changes[:among]):
            choices = torch.combinations(torch.arange(len(changes[:among])), count)
            off = (changes[choices].sum(dim=1) - missing).abs()
            if off.min() <= tolerance:
                return choices[off.argmin()]
    return torch.zeros(0, dtype=torch.long)
