"""The answer in one sentence with its intervals, and the figures behind it one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from privguard.reporting.candidates import Candidate
from privguard.reporting.frontier_row import FrontierRow
from privguard.reporting.limits import Limits
from privguard.reporting.recommendation import Recommendation
from privguard.reporting.wording import VACUOUS_EPSILON, interval_text, return_text, short_number


@dataclass(frozen=True)
class Fact:
    """One figure of the answer."""

    name: str
    value: str
    note: str
    kept: bool | None = None
    """Whether its mean keeps the limit asked for; None where there is no limit."""


@dataclass(frozen=True)
class Answer:
    """What the page says first."""

    question: str
    sentence: str
    facts: tuple[Fact, ...]
    """Leakage, reward, epsilon and cost of the choice, or of the level that came nearest."""


def answer(recommendation: Recommendation, rows: Sequence[FrontierRow]) -> Answer:
    """Word the recommendation for the rows that it was made from."""
    limits = recommendation.limits
    question = (
        "Which defence, at which level, may be deployed so that at most "
        f"{limits.max_leakage:g} of the experience leaks and at most "
        f"{limits.max_reward_loss:.0%} of the reward is lost?"
    )
    candidate = recommendation.choice or recommendation.nearest
    if candidate is None:
        why = " ".join(recommendation.reasons[:1])
        return Answer(question, f"{recommendation.answer} {why}".strip(), ())
    facts = _facts(candidate, recommendation, rows)
    described = f"leakage {facts[0].value}, reward kept: {facts[1].value}, {candidate.guarantee}"
    cost = f"{facts[3].value} uploaded by a client in a round"
    if recommendation.choice is None:
        sentence = f"No measured level qualifies. Nearest comes {candidate.text}: {described}, "
    else:
        verb = "Deploy" if recommendation.status == "recommended" else "Tentatively, deploy"
        sentence = f"{verb} {candidate.text}: {described}, "
    return Answer(question, sentence + cost + ".", facts)


def _facts(
    candidate: Candidate, recommendation: Recommendation, rows: Sequence[FrontierRow]
) -> tuple[Fact, ...]:
    row = next(r for r in rows if (r.defense, r.level) == (candidate.defense, candidate.level))
    limits = recommendation.limits
    control = next((r for r in rows if r.undefended), None)
    epsilon = "no formal guarantee" if row.epsilon is None else short_number(row.epsilon)
    return (
        Fact(
            "Leakage, worst attack",
            interval_text(candidate.leakage_mean, candidate.leakage_low, candidate.leakage_high),
            f"by {candidate.worst_attack}; limit {limits.max_leakage:g}, "
            "0 = nothing beyond the prior, 1 = everything",
            candidate.leakage_mean <= limits.max_leakage,
        ),
        _reward(candidate, limits, control),
        Fact(
            "ε",
            epsilon,
            "whatever its picture looks like"
            if row.epsilon is None
            else ("too large to promise anything; " if row.epsilon > VACUOUS_EPSILON else "")
            + f"largest over the seeds, an upper bound{_delta(row)}",
        ),
        Fact("Upload", _bytes(row.bytes_per_round), f"a client, a round{_against(row, control)}"),
    )


def _reward(candidate: Candidate, limits: Limits, control: FrontierRow | None) -> Fact:
    earned = f"return {return_text(candidate.return_mean)}"
    if candidate.normalized_return_mean is None:
        why = "no undefended policy has finished"
        if control is not None and control.return_mean is not None:
            why = (
                f"the undefended policy's {return_text(control.return_mean)} does not beat an idle "
                f"one's {return_text(control.idle_return)}"
            )
        return Fact("Reward kept", "not measurable", f"{earned}, but {why}: train longer")
    interval = interval_text(
        candidate.normalized_return_mean,
        candidate.normalized_return_low,
        candidate.normalized_return_high,
    )
    note = f"{earned}; limit {limits.min_reward:g}, 0 = idle, 1 = undefended"
    return Fact("Reward kept", interval, note, candidate.missing_reward(limits) == 0)


def _delta(row: FrontierRow) -> str:
    delta = "" if row.delta is None else f"; δ = {short_number(row.delta)}"
    return delta + (f", per {row.privacy_unit}" if row.privacy_unit else "")


def _against(row: FrontierRow, control: FrontierRow | None) -> str:
    """Upload and training time as multiples of the undefended ones."""
    if control is None or row is control or not control.bytes_per_round:
        return ""
    text = f": {row.bytes_per_round / control.bytes_per_round:.2g}× undefended"
    if row.train_seconds and control.train_seconds:
        text += f"; training took {row.train_seconds / control.train_seconds:.2g}× as long"
    return text


def _bytes(count: int) -> str:
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
