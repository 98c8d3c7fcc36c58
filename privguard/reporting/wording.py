"""How levels, numbers and guarantees are written, the same in figures, tables and sentences."""

from __future__ import annotations

import math

from privguard.reporting.frontier_row import FrontierRow

VACUOUS_EPSILON = 30.0
"""Beyond it an observer's odds may change by more than e^30: no attack is excluded."""


def short_number(value: float) -> str:
    """Three digits are enough, powers of ten short: 0.1, 0.03, 1e-3, 30, 1e4."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if 0.01 <= abs(value) < 10_000:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def level_text(row: FrontierRow) -> str:
    """The level alone, e.g. '0.1'; empty without one."""
    return "" if row.level is None else short_number(row.level)


def candidate_text(row: FrontierRow) -> str:
    """Defence and level, e.g. 'gaussian at variance 0.1'."""
    if row.undefended:
        return "no defence"
    if row.level is None:
        return row.defense
    return f"{row.defense} at {row.level_name or 'level'} {level_text(row)}"


def interval_text(mean: float | None, low: float | None, high: float | None) -> str:
    """'0.42 [0.38, 0.47]', or a dash where it was not measured."""
    if mean is None:
        return "–"
    if low is None or high is None:
        return f"{_digits(mean)} [no interval]"
    return f"{_digits(mean)} [{_digits(low)}, {_digits(high)}]"


def wide_interval_text(mean: float | None, low: float | None, high: float | None) -> str:
    """The same for values of any size: '1.04e-3 [9.1e-4, 1.2e-3]'; the mean alone without one."""
    if mean is None:
        return "–"
    if low is None or high is None:
        return short_number(mean)
    return f"{short_number(mean)} [{short_number(low)}, {short_number(high)}]"


def guarantee_text(row: FrontierRow) -> str:
    """The formal claim of a level: epsilon with its unit, or that there is none."""
    if row.epsilon is None:
        return "no formal guarantee"
    delta = "" if row.delta is None else f", δ = {short_number(row.delta)}"
    unit = f" per {row.privacy_unit}" if row.privacy_unit else ""
    vacuous = " (too large to promise anything)" if row.epsilon > VACUOUS_EPSILON else ""
    return f"ε = {short_number(row.epsilon)}{vacuous}{delta}{unit}{_chance_text(row)}"


def _chance_text(row: FrontierRow) -> str:
    """What reconstruction robustness adds; empty where it promises nothing."""
    chance = row.reconstruction_chance
    if chance is None or chance > 0.99:
        return ""
    return f"; a guess that is right one time in ten becomes right {chance:.0%} of the time at most"


def release_text(row: FrontierRow) -> str:
    """'probe, batch 1'."""
    return f"{row.release}, batch {row.batch_size}"


def image_text(row: FrontierRow) -> str:
    """', PSNR 35.9 dB (guess 37.0), exact pixels 0.37 (guess 0.92)'; empty unless of images."""
    if row.psnr_mean is None or row.exact_pixels_mean is None:
        return ""
    scores = (
        ("PSNR", f"{row.psnr_mean:.1f} dB", row.psnr_prior, ".1f"),
        ("exact pixels", f"{row.exact_pixels_mean:.2f}", row.exact_pixels_prior, ".2f"),
    )
    return "".join(
        f", {name} {text}" + ("" if guess is None else f" (guess {guess:{digits}})")
        for name, text, guess, digits in scores
    )


def return_text(value: float | None) -> str:
    """A raw return with at most one decimal."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}"


def _digits(value: float) -> str:
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
    return "0.00" if text == "-0.00" else text
