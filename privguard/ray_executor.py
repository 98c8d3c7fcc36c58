"""Runs cells on a Ray cluster: the same interface as local processes.

Captures and checkpoints are written by the workers, so the run's directory must lie on a file
system that all of them share. Records come back to the driver, which alone writes the database.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.queue import Empty, Queue

from privguard.executors import Event, Failed, OnEvent, Task, compute_task

_POLL_SECONDS = 1.0


class RayTasks:
    """One Ray task a cell, one processor each; Ray finds a running cluster or starts one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()

    def run(self, tasks: Sequence[Task], on_event: OnEvent) -> None:
        """Submits all tasks at once; Ray places them as processors become free."""
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        queue = Queue()
        remote = ray.remote(num_cpus=1, max_retries=0)(_compute)
        running = {remote.remote(task, self.directory, queue): task for task in tasks}
        while running:
            done, _ = ray.wait(list(running), timeout=_POLL_SECONDS)
            for event in _waiting(queue):
                on_event(event)
            for reference in done:
                on_event(_result(reference, running.pop(reference)))


def _compute(task: Task, directory: Path, queue: Queue) -> Event:
    return compute_task(task, directory, queue.put)


def _waiting(queue: Queue) -> list[Event]:
    events = []
    try:
        while True:
            events.append(queue.get_nowait())
    except Empty:
        return events


def _result(reference: ray.ObjectRef, task: Task) -> Event:
    try:
        return ray.get(reference)
    except RayError as error:
        return Failed(task.cell, f"its Ray task died ({type(error).__name__})", str(error))
