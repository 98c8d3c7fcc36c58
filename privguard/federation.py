"""Clients, the server and the round between them (FedSGD, as in arXiv 2512.00303).

Per round the server broadcasts its weights; every client plays in its own environment, draws a
minibatch of its replay, computes the loss gradient, defends it and sends it; the server averages
what it receives, takes an Adam step and moves the target networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from attacks.transitions import Transitions
from privguard.agents import Agent
from privguard.replay import Replay, stack
from privguard.seeding import derive_seed, numpy_generator

if TYPE_CHECKING:
    import gymnasium as gym

    from defenses.aggregation import Aggregate
    from defenses.pipeline import Defense
    from defenses.session import Session


class Client:
    """One client: its own environment copy, replay and random streams."""

    def __init__(self, index: int, env: gym.Env, replay: Replay, seed: int) -> None:
        self.index = index
        self.env = env
        self.replay = replay
        self.seed = seed
        self.exploration_rng = numpy_generator(seed, "exploration", index)
        self.minibatch_rng = numpy_generator(seed, "minibatch", index)
        self.episodes = -1
        self.episode_steps = 0
        self.noise: np.ndarray | None = None
        self.state: np.ndarray = self._reset()

    def play(self, action: np.ndarray) -> None:
        """One environment step: stores the transition and starts a new episode at its end."""
        next_state, reward, terminated, truncated, _ = self.env.step(action)
        self.replay.add(self.state, action, float(reward), next_state, terminated)
        self.episode_steps += 1
        self.state = self._reset() if terminated or truncated else next_state

    def resume(self, episodes: int, episode_steps: int) -> None:
        """Brings the environment back to where a checkpoint left it.

        The episode is replayed from its own seed with the actions that the replay holds: exact in
        every deterministic environment, and nothing of a simulator's inside needs to be stored.
        """
        self.episodes = episodes - 1
        self.state = self._reset()
        for action in self.replay.recent_actions(episode_steps):
            self.state = self.env.step(action)[0]
        self.episode_steps = episode_steps

    def _reset(self) -> np.ndarray:
        self.episodes += 1
        self.episode_steps = 0
        self.noise = None
        seed = derive_seed(self.seed, "episode", self.index, self.episodes) % 2**31
        return self.env.reset(seed=seed)[0]


class Server:
    """Holds the global weights and improves them with the gradients that it receives."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        # Parameters of the optimizer are slices of the agent's weight vector: a step on them is a
        # step on the model, in one fused operation a network.
        self._slices = [
            torch.nn.Parameter(agent.weights[start:stop])
            for start, stop, _ in agent.learning_rates()
        ]
        self.optimizer = torch.optim.Adam(
            [
                {"params": [parameter], "lr": rate}
                for parameter, (_, _, rate) in zip(
                    self._slices, agent.learning_rates(), strict=True
                )
            ],
            fused=True,
        )

    def step(self, gradient: Tensor, progress: float) -> None:
        """One Adam step along the aggregate (P,), then the target update.

        Args:
            gradient: (P,) mean of what the clients sent.
            progress: Share of the training that is over; late steps are smaller.
        """
        decay_from = self.agent.settings.decay_from
        pace = min(1.0, (1 - progress) / (1 - decay_from))
        for parameter, group, (start, stop, rate) in zip(
            self._slices, self.optimizer.param_groups, self.agent.learning_rates(), strict=True
        ):
            parameter.grad = gradient[start:stop]
            group["lr"] = pace * rate
        self.optimizer.step()
        self.agent.update_targets()


@dataclass(frozen=True)
class Release:
    """What the server receives of one client, or of one sum over clients, and what is behind it."""

    members: tuple[int, ...]
    gradient: Tensor
    """(P,) mean over the members of their defended mean gradients."""
    undefended: Tensor
    """(P,) the same without the defence: for norms, never shown to an attack."""
    truth: Transitions


class Federation:
    """N clients, one server and a defence between them."""

    def __init__(
        self,
        clients: list[Client],
        server: Server,
        defense: Defense,
        generator: torch.Generator,
        batch_size: int,
    ) -> None:
        self.clients = clients
        self.server = server
        self.agent = server.agent
        self.defense = defense
        self.batch_size = batch_size
        self.session: Session = defense.bind(
            self.agent.shared, clients=len(clients), batch_size=batch_size, generator=generator
        )
        self.memory = self.session.new_memory()
        self.captured_rows: set[tuple[int, int]] = set()
        """(client, replay row) of every captured record, so that no prior is fitted on a target."""
        self.accountants = [defense.accountant() for _ in clients]

    def collect(self, *, explore: bool) -> None:
        """One environment step of every client: random before learning starts, then exploring."""
        if not explore:
            for client in self.clients:
                client.play(self.agent.random_action(client.exploration_rng))
            return
        greedy = self.agent.act(np.stack([client.state for client in self.clients]))
        for client, action in zip(self.clients, greedy, strict=True):
            chosen, client.noise = self.agent.explore(action, client.noise, client.exploration_rng)
            client.play(chosen)

    def round(self, progress: float, *, capture: bool = False) -> list[Release]:
        """One training round. Returns its releases if they are to be captured, else nothing.

        ``progress`` is the share of the training that is over.

        A defence that only adds to the summed gradient is applied to the stacked minibatches of all
        clients at once, equal in distribution and several times cheaper; where releases are
        captured, every client computes and defends its own.
        """
        indices = [
            client.replay.sample(self.batch_size, self.defense.sampling, client.minibatch_rng)
            for client in self.clients
        ]
        batch, owner = stack([client.replay for client in self.clients], indices)
        losses = self._losses(batch)
        for client, accountant in zip(self.clients, self.accountants, strict=True):
            if accountant is not None:
                accountant.step(client.replay.sample_rate(self.batch_size))
        if self.defense.additive and not capture:
            self.server.step(self.session.mean_release(losses, owner), progress)
            return []
        aggregate = self.session.aggregate(self.session.release(losses, owner, memory=self.memory))
        captured: list[Release] = []
        if capture:
            self._remember(indices)
            undefended = self.session.undefended(losses, owner)
            captured = self._releases(aggregate, undefended, batch, owner)
        self.server.step(aggregate.mean, progress)
        return captured

    def probe(self, batch_size: int, rng: np.random.Generator) -> list[Release]:
        """Defended gradients of fresh batches of ``batch_size``; nothing is learnt from them.

        Error-feedback memory is left out: the residual of other rounds would only hide the record,
        and a probe is the worst case.
        """
        indices = [
            rng.choice(client.replay.size, size=batch_size, replace=False)
            for client in self.clients
        ]
        self._remember(indices)
        batch, owner = stack([client.replay for client in self.clients], indices)
        losses = self._losses(batch)
        undefended = self.session.undefended(losses, owner, batch_size=batch_size)
        releases = self.session.release(losses, owner, batch_size=batch_size)
        return self._releases(self.session.aggregate(releases), undefended, batch, owner)

    def _losses(self, batch: Transitions) -> Callable[[Tensor | slice], Tensor]:
        with torch.no_grad():
            target = self.agent.td_target(batch)
        return lambda rows: self.agent.losses(batch[rows], target[rows])

    def _remember(self, indices: list[np.ndarray]) -> None:
        for client, rows in zip(self.clients, indices, strict=True):
            self.captured_rows.update((client.index, int(row)) for row in rows)

    def _releases(
        self, aggregate: Aggregate, undefended: Tensor, batch: Transitions, owner: Tensor
    ) -> list[Release]:
        return [
            Release(
                members=view.members,
                gradient=view.mean.clone(),
                undefended=undefended[list(view.members)].mean(dim=0),
                truth=batch[torch.isin(owner, torch.tensor(view.members))],
            )
            for view in aggregate.views
        ]
