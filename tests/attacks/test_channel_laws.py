"""Attack and floor under channels that are not Gaussian noise of fixed size alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attacks import Channel, Observation, Prior, Transitions, get_attack
from attacks.bounds import record_information
from attacks.learning.channel_simulation import ChannelSimulation
from attacks.reference import Reference
from attacks.scores import score
from tests.attacks.conftest import Client

ROWS = list(range(600, 2000, 120))

LAPLACE = {"mechanism": "laplace", "scale": 0.1, "noise_std": 0.1 * 2**0.5}
GAUSSIAN = {"mechanism": "gaussian", "noise_std": 0.1}
FOLLOWING = {"mechanism": "adaptive-gaussian", "noise_to_signal": 3.0}
LAYER_CLIP = {"mechanism": "layer-clip", "tensor_norm": 0.1}
RANDK = {"mechanism": "randk", "fraction": 0.1}


@pytest.fixture(scope="module")
def known(hopper: Transitions) -> tuple[Prior, Prior, Reference]:
    """The adversary's prior, the best Gaussian one, and the scores' reference; no target in any."""
    rest = torch.tensor([row for row in range(len(hopper)) if row not in ROWS])
    shuffled = hopper[rest[torch.randperm(len(rest), generator=torch.Generator().manual_seed(1))]]
    reference = Reference.fit(shuffled[300:], template=hopper.template())
    return Prior.fit(shuffled[:300]), Prior.fit(shuffled[300:]), reference


def received(client: Client, z: Transitions, seed: int, *mechanisms: dict) -> Observation:
    """One record's gradient after ``mechanisms``."""
    clean = client.observe(z)
    channel = Channel.from_description(mechanisms)
    sizes = [g.numel() for g in clean.gradient.values()]
    generator = torch.Generator().manual_seed(seed)
    flat = ChannelSimulation(channel, sizes).draw(clean.flat_gradient()[None], generator)[0]
    gradient = {
        name: part.view(g.shape)
        for part, (name, g) in zip(flat.split(sizes), clean.gradient.items(), strict=True)
    }
    return Observation(client.model, gradient, client.loss, 1, clean.template, channel)


def floors(
    observations: list[Observation], truth: list[Transitions], population: Prior
) -> np.ndarray:
    information = record_information(observations, truth, population)
    assert information is not None
    return information.floor().numpy()


@pytest.mark.parametrize(
    "mechanisms",
    [
        [LAPLACE],
        [FOLLOWING],
        [{**GAUSSIAN, "noise_std": 0.03}, RANDK],
        [LAYER_CLIP, {**GAUSSIAN, "noise_std": 0.003}],
    ],
    ids=lambda x: "+".join(m["mechanism"] for m in x),
)
def test_map_reaches_the_floor_of_its_channel(
    hopper: Transitions,
    known: tuple[Prior, Prior, Reference],
    mechanisms: list[dict],
) -> None:
    adversary, population, reference = known
    client = Client.build(11, 3, hidden=48)
    truth = [hopper[row] for row in ROWS]
    observations = [received(client, z, i, *mechanisms) for i, z in enumerate(truth)]
    answers = get_attack("map").reconstruct_many(observations, prior=adversary, seed=0)
    errors = [
        score(answer, z, adversary, reference)["nmse"]
        for answer, z in zip(answers, truth, strict=True)
    ]
    limits = floors(observations, truth, population)
    assert 0.002 < np.median(limits) < 0.7
    assert np.median(errors) < 1.5 * np.median(limits)
    # What the floor bounds is the mean; errors have a long tail, and their median lies below it.
    assert np.mean(errors) > np.mean(limits) / 2


def test_layer_clipping_alone_hides_nothing(
    hopper: Transitions, known: tuple[Prior, Prior, Reference]
) -> None:
    client = Client.build(11, 3, hidden=48)
    truth = [hopper[row] for row in ROWS[:3]]
    observations = [received(client, z, 0, LAYER_CLIP) for z in truth]
    answers = get_attack("map").reconstruct_many(observations, prior=known[0], seed=0)
    scores = [score(a, z, known[0], known[2]) for a, z in zip(answers, truth, strict=True)]
    assert np.mean([s["ra"] for s in scores]) > 0.95


def test_laplace_tells_twice_as_much_as_gaussian_noise_of_its_variance(
    hopper: Transitions, known: tuple[Prior, Prior, Reference]
) -> None:
    client, z = Client.build(11, 3, hidden=48), hopper[900]
    laplace, gaussian = (
        record_information([received(client, z, 0, m)], [z], known[1])
        for m in (LAPLACE, {"mechanism": "gaussian", "noise_std": LAPLACE["noise_std"]})
    )
    assert laplace is not None
    assert gaussian is not None
    torch.testing.assert_close(laplace.release, 2 * gaussian.release, rtol=1e-3, atol=1e-6)


def test_noise_that_follows_the_norm_gives_the_norm_away(
    hopper: Transitions, known: tuple[Prior, Prior, Reference]
) -> None:
    """Beyond that of fixed noise of the same size: one direction, 2 n (d log norm)^2."""
    client, z = Client.build(11, 3, hidden=48), hopper[900]
    norm = float(client.observe(z).flat_gradient().norm())
    count = client.observe(z).flat_gradient().numel()
    fixed = {"mechanism": "gaussian", "noise_std": 3.0 * norm / count**0.5}
    following, plain = (
        record_information([received(client, z, 0, m)], [z], known[1]) for m in (FOLLOWING, fixed)
    )
    assert following is not None
    assert plain is not None
    more = torch.linalg.eigvalsh(following.release[0] - plain.release[0])
    # The noise's size is read off the release, so the rest agrees to a few per cent.
    rest = 0.05 * float(torch.linalg.eigvalsh(plain.release[0])[-1])
    assert float(more[-1]) > 10 * rest
    assert float(more[:-1].abs().max()) < rest


@pytest.mark.parametrize(
    ("mechanisms", "kept"),
    [
        (["gaussian", "quantize"], ["gaussian"]),
        (["gaussian", "clip"], ["gaussian"]),
        (["clip", "gaussian", "topk"], ["clip", "gaussian"]),
        (["gaussian", "randk"], ["gaussian", "randk"]),
        (["gaussian", "randk", "quantize"], ["gaussian"]),
        (["gaussian", "adaptive-gaussian"], ["gaussian"]),
        (["layer-clip", "laplace", "secagg"], ["layer-clip", "laplace", "secagg"]),
        (["quantize", "gaussian"], None),
        (["topk"], None),
        (["gaussian", "quantize", "secagg"], None),
        (["gaussian", "randk", "secagg"], None),
    ],
)
def test_processing_after_noise_is_left_out_of_the_bound(
    mechanisms: list[str], kept: list[str] | None
) -> None:
    parameters = {
        "gaussian": GAUSSIAN,
        "laplace": LAPLACE,
        "adaptive-gaussian": FOLLOWING,
        "layer-clip": LAYER_CLIP,
        "randk": RANDK,
        "clip": {"mechanism": "clip", "norm": 1.0},
        "quantize": {"mechanism": "quantize", "points": 3},
        "topk": {"mechanism": "topk", "fraction": 0.1},
        "secagg": {"mechanism": "secagg", "clients": 4},
    }
    channel = Channel.from_description([parameters[name] for name in mechanisms]).bounding()
    assert (channel and [m["mechanism"] for m in channel.mechanisms]) == kept


def test_map_declines_what_it_has_no_likelihood_for(hopper: Transitions) -> None:
    client = Client.build(11, 3, hidden=16)
    clip = {"mechanism": "clip", "norm": 0.1}
    sparse = received(client, hopper[5], 0, RANDK, clip)
    assert "sparse" in get_attack("map").unsupported(sparse)
