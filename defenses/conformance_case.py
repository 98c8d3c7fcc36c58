"""The small problem on which every defence is tried."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from defenses.pipeline import Defense
from defenses.session import Session

CLIENTS = 4
BATCH_SIZE = 8


@dataclass
class Case:
    """A tiny model, the clients' stacked minibatches and a loss through them."""

    module: nn.Module
    inputs: Tensor
    targets: Tensor
    owner: Tensor

    def losses(self, rows: Tensor | slice) -> Tensor:
        """Squared errors, (len(rows),)."""
        return 0.5 * (self.module(self.inputs[rows]).squeeze(-1) - self.targets[rows]) ** 2


def example_case(rows_per_client: int = BATCH_SIZE) -> Case:
    """The same at every call."""
    generator = torch.Generator().manual_seed(7)
    module = nn.Sequential(
        skip_init(nn.Linear, 5, 12),
        nn.LayerNorm(12, elementwise_affine=False),
        nn.ReLU(),
        skip_init(nn.Linear, 12, 1),
    )
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -0.4, 0.4, generator=generator)
    rows = CLIENTS * rows_per_client
    return Case(
        module,
        torch.randn(rows, 5, generator=generator),
        torch.randn(rows, generator=generator),
        torch.arange(CLIENTS).repeat_interleave(rows_per_client),
    )


def bound_to(defense: Defense, case: Case, seed: int = 0) -> Session:
    """The defence on the case's model, its noise from ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    return defense.bind(case.module, clients=CLIENTS, batch_size=BATCH_SIZE, generator=generator)
