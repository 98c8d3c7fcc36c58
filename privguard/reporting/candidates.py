"""What speaks for and against deploying one (defence, level)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from privguard.records import ReleaseKind
from privguard.reporting.frontier import FrontierRow, headline
from privguard.reporting.wording import candidate_text, guarantee_text


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
    ra_mean: float | None
    ra_prior: float | None
    return_mean: float | None
    normalized_return_mean: float | None
    normalized_return_low: float | None
    normalized_return_high: float | None

    def missing_privacy(self, max_leakage: float) -> float:
        """How far the mean leakage lies above the limit; 0 if it does not."""
        return max(0.0, self.leakage_mean - max_leakage)

    def missing_reward(self, max_reward_loss: float) -> float:
        """How far the mean normalised return lies below the limit; 0 if it does not."""
        if self.normalized_return_mean is None:
            return float("inf")
        return max(0.0, 1 - max_reward_loss - self.normalized_return_mean)

    def means_qualify(self, max_leakage: float, max_reward_loss: float) -> bool:
        """Whether both means keep the limits."""
        return not (self.missing_privacy(max_leakage) or self.missing_reward(max_reward_loss))

    def intervals_qualify(self, max_leakage: float, max_reward_loss: float) -> bool:
        """Whether the unfavourable ends of both intervals keep the limits."""
        return (
            self.leakage_high <= max_leakage
            and self.normalized_return_low is not None
            and self.normalized_return_low >= 1 - max_reward_loss
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
    bounds = [row.leakage_high for row in same if row.leakage_high is not None]
    mean = strongest.leakage_mean or 0.0
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
        leakage_mean=mean,
        leakage_low=mean if strongest.leakage_low is None else strongest.leakage_low,
        leakage_high=max(bounds, default=mean),
        ra_mean=strongest.ra_mean,
        ra_prior=strongest.ra_prior,
        return_mean=strongest.return_mean,
        normalized_return_mean=strongest.normalized_return_mean,
        normalized_return_low=strongest.normalized_return_low,
        normalized_return_high=strongest.normalized_return_high,
    )
