"""Every defence passes the shared suite, and the suite catches broken ones."""

from dataclasses import dataclass

import pytest
import torch

import defenses
from defenses.gaussian import Gaussian
from defenses.secure_aggregation import SecureAggregator

COMPOSED = [
    "none",
    "dp-sgd=0",
    "dp-sgd=0.3@clip=0.5+gaussian=0.001",
    "dp-sgd=1.0+topk=0.1+quantize=8+secagg=2",
    "clip=1.0+gaussian=0.1+secagg=4",
    "topk=0.01+clip=1.0+quantize=4",
    "layer-clip=0.1+laplace=0.01+randk=0.1+quantize=8+secagg=2",
    "clip=1.0+adaptive-gaussian=1.0",
    "gaussian=0.1+secagg=4@dropout=0.3",
    "secagg=2@dropout=0.2",
    "quantize=4+distributed-dp=1.0@clip=0.5@dropout=0.2@threshold=0.75",
    "distributed-dp=0",
]


@pytest.mark.parametrize("text", [*defenses.available_defenses(), *COMPOSED])
def test_conforms(text):
    if text == "he":
        pytest.importorskip("tenseal")
    defenses.check_defense(text)


@pytest.fixture
def register(monkeypatch):
    monkeypatch.setattr("defenses.registry._REGISTRY", dict(defenses.registry._REGISTRY))
    return defenses.register_defense(
        "broken", stage="transform", level="variance", grid=(1.0,), summary="x", guarantee="none"
    )


class GlobalNoise(Gaussian):
    """Draws from the global generator."""

    def apply(self, releases, layout, generator, memory):
        return releases + torch.randn_like(releases)


class WrongMean(Gaussian):
    """Noise on the mean as large as on one client."""

    def apply_to_mean(self, mean, clients, generator):
        return super().apply_to_mean(mean, 1, generator)


class Flat(Gaussian):
    """Loses the client dimension."""

    def apply(self, releases, layout, generator, memory):
        return super().apply(releases, layout, generator, memory).mean(0)


class Claims(Gaussian):
    """Promises differential privacy that nothing accounts for."""

    def describe(self, batch_size):
        return super().describe(batch_size) | {"formal_guarantee": True}


class Tensors(Gaussian):
    """Describes itself in tensors."""

    def describe(self, batch_size):
        return super().describe(batch_size) | {"noise_std": torch.tensor(1.0)}


class WrongShortcut(SecureAggregator):
    """Trains with another mean than the one it shows."""

    def mean(self, releases):
        return super().mean(releases) + self.error_bound


def test_catches_a_mean_that_is_not_the_aggregates(monkeypatch):
    monkeypatch.setattr("defenses.secure_aggregation.SecureAggregator", WrongShortcut)
    with pytest.raises(defenses.ConformanceError, match="aggregate_mean differs"):
        defenses.check_defense("secagg@range=1e9")


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (GlobalNoise, "the global random generator was used"),
        (WrongMean, "times the standard deviation"),
        (Flat, "release has shape"),
        (Claims, "without an accountant"),
        (Tensors, "description: raised TypeError"),
    ],
)
def test_catches(register, base, message):
    @register
    @dataclass(frozen=True)
    class Broken(base):
        pass

    with pytest.raises(defenses.ConformanceError, match=message) as caught:
        defenses.check_defense("broken")
    assert all(failure.startswith("broken=1.0: ") for failure in caught.value.failures)
