"""What a defence did to the gradient on its way to the server, as far as the server knows it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RESCALING = frozenset({"clip", "dp-sgd", "distributed-dp"})
ZEROING = frozenset({"topk"})
SUMMING = frozenset({"secagg", "distributed-dp", "he"})
"""The server sees the mean over several clients only."""
GAUSSIAN = frozenset({"gaussian", "dp-sgd", "clip"}) | SUMMING


@dataclass(frozen=True)
class Channel:
    """The known law of the received gradient given the true one (Kerckhoffs' principle).

    Attributes:
        noise_std: standard deviation of the Gaussian noise on each coordinate of the received
            gradient, in gradient units. An upper bound where clipping follows the noise.
        mechanisms: the defence's own description in the order of application, one plain mapping
            each: ``{"mechanism": name, **parameters}``.

    Raises:
        ValueError: if ``noise_std`` is negative or not finite, or a mechanism has no name.
    """

    noise_std: float = 0.0
    mechanisms: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        _check_std(self.noise_std)
        for mechanism in self.mechanisms:
            _name(mechanism)

    @classmethod
    def from_description(
        cls, description: Sequence[Mapping[str, Any]], clients: int | None = None
    ) -> Channel:
        """Builds the channel from what a defence says of itself.

        A mechanism may state ``noise_std``, the noise that it adds to one client's gradient;
        independent noises add in variance. ``secagg`` and its like state ``clients`` k: the server
        sees the mean of k clients, so the noise of each shrinks by sqrt(k).

        Args:
            description: one plain mapping a mechanism, in the order of application.
            clients: those behind this release, which is fewer than stated where some dropped out.
        """
        variance = 0.0
        mechanisms = []
        for mechanism in description:
            variance += _check_std(mechanism.get("noise_std", 0.0)) ** 2
            if _name(mechanism) in SUMMING:
                summed = mechanism.get("clients") if clients is None else clients
                if not isinstance(summed, int) or summed < 1:
                    raise ValueError(f"{_name(mechanism)} needs clients >= 1, got {summed!r}")
                variance /= summed
                mechanism = {**mechanism, "clients": summed}
            mechanisms.append(dict(mechanism))
        return cls(math.sqrt(variance), tuple(mechanisms))

    @property
    def scale_unknown(self) -> bool:
        """Whether the gradient may have been multiplied by a factor that the server cannot know."""
        return any(_name(m) in RESCALING for m in self.mechanisms)

    @property
    def clip(self) -> float | None:
        """Smallest norm that each record's gradient is scaled down to; None without clipping.

        ``clip`` and ``distributed-dp`` act on the whole gradient (see ``clips_sum``), which
        is a record's at batch size one alone.
        """
        limits = [
            float(m[key])
            for m in self.mechanisms
            for key in ("norm", "clip_norm")
            if _name(m) in RESCALING and key in m
        ]
        return min(limits, default=None)

    @property
    def random(self) -> bool:
        """Whether the received gradient is a random function of the true one."""
        return self.noise_std > 0 or self.quantization_steps is not None

    @property
    def clips_sum(self) -> bool:
        """Whether a mean over records may have been scaled down as a whole."""
        return any(_name(m) in {"clip", "distributed-dp"} for m in self.mechanisms)

    @property
    def sums(self) -> bool:
        """Whether the received gradient is a mean over several clients."""
        return any(_name(m) in SUMMING for m in self.mechanisms)

    @property
    def quantization_steps(self) -> int | None:
        """Intervals of the coarsest rounding grid between -max and +max of a tensor, if any."""
        points = [int(m["points"]) for m in self.mechanisms if _name(m) == "quantize"]
        return min(points) - 1 if points else None

    @property
    def gaussian(self) -> bool:
        """Whether the received gradient is the (clipped) gradient plus Gaussian noise, no more."""
        return {_name(m) for m in self.mechanisms} <= GAUSSIAN

    @property
    def zeroed(self) -> bool:
        """Whether a zero in the gradient may mean "not sent" instead of zero."""
        return any(_name(m) in ZEROING for m in self.mechanisms)

    @property
    def exact(self) -> bool:
        """Whether the gradient arrives as the client computed it."""
        return self.noise_std == 0 and not self.mechanisms

    def __str__(self) -> str:
        if not self.mechanisms:
            return f"gaussian(noise_std={self.noise_std:g})" if self.noise_std else "identity"
        parts = []
        for mechanism in self.mechanisms:
            values = ", ".join(f"{k}={v}" for k, v in mechanism.items() if k != "mechanism")
            parts.append(f"{_name(mechanism)}({values})")
        return "+".join(parts)


def _name(mechanism: Mapping[str, Any]) -> str:
    name = mechanism.get("mechanism")
    if not isinstance(name, str) or not name:
        raise ValueError(f"a mechanism needs a name under the key 'mechanism', got {mechanism!r}")
    return name


def _check_std(value: Any) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"noise_std must be a finite number >= 0, got {value!r}")
    return float(value)
