"""``summary.md``: the answer first, then the evidence, then what it rests on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from privguard.records import AttackRecord, CellRecord
from privguard.reporting.flags import by_privacy
from privguard.reporting.frontier_row import FrontierRow
from privguard.reporting.recommendation import Recommendation
from privguard.reporting.returns import return_scale
from privguard.reporting.statistics import coverage_text
from privguard.reporting.wording import (
    guarantee_text,
    image_text,
    interval_text,
    return_text,
    short_number,
)
from privguard.reporting.worst_case import headline

HEADLINE_COLUMNS = (
    "defence",
    "level",
    "worst attack",
    "leakage",
    "accuracy (guess)",
    "return",
    "normalised return",
    "guarantee",
    "bytes up",
    "client time",
    "state",
)


@dataclass(frozen=True)
class Summary:
    """The parts of a summary, as text; shared by the Markdown file and the page."""

    title: str
    progress: str
    recommendation: Recommendation
    headline: list[tuple[str, ...]]
    """Rows under ``HEADLINE_COLUMNS``."""
    controls: list[str]
    broken: list[str]
    skipped: list[str]
    assumptions: list[str]
    reproduction: list[str]


def summarize(
    cells: Sequence[CellRecord],
    attacks: Sequence[AttackRecord],
    rows: Sequence[FrontierRow],
    recommendation: Recommendation,
    *,
    command: str,
    planned_cells: int | None,
) -> Summary:
    """Collect what a reader needs to act on the recommendation or to doubt it."""
    env = cells[0].env if cells else "no cell yet"
    return Summary(
        title=f"privguard: {env}",
        progress=_progress(cells, planned_cells),
        recommendation=recommendation,
        headline=[_headline_row(row) for row in _headline(rows)],
        controls=_controls(cells, rows),
        broken=_broken(cells),
        skipped=_skipped(cells, attacks),
        assumptions=_assumptions(cells, recommendation),
        reproduction=_reproduction(cells, command),
    )


def summary_markdown(summary: Summary) -> str:
    """The whole file."""
    advice = summary.recommendation
    lines = [f"# {summary.title}", "", f"**{advice.answer}**", "", summary.progress]
    lines += _section("Why", advice.reasons)
    lines += _section("Also within the limits", [c.text for c in advice.alternatives])
    lines += _section("What to try next", advice.suggestions)
    lines += _section("Check before believing it", [flag.message for flag in advice.flags])
    lines += ["", "## Worst case over attacks, probe releases", "", *_table(summary.headline)]
    lines += _section("Undefended controls", summary.controls)
    lines += _section("Cells that did not end well", summary.broken)
    lines += _section("Attacks that did not run", summary.skipped)
    lines += _section("What this rests on", summary.assumptions)
    lines += _section("Reproduce", summary.reproduction)
    return "\n".join(lines) + "\n"


def _section(title: str, items: Sequence[str]) -> list[str]:
    return ["", f"## {title}", "", *(f"- {item}" for item in items)] if items else []


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return ["No attacked probe release yet."]
    lines = [HEADLINE_COLUMNS, ("---",) * len(HEADLINE_COLUMNS), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _progress(cells: Sequence[CellRecord], planned: int | None) -> str:
    if planned is None or len(cells) >= planned:
        return f"{len(cells)} cells finished."
    return f"{len(cells)} of {planned} cells finished: preliminary."


def _headline(rows: Sequence[FrontierRow]) -> list[FrontierRow]:
    """Every level once, attacked or not, from the least to the most private."""
    strongest = headline(rows, "probe")
    attacked = {(row.defense, row.level) for row in strongest}
    pending: dict[tuple[str, float | None], FrontierRow] = {}
    for row in rows:
        if (row.defense, row.level) not in attacked:
            pending.setdefault((row.defense, row.level), row)
    every = [*strongest, *pending.values()]
    ordered: list[FrontierRow] = []
    for defense in dict.fromkeys(row.defense for row in rows):
        own = [row for row in every if row.defense == defense]
        ordered += [row for row in own if row.level is None] + by_privacy(own)
    return ordered


def _headline_row(row: FrontierRow) -> tuple[str, ...]:
    probed = row.release == "probe"
    accuracy = "–"
    if probed and row.ra_mean is not None:
        guess = "–" if row.ra_prior is None else f"{row.ra_prior:.2f}"
        accuracy = f"{row.ra_mean:.2f} ({guess})"
    level = "" if row.level is None else f"{row.level_name or 'level'} {short_number(row.level)}"
    leaked = interval_text(row.leakage_mean, row.leakage_low, row.leakage_high)
    normalized = interval_text(
        row.normalized_return_mean, row.normalized_return_low, row.normalized_return_high
    )
    state = "ok" if row.usable else f"{row.state} ({row.cells_not_ok} of {row.cells} not ok)"
    return (
        row.defense,
        level,
        (row.attack or "–") if probed else "not attacked",
        leaked if probed else "–",
        accuracy,
        interval_text(row.return_mean, row.return_low, row.return_high),
        normalized,
        guarantee_text(row),
        f"{row.bytes_per_round:,}",
        "–" if row.client_seconds_ratio is None else f"{row.client_seconds_ratio:.2f}x",
        state,
    )


def _controls(cells: Sequence[CellRecord], rows: Sequence[FrontierRow]) -> list[str]:
    scale = return_scale(cells)
    controls = [row for row in rows if row.undefended]
    lines = [
        f"{row.attack} on the undefended {row.release} release (batch {row.batch_size}): leakage "
        f"{interval_text(row.leakage_mean, row.leakage_low, row.leakage_high)}{image_text(row)}"
        for row in controls
        if row.attack is not None
    ]
    if controls:
        row = controls[0]
        forward = row.forward_return_mean
        lines.insert(
            0,
            f"Return {interval_text(row.return_mean, row.return_low, row.return_high)}"
            + (f", of which forward {return_text(forward)}" if forward is not None else "")
            + f"; an idle policy earns {return_text(scale.idle)}.",
        )
    if scale.reason:
        lines.append(f"Returns are not normalised: {scale.reason}.")
    return lines


def _broken(cells: Sequence[CellRecord]) -> list[str]:
    groups: dict[tuple[str, float | None, str], list[CellRecord]] = {}
    for cell in cells:
        if cell.state != "ok":
            groups.setdefault((cell.defense, cell.level, cell.state), []).append(cell)
    lines = []
    for (defense, level, state), group in groups.items():
        seeds = ", ".join(str(cell.seed) for cell in group)
        reasons = "; ".join(dict.fromkeys(cell.reason for cell in group if cell.reason))
        line = f"{_name(defense, level)}: {state} (seed {seeds})"
        lines.append(f"{line}: {reasons}" if reasons else line)
    return lines


def _skipped(cells: Sequence[CellRecord], attacks: Sequence[AttackRecord]) -> list[str]:
    names = {cell.key: _name(cell.defense, cell.level) for cell in cells}
    where: dict[tuple[str, str, str], set[str]] = {}
    for record in attacks:
        if record.skipped and record.cell_key in names:
            key = (record.attack, record.release, record.skipped)
            where.setdefault(key, set()).add(names[record.cell_key])
    return [
        f"{attack} on {release} releases of {_some(sorted(levels))}: {reason}"
        for (attack, release, reason), levels in sorted(where.items())
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{len(names)} levels"


def _assumptions(cells: Sequence[CellRecord], recommendation: Recommendation) -> list[str]:
    lines = [
        recommendation.threat_model,
        "Leakage is the share of (s, a) coordinates reconstructed to within 0.1 standard "
        "deviations (pixels: 8 of 255 grey levels), above what guessing from the prior reaches, "
        "rescaled to [0, 1].",
        f"Intervals: {coverage_text(len({cell.seed for cell in cells}))}.",
        "Normalised return: 0 is the better of a random and a zero-action policy, 1 the "
        "undefended policy.",
        "Bytes up: what one client sends in a round. Client time: seconds of the clients' "
        "gradients, defence and aggregation (for secure aggregation the simulated server's part "
        "included), relative to their plain gradients on the same minibatches; mean over seeds of "
        "the captured rounds' medians.",
    ]
    formal: dict[str, list[str]] = {}
    for cell in cells:
        if cell.privacy is None or cell.defense == "none":
            continue
        statement = cell.privacy
        claim = (
            f"ε by the {statement.accountant} accountant, unit {statement.unit}"
            if statement.epsilon is not None
            else ""
        )
        parts = [part.rstrip(".") for part in (claim, *statement.assumptions) if part]
        formal.setdefault("; ".join(parts), []).append(cell.defense)
    lines += [f"{', '.join(dict.fromkeys(names))}: {text}." for text, names in formal.items()]
    return lines


def _reproduction(cells: Sequence[CellRecord], command: str) -> list[str]:
    if not cells:
        return [f"`{command}`"]
    budgets = ", ".join(sorted({cell.budget for cell in cells}))
    seeds = Counter(cell.seed for cell in cells)
    setups = sorted({(c.clients, c.batch_size, c.local_steps, c.rounds) for c in cells})
    versions = sorted(
        {f"{name} {value}" for cell in cells for name, value in cell.versions.items()}
    )
    lines = [
        f"`{command}`",
        f"Budget {budgets}; cells by seed: "
        + ", ".join(f"{seed}: {count}" for seed, count in sorted(seeds.items())),
        "; ".join(
            f"{clients} clients, minibatch {batch_size}, "
            + (f"{steps} local steps (FedAvg), " if steps > 1 else "")
            + f"{rounds:,} rounds"
            for clients, batch_size, steps, rounds in setups
        ),
    ]
    return [*lines, f"Versions: {', '.join(versions)}"] if versions else lines


def _name(defense: str, level: float | None) -> str:
    return defense if level is None else f"{defense} {short_number(level)}"
