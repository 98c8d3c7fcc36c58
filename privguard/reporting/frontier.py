"""From records to the frontier's rows: each setting summarised over its seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from privguard.records import AttackRecord, CellRecord, CellState, TargetScores
from privguard.reporting.frontier_row import FrontierRow
from privguard.reporting.returns import UNDEFENDED, ReturnScale, return_scale, returns_by_seed
from privguard.reporting.statistics import (
    Array,
    Estimate,
    bootstrap_mean,
    bootstrap_share,
    finite,
    mean_or_none,
    seed_mean,
)

Score = Callable[[TargetScores], float | None]

STATES_BY_SEVERITY: tuple[CellState, ...] = ("ok", "collapsed", "diverged", "failed")


def frontier_rows(
    cells: Sequence[CellRecord], attacks: Sequence[AttackRecord]
) -> list[FrontierRow]:
    """Summarise records into rows, sorted by environment, defence (``none`` first) and level.

    Any subset of a sweep is fine. Skipped attacks give no row; a level that no attack has reached
    gives one row without an attack, so that nothing is dropped. Attacks on unknown cells are left
    out.
    """
    levels: dict[tuple[str, str, float | None], list[CellRecord]] = defaultdict(list)
    for cell in cells:
        levels[cell.env, cell.defense, cell.level].append(cell)
    scales = {
        env: return_scale([cell for cell in cells if cell.env == env])
        for env in {cell.env for cell in cells}
    }
    by_cell: dict[str, list[AttackRecord]] = defaultdict(list)
    for attack in attacks:
        if attack.targets:
            by_cell[attack.cell_key].append(attack)
    rows: list[FrontierRow] = []
    for key in sorted(levels, key=_level_order):
        rows.extend(_level_rows(levels[key], by_cell, scales[key[0]]))
    return rows


def _level_order(key: tuple[str, str, float | None]) -> tuple[str, bool, str, float]:
    env, defense, level = key
    return env, defense != UNDEFENDED, defense, -np.inf if level is None else level


def _level_rows(
    cells: list[CellRecord], by_cell: dict[str, list[AttackRecord]], scale: ReturnScale
) -> list[FrontierRow]:
    """The rows of one (environment, defence, level)."""
    shared = _cell_columns(cells, scale)
    seed_of = {cell.key: cell.seed for cell in cells}
    groups: dict[tuple[str, int, str, str], list[AttackRecord]] = defaultdict(list)
    for cell in cells:
        for record in by_cell.get(cell.key, ()):
            setting = (record.release, record.batch_size, record.attack, record.knowledge)
            groups[setting].append(record)
    if not groups:
        return [FrontierRow.model_validate(shared | _attack_columns([], {}))]
    probes_first = sorted(groups, key=lambda key: (key[0] != "probe", *key))
    return [
        FrontierRow.model_validate(shared | _attack_columns(groups[key], seed_of))
        for key in probes_first
    ]


def _cell_columns(cells: list[CellRecord], scale: ReturnScale) -> dict[str, object]:
    """Everything that does not depend on the attack."""
    first = cells[0]
    returns = returns_by_seed(cells)
    raw = bootstrap_mean(list(returns.values()))
    normalized = scale.normalize(returns, is_reference=first.defense == UNDEFENDED)
    noises = [cell.noise for cell in cells if cell.noise is not None]
    statements = [cell.privacy for cell in cells if cell.privacy is not None]
    snrs = finite(noise.snr for noise in noises)
    return {
        "env": first.env,
        "defense": first.defense,
        "level": first.level,
        "epsilon": max((s.epsilon for s in statements if s.epsilon is not None), default=None),
        "delta": max((s.delta for s in statements if s.delta is not None), default=None),
        "reconstruction_chance": max(
            (s.reconstruction_chance for s in statements if s.reconstruction_chance is not None),
            default=None,
        ),
        "seeds": len(returns),
        **_columns("return", raw),
        **_columns("normalized_return", normalized),
        "snr": float(np.median(snrs)) if snrs.size else None,
        "state": max((cell.state for cell in cells), key=STATES_BY_SEVERITY.index),
        "cells": len(cells),
        "cells_not_ok": sum(cell.state != "ok" for cell in cells),
        "forward_return_mean": seed_mean([finite(cell.final_forward_returns) for cell in cells]),
        "idle_return": scale.idle,
        "level_name": first.level_name,
        "private_end": first.private_end,
        "gradient_norm": mean_or_none(noise.gradient_norm for noise in noises),
        "noise_norm": mean_or_none(noise.noise_norm for noise in noises),
        "noise_std": mean_or_none(noise.noise_std for noise in noises),
        "noise_multiplier": mean_or_none(s.noise_multiplier for s in statements),
        "clip_norm": mean_or_none(s.clip_norm for s in statements),
        "privacy_unit": next((s.unit for s in statements if s.unit), None),
        "accountant": next((s.accountant for s in statements if s.accountant), None),
        "clients": first.clients,
        "train_batch_size": first.batch_size,
        "bytes_per_round": max(cell.bytes_per_round for cell in cells),
        "train_seconds": mean_or_none(cell.train_seconds for cell in cells),
        **_client_time(cells),
    }


def _client_time(cells: list[CellRecord]) -> dict[str, object]:
    """Both sides of the ratio are measured in the same rounds, so a busy machine slows both."""
    timed = [
        (cell.client_seconds / cell.clients, cell.plain_client_seconds / cell.clients)
        for cell in cells
        if cell.client_seconds and cell.plain_client_seconds and cell.clients
    ]
    return {
        "client_seconds_per_round": mean_or_none(own for own, _ in timed),
        "client_seconds_ratio": mean_or_none(own / plain for own, plain in timed),
    }


def _attack_columns(records: list[AttackRecord], seed_of: dict[str, int]) -> dict[str, object]:
    """Scores of one attack on one kind of release, and the seeds behind them."""
    by_seed: dict[int, list[TargetScores]] = defaultdict(list)
    for record in records:
        by_seed[seed_of[record.cell_key]].extend(record.targets)

    def groups(score: Score) -> list[Array]:
        return [finite(score(target) for target in by_seed[seed]) for seed in sorted(by_seed)]

    def mean(name: str) -> float | None:
        return seed_mean(groups(lambda target: target.scores.get(name)))

    nmse, floor = bootstrap_mean(groups(_nmse)), mean("floor_nmse")
    columns: dict[str, object] = {
        "attack": records[0].attack if records else None,
        "release": records[0].release if records else None,
        "batch_size": records[0].batch_size if records else None,
        "targets": sum(len(targets) for targets in by_seed.values()),
        **_columns("ra", bootstrap_mean(groups(lambda target: target.scores.get("ra")))),
        **_columns("leakage", bootstrap_mean(groups(leakage))),
        "ra_prior": mean("ra_prior"),
        **_columns(
            "identified", bootstrap_share(groups(lambda target: target.scores.get("identified")))
        ),
        **_columns("nmse", nmse),
        "floor_nmse": floor,
        "efficiency": floor / nmse.mean if floor is not None and nmse.mean else None,
        "limit_ra": mean("limit_ra"),
        "knowledge": records[0].knowledge if records else "",
        "prior_samples": min(
            (r.prior_samples for r in records if r.prior_samples is not None), default=None
        ),
        "reward_accuracy_mean": mean("reward_accuracy"),
        "reward_accuracy_prior": mean("reward_accuracy_prior"),
        "identified_prior": mean("identified_prior"),
        **{
            f"{name}_{kind}": mean(f"{name}{suffix}")
            for name in ("psnr", "ssim", "exact_pixels")
            for kind, suffix in (("mean", ""), ("prior", "_prior"))
        },
    }
    return columns | ({"seeds": len(by_seed)} if by_seed else {})


def leakage(target: TargetScores) -> float | None:
    """Share of what the prior does not know that the gradient gave away, in [0, 1].

    max(0, (ra - ra_prior) / (1 - ra_prior)); None where either is missing, or where the prior
    already knows everything and nothing is left to leak.
    """
    ra, prior = target.scores.get("ra"), target.scores.get("ra_prior")
    if ra is None or prior is None or prior >= 1:
        return None
    return max(0.0, (ra - prior) / (1 - prior))


def _nmse(target: TargetScores) -> float | None:
    """Normalised error of (s, a): as recorded, or else the mean of its two parts."""
    scores = target.scores
    if scores.get("nmse") is not None:
        return scores["nmse"]
    return mean_or_none([scores.get("nmse_state"), scores.get("nmse_action")])


def _columns(name: str, estimate: Estimate) -> dict[str, object]:
    return {
        f"{name}_mean": estimate.mean,
        f"{name}_low": estimate.low,
        f"{name}_high": estimate.high,
    }
