"""What ``cocktail`` reads of batches under noise, beside ``spear`` and the prior's mean.

    python tests/benchmarks/cocktail_batches.py [--env ant] [--hidden 128] [--rounds 500]
        [--norm/--plain] [--noise 0 --noise 1e-3 --noise 1e-2] [--batch 4 ...]

Captures a release of a client of ours after some training, and prints for each noise and batch size
the reconstruction accuracy and the normalised error of (s, a), and the seconds of one core. The
prior knows 300 other records of the same replay; the scale is that of the rest of it.
"""

from __future__ import annotations

import time
from typing import Annotated

import torch
import typer
from spear_batches import observe, training

from attacks import Observation, Prior, Transitions, get_attack
from attacks.reference import Reference
from attacks.scores import score

KNOWN = 300
ATTACKS = ("cocktail", "spear")


def report(observation: Observation, truth: Transitions, prior: Prior, reference: Reference) -> str:
    """The prior's mean and each attack's scores, in one line."""
    parts = []
    for name in ATTACKS:
        attack = get_attack(name)
        reason = attack.unsupported(observation)
        if reason:
            parts.append(f"{name}: {reason}")
            continue
        started = time.process_time()
        answer = attack.reconstruct(observation, prior=prior, seed=0)
        seconds = time.process_time() - started
        scores = score(answer, truth, prior, reference)
        if not parts:
            parts.append(f"{scores['ra_prior']:.2f} {scores['nmse_prior']:.3f}")
        parts.append(f"{name} {scores['ra']:.3f} {scores['nmse']:.3f} {seconds:.0f}s")
    return "   ".join(parts)


def main(
    env: Annotated[str, typer.Option(help="Environment.")] = "ant",
    hidden: Annotated[int, typer.Option(help="Units of each hidden layer.")] = 128,
    rounds: Annotated[int, typer.Option(help="Rounds of training before the capture.")] = 500,
    norm: Annotated[bool, typer.Option("--norm/--plain", help="LayerNorm in the critics.")] = True,
    noise: Annotated[list[float] | None, typer.Option(help="Standard deviations.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batch sizes.")] = None,
) -> None:
    """Prints accuracy (ra), normalised error (nmse) and processor seconds."""
    torch.set_num_threads(1)
    cell = training(env, hidden, norm)
    for _ in range(rounds):
        cell.federation.collect(explore=True)
        cell.federation.round(0.0)
    replay = cell.federation.clients[0].replay
    order = torch.randperm(replay.size, generator=torch.Generator().manual_seed(0))
    batches = batch or [4, 8, 16, 32, 64]
    most = max(batches)
    z = replay.rows(order[:1])
    template = z.template(action_low=-1.0, action_high=1.0)
    prior = Prior.fit(replay.rows(order[most : most + KNOWN]), template=template)
    reference = Reference.fit(replay.rows(order[most + KNOWN :]), template=template)
    print(f"{env}, {hidden}-{hidden}, {'LayerNorm' if norm else 'plain'}, {rounds} rounds")
    print(f"{'noise':>7}{'batch':>6}  prior's mean (ra nmse)   each attack (ra nmse seconds)")
    for std in noise or [0.0, 1e-3, 1e-2]:
        for size in batches:
            truth = replay.rows(order[:size])
            line = report(observe(cell, truth, std), truth, prior, reference)
            print(f"{std:>7g}{size:>6}  {line}", flush=True)


if __name__ == "__main__":
    typer.run(main)
