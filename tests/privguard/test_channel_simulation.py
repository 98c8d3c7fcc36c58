"""The adversary's simulation of a channel has the law of the defence itself."""

from __future__ import annotations

import importlib.util
import itertools

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import defenses
from attacks.channel import Channel
from attacks.learning.channel_simulation import ChannelSimulation, not_simulated
from defenses import available_defenses

DRAWS = 600
"""A multiple of every number of clients in a sum."""

COMPOSED = (
    "clip=0.5+quantize=8",
    "topk=0.1+quantize=2",
    "gaussian=0.01+quantize=1",
    "gaussian=0.01+topk=0.2",
    "dp-sgd=0.1+topk=0.1+quantize=4",
    "clip=0.5+gaussian=0.01+secagg=2",
    "layer-clip=0.1+laplace=0.01+secagg=2",
    "adaptive-gaussian=1.0+randk=0.3+quantize=4",
    "gaussian=0.01+secagg",
    "distributed-dp=2.0@clip=0.5",
)
SUMMED = 4
"""Clients of a session whose defence sums over all of them."""


def built_in() -> list[str]:
    texts = []
    for name, info in available_defenses().items():
        if not info.cls.__module__.startswith("defenses."):
            continue  # a plug-in of another test
        if name == "he" and not importlib.util.find_spec("tenseal"):
            continue
        levels = [str(level) for level in info.grid if info.level is not None]
        texts += [f"{name}={level}" for level in levels] or [name]
    return texts


def module() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))


def released_and_simulated(text: str) -> tuple[Tensor, Tensor]:
    """(n, P) each: many releases of one record by the defence, and by the simulation."""
    defense = defenses.parse(text)
    network, record = module(), torch.tensor([[0.7, -1.3, 0.2, 2.0]])

    def losses(rows: Tensor | slice) -> Tensor:
        return 0.5 * (network(record.expand(clients, -1)[rows]).squeeze(-1) - 5.0) ** 2

    generator = torch.Generator().manual_seed(0)
    sums_all = any("clients" in m and m["clients"] is None for m in defense.describe())
    clients = SUMMED if sums_all else DRAWS
    with defense.bind(network, clients=clients, batch_size=1, generator=generator) as session:
        owner = torch.arange(clients)
        clean = session.undefended(losses, owner).repeat(DRAWS // clients, 1)
        views = [
            view
            for _ in range(DRAWS // clients)
            for view in session.aggregate(session.release(losses, owner)).views
        ]
        released = torch.stack([view.mean for view in views])
        sizes = session.layout.sizes
        description = session.describe()
    simulation = ChannelSimulation(Channel.from_description(description), sizes)
    return released, simulation.draw(clean, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("text", [*built_in(), *COMPOSED])
def test_simulation_has_the_law_of_the_defence(text: str) -> None:
    released, simulated = released_and_simulated(text)
    assert released.shape == simulated.shape
    scale = float(released.abs().max())
    spread = released.std(dim=0)
    if float(spread.max()) < 1e-6 * scale:
        torch.testing.assert_close(simulated, released, rtol=1e-5, atol=1e-5 * scale)
        return
    standard_error = (spread.square() + simulated.std(dim=0).square()).sqrt() / len(released) ** 0.5
    gap = (released.mean(dim=0) - simulated.mean(dim=0)).abs()
    assert bool((gap <= 5 * standard_error + 1e-5 * scale).all())
    # Squares differ by their own standard errors: the second moments agree.
    squares, ours = released.square(), simulated.square()
    error = (squares.var(dim=0) + ours.var(dim=0)).sqrt() / len(released) ** 0.5
    assert bool(
        ((squares.mean(dim=0) - ours.mean(dim=0)).abs() <= 5 * error + 1e-5 * scale**2).all()
    )
    # Joint laws: random directions, whose distribution functions agree.
    directions = torch.randn(released.shape[1], 4, generator=torch.Generator().manual_seed(2))
    for direction in directions.T:
        along = [(x @ direction).numpy() for x in (released, simulated)]
        assert stats.ks_2samp(*along).pvalue > 1e-4
    assert released.unique(dim=0).shape[0] > 1


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("gaussian=0.1", "gaussian=0.15"),
        ("quantize=2", "quantize=3"),
        ("topk=0.1", "topk=0.2"),
        ("distributed-dp=2.0", "distributed-dp=3.0"),
    ],
)
def test_another_level_would_be_noticed(right: str, wrong: str) -> None:
    released, _ = released_and_simulated(right)
    _, simulated = released_and_simulated(wrong)
    second = [x.square().mean(dim=0) for x in (released, simulated)]
    error = (released.square().var(dim=0) + simulated.square().var(dim=0)).sqrt() / DRAWS**0.5
    assert bool(((second[0] - second[1]).abs() > 5 * error + 1e-5).any())


def test_every_built_in_mechanism_is_simulated() -> None:
    for text in built_in():
        description = defenses.parse(text).describe(clients=SUMMED)
        assert not_simulated(Channel.from_description(description)) == ""


def test_order_of_mechanisms_matters_to_both() -> None:
    for text in itertools.permutations(("topk=0.1", "gaussian=0.01")):
        released, simulated = released_and_simulated("+".join(text))
        zeros = [(x == 0).float().mean() for x in (released, simulated)]
        assert zeros[0] == zeros[1]


def test_an_unknown_mechanism_is_named() -> None:
    channel = Channel.from_description([{"mechanism": "scramble"}])
    assert "scramble" in not_simulated(channel)
    with pytest.raises(ValueError, match="scramble"):
        ChannelSimulation(channel, [3])
