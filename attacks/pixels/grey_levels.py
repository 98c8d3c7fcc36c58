"""The last step to exact images: pixels already near a grey level stay there, the others follow.

The search comes near to the true image and slows down. By then all but a few pixels are within a
fraction of a grey level; held at the nearest, they leave the equations fewer unknowns than before,
so that the others are their least-squares solution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attacks.pixels.conv_equations import conjugate_gradients
from attacks.pixels.equations import PixelEquations

CLOSE = 0.1
"""Grey levels within which a pixel is taken to be known."""

MOST_FREE = 0.25
"""Share of pixels that may still be open; with more, too many of the known ones are wrong."""

DOUBTED = 400
"""Pixels that are doubted at once in a solution, those on which the misfit pulls most."""

PURSUED = 400
"""Pixels among which wrong ones are sought one by one."""

MOST_WRONG = 64
"""Pixels that are corrected so at most."""

FOUND = 1e-2
"""Share of the misfit that may be left by then."""

POLISHES = 5
STEPS = 80
ATTEMPTS = 3


def settle_levels(images: Tensor, equations: PixelEquations, levels: int) -> Tensor:
    """Images (b, C, H, W) in [0, 1] near a solution, moved to multiples of 1 / levels near it."""
    x = images.clamp(0.0, 1.0)
    for _ in range(ATTEMPTS):
        nearest = (x * levels).round() / levels
        free = ((x - nearest).abs() * levels > CLOSE).to(x)
        if not 0.0 < float(free.mean()) < MOST_FREE:
            break
        held = torch.where(free > 0, x, nearest)
        x = (held + _correction(held, free, equations)).clamp(0.0, 1.0)
    return (x * levels).round() / levels


def polish_levels(images: Tensor, equations: PixelEquations, levels: int) -> Tensor:
    """Images at grey levels, of which few are wrong, with those made right that can be told.

    The gradient of the misfit is largest at the wrong pixels and around them.
    """
    best = equations.misfit(images)
    for _ in range(POLISHES):
        pull = equations.adjoint(equations.missing(images)).abs()
        least = pull.flatten().topk(min(DOUBTED, pull.numel())).values[-1]
        free = (pull >= least).to(images)
        moved = (images + _correction(images, free, equations)).clamp(0.0, 1.0)
        moved = (moved * levels).round() / levels
        misfit = equations.misfit(moved)
        if misfit >= best:
            break
        images, best = moved, misfit
    return images


def _correction(images: Tensor, free: Tensor, equations: PixelEquations) -> Tensor:
    """Least-squares change of the ``free`` pixels (zeros and ones)."""

    def normal(p: Tensor) -> Tensor:
        return free * equations.adjoint(equations.exact(equations.apply(free * p)))

    right = free * equations.adjoint(equations.missing(images))
    start = torch.zeros_like(images)
    return free * conjugate_gradients(normal, right, start, iterations=STEPS, tolerance=1e-7)


def correct_levels(images: Tensor, equations: PixelEquations, levels: int) -> Tensor:
    """One image (1, C, H, W) at grey levels with the few wrong ones made right, one by one.

    Orthogonal matching pursuit (Pati, Rezaiifar, Krishnaprasad 1993, Asilomar) in the pixels on
    which the misfit pulls most.
    """
    missing = equations.missing(images)
    pull = equations.adjoint(missing).abs().flatten()
    candidates = pull.topk(min(PURSUED, len(pull))).indices
    columns = []
    for index in candidates:
        unit = torch.zeros_like(images)
        unit.flatten()[index] = 1 / levels
        columns.append(_flat(equations.exact(equations.apply(unit))))
    matrix = torch.stack(columns, dim=1).double()
    sizes = matrix.norm(dim=0).clamp_min(1e-300)
    chosen: list[int] = []
    left = target = _flat(missing).double()
    found = torch.zeros(0, dtype=torch.float64)
    for _ in range(MOST_WRONG):
        chosen.append(int(((matrix.T @ left).abs() / sizes).argmax()))
        found = torch.linalg.lstsq(matrix[:, chosen], target[:, None]).solution[:, 0]
        left = target - matrix[:, chosen] @ found
        if left.norm() <= FOUND * target.norm():
            break
    moved = images.clone()
    moved.flatten()[candidates[chosen]] += (found.round() / levels).to(images)
    return moved.clamp(0.0, 1.0)


def _flat(blocks: Sequence[Tensor]) -> Tensor:
    return torch.cat([block.flatten() for block in blocks])
