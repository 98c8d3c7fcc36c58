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
"""Degrees of freedom of outputs' errors, whose deviations are averages over neighbours, and of
inputs' distances from what is usual."""

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

    def around(self, x: Tensor) -> Usual:
        """Wider (b, ...) where numbers ``x`` are far from what is usual: something moves there.

        Deviations are as of Student's t distribution: few, and then of any size.
        """
        away = ((x - self.mean) / self.spread).square()
        wider = ((TAILS + away) / (TAILS + 1)).clamp_min(1.0).sqrt()
        return Usual(self.mean, self.spread * wider)

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
        strain = (off / self.std).square()
        # Where most are strained it is by inputs that are not yet right.
        usual = strain[self.active].median().clamp_min(1.0) if bool(self.active.any()) else 1.0
        return replace(self, strain=strain / usual)

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


@dataclass(frozen=True, eq=False)
class InputSystem:
    """A layer's inputs as the least-squares solution of all that is known of them.

    Attributes:
        layer: with b records' outputs as in ``belief``.
        equations: of its gradient.
        usual: of the inputs.
        on_outputs: weights (b, m, P) of the active outputs.
        on_rows: (k, 1) of the equations.
        diagonal: (b, *inputs) of the normal equations.
    """

    layer: ConvLayer
    equations: GradientEquations
    belief: LayerBelief
    usual: Usual
    on_outputs: Tensor
    on_rows: Tensor
    diagonal: Tensor

    @classmethod
    def of(
        cls, layer: ConvLayer, equations: GradientEquations, belief: LayerBelief, usual: Usual
    ) -> InputSystem:
        """Everything counts by its precision."""
        finest = FINEST * usual.spread.mean()
        loose = belief.loose.flatten(2)
        on_outputs = belief.active.flatten(2) / (loose.square() + finest.square())
        on_rows = 1 / (equations.std.square() + finest.square())[:, None]
        heard = layer.weight.T.square() @ on_outputs
        mixed = (equations.mixing.square() @ on_rows)[:, :, 0]
        diagonal = layer.overlay(heard + mixed[:, None, :].expand_as(heard))
        diagonal = diagonal + 1 / usual.spread.square()
        return cls(layer, equations, belief, usual, on_outputs, on_rows, diagonal)

    def likeliest(self, start: Tensor) -> Tensor:
        """Inputs (b, *inputs), from where to start."""
        mean = self.usual.mean.expand_as(self.diagonal)
        start = start.expand_as(self.diagonal)
        return self._solved(self.belief.outputs, self.equations.values, mean, start)

    def std(self, likeliest: Tensor, generator: torch.Generator) -> Tensor:
        """Standard deviations (b, *inputs) of the inputs about the ``likeliest``."""
        square = torch.zeros_like(likeliest)
        for _ in range(DRAWS):
            outputs = _drawn(self.belief.outputs, self.belief.loose, generator)
            values = _drawn(self.equations.values, self.equations.std[:, None], generator)
            mean = _drawn(self.usual.mean.expand_as(likeliest), self.usual.spread, generator)
            disturbed = self._solved(outputs, values, mean, mean)
            square += (disturbed - likeliest).square() / DRAWS
        return F.avg_pool2d(square, 3, 1, 1, count_include_pad=False).sqrt()

    def _solved(self, outputs: Tensor, values: Tensor, mean: Tensor, start: Tensor) -> Tensor:
        """From outputs (b, *outputs), the equations' values and the usual inputs."""
        layer, weight = self.layer, self.layer.weight
        target = self.on_outputs * (outputs.flatten(2) - layer.bias[:, None])
        rows = self.equations.spread(self.on_rows * values)
        right = layer.overlay(weight.T @ target + rows) + mean / self.usual.spread.square()
        return conjugate_gradients(
            self._normal,
            right,
            start,
            iterations=STEPS,
            diagonal=self.diagonal,
            tolerance=ENOUGH,
        )

    def _normal(self, x: Tensor) -> Tensor:
        weight, patches = self.layer.weight, self.layer.patches(x)
        rows = self.equations.spread(self.on_rows * self.equations.apply(patches))
        seen = weight.T @ (self.on_outputs * (weight @ patches))
        return self.layer.overlay(seen + rows) + x / self.usual.spread.square()


def _drawn(mean: Tensor, std: Tensor, generator: torch.Generator) -> Tensor:
    return mean + std * torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
