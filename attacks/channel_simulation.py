"""What a defence would have made of other gradients, from its description alone.

An adversary that knows the channel (Kerckhoffs' principle) can send gradients of its own making
through it as often as it likes. This replays the mechanisms of ``Channel.mechanisms`` in their
order on many clients' gradients at once, so that attacks can learn from channels whose likelihood
cannot be written down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from attacks.channel import Channel

Mechanism: TypeAlias = Mapping[str, Any]

Step: TypeAlias = Callable[[Tensor, Mechanism, Sequence[int], torch.Generator], Tensor]
"""(releases (n, P), mechanism, sizes of the tensors, generator) to what it sends on."""


class ChannelSimulation:
    """Sends gradients of one record each through a channel."""

    def __init__(self, channel: Channel, sizes: Sequence[int]) -> None:
        """``sizes``: entries of each released tensor, in the order of the flat gradient.

        Raises:
            ValueError: a mechanism is unknown; see ``not_simulated``.
        """
        reason = not_simulated(channel)
        if reason:
            raise ValueError(reason)
        self._channel = channel
        self._sizes = list(sizes)

    def draw(self, gradients: Tensor, generator: torch.Generator) -> Tensor:
        """(n, P) to one random release each; under a sum of k clients to (n / k, P).

        There, k rows that follow each other are the clients of one sum.
        """
        released = gradients
        for mechanism in self._channel.mechanisms:
            step = _STEPS[mechanism["mechanism"]]
            released = step(released, mechanism, self._sizes, generator)
        if not self._channel.mechanisms and self._channel.noise_std > 0:
            return _noised(released, self._channel.noise_std, generator)
        return released

    def signal(self, gradients: Tensor) -> Tensor:
        """(n, P) with what the channel does without its unbiased noise: clipping and zeroing."""
        for mechanism in self._channel.mechanisms:
            if mechanism["mechanism"] in _SHAPING:
                step = _SHAPING[mechanism["mechanism"]]
                gradients = step(gradients, mechanism, self._sizes, torch.Generator())
        return gradients


def not_simulated(channel: Channel) -> str:
    """Why the channel cannot be simulated, naming the mechanism; empty if it can."""
    names = [m["mechanism"] for m in channel.mechanisms if m["mechanism"] not in _STEPS]
    return f"no simulation of the mechanism {names[0]!r}" if names else ""


def _gaussian(
    releases: Tensor, mechanism: Mechanism, sizes: Sequence[int], generator: torch.Generator
) -> Tensor:
    return _noised(releases, mechanism["noise_std"], generator)


def _clip(
    releases: Tensor, mechanism: Mechanism, sizes: Sequence[int], generator: torch.Generator
) -> Tensor:
    return clipped(releases, mechanism["norm"])


def _clip_record(
    releases: Tensor, mechanism: Mechanism, sizes: Sequence[int], generator: torch.Generator
) -> Tensor:
    return clipped(releases, mechanism["clip_norm"])


def _dp_sgd(
    releases: Tensor, mechanism: Mechanism, sizes: Sequence[int], generator: torch.Generator
) -> Tensor:
    clipped = _clip_record(releases, mechanism, sizes, generator)
    return _noised(clipped, mechanism["noise_std"], generator)


def _quantize(
    releases: Tensor, mechanism: Mechanism, sizes: Sequence[int], generator: torch.Generator
) -> Tensor:
    """Unbiased rounding to ``points`` values between -max and +max of each tensor and row."""
    intervals = mechanism["points"] - 1
    # Counted in steps from zero, which is a point of the grid or lies half-way between two.
    offset = 0.5 * (intervals % 2)
    parts = []
    for part in releases.split(list(sizes), dim=1):
        width = part.abs().amax(dim=1, keepdim=True) * (2 / intervals)
        place = part / width.clamp_min(torch.finfo(part.dtype).tiny) + offset
        lower = place.floor()
        draw = torch.rand(part.shape, dtype=part.dtype, device=part.device, generator=generator)
        code = lower + (draw < place - lower).to(part.dtype) - offset
        # Rounding may put the largest coordinate beyond the grid.
        parts.append(code.clamp_(-intervals / 2, intervals / 2) * width)
    return torch.cat(parts, dim=1)


def _topk(
    releases: Tensor, mechanism: Mechanism, sizes: Sequence[int], generator: torch.Generator
) -> Tensor:
    """The largest coordinates of the whole gradient; what earlier rounds left over is unknown."""
    kept = math.ceil(mechanism["fraction"] * releases.shape[1])
    index = releases.abs().topk(kept, dim=1, sorted=False).indices
    return torch.zeros_like(releases).scatter_(1, index, releases.gather(1, index))


def _secagg(
    releases: Tensor, mechanism: Mechanism, sizes: Sequence[int], generator: torch.Generator
) -> Tensor:
    """The mean over groups; the fixed point's rounding, 2^-40 and less, is left out."""
    return releases.unflatten(0, (-1, mechanism["clients"])).mean(dim=1)


def _distributed_dp(
    releases: Tensor, mechanism: Mechanism, sizes: Sequence[int], generator: torch.Generator
) -> Tensor:
    """The mean over groups of clipped gradients, each with its share of the noise."""
    return _secagg(_dp_sgd(releases, mechanism, sizes, generator), mechanism, sizes, generator)


def clipped(releases: Tensor, limit: float) -> Tensor:
    """Rows (n, P), scaled down to norm ``limit`` where they are longer."""
    norm = releases.norm(dim=1, keepdim=True).clamp_min(torch.finfo(releases.dtype).tiny)
    return releases * (limit / norm).clamp_max(1.0)


def _noised(releases: Tensor, std: float, generator: torch.Generator) -> Tensor:
    return torch.empty_like(releases).normal_(0.0, std, generator=generator).add_(releases)


_STEPS: dict[str, Step] = {
    "gaussian": _gaussian,
    "clip": _clip,
    "dp-sgd": _dp_sgd,
    "quantize": _quantize,
    "topk": _topk,
    "secagg": _secagg,
    "he": _secagg,
    "distributed-dp": _distributed_dp,
}

_SHAPING: dict[str, Step] = {
    "clip": _clip,
    "dp-sgd": _clip_record,
    "distributed-dp": _clip_record,
    "topk": _topk,
}
