"""What a defence did to the gradient on its way to the server, as far as the server knows it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple

RESCALING = frozenset({"clip", "layer-clip", "dp-sgd", "randk", "distributed-dp"})
ZEROING = frozenset({"topk", "randk"})
CLIPPING = frozenset({"clip", "layer-clip", "distributed-dp"})
SUMMING = frozenset({"secagg", "distributed-dp", "he"})
"""The server sees the mean over several clients only."""
NOISY = frozenset({"gaussian", "laplace", "dp-sgd", "adaptive-gaussian", "distributed-dp"})
REGULAR = NOISY | CLIPPING | SUMMING | {"randk"}
"""Mechanisms after which the received gradient has a Fisher information that we can write down."""


class Clipping(NamedTuple):
    """Scales each record's gradient, or each tensor of it by itself, down to a norm."""

    limit: float
    per_tensor: bool


@dataclass(frozen=True)
class Channel:
    """The known law of the received gradient given the true one (Kerckhoffs' principle).

    Attributes:
        noise_std: standard deviation of the noise of fixed size on each coordinate of the received
            gradient, in units of the gradient before known rescaling (``randk``). An upper bound
            where clipping follows the noise. Noise in proportion to the gradient comes on top: see
            ``noise_to_signal``.
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
        """Whether the gradient was multiplied by a factor that need not be one."""
        return any(_name(m) in RESCALING for m in self.mechanisms)

    @property
    def clips(self) -> tuple[Clipping, ...]:
        """The clippings in their order.

        ``clip``, ``layer-clip`` and ``distributed-dp`` act on the whole gradient (see
        ``clips_sum``), which is a record's at batch size one alone.
        """
        return tuple(
            Clipping(float(mechanism[key]), per_tensor)
            for mechanism in self.mechanisms
            if _name(mechanism) in RESCALING
            for key, per_tensor in _LIMITS.items()
            if key in mechanism
        )

    @property
    def random(self) -> bool:
        """Whether the received gradient is a random function of the true one."""
        return self.noise_std > 0 or self.noise_to_signal > 0 or self.quantization_steps is not None

    @property
    def clips_sum(self) -> bool:
        """Whether a mean over records may have been scaled down as a whole."""
        return any(_name(m) in CLIPPING for m in self.mechanisms)

    @property
    def clips_sparse(self) -> bool:
        """Whether what was clipped is no longer the whole gradient."""
        names = [_name(m) for m in self.mechanisms]
        first = next((i for i, name in enumerate(names) if name in ZEROING), len(names))
        return any(name in CLIPPING for name in names[first:])

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
    def noise_to_signal(self) -> float:
        """Norm of noise that follows the gradient's norm, as a multiple of it; 0 without."""
        ratios = [float(m["noise_to_signal"]) for m in self.mechanisms if "noise_to_signal" in m]
        return math.hypot(*ratios)

    @property
    def laplace(self) -> bool:
        """Whether Laplace noise is all that is random about the received gradient."""
        random = [m for m in self.mechanisms if _name(m) in NOISY or "points" in m]
        sums = any(_name(m) in SUMMING and m["clients"] > 1 for m in self.mechanisms)
        return [_name(m) for m in random] == ["laplace"] and self.noise_std > 0 and not sums

    @property
    def information_std(self) -> float:
        """One over the root of the Fisher information about a coordinate, from noise of fixed size.

        For Gaussian noise its standard deviation, for Laplace noise its scale. For a sum of
        independent noises the root of the sum of squares, which by Stam's inequality (1959),
        1 / I(X + Y) >= 1 / I(X) + 1 / I(Y), grants the adversary no less than it has.
        """
        if not self.mechanisms:
            return self.noise_std
        variance = 0.0
        for mechanism in self.mechanisms:
            key = "scale" if _name(mechanism) == "laplace" else "noise_std"
            variance += float(mechanism.get(key, 0.0)) ** 2
            if _name(mechanism) in SUMMING:
                variance /= mechanism["clients"]
        return math.sqrt(variance)

    def bounding(self) -> Channel | None:
        """A channel that tells no less than this one, and of known Fisher information; or None.

        Whatever is done to a release after noise can only lose information (data processing), so
        what has no Fisher information of its own is left out there: clipping, rounding or leaving
        out coordinates after noise, anything after noise that follows the gradient's norm. Nothing
        may be left out before a sum over clients, which shrinks what each of them added; a sum of
        releases that lack different coordinates has no bound here.
        """
        kept: list[Mapping[str, Any]] = []
        for place, mechanism in enumerate(self.mechanisms):
            name = _name(mechanism)
            before = {_name(m) for m in kept}
            noisy = bool(before & NOISY)
            breaks = (
                name not in REGULAR
                or (name in CLIPPING and (noisy or bool(before & ZEROING)))
                or (name == "adaptive-gaussian" and noisy)
                or "adaptive-gaussian" in before
                or (name in SUMMING and bool(before & ZEROING))
            )
            if breaks:
                if not noisy or any(_name(m) in SUMMING for m in self.mechanisms[place:]):
                    return None
                # Rounding may have added zeros to those that were not sent.
                kept = list(takewhile(lambda m: _name(m) != "randk", kept))
                break
            kept.append(mechanism)
        return Channel.from_description(kept) if self.mechanisms else self

    @property
    def zeroed(self) -> bool:
        """Whether a zero in the gradient may mean "not sent" instead of zero."""
        return any(_name(m) in ZEROING for m in self.mechanisms)

    def gain(self, parameters: int) -> float:
        """The known factor by which sent coordinates of a gradient (P,) were multiplied."""
        gain = 1.0
        for mechanism in self.mechanisms:
            if _name(mechanism) == "randk":
                gain *= parameters / math.ceil(mechanism["fraction"] * parameters)
        return gain

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


_LIMITS = {"norm": False, "clip_norm": False, "tensor_norm": True}
"""Keys of clipping norms, and whether they hold for each tensor by itself."""


def _name(mechanism: Mapping[str, Any]) -> str:
    name = mechanism.get("mechanism")
    if not isinstance(name, str) or not name:
        raise ValueError(f"a mechanism needs a name under the key 'mechanism', got {mechanism!r}")
    return name


def _check_std(value: Any) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"noise_std must be a finite number >= 0, got {value!r}")
    return float(value)
