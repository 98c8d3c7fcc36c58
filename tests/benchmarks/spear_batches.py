"""How many records a client may mix before SPEAR no longer tells them apart, and in what time.

    python tests/benchmarks/spear_batches.py [--env ant] [--hidden 128] [--rounds 500] [--noise 0]
        [--batches 16,24] [--attack cocktail]

Captures releases of a client of ours at initialisation and after some training, and prints for each
batch size the share of records recovered to a relative error of 1e-3, the largest error, and the
seconds of one core. The critics are attacked with and without LayerNorm.
"""

from __future__ import annotations

import time
from typing import Annotated

import torch
import typer
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacks import Channel, Observation, Prior, Reconstruction, Transitions, get_attack
from privguard.budgets import budget
from privguard.environments import environment_spec
from privguard.recipes import TD3Settings
from privguard.spec import CellSpec
from privguard.training import CellTraining


def training(env: str, hidden: int, layer_norm: bool) -> CellTraining:
    """A cell whose clients have acted at random for a while."""
    cell = CellSpec(
        env=env,
        defense="none",
        budget=budget("quick", env),
        agent=TD3Settings(hidden=(hidden, hidden), layer_norm=layer_norm),
    )
    ready = CellTraining(cell)
    for _ in range(cell.budget.warmup_steps):
        ready.federation.collect(explore=False)
    return ready


def replayed(cell: CellTraining, count: int) -> Transitions:
    """``count`` different records of one client's replay."""
    replay = cell.federation.clients[0].replay
    order = torch.randperm(replay.size, generator=torch.Generator().manual_seed(0))
    return replay.rows(order[:count])


def observe(cell: CellTraining, z: Transitions, noise_std: float) -> Observation:
    """The client's release of ``z``, with Gaussian noise."""
    agent = cell.agent
    generator = torch.Generator().manual_seed(1)
    parameters = dict(agent.shared.named_parameters())
    gradients = torch.autograd.grad(agent.loss(agent.shared, z), list(parameters.values()))
    received = {
        name: g + noise_std * torch.randn(g.shape, generator=generator)
        for name, g in zip(parameters, gradients, strict=True)
    }
    template = z.template(action_low=-1.0, action_high=1.0)
    return Observation(
        agent.shared, received, agent.loss, len(z), template, Channel(noise_std=noise_std)
    )


def errors(answer: Reconstruction, truth: Transitions) -> Tensor:
    """Relative error of (s, a) of each true record, after the best assignment."""
    z = answer.transitions
    ours = torch.cat([z.state, z.action], dim=1).double()
    true = torch.cat([truth.state, truth.action], dim=1).double()
    distance = torch.cdist(ours, true) / true.norm(dim=1)
    rows, columns = linear_sum_assignment(distance.numpy())
    return distance[rows, columns]


def report(cell: CellTraining, label: str, batches: list[int], noise_std: float, name: str) -> None:
    """One line a batch size."""
    attack = get_attack(name)
    for batch in batches:
        z = replayed(cell, batch)
        observation = observe(cell, z, noise_std)
        reason = attack.unsupported(observation)
        if reason:
            print(f"{label:<24}{batch:>6}  {reason}")
            continue
        started = time.process_time()
        answer = attack.reconstruct(observation, prior=Prior.none(observation.template), seed=0)
        seconds = time.process_time() - started
        error = errors(answer, z)
        exact = float((error < 1e-3).double().mean())
        print(
            f"{label:<24}{batch:>6}{exact:>8.0%}{float(error.median()):>10.1e}"
            f"{float(error.max()):>10.1e}{seconds:>9.2f}  {answer.notes}",
            flush=True,
        )


def main(
    env: Annotated[str, typer.Option(help="Environment.")] = "ant",
    hidden: Annotated[int, typer.Option(help="Units of each hidden layer.")] = 128,
    rounds: Annotated[int, typer.Option(help="Rounds of training between the captures.")] = 500,
    noise: Annotated[float, typer.Option(help="Standard deviation of Gaussian noise.")] = 0.0,
    batches: Annotated[str, typer.Option(help="Batch sizes.")] = "1,4,8,16,24,32,48,64",
    attack: Annotated[str, typer.Option(help="spear or cocktail.")] = "spear",
) -> None:
    """Prints exactness and processor seconds by batch size."""
    torch.set_num_threads(1)
    sizes = [int(size) for size in batches.split(",")]
    print(
        f"{attack}, {environment_spec(env).gym_id}, twin critics of {hidden}-{hidden}, "
        f"noise {noise:g}"
    )
    print(f"{'critic':<24}{'batch':>6}{'exact':>8}{'median':>10}{'largest':>10}{'seconds':>9}")
    for layer_norm in (False, True):
        cell = training(env, hidden, layer_norm)
        kind = "LayerNorm" if layer_norm else "plain"
        report(cell, f"{kind}, untrained", sizes, noise, attack)
        for _ in range(rounds):
            cell.federation.collect(explore=True)
            cell.federation.round(0.0)
        report(cell, f"{kind}, {rounds} rounds", sizes, noise, attack)


if __name__ == "__main__":
    typer.run(main)
