"""One cell: train, evaluate, capture releases, checkpoint, resume."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import defenses
from attacks.transitions import Transitions
from privguard.agents import Agent, make_agent
from privguard.captures import Capture, CellCaptures
from privguard.environments import (
    environment_spec,
    make_environment,
    make_learning_environment,
)
from privguard.evaluation import baseline_returns, evaluate, evaluation_seeds
from privguard.federation import Client, Federation, RoundCost, Server
from privguard.knowledge import LARGEST_FRACTION, sample_count
from privguard.records import Evaluation, ReleaseKind
from privguard.replay import Replay, ReplayShapes
from privguard.seeding import numpy_generator, torch_generator
from privguard.spec import CellSpec

_CHECK_EVERY = 100
"""Rounds between two looks at the clock and at the weights' finiteness."""
_REFERENCE_SIZE = 4096
_REPLAY_BYTES = 2**30
"""Most that one client's replay may take: the oldest of more than 150,000 frames are forgotten."""
_SAMPLE_BYTES = 64 * 2**20
"""Most that a capture spends on the reference set, and on the adversary's samples beyond the
default share; images are what this is for."""


@dataclass(frozen=True)
class Progress:
    """Where a cell's training stands."""

    round: int
    rounds: int
    rounds_per_second: float
    mean_return: float | None


@dataclass
class Checkpoint:
    """All that is needed to go on: tensors by name and plain data."""

    tensors: dict[str, Tensor]
    plain: dict[str, Any]


class CellTraining:
    """The training of one cell, resumable at any round."""

    def __init__(self, cell: CellSpec) -> None:
        self.cell = cell
        self.environment = environment_spec(cell.env)
        budget, settings = cell.budget, cell.agent
        self.evaluation_envs = [
            make_environment(cell.env, cell.observation) for _ in range(budget.episodes)
        ]
        env = self.evaluation_envs[0]
        self.agent: Agent = make_agent(
            env,
            settings,
            self.environment.discount,
            torch_generator(cell.seed, "initialisation"),
        )
        capacity = budget.warmup_steps + budget.rounds * settings.steps_per_round
        shapes = _replay_shapes(env)
        capacity = min(capacity, _REPLAY_BYTES // shapes.row_bytes)
        clients = [
            Client(
                index,
                make_learning_environment(cell.env, cell.observation),
                Replay(capacity, shapes),
                cell.seed,
            )
            for index in range(cell.clients)
        ]
        self.defense_generator = torch_generator(cell.seed, "defence")
        self.server_generator = torch_generator(cell.seed, "server")
        self.probe_rng = numpy_generator(cell.seed, "probe")
        self.federation = Federation(
            clients,
            Server(self.agent),
            defenses.parse(cell.defense_text),
            self.defense_generator,
            settings.batch_size,
        )
        self.round = 0
        self.seconds = 0.0
        self.diverged = False
        self.evaluations: list[Evaluation] = []
        self.captures = CellCaptures()

    def baselines(self) -> tuple[float, float]:
        """Mean returns of the random and of the zero-action policy."""
        envs, seed = self.evaluation_envs, self.cell.seed
        episodes = self.cell.budget.baseline_episodes
        random, zero = (
            float(np.mean(baseline_returns(envs, seed, policy, episodes)[0]))
            for policy in ("random", "zero")
        )
        return random, zero

    def run(
        self,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        save_checkpoint: Callable[[Checkpoint], None] = lambda checkpoint: None,
        checkpoint_seconds: float = 60.0,
    ) -> None:
        """Trains to the end of the budget, or until the weights are no longer finite."""
        budget = self.cell.budget
        capture_at = {
            min(int(share * budget.rounds), budget.rounds - 1) for share in budget.captures
        }
        evaluate_at = {
            round((i + 1) * budget.rounds / budget.evaluations) for i in range(budget.evaluations)
        }
        if self.round == 0:
            for _ in range(budget.warmup_steps):
                self.federation.collect(explore=False)
        saved = started = time.perf_counter()
        while self.round < budget.rounds and not self.diverged:
            for _ in range(self.cell.agent.steps_per_round):
                self.federation.collect(explore=True)
            self.agent.begin_round(self.server_generator)
            if self.round in capture_at:
                self._capture(self.round / budget.rounds)
            else:
                self.federation.round(self.round / budget.rounds)
            self.round += 1
            if self.round % _CHECK_EVERY and self.round not in evaluate_at:
                continue
            now = time.perf_counter()
            self.seconds += now - started
            self.diverged = not bool(torch.isfinite(self.agent.weights).all())
            if self.round in evaluate_at and not self.diverged:
                self._evaluate()
            if now - saved > checkpoint_seconds:
                save_checkpoint(self.checkpoint())
                saved = time.perf_counter()
            on_progress(self._progress())
            started = time.perf_counter()
        self._take_samples()

    def close(self) -> None:
        """Frees the environments and detaches the defence from the networks."""
        self.federation.session.close()
        for env in [*self.evaluation_envs, *(client.env for client in self.federation.clients)]:
            env.close()

    def checkpoint(self) -> Checkpoint:
        """The whole state between two rounds."""
        federation = self.federation
        tensors, plain = self.captures.pack()
        tensors = {f"captures.{name}": tensor for name, tensor in tensors.items()}
        tensors["weights"] = self.agent.weights
        tensors["target_weights"] = self.agent.target_weights
        tensors["defense_generator"] = self.defense_generator.get_state()
        tensors["server_generator"] = self.server_generator.get_state()
        if federation.memory is not None:
            tensors["memory"] = federation.memory
        optimizer = federation.server.optimizer.state_dict()["state"]
        for index, moments in optimizer.items():
            tensors |= {f"adam.{index}.{name}": value for name, value in moments.items()}
        for client in federation.clients:
            for name, tensor in client.replay.tensors().items():
                tensors[f"client.{client.index}.replay.{name}"] = tensor
        return Checkpoint(
            tensors,
            {
                "round": self.round,
                "seconds": self.seconds,
                "evaluations": [evaluation.model_dump() for evaluation in self.evaluations],
                "captures": plain,
                "captured_rows": sorted(federation.captured_rows),
                "void_rounds": federation.void_rounds,
                "probe_rng": self.probe_rng.bit_generator.state,
                "defense": federation.session.state(),
                "costs": [list(cost) for cost in federation.costs],
                "accountants": [a.state() if a else None for a in federation.accountants],
                "clients": [_client_state(client) for client in federation.clients],
            },
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Puts back a state that ``checkpoint`` gave; training goes on with the same numbers."""
        tensors, plain, federation = checkpoint.tensors, checkpoint.plain, self.federation
        self.round, self.seconds = plain["round"], plain["seconds"]
        self.evaluations = [Evaluation(**entry) for entry in plain["evaluations"]]
        self.captures = CellCaptures.unpack(
            {
                name.removeprefix("captures."): tensor
                for name, tensor in tensors.items()
                if name.startswith("captures.")
            },
            plain["captures"],
        )
        self.agent.weights.copy_(tensors["weights"])
        self.agent.target_weights.copy_(tensors["target_weights"])
        self.defense_generator.set_state(tensors["defense_generator"])
        self.server_generator.set_state(tensors["server_generator"])
        self.probe_rng.bit_generator.state = plain["probe_rng"]
        federation.costs = [RoundCost(*cost) for cost in plain.get("costs", ())]
        federation.captured_rows = {(client, row) for client, row in plain["captured_rows"]}
        federation.session.load_state(plain["defense"])
        federation.void_rounds = plain["void_rounds"]
        if federation.memory is not None:
            federation.memory.copy_(tensors["memory"])
        _restore_adam(federation.server.optimizer, tensors)
        for accountant, state in zip(federation.accountants, plain["accountants"], strict=True):
            if accountant is not None:
                accountant.load_state(state)
        for client, state in zip(federation.clients, plain["clients"], strict=True):
            prefix = f"client.{client.index}.replay."
            replay = {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }
            client.replay.restore(replay, state["added"])
            client.exploration_rng.bit_generator.state = state["exploration_rng"]
            client.minibatch_rng.bit_generator.state = state["minibatch_rng"]
            client.resume(state["episodes"], state["episode_steps"])
            client.noise = None if state["noise"] is None else np.asarray(state["noise"])

    def _capture(self, progress: float) -> None:
        probes = []
        agent = self.agent
        weights, targets = agent.weights.clone(), agent.target_weights.clone()
        session, probe_size = self.federation.session, self.cell.probe_batch_size
        described: dict[ReleaseKind, list[dict[str, Any]]] = {
            "probe": session.describe(probe_size),
            "deployed": session.describe(),
        }
        for _ in range(self.cell.budget.probe_draws):
            probes += self.federation.probe(self.cell.probe_batch_size, self.probe_rng)
        deployed = self.federation.round(progress, capture=True)
        # Deployed batches are large and alike: one view a capture is enough to attack.
        self.captures.captures.append(
            Capture(
                self.round,
                weights,
                targets,
                agent.broadcast.clone(),
                {"probe": probes, "deployed": deployed[:1]},
                described,
            )
        )

    def _evaluate(self) -> None:
        seeds = evaluation_seeds(self.cell.seed, self.round, len(self.evaluation_envs))
        episodes = evaluate(
            self.agent.act, self.evaluation_envs, seeds, self.environment.forward_key
        )
        clients = self.federation.clients
        self.evaluations.append(
            Evaluation(
                round=self.round,
                environment_steps=sum(client.replay.added for client in clients),
                seconds=self.seconds,
                **asdict(episodes),
            )
        )

    def _progress(self) -> Progress:
        last = self.evaluations[-1] if self.evaluations else None
        return Progress(
            self.round,
            self.cell.budget.rounds,
            self.round / max(self.seconds, 1e-9),
            None if last is None else float(np.mean(last.returns)),
        )

    def _take_samples(self) -> None:
        """The adversary's prior samples and the scores' reference set, none of them a target."""
        clients = self.federation.clients
        rng = numpy_generator(self.cell.seed, "prior")
        pool = [
            (client.index, row)
            for client in clients
            for row in range(client.replay.size)
            if (client.index, row) not in self.federation.captured_rows
        ]
        known = sample_count(self.cell.prior_fraction, len(pool))
        row = clients[0].replay.rows(np.zeros(1, np.int64))
        row_bytes = sum(part.nbytes for part in vars(row).values())
        used = known + min(_REFERENCE_SIZE, _SAMPLE_BYTES // row_bytes)
        largest = sample_count(LARGEST_FRACTION, len(pool))
        more = min(largest - known, _SAMPLE_BYTES // row_bytes)
        chosen = np.asarray(pool)[rng.permutation(len(pool))]

        def transitions(rows: np.ndarray) -> Transitions:
            return Transitions.cat(
                [client.replay.rows(rows[rows[:, 0] == client.index, 1]) for client in clients]
            )

        self.captures.population = len(pool)
        self.captures.prior = transitions(chosen[:known])
        self.captures.reference = transitions(chosen[known:used])
        further = chosen[used : used + more]
        # Grouped by client; back in the order that was drawn, so that its head is a fair sample.
        order = np.argsort(np.argsort(further[:, 0], kind="stable"), kind="stable")
        self.captures.more_prior = transitions(further)[torch.from_numpy(order)]


def _replay_shapes(env: Any) -> ReplayShapes:
    state, action = env.observation_space, env.action_space
    return ReplayShapes(
        state_shape=tuple(state.shape),
        state_dtype=torch.from_numpy(np.zeros(0, state.dtype)).dtype,
        action_shape=tuple(action.shape),
        action_dtype=torch.from_numpy(np.zeros(0, action.dtype)).dtype,
    )


def _client_state(client: Client) -> dict[str, Any]:
    return {
        "episodes": client.episodes,
        "episode_steps": client.episode_steps,
        "added": client.replay.added,
        "noise": None if client.noise is None else client.noise.tolist(),
        "exploration_rng": client.exploration_rng.bit_generator.state,
        "minibatch_rng": client.minibatch_rng.bit_generator.state,
    }


def _restore_adam(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state = optimizer.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, index, moment = name.split(".")
            state["state"].setdefault(int(index), {})[moment] = tensor
    optimizer.load_state_dict(state)
