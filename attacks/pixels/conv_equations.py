"""What a convolution's weight gradient says about its inputs, as well-conditioned equations.

A convolution's gradient is the sum over records i and places p of d_ip x_ip^T, with x_ip the patch
that the kernel sees and d_ip the gradient at its output: dW = D X with D (m, b P) and X (b P, n).
R-GAP (Zhu and Blaschko, ICLR 2021, arXiv 2010.07733) solves layer by layer from such equations and
the known outputs. D is badly conditioned, its rows are nearly alike. With D = U S V^T the same
equations read V^T X = S^-1 U^T dW: orthonormal rows, each with a known noise, that iterative
solvers take in tens of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.pixels.conv_chains import ConvLayer

EXACT = 1e-3
"""Errors of a layer's inputs, relative to the largest, that rounding may leave."""

NEGLIGIBLE = 1e-9
"""Singular values below this share of the first are zero but for rounding."""

TRUSTED = 1e-3
"""Noise, as a share of a patch's typical entry, at which an equation gets half its weight."""


@dataclass(frozen=True, eq=False)
class GradientEquations:
    """V^T X = values, for the patches X of b records.

    Attributes:
        mixing: (b, P, k), orthonormal columns over all places of all records.
        values: (k, n).
        std: (k,) standard deviation of each row's entries.
    """

    mixing: Tensor
    values: Tensor
    std: Tensor

    @classmethod
    def of(cls, deltas: Tensor, gradient: Tensor, noise_std: float | Tensor) -> GradientEquations:
        """From output gradients (b, m, P), the received gradient (m, n) and its noise.

        Args:
            noise_std: of all entries of the gradient, or (m,) of each row's.
        """
        size, units, places = deltas.shape
        joint = deltas.permute(1, 0, 2).reshape(units, size * places)
        if isinstance(noise_std, Tensor):
            joint, gradient, noise_std = (
                joint / noise_std[:, None],
                gradient / noise_std[:, None],
                1.0,
            )
        left, singular, right = torch.linalg.svd(joint, full_matrices=False)
        kept = singular > NEGLIGIBLE * singular[0].clamp_min(1e-300)
        left, singular, right = left[:, kept], singular[kept], right[kept]
        values = (left.T @ gradient) / singular[:, None]
        return cls(right.T.reshape(size, places, -1), values, noise_std / singular)

    @classmethod
    def none(cls, deltas: Tensor, gradient: Tensor) -> GradientEquations:
        """No equations, of the same shapes."""
        size, _, places = deltas.shape
        return cls(deltas.new_zeros(size, places, 0), gradient[:0], gradient[:0, 0])

    def apply(self, patches: Tensor) -> Tensor:
        """V^T X (k, n) of patches (b, n, P)."""
        return (patches @ self.mixing.to(patches)).sum(dim=0).T

    def spread(self, rows: Tensor) -> Tensor:
        """The adjoint: (k, n) to patches (b, n, P)."""
        return rows.T @ self.mixing.mT.to(rows)


@dataclass(frozen=True, eq=False)
class Inverted:
    """Inputs of a layer as far as they follow from what is known of it.

    Attributes:
        inputs: (b, *inputs).
        errors: (b,) how far each record's are from what a ReLU's outputs could be and from giving
            the known outputs, relative to the largest.
        explained: whether they satisfy the gradient's equations.
    """

    inputs: Tensor
    errors: Tensor
    explained: bool

    @property
    def exact(self) -> bool:
        """Whether they explain all that is known."""
        return self.explained and bool((self.errors <= EXACT).all())


def invert_layer(
    layer: ConvLayer,
    equations: GradientEquations,
    outputs: Tensor,
    guess: Tensor,
    *,
    free: Tensor | None = None,
    iterations: int = 300,
) -> Inverted:
    """Least squares in a layer's inputs from its weight's gradient and its active outputs.

    Conjugate gradients from ``guess`` (b, *inputs), to which directions that no equation sees keep.
    That the answer is the true one is seen in what was not used: inputs of a layer above a ReLU are
    not negative, and outputs that are inactive stay so.

    Args:
        outputs: (b, *outputs) after the ReLU.
        free: (b, *inputs) which inputs are sought; the others are as guessed. All by default.
    """
    sought = torch.ones_like(guess) if free is None else free.to(guess)
    active = (outputs > 0).to(guess).flatten(2)
    norms = layer.weight.norm(dim=1, keepdim=True)
    weight = layer.weight / norms
    typical = TRUSTED * guess.square().mean().sqrt()
    trust = 1 / (1 + (equations.std / typical.clamp_min(1e-300)).square())[:, None]

    def normal(x: Tensor) -> Tensor:
        patches = layer.patches(x)
        seen = weight.T @ (active * (weight @ patches))
        rows = equations.spread(trust * equations.apply(patches))
        return sought * layer.overlay(seen + rows)

    target = active * (outputs.flatten(2) - layer.bias[:, None]) / norms
    right = layer.overlay(weight.T @ target + equations.spread(trust * equations.values))
    heard = weight.square().T @ active
    mixed = (equations.mixing.square() @ trust)[:, :, 0]
    diagonal = layer.overlay(heard + mixed[:, None, :].expand_as(heard)).clamp_min(1e-12)
    right = sought * right - normal(guess * (1 - sought))
    start = guess * sought
    x = conjugate_gradients(normal, right, start, iterations=iterations, diagonal=diagonal)
    x = x + guess * (1 - sought)
    return Inverted(x, _errors(layer, x, outputs), _fits(layer, x, equations))


def _errors(layer: ConvLayer, x: Tensor, outputs: Tensor) -> Tensor:
    """How far ``x`` is from a ReLU's outputs and from giving ``outputs`` (b, *outputs), (b,)."""
    again = layer.linear(x.clamp_min(0.0)).relu()
    off = (again - outputs).abs().amax(dim=(1, 2, 3)) / outputs.abs().max()
    return torch.maximum(off, -x.amin(dim=(1, 2, 3)) / x.max())


def _fits(layer: ConvLayer, x: Tensor, equations: GradientEquations) -> bool:
    """Whether ``x`` satisfies the equations but for noise and what float32 rounds."""
    missing = (equations.apply(layer.patches(x)) - equations.values).abs()
    allowed = 1e-3 * equations.values.abs().max() + 4 * equations.std[:, None]
    return bool((missing <= allowed).all())


def conjugate_gradients(
    normal: Callable[[Tensor], Tensor],
    right: Tensor,
    start: Tensor,
    *,
    iterations: int,
    diagonal: Tensor | None = None,
    tolerance: float = 1e-13,
) -> Tensor:
    """Solves normal(x) = right for a symmetric, not negative ``normal``, preconditioned by Jacobi.

    Stops once the residual is ``tolerance`` times the right-hand side.
    """
    scale = torch.ones_like(right) if diagonal is None else 1 / diagonal
    x = start
    residual = right - normal(x)
    step = conditioned = scale * residual
    size = (residual * conditioned).sum()
    enough = tolerance**2 * (right * scale * right).sum()
    for _ in range(iterations):
        if not size > enough:
            break
        image = normal(step)
        length = size / (step * image).sum().clamp_min(1e-300)
        x = x + length * step
        residual = residual - length * image
        conditioned = scale * residual
        after = (residual * conditioned).sum()
        step = conditioned + (after / size) * step
        size = after
    return x
