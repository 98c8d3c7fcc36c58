"""Why ``cocktail`` does not use independence: what FastICA makes of a batch's output gradients.

    python tests/benchmarks/cocktail_ica.py [--env ant] [--hidden 128] [--rounds 500]

The first layers of both critics give [dW | dc] = D^T [X | 1], each unit a sample and each record a
source. For each batch size: the mean absolute cosine between the output gradients of two records,
the kurtosis of their entries (3 if Gaussian), and the share of records whose output gradient
FastICA (Hyvarinen, 1999, IEEE Trans. Neural Networks 10(3); symmetric, tanh) finds with a cosine
above 0.95. ``whitened`` does the same after whitening by the covariance of 500 other records'
output gradients, which makes sources orthogonal. No noise, and D is known to the script alone.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
import typer
from spear_batches import observe, replayed, training
from torch import Tensor

from attacks import Observation, Transitions
from attacks.batches.row_spaces import mixing_layers
from attacks.gradients.layer_calls import LayerCalls
from attacks.gradients.linear_layers import LinearLayer


def output_gradients(
    observation: Observation, z: Transitions, layers: list[LinearLayer]
) -> tuple[Tensor, Tensor]:
    """D (b, M) and [X | 1] (b, n + 1) of layers that read the same."""
    with LayerCalls([layer.module for layer in layers]) as hooks:
        loss = observation.loss(observation.model, z)
    found = torch.autograd.grad(loss, [out for _, _, out in hooks.calls])
    inputs = hooks.calls[0][1].detach().double()
    return torch.cat(found, dim=1).double(), F.pad(inputs, (0, 1), value=1.0)


def fastica(samples: Tensor, count: int) -> Tensor:
    """Sources (M, count) of the column space of ``samples`` (M, n), unit columns."""
    white = torch.linalg.svd(samples, full_matrices=False)[0][:, :count] * len(samples) ** 0.5
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(count, count, generator=generator, dtype=samples.dtype)
    weights = torch.linalg.qr(start)[0]
    for _ in range(300):
        value = torch.tanh(white @ weights)
        moved = white.T @ value / len(white) - weights * (1 - value.square()).mean(dim=0)
        left, _, right = torch.linalg.svd(moved)
        weights = left @ right
    return F.normalize(white @ weights, dim=0)


def line(deltas: Tensor, inputs: Tensor) -> str:
    """Cosine, kurtosis and share found of sources D (b, M)."""
    unit = F.normalize(deltas, dim=1)
    count = len(unit)
    cosine = (unit @ unit.T).fill_diagonal_(0).abs().sum() / (count * (count - 1))
    kurtosis = unit.pow(4).mean(dim=1) / unit.square().mean(dim=1).square()
    nearest = (unit @ fastica(deltas.T @ inputs, count)).abs().amax(dim=1)
    share = float((nearest > 0.95).double().mean())
    return f"{float(cosine):>8.2f}{float(kurtosis.median()):>9.1f}{share:>7.0%}"


def main(
    env: Annotated[str, typer.Option(help="Environment.")] = "ant",
    hidden: Annotated[int, typer.Option(help="Units of each hidden layer.")] = 128,
    rounds: Annotated[int, typer.Option(help="Rounds of training before the capture.")] = 500,
) -> None:
    """Prints what the sources look like and how many are found."""
    torch.set_num_threads(1)
    print(f"{env}, twin critics of {hidden}-{hidden}, {rounds} rounds")
    print(f"{'critic':<12}{'batch':>6}{'cosine':>8}{'kurtosis':>9}{'found':>7}    whitened")
    for norm in (False, True):
        cell = training(env, hidden, norm)
        for _ in range(rounds):
            cell.federation.collect(explore=True)
            cell.federation.round(0.0)
        z = replayed(cell, 532)
        observation = observe(cell, z[:2], 0.0)
        full = z.state.shape[1] + z.action.shape[1]
        layers = [x for x in mixing_layers(observation) if x.module.in_features == full]
        others = F.normalize(output_gradients(observation, z[32:], layers)[0], dim=1)
        values, vectors = torch.linalg.eigh(others.T @ others / len(others))
        whiten = vectors @ torch.diag((values + 0.03 * values.mean()) ** -0.5) @ vectors.T
        for batch in (4, 8, 16, 32):
            deltas, inputs = output_gradients(observation, z[:batch], layers)
            kind = "LayerNorm" if norm else "plain"
            print(
                f"{kind:<12}{batch:>6}{line(deltas, inputs)}    {line(deltas @ whiten, inputs)}",
                flush=True,
            )


if __name__ == "__main__":
    typer.run(main)
