"""What a server that keeps a client's releases learns of rewards and next states.

    python tests/benchmarks/multiround.py [--env ant] [--rounds 20,50,100]

Trains an undefended federation from an empty policy, keeps the minibatch releases of one client
from the first round on, and prints how much of its replay they give away, as the number of rounds
grows. The adversary's samples come from another federation, so none of them is a target.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Annotated

import torch
import typer
from torch import Tensor

from attacks.multiround import History, reconstruct_history
from attacks.observation import Observation
from attacks.transitions import Transitions, flatten_state
from privguard.agents import make_agent
from privguard.audit.captures import CellCaptures
from privguard.auditing import Audit
from privguard.budgets import budget
from privguard.environments import environment_spec, make_environment
from privguard.knowledge import Knowledge
from privguard.recipes import agent_settings
from privguard.seeding import torch_generator
from privguard.spec import CellSpec
from privguard.training import CellTraining

CLIENT = 0
FOUND = 1e-3
"""Largest distance of (s, a) to a true record that counts as found, in standard deviations."""
RIGHT = 0.1
"""Largest error of r, and root mean square error of s', that counts as right, likewise."""


def main(
    env: Annotated[str, typer.Option(help="Environment.")] = "ant",
    rounds: Annotated[str, typer.Option(help="Numbers of rounds, ascending.")] = "20,50,100",
    seed: Annotated[int, typer.Option(help="Seed of the attacked federation.")] = 0,
) -> None:
    """Prints one row of a Markdown table for each number of rounds."""
    torch.set_num_threads(1)
    counts = [int(count) for count in rounds.split(",")]
    cell, captures = train(env, counts[-1], seed)
    audit, observations, truth = observe(cell, captures)
    print(f"{env}, seed {seed}: client {CLIENT} of {cell.clients}, minibatches of", end=" ")
    print(f"{cell.agent.batch_size}, {audit.prior.samples} samples beforehand")
    header = [
        "rounds",
        "explained",
        "records",
        "of the replay",
        "uses",
        "stitched",
        "stitched right",
    ]
    header += ["r right", "by the model", "s' right", "by the model", "seconds"]
    print("| " + " | ".join(header) + " |\n|" + " ---: |" * len(header), flush=True)
    for count in counts:
        started = time.process_time()
        history = reconstruct_history(observations[:count], prior=audit.prior, seed=0)
        seconds = time.process_time() - started
        population = cell.budget.warmup_steps + count
        row = judge(history, Transitions.cat(truth[:count]), audit, population)
        print("| " + " | ".join([f"{count}", *row, f"{seconds:.0f}"]) + " |", flush=True)


def train(env: str, rounds: int, seed: int) -> tuple[CellSpec, CellCaptures]:
    """A release of every round, and the samples of another seed's federation."""
    numbers = budget("quick", env).model_copy(
        update={
            "rounds": rounds,
            "evaluations": 1,
            "probe_draws": 1,
            "captures": tuple((i + 0.5) / rounds for i in range(rounds)),
        }
    )
    settings = agent_settings(environment_spec(env), None)
    cell = CellSpec(env=env, seed=seed, budget=numbers, agent=settings)
    attacked = captured(cell)
    apart = cell.model_copy(
        update={"seed": seed + 1, "budget": numbers.model_copy(update={"captures": (1.0,)})}
    )
    samples = captured(apart)
    samples.captures = attacked.captures
    return cell, samples


def captured(cell: CellSpec) -> CellCaptures:
    """The captures of a training."""
    training = CellTraining(cell)
    training.run()
    training.close()
    return training.captures


def observe(
    cell: CellSpec, captures: CellCaptures
) -> tuple[Audit, list[Observation], list[Transitions]]:
    """Each release of the client with networks of its own, and the truth behind it."""
    audit = Audit.prepare(cell, captures, Knowledge())
    env = make_environment(cell.env)
    observations, truth = [], []
    for capture in captures.captures:
        (release,) = [r for r in capture.releases["deployed"] if r.members == (CLIENT,)]
        agent = make_agent(
            env,
            cell.agent,
            environment_spec(cell.env).discount,
            torch_generator(cell.seed, "initialisation"),
        )
        own = dataclasses.replace(audit, agent=agent)
        observations.append(own.observe(capture, release, "deployed"))
        truth.append(release.truth)
    return audit, observations, truth


def judge(history: History, truth: Transitions, audit: Audit, population: int) -> Sequence[str]:
    """A row: what was found, and the shares of r and s' that are right, the model's beside."""
    sigma = torch.cat([audit.reference.state, audit.reference.action]).clamp_min(1e-6)
    ours, theirs = (
        torch.cat([flatten_state(z.state, torch.float64), z.action.double()], dim=1) / sigma
        for z in (history.transitions, truth)
    )
    distance, index = torch.cdist(ours, theirs).min(dim=1)
    found = (distance <= FOUND * ours.shape[1] ** 0.5).nonzero().flatten()
    answer, actual = history.transitions[found], truth[index[found]]
    stitched = history.stitched[found]
    predicted = audit.prior.predict(answer.state, answer.action)
    assert predicted is not None

    def reward_right(reward: Tensor) -> Tensor:
        return (reward - actual.reward).abs() <= RIGHT * float(audit.reference.reward)

    def next_right(state: Tensor) -> Tensor:
        error = flatten_state(state - actual.next_state, torch.float64)
        error = error / audit.reference.next_state.clamp_min(1e-6)
        return error.square().mean(dim=1).sqrt() <= RIGHT

    right = next_right(answer.next_state)
    shares = [
        stitched.float().mean(),
        right[stitched].float().mean(),
        reward_right(answer.reward).float().mean(),
        reward_right(predicted[1]).float().mean(),
        right.float().mean(),
        next_right(predicted[0]).float().mean(),
    ]
    return [
        f"{history.explained}",
        f"{len(found)}",
        f"{len(index[found].unique()) / population:.2f}",
        f"{history.uses.float().mean():.1f}",
        *(f"{float(share):.2f}" for share in shares),
    ]


if __name__ == "__main__":
    typer.run(main)
