"""The commands that answer at once: what is recorded, what limits allow, what a plug-in does."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path
from typing import Any

from privguard.catalogue import nearest
from privguard.environments import environment_spec
from privguard.errors import BadInput
from privguard.options import plugins, positive
from privguard.spec import SweepSpec
from privguard.store import Store
from privguard.sweep import report as write_sweep_report
from privguard.sweep import selected_records


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


def _recommendation(directory: Path, max_leakage: float, max_reward_loss: float) -> Any:
    from privguard.reporting.frontier import frontier_rows
    from privguard.reporting.recommendation import recommend

    store = Store.open(directory)
    spec, _ = known_sweep(store)
    cells, attacks = selected_records(spec, store)
    store.close()
    return recommend(
        frontier_rows(cells, attacks), max_leakage=max_leakage, max_reward_loss=max_reward_loss
    )


def known_sweep(store: Store) -> tuple[SweepSpec, str]:
    """The specification of a run, and the command that started it.

    Raises:
        BadInput: none was started there.
    """
    known = store.sweep()
    if known is None:
        raise BadInput(f"{store.directory}: no sweep was started here")
    return known
