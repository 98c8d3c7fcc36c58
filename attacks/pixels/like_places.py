"""Activations at places whose patches are alike: the same but for errors, so that means are better.

Backgrounds are flat or repeat, and so do the outputs of a convolution there, in every channel: two
places at which all channels agree within their errors have read the same patch. A tiny activation
that one record's errors hide is plain in the mean over all of them, or in a record that is known
better.
"""

from __future__ import annotations

import torch
from torch import Tensor

ALIKE = 4.0
"""Squared distance of two places' outputs, in units of what errors make of it, up to which they
count as the same. Places that are not differ by far more."""


def averaged(values: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    """Values (b, m, H, W) as means over the places that are alike, and by how much errors shrink.

    Args:
        values: activations as solved for; inactive ones are zero but for errors.
        errors: (b,) standard deviation of each record's values, above 0.

    Returns:
        The means, and standard deviations (b, 1, H, W) of these.
    """
    records, channels, high, wide = values.shape
    places = values.flatten(2).mT  # (b, P, m)
    everywhere = places.reshape(-1, channels)
    variance = errors.square().repeat_interleave(high * wide)
    means, stds = list[Tensor](), list[Tensor]()
    for one, error in zip(places, errors, strict=True):
        away = torch.cdist(one, everywhere).square()
        weight = (away <= ALIKE * channels * (error**2 + variance)) / variance
        total = weight.sum(dim=1, keepdim=True)
        means.append((weight @ everywhere / total).mT)
        stds.append(total.rsqrt().mT)
    shape = (records, -1, high, wide)
    return torch.stack(means).reshape(shape), torch.stack(stds).reshape(shape)
