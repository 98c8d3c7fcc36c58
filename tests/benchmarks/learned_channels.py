"""What ``learned`` adds where a defence has no tractable likelihood: nmse and ra beside others.

    python tests/benchmarks/learned_channels.py [--env ant] [--rounds 2000] [--targets 32]
        [--defense quantize=1]... [--attack map]...

Defends the same probes of an untrained federation and of one trained for some rounds with the real
defences, attacks them, and prints means over targets beside the prior-only scores.
"""

from __future__ import annotations

import time
from typing import Annotated

import numpy as np
import torch
import typer
from map_floor import audit

import defenses
from attacks.channel import Channel
from attacks.observation import Observation
from attacks.registry import get_attack
from attacks.scores import score
from attacks.transitions import Transitions
from privguard.audit.captures import Capture
from privguard.auditing import Audit
from privguard.seeding import torch_generator

DEFENSES = (
    "quantize=8",
    "quantize=2",
    "quantize=1",
    "topk=0.01",
    "topk=0.001",
    "gaussian=0.1",
    "gaussian=10",
    "gaussian=1000",
    "dp-sgd=0.03",
)
ATTACKS = ("learned", "map", "analytic")


def defended(ready: Audit, capture: Capture, text: str, truth: Transitions) -> list[Observation]:
    """One release of one client for each record of ``truth``, by the defence itself."""
    defense = defenses.parse(text)
    # Observing a probe sets the agent to the weights of that moment.
    clean = ready.observe(capture, capture.releases["probe"][0], "probe")
    agent = ready.agent
    target = agent.td_target(truth)
    count = len(truth)
    generator = torch_generator(0, "defence", text)
    with defense.bind(agent.shared, clients=count, batch_size=1, generator=generator) as session:
        releases = session.release(
            lambda rows: agent.losses(truth[rows], target[rows]), torch.arange(count)
        )
        layout = session.layout
    channel = Channel.from_description(defense.describe(batch_size=1))
    return [
        Observation(
            model=agent.shared,
            gradient=layout.split(release),
            loss=agent.loss,
            batch_size=1,
            template=clean.template,
            channel=channel,
        )
        for release in releases
    ]


def main(
    env: Annotated[str, typer.Option(help="Environment.")] = "ant",
    rounds: Annotated[int, typer.Option(help="Rounds of the trained federation.")] = 2000,
    targets: Annotated[int, typer.Option(help="Probes at each moment.")] = 32,
    defense: Annotated[list[str] | None, typer.Option(help="Defence; repeatable.")] = None,
    attack: Annotated[list[str] | None, typer.Option(help="Attack; repeatable.")] = None,
) -> None:
    """Prints one line a defence, moment and attack."""
    torch.set_num_threads(1)
    ready = audit(env, rounds, targets)
    print(f"{env}: means over {targets} probes of batch 1, {ready.prior.samples} prior samples")
    print(
        f"{'networks':<13}{'defence':<14}{'attack':<10}{'nmse':>9}{'median':>9}{'ra':>7}"
        f"{'nmse_prior':>12}{'ra_prior':>10}{'s/group':>9}"
    )
    for index, capture in enumerate(ready.captures.captures):
        probes = capture.releases["probe"][:targets]
        truth = Transitions.cat([probe.truth for probe in probes])
        for text in defense or DEFENSES:
            observations = defended(ready, capture, text, truth)
            for name in attack or ATTACKS:
                started = time.process_time()
                answers = get_attack(name).reconstruct_many(observations, prior=ready.prior, seed=0)
                seconds = time.process_time() - started
                scores = [
                    score(answer, truth[k], ready.prior, ready.reference)
                    for k, answer in enumerate(answers)
                ]
                found = {
                    key: np.array([s[key] for s in scores], dtype=float)
                    for key in ("nmse", "ra", "nmse_prior", "ra_prior")
                }
                print(
                    f"{'untrained' if index == 0 else f'{rounds} rounds':<13}{text:<14}{name:<10}"
                    f"{found['nmse'].mean():>9.2g}{np.median(found['nmse']):>9.2g}"
                    f"{found['ra'].mean():>7.3f}{found['nmse_prior'].mean():>12.2f}"
                    f"{found['ra_prior'].mean():>10.3f}{seconds:>9.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    typer.run(main)
