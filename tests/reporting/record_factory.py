"""Synthetic records shaped like those of an Ant sweep, for the tests of reporting."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from privguard.records import (
    AttackRecord,
    CellRecord,
    CellState,
    Evaluation,
    Noise,
    PrivacyStatement,
    ReleaseKind,
    TargetScores,
)

IDLE = 993.0
RANDOM = -160.0
UNDEFENDED = 2500.0
PRIOR = 0.08

# defence -> level name, private end, levels from least to most private
GRIDS: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "gaussian": ("variance", "high", (1e-5, 1e-3, 1e-1, 1, 10, 100)),
    "dp-sgd": ("noise multiplier", "high", (0.003, 0.01, 0.03, 0.1, 0.3, 1)),
    "clip": ("norm", "low", (10, 1, 0.1)),
    "quantize": ("bits", "low", (8, 4, 2, 1)),
    "topk": ("fraction", "low", (0.3, 0.1, 0.01, 0.001)),
    "secagg": ("clients", "high", (2, 4)),
}

# defence -> (leakage of the strongest attack, share of the reward kept), level by level
SHAPES: dict[str, tuple[tuple[float, float], ...]] = {
    "none": ((0.99, 1.0),),
    "gaussian": ((0.97, 1.02), (0.8, 0.98), (0.35, 0.97), (0.12, 0.9), (0.03, 0.4), (0.0, -1.6)),
    "dp-sgd": ((0.9, 1.0), (0.7, 0.99), (0.45, 0.93), (0.2, 0.6), (0.05, -0.2), (0.01, -2.5)),
    "clip": ((0.99, 1.0), (0.99, 0.97), (0.98, 0.8)),
    "quantize": ((0.96, 1.01), (0.6, 0.99), (0.2, 0.92), (0.09, 0.75)),
    "topk": ((0.98, 1.0), (0.9, 0.98), (0.4, 0.85), (0.1, 0.3)),
    "secagg": ((0.5, 1.0), (0.25, 1.0)),
}

STRENGTH = {"analytic": 1.0, "rgia": 0.95, "geiping": 0.8, "dlg": 0.6}


def cell(
    defense: str = "none",
    level: float | None = None,
    seed: int = 0,
    *,
    kept: float = 1.0,
    episodes: int = 10,
    state: CellState = "ok",
    returns: Sequence[float] | None = None,
    level_name: str | None = None,
    private_end: str | None = None,
    env: str = "ant",
) -> CellRecord:
    """A cell whose policy keeps about ``kept`` of the undefended return."""
    random = np.random.default_rng([seed, *f"{defense}{level}".encode()])
    goal = IDLE + kept * (UNDEFENDED - IDLE) * (1 + 0.04 * math.sin(7 * seed + 1))
    final = random.normal(goal, 90, episodes) if returns is None else np.asarray(returns)
    curve = [
        Evaluation(
            round=round_,
            environment_steps=4 * round_,
            seconds=round_ / 200,
            returns=list(random.normal(-160 + (goal + 160) * (1 - math.exp(-step / 4)), 80, 3)),
            forward_returns=[],
            lengths=[1000] * 3,
        )
        for step, round_ in enumerate(range(0, 60_001, 5_000))
    ]
    noise_norm = 0.0 if defense == "none" or level is None else 10 * math.sqrt(level)
    dp = defense == "dp-sgd" and level is not None
    return CellRecord(
        key=f"{env}/{defense}/{level}/{seed}",
        env=env,
        defense=defense,
        level=level,
        level_name=level_name,
        private_end=private_end,  # type: ignore[arg-type]
        seed=seed,
        budget="quick",
        state=state,
        reason="" if state == "ok" else f"{state}: the policy ended below an idle one",
        clients=4,
        batch_size=32,
        rounds=60_000,
        random_return=RANDOM,
        zero_return=IDLE,
        evaluations=curve if len(final) else curve[:3],
        final_returns=[float(value) for value in final],
        final_forward_returns=[float(value) - IDLE for value in final],
        noise=Noise(
            gradient_norm=12.0,
            noise_norm=noise_norm,
            snr=144 / noise_norm**2 if noise_norm else None,
            noise_std=math.sqrt(level) if defense == "gaussian" and level else None,
        ),
        privacy=PrivacyStatement(
            epsilon=40 / level if dp and level else None,
            delta=1e-5 if dp else None,
            unit="transition (add/remove), one client" if dp else None,
            accountant="rdp" if dp else None,
            noise_multiplier=level if dp else None,
            clip_norm=1.0 if dp else None,
            compositions=60_000 if dp else None,
            assumptions=["Poisson sampling"] if dp else ["unbounded sensitivity"],
        ),
        train_seconds=300.0,
        bytes_per_round=400_000,
        client_seconds=0.006 if defense == "none" else 0.012,
        plain_client_seconds=0.006,
        versions={"torch": "2.13", "gymnasium": "1.4.0"},
        finished_at=f"2025-01-01T0{seed}:00:00Z",
    )


def attack(
    target: CellRecord,
    name: str = "rgia",
    *,
    leakage: float = 0.5,
    spread: float = 0.05,
    targets: int = 24,
    release: ReleaseKind = "probe",
    batch_size: int = 1,
    skipped: str = "",
) -> AttackRecord:
    """An attack whose targets leak about ``leakage``."""
    random = np.random.default_rng([target.seed, targets, *f"{target.key}{name}".encode()])
    scores = []
    for index in range(0 if skipped else targets):
        leaked = float(np.clip(random.normal(leakage, spread), 0, 1))
        ra = PRIOR + leaked * (1 - PRIOR)
        scores.append(
            TargetScores(
                capture=index % 3,
                round=20_000 * (index % 3 + 1),
                client=index % 4,
                scores={
                    "ra": ra,
                    "ra_prior": PRIOR,
                    "leakage": leaked,
                    "identified": float(leaked > 0.3),
                    "identified_prior": 0.001,
                    "nmse_state": 1 - leaked,
                    "nmse_action": 1 - leaked / 2,
                    "nmse_next_state": None,
                    "reward_accuracy": 0.2,
                    "reward_accuracy_prior": 0.15,
                },
            )
        )
    return AttackRecord(
        cell_key=target.key,
        attack=name,
        release=release,
        batch_size=batch_size,
        knowledge="samples (0.3%)",
        targets=scores,
        skipped=skipped,
        seconds_per_target=1.5,
    )


def sweep(
    seeds: Iterable[int] = range(3),
    *,
    attacks: Sequence[str] = ("rgia", "dlg", "geiping", "analytic"),
    deployed: bool = True,
    targets: int = 24,
) -> tuple[list[CellRecord], list[AttackRecord]]:
    """The whole default grid, seed by seed."""
    cells: list[CellRecord] = []
    records: list[AttackRecord] = []
    for seed in seeds:
        for defense, shape in SHAPES.items():
            name, end, levels = GRIDS.get(defense, (None, None, (None,)))
            for level, (leaked, kept) in zip(levels, shape, strict=True):
                state: CellState = "collapsed" if kept < 0 else "ok"
                here = cell(
                    defense, level, seed, kept=kept, state=state, level_name=name, private_end=end
                )
                cells.append(here)
                batch = int(level or 1) if defense == "secagg" else 1
                for attack_name in attacks:
                    strength = STRENGTH[attack_name]
                    analytic = attack_name == "analytic"
                    records.append(
                        attack(
                            here,
                            attack_name,
                            # The analytic attack is exact but brittle: noise hits it harder.
                            leakage=(leaked**2 if analytic else leaked) * strength,
                            batch_size=batch,
                            skipped="needs batch 1" if analytic and batch > 1 else "",
                            targets=targets,
                        )
                    )
                    if deployed:
                        records.append(
                            attack(
                                here,
                                attack_name,
                                leakage=0.3 * leaked * strength,
                                release="deployed",
                                batch_size=32 * batch,
                                skipped="needs batch 1" if analytic else "",
                                targets=targets,
                            )
                        )
    return cells, records
