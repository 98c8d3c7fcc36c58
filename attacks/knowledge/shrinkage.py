"""Deviations and correlations from few samples, drawn towards usual ones and towards none."""

from __future__ import annotations

import torch
from torch import Tensor


def shrunk_correlation(rows: Tensor) -> Tensor:
    """(D, D) from n standardised samples (n, D), with ones on its diagonal.

    Oracle Approximating Shrinkage: Chen, Wiesel, Eldar, Hero, 2010 (arXiv 0907.4698).
    """
    count, size = rows.shape
    correlation = rows.T @ rows / count
    trace, square = float(correlation.trace()), float(correlation.square().sum())
    excess = square - trace**2 / size
    weight = 1.0
    if excess > 0:
        scale = 1 - 2 / size
        weight = min(1.0, (scale * square + trace**2) / ((count + scale) * excess))
    shrunk = (1 - weight) * correlation
    shrunk.diagonal().fill_(1.0)
    return shrunk


def shrunk_std(x: Tensor) -> Tensor:
    """(n, K) to (K,): variance with one pseudo-sample of the columns' median positive variance.

    So a coordinate that never moved in n samples keeps a small deviation instead of zero.
    """
    variance = x.var(dim=0, correction=0)
    positive = variance[variance > 1e-12]
    typical = positive.median() if len(positive) else torch.ones_like(variance[0])
    return ((variance * len(x) + typical) / (len(x) + 1)).sqrt()
