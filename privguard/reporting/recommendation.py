"""The level to deploy: the least costly one that keeps leakage and reward within given limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from privguard.records import ReleaseKind
from privguard.reporting.advice import suggestions
from privguard.reporting.break_points import BreakPoint, break_points
from privguard.reporting.candidates import Candidate, candidates
from privguard.reporting.flags import Flag, suspicious_results
from privguard.reporting.frontier_row import FrontierRow
from privguard.reporting.limits import Limits
from privguard.reporting.returns import UNDEFENDED
from privguard.reporting.statistics import SEEDS_TO_TRUST, coverage_text
from privguard.reporting.wording import interval_text, return_text, short_number

Status = Literal["recommended", "tentative", "none"]
Confidence = Literal["none", "low", "moderate", "high"]
DEFAULT_LIMITS = Limits()


class Recommendation(BaseModel):
    """An answer with its reasons; ``model_dump(mode="json")`` is what ``--json`` prints."""

    model_config = ConfigDict(frozen=True)

    env: str
    status: Status
    """``recommended``: the unfavourable ends of the intervals keep every limit over two seeds or
    more. ``tentative``: the means do, the evidence is thin. ``none``: no level does."""
    confidence: Confidence
    confidence_reason: str
    """What the confidence rests on, and what the intervals leave out."""
    answer: str
    """The answer in one sentence."""
    limits: Limits
    release: ReleaseKind
    threat_model: str
    choice: Candidate | None
    alternatives: list[Candidate]
    """The other levels that keep the same limits, best first."""
    nearest: Candidate | None
    """Without a choice: the level that misses the limits by least."""
    break_points: list[BreakPoint]
    """Of every defence that has a level: where leakage and reward cross the limits."""
    reasons: list[str]
    suggestions: list[str]
    flags: list[Flag]


def recommend(
    rows: Sequence[FrontierRow],
    limits: Limits = DEFAULT_LIMITS,
    *,
    release: ReleaseKind = "probe",
) -> Recommendation:
    """Choose among the levels of one environment whose cells all ended well.

    A level keeps the limits if the upper ends of its worst-case leakage and of its identified share
    are at most what is allowed, the lower end of its normalised return is at least
    ``1 - max_reward_loss``, and its epsilon and bytes, which have no interval, keep theirs. Among
    those the one with the highest return wins, a return beyond the undefended one counting as equal
    to it; among equal returns (to 0.01) the lowest leakage.

    Raises:
        ValueError: a limit cannot be meant, or the rows belong to several environments.
    """
    problem = limits.problem()
    if problem is not None:
        raise ValueError(problem)
    environments = sorted({row.env for row in rows})
    if len(environments) > 1:
        raise ValueError(f"one recommendation is for one environment, not {environments}")

    judged = [c for c in candidates(rows, release) if c.defense != UNDEFENDED]
    by_means = [c for c in judged if c.means_qualify(limits)]
    certain = [c for c in by_means if c.intervals_qualify(limits) and c.seeds >= 2]
    qualified = sorted(certain or by_means, key=_preference)
    choice = qualified[0] if qualified else None
    nearest = None if choice else _nearest(judged, limits)
    status: Status = "recommended" if certain else "tentative" if choice else "none"
    return Recommendation(
        env=environments[0] if environments else "",
        status=status,
        confidence=_confidence(status, choice),
        confidence_reason=_confidence_reason(status, choice),
        answer=_answer(status, choice, limits),
        limits=limits,
        release=release,
        threat_model=_threat_model(rows, release, choice or nearest),
        choice=choice,
        alternatives=qualified[1:],
        nearest=nearest,
        break_points=break_points(rows, limits),
        reasons=_reasons(choice, nearest, rows, judged, limits),
        suggestions=suggestions(rows, choice or nearest, release, limits, settled=bool(certain)),
        flags=suspicious_results(rows, release),
    )


def _preference(candidate: Candidate) -> tuple[float, float]:
    reward = min(1.0, candidate.normalized_return_mean or 0.0)
    return -round(reward, 2), candidate.leakage_mean


def _nearest(judged: Sequence[Candidate], limits: Limits) -> Candidate | None:
    def distance(candidate: Candidate) -> tuple[bool, float, float]:
        reward = candidate.missing_reward(limits)
        # Without a reward scale, the least leaking level is the nearest.
        reward = reward if math.isfinite(reward) else 0.0
        missing = reward + candidate.missing_privacy(limits)
        return not candidate.keeps_fixed_limits(limits), missing, candidate.leakage_mean

    return min(judged, key=distance, default=None)


def _confidence(status: Status, choice: Candidate | None) -> Confidence:
    if choice is None:
        return "none"
    if status == "tentative":
        return "low"
    return "high" if choice.seeds >= SEEDS_TO_TRUST else "moderate"


def _confidence_reason(status: Status, choice: Candidate | None) -> str:
    if choice is None:
        return ""
    seeds = f"{choice.seeds} seed{'s' if choice.seeds != 1 else ''}"
    kept = (
        "the unfavourable end of every interval keeps its limit"
        if status == "recommended"
        else "the means keep the limits, but not every interval does over two seeds or more"
    )
    return f"{kept}; {seeds}; intervals: {coverage_text(choice.seeds)}"


def _answer(status: Status, choice: Candidate | None, limits: Limits) -> str:
    if choice is None:
        return f"No measured level keeps the limits ({limits.text})."
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
    limits: Limits,
) -> list[str]:
    if choice is not None:
        return [*_evidence(choice), *_doubts(choice, limits)]
    if nearest is not None:
        misses = _misses(nearest, limits)
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


def _doubts(choice: Candidate, limits: Limits) -> list[str]:
    doubts = []
    if choice.seeds == 1:
        doubts.append("One seed only: confidence is low, the variation between seeds is unknown.")
    if choice.leakage_high > limits.max_leakage:
        doubts.append(
            f"The leakage's upper end {choice.leakage_high:.3f} exceeds {limits.max_leakage:g}."
        )
    if not choice.identified_qualifies(limits):
        doubts.append(
            f"The identified share's upper end {choice.identified_high or 1.0:.3f} exceeds "
            f"{limits.max_identified:g}."
        )
    low = choice.normalized_return_low
    if low is None:
        doubts.append("The interval of the normalised return is not bounded.")
    elif low < limits.min_reward:
        doubts.append(
            f"The normalised return's lower end {low:.3f} is below {limits.min_reward:g}."
        )
    return doubts


def _misses(candidate: Candidate, limits: Limits) -> str:
    misses = []
    if candidate.leakage_mean > limits.max_leakage:
        misses.append(f"its leakage {candidate.leakage_mean:.3f} exceeds {limits.max_leakage:g}")
    if limits.max_identified is not None:
        identified = candidate.identified_mean
        if identified is None:
            misses.append("its identified share is not recorded")
        elif identified > limits.max_identified:
            misses.append(
                f"its identified share {identified:.3f} exceeds {limits.max_identified:g}"
            )
    if candidate.normalized_return_mean is None:
        misses.append("its reward cannot be normalised")
    elif candidate.missing_reward(limits):
        misses.append(
            f"its normalised return {candidate.normalized_return_mean:.3f} "
            f"is below {limits.min_reward:g}"
        )
    if limits.max_epsilon is not None:
        if candidate.epsilon is None:
            misses.append("it has no formal guarantee")
        elif candidate.epsilon > limits.max_epsilon:
            misses.append(f"its ε {short_number(candidate.epsilon)} exceeds {limits.max_epsilon:g}")
    if limits.max_bytes is not None and candidate.bytes_up > limits.max_bytes:
        misses.append(f"its {candidate.bytes_up:,} bytes up exceed {limits.max_bytes:,.0f}")
    return " and ".join(misses)


def render_text(recommendation: Recommendation) -> str:
    """The recommendation as plain text for a terminal, ending in a newline."""
    lines = [recommendation.answer]
    if recommendation.confidence != "none":
        lines.append(
            f"Confidence: {recommendation.confidence} ({recommendation.confidence_reason})."
        )
    for title, items in (
        ("Why", recommendation.reasons),
        ("Also within the limits", [c.text for c in recommendation.alternatives]),
        ("Break points", [point.text for point in recommendation.break_points]),
        ("To try", recommendation.suggestions),
        ("Check first", [flag.message for flag in recommendation.flags]),
    ):
        if items:
            lines += ["", f"{title}:", *(f"  - {item}" for item in items)]
    lines += ["", f"Threat model: {recommendation.threat_model}"]
    return "\n".join(lines) + "\n"
