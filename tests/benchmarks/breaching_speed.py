"""Gradient matching here against the public framework ``breaching``, on one core.

    python tests/benchmarks/breaching_speed.py [--env hopper] [--hidden 256,256] [--layer-norm]

Both sides receive the gradient of 0.5 (Q(s, a) - y)^2, y = r + discount Q'(s', pi'(s')), of single
real records, and fit (s, a, r, s') to it: the same networks, gradients, starts, unknowns, units,
distance, optimiser, learning rates and iterations. The framework is installed in an environment of
its own that shares this one's torch, and runs first; where it cannot be installed the benchmark
says so and stops. Prints processor and wall seconds a target, the matching loss
||g~ - g||^2 / ||g||^2 (evaluated in float64, the same way for both) and the nmse of (s, a), and
what ``rgia`` with all of its priors makes of the same gradients.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sysconfig
import tempfile
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from breaching_worker import TDError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attacks import Observation, Prior, Transitions
from attacks.attack import Attack
from attacks.rgia import RGIA
from privguard.agents.networks import TwinCritic
from privguard.agents.td3 import TD3
from privguard.budgets import budget
from privguard.environments import environment_spec
from privguard.recipes import TD3Settings
from privguard.spec import CellSpec
from privguard.training import CellTraining

PACKAGE = "breaching==0.1.2"
WORKER = Path(__file__).with_name("breaching_worker.py")


@dataclass(frozen=True, eq=False)
class Problem:
    """The networks, the records whose gradients are attacked, and what the attacker knows."""

    networks: dict[str, Any]
    model: TDError
    truth: Transitions
    prior: Prior

    def loss(self, model: nn.Module, z: Transitions) -> Tensor:
        """The critic's loss on fakes, which are never terminal."""
        return (0.5 * model(_rows(z)) ** 2).mean()

    def observations(self) -> list[Observation]:
        """The releases of single records."""
        parameters = dict(self.model.named_parameters())
        found = []
        for k in range(len(self.truth)):
            loss = self.loss(self.model, self.truth[k])
            gradient = torch.autograd.grad(loss, list(parameters.values()))
            found.append(
                Observation(
                    self.model,
                    dict(zip(parameters, gradient, strict=True)),
                    self.loss,
                    1,
                    self.prior.template,
                )
            )
        return found

    def scale(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of [s, a, r, s'], the units in which ``rgia`` optimises."""
        prior = self.prior
        reward = torch.tensor([prior.reward_mean]), torch.tensor([max(prior.reward_std, 1e-3)])
        center = torch.cat([prior.joint_mean, reward[0], prior.next_state_mean])
        return center, torch.cat([prior.joint_std, reward[1], prior.state_std])

    def matching_loss(self, observation: Observation, rows: Tensor) -> float:
        """||g~ - g||^2 / ||g||^2 of one row (1, width), in float64."""
        model = copy.deepcopy(self.model).double()
        for network in model.targets:
            network.double()
        loss = (0.5 * model(rows.double()) ** 2).mean()
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        received = observation.flat_gradient().double()
        found = torch.cat([g.reshape(-1) for g in gradient])
        return float((found - received).square().sum() / received.square().sum())


def make_problem(
    env: str, hidden: tuple[int, ...], layer_norm: bool, rounds: int, targets: int
) -> Problem:
    """A critic of ours at initialisation or after some rounds, and records of its replay."""
    settings = TD3Settings(hidden=hidden, layer_norm=layer_norm)
    numbers = budget("quick", env)
    cell = CellTraining(CellSpec(env=env, defense="none", budget=numbers, agent=settings))
    for _ in range(numbers.warmup_steps):
        cell.federation.collect(explore=False)
    for _ in range(rounds):
        cell.federation.collect(explore=True)
        cell.federation.round(0.0)
    agent = cell.agent
    assert isinstance(agent, TD3)
    if not (bool((agent.low == -1).all()) and bool((agent.high == 1).all())):
        raise typer.BadParameter("the benchmark's policy fits environments with actions in [-1, 1]")
    replay = cell.federation.clients[0].replay
    order = torch.randperm(replay.size, generator=torch.Generator().manual_seed(0))
    z = replay.rows(order)
    z = z[(z.terminated == 0).nonzero().flatten()]
    template = z.template(action_low=-1.0, action_high=1.0)
    networks: dict[str, Any] = {
        "state": template.state_size,
        "action": template.action_size,
        "hidden": list(hidden),
        "layer_norm": layer_norm,
        "discount": agent.discount,
    }
    model = TDError(**networks)
    critic, frozen = agent.shared["critic"], agent.target["critic"]
    assert isinstance(critic, TwinCritic)
    assert isinstance(frozen, TwinCritic)
    sources = (critic.q1, frozen.q1, agent.target["actor"])
    for network, source in zip((model.critic, *model.targets), sources, strict=True):
        weights = source.state_dict()
        network.load_state_dict(
            {k: v.clone() for k, v in weights.items() if k in network.state_dict()}
        )
    cell.close()
    return Problem(networks, model, z[:targets], Prior.fit(z[targets:], template=template))


def framework_python(folder: Path) -> Path | str:
    """The interpreter of an environment with the framework and this torch, or why there is none."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    ours, theirs = (
        sysconfig.get_path("purelib"),
        sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}),
    )
    Path(theirs, "shared.pth").write_text(f"{ours}\n")
    # With this torch seen and asked for, pip neither fetches another nor a torchvision for another.
    install = ["-m", "pip", "install", "--quiet", f"torch=={torch.__version__}", PACKAGE]
    done = subprocess.run([python, *install], capture_output=True, text=True, check=False)
    return python if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


@dataclass(frozen=True, eq=False)
class Result:
    """One line of the table: answers (targets, width) and seconds a target."""

    label: str
    answers: Tensor
    processor: float
    wall: float


def run_framework(python: Path, problem: Problem, attack: RGIA, seed: int, folder: Path) -> Result:
    """The framework on every target and start; of its restarts the one that matches best."""
    observations = problem.observations()
    center, unit = problem.scale()
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randn(attack.restarts, 1, len(center), generator=generator)
    tensors = {"center": center, "unit": unit, "starts": starts}
    for name in observations[0].gradient:
        tensors[f"gradient.{name}"] = torch.stack([o.gradient[name] for o in observations])
    networks = (problem.model.critic, *problem.model.targets)
    for name, network in zip(("critic", "target_critic", "policy"), networks, strict=True):
        tensors |= {f"{name}.{k}": v for k, v in network.state_dict().items()}
    save_file(tensors, folder / "problem.safetensors")
    settings = {
        "networks": problem.networks,
        "targets": len(observations),
        "iterations": attack.iterations,
        "learning_rate": attack.learning_rate,
    }
    (folder / "problem.json").write_text(json.dumps(settings))
    subprocess.run([python, "-W", "ignore", WORKER, folder], stdout=subprocess.DEVNULL, check=True)
    seconds = np.array(json.loads((folder / "seconds.json").read_text())).mean(axis=0)
    found = center + unit * load_file(folder / "answers.safetensors")["answers"][:, :, 0]
    best = [
        rows[int(np.argmin([problem.matching_loss(o, row[None]) for row in rows]))]
        for o, rows in zip(observations, found, strict=True)
    ]
    return Result("breaching, one at a time", torch.stack(best), *seconds)


def run_ours(label: str, problem: Problem, attack: Attack, size: int, seed: int) -> Result:
    """Our attack, ``size`` targets at a time."""
    observations = problem.observations()
    attack.reconstruct_many(observations[:size], prior=problem.prior, seed=seed)  # imports
    wall, processor = time.perf_counter(), time.process_time()
    answers = []
    for first in range(0, len(observations), size):
        part = observations[first : first + size]
        answers += attack.reconstruct_many(part, prior=problem.prior, seed=seed)
    seconds = time.process_time() - processor, time.perf_counter() - wall
    rows = torch.cat([_rows(a.transitions) for a in answers])
    return Result(label, rows, *(s / len(observations) for s in seconds))


def report(problem: Problem, result: Result, reference: Result | None) -> None:
    """One line of the table; ratios are of processor seconds."""
    observations = problem.observations()
    losses = np.array(
        [
            problem.matching_loss(o, row[None])
            for o, row in zip(observations, result.answers, strict=True)
        ]
    )
    size = len(problem.prior.joint_mean)
    spread = problem.prior.raw_std()
    moving = spread > 1e-6
    error = (result.answers - _rows(problem.truth))[:, :size][:, moving] / spread[moving]
    nmse = error.square().mean(dim=1).numpy()
    ratio = "" if reference is None else f"{reference.processor / result.processor:8.1f}"
    print(
        f"{result.label:<34}{1e3 * result.processor:>9.1f}{1e3 * result.wall:>9.1f}{ratio:>9}"
        f"{np.median(losses):>11.1e}{(losses < 1e-4).mean():>10.0%}"
        f"{np.median(nmse):>11.1e}{nmse.mean():>9.2g}",
        flush=True,
    )


def _rows(z: Transitions) -> Tensor:
    return torch.cat([z.state, z.action, z.reward[:, None], z.next_state], dim=1)


def main(
    env: Annotated[str, typer.Option(help="Environment of the records.")] = "hopper",
    hidden: Annotated[str, typer.Option(help="Units of the critic's hidden layers.")] = "256,256",
    layer_norm: Annotated[bool, typer.Option(help="LayerNorm before each ReLU.")] = False,
    rounds: Annotated[int, typer.Option(help="Rounds of training before the gradients.")] = 0,
    targets: Annotated[int, typer.Option(help="Records attacked.")] = 16,
    iterations: Annotated[int, typer.Option(help="Adam steps of every restart.")] = 400,
    restarts: Annotated[int, typer.Option(help="Random starts of every target.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the random starts.")] = 0,
    environment: Annotated[
        Path | None, typer.Option(help="Keep the framework's environment here.")
    ] = None,
) -> None:
    """Runs both sides and prints the table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        python = framework_python(environment or Path(scratch, "environment"))
        if isinstance(python, str):
            print(f"skipped: {PACKAGE} cannot be installed here: {python}")
            return
        widths = tuple(int(width) for width in hidden.split(","))
        problem = make_problem(env, widths, layer_norm, rounds, targets)
        matching = RGIA(
            iterations=iterations,
            restarts=restarts,
            direction_share=0.0,
            state_weight=0.0,
            reward_weight=0.0,
            dynamics_weight=0.0,
        )
        print(
            f"{environment_spec(env).gym_id}, critic {hidden}{' with LayerNorm' * layer_norm}, "
            f"{rounds} rounds, {targets} targets, {restarts} restarts of {iterations} iterations, "
            f"one thread"
        )
        print(
            f"{'a target':<34}{'cpu ms':>9}{'wall ms':>9}{'faster':>9}"
            f"{'loss':>11}{'matched':>10}{'nmse':>11}{'mean':>9}"
        )
        public = run_framework(python, problem, matching, seed, Path(scratch))
    report(problem, public, None)
    for size in sorted({1, targets}):
        label = "ours, one at a time" if size == 1 else f"ours, {size} at a time"
        report(problem, run_ours(label, problem, matching, size, seed), public)
    full = RGIA(iterations=iterations)
    label = f"rgia: priors, {full.restarts} restarts, {targets} at a time"
    report(problem, run_ours(label, problem, full, targets, seed), public)


if __name__ == "__main__":
    typer.run(main)
