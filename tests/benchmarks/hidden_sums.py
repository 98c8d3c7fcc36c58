"""What hiding the summands costs: seconds and bytes a round of secagg, distributed-dp and he.

    python tests/benchmarks/hidden_sums.py [--env ant] [--clients 4] [--rounds 20]

Prints processor milliseconds on one thread for all clients and the server together: of a full
aggregation as captured rounds and ``Session.aggregate`` run it, and of the same mean without
cryptography as other training rounds take it. Releases have the size of the agent's networks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
import typer
from torch import Tensor

import defenses
from defenses.session import Session
from privguard.agents import make_agent
from privguard.environments import environment_spec, make_environment
from privguard.recipes import agent_settings
from privguard.seeding import torch_generator

DEFENSES = ["none", "secagg", "secagg=2", "secagg@dropout=0.1", "distributed-dp=0.01", "he"]


def milliseconds(work: Callable[[], object], rounds: int) -> float:
    """Processor time of one call; rounds that open no sum count too."""
    started = time.process_time()
    for _ in range(rounds):
        try:
            work()
        except defenses.ThresholdError:
            continue
    return 1e3 * (time.process_time() - started) / rounds


def main(
    env: Annotated[str, typer.Option(help="Environment, for the size of its networks.")] = "ant",
    clients: Annotated[int, typer.Option(help="Clients.")] = 4,
    rounds: Annotated[int, typer.Option(help="Rounds to average over.")] = 20,
) -> None:
    """Prints one line a defence."""
    torch.set_num_threads(1)
    spec = environment_spec(env)
    gym_env = make_environment(env, "default")
    agent = make_agent(
        gym_env, agent_settings(spec, None), spec.discount, torch_generator(0, "initialisation")
    )
    gym_env.close()
    print(f"{env}: {agent.weights.numel()} numbers, {clients} clients; milliseconds of one core")
    print(f"{'defence':<22}{'full':>8}{'training':>10}{'KiB up':>9}{'bound':>10}{'measured':>10}")
    for text in DEFENSES:
        defense = defenses.parse(text)
        generator = torch.Generator().manual_seed(0)
        with defense.bind(
            agent.shared, clients=clients, batch_size=1, generator=generator
        ) as session:
            releases = torch.randn(
                clients, session.layout.size, generator=generator, dtype=torch.float64
            )
            releases *= 0.3
            session.aggregate(releases)  # first use of libraries
            full = milliseconds(partial(session.aggregate, releases), rounds)
            training = milliseconds(partial(session.aggregate_mean, releases), 5 * rounds)
            size = defense.upload_bytes(session.layout.size, len(session.layout.names)) / 1024
            print(
                f"{text:<22}{full:>8.2f}{training:>10.2f}{size:>9.0f}"
                f"{session.error_bound:>10.1e}{largest_error(session, releases):>10.1e}"
            )


def largest_error(session: Session, releases: Tensor) -> float:
    """Distance of the mean from the plain one of the same clients; clipping and noise count."""
    aggregate = session.aggregate(releases)
    members = [member for view in aggregate.views for member in view.members]
    return float((aggregate.mean - releases[members].mean(0)).abs().max())


if __name__ == "__main__":
    typer.run(main)
