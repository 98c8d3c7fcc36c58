"""The tables of the page: each defence's levels, and the training curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from privguard.records import CellRecord, ReleaseKind
from privguard.reporting.flags import by_privacy
from privguard.reporting.frontier_row import FrontierRow
from privguard.reporting.training_figure import mean_curve
from privguard.reporting.wording import (
    interval_text,
    level_text,
    return_text,
    short_number,
    wide_interval_text,
)
from privguard.reporting.worst_case import headline

RELEASE_NAMES: dict[ReleaseKind, str] = {
    "probe": "probe releases (single records, the worst case)",
    "deployed": "deployed releases (the minibatches that trained the policy)",
}


@dataclass(frozen=True)
class Table:
    """One table; the first column names its row."""

    title: str
    caption: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: list[str]


def defense_tables(rows: Sequence[FrontierRow]) -> list[Table]:
    """For each defence and kind of release its levels against their strongest attacks.

    Where states are images, how clear their reconstructions are follows the general scores.
    """
    images = any(row.psnr_mean is not None for row in rows)
    header = (*_HEADER, *(_IMAGE_HEADER if images else ()))
    tables = []
    for defense in dict.fromkeys(row.defense for row in rows):
        own = [row for row in rows if row.defense == defense]
        title = "No defence: the control" if own[0].undefended else defense
        notes = [_guarantee(own)]
        for release, name in RELEASE_NAMES.items():
            strongest = headline(own, release)
            strongest = by_privacy(strongest) or strongest
            if strongest:
                caption = f"{defense}, {name}: strongest attack at each level"
                level = own[0].level_name or "level"
                lines = [_line(row) + (_image_part(row) if images else ()) for row in strongest]
                tables.append(Table(title, caption, (level, *header), lines, notes))
                title, notes = "", []
    return tables


def _guarantee(rows: Sequence[FrontierRow]) -> str:
    """What the levels' epsilons are of; they stand in the table themselves."""
    formal = [row for row in rows if row.epsilon is not None]
    if not formal:
        return "No formal guarantee."
    deltas = sorted({row.delta for row in formal if row.delta is not None})
    units = sorted({row.privacy_unit for row in formal if row.privacy_unit})
    accountants = sorted({row.accountant for row in formal if row.accountant})
    return (
        f"ε at δ = {', '.join(short_number(delta) for delta in deltas)}; unit: "
        f"{', '.join(units)}; accountant: {', '.join(accountants)}."
    )


_HEADER = (
    "strongest attack",
    "leakage",
    "accuracy",
    "guess",
    "at the floor",
    "identified",
    "error (NMSE)",
    "floor",
    "return",
    "normalised return",
    "ε",
    "signal to noise",
    "bytes up, a client and round",
    "training time",
    "seeds",
    "state",
)

_IMAGE_HEADER = ("PSNR (dB)", "guess", "SSIM", "guess", "exact pixels", "guess")


def _image_part(row: FrontierRow) -> tuple[str, ...]:
    return tuple(
        _number(value)
        for value in (
            row.psnr_mean,
            row.psnr_prior,
            row.ssim_mean,
            row.ssim_prior,
            row.exact_pixels_mean,
            row.exact_pixels_prior,
        )
    )


def _line(row: FrontierRow) -> tuple[str, ...]:
    return (
        level_text(row) or "–",
        row.attack or "–",
        interval_text(row.leakage_mean, row.leakage_low, row.leakage_high),
        interval_text(row.ra_mean, row.ra_low, row.ra_high),
        _number(row.ra_prior),
        _number(row.limit_ra),
        wide_interval_text(row.identified_mean, row.identified_low, row.identified_high),
        wide_interval_text(row.nmse_mean, row.nmse_low, row.nmse_high),
        _number(row.floor_nmse),
        interval_text(row.return_mean, row.return_low, row.return_high),
        interval_text(
            row.normalized_return_mean, row.normalized_return_low, row.normalized_return_high
        ),
        "none" if row.epsilon is None else short_number(row.epsilon),
        _number(row.snr),
        f"{row.bytes_per_round:,}",
        "–" if row.train_seconds is None else f"{row.train_seconds:,.0f} s",
        str(row.seeds),
        row.state,
    )


def _number(value: float | None) -> str:
    return "–" if value is None else short_number(value)


def training_table(cells: Sequence[CellRecord]) -> Table:
    """Mean return of each level at each evaluation round."""
    levels: dict[tuple[str, float | None], list[CellRecord]] = {}
    for cell in cells:
        levels.setdefault((cell.defense, cell.level), []).append(cell)
    curves = {
        name: dict(zip(*mean_curve(own), strict=True))
        for name, own in levels.items()
        if any(cell.evaluations for cell in own)
    }
    steps = sorted({round(step) for curve in curves.values() for step in curve})
    lines = []
    for (defense, level), curve in sorted(curves.items(), key=lambda item: str(item[0][0])):
        known = {round(step): value for step, value in curve.items()}
        name = defense if level is None else f"{defense} {short_number(level)}"
        lines.append((name, *(return_text(known.get(step)) for step in steps)))
    header = ("defence and level", *(f"{step:,} steps" for step in steps))
    return Table("", "Mean return at each evaluation", header, lines, [])
