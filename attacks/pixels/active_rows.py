"""Which units of a layer are active, by what each channel's received gradient says under noise.

A channel's row of the gradient is the sum, over its active units, of the unit's output gradient
times the patch that it sees. Once the patches are nearly known, one unit too many or too few stands
out of the noise by hundreds, in hundreds of numbers at once. A background repeats one patch, and
whether the units that see it are active is one question.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.pixels.layer_beliefs import LayerBelief
from attacks.pixels.received_layers import ReceivedLayer

MOST_FLIPS = 40
"""Units of a channel that are changed one by one."""

SLIGHT = 5.0
"""Nats: that an active unit is so near to zero is about as rare as the noise is small."""

UNEXPLAINED, DOUBT = 1.3, 5.0
"""Times the usual misfit from which a channel's row is wrong, and the noise it then counts as."""


def settle_rows(
    received: ReceivedLayer, belief: LayerBelief, inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Each unit's chance (b, *outputs) to be active, by the rows and its output, given the inputs.

    Also how much noise (m,) the rows that the likeliest units leave unexplained count as.
    """
    columns = received.seen(inputs).transpose(0, 1).flatten(1) / received.noise  # (n, b P)
    targets = received.gradient / received.noise
    if received.bias is not None:
        ones = torch.full_like(columns[:1], 1 / received.bias_noise)
        columns = torch.cat([columns, ones])
        targets = torch.cat([targets, received.bias[:, None] / received.bias_noise], dim=1)
    by_channel = [
        x.transpose(0, 1).flatten(1)
        for x in (belief.deltas, belief.log_odds, received.layer.linear(inputs), belief.active)
    ]
    channels = [_Channel(columns, t, *x) for t, *x in zip(targets, *by_channel, strict=True)]
    chosen = [c.settled() for c in channels]
    chances = [c.chances(a) for c, a in zip(channels, chosen, strict=True)]
    after = torch.stack(
        [c.misfit(a).square().mean().sqrt() for c, a in zip(channels, chosen, strict=True)]
    )
    wrong = after > UNEXPLAINED * after.median().clamp_min(1.0)
    unheard = (after.square() - 1).clamp_min(0).sqrt()
    doubt = received.noise * torch.where(wrong, DOUBT * after, unheard)
    shape = belief.active.transpose(0, 1).shape
    return torch.stack(chances).reshape(shape).transpose(0, 1), doubt


@dataclass(frozen=True, eq=False)
class _Channel:
    """One channel's row of the gradient in units of its noise, and its k units.

    Attributes:
        columns: (n, k) what each unit adds, for a delta of one.
        target: (n,) received.
        deltas: (k,).
        log_odds: (k,) of being active.
        formed: (k,) outputs that the inputs give, before the ReLU.
        active: (k,).
    """

    columns: Tensor
    target: Tensor
    deltas: Tensor
    log_odds: Tensor
    formed: Tensor
    active: Tensor

    def misfit(self, active: Tensor) -> Tensor:
        """What the active units leave of the row, (n,)."""
        return self.target - self.columns @ (self.deltas * active)

    def chances(self, active: Tensor) -> Tensor:
        """Of each unit (k,) to be active, given what the others are."""
        saved = self._saved(active, self.misfit(active))
        return torch.where(active, -saved, saved).sigmoid()

    def settled(self) -> Tensor:
        """The likeliest active units."""
        active = self._threshold()
        left = self.misfit(active)
        for _ in range(MOST_FLIPS):
            saved = self._saved(active, left)
            best = int(saved.argmax())
            if not saved[best] > 0:
                break
            sign = 1.0 if active[best] else -1.0
            left = left + sign * self.deltas[best] * self.columns[:, best]
            active[best] = ~active[best]
        return active

    def _saved(self, active: Tensor, left: Tensor) -> Tensor:
        """Nats (k,) that changing each unit saves."""
        sign = torch.where(active, 1.0, -1.0).to(left)
        pull = 2 * sign * self.deltas * (self.columns.T @ left)
        size = self.columns.square().sum(dim=0) * self.deltas.square()
        square = left.square().sum()
        return self._price(square) - self._price(square + pull + size) - sign * self.log_odds

    def _price(self, squares: Tensor) -> Tensor:
        """Nats of squared misfits; how much the inputs' errors add to the noise is not known."""
        count = len(self.target)
        mean = squares / count
        return count / 2 * torch.where(mean > 1, mean.log(), mean - 1)

    def _threshold(self) -> Tensor:
        """Units beyond the best threshold of what the inputs give, if likelier than those given."""
        order = self.formed.argsort(descending=True)
        steps = self.columns[:, order] * self.deltas[order]
        left = self.target[:, None] - torch.cat([0 * steps[:, :1], steps.cumsum(dim=1)], dim=1)
        # Units of a background are one coincidence, not many: slight odds against each do not add.
        odds = torch.where(self.log_odds < 0, (self.log_odds + SLIGHT).clamp_max(0), self.log_odds)
        summed = torch.cat([odds.new_zeros(1), odds[order].cumsum(dim=0)])
        costs = self._price(left.square().sum(dim=0)) - summed
        best = int(costs.argmin())
        given = self._price(self.misfit(self.active).square().sum())
        if not costs[best] < given - odds[self.active].sum():
            return self.active.clone()
        active = torch.zeros_like(self.active)
        active[order[:best]] = True
        return active
