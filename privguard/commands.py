"""What the commands do, once the command line is parsed."""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import ValidationError
from rich.console import Console

from privguard.catalogue import nearest
from privguard.environments import environment_spec
from privguard.errors import BadInput
from privguard.executors import Event, Executor, Failed, Finished, LocalProcesses, Task
from privguard.knowledge import Knowledge, chosen_knowledge
from privguard.progress import SweepProgress, cell_name
from privguard.spec import (
    BudgetName,
    CellSpec,
    DefenseGrid,
    SweepSpec,
    agent_settings,
    budget,
)
from privguard.store import Store
from privguard.sweep import pending_tasks, run_sweep, selected_records
from privguard.sweep import report as write_sweep_report


def make_spec(
    *,
    spec_file: Path | None,
    env: str,
    observation: str,
    defenses: Sequence[str],
    attacks: Sequence[str],
    seeds: int | None,
    clients: int,
    batch_size: int | None,
    probe_batch_size: int,
    budget_name: str,
    knowledge: str,
    prior_fraction: float | None,
) -> SweepSpec:
    """The sweep that the options, or the file, describe; everything is checked before it starts.

    Raises:
        BadInput: one line that names the option, the value and what is allowed.
    """
    if spec_file is not None:
        spec = _read_spec(spec_file)
    else:
        if not env:
            raise BadInput("--env is missing (see `privguard list`)")
        environment_spec(env)
        _positive("--clients", clients)
        _positive("--probe-batch-size", probe_batch_size)
        for option, value in (("--seeds", seeds), ("--batch-size", batch_size)):
            if value is not None:
                _positive(option, value)
        name = budget_by_name(budget_name)
        granted = chosen_knowledge(knowledge, prior_fraction)
        with _plugins():
            from privguard.grids import chosen_grids

            grids = chosen_grids(defenses, clients)
        spec = SweepSpec(
            env=env,
            observation=observation,
            defenses=tuple(grids),
            attacks=tuple(dict.fromkeys(attacks)) or default_attacks(granted),
            seeds=seeds if seeds is not None else budget(name, env).seeds,
            clients=clients,
            batch_size=batch_size,
            probe_batch_size=probe_batch_size,
            budget=name,
            knowledge=granted,
        )
    check_spec(spec)
    return spec


def check_spec(spec: SweepSpec) -> None:
    """Finds what a worker would only find hours later: names, levels, observations, clients.

    Raises:
        BadInput: the first thing that is wrong.
    """
    import torch

    import defenses
    from attacks.registry import get_attack
    from privguard.environments import make_environment
    from privguard.spec import defense_text

    make_environment(spec.env, spec.observation).close()
    check_knowledge(spec)
    with _plugins():
        for name in spec.attacks:
            get_attack(name)
        for grid in spec.defenses:
            for level in grid.levels or (None,):
                defense = defenses.parse(defense_text(grid.template, level))
                defense.bind(
                    torch.nn.Linear(2, 1),
                    clients=spec.clients,
                    batch_size=1,
                    generator=torch.Generator(),
                ).close()


def check_knowledge(spec: SweepSpec) -> None:
    """Whether the adversary of ``spec`` can exist.

    Raises:
        BadInput: it is granted a simulator that the environment does not have.
    """
    if spec.knowledge.kind == "simulator":
        from privguard.simulators import make_simulator

        make_simulator(spec.env, spec.observation)


def default_attacks(knowledge: Knowledge) -> tuple[str, ...]:
    """Every attack that ships, but none that stands in for one that can run, and no ensemble."""
    from attacks.registry import available_attacks

    known = available_attacks()
    runs = {name for name, attack in known.items() if set(attack.needs) <= knowledge.grants}
    return tuple(
        name
        for name, attack in known.items()
        if attack.instead_of not in runs and not attack.ensemble
    )


def budget_by_name(name: str) -> BudgetName:
    """The budget's name, checked."""
    allowed = list(get_args(BudgetName))
    if name not in allowed:
        raise BadInput(
            f"--budget {name}: unknown{nearest(name, allowed)} (allowed: {', '.join(allowed)})"
        )
    return cast(BudgetName, name)


def sweep_command(
    spec: SweepSpec, *, out: Path, workers: int | None, executor: str, command: str
) -> int:
    """Runs or resumes a sweep; the number of cells that failed."""
    if executor not in ("local", "ray"):
        raise BadInput(f"--executor {executor}: unknown (allowed: local, ray)")
    if workers is not None:
        _positive("--workers", workers)
    count = workers or len(os.sched_getaffinity(0))
    chosen = _executor(executor, count, out)
    console = Console(stderr=True)
    store = Store.create(out)
    failures: list[str] = []
    with store.lock():
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

                run_sweep(spec, store, chosen, command, on_event)
        except KeyboardInterrupt:
            console.print("stopped; run the same command again to resume", highlight=False)
            raise SystemExit(130) from None
    store.close()
    console.print(f"report: {out / 'index.html'}", highlight=False)
    print(recommendation_text(out, 0.1, 0.05))
    if failures:
        console.print(f"{len(failures)} cells failed; see {out / 'failures'}", highlight=False)
    return len(failures)


def train_command(
    env: str, observation: str, defense: str, seed: int, budget_name: str, out: Path, command: str
) -> int:
    """Trains one cell in this process and keeps its captures."""
    from privguard.grids import parse_grid

    environment = environment_spec(env)
    if seed < 0:
        raise BadInput(f"--seed {seed}: must be 0 or more")
    with _plugins():
        grid = (
            DefenseGrid(template="none", levels=())
            if defense == "none"
            else parse_grid(defense, clients=4)
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
        budget=budget_by_name(budget_name),
    )
    check_spec(spec)
    cell = CellSpec(
        env=env,
        observation=observation,
        defense=grid.template,
        level=grid.levels[0] if grid.levels else None,
        seed=seed,
        budget=budget(spec.budget, env),
        agent=agent_settings(environment, None),
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

    The sweep itself keeps the knowledge that it was started with.
    """
    store = Store.open(directory)
    spec, _ = _known_sweep(store)
    with _plugins():
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
        tasks = [task for task in pending_tasks(asked, store) if task.cell.key in trained]
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


def evaluate_command(
    env: str, observation: str, policy: str, episodes: int, seed: int, as_json: bool
) -> None:
    """Prints the returns of the random or the zero-action policy."""
    environment_spec(env)
    _positive("--episodes", episodes)
    if policy not in ("random", "zero"):
        raise BadInput(f"--policy {policy}: unknown (allowed: random, zero)")
    from privguard.evaluation import baseline_episodes

    result = baseline_episodes(env, observation, policy, episodes, seed)
    if as_json:
        print(json.dumps(result))
    else:
        print(
            f"{env}, {policy} policy, {episodes} episodes: return {result['mean']:.1f} "
            f"± {result['std']:.1f} (mean ± standard deviation), length {result['length']:.0f}"
        )


def predict_command(
    env: str,
    observation: str,
    batch_size: int,
    share: float,
    clip: float,
    run: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Prints the limits of attacks on clean captures, fresh ones or those of a run."""
    environment_spec(env)
    _positive("--batch-size", batch_size)
    if not 0 < share < 1:
        raise BadInput(f"--share {share:g}: must be between 0 and 1")
    if not (math.isfinite(clip) and clip > 0):
        raise BadInput(f"--clip {clip:g}: must be a finite number above 0")
    if seed < 0:
        raise BadInput(f"--seed {seed}: must be 0 or more")
    from privguard.predict import fresh_captures, predict, render, run_captures

    if run is None:
        captured = [fresh_captures(env, observation, batch_size, seed)]
        networks = "untrained networks"
    else:
        store = Store.open(run)
        spec, _ = _known_sweep(store)
        store.close()
        if (spec.env, spec.probe_batch_size) != (env, batch_size):
            raise BadInput(
                f"--run {run}: is of --env {spec.env} --batch-size {spec.probe_batch_size}"
            )
        captured = run_captures(run, spec.cells())
        networks = f"networks of {run}"
    found = predict(captured, share=share, clip_norm=clip, networks=networks)
    print(json.dumps(found.model_dump(), indent=2) if as_json else render(found))


def report_command(directory: Path) -> None:
    """Writes the report of a run and names its files."""
    store = Store.open(directory)
    spec, command = _known_sweep(store)
    for path in write_sweep_report(spec, store, command):
        print(path)
    store.close()


def recommend_command(
    directory: Path, max_leakage: float, max_reward_loss: float, as_json: bool
) -> None:
    """Prints the recommendation as text or JSON."""
    for option, value in (("--max-leakage", max_leakage), ("--max-reward-loss", max_reward_loss)):
        if not 0 <= value <= 1:
            raise BadInput(f"{option} {value}: must be from 0 to 1")
    if as_json:
        answer = _recommendation(directory, max_leakage, max_reward_loss)
        print(json.dumps(answer.model_dump(), indent=2))
    else:
        print(recommendation_text(directory, max_leakage, max_reward_loss))


def recommendation_text(directory: Path, max_leakage: float, max_reward_loss: float) -> str:
    """The recommendation in words."""
    from privguard.reporting.recommendation import render_text

    return render_text(_recommendation(directory, max_leakage, max_reward_loss))


def check_command(plugin: str) -> int:
    """Runs the conformance suite that the name belongs to; 1 if it finds anything."""
    import attacks
    import defenses

    module, _, short = plugin.rpartition(":")
    with _plugins():
        if module:
            importlib.import_module(module)
        if short in attacks.available_attacks():
            findings = attacks.check_attack(short)
        elif short.partition("=")[0] in defenses.available_defenses():
            findings = _defense_findings(short)
        else:
            known = [*attacks.available_attacks(), *defenses.available_defenses()]
            raise BadInput(f"{plugin}: no such attack or defence{nearest(short, known)}")
    for finding in findings:
        print(f"{plugin}: {finding}")
    print(f"{plugin}: {f'{len(findings)} findings' if findings else 'passes'}")
    return int(bool(findings))


def _defense_findings(text: str) -> list[str]:
    from defenses.conformance import ConformanceError, check_defense

    try:
        check_defense(text)
    except ConformanceError as error:
        return list(error.failures)
    return []


def _recommendation(directory: Path, max_leakage: float, max_reward_loss: float) -> Any:
    from privguard.reporting.frontier import frontier_rows
    from privguard.reporting.recommendation import recommend

    store = Store.open(directory)
    spec, _ = _known_sweep(store)
    cells, attacks = selected_records(spec, store)
    store.close()
    return recommend(
        frontier_rows(cells, attacks), max_leakage=max_leakage, max_reward_loss=max_reward_loss
    )


def _known_sweep(store: Store) -> tuple[SweepSpec, str]:
    known = store.sweep()
    if known is None:
        raise BadInput(f"{store.directory}: no sweep was started here")
    return known


def _executor(name: str, workers: int, directory: Path) -> Executor:
    if name == "local":
        return LocalProcesses(workers, directory)
    try:
        from privguard.ray_executor import RayTasks
    except ModuleNotFoundError:
        raise BadInput("--executor ray: Ray is missing; pip install 'privguard[ray]'") from None
    return RayTasks(directory)


def _read_spec(path: Path) -> SweepSpec:
    try:
        return SweepSpec.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"--spec {path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"--spec {path}: {where}: {first['msg']}") from None


def _positive(option: str, value: int) -> None:
    if value < 1:
        raise BadInput(f"{option} {value}: must be 1 or more")


@contextmanager
def _plugins() -> Iterator[None]:
    """Turns what the two libraries say of a name or a level into bad input of ours."""
    from attacks.registry import UnknownAttack
    from defenses.registry import DefenseError

    try:
        yield
    except UnknownAttack as error:
        raise BadInput(f"--attack: {error}") from None
    except DefenseError as error:
        raise BadInput(f"--defense: {error}") from None
    except ModuleNotFoundError as error:
        raise BadInput(f"no module named {error.name!r}; is it installed?") from None
