"""Pixels that ``layerwise`` reads from gradients of the Nature CNN: PSNR, exact share, seconds.

    python tests/benchmarks/layerwise_pixels.py [GAME ...] [--targets 20] [--batch-size 1]
        [--noise 0] [--defense none] [--train-rounds 2000] [--attack layerwise] [--attack rgia]
        [--network init] [--network trained]

For each game the network at initialisation and after so many rounds of the federated double DQN
(2,000 are the budget quick); noise is Gaussian, as a share of the gradient's root mean square, and
comes after the defence; several defences are attacked one after the other, on the same records;
"whole" is the share of releases with every pixel of all records exact. Targets are drawn from the
replay, the adversary holds 64 frames of it. One thread. The prior's PSNR is that of its mean frame.
"""

from __future__ import annotations

import math
import time
from typing import Annotated

import numpy as np
import torch
import typer
from scipy.optimize import linear_sum_assignment

import defenses
from attacks import Channel, Observation, Prior, get_attack
from attacks.transitions import Template, Transitions
from privguard.agents import Agent
from privguard.budgets import budget
from privguard.environments import environment_spec
from privguard.recipes import agent_settings
from privguard.replay import Replay
from privguard.spec import CellSpec
from privguard.training import CellTraining

GAMES = ["pong", "qbert", "breakout", "seaquest", "carracing"]
WARMUP = 1000


def main(
    games: Annotated[list[str] | None, typer.Argument(help="Games.")] = None,
    targets: Annotated[int, typer.Option(help="Releases for each network.")] = 20,
    batch_size: Annotated[int, typer.Option(help="Records in a release.")] = 1,
    noise: Annotated[float, typer.Option(help="Noise, as a share of the gradient's RMS.")] = 0.0,
    defense: Annotated[list[str] | None, typer.Option(help="As in a sweep; repeatable.")] = None,
    train_rounds: Annotated[int, typer.Option(help="Rounds of the trained network.")] = 2000,
    attack: Annotated[list[str] | None, typer.Option(help="Attack; repeat for several.")] = None,
    network: Annotated[list[str] | None, typer.Option(help="init or trained; both.")] = None,
) -> None:
    """Prints one line a game, network and attack."""
    torch.set_num_threads(1)
    print(
        f"{'game':<10} {'network':<8} {'defence':<14} {'attack':<10} {'PSNR':>6} {'lowest':>6} "
        f"{'exact':>6} {'whole':>6} {'prior':>6} {'s/target':>8}"
    )
    for game in games or GAMES:
        training = start(game, train_rounds)
        for state in network or ["init", "trained"]:
            if state == "trained":
                training.run()
            for text in defense or ["none"]:
                for name in attack or ["layerwise"]:
                    report(training, state, name, targets, batch_size, text, noise)
        training.close()


def start(game: str, rounds: int) -> CellTraining:
    """A cell with experience in its replays that has not learnt yet."""
    short = budget("smoke", game).model_copy(
        update={"rounds": rounds, "warmup_steps": 10, "evaluations": 1, "captures": ()}
    )
    spec = environment_spec(game)
    cell = CellSpec(env=game, budget=short, agent=agent_settings(spec, None), clients=2)
    training = CellTraining(cell)
    for _ in range(WARMUP):
        for client in training.federation.clients:
            if client.replay.size < client.replay.capacity:
                client.play(training.agent.random_action(client.exploration_rng))
    return training


def report(
    training: CellTraining,
    network: str,
    name: str,
    targets: int,
    batch_size: int,
    defense: str,
    noise: float,
) -> None:
    """Attacks fresh probes of one client's replay."""
    agent = training.agent
    replay: Replay = training.federation.clients[0].replay
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    line = f"{training.cell.env:<10} {network:<8} {defense:<14} {name:<10}"
    order = rng.permutation(replay.size)
    held, rest = order[:64], order[64:]
    known = replay.rows(held)
    actions = int(training.evaluation_envs[0].action_space.n)  # type: ignore[attr-defined]
    template = known.template(action_count=actions)
    prior = Prior.fit(known, template=template)
    found, blind, exact, seconds = [], [], [], []
    for target in range(targets):
        z = replay.rows(rng.choice(rest, size=batch_size, replace=False))
        observation = observed(agent, z, template, defense, noise, generator)
        declined = get_attack(name).unsupported(observation)
        if declined:
            print(line, declined, flush=True)
            return
        started = time.process_time()
        answer = get_attack(name).reconstruct(observation, prior=prior, seed=target)
        seconds.append(time.process_time() - started)
        psnr, share = compared(answer.transitions, z)
        found += psnr
        exact.append(share)
        blind += compared(prior.mean_transitions(batch_size, template), z)[0]
    print(
        f"{line} {np.median(found):>6.1f} {min(found):>6.1f} {np.mean(exact):>6.3f} "
        f"{np.mean(np.array(exact) == 1):>6.2f} {np.median(blind):>6.1f} "
        f"{np.mean(seconds):>8.1f}",
        flush=True,
    )


def observed(
    agent: Agent,
    z: Transitions,
    template: Template,
    defense: str,
    noise: float,
    generator: torch.Generator,
) -> Observation:
    """What the server receives of one client's records ``z``."""
    parsed, records = defenses.parse(defense), len(z)
    session = parsed.bind(agent.shared, clients=1, batch_size=records, generator=generator)
    with torch.no_grad():
        y = agent.td_target(z)

    def losses(rows: torch.Tensor | slice) -> torch.Tensor:
        return agent.losses(z[rows], y[rows])

    owner = torch.zeros(records, dtype=torch.long)
    release = session.release(losses, owner, memory=None, batch_size=records)[0]
    channel = Channel.from_description(parsed.describe(records, 1))
    if noise:
        noise_std = noise * float(release.square().mean().sqrt())
        release = release + noise_std * torch.randn(release.shape, generator=generator)
        channel = Channel(math.hypot(channel.noise_std, noise_std), channel.mechanisms)
    sizes = [p.numel() for p in agent.shared.parameters()]
    named = zip(agent.shared.named_parameters(), release.split(sizes), strict=True)
    gradient = {name: part.view_as(parameter) for (name, parameter), part in named}
    return Observation(agent.shared, gradient, agent.loss, records, template, channel)


def compared(answer: Transitions, truth: Transitions) -> tuple[list[float], float]:
    """PSNR of each true record's frames after the best assignment, and the exact pixels' share."""
    ours, theirs = (z.state.double().flatten(1) for z in (answer, truth))
    rows, columns = linear_sum_assignment(torch.cdist(ours, theirs).numpy())
    errors = (ours[rows].round() - theirs[columns]).square().mean(dim=1)
    psnr = 10 * torch.log10(255.0**2 / errors.clamp_min(1e-6))
    return psnr.tolist(), float((ours[rows].round() == theirs[columns]).double().mean())


if __name__ == "__main__":
    typer.run(main)
