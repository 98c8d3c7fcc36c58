"""Noise in the tangent space of the record, and how an adversary that knows of it takes it off.

Noise n = J(z) x along the derivatives J of the gradient by the record z spends nothing where it
hides nothing (the shape that arXiv 2411.03746 argues for). But its covariance points at the record.
A dense layer with inputs x and deltas d releases [dW | db] = d' (x, 1)^T + d (q, 0)^T for a
direction q, so its rows span a plane in which x lies on a known line; and at each point of that
line the whole release is linear in two numbers. One search along a line gives the record back
exactly, whatever the noise's size, if d' is no multiple of d: with LayerNorm, or any activation
that bends. With ReLUs alone d' is one, and the noise is, up to gates that flip, that of a gradient
at a moved record.

    python tests/benchmarks/tangent_noise.py
"""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from torch import Tensor
from torch.func import grad, jvp
from torch.nn.functional import layer_norm, relu

INPUTS, HIDDEN = 14, 64


class Network:
    """A critic with two hidden layers, and the derivative of its value by its weights."""

    def __init__(self, *, normed: bool, generator: torch.Generator) -> None:
        def draw(*shape: int) -> Tensor:
            scale = shape[-1] ** -0.5
            return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.normed = normed
        self.weights = [
            draw(HIDDEN, INPUTS),
            draw(HIDDEN),
            draw(HIDDEN, HIDDEN),
            draw(HIDDEN),
            draw(1, HIDDEN),
            draw(1),
        ]

    def gradient(self, x: Tensor) -> Tensor:
        """(P,) at one record (INPUTS,)."""
        return torch.cat([part.reshape(-1) for part in grad(self._value)(self.weights, x)])

    def _value(self, weights: list[Tensor], x: Tensor) -> Tensor:
        for weight, bias in (weights[:2], weights[2:4]):
            x = weight @ x + bias
            x = relu(layer_norm(x, (HIDDEN,)) if self.normed else x)
        return (weights[4] @ x + weights[5])[0]


def released(network: Network, x: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """The gradient delta dQ(x) plus noise J (xi, xi_delta), in units of the record's deviation."""
    noise = std * torch.randn(INPUTS + 1, generator=generator, dtype=torch.float64)
    delta = 5 * torch.randn((), generator=generator, dtype=torch.float64)
    value, change = jvp(network.gradient, (x,), (noise[:-1],))[:2]
    return (delta + noise[-1]) * value + delta * change


def taken_off(network: Network, release: Tensor) -> Tensor:
    """The record (INPUTS,) whose line and two factors explain the release best."""
    weight, bias, _ = release.split([HIDDEN * INPUTS, HIDDEN, len(release) - HIDDEN * (INPUTS + 1)])
    rows = torch.cat([weight.reshape(HIDDEN, INPUTS), bias[:, None]], dim=1)
    first, second = torch.linalg.svd(rows, full_matrices=False).Vh[:2]
    along = (first * second[-1] - second * first[-1])[:-1]
    along = along / along.norm()
    origin = first if first[-1].abs() > second[-1].abs() else second
    origin = origin[:-1] / origin[-1]
    origin = origin - (origin @ along) * along

    def misfit(t: float) -> float:
        basis = torch.stack(jvp(network.gradient, (origin + t * along,), (along,)), dim=1)
        factors = torch.linalg.lstsq(basis, release[:, None]).solution
        return float((basis @ factors - release[:, None]).norm())

    places = torch.linspace(-12, 12, 241).tolist()
    best = min(range(len(places)), key=lambda i: misfit(places[i]))
    low, high = places[max(best - 1, 0)], places[min(best + 1, len(places) - 1)]
    for _ in range(60):
        left, right = low + 0.382 * (high - low), low + 0.618 * (high - low)
        low, high = (low, right) if misfit(left) < misfit(right) else (left, high)
    return origin + (low + high) / 2 * along


def main(
    targets: Annotated[int, typer.Option(help="Records of each setting.")] = 20,
) -> None:
    """Prints how many records are found to within 1e-3 of their deviation, and the median error."""
    generator = torch.Generator().manual_seed(0)
    print(f"{'network':<12}{'noise std':>10}{'found':>10}{'median mse':>12}")
    for normed in (True, False):
        network = Network(normed=normed, generator=generator)
        for std in (1.0, 3.0):
            errors = []
            for _ in range(targets):
                x = torch.randn(INPUTS, generator=generator, dtype=torch.float64)
                answer = taken_off(network, released(network, x, std, generator))
                errors.append(float((answer - x).square().mean()))
            found = sum(error < 1e-6 for error in errors)
            median = float(torch.tensor(errors).median())
            name = "LayerNorm" if normed else "ReLU alone"
            print(f"{name:<12}{std:>10g}{f'{found}/{targets}':>10}{median:>12.1e}")


if __name__ == "__main__":
    typer.run(main)
