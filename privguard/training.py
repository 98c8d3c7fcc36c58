"""One cell: train, evaluate, capture releases."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

import defenses
from privguard.agents import Agent, make_agent
from privguard.audit.captures import Capture, CellCaptures
from privguard.audit.prior_samples import take_samples
from privguard.clients import Client
from privguard.environments import (
    environment_spec,
    make_environment,
    make_learning_environment,
)
from privguard.evaluation import baseline_means, evaluate, evaluation_seeds
from privguard.federation import Federation, Server
from privguard.records import Evaluation, ReleaseKind
from privguard.replay import Replay, ReplayShapes
from privguard.seeding import numpy_generator, torch_generator
from privguard.spec import CellSpec

_CHECK_EVERY = 100
"""Rounds between two looks at the clock and at the weights' finiteness."""
_REPLAY_BYTES = 2**30
"""Most that one client's replay may take: the oldest of more than 150,000 frames are forgotten."""


@dataclass(frozen=True)
class Progress:
    """Where a cell's training stands."""

    round: int
    rounds: int
    rounds_per_second: float
    mean_return: float | None


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
        cell, budget = self.cell, self.cell.budget
        return baseline_means(
            cell.env, cell.observation, cell.seed, budget.baseline_episodes, budget.episodes
        )

    def run(
        self,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        save_checkpoint: Callable[[], None] = lambda: None,
        checkpoint_seconds: float = 60.0,
    ) -> None:
        """Trains to the end of the budget, or until the weights are no longer finite.

        ``save_checkpoint`` is called between two rounds, at most every ``checkpoint_seconds``.
        """
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
                save_checkpoint()
                saved = time.perf_counter()
            on_progress(self._progress())
            started = time.perf_counter()
        take_samples(self.captures, self.federation, self.cell)

    def close(self) -> None:
        """Frees the environments and detaches the defence from the networks."""
        self.federation.session.close()
        for env in [*self.evaluation_envs, *(client.env for client in self.federation.clients)]:
            env.close()

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
        budget = self.cell.budget
        last = len(self.evaluations) >= budget.evaluations - budget.final_evaluations
        envs = self.evaluation_envs[: budget.episodes if last else budget.curve_episodes]
        seeds = evaluation_seeds(self.cell.seed, self.round, len(envs))
        episodes = evaluate(self.agent.act, envs, seeds, self.environment.forward_key)
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


def _replay_shapes(env: Any) -> ReplayShapes:
    state, action = env.observation_space, env.action_space
    return ReplayShapes(
        state_shape=tuple(state.shape),
        state_dtype=torch.from_numpy(np.zeros(0, state.dtype)).dtype,
        action_shape=tuple(action.shape),
        action_dtype=torch.from_numpy(np.zeros(0, action.dtype)).dtype,
    )
