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

from attacks.channel import Channel, Clipping

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


def _laplace(
    releases: Tensor, mechanism: Mechanism, sizes: Sequence[int], generator: torch.Generator
) -> Tensor:
    up, down = (torch.empty_like(releases).exponential_(generator=generator) for _ in range(2))
    return releases + mechanism["scale"] * (up - down)


def _adaptive_gaussian(
    releases: Tensor, mechanism: Mechanism, sizes: Sequence[int], generator: torch.Generator
) -> Tensor:
    """Noise of expected norm ``noise_to_signal`` times each row's."""
    std = mechanism["noise_to_signal"] * releases.norm(dim=1, keepdim=True)
    noise = torch.empty_like(releases).normal_(generator=generator)
    return releases + noise * (std / releases.shape[1] ** 0.5)


def _layer_clip(
    releases: Tensor, mechanism: Mechanism, sizes: Sequence[int], generator: torch.Generator
) -> Tensor:
    return clipped_as([Clipping(mechanism["tensor_norm"], per_tensor=True)], releases, sizes)


def _clip(
    releases: Tensor, mechanism: Mechanism, sizes: Sequence[int], generator: torch.Generator
) -> Tensor:
    return clipped(releases, mechanism["norm"])


def _clip_record(
    releases: Tensor, mechanism: Mechanism, sizes: Sequence[int], generator: torch.Generator
) -> Tensor:
    if "tensor_norm" in mechanism:
        return _layer_clip(releases, mechanism, sizes, generator)
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
    return _kept(releases, releases.abs(), mechanism)


def _randk(
    releases: Tensor, mechanism: Mechanism, sizes: Sequence[int], generator: torch.Generator
) -> Tensor:
    """Coordinates drawn anew for every release, scaled to stay unbiased."""
    draw = torch.rand(releases.shape, device=releases.device, generator=generator)
    gain = releases.shape[1] / math.ceil(mechanism["fraction"] * releases.shape[1])
    return gain * _kept(releases, draw, mechanism)


def _kept(releases: Tensor, order: Tensor, mechanism: Mechanism) -> Tensor:
    """A ``fraction`` of the coordinates (n, P), those first in ``order``; zero elsewhere."""
    kept = math.ceil(mechanism["fraction"] * releases.shape[1])
    index = order.topk(kept, dim=1, sorted=False).indices
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


def clipped_as(clips: Sequence[Clipping], releases: Tensor, sizes: Sequence[int]) -> Tensor:
    """Rows (n, P) after the clippings in their order; ``sizes`` of the tensors."""
    for clip in clips:
        if clip.per_tensor:
            parts = [clipped(part, clip.limit) for part in releases.split(list(sizes), dim=1)]
            releases = torch.cat(parts, dim=1)
        else:
            releases = clipped(releases, clip.limit)
    return releases


def _noised(releases: Tensor, std: float, generator: torch.Generator) -> Tensor:
    return torch.empty_like(releases).normal_(0.0, std, generator=generator).add_(releases)


_STEPS: dict[str, Step] = {
    "gaussian": _gaussian,
    "laplace": _laplace,
    "adaptive-gaussian": _adaptive_gaussian,
    "clip": _clip,
    "layer-clip": _layer_clip,
    "dp-sgd": _dp_sgd,
    "quantize": _quantize,
    "topk": _topk,
    "randk": _randk,
    "secagg": _secagg,
    "he": _secagg,
    "distributed-dp": _distributed_dp,
}

_SHAPING: dict[str, Step] = {
    "clip": _clip,
    "layer-clip": _layer_clip,
    "dp-sgd": _clip_record,
    "distributed-dp": _clip_record,
    "topk": _topk,
}
