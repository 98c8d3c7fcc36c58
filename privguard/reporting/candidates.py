"""What speaks for and against deploying one (defence, level)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from privguard.records import ReleaseKind
from privguard.reporting.frontier_row import FrontierRow
from privguard.reporting.limits import Limits
from privguard.reporting.wording import candidate_text, guarantee_text
from privguard.reporting.worst_case import headline


class Candidate(BaseModel):
    """One (defence, level) against all attacks on one kind of release."""

    model_config = ConfigDict(frozen=True)

    defense: str
    level: float | None
    level_name: str | None
    text: str
    """Defence and level in words."""
    guarantee: str
    epsilon: float | None
    delta: float | None
    attacks: list[str]
    """The attacks that ran on it; leakage is their worst case."""
    worst_attack: str
    batch_size: int
    seeds: int
    leakage_mean: float
    leakage_low: float
    leakage_high: float
    """Largest upper bound over the attacks, not only the worst one's."""
    identified_mean: float | None
    """Largest over the attacks."""
    identified_high: float | None
    """Largest upper bound over the attacks."""
    bytes_up: int
    """Bytes that one client sends up in one round."""
    ra_mean: float | None
    ra_prior: float | None
    return_mean: float | None
    normalized_return_mean: float | None
    normalized_return_low: float | None
    normalized_return_high: float | None

    def missing_privacy(self, limits: Limits) -> float:
        """How far the means of leakage and identified lie above their limits, added up."""
        missing = max(0.0, self.leakage_mean - limits.max_leakage)
        if limits.max_identified is not None:
            # Without the score, nothing speaks for the level.
            identified = 1.0 if self.identified_mean is None else self.identified_mean
            missing += max(0.0, identified - limits.max_identified)
        return missing

    def missing_reward(self, limits: Limits) -> float:
        """How far the mean normalised return lies below the limit; 0 if it does not."""
        if self.normalized_return_mean is None:
            return float("inf")
        return max(0.0, limits.min_reward - self.normalized_return_mean)

    def keeps_fixed_limits(self, limits: Limits) -> bool:
        """Whether epsilon and bytes, which no seed changes, keep their limits."""
        if limits.max_bytes is not None and self.bytes_up > limits.max_bytes:
            return False
        return limits.max_epsilon is None or (
            self.epsilon is not None and self.epsilon <= limits.max_epsilon
        )

    def means_qualify(self, limits: Limits) -> bool:
        """Whether the means and the fixed numbers keep every limit."""
        return self.keeps_fixed_limits(limits) and not (
            self.missing_privacy(limits) or self.missing_reward(limits)
        )

    def identified_qualifies(self, limits: Limits) -> bool:
        """Whether the upper end of the identified share keeps its limit, if there is one."""
        return limits.max_identified is None or (
            self.identified_high is not None and self.identified_high <= limits.max_identified
        )

    def intervals_qualify(self, limits: Limits) -> bool:
        """Whether the unfavourable ends of all intervals keep the limits."""
        return (
            self.keeps_fixed_limits(limits)
            and self.leakage_high <= limits.max_leakage
            and self.identified_qualifies(limits)
            and self.normalized_return_low is not None
            and self.normalized_return_low >= limits.min_reward
        )


def candidates(rows: Sequence[FrontierRow], release: ReleaseKind) -> list[Candidate]:
    """Every attacked (defence, level) whose cells all ended well, in the order of the rows."""
    judged = [row for row in rows if row.release == release and row.usable]
    return [_candidate(row, judged) for row in headline(judged, release)]


def _candidate(strongest: FrontierRow, judged: Sequence[FrontierRow]) -> Candidate:
    same = [
        row
        for row in judged
        if (row.defense, row.level) == (strongest.defense, strongest.level)
        and row.leakage_mean is not None
    ]
    # One target alone leaves all open.
    bounds = [1.0 if row.leakage_high is None else row.leakage_high for row in same]
    identified = [row.identified_mean for row in same if row.identified_mean is not None]
    identified_bounds = [row.identified_high for row in same if row.identified_high is not None]
    return Candidate(
        defense=strongest.defense,
        level=strongest.level,
        level_name=strongest.level_name,
        text=candidate_text(strongest),
        guarantee=guarantee_text(strongest),
        epsilon=strongest.epsilon,
        delta=strongest.delta,
        attacks=sorted({row.attack for row in same if row.attack is not None}),
        worst_attack=strongest.attack or "",
        batch_size=strongest.batch_size or 0,
        seeds=strongest.seeds,
        leakage_mean=strongest.leakage_mean or 0.0,
        leakage_low=strongest.leakage_low or 0.0,
        leakage_high=max(bounds, default=1.0),
        identified_mean=max(identified, default=None),
        identified_high=max(identified_bounds, default=None),
        bytes_up=strongest.bytes_per_round,
        ra_mean=strongest.ra_mean,
        ra_prior=strongest.ra_prior,
        return_mean=strongest.return_mean,
        normalized_return_mean=strongest.normalized_return_mean,
        normalized_return_low=strongest.normalized_return_low,
        normalized_return_high=strongest.normalized_return_high,
    )
