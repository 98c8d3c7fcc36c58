"""One cell from specification to records: train or resume, capture, attack, score."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from attacks.bounds import reconstruction_robustness
from privguard.audit.captures import CellCaptures
from privguard.audit.release_noise import measure_noise
from privguard.auditing import Audit
from privguard.checkpoints import Checkpoint, restore, take_checkpoint
from privguard.grids import swept_stage
from privguard.knowledge import Knowledge
from privguard.records import (
    BLIND_CHANCE,
    AttackRecord,
    CellRecord,
    CellState,
    PrivacyStatement,
)
from privguard.run_files import RunFiles
from privguard.spec import CellSpec
from privguard.training import CellTraining, Progress

_VERSIONED = ("privguard", "torch", "opacus", "gymnasium", "mujoco", "ale-py", "numpy")

OnStage = Callable[[str], None]


def run_cell(
    cell: CellSpec,
    attacks: Sequence[str],
    directory: Path,
    known: CellRecord | None,
    on_progress: Callable[[Progress], None],
    on_stage: OnStage,
    knowledge: Knowledge,
) -> tuple[CellRecord, list[AttackRecord]]:
    """Trains the cell unless ``known`` says that it was, then runs ``attacks`` on its captures.

    What an earlier run left is picked up where it stands: a checkpoint of the training, or the
    trained cell and the attacks that were over.
    """
    files = RunFiles(directory)
    left = files.load_records(cell.key) if files.has_captures(cell.key) else None
    over: list[AttackRecord] = []
    if left is not None:
        known, records = left
        over = [r for r in records if r.attack in attacks and r.knowledge == knowledge.label]
    if known is not None and files.has_captures(cell.key):
        captures = CellCaptures.unpack(*files.load_captures(cell.key))
    else:
        known, captures = train_cell(cell, files, on_progress, on_stage)
    records = audit_cell(cell, known, captures, attacks, over, files, on_stage, knowledge)
    files.drop_checkpoint(cell.key)
    return known, records


def train_cell(
    cell: CellSpec,
    files: RunFiles,
    on_progress: Callable[[Progress], None],
    on_stage: OnStage,
) -> tuple[CellRecord, CellCaptures]:
    """Trains a cell from its last checkpoint, or afresh."""
    training = CellTraining(cell)
    saved = files.load_checkpoint(cell.key)
    if saved is not None:
        restore(training, Checkpoint(*saved))

    def save() -> None:
        checkpoint = take_checkpoint(training)
        files.save_checkpoint(cell.key, checkpoint.tensors, checkpoint.plain)

    on_stage("training")
    training.run(on_progress, save)
    files.save_captures(cell.key, *training.captures.pack())
    record = cell_record(training)
    files.save_records(cell.key, record, [])
    training.close()
    return record, training.captures


def audit_cell(
    cell: CellSpec,
    trained: CellRecord,
    captures: CellCaptures,
    attacks: Sequence[str],
    over: Sequence[AttackRecord],
    files: RunFiles,
    on_stage: OnStage,
    knowledge: Knowledge,
) -> list[AttackRecord]:
    """Every attack's records on one cell; none if nothing was captured before it broke.

    Those that are ``over`` are not repeated. What is found, and a few reconstructions of each
    attack, is kept in ``files`` as soon as the attack ends.
    """
    records = list(over)
    names = [name for name in attacks if name not in {record.attack for record in over}]
    if not names or not captures.captures:
        return records
    audit = Audit.prepare(cell, captures, knowledge)
    for name in names:
        found = audit.run(name, on_stage)
        files.add_examples(cell.key, [one.examples for one in found if one.examples is not None])
        records += [one.record for one in found]
        files.save_records(cell.key, trained, records)
    return records


def cell_record(training: CellTraining) -> CellRecord:
    """What is remembered of a trained cell."""
    cell = training.cell
    random_return, zero_return = training.baselines()
    last = training.evaluations[-cell.budget.final_evaluations :]
    final = [value for evaluation in last for value in evaluation.returns]
    state, reason = _state(training, final, random_return)
    session = training.federation.session
    swept = swept_stage(cell.defense)
    costs = training.federation.costs
    return CellRecord(
        key=cell.key,
        env=cell.env,
        defense=cell.defense_name,
        level=cell.level,
        level_name=swept.level if swept else None,
        private_end=swept.private_end if swept else None,
        seed=cell.seed,
        budget=cell.budget.name,
        state=state,
        reason=reason,
        clients=cell.clients,
        batch_size=cell.agent.batch_size,
        local_steps=cell.agent.local_steps,
        rounds=training.round,
        random_return=random_return,
        zero_return=zero_return,
        evaluations=training.evaluations,
        final_returns=final,
        final_forward_returns=[f for evaluation in last for f in evaluation.forward_returns],
        noise=measure_noise(cell, training.captures),
        privacy=_privacy(training),
        void_rounds=training.federation.void_rounds,
        saturation_rate=session.saturation_rate,
        train_seconds=training.seconds,
        rounds_per_second=training.round / max(training.seconds, 1e-9),
        bytes_per_round=training.federation.defense.upload_bytes(
            session.layout.size, len(session.layout.names)
        ),
        client_seconds=float(np.median([c.defended for c in costs])) if costs else None,
        plain_client_seconds=float(np.median([c.plain for c in costs])) if costs else None,
        versions={name: _version(name) for name in _VERSIONED},
        machine=_machine(),
        finished_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _version(package: str) -> str:
    """The installed version; source that is imported from where it lies has none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _machine() -> str:
    """E.g. ``Linux x86_64, 2 processors, Python 3.11.2``; no name of the machine."""
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors, "
        f"Python {platform.python_version()}"
    )


def _state(
    training: CellTraining, final: list[float], random_return: float
) -> tuple[CellState, str]:
    if training.diverged:
        return "diverged", f"weights became non-finite by round {training.round}"
    mean = float(np.mean(final))
    if mean <= random_return:
        return "collapsed", f"return {mean:.0f} is not above a random policy's {random_return:.0f}"
    return "ok", ""


def _privacy(training: CellTraining) -> PrivacyStatement:
    """Epsilon of the client with the largest one, or why there is none."""
    federation = training.federation
    accountants = [a for a in federation.accountants if a is not None]
    if not accountants:
        return PrivacyStatement(
            epsilon=None,
            delta=None,
            unit=None,
            accountant=None,
            assumptions=[
                "no formal guarantee: the defence bounds no record's influence with noise"
            ],
        )
    sampling = federation.defense.sampling
    delta = accountants[0].delta(min(c.replay.units(sampling) for c in federation.clients))
    worst = max(accountants, key=lambda accountant: accountant.epsilon(delta))
    epsilon = worst.epsilon(delta)
    finite = math.isfinite(epsilon)
    described = {k: v for entry in federation.session.describe() for k, v in entry.items()}
    return PrivacyStatement(
        epsilon=epsilon if finite else None,
        delta=delta,
        unit=worst.unit,
        accountant=worst.accounted_by(delta),
        noise_multiplier=described["noise_multiplier"],
        clip_norm=described.get("clip_norm"),
        compositions=training.round,
        reconstruction_chance=(
            reconstruction_robustness(BLIND_CHANCE, worst.rounds) if finite else None
        ),
        assumptions=worst.assumptions(),
    )
