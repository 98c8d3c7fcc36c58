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
"""Units of a channel, at most, that may be wrong."""

LIKELY = 10
"""Units of a channel of which up to four may be wrong: a background repeats one tiny activation."""

AGREES = 2e-6
"""Rounding of a bias's gradient in float32, relative to its units' absolute sum."""

ROUGHEST = 1e-4
"""The most that counts as such; the gradients that a batch was un-mixed to are less exact."""


def settle_active(
    values: Tensor, deltas: Tensor, bias_gradient: Tensor, active: Tensor, near: float
) -> tuple[Tensor, Tensor]:
    """``active`` (b, m, ...) changed so that the biases agree, and channels (m,) where they do.

    At most four units of a channel change, or all beyond another threshold near zero.

    Args:
        values: (b, m, ...) activations as solved for, errors and all.
        deltas: gradients of the loss with respect to the activations.
        bias_gradient: (m,) received.
        near: distance of a value from zero beyond which it cannot be wrong.
    """
    settled = active.clone(memory_format=torch.contiguous_format)
    agrees = torch.ones(len(bias_gradient), dtype=torch.bool)
    on_deltas = (deltas * active).transpose(0, 1).flatten(1)
    off = (bias_gradient - on_deltas.sum(dim=1)).abs() / on_deltas.abs().sum(dim=1)
    # Most channels are right, and show how exact the gradients are.
    usual = off[off.isfinite()].median() if bool(off.isfinite().any()) else off.new_zeros(())
    share = float((4 * usual).clamp(AGREES, ROUGHEST))
    for channel, received in enumerate(bias_gradient):
        d = deltas[:, channel].flatten()
        on = settled[:, channel].flatten().clone()
        tolerance = share * (d * on).abs().sum()
        missing = received - (d * on).sum()
        if missing.abs() <= tolerance:
            continue
        candidates = _doubtful(values[:, channel].flatten(), on, near)
        flips = _explaining(torch.where(on, -d, d)[candidates], missing, tolerance)
        on[candidates[flips]] ^= True
        if not len(flips):
            found = _threshold(values[:, channel].flatten(), d, received, near, share)
            agrees[channel] = found is not None
            on = on if found is None else found
        settled[:, channel] = on.reshape(settled[:, channel].shape)
    return settled, agrees


def _doubtful(values: Tensor, on: Tensor, near: float) -> Tensor:
    """Units that may be wrong, the likeliest first: the smallest active, the largest inactive."""
    smallest = torch.where(on, values, torch.inf).argsort()
    largest = torch.where(on, -torch.inf, values).argsort(descending=True)
    mixed = torch.stack([smallest, largest], dim=1).flatten()
    mixed = mixed[values[mixed].abs() <= near][:UNCERTAIN]
    return torch.tensor(list(dict.fromkeys(mixed.tolist())), dtype=torch.long)


def _threshold(
    values: Tensor, d: Tensor, received: Tensor, near: float, share: float
) -> Tensor | None:
    """The units beyond the one threshold below ``near`` whose ``d`` add up to ``received``."""
    order = values.argsort(descending=True)
    none = torch.zeros(1).to(d)
    sums, totals = (torch.cat([none, x[order].cumsum(dim=0)]) for x in (d, d.abs()))
    last = torch.cat([none, values[order]])
    off = (sums - received).abs() - share * totals
    off[last.abs() > near] = torch.inf
    if off.min() > 0:
        return None
    active = torch.zeros_like(values, dtype=torch.bool)
    active[order[: int(off.argmin())]] = True
    return active


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
