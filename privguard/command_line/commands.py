"""The commands that compute: sweep, train and attack."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from privguard.budgets import budget
from privguard.command_line.options import (
    budget_by_name,
    calibrated_defenses,
    check_knowledge,
    check_spec,
    default_attacks,
    plugins,
    positive,
)
from privguard.command_line.progress import SweepProgress, cell_name
from privguard.command_line.queries import known_sweep, recommendation_text
from privguard.environments import environment_spec
from privguard.errors import BadInput
from privguard.executors import Event, Executor, Failed, Finished, LocalProcesses, Task
from privguard.knowledge import Knowledge
from privguard.recipes import agent_settings
from privguard.refinement import Planned, Refinement, refine, with_earlier_refinement
from privguard.reporting.limits import Limits
from privguard.spec import CellSpec, DefenseGrid, SweepSpec
from privguard.store import Store
from privguard.sweep import pending_tasks, run_sweep, shown_attacks
from privguard.sweep import report as write_sweep_report


def sweep_command(
    spec: SweepSpec,
    *,
    out: Path,
    workers: int | None,
    executor: str,
    command: str,
    limits: Limits,
    refinement: Refinement | None,
) -> int:
    """Runs or resumes a sweep, then refines it if asked; the number of cells that failed."""
    if executor not in ("local", "ray"):
        raise BadInput(f"--executor {executor}: unknown (allowed: local, ray)")
    if workers is not None:
        positive("--workers", workers)
    count = workers or len(os.sched_getaffinity(0))
    chosen = _executor(executor, count, out)
    console = Console(stderr=True)
    store = Store.create(out)
    failures: list[str] = []
    with store.lock():
        earlier = store.sweep()
        spec = with_earlier_refinement(spec, earlier[0] if earlier else None)
        total = len(spec.cells())
        tasks = pending_tasks(spec, store)
        for task in tasks:
            check_prior(task, store)
        pending = len(tasks)
        console.print(
            f"{total} cells in {out} ({total - pending} finished), {count} at a time",
            highlight=False,
        )
        try:
            with SweepProgress(console, total, total - pending, count) as progress:

                def on_event(event: Event) -> None:
                    progress(event)
                    if isinstance(event, Failed):
                        failures.append(cell_name(event.cell))

                def on_plan(larger: SweepSpec, steps: Sequence[Planned]) -> None:
                    progress.extend(len(larger.cells()))
                    _print_plan(console, steps, refinement)

                run_sweep(spec, store, chosen, command, on_event)
                if refinement is not None:
                    refine(spec, store, chosen, command, refinement, on_event, on_plan)
        except KeyboardInterrupt:
            console.print("stopped; run the same command again to resume", highlight=False)
            raise SystemExit(130) from None
    store.close()
    console.print(f"report: {out / 'index.html'}", highlight=False)
    print(recommendation_text(out, limits))
    if failures:
        console.print(f"{len(failures)} cells failed; see {out / 'failures'}", highlight=False)
    return len(failures)


def _print_plan(console: Console, steps: Sequence[Planned], refinement: Refinement | None) -> None:
    for step in steps:
        console.print(f"refining {step.text}", highlight=False)
    if not steps and refinement is not None:
        console.print(
            f"break points are left open after {refinement.max_cells} cells (--max-cells)",
            highlight=False,
        )


def train_command(
    env: str,
    observation: str,
    defense: str,
    seed: int,
    local_steps: int,
    budget_name: str,
    out: Path,
    command: str,
) -> int:
    """Trains one cell in this process and keeps its captures."""
    from privguard.grids import parse_grid

    environment = environment_spec(env)
    if seed < 0:
        raise BadInput(f"--seed {seed}: must be 0 or more")
    positive("--local-steps", local_steps)
    name = budget_by_name(budget_name)
    with plugins():
        (text,) = calibrated_defenses([defense], env, name, observation=observation)
        grid = (
            DefenseGrid(template="none", levels=())
            if text == "none"
            else parse_grid(text, clients=4)
        )
    if len(grid.levels) > 1:
        raise BadInput(
            f"--defense {defense}: one cell has one level, e.g. {defense}={grid.levels[0]}"
        )
    spec = SweepSpec(
        env=env,
        observation=observation,
        defenses=(grid,),
        attacks=(),
        seeds=seed + 1,
        local_steps=local_steps,
        budget=name,
    )
    check_spec(spec)
    cell = CellSpec(
        env=env,
        observation=observation,
        defense=grid.template,
        level=grid.levels[0] if grid.levels else None,
        seed=seed,
        budget=budget(spec.budget, env, observation),
        agent=agent_settings(environment, None, local_steps, observation),
    )
    store = Store.create(out)
    with store.lock():
        store.put_sweep(spec, command)
        return _run_alone(cell, store)


def _run_alone(cell: CellSpec, store: Store) -> int:
    console = Console(stderr=True)
    failed = False

    with SweepProgress(console, 1, 0, 1) as progress:

        def on_event(event: Event) -> None:
            nonlocal failed
            progress(event)
            failed = failed or isinstance(event, Failed)
            if isinstance(event, Finished):
                store.put(event.record, event.attacks)

        LocalProcesses(1, store.directory).run([Task(cell, (), None, Knowledge())], on_event)
    return int(failed)


def attack_command(
    directory: Path, attacks: Sequence[str], knowledge: Knowledge, command: str
) -> int:
    """Runs attacks on every finished cell's captures; the number of cells that failed.

    The sweep itself keeps the knowledge that it was started with. An attack whose reconstructions
    were not kept is run again.
    """
    store = Store.open(directory)
    spec, _ = known_sweep(store)
    with plugins():
        from attacks.registry import get_attack

        names = tuple(dict.fromkeys(attacks)) or default_attacks(knowledge)
        for name in names:
            get_attack(name)
    trained = {record.key for record in store.cells()}
    failures: list[str] = []
    with store.lock():
        merged = spec.model_copy(update={"attacks": tuple(dict.fromkeys([*spec.attacks, *names]))})
        asked = spec.model_copy(update={"attacks": names, "knowledge": knowledge})
        check_knowledge(asked)
        pending = pending_tasks(asked, store, shown_attacks)
        tasks = [task for task in pending if task.cell.key in trained]
        for task in tasks:
            check_prior(task, store)
        store.put_sweep(merged, command)
        console = Console(stderr=True)
        with SweepProgress(console, len(tasks), 0, 1) as progress:

            def on_event(event: Event) -> None:
                progress(event)
                if isinstance(event, Finished):
                    store.put(None, event.attacks)
                if isinstance(event, Failed):
                    failures.append(cell_name(event.cell))

            LocalProcesses(len(os.sched_getaffinity(0)), directory).run(tasks, on_event)
        if len(merged.defenses):
            write_sweep_report(merged, store, command)
    store.close()
    return len(failures)


def check_prior(task: Task, store: Store) -> None:
    """Whether a trained cell's captures hold the samples that the adversary is to be granted.

    Raises:
        BadInput: they do not.
    """
    if task.known is None:
        return
    shapes, plain = store.files.captured_shapes(task.cell.key)
    held = sum(shapes.get(f"{name}.reward", (0,))[0] for name in ("prior", "more_prior"))
    task.knowledge.samples(plain.get("population") or task.cell.planned_population, held)


def _executor(name: str, workers: int, directory: Path) -> Executor:
    if name == "local":
        return LocalProcesses(workers, directory)
    try:
        from privguard.ray_executor import RayTasks
    except ModuleNotFoundError:
        raise BadInput("--executor ray: Ray is missing; pip install 'privguard[ray]'") from None
    return RayTasks(directory)
