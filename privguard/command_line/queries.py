"""The commands that answer at once: what is recorded, what limits allow, what a plug-in does."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from privguard.catalogue import nearest
from privguard.command_line.options import plugins, positive
from privguard.environments import ENVIRONMENTS, environment_spec
from privguard.errors import BadInput
from privguard.reporting.limits import Limits
from privguard.spec import SweepSpec
from privguard.store import Store
from privguard.sweep import report as write_sweep_report
from privguard.sweep import selected_records

if TYPE_CHECKING:
    from privguard.command_line.next_run import NextRun
    from privguard.reporting.recommendation import Recommendation


def evaluate_command(
    env: str, observation: str, policy: str, episodes: int, seed: int, as_json: bool
) -> None:
    """Prints the returns of the random or the zero-action policy."""
    environment_spec(env)
    positive("--episodes", episodes)
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
    releases: int,
    run: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Prints the limits of attacks on clean captures, fresh ones or those of a run."""
    environment_spec(env)
    positive("--batch-size", batch_size)
    positive("--releases", releases)
    if not 0 < share < 1:
        raise BadInput(f"--share {share:g}: must be between 0 and 1")
    if not (math.isfinite(clip) and clip > 0):
        raise BadInput(f"--clip {clip:g}: must be a finite number above 0")
    if seed < 0:
        raise BadInput(f"--seed {seed}: must be 0 or more")
    if environment_spec(env).agent == "dqn":
        continuous = ", ".join(name for name, one in ENVIRONMENTS.items() if one.agent == "td3")
        raise BadInput(f"--env {env}: no floor for discrete actions (allowed: {continuous})")
    from privguard.predict import fresh_captures, predict, render, run_captures

    if run is None:
        captured = [fresh_captures(env, observation, batch_size, seed)]
        networks = "untrained networks"
    else:
        store = Store.open(run)
        spec, _ = known_sweep(store)
        store.close()
        if (spec.env, spec.probe_batch_size) != (env, batch_size):
            raise BadInput(
                f"--run {run}: is of --env {spec.env} --batch-size {spec.probe_batch_size}"
            )
        captured = run_captures(run, spec.cells())
        networks = f"networks of {run}"
    found = predict(captured, share=share, clip_norm=clip, networks=networks, releases=releases)
    print(json.dumps(found.model_dump(), indent=2) if as_json else render(found))


def report_command(directory: Path) -> None:
    """Writes the report of a run and names its files."""
    store = Store.open(directory)
    spec, command = known_sweep(store)
    for path in write_sweep_report(spec, store, command):
        print(path)
    store.close()


def recommend_command(directory: Path, limits: Limits, as_json: bool) -> None:
    """Prints the recommendation, and what to run next, as text or JSON."""
    if not as_json:
        print(recommendation_text(directory, limits))
        return
    answer, following = _recommendation(directory, limits)
    next_run = None if following is None else following.model_dump()
    print(json.dumps(answer.model_dump(mode="json") | {"next_run": next_run}, indent=2))


def recommendation_text(directory: Path, limits: Limits) -> str:
    """The recommendation in words."""
    from privguard.reporting.recommendation import render_text

    answer, following = _recommendation(directory, limits)
    text = render_text(answer)
    if following is None:
        return text
    return f"{text}\nRun next ({following.reason}):\n  {following.command}\n"


def compare_command(directories: Sequence[Path], out: Path, limits: Limits) -> None:
    """Writes the comparison of several runs and names its files."""
    if len(directories) < 2:
        raise BadInput(f"{directories[0]}: a comparison needs two runs or more")
    paths = [directory.resolve() for directory in directories]
    if len(set(paths)) < len(paths):
        raise BadInput("the same run is named twice")
    if (out / "records.sqlite").exists() or (out.exists() and not out.is_dir()):
        raise BadInput(f"--out {out}: holds a run or is no directory; name another directory")
    from privguard.reporting.comparison import Run, compare
    from privguard.reporting.comparison_page import write_comparison

    # The last part of a path names its run, unless another run ends in the same one.
    short = [path.name for path in paths]
    names = short if len(set(short)) == len(short) else [str(path) for path in directories]
    runs = []
    for name, directory in zip(names, directories, strict=True):
        store = Store.open(directory)
        spec, _ = known_sweep(store)
        cells, attacks = selected_records(spec, store)
        store.close()
        if not cells:
            raise BadInput(f"{directory}: no cell has finished yet")
        runs.append(Run(name, cells, attacks))
    comparison = compare(runs, limits)
    try:
        written = write_comparison(out, comparison)
    except OSError as error:
        raise BadInput(f"--out {out}: cannot be written to ({error.strerror})") from None
    for path in written:
        print(path)


def check_command(plugin: str) -> int:
    """Runs the conformance suite that the name belongs to; 1 if it finds anything."""
    import attacks
    import defenses

    module, _, short = plugin.rpartition(":")
    with plugins():
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


def _recommendation(directory: Path, limits: Limits) -> tuple[Recommendation, NextRun | None]:
    from privguard.command_line.next_run import next_run
    from privguard.reporting.frontier import frontier_rows
    from privguard.reporting.recommendation import recommend

    store = Store.open(directory)
    spec, _ = known_sweep(store)
    cells, attacks = selected_records(spec, store)
    store.close()
    if limits.max_bytes is not None and not all(c.bytes_per_round for c in cells if c.rounds):
        raise BadInput(
            f"--max-bytes {limits.max_bytes:g}: {directory} does not record the bytes of a round"
        )
    rows = frontier_rows(cells, attacks)
    answer = recommend(rows, limits)
    return answer, next_run(spec, rows, answer, directory)


def known_sweep(store: Store) -> tuple[SweepSpec, str]:
    """The specification of a run, and the command that started it.

    Raises:
        BadInput: none was started there.
    """
    known = store.sweep()
    if known is None:
        raise BadInput(f"{store.directory}: no sweep was started here")
    return known
