"""Rows of the frontier: one (defence, level, attack, release, knowledge) summarised over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from privguard.records import AttackRecord, CellRecord, CellState, ReleaseKind, TargetScores
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


class FrontierRow(BaseModel):
    """One row of ``frontier.csv``; the columns stand in this order.

    ``*_low`` and ``*_high`` bound the bootstrap 95% interval of the ``*_mean`` before them.
    Anything that could not be measured is None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    env: str
    defense: str
    level: float | None
    epsilon: float | None
    """Largest over seeds; None where there is no formal guarantee."""
    delta: float | None
    attack: str | None
    """None for a level whose cells have not been attacked (yet)."""
    release: ReleaseKind | None
    batch_size: int | None
    targets: int
    seeds: int
    """Seeds with attacked targets; without an attack, seeds with a return."""
    ra_mean: float | None
    ra_low: float | None
    ra_high: float | None
    ra_prior: float | None
    leakage_mean: float | None
    leakage_low: float | None
    leakage_high: float | None
    identified_mean: float | None
    nmse_mean: float | None
    floor_nmse: float | None
    return_mean: float | None
    return_low: float | None
    return_high: float | None
    normalized_return_mean: float | None
    normalized_return_low: float | None
    normalized_return_high: float | None
    snr: float | None
    """Median over seeds; None where the defence adds nothing."""

    efficiency: float | None
    """floor_nmse / nmse_mean: 1 for an attack that wastes nothing the noise left."""
    limit_ra: float | None
    """Accuracy of an attacker at the floor."""
    state: CellState
    """The worst state among the level's cells."""
    cells: int
    cells_not_ok: int
    forward_return_mean: float | None
    idle_return: float | None
    """The better of random and zero action: zero of the normalised return."""
    level_name: str | None
    private_end: str | None
    """Which end of the level's axis hides more: 'high' or 'low'."""
    knowledge: str
    """What the adversary was granted beforehand; chance lines and leakage are relative to it."""
    prior_samples: int | None
    """Transitions that it held; smallest over seeds."""
    reward_accuracy_mean: float | None
    reward_accuracy_prior: float | None
    identified_prior: float | None
    identified_low: float | None = None
    identified_high: float | None = None
    """Widened to what so few targets can show (``statistics.bootstrap_share``)."""
    gradient_norm: float | None
    noise_norm: float | None
    noise_std: float | None
    noise_multiplier: float | None
    clip_norm: float | None
    privacy_unit: str | None
    accountant: str | None
    clients: int
    train_batch_size: int
    bytes_per_round: int
    """Bytes that one client sends up in one round."""
    train_seconds: float | None
    client_seconds_per_round: float | None = None
    """Of one client: gradient, defence and its share of the aggregation, at the captured rounds."""
    client_seconds_ratio: float | None = None
    """The same relative to the plain gradients of the same minibatches."""
    psnr_mean: float | None = None
    """Of images, in dB; None elsewhere, as for the others below."""
    psnr_prior: float | None = None
    ssim_mean: float | None = None
    ssim_prior: float | None = None
    exact_pixels_mean: float | None = None
    """Share of pixels that are the true grey level after rounding."""
    exact_pixels_prior: float | None = None

    @property
    def undefended(self) -> bool:
        """Whether this is the control without a defence."""
        return self.defense == UNDEFENDED

    @property
    def usable(self) -> bool:
        """Whether every cell of this level ended well: the others are never recommended."""
        return self.state == "ok"


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

    nmse, floor = seed_mean(groups(_nmse)), mean("floor_nmse")
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
        "nmse_mean": nmse,
        "floor_nmse": floor,
        "efficiency": floor / nmse if floor is not None and nmse else None,
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


def worst_case(rows: Iterable[FrontierRow]) -> list[FrontierRow]:
    """Per (environment, defence, level, release, batch size, knowledge) the strongest row.

    That row's leakage is the headline: the largest mean over attacks. Equal leakages (all zero)
    are told apart by reconstruction accuracy. Rows without an attack are left out.
    """
    strongest: dict[tuple[object, ...], FrontierRow] = {}
    for row in rows:
        if row.leakage_mean is None:
            continue
        key = (row.env, row.defense, row.level, row.release, row.batch_size, row.knowledge)
        if key not in strongest or _strength(row) > _strength(strongest[key]):
            strongest[key] = row
    return list(strongest.values())


def headline(rows: Iterable[FrontierRow], release: ReleaseKind) -> list[FrontierRow]:
    """One row a (defence, level): the worst case over attacks, batch sizes and knowledges.

    Batch sizes differ within one picture where the defence sums clients before the server sees
    anything; where a level was probed at several, or attacked by adversaries of several
    knowledges, its worst case stands for it.
    """
    strongest: dict[tuple[object, ...], FrontierRow] = {}
    for row in worst_case(row for row in rows if row.release == release):
        key = (row.env, row.defense, row.level)
        if key not in strongest or _strength(row) > _strength(strongest[key]):
            strongest[key] = row
    return list(strongest.values())


def _strength(row: FrontierRow) -> tuple[float, float]:
    return row.leakage_mean or 0.0, row.ra_mean or 0.0


def pareto(rows: Iterable[FrontierRow]) -> list[FrontierRow]:
    """The rows that no other beats in both leakage and normalised return.

    Pass ``headline`` rows: a single attack's rows would flatter the defence. Levels with a
    collapsed, diverged or failed cell are neither on the front nor able to push others off it.
    Sorted from the most to the least rewarding.
    """
    eligible = [
        (row.normalized_return_mean, row.leakage_mean, row)
        for row in rows
        if row.usable and row.normalized_return_mean is not None and row.leakage_mean is not None
    ]
    front: list[FrontierRow] = []
    lowest = np.inf
    for _, leaked, row in sorted(eligible, key=lambda entry: (-entry[0], entry[1])):
        if leaked < lowest:
            front.append(row)
            lowest = leaked
    return front
