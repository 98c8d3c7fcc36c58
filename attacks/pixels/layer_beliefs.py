"""What is believed of a layer's outputs under noise, and its likeliest inputs by these.

Without noise a layer's inputs are solved for exactly (``conv_equations``). With noise they are
Gaussian: the equations of the layer's gradient and its active outputs each count by their noise,
the samples' mean and spread fill in what neither says. How uncertain each input then is follows
from solving again with all of these disturbed by as much as they are uncertain (Papandreou and
Yuille 2010, NIPS, "Gaussian sampling by local perturbations").
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import Tensor
from torch.special import log_ndtr

from attacks.pixels.conv_chains import ConvLayer
from attacks.pixels.conv_equations import GradientEquations, conjugate_gradients

DRAWS = 4
"""Disturbed solutions; their spread is averaged over neighbours, which are uncertain alike."""

STEPS = 400
"""Of conjugate gradients, at most."""

ENOUGH = 1e-7
"""Relative residual at which they stop."""

FINEST = 1e-4
"""Least uncertainty that counts, relative to the samples' spread: more would take more steps."""

LEAST_SPREAD = 0.3
"""Of a unit in the samples, relative to the mean: what never moved in them may move after all."""

TAILS = 4.0
"""Degrees of freedom of outputs' errors: their standard deviations are averages over neighbours."""

NOTHING = 0.01
"""What is heard of an input at least, relative to what samples say of it."""


@dataclass(frozen=True, eq=False)
class Usual:
    """What samples say of numbers of a layer: mean and standard deviation, (1, ...) each."""

    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, seen: Tensor) -> Usual:
        """From (n, ...), maybe of one sample only."""
        mean = seen.mean(dim=0, keepdim=True)
        spread = seen.std(dim=0, correction=0, keepdim=True)
        if len(seen) == 1:
            spread = seen.square().mean().sqrt().expand_as(mean)
        return cls(mean, (spread.square() + (LEAST_SPREAD * spread.mean()).square()).sqrt())

    def without(self, x: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """What was heard of numbers ``x`` beyond what is usual, which had its part in them.

        The layer below has knowledge of its own of what is usual, and must not count it twice.
        """
        before = 1 / self.spread.square()
        added = (1 / std.square() - before).clamp_min(NOTHING * before)
        return self.mean + (x - self.mean) / (std.square() * added), added.rsqrt()


@dataclass(frozen=True, eq=False)
class LayerBelief:
    """Of one layer's outputs, for b records; all are (b, *outputs).

    Attributes:
        outputs: after the ReLU, as heard: errors make some of them negative.
        std: their standard deviation.
        deltas: gradients of the loss with respect to the outputs.
        spread: usual standard deviation before the ReLU.
        log_odds: of each unit's being active, by its output alone.
        chance: of the same, by all that is known.
        strain: squared distances, in standard deviations, of the outputs from what the inputs last
            solved for give.
    """

    outputs: Tensor
    std: Tensor
    deltas: Tensor
    spread: Tensor
    log_odds: Tensor
    chance: Tensor
    strain: Tensor

    @classmethod
    def of(cls, outputs: Tensor, std: Tensor, deltas: Tensor, before: Usual) -> LayerBelief:
        """``before`` is usual before the ReLU; Gaussian, so that an inactive unit gives zero."""
        wide = before.spread.square() + std.square()
        mean = (outputs * before.spread.square() + before.mean * std.square()) / wide
        active = _log_normal(outputs - before.mean, wide.sqrt())
        active = active + log_ndtr(mean * wide.sqrt() / (before.spread * std))
        inactive = _log_normal(outputs, std) + log_ndtr(-before.mean / before.spread)
        log_odds = active - inactive
        return cls(outputs, std, deltas, before.spread, log_odds, log_odds.sigmoid(), 0 * std)

    @property
    def active(self) -> Tensor:
        """Units that probably are."""
        return self.chance > 0.5

    @property
    def loose(self) -> Tensor:
        """Standard deviations of what the outputs say of what comes before the ReLU.

        Of an active unit its output is that; of an inactive one zero is more than that. If it may
        be either, what is usual before the ReLU may be either, too. Those far from what the inputs
        give are less certain than they seemed: their errors are as of Student's t distribution.
        """
        unsure = torch.minimum(self.chance, 1 - self.chance)
        tails = ((TAILS + self.strain) / (TAILS + 1)).clamp_min(1.0)
        return (tails * self.std.square() + unsure * self.spread.square()).sqrt()

    def strained(self, formed: Tensor) -> LayerBelief:
        """By what solved inputs give before the ReLU, (b, *outputs)."""
        off = formed - self.outputs.clamp_min(0.0)
        off = torch.where(self.active, off, off.clamp_min(0.0))
        return replace(self, strain=(off / self.std).square())

    @property
    def sent(self) -> Tensor:
        """Expected gradients before the ReLU."""
        return self.deltas * self.chance

    @property
    def doubt(self) -> Tensor:
        """Variances of these."""
        return self.deltas.square() * self.chance * (1 - self.chance)


def _log_normal(x: Tensor, std: Tensor) -> Tensor:
    """Log density of N(0, std^2), but for the constant."""
    return -(x / std).square() / 2 - std.log()


def likeliest_inputs(
    layer: ConvLayer,
    equations: GradientEquations,
    belief: LayerBelief,
    usual: Usual,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (b, *inputs) of a layer's inputs."""
    finest = FINEST * usual.spread.mean()
    on_outputs = belief.active.flatten(2) / (belief.loose.flatten(2).square() + finest.square())
    on_rows = 1 / (equations.std.square() + finest.square())[:, None]
    on_usual = 1 / usual.spread.square()
    weight, bias = layer.weight, layer.bias[:, None]

    def normal(x: Tensor) -> Tensor:
        patches = layer.patches(x)
        rows = equations.spread(on_rows * equations.apply(patches))
        return layer.overlay(weight.T @ (on_outputs * (weight @ patches)) + rows) + on_usual * x

    heard = weight.square().T @ on_outputs
    mixed = (equations.mixing.square() @ on_rows)[:, :, 0]
    diagonal = layer.overlay(heard + mixed[:, None, :].expand_as(heard)) + on_usual

    def solved(outputs: Tensor, values: Tensor, mean: Tensor) -> Tensor:
        target = on_outputs * (outputs.flatten(2) - bias)
        rows = equations.spread(on_rows * values)
        right = layer.overlay(weight.T @ target + rows) + on_usual * mean
        return conjugate_gradients(
            normal, right, mean, iterations=STEPS, diagonal=diagonal, tolerance=ENOUGH
        )

    def drawn(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    mean = usual.mean.expand(len(belief.outputs), *layer.inputs)
    x = solved(belief.outputs, equations.values, mean)
    square = torch.zeros_like(x)
    for _ in range(DRAWS):
        disturbed = solved(
            belief.outputs + belief.loose * drawn(belief.outputs),
            equations.values + equations.std[:, None] * drawn(equations.values),
            mean + usual.spread * drawn(mean),
        )
        square += (disturbed - x).square() / DRAWS
    return x, F.avg_pool2d(square, 3, 1, 1, count_include_pad=False).sqrt()
