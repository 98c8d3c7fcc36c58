"""What a client computes in a round of federated averaging: several plain gradient steps.

Every client starts from the broadcast weights and sends the difference to where it arrived, divided
by the public local learning rates: the sum of its local gradients (McMahan et al. 2017, arXiv
1602.05629). The server takes the clients' mean for a gradient of its Adam step, as FedAdam does
(Reddi et al. 2021, arXiv 2003.00295). The sum is added up directly: rounding of the difference
would look like a defence.

What the loss reads besides the shared weights stays as it was broadcast through all local steps:
the target networks, their smoothing noise, and the critic that TD3's actor climbs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attacks.transitions import Transitions
from defenses.layout import Layout
from privguard.agents import Agent


def local_updates(
    agent: Agent, batch: Transitions, owner: Tensor, clients: int, minibatches: int
) -> Tensor:
    """(clients, P): the sum of each client's local gradients, in the order of ``agent.weights``.

    Args:
        agent: at the broadcast weights, which it keeps.
        batch: the records of all clients under each other, equally many of each.
        owner: (n,) the client of each row.
        clients: how many there are.
        minibatches: equal parts that each client's rows are cut into. Local step k uses part k
            modulo their number: as many parts as steps use each record once, one part makes each
            step an epoch over all of them.
    """
    loss = _MeanLoss(agent)
    by_name = agent.local_learning_rates()
    rates = torch.cat(
        [p.new_full((p.numel(),), by_name[name]) for name, p in agent.shared.named_parameters()]
    )
    updates = []
    for client in range(clients):
        own = batch[owner == client]
        size = len(own) // minibatches
        weights = agent.weights
        total = torch.zeros_like(weights)
        for step in range(agent.settings.local_steps):
            at = size * (step % minibatches)
            gradient = loss.gradient(weights, own[slice(at, at + size)])
            total += gradient
            weights = weights - rates * gradient
        updates.append(total)
    return torch.stack(updates)


class _MeanLoss(nn.Module):
    """An agent's loss as a module, so that it can be called at other weights than the agent's."""

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.shared = agent.shared
        self._loss = agent.loss
        self._layout = Layout.of(agent.shared)

    def forward(self, z: Transitions) -> Tensor:
        """The mean loss of ``z``."""
        return self._loss(self.shared, z)

    def gradient(self, weights: Tensor, z: Transitions) -> Tensor:
        """(P,) gradient of the mean loss of ``z`` at ``weights`` (P,)."""
        leaf = weights.detach().requires_grad_(True)
        placed = {f"shared.{name}": part for name, part in self._layout.split(leaf).items()}
        (gradient,) = torch.autograd.grad(torch.func.functional_call(self, placed, (z,)), leaf)
        return gradient
