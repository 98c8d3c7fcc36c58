"""Clients, the server and the round between them (FedSGD, as in arXiv 2512.00303).

Per round the server broadcasts its weights; every client plays in its own environment, draws a
minibatch of its replay, computes the loss gradient, defends it and sends it; the server averages
what it receives, takes an Adam step and moves the target networks. With several local steps
(FedAvg) a client draws a minibatch for each, and what it defends and sends is the sum of its local
gradients: see ``local_updates``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from attacks.transitions import Transitions
from defenses.aggregation import ThresholdError
from privguard.agents import Agent
from privguard.clients import Client
from privguard.local_updates import local_updates
from privguard.replay import stack

if TYPE_CHECKING:
    from defenses.aggregation import Aggregate
    from defenses.pipeline import Defense
    from defenses.session import Session

_PROBE_ATTEMPTS = 20


class Server:
    """Holds the global weights and improves them with the gradients that it receives."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._learning_rates = agent.learning_rates()
        # Parameters of the optimizer are slices of the agent's weight vector: a step on them is a
        # step on the model, in one fused operation a network.
        self._slices = [
            torch.nn.Parameter(agent.weights[start:stop]) for start, stop, _ in self._learning_rates
        ]
        self.optimizer = torch.optim.Adam(
            [
                {"params": [parameter], "lr": rate}
                for parameter, (_, _, rate) in zip(self._slices, self._learning_rates, strict=True)
            ],
            eps=agent.adam_epsilon,
            fused=True,
        )

    def step(self, gradient: Tensor, progress: float) -> None:
        """One Adam step along the aggregate (P,), then the target update.

        A mean of sums of local gradients is taken for a gradient too, as in FedAdam.

        Args:
            gradient: (P,) mean of what the clients sent.
            progress: Share of the training that is over; late steps are smaller.
        """
        settings = self.agent.settings
        if settings.max_gradient_norm is not None:
            norm = gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny)
            gradient = gradient * (settings.max_gradient_norm / norm).clamp_max(1.0)
        decay_from = settings.decay_from
        pace = min(1.0, (1 - progress) / (1 - decay_from))
        for parameter, group, (start, stop, rate) in zip(
            self._slices, self.optimizer.param_groups, self._learning_rates, strict=True
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
    """(P,) mean over the members of what they sent: defended mean gradients, or with local steps
    defended sums of local ones."""
    undefended: Tensor
    """(P,) the same without the defence: for norms, never shown to an attack."""
    truth: Transitions


class RoundCost(NamedTuple):
    """Wall-clock seconds that one round's releases took all clients together."""

    defended: float
    """Gradients, defence and aggregation, the server's part of a simulated protocol included."""
    plain: float
    """Gradients of the same minibatches without a defence."""


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
        self.local_steps = self.agent.settings.local_steps
        self.session: Session = defense.bind(
            self.agent.shared, clients=len(clients), batch_size=batch_size, generator=generator
        )
        self.memory = self.session.new_memory()
        self.void_rounds = 0
        """Rounds without a step, since too many clients dropped out to open any sum."""
        self.captured_rows: set[tuple[int, int]] = set()
        """(client, replay row) of every captured record, so that no prior is fitted on a target."""
        self.costs: list[RoundCost] = []
        """Of every captured round."""
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
        captured, or clients take several local steps, every client computes and defends its own.
        If no sum can be opened, the round is void: the server keeps its weights.
        """
        indices = [self._minibatches(client) for client in self.clients]
        batch, owner = stack([client.replay for client in self.clients], indices)
        for client, accountant in zip(self.clients, self.accountants, strict=True):
            if accountant is not None:
                accountant.step(client.replay.sample_rate(self.batch_size, self.defense.sampling))
        if self.defense.additive and self.local_steps == 1 and not capture:
            self.server.step(self.session.mean_release(self._losses(batch), owner), progress)
            self.session.end_round()
            return []
        captured: list[Release] = []
        try:
            if capture:
                captured, mean = self._captured_round(indices, batch, owner)
            else:
                mean = self.session.aggregate_mean(self._round_releases(batch, owner))
        except ThresholdError:
            self.void_rounds += 1
        else:
            self.server.step(mean, progress)
        self.session.end_round()
        return captured

    def _captured_round(
        self, indices: list[np.ndarray], batch: Transitions, owner: Tensor
    ) -> tuple[list[Release], Tensor]:
        """The releases of a round, timed beside what they cost without the defence; their mean."""
        self._remember(indices)
        # Before the clock starts: neither side of the comparison pays for a cold cache.
        undefended = self._undefended(batch, owner, self.batch_size, self.local_steps)
        started = time.perf_counter()
        aggregate = self.session.aggregate(self._round_releases(batch, owner))
        defended = time.perf_counter()
        self._undefended(batch, owner, self.batch_size, self.local_steps)
        self.costs.append(RoundCost(defended - started, time.perf_counter() - defended))
        return self._releases(aggregate, undefended, batch, owner), aggregate.mean

    def _round_releases(self, batch: Transitions, owner: Tensor) -> Tensor:
        """(clients, P): what each client sends in a training round."""
        return self._defended(batch, owner, self.batch_size, self.local_steps, self.memory)

    def probe(self, batch_size: int, rng: np.random.Generator) -> list[Release]:
        """Defended gradients of fresh batches of ``batch_size``; nothing is learnt from them.

        With local steps every step goes over the same batch, so that no more than ``batch_size``
        records are unknown: the worst case. Error-feedback memory is left out: the residual of
        other rounds would only hide the record. Clients that send these releases try again when too
        many drop out; nothing comes back if no sum opens in ``_PROBE_ATTEMPTS``.
        """
        indices = [
            rng.choice(client.replay.size, size=batch_size, replace=False)
            for client in self.clients
        ]
        self._remember(indices)
        batch, owner = stack([client.replay for client in self.clients], indices)
        undefended = self._undefended(batch, owner, batch_size, 1)
        releases = self._defended(batch, owner, batch_size, 1, None)
        for _ in range(_PROBE_ATTEMPTS):
            try:
                aggregate = self.session.aggregate(releases)
            except ThresholdError:
                continue
            return self._releases(aggregate, undefended, batch, owner)
        return []

    def _minibatches(self, client: Client) -> np.ndarray:
        """Replay rows of the minibatches of all local steps, one after the other."""
        sampling, rng = self.defense.sampling, client.minibatch_rng
        return np.concatenate(
            [client.replay.sample(self.batch_size, sampling, rng) for _ in range(self.local_steps)]
        )

    def _undefended(
        self, batch: Transitions, owner: Tensor, batch_size: int, minibatches: int
    ) -> Tensor:
        """(clients, P): what each client would send without a defence."""
        if self.local_steps > 1:
            return local_updates(self.agent, batch, owner, len(self.clients), minibatches)
        return self.session.undefended(self._losses(batch), owner, batch_size=batch_size)

    def _defended(
        self,
        batch: Transitions,
        owner: Tensor,
        batch_size: int,
        minibatches: int,
        memory: Tensor | None,
    ) -> Tensor:
        """(clients, P): what each client sends."""
        if self.local_steps > 1:
            updates = self._undefended(batch, owner, batch_size, minibatches)
            return self.session.release_updates(updates, memory)
        losses = self._losses(batch)
        return self.session.release(losses, owner, memory=memory, batch_size=batch_size)

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
