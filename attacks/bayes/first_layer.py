"""What the first layers alone say of one record, weighed against the prior.

For one record a first layer's gradient is [dW | db] = d (x, 1)^T plus noise. Its top singular pair
is the maximum-likelihood answer (``attacks.analytic``), which wanders off as soon as the noise
reaches what d leaves of it. Here the same pair is a measurement h = c (x, 1) + noise of x with
unknown length c, and x has the prior N(mean, F F^T): in turn c is the least-squares length and x
the posterior mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from attacks.gradients.first_layers import FirstLayer, stacked_gradients

TURNS = 20
"""Of length and record; they settle in a few."""


def shrunk_record(
    gradient: Mapping[str, Tensor],
    precision: Mapping[str, Tensor],
    layers: Sequence[FirstLayer],
    mean: Tensor,
    factor: Tensor,
) -> Tensor:
    """Whitened coordinates z (K,) of the record x = mean + factor z, float64.

    Args:
        gradient: name -> received gradient of one target.
        precision: name -> one over the variance of the noise on each coordinate of it.
        layers: the first layers, at least one.
        mean, factor: (K,) and (K, K) of the prior; columns beyond K are not sought.
    """
    mean, factor = mean.cpu().double(), factor.cpu().double()
    measured = []
    for columns, stacked in stacked_gradients(gradient, layers).items():
        sought = torch.tensor([column < len(mean) for column in columns])
        _, singular, right = torch.linalg.svd(stacked, full_matrices=False)
        heard = singular[0] * right[0]
        first = next(x for x in layers if tuple(x.columns.tolist()) == columns)
        assert first.layer.weight is not None
        accuracy = float(precision[first.layer.weight])
        index = torch.tensor(columns)[sought]
        measured.append((index, heard[:-1][sought], heard[-1], accuracy))
    lengths = [one for _, _, one, _ in measured]
    for _ in range(TURNS):
        left, right = torch.eye(len(mean), dtype=mean.dtype), torch.zeros_like(mean)
        for (index, heard, _, accuracy), length in zip(measured, lengths, strict=True):
            rows = factor[index]
            left += accuracy * length.square() * rows.T @ rows
            right += accuracy * length * rows.T @ (heard - length * mean[index])
        z = torch.linalg.solve(left, right)
        record = mean + factor @ z
        lengths = [
            (heard @ record[index] + one) / (record[index].square().sum() + 1)
            for index, heard, one, _ in measured
        ]
    return z
