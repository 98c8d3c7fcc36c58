"""Correlations from few samples: the sample's own, drawn towards none at all."""

from __future__ import annotations

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
