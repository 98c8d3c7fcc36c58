"""A whole sweep: specification to cells to executor to store, with the report kept current."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from privguard.executors import Event, Executor, Failed, Finished, Task
from privguard.grids import swept_stage
from privguard.records import AttackRecord, CellRecord
from privguard.reporting.report import Evidence, write_page, write_report
from privguard.spec import SweepSpec
from privguard.store import Store
from privguard.worlds.poses import Poses

_REFRESH_SECONDS = 15.0
"""Least time between two pages while a sweep runs: writing one takes up to a second of a core."""


Done = Callable[[SweepSpec, Store], set[tuple[str, str]]]
"""Which (cell's key, attack) need not be computed again."""


def recorded_attacks(spec: SweepSpec, store: Store) -> set[tuple[str, str]]:
    """The attacks with a record under the specification's knowledge."""
    return {
        (record.cell_key, record.attack)
        for record in store.attacks()
        if record.knowledge == spec.knowledge.label
    }


def shown_attacks(spec: SweepSpec, store: Store) -> set[tuple[str, str]]:
    """Those of them whose reconstructions were kept; records of earlier versions have none."""
    label = spec.knowledge.label
    kept = {
        (cell.key, *one.setting)
        for cell in store.cells()
        for one in store.files.load_examples(cell.key)
    }
    missing = {
        (record.cell_key, record.attack)
        for record in store.attacks()
        if record.targets and (record.cell_key, record.attack, record.release, label) not in kept
    }
    return recorded_attacks(spec, store) - missing


def pending_tasks(spec: SweepSpec, store: Store, done: Done = recorded_attacks) -> list[Task]:
    """What is still to be computed: cells without a record or with failed ones, missing attacks."""
    records = {record.key: record for record in store.cells() if record.state != "failed"}
    knowledge = spec.knowledge
    attacked = done(spec, store)
    tasks = []
    for cell in spec.cells():
        known = records.get(cell.key)
        missing = tuple(name for name in spec.attacks if (cell.key, name) not in attacked)
        if known is None:
            tasks.append(Task(cell, spec.attacks, None, knowledge))
        elif missing and store.files.has_captures(cell.key):
            tasks.append(Task(cell, missing, known, knowledge))
    return tasks


def run_sweep(
    spec: SweepSpec,
    store: Store,
    executor: Executor,
    command: str,
    on_event: Callable[[Event], None],
) -> None:
    """Computes everything that is missing and writes the report."""
    compute(spec, store, executor, command, on_event)
    report(spec, store, command)


def compute(
    spec: SweepSpec,
    store: Store,
    executor: Executor,
    command: str,
    on_event: Callable[[Event], None],
) -> None:
    """Computes everything that is missing, commits each cell as it ends.

    The report is refreshed every ``_REFRESH_SECONDS`` at most, and not at the end.
    """
    store.put_sweep(spec, command)
    tasks = pending_tasks(spec, store)
    reported = time.monotonic()

    def commit(event: Event) -> None:
        nonlocal reported
        if isinstance(event, Finished):
            store.put(event.record, event.attacks)
        elif isinstance(event, Failed):
            if event.details:
                store.files.log_failure(event.cell.key, event.details)
            store.put(failed_record(event), [])
        on_event(event)
        if isinstance(event, Finished) and time.monotonic() - reported > _REFRESH_SECONDS:
            refresh_page(spec, store, command)
            reported = time.monotonic()

    executor.run(tasks, commit)


def failed_record(event: Failed) -> CellRecord:
    """A failed cell is remembered like any other, and tried again by the next run."""
    cell = event.cell
    swept = swept_stage(cell.defense)
    return CellRecord(
        key=cell.key,
        env=cell.env,
        defense=cell.defense_name,
        level=cell.level,
        level_name=swept.level if swept else None,
        private_end=swept.private_end if swept else None,
        seed=cell.seed,
        budget=cell.budget.name,
        state="failed",
        reason=event.reason,
    )


def selected_records(spec: SweepSpec, store: Store) -> tuple[list[CellRecord], list[AttackRecord]]:
    """The records of the sweep's own cells: a directory may hold others, of other budgets."""
    keys = {cell.key for cell in spec.cells()}
    cells = [record for record in store.cells() if record.key in keys]
    attacks = [record for record in store.attacks() if record.cell_key in keys]
    return cells, attacks


def report(spec: SweepSpec, store: Store, command: str) -> list[Path]:
    """Writes the report of what is finished, figures and poses included; returns the files."""
    cells, attacks = selected_records(spec, store)
    return write_report(
        store.directory,
        cells,
        attacks,
        command=command,
        planned_cells=len(spec.cells()),
        evidence=_evidence(spec, store),
    )


def refresh_page(spec: SweepSpec, store: Store, command: str) -> list[Path]:
    """Writes table, summary and page alone, which is quick; returns the files."""
    cells, attacks = selected_records(spec, store)
    return write_page(
        store.directory,
        cells,
        attacks,
        command=command,
        planned_cells=len(spec.cells()),
        evidence=_evidence(spec, store),
    )


def _evidence(spec: SweepSpec, store: Store) -> Evidence:
    return Evidence(
        load=store.files.load_examples,
        pictures=Poses(store.directory, spec.env, spec.observation),
        specification=spec.model_dump_json(indent=2),
    )
