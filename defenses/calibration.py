"""From a wanted epsilon to the noise multiplier that spends no more."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from defenses.accounting import Accountant
from defenses.client_accounting import ClientAccountant
from defenses.registry import DefenseError

_SMALLEST, _LARGEST = 0.05, 1e4
"""Noise multipliers between which is searched: below, epsilon is in the thousands."""
_STRIDE = 1.5
"""Factor between noise multipliers until the wanted one lies between two: small, since accounting
for little noise takes far longer than for much."""
_CLOSE = 1.005
"""Factor at which two noise multipliers are close enough."""
_DIGITS = 3
"""Significant digits of the answer, which is rounded up."""


def noise_multiplier_for(
    epsilon: float,
    delta: float,
    rates: Iterable[float],
    accountant: Callable[[float], Accountant | ClientAccountant] = Accountant,
) -> float:
    """The smallest noise multiplier that keeps a client's planned rounds within ``epsilon``.

    Rounded up to three significant digits, by bisection on ``Accountant.epsilon``; whatever the
    accountant assumes holds here too.

    Args:
        epsilon: Wanted at the end of the run, above 0.
        delta: In (0, 1).
        rates: Each planned round's sampling rate, in (0, 1].
        accountant: Gives a fresh accountant of the mechanism at a noise multiplier.

    Raises:
        DefenseError: epsilon is not a finite number above 0, or no noise reaches it.
    """
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise DefenseError(f"eps:{epsilon:g}: the wanted epsilon must be a finite number above 0")
    planned = list(rates)

    def spent(noise_multiplier: float) -> float:
        fresh = accountant(noise_multiplier)
        for rate in planned:
            fresh.step(rate)
        return fresh.epsilon(delta)

    high = 1.0
    while spent(high) > epsilon:
        high *= _STRIDE
        if high > _LARGEST:
            raise DefenseError(
                f"eps:{epsilon:g}: out of reach of these rounds at any noise; allow more"
            )
    low = high / _STRIDE
    while low > _SMALLEST and spent(low) <= epsilon:
        low, high = low / _STRIDE, low
    while high / low > _CLOSE:
        middle = math.sqrt(low * high)
        if spent(middle) <= epsilon:
            high = middle
        else:
            low = middle
    return _rounded_up(high)


def _rounded_up(value: float) -> float:
    unit = 10.0 ** (math.floor(math.log10(value)) - _DIGITS + 1)
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.{_DIGITS}g}")
