"""How near ``spear`` and ``map`` come to the Bayesian floor of batches under Gaussian noise.

    python tests/benchmarks/batch_floor.py [--env halfcheetah] [--rounds 200] [--batches 4,8]

``map`` refines jointly what ``spear`` finds. Prints medians over a few batches of a client of ours,
in deviations of the environment's transitions, before and after some training. ``noise``
is its norm over the gradient's.
"""

from __future__ import annotations

import time
from typing import Annotated

import numpy as np
import torch
import typer
from spear_batches import observe, training

from attacks import Prior, get_attack
from attacks.bounds import record_information
from attacks.reference import Reference
from attacks.scores import score
from privguard.training import CellTraining

KNOWN, REPEATS = 64, 3


def report(cell: CellTraining, label: str, batches: list[int], stds: list[float]) -> None:
    """One line a batch size and noise level."""
    replay = cell.federation.clients[0].replay
    order = torch.randperm(replay.size, generator=torch.Generator().manual_seed(0))
    z = replay.rows(order)
    template = z.template(action_low=-1.0, action_high=1.0)
    prior = Prior.fit(z[:KNOWN], template=template)
    taken = KNOWN + REPEATS * max(batches)
    population = Prior.fit(z[taken:], template=template)
    reference = Reference.fit(z[taken:], template=template)
    for batch in batches:
        for std in stds:
            rows = [z[KNOWN + k * batch : KNOWN + (k + 1) * batch] for k in range(REPEATS)]
            observations = [observe(cell, part, std) for part in rows]
            information = record_information(observations, rows, population)
            assert information is not None
            noise = [std * o.flat_gradient().numel() ** 0.5 for o in observations]
            share = [
                n / float(o.flat_gradient().norm())
                for n, o in zip(noise, observations, strict=True)
            ]
            line = f"{label:<22}{batch:>6}{std:>8g}{np.median(share):>9.2g}"
            line += f"{float(information.floor().median()):>10.2g}"
            for name in ("spear", "map"):
                started = time.process_time()
                answers = [
                    get_attack(name).reconstruct(o, prior=prior, seed=0) for o in observations
                ]
                seconds = (time.process_time() - started) / REPEATS
                scores = [
                    score(a, part, prior, reference) for a, part in zip(answers, rows, strict=True)
                ]
                line += f"{np.median([s['nmse'] for s in scores]):>10.2g}{seconds:>7.2f}"
            print(f"{line}{np.median([s['nmse_prior'] for s in scores]):>8.2f}", flush=True)


def main(
    env: Annotated[str, typer.Option(help="Environment.")] = "halfcheetah",
    hidden: Annotated[int, typer.Option(help="Units of each hidden layer.")] = 128,
    rounds: Annotated[int, typer.Option(help="Rounds of training between the captures.")] = 200,
    batches: Annotated[str, typer.Option(help="Batch sizes.")] = "4,8",
    stds: Annotated[str, typer.Option(help="Standard deviations of the noise.")] = "1e-4,1e-3,1e-2",
) -> None:
    """Prints medians of the errors beside the floor's."""
    torch.set_num_threads(1)
    sizes, levels = [int(b) for b in batches.split(",")], [float(s) for s in stds.split(",")]
    print(
        f"{'critic':<22}{'batch':>6}{'std':>8}{'noise':>9}{'floor':>10}"
        f"{'spear':>10}{'s':>7}{'map':>10}{'s':>7}{'prior':>8}"
    )
    for layer_norm in (True, False):
        cell = training(env, hidden, layer_norm)
        kind = "LayerNorm" if layer_norm else "plain"
        report(cell, f"{kind}, untrained", sizes, levels)
        for _ in range(rounds):
            cell.federation.collect(explore=True)
            cell.federation.round(0.0)
        report(cell, f"{kind}, {rounds} rounds", sizes, levels)


if __name__ == "__main__":
    typer.run(main)
