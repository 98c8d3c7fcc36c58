"""How near reconstructed images are to the true ones: PSNR, SSIM, and the share of exact pixels.

All are of the state's stack of frames; grey levels 0..255.
"""

from __future__ import annotations

import math

import numpy as np
from skimage.metrics import structural_similarity
from torch import Tensor

LARGEST_PSNR = 100.0
"""Decibels of an image without any error: its PSNR is infinite, and no mean would survive that."""


def pixel_scores(guess: Tensor, truth: Tensor) -> dict[str, float | None]:
    """Means over B records of ``psnr`` (dB), ``ssim`` and ``exact_pixels``.

    Args:
        guess: (B, K, H, W) grey levels, floating point or not; None of the scores if any is NaN.
        truth: the same of the true records, row by row.

    Returns:
        PSNR over all frames of a record, at most ``LARGEST_PSNR``; SSIM (Wang et al. 2004, uniform
        windows of 7 pixels, or the largest odd number that fits) averaged over frames; the share of
        pixels that are the true grey level after rounding.
    """
    ours, theirs = (x.detach().cpu().double().numpy() for x in (guess, truth))
    if np.isnan(ours).any():
        return {"psnr": None, "ssim": None, "exact_pixels": None}
    side = min(7, *ours.shape[-2:])
    window = side - 1 + side % 2
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "psnr": float(np.mean([_psnr(a, b) for a, b in pairs])),
        "ssim": float(
            np.mean(
                [
                    structural_similarity(x, y, data_range=255, win_size=window)
                    for a, b in pairs
                    for x, y in zip(a, b, strict=True)
                ]
            )
        ),
        "exact_pixels": float((np.rint(ours) == np.rint(theirs)).mean()),
    }


def _psnr(image: np.ndarray, truth: np.ndarray) -> float:
    error = float(np.mean((image - truth) ** 2))
    return min(LARGEST_PSNR, 10 * math.log10(255**2 / error)) if error else LARGEST_PSNR
