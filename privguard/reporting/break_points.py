"""Where a defence's leakage and reward cross what is allowed, as its level grows more private.

- The **leakage break point** is the level from which on leakage is at most ``max_leakage``. Its
  bracket's weak end is the most private level that leaks more, its strong end the next more
  private one that was measured.
- The **reward break point** is the level up to which the normalised return is at least
  ``1 - max_reward_loss``. Its bracket's strong end is the least private level that earns less, its
  weak end the next less private one.

Means locate them. Where chance makes means cross more than once, both definitions take the crossing
that promises less. An end is certain if its interval lies on its own side of the allowed value over
at least ``SEEDS_TO_DECIDE`` seeds. A level whose policy broke (collapsed, diverged) has lost its
reward with certainty, but it may only look private: its low leakage is never certain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from privguard.reporting.flags import by_privacy
from privguard.reporting.frontier_row import FrontierRow
from privguard.reporting.limits import Limits
from privguard.reporting.wording import short_number
from privguard.reporting.worst_case import headline

Quantity = Literal["leakage", "reward"]

SEEDS_TO_DECIDE = 3
BRACKET_FACTOR = 1.5
"""A bracket whose ends differ by at most this factor is narrow enough to deploy from."""
WHOLE_NUMBER_LEVELS = ("bits", "clients")


@dataclass(frozen=True)
class LevelPoint:
    """One measured level of one defence; values are None where no release was left to attack."""

    level: float
    seeds: int
    usable: bool
    mean: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Crossing:
    """The measured levels on either side of a break point; None where no level lies there."""

    weak: LevelPoint | None
    strong: LevelPoint | None
    certain_weak: bool
    certain_strong: bool


@dataclass(frozen=True)
class Threshold:
    """The allowed value of one quantity."""

    quantity: Quantity
    value: float

    def crossed(self, point: LevelPoint) -> bool:
        """Whether the level lies beyond the break point, on the private side."""
        if self.quantity == "leakage":
            return point.mean is None or point.mean <= self.value
        return not point.usable or point.mean is None or point.mean < self.value

    def certain(self, point: LevelPoint) -> bool:
        """Whether more seeds would hardly put the level on the other side."""
        if not point.usable:
            return self.quantity == "reward" or not self.crossed(point)
        if point.seeds < SEEDS_TO_DECIDE or point.low is None or point.high is None:
            return False
        if self.quantity == "leakage":
            return point.high <= self.value if self.crossed(point) else point.low > self.value
        return point.high < self.value if self.crossed(point) else point.low >= self.value


def thresholds(limits: Limits) -> tuple[Threshold, Threshold]:
    """Of leakage and of reward."""
    return Threshold("leakage", limits.max_leakage), Threshold("reward", limits.min_reward)


def level_points(rows: Sequence[FrontierRow], defense: str, quantity: Quantity) -> list[LevelPoint]:
    """The measured levels of one defence, from the least to the most private.

    Leakage is that of the strongest attack on probe releases, its upper end the largest over the
    attacks. Levels with a failed cell, or not yet attacked, are left out; so are all levels where
    the return has no scale.
    """
    own = [row for row in rows if row.defense == defense and row.level is not None]
    strongest = {row.level: row for row in headline(own, "probe")}
    if quantity == "reward" and not any(r.normalized_return_mean is not None for r in rows):
        return []
    points = []
    for row in by_privacy(list({row.level: row for row in own}.values())):
        attacked = strongest.get(row.level)
        broken = row.state in ("collapsed", "diverged")
        if row.state == "failed" or (attacked is None and not broken):
            continue
        shown = attacked or row
        highs = [
            other.leakage_high
            for other in own
            if (other.level, other.release) == (row.level, "probe")
            and other.leakage_mean is not None
        ]
        # One target alone leaves all open.
        high = None if None in highs else max((h for h in highs if h is not None), default=None)
        estimate = (
            (shown.leakage_mean, shown.leakage_low, high)
            if quantity == "leakage"
            else (
                shown.normalized_return_mean,
                shown.normalized_return_low,
                shown.normalized_return_high,
            )
        )
        points.append(LevelPoint(row.level or 0.0, shown.seeds, not broken, *estimate))
    return points


def locate(points: Sequence[LevelPoint], threshold: Threshold) -> Crossing:
    """The bracket among ``points``, which run from the least to the most private."""
    sides = [threshold.crossed(point) for point in points]
    if threshold.quantity == "leakage":
        strong_at = max((i for i, side in enumerate(sides) if not side), default=-1) + 1
    else:
        strong_at = next((i for i, side in enumerate(sides) if side), len(points))
    weak = points[strong_at - 1] if strong_at > 0 else None
    strong = points[strong_at] if strong_at < len(points) else None
    return Crossing(
        weak,
        strong,
        certain_weak=weak is not None and threshold.certain(weak),
        certain_strong=strong is not None and threshold.certain(strong),
    )


class BreakPoint(BaseModel):
    """What is known of one break point; ``weak`` and ``strong`` are the ends of its bracket."""

    model_config = ConfigDict(frozen=True)

    defense: str
    level_name: str | None
    quantity: Quantity
    allowed: float
    """Leakage, or normalised return."""
    weak: float | None
    strong: float | None
    seeds: int
    """The fewest over the ends."""
    certain: bool
    """Both ends are there and certain."""
    narrow: bool
    """The ends differ by at most ``BRACKET_FACTOR``, or are neighbouring whole numbers."""
    text: str


def break_points(rows: Sequence[FrontierRow], limits: Limits) -> list[BreakPoint]:
    """Leakage and reward break points of every defence that has a level, in the rows' order."""
    found = []
    for defense in dict.fromkeys(row.defense for row in rows if row.level is not None):
        name = next((r.level_name for r in rows if r.defense == defense and r.level_name), None)
        for threshold in thresholds(limits):
            points = level_points(rows, defense, threshold.quantity)
            if points:
                found.append(_break_point(defense, name, locate(points, threshold), threshold))
    return found


def privacy_order(level: float | None, private_end: str | None) -> float:
    """Sorts levels from the least to the most private; a defence without a level has one place."""
    if level is None:
        return 0.0
    return -level if private_end == "low" else level


def hopeless(leakage: Crossing, reward: Crossing, private_end: str) -> bool:
    """Whether it is certain that no level of a defence hides the records and keeps the reward.

    So it is where the most private level that leaks lies at or beyond the least private level that
    loses the reward, both with certainty.
    """
    leaks, loses = leakage.weak, reward.strong
    if leaks is None or loses is None or not (leakage.certain_weak and reward.certain_strong):
        return False
    return privacy_order(leaks.level, private_end) >= privacy_order(loses.level, private_end)


def narrow(weak: float, strong: float, *, whole_numbers: bool) -> bool:
    """Whether nothing worth measuring lies between two levels."""
    low, high = sorted((weak, strong))
    if whole_numbers:
        return high - low <= 1
    return low > 0 and high / low <= BRACKET_FACTOR


def _break_point(
    defense: str, name: str | None, crossing: Crossing, threshold: Threshold
) -> BreakPoint:
    ends = [point for point in (crossing.weak, crossing.strong) if point is not None]
    both = len(ends) == 2
    return BreakPoint(
        defense=defense,
        level_name=name,
        quantity=threshold.quantity,
        allowed=threshold.value,
        weak=crossing.weak.level if crossing.weak else None,
        strong=crossing.strong.level if crossing.strong else None,
        seeds=min(point.seeds for point in ends),
        certain=crossing.certain_weak and crossing.certain_strong,
        narrow=both
        and narrow(ends[0].level, ends[1].level, whole_numbers=name in WHOLE_NUMBER_LEVELS),
        text=f"{defense}'s {name or 'level'}: {_where(crossing, threshold)}",
    )


def _where(crossing: Crossing, threshold: Threshold) -> str:
    weak, strong = crossing.weak, crossing.strong
    allowed = f"{threshold.value:.3g}"
    leaks = threshold.quantity == "leakage"
    if strong is None and weak is not None:
        level = short_number(weak.level)
        what = f"leaks more than {allowed}" if leaks else f"keeps {allowed} of the reward"
        return f"still {what} at {level}, the most private measured{_doubt([weak], threshold)}"
    if weak is None and strong is not None:
        level = short_number(strong.level)
        what = f"leaks at most {allowed}" if leaks else f"earns less than {allowed} of the reward"
        return f"already {what} at {level}, the least private measured{_doubt([strong], threshold)}"
    assert weak is not None
    assert strong is not None
    what = f"leakage falls to {allowed}" if leaks else f"reward falls below {allowed}"
    between = f"between {short_number(weak.level)} and {short_number(strong.level)}"
    return f"{what} {between}{_doubt([weak, strong], threshold)}"


def _doubt(ends: Sequence[LevelPoint], threshold: Threshold) -> str:
    doubtful = [point for point in ends if not threshold.certain(point)]
    doubts = []
    measured = [point.seeds for point in doubtful if point.usable]
    if measured:
        doubts.append(f"{min(measured)} seed{'s' if min(measured) != 1 else ''}")
    broken = [point for point in doubtful if not point.usable]
    doubts += [f"the policy broke at {short_number(point.level)}" for point in broken]
    return f" (not certain: {', '.join(doubts)})" if doubts else ""
