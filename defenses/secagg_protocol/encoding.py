"""Fixed point in the ring Z_2^64: sums of real numbers as exact sums of 64-bit words.

Why no sum overflows. A coordinate is clamped to [-range, range] and sent as c = round(2^f x), so
|c| <= 2^f range + 1/2. With n terms and the largest f such that n 2^f range <= 2^62, the sum obeys
|sum c| <= 2^62 + n/2 < 2^63 for n < 2^62: it lies in the signed half of the ring, and reading the
ring element as a signed number gives back the integer sum, whatever wrapped on the way.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Words = NDArray[np.uint64]

RING_BITS = 64
WORD_BYTES = RING_BITS // 8


class FixedPoint:
    """Encodes real numbers for sums of at most ``terms`` of them; counts what it clamps."""

    def __init__(self, value_range: float, terms: int, fraction_bits: int | None = None) -> None:
        """Chooses the finest step that cannot overflow, or checks the one that is given.

        Args:
            value_range: Largest magnitude that is encoded without clamping; above 0.
            terms: n, most numbers that are added up.
            fraction_bits: f; may be negative. None: the most that the ring can carry.

        Raises:
            ValueError: a sum of ``terms`` numbers could overflow.
        """
        largest = RING_BITS - 2 - math.ceil(math.log2(value_range * terms))
        if fraction_bits is not None and fraction_bits > largest:
            raise ValueError(
                f"{fraction_bits} fractional bits overflow a sum of {terms} numbers up to "
                f"{value_range:g}; at most {largest} do not"
            )
        self.value_range = value_range
        self.fraction_bits = largest if fraction_bits is None else fraction_bits
        self._clamped = 0
        self._encoded = 0

    @property
    def step(self) -> float:
        """The difference between two neighbouring encoded numbers, 2^-f."""
        return 2.0**-self.fraction_bits

    @property
    def saturation_rate(self) -> float:
        """Share of all coordinates so far that were clamped, or NaN."""
        return self._clamped / max(1, self._encoded)

    def encode(self, numbers: Tensor) -> Words:
        """Real numbers of any shape to words; NaN becomes 0 and counts as clamped."""
        values = numbers.detach().cpu().numpy()
        # NaN fails this comparison as well.
        inside = np.count_nonzero(np.abs(values) <= self.value_range)
        self._encoded += values.size
        if inside < values.size:
            self._clamped += int(values.size - inside)
            values = np.nan_to_num(values, nan=0.0).clip(-self.value_range, self.value_range)
        scaled = np.multiply(values, 2.0**self.fraction_bits, dtype=np.float64)
        return np.rint(scaled, out=scaled).astype(np.int64).view(np.uint64)

    def decode(self, total: Words) -> Tensor:
        """The real numbers, float64, behind a sum of at most ``terms`` encodings."""
        return torch.from_numpy(total.view(np.int64) * self.step)
