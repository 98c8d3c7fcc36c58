"""Live progress of a sweep on the terminal: cells done, returns, rounds per second, time left."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from privguard.executors import Advanced, Event, Failed, Finished
from privguard.spec import CellSpec


class SweepProgress:
    """One bar for the sweep and a line for each running cell; plain lines without a terminal."""

    def __init__(self, console: Console, total: int, done: int, workers: int) -> None:
        self.console = console
        self.total = total
        self.done = self.before = done
        self.workers = workers
        self.started = time.monotonic()
        self.running: dict[str, Advanced] = {}
        self.bar = Progress(
            TextColumn("[bold]cells {task.completed}/{task.total}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self.task = self.bar.add_task("cells", total=total, completed=done, left="")
        self.live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> SweepProgress:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.live.stop()

    def __call__(self, event: Event) -> None:
        """Shows what happened."""
        if isinstance(event, Advanced):
            self.running[event.cell.key] = event
        else:
            self.running.pop(event.cell.key, None)
            self.done += 1
            self.console.print(f"[{self.done}/{self.total}] {_finished(event)}", highlight=False)
        self.bar.update(self.task, completed=self.done, left=self._time_left())
        if self.console.is_terminal:
            lines = [Text(_running(event)) for event in self.running.values()]
            self.live.update(Group(*lines, self.bar))

    def extend(self, total: int) -> None:
        """More cells are to come: ``total`` now."""
        self.total = total
        self.bar.update(self.task, total=total)

    def _time_left(self) -> str:
        fresh = self.done - self.before
        share = sum(event.round / event.cell.budget.rounds for event in self.running.values())
        if fresh + share <= 0:
            return ""
        seconds = (time.monotonic() - self.started) / (fresh + share)
        left = seconds * (self.total - self.done - share)
        return f"about {_duration(left)} left"


def cell_name(cell: CellSpec) -> str:
    """E.g. ``ant gaussian=0.1 seed 0``."""
    return f"{cell.env} {cell.defense_text} seed {cell.seed}"


def _running(event: Advanced) -> str:
    if event.stage != "training":
        return f"  {cell_name(event.cell)}: {event.stage}"
    share = event.round / event.cell.budget.rounds
    returned = "" if event.mean_return is None else f", return {event.mean_return:.0f}"
    return (
        f"  {cell_name(event.cell)}: {share:4.0%} at "
        f"{event.rounds_per_second:.0f} rounds/s{returned}"
    )


def _finished(event: Finished | Failed) -> str:
    name = cell_name(event.cell)
    if isinstance(event, Failed):
        return f"{name}: failed ({event.reason})"
    record = event.record
    if record.state != "ok":
        return f"{name}: {record.state} ({record.reason})"
    mean = sum(record.final_returns) / len(record.final_returns)
    return f"{name}: return {mean:.0f} in {_duration(record.train_seconds)}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
