"""What to try next when no level keeps the limits, or when the evidence for one is thin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from privguard.records import ReleaseKind
from privguard.reporting.break_points import WHOLE_NUMBER_LEVELS
from privguard.reporting.candidates import Candidate
from privguard.reporting.flags import by_privacy
from privguard.reporting.frontier_row import FrontierRow
from privguard.reporting.limits import Limits
from privguard.reporting.wording import short_number
from privguard.reporting.worst_case import headline

SEEDS_ENOUGH = 3


def suggestions(
    rows: Sequence[FrontierRow],
    candidate: Candidate | None,
    release: ReleaseKind,
    limits: Limits,
    *,
    settled: bool,
) -> list[str]:
    """Next steps around ``candidate``, the choice or the level nearest to one.

    ``settled`` says that the choice stands on its intervals; then only its confirmation remains.
    """
    if settled:
        return ["Confirm it with fresh seeds and a larger attack budget before relying on it."]
    if not any(row.undefended and row.normalized_return_mean is not None for row in rows):
        return ["Finish an undefended cell that learns (or a longer budget): reward has no scale."]
    if candidate is None:
        return ["Let the sweep go on until a defended level has been trained and attacked."]
    if candidate.means_qualify(limits):
        more = max(SEEDS_ENOUGH, 2 * candidate.seeds)
        return [f"Run more seeds (now {candidate.seeds}, say {more}): the evidence is still thin."]
    levels = by_privacy(
        [row for row in headline(rows, release) if row.defense == candidate.defense]
    )
    return [
        *_levels_to_try(levels, limits),
        *_wide_intervals(candidate, limits),
        *_other_means(candidate, limits),
    ]


def _levels_to_try(levels: Sequence[FrontierRow], limits: Limits) -> list[str]:
    """Where on this defence's own axis, least private level first, a better one may lie."""
    if not levels:
        return []
    name = f"{levels[0].defense}'s {levels[0].level_name or 'level'}"
    for weak, strong in pairwise(levels):
        if _keeps_reward(weak, limits) and (_hides(strong, limits) or not strong.usable):
            return _between(name, weak, strong)
    if not any(_hides(row, limits) for row in levels):
        return [f"Extend {name} beyond {_level(levels[-1])}: even that level leaks too much."]
    if not any(_keeps_reward(row, limits) for row in levels):
        return [f"Start {name} before {_level(levels[0])}: even that level costs too much reward."]
    return []


def _hides(row: FrontierRow, limits: Limits) -> bool:
    return row.usable and (row.leakage_mean or 0.0) <= limits.max_leakage


def _keeps_reward(row: FrontierRow, limits: Limits) -> bool:
    reward = row.normalized_return_mean
    return row.usable and reward is not None and reward >= limits.min_reward


def _between(name: str, weak: FrontierRow, strong: FrontierRow) -> list[str]:
    """A level that keeps the reward and the next one, which is private: look between them."""
    low, high = sorted((weak.level or 0.0, strong.level or 0.0))
    bracket = f"{short_number(low)} and {short_number(high)}"
    if weak.level_name in WHOLE_NUMBER_LEVELS:
        if high - low <= 1:
            return []
        return [f"Try {name} {round((low + high) / 2)}, between {bracket}."]
    middle = math.sqrt(low * high) if low > 0 else high / 2
    return [
        f"Try {name} between {bracket}, e.g. {float(f'{middle:.1g}'):g}: "
        "reward holds at one end, privacy at the other."
    ]


def _wide_intervals(candidate: Candidate, limits: Limits) -> list[str]:
    """More seeds, if the favourable ends of the intervals would keep the limits."""
    best_reward = candidate.normalized_return_high
    if (
        candidate.leakage_low <= limits.max_leakage
        and best_reward is not None
        and best_reward >= limits.min_reward
    ):
        return [
            f"Run more seeds (now {candidate.seeds}): its intervals reach into the limits, "
            "so it may qualify after all."
        ]
    return []


def _other_means(candidate: Candidate, limits: Limits) -> list[str]:
    """Changes of the training rather than of the level."""
    steps = []
    if candidate.missing_reward(limits):
        steps.append(
            "Average the noise out at the same level: a larger minibatch, more clients, "
            "or a longer budget."
        )
    if candidate.missing_privacy(limits):
        steps.append(
            "Hide single releases: larger minibatches, or secure aggregation over more clients."
        )
    return steps


def _level(row: FrontierRow) -> str:
    return short_number(row.level or 0.0)
