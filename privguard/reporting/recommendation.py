"""The level to deploy: the least costly one that keeps leakage and reward within given limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from privguard.records import ReleaseKind
from privguard.reporting.advice import suggestions
from privguard.reporting.candidates import Candidate, candidates
from privguard.reporting.flags import Flag, suspicious_results
from privguard.reporting.frontier import FrontierRow
from privguard.reporting.returns import UNDEFENDED
from privguard.reporting.wording import interval_text, return_text

Status = Literal["recommended", "tentative", "none"]
Confidence = Literal["none", "low", "moderate", "high"]

MAX_LEAKAGE = 0.1
MAX_REWARD_LOSS = 0.05
SEEDS_FOR_HIGH_CONFIDENCE = 5


class Recommendation(BaseModel):
    """An answer with its reasons; ``model_dump(mode="json")`` is what ``--json`` prints."""

    model_config = ConfigDict(frozen=True)

    env: str
    status: Status
    """``recommended``: the intervals keep both limits over two seeds or more. ``tentative``: the
    means do, the evidence is thin. ``none``: no level does."""
    confidence: Confidence
    answer: str
    """The answer in one sentence."""
    max_leakage: float
    max_reward_loss: float
    release: ReleaseKind
    threat_model: str
    choice: Candidate | None
    alternatives: list[Candidate]
    """The other levels that keep the same limits, best first."""
    nearest: Candidate | None
    """Without a choice: the level that misses the limits by least."""
    reasons: list[str]
    suggestions: list[str]
    flags: list[Flag]


def recommend(
    rows: Sequence[FrontierRow],
    *,
    max_leakage: float = MAX_LEAKAGE,
    max_reward_loss: float = MAX_REWARD_LOSS,
    release: ReleaseKind = "probe",
) -> Recommendation:
    """Choose among the levels of one environment whose cells all ended well.

    A level keeps the limits if the upper end of its worst-case leakage is at most ``max_leakage``
    and the lower end of its normalised return is at least ``1 - max_reward_loss``. Among those the
    one with the highest return wins, a return beyond the undefended one counting as equal to it;
    among equal returns (to 0.01) the lowest leakage.

    Raises:
        ValueError: a limit is not in [0, 1], or the rows belong to several environments.
    """
    for name, value in (("max_leakage", max_leakage), ("max_reward_loss", max_reward_loss)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie between 0 and 1, not {value}")
    environments = sorted({row.env for row in rows})
    if len(environments) > 1:
        raise ValueError(f"one recommendation is for one environment, not {environments}")

    judged = [c for c in candidates(rows, release) if c.defense != UNDEFENDED]
    by_means = [c for c in judged if c.means_qualify(max_leakage, max_reward_loss)]
    certain = [
        c for c in by_means if c.intervals_qualify(max_leakage, max_reward_loss) and c.seeds >= 2
    ]
    qualified = sorted(certain or by_means, key=_preference)
    choice = qualified[0] if qualified else None
    nearest = None if choice else _nearest(judged, max_leakage, max_reward_loss)
    status: Status = "recommended" if certain else "tentative" if choice else "none"
    limits = f"leakage ≤ {max_leakage:g}, reward loss ≤ {max_reward_loss:g}"
    return Recommendation(
        env=environments[0] if environments else "",
        status=status,
        confidence=_confidence(status, choice),
        answer=_answer(status, choice, limits),
        max_leakage=max_leakage,
        max_reward_loss=max_reward_loss,
        release=release,
        threat_model=_threat_model(rows, release, choice or nearest),
        choice=choice,
        alternatives=qualified[1:],
        nearest=nearest,
        reasons=_reasons(choice, nearest, rows, judged, max_leakage, max_reward_loss),
        suggestions=suggestions(
            rows, choice or nearest, release, max_leakage, max_reward_loss, settled=bool(certain)
        ),
        flags=suspicious_results(rows, release),
    )


def _preference(candidate: Candidate) -> tuple[float, float]:
    reward = min(1.0, candidate.normalized_return_mean or 0.0)
    return -round(reward, 2), candidate.leakage_mean


def _nearest(
    judged: Sequence[Candidate], max_leakage: float, max_reward_loss: float
) -> Candidate | None:
    def distance(candidate: Candidate) -> tuple[float, float]:
        reward = candidate.missing_reward(max_reward_loss)
        # Without a reward scale, the least leaking level is the nearest.
        reward = reward if math.isfinite(reward) else 0.0
        return reward + candidate.missing_privacy(max_leakage), candidate.leakage_mean

    return min(judged, key=distance, default=None)


def _confidence(status: Status, choice: Candidate | None) -> Confidence:
    if choice is None:
        return "none"
    if status == "tentative":
        return "low"
    return "high" if choice.seeds >= SEEDS_FOR_HIGH_CONFIDENCE else "moderate"


def _answer(status: Status, choice: Candidate | None, limits: str) -> str:
    if choice is None:
        return f"No measured level keeps the limits ({limits})."
    verb = "Deploy" if status == "recommended" else "Tentative choice:"
    kept = 1.0 if choice.normalized_return_mean is None else choice.normalized_return_mean
    return (
        f"{verb} {choice.text}: worst-case leakage {choice.leakage_mean:.2f} "
        f"(at most {choice.leakage_high:.2f}) at {kept:.0%} of the undefended reward; "
        f"{choice.guarantee}."
    )


def _threat_model(
    rows: Sequence[FrontierRow], release: ReleaseKind, candidate: Candidate | None
) -> str:
    knowledge = sorted({row.knowledge for row in rows if row.knowledge})
    known = " or ".join(knowledge) if knowledge else "not recorded"
    batch = f" of batch {candidate.batch_size}" if candidate else ""
    kind = (
        f"probe releases{batch}, the worst case, in which every other record is known to it"
        if release == "probe"
        else f"deployed releases{batch}, those that trained the policy"
    )
    return (
        "An honest-but-curious server that follows the protocol and knows the model and the "
        f"defence; prior knowledge: {known}; attacking {kind}. "
        "A malicious server that alters weights is not covered."
    )


def _reasons(
    choice: Candidate | None,
    nearest: Candidate | None,
    rows: Sequence[FrontierRow],
    judged: Sequence[Candidate],
    max_leakage: float,
    max_reward_loss: float,
) -> list[str]:
    if choice is not None:
        return [*_evidence(choice), *_doubts(choice, max_leakage, max_reward_loss)]
    if nearest is not None:
        misses = _misses(nearest, max_leakage, max_reward_loss)
        return [f"Nearest is {nearest.text}: {misses}.", *_evidence(nearest)]
    if not judged and any(not row.undefended and not row.usable for row in rows):
        return ["Every defended level measured so far has a collapsed, diverged or failed cell."]
    return ["No defended level has been trained and attacked yet."]


def _evidence(candidate: Candidate) -> list[str]:
    leaked = interval_text(candidate.leakage_mean, candidate.leakage_low, candidate.leakage_high)
    reward = interval_text(
        candidate.normalized_return_mean,
        candidate.normalized_return_low,
        candidate.normalized_return_high,
    )
    accuracy = ""
    if candidate.ra_mean is not None and candidate.ra_prior is not None:
        accuracy = (
            f", reconstruction accuracy {candidate.ra_mean:.2f} "
            f"against {candidate.ra_prior:.2f} by guessing from the prior"
        )
    plural = "s" if candidate.seeds != 1 else ""
    earned = f"Normalised return {reward}"
    if candidate.normalized_return_mean is None:
        earned = f"Return {return_text(candidate.return_mean)}, not normalised,"
    return [
        f"Strongest of {', '.join(candidate.attacks)}: {candidate.worst_attack}, "
        f"leakage {leaked}{accuracy}.",
        f"{earned} over {candidate.seeds} seed{plural}.",
    ]


def _doubts(choice: Candidate, max_leakage: float, max_reward_loss: float) -> list[str]:
    doubts = []
    if choice.seeds == 1:
        doubts.append("One seed only: confidence is low, the variation between seeds is unknown.")
    if choice.leakage_high > max_leakage:
        doubts.append(f"The leakage's upper end {choice.leakage_high:.3f} exceeds {max_leakage:g}.")
    low = choice.normalized_return_low
    if low is None:
        doubts.append("The interval of the normalised return is not bounded.")
    elif low < 1 - max_reward_loss:
        doubts.append(
            f"The normalised return's lower end {low:.3f} is below {1 - max_reward_loss:g}."
        )
    return doubts


def _misses(candidate: Candidate, max_leakage: float, max_reward_loss: float) -> str:
    misses = []
    if candidate.missing_privacy(max_leakage):
        misses.append(f"its leakage {candidate.leakage_mean:.3f} exceeds {max_leakage:g}")
    if candidate.normalized_return_mean is None:
        misses.append("its reward cannot be normalised")
    elif candidate.missing_reward(max_reward_loss):
        misses.append(
            f"its normalised return {candidate.normalized_return_mean:.3f} "
            f"is below {1 - max_reward_loss:g}"
        )
    return " and ".join(misses)


def render_text(recommendation: Recommendation) -> str:
    """The recommendation as plain text for a terminal, ending in a newline."""
    lines = [recommendation.answer]
    if recommendation.confidence != "none":
        lines.append(f"Confidence: {recommendation.confidence}.")
    for title, items in (
        ("Why", recommendation.reasons),
        ("Also within the limits", [c.text for c in recommendation.alternatives]),
        ("To try", recommendation.suggestions),
        ("Check first", [flag.message for flag in recommendation.flags]),
    ):
        if items:
            lines += ["", f"{title}:", *(f"  - {item}" for item in items)]
    lines += ["", f"Threat model: {recommendation.threat_model}"]
    return "\n".join(lines) + "\n"
