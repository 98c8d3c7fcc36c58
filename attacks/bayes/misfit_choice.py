"""Which misfit a release is measured with."""

from __future__ import annotations

import torch

from attacks.bayes.formed_misfit import FormedMisfit
from attacks.bayes.misfits import GramMisfit, Misfit, Received

LOST = 0.01
"""Largest error of a Gram misfit from rounding, in units of the log likelihood."""


def misfit_to(received: Received) -> Misfit:
    """The cheapest misfit that is exact enough."""
    if not received.gaussian:
        return FormedMisfit(received)
    scale = sum(
        received.precision[name].double() * value.double().flatten(1).square().sum(dim=1)
        for name, value in received.gradient.items()
    )
    lost = torch.finfo(torch.float64).eps * torch.as_tensor(scale)
    return GramMisfit(received) if bool((lost < LOST).all()) else FormedMisfit(received)
