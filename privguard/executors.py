"""Runs cells in parallel: one process a worker, one thread a process."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Protocol, cast

from privguard.knowledge import Knowledge
from privguard.records import AttackRecord, CellRecord
from privguard.spec import CellSpec


@dataclass(frozen=True)
class Task:
    """One cell to compute."""

    cell: CellSpec
    attacks: tuple[str, ...]
    known: CellRecord | None
    """The cell's record if it is trained already and only attacks are missing."""
    knowledge: Knowledge
    """What the attacks know beforehand."""


@dataclass(frozen=True)
class Advanced:
    """A cell moved on."""

    cell: CellSpec
    stage: str
    round: int = 0
    rounds_per_second: float = 0.0
    mean_return: float | None = None


@dataclass(frozen=True)
class Finished:
    """A cell's records, complete."""

    cell: CellSpec
    record: CellRecord
    attacks: list[AttackRecord]


@dataclass(frozen=True)
class Failed:
    """A cell that raised, or whose process died."""

    cell: CellSpec
    reason: str
    details: str


Event = Advanced | Finished | Failed
OnEvent = Callable[[Event], None]


class Executor(Protocol):
    """Computes tasks somewhere and tells what happens."""

    def run(self, tasks: Sequence[Task], on_event: OnEvent) -> None:
        """Returns when every task is finished or failed; events arrive in the caller's thread."""
        ...


class LocalProcesses:
    """Worker processes on this machine."""

    def __init__(self, workers: int, directory: Path) -> None:
        self.workers = workers
        self.directory = directory

    def run(self, tasks: Sequence[Task], on_event: OnEvent) -> None:
        """Starts the tasks in order; a worker that dies takes only its own cell with it."""
        waiting = list(reversed(tasks))
        busy: dict[Connection, tuple[SpawnProcess, Task]] = {}
        idle: list[tuple[Connection, SpawnProcess]] = []
        try:
            while waiting or busy:
                while waiting and len(busy) < self.workers:
                    connection, process = idle.pop() if idle else _start(self.directory)
                    task = waiting.pop()
                    connection.send(task)
                    busy[connection] = (process, task)
                for connection in cast(list[Connection], wait(list(busy))):
                    process, task = busy[connection]
                    try:
                        event = connection.recv()
                    except EOFError:
                        process.join()
                        event = Failed(
                            task.cell, f"its process died (exit code {process.exitcode})", ""
                        )
                        del busy[connection]
                    else:
                        if not isinstance(event, Advanced):
                            idle.append((connection, process))
                            del busy[connection]
                    on_event(event)
        finally:
            for process in [process for process, _ in busy.values()] + [p for _, p in idle]:
                process.terminate()


def _start(directory: Path) -> tuple[Connection, SpawnProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, directory), daemon=True)
    # Set before the child starts, because the libraries read them when they are loaded.
    with _one_thread():
        process.start()
    theirs.close()
    return ours, process


class _one_thread:  # noqa: N801 - reads as a statement where it is used
    """Limits the numerical libraries of processes started inside to one thread."""

    _NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

    def __enter__(self) -> None:
        self.saved = {name: os.environ.get(name) for name in self._NAMES}
        os.environ.update(dict.fromkeys(self._NAMES, "1"))

    def __exit__(self, *_: object) -> None:
        for name, value in self.saved.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(connection: Connection, directory: Path) -> None:
    """A worker's life: a task comes, events go; it ends when the parent is gone."""
    # Ctrl-C reaches the whole process group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    while True:
        try:
            task: Task = connection.recv()
        except EOFError:
            return
        try:
            connection.send(compute_task(task, directory, connection.send))
        except BrokenPipeError:
            return


def _die_with_parent() -> None:
    """Ends this process when a killed parent leaves it behind: an attack can take minutes more."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def compute_task(task: Task, directory: Path, send: Callable[[Event], None]) -> Event:
    """Computes one cell on one thread; what it raises becomes a ``Failed``."""
    import torch

    from privguard.cells import run_cell
    from privguard.training import Progress

    torch.set_num_threads(1)
    cell = task.cell

    def on_progress(progress: Progress) -> None:
        send(
            Advanced(
                cell,
                "training",
                progress.round,
                progress.rounds_per_second,
                progress.mean_return,
            )
        )

    def on_stage(stage: str) -> None:
        send(Advanced(cell, stage, cell.budget.rounds if stage != "training" else 0))

    try:
        record, attacks = run_cell(
            cell, task.attacks, directory, task.known, on_progress, on_stage, task.knowledge
        )
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - recorded: one broken cell must not end a sweep
        last = str(error).splitlines()[0] if str(error) else ""
        return Failed(cell, f"{type(error).__name__}: {last}", traceback.format_exc())
    return Finished(cell, record, attacks)
