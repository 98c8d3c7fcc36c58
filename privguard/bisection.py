"""Which level to measure next, so that a break point becomes bracketed closely and with certainty.

A pure function of what is measured, so a refinement that was stopped goes on where it was: the same
measurements ask for the same next level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from privguard.reporting.break_points import (
    SEEDS_TO_DECIDE,
    LevelPoint,
    Threshold,
    locate,
    narrow,
)

STEP = 10.0
"""Factor by which the search leaves a grid that ends before the break point."""
REACH = 100.0
"""How far beyond the grid's ends it goes, as a factor."""


@dataclass(frozen=True)
class LevelAxis:
    """The levels that a defence allows, searched on a logarithmic scale."""

    grid: tuple[float, ...]
    """The coarse levels, all above 0."""
    private_end: str
    """'high' or 'low'."""
    minimum: float = 0.0
    """A level of 0 is never visited: it has no place on the scale."""
    maximum: float = math.inf
    whole_numbers: bool = False
    accepts: Callable[[float], bool] = lambda level: True
    """Which whole numbers between the bounds can be had: clients must divide into equal groups."""


@dataclass(frozen=True)
class Measurement:
    """A level to measure with seeds 0 to ``seeds - 1``, and why."""

    level: float
    seeds: int
    why: str


def next_measurement(
    points: Sequence[LevelPoint],
    threshold: Threshold,
    axis: LevelAxis,
    *,
    seeds: int,
    max_seeds: int,
) -> Measurement | None:
    """The next step towards the break point; None when it is settled or cannot be.

    First the bracket is halved (in the logarithm) with ``seeds`` seeds a level until its ends are
    within the factor or neighbouring whole numbers, then its ends get more seeds, up to
    ``max_seeds``, until they are certain. Where an end of the bracket is missing, the search leaves
    the grid at that end, once the level there is certain.
    """
    points = [point for point in points if point.level > 0]
    if not points:
        return None
    crossing = locate(points, threshold)
    weak, strong = crossing.weak, crossing.strong
    if weak is None or strong is None:
        end = weak or strong
        assert end is not None
        confirm = _confirmation(end, threshold, max_seeds)
        if confirm is not None:
            return confirm
        beyond = _beyond(end.level, axis, stronger=strong is None)
        side = "after" if strong is None else "before"
        why = f"{threshold.quantity} breaks {side} {end.level:g}"
        return None if beyond is None else Measurement(beyond, seeds, why)
    middle = _middle(weak.level, strong.level, axis)
    if middle is not None:
        why = f"{threshold.quantity} breaks between {weak.level:g} and {strong.level:g}"
        return Measurement(middle, seeds, why)
    for end in (weak, strong):
        confirm = _confirmation(end, threshold, max_seeds)
        if confirm is not None:
            return confirm
    return None


def more_seeds(seeds: int, max_seeds: int) -> int:
    """Half as many again, enough to decide, at most ``max_seeds``."""
    return min(max_seeds, max(SEEDS_TO_DECIDE, seeds + max(1, seeds // 2)))


def _confirmation(point: LevelPoint, threshold: Threshold, max_seeds: int) -> Measurement | None:
    if threshold.certain(point) or point.seeds >= max_seeds:
        return None
    why = f"{threshold.quantity} at {point.level:g} is not certain with {point.seeds} seeds"
    return Measurement(point.level, more_seeds(point.seeds, max_seeds), why)


def _middle(weak: float, strong: float, axis: LevelAxis) -> float | None:
    """A level near the geometric mean, to two digits; None where the bracket is narrow enough."""
    low, high = sorted((weak, strong))
    middle = math.sqrt(low * high)
    if axis.whole_numbers:
        between = range(math.floor(low) + 1, math.ceil(high))
        accepted = (float(level) for level in between if axis.accepts(level))
        return min(accepted, key=lambda level: abs(level - middle), default=None)
    return None if narrow(low, high, whole_numbers=False) else _rounded(middle)


def _beyond(level: float, axis: LevelAxis, *, stronger: bool) -> float | None:
    """One step out of the grid; None at the end of what is allowed or reached for."""
    if stronger == (axis.private_end == "high"):
        furthest = min(axis.maximum, max(axis.grid) * REACH)
        step = min(level * STEP, furthest)
        if axis.whole_numbers:
            return _accepted(range(math.floor(step), math.floor(level), -1), axis)
        step = min(_rounded(step), furthest)
        return step if step > level else None
    furthest = max(axis.minimum, min(axis.grid) / REACH)
    step = max(level / STEP, furthest)
    if axis.whole_numbers:
        return _accepted(range(math.ceil(step), math.ceil(level)), axis)
    step = max(_rounded(step), furthest)
    return step if 0 < step < level else None


def _accepted(levels: range, axis: LevelAxis) -> float | None:
    """The first of ``levels`` that can be had."""
    return next((float(level) for level in levels if level > 0 and axis.accepts(level)), None)


def _rounded(level: float) -> float:
    return float(f"{level:.2g}")
