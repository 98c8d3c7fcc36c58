"""The utility scale: where zero and one lie on the axis of normalised return.

Zero is the better of a random and a zero-action policy (standing still earns Ant about 993), one
is the undefended policy. Without a finished undefended cell that beats idling there is no scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from privguard.records import CellRecord
from privguard.reporting.statistics import (
    UNDEFINED,
    Array,
    Estimate,
    bootstrap_ratio,
    finite,
    mean_or_none,
    seed_mean,
)

UNDEFENDED = "none"
"""Name of the defence that changes nothing."""


@dataclass(frozen=True)
class ReturnScale:
    """Idle and undefended returns of one environment, and why the scale is undefined if it is."""

    idle: float | None
    undefended: Mapping[int, Array]
    """Episode returns of the undefended cells by seed."""
    reason: str
    """Empty if returns can be normalised."""

    def normalize(self, returns: Mapping[int, Array], *, is_reference: bool) -> Estimate:
        """(R - R_idle) / (R_undefended - R_idle) with its interval, paired by seed.

        ``returns`` holds episode returns by seed. Seeds that only one side has do not count if any
        has both: while a sweep is within a seed, levels would else be held against an undefended
        policy that was lucky or unlucky without them. Undefined where ``reason`` is not empty or
        ``returns`` is.
        """
        if self.reason or self.idle is None or not returns:
            return UNDEFINED
        if is_reference:
            reference = list(self.undefended.values())
            return bootstrap_ratio(reference, reference, offset=self.idle)
        shared = returns.keys() & self.undefended.keys()
        seeds = sorted(shared or {*returns, *self.undefended})
        return bootstrap_ratio(
            [returns.get(seed, finite([])) for seed in seeds],
            [self.undefended.get(seed, finite([])) for seed in seeds],
            offset=self.idle,
        )


def returns_by_seed(cells: Sequence[CellRecord]) -> dict[int, Array]:
    """Finite final episode returns by seed; seeds without any are left out."""
    episodes: dict[int, list[float]] = {}
    for cell in cells:
        episodes.setdefault(cell.seed, []).extend(cell.final_returns)
    arrays = {seed: finite(values) for seed, values in sorted(episodes.items())}
    return {seed: values for seed, values in arrays.items() if values.size}


def return_scale(cells: Sequence[CellRecord]) -> ReturnScale:
    """The scale of one environment's cells, finished or not."""
    candidates = [
        mean_or_none(cell.random_return for cell in cells),
        mean_or_none(cell.zero_return for cell in cells),
    ]
    idle = max((value for value in candidates if value is not None), default=None)
    undefended = returns_by_seed([cell for cell in cells if cell.defense == UNDEFENDED])
    return ReturnScale(idle, undefended, _why_undefined(idle, undefended))


def _why_undefined(idle: float | None, undefended: Mapping[int, Array]) -> str:
    reached = seed_mean(list(undefended.values()))
    if reached is None:
        return "no undefended cell has finished"
    if idle is None:
        return "the returns of a random and of a zero-action policy are not recorded"
    if reached <= idle:
        return f"the undefended policy ({reached:.4g}) is not above an idle one ({idle:.4g})"
    return ""
