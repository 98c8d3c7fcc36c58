"""Flags on results that look like a failed experiment rather than like privacy.

Low leakage has two causes: a defence that works, and an attack that does not. After RobustBench,
each flag has a stable code and says which of the two is in doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pydantic import BaseModel, ConfigDict

from privguard.records import ReleaseKind
from privguard.reporting.frontier_row import FrontierRow
from privguard.reporting.wording import candidate_text, interval_text, return_text
from privguard.reporting.worst_case import headline

CONTROL_LEAKAGE = 0.9
"""The strongest attack must recover at least this much of an undefended probe release."""

WEAK_ATTACK_LEAKAGE = 0.5
"""A single attack below this without a defence says little about any defence."""

WEAKER_THAN: tuple[tuple[str, str], ...] = (("dlg", "rgia"),)
"""(weaker, stronger): the stronger attack is the weaker one with knowledge added."""


class Flag(BaseModel):
    """One doubt about the results."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str


def suspicious_results(rows: Sequence[FrontierRow], release: ReleaseKind = "probe") -> list[Flag]:
    """Everything in the rows of one environment that a reader should check before believing them.

    Controls and orders are judged on ``release``; the undefended control only on probes, since a
    deployed minibatch may well resist the attacks by its size alone.
    """
    judged = [row for row in rows if row.release == release]
    return [
        *_undefended_policy(rows),
        *(_undefended_control(judged) if release == "probe" else []),
        *_zero_gradients(rows),
        *_weaker_beats_stronger(judged),
        *_leaks_more_when_more_private(headline(judged, release)),
    ]


def _undefended_policy(rows: Sequence[FrontierRow]) -> list[Flag]:
    control = next((row for row in rows if row.undefended and row.return_mean is not None), None)
    if control is None:
        message = "No undefended cell has finished: reward cannot be normalised."
        return [Flag(code="no-undefended-policy", message=message)]
    if control.idle_return is not None and (control.return_mean or 0.0) <= control.idle_return:
        message = (
            f"The undefended policy ({return_text(control.return_mean)}) is not above an idle one "
            f"({return_text(control.idle_return)}): nothing was learnt that a defence could cost. "
            "Train longer before reading any reward here."
        )
        return [Flag(code="undefended-not-above-idle", message=message)]
    if control.seeds == 1:
        message = (
            "The undefended policy is that of one seed: another training of the same cell may end "
            "far from it, which no interval here covers. Wait for more seeds before choosing by "
            "reward."
        )
        return [Flag(code="one-seed", message=message)]
    return []


def _undefended_control(judged: Sequence[FrontierRow]) -> list[Flag]:
    controls = [row for row in judged if row.undefended and row.leakage_mean is not None]
    if not controls:
        message = (
            "No attack on an undefended release: low leakage elsewhere may be the attack's failure."
        )
        return [Flag(code="no-undefended-control", message=message)]
    strongest = max(row.leakage_mean or 0.0 for row in controls)
    flags = []
    if strongest < CONTROL_LEAKAGE:
        message = (
            f"Without a defence the strongest attack recovers only {strongest:.2f} of what could "
            "leak: where leakage is low, the attack, not the defence, may have failed."
        )
        flags.append(Flag(code="weak-undefended-control", message=message))
    for row in controls:
        if (row.leakage_mean or 0.0) < WEAK_ATTACK_LEAKAGE <= strongest:
            message = (
                f"{row.attack} recovers only {row.leakage_mean:.2f} of an undefended release: "
                "its low leakage under a defence is no evidence for the defence."
            )
            flags.append(Flag(code="weak-attack", message=message))
    return flags


def _zero_gradients(rows: Sequence[FrontierRow]) -> list[Flag]:
    silent = sorted({candidate_text(row) for row in rows if row.gradient_norm == 0})
    if not silent:
        return []
    message = f"Gradients are exactly zero for {', '.join(silent)}: there was nothing to attack."
    return [Flag(code="zero-gradients", message=message)]


def _weaker_beats_stronger(judged: Sequence[FrontierRow]) -> list[Flag]:
    by_attack = {
        (row.defense, row.level, row.batch_size, row.knowledge, row.attack): row
        for row in judged
        if row.leakage_mean is not None
    }
    flags = []
    for (defense, level, batch_size, knowledge, attack), row in by_attack.items():
        for weaker, stronger in WEAKER_THAN:
            other = by_attack.get((defense, level, batch_size, knowledge, stronger))
            if attack == weaker and other is not None and _clearly_above(row, other):
                message = (
                    f"{weaker} ({_leakage(row)}) beats {stronger} ({_leakage(other)}) on "
                    f"{candidate_text(row)}: {stronger} may not have converged."
                )
                flags.append(Flag(code="weaker-attack-stronger", message=message))
    return flags


def _leaks_more_when_more_private(strongest: Sequence[FrontierRow]) -> list[Flag]:
    flags = []
    for defense in sorted({row.defense for row in strongest}):
        ordered = by_privacy([row for row in strongest if row.defense == defense])
        for weaker, stronger in pairwise(ordered):
            if _clearly_above(stronger, weaker):
                message = (
                    f"{candidate_text(stronger)} leaks more ({_leakage(stronger)}) than the less "
                    f"private {candidate_text(weaker)} ({_leakage(weaker)})."
                )
                flags.append(Flag(code="not-monotone", message=message))
    return flags


def by_privacy(rows: Sequence[FrontierRow]) -> list[FrontierRow]:
    """Rows of one defence from the least to the most private level, as the defence declares it."""
    levelled = [row for row in rows if row.level is not None]
    return sorted(levelled, key=lambda row: (row.level or 0.0) * privacy_sign(row))


def privacy_sign(row: FrontierRow) -> int:
    """+1 if a higher level hides more, -1 if a lower one does."""
    return -1 if row.private_end == "low" else 1


def _clearly_above(row: FrontierRow, other: FrontierRow) -> bool:
    """Whether the leakage intervals are disjoint, ``row`` above ``other``."""
    return (
        row.leakage_low is not None
        and other.leakage_high is not None
        and row.leakage_low > other.leakage_high
    )


def _leakage(row: FrontierRow) -> str:
    return interval_text(row.leakage_mean, row.leakage_low, row.leakage_high)
