"""Pixels that ``layerwise`` reads from gradients of the Nature CNN: PSNR, exact share, seconds.

    python tests/benchmarks/layerwise_pixels.py [GAME ...] [--targets 20] [--batch-size 1]
        [--noise 0] [--train-rounds 2000] [--attack layerwise] [--attack rgia]
        [--network init] [--network trained]

For each game the network at initialisation and after so many rounds of the federated double DQN
(2,000 are the budget quick); noise is Gaussian, as a share of the gradient's root mean square;
"whole" is the share of releases with every pixel of all records exact. Targets are drawn from the
replay, the adversary holds 64 frames of it. One thread. The prior's PSNR is that of its mean frame.
"""

from __future__ import annotations

import time
from typing import Annotated

import numpy as np
import torch
import typer
from scipy.optimize import linear_sum_assignment

from attacks import Channel, Observation, Prior, get_attack
from attacks.transitions import Transitions
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
    train_rounds: Annotated[int, typer.Option(help="Rounds of the trained network.")] = 2000,
    attack: Annotated[list[str] | None, typer.Option(help="Attack; repeat for several.")] = None,
    network: Annotated[list[str] | None, typer.Option(help="init or trained; both.")] = None,
) -> None:
    """Prints one line a game, network and attack."""
    torch.set_num_threads(1)
    print(
        f"{'game':<10} {'network':<8} {'attack':<10} {'PSNR':>6} {'lowest':>6} {'exact':>6} "
        f"{'whole':>6} {'prior':>6} {'s/target':>8}"
    )
    for game in games or GAMES:
        training = start(game, train_rounds)
        for state in network or ["init", "trained"]:
            if state == "trained":
                training.run()
            for name in attack or ["layerwise"]:
                report(training, state, name, targets, batch_size, noise)
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
    training: CellTraining, network: str, name: str, targets: int, batch_size: int, noise: float
) -> None:
    """Attacks fresh probes of one client's replay."""
    agent = training.agent
    replay: Replay = training.federation.clients[0].replay
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    order = rng.permutation(replay.size)
    held, rest = order[:64], order[64:]
    known = replay.rows(held)
    actions = int(training.evaluation_envs[0].action_space.n)  # type: ignore[attr-defined]
    template = known.template(action_count=actions)
    prior = Prior.fit(known, template=template)
    named = dict(agent.shared.named_parameters())
    found, blind, exact, seconds = [], [], [], []
    for target in range(targets):
        z = replay.rows(rng.choice(rest, size=batch_size, replace=False))
        gradient = torch.autograd.grad(agent.loss(agent.shared, z), list(named.values()))
        square = torch.cat([g.flatten() for g in gradient]).square().mean()
        noise_std = noise * float(square.sqrt())
        noised = [g + noise_std * torch.randn(g.shape, generator=generator) for g in gradient]
        observation = Observation(
            agent.shared,
            dict(zip(named, noised, strict=True)),
            agent.loss,
            batch_size,
            template,
            Channel(noise_std=noise_std),
        )
        declined = get_attack(name).unsupported(observation)
        if declined:
            print(f"{training.cell.env:<10} {network:<8} {name:<10} {declined}", flush=True)
            return
        started = time.process_time()
        answer = get_attack(name).reconstruct(observation, prior=prior, seed=target)
        seconds.append(time.process_time() - started)
        psnr, share = compared(answer.transitions, z)
        found += psnr
        exact.append(share)
        blind += compared(prior.mean_transitions(batch_size, template), z)[0]
    print(
        f"{training.cell.env:<10} {network:<8} {name:<10} {np.median(found):>6.1f} "
        f"{min(found):>6.1f} {np.mean(exact):>6.3f} "
        f"{np.mean(np.array(exact) == 1):>6.2f} {np.median(blind):>6.1f} "
        f"{np.mean(seconds):>8.1f}",
        flush=True,
    )


def compared(answer: Transitions, truth: Transitions) -> tuple[list[float], float]:
    """PSNR of each true record's frames after the best assignment, and the exact pixels' share."""
    ours, theirs = (z.state.double().flatten(1) for z in (answer, truth))
    rows, columns = linear_sum_assignment(torch.cdist(ours, theirs).numpy())
    errors = (ours[rows].round() - theirs[columns]).square().mean(dim=1)
    psnr = 10 * torch.log10(255.0**2 / errors.clamp_min(1e-6))
    return psnr.tolist(), float((ours[rows].round() == theirs[columns]).double().mean())


if __name__ == "__main__":
    typer.run(main)
