"""The learned posterior mean: on channels without a likelihood, and where there is nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from attacks import Channel, Observation, Prior, Reconstruction, Transitions, get_attack
from attacks.bayes.posterior import Coordinates
from attacks.gradients.linear_layers import dense_layers
from attacks.learning.channel_simulation import ChannelSimulation
from attacks.learning.gauss_newton_features import GaussNewtonFeatures
from attacks.learning.regression import CrossFitted
from attacks.learning.simulated_releases import (
    PriorDraws,
    SimulatedReleases,
    record_gradients,
    standardised,
)
from attacks.reference import Reference
from attacks.scores import score
from tests.attacks.conftest import Client

ROWS = list(range(600, 2000, 90))
SMALL = {"samples": 1536, "pilots": 384}


@pytest.fixture(scope="module")
def known(hopper: Transitions) -> tuple[Prior, Reference]:
    """The adversary's prior and the scores' reference; no target in either."""
    rest = [row for row in range(len(hopper)) if row not in ROWS]
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(1))
    shuffled = hopper[torch.tensor(rest)[order]]
    prior = Prior.fit(shuffled[:300], template=template(hopper))
    return prior, Reference.fit(shuffled[300:], template=template(hopper))


def template(z: Transitions):
    return z.template(action_low=-1.0, action_high=1.0)


def released(
    client: Client, truth: list[Transitions], *mechanisms: dict[str, object]
) -> list[Observation]:
    channel = Channel.from_description(mechanisms)
    generator = torch.Generator().manual_seed(5)
    observations = []
    for z in truth:
        clean = client.observe(z, channel)
        sizes = [p.numel() for p in clean.parameters.values()]
        sent = ChannelSimulation(channel, sizes).draw(clean.flat_gradient()[None], generator)[0]
        gradient = {
            name: part.view_as(clean.gradient[name])
            for name, part in zip(clean.parameters, sent.split(sizes), strict=True)
        }
        observations.append(dataclasses.replace(clean, gradient=gradient))
    return observations


def nmse(
    answers: list[Reconstruction], truth: list[Transitions], known: tuple[Prior, Reference]
) -> tuple[float, float]:
    """Mean over targets, and that of the prior's mean."""
    scores = [score(a, z, *known) for a, z in zip(answers, truth, strict=True)]
    return (
        float(np.mean([s["nmse"] for s in scores])),
        float(np.mean([s["nmse_prior"] for s in scores])),
    )


def learned(
    observations: list[Observation], truth: list[Transitions], known: tuple[Prior, Reference]
) -> tuple[float, float]:
    """``nmse`` of the attack."""
    attack = get_attack("learned", **SMALL)
    return nmse(attack.reconstruct_many(observations, prior=known[0], seed=0), truth, known)


def test_learned_beats_map_on_extremely_sparse_gradients(
    hopper: Transitions, known: tuple[Prior, Reference]
) -> None:
    client = Client.build(11, 3, hidden=64)
    truth = [hopper[row] for row in ROWS]
    observations = released(client, truth, {"mechanism": "topk", "fraction": 0.001})
    rival = get_attack("map").reconstruct_many(observations, prior=known[0], seed=0)
    error, blind = learned(observations, truth, known)
    assert error < 0.8 * nmse(rival, truth, known)[0]
    assert error < 0.8 * blind


def test_learned_reads_composed_channels(
    hopper: Transitions, known: tuple[Prior, Reference]
) -> None:
    client = Client.build(11, 3, hidden=64, layer_norm=False)
    truth = [hopper[row] for row in ROWS]
    observations = released(
        client,
        truth,
        {"mechanism": "clip", "norm": 1.0},
        {"mechanism": "topk", "fraction": 0.3},
        {"mechanism": "quantize", "points": 3},
    )
    error, blind = learned(observations, truth, known)
    assert error < 0.5 * blind


def test_a_step_from_the_truth_stays_there_also_under_clipping(
    hopper: Transitions, known: tuple[Prior, Reference]
) -> None:
    client, prior = Client.build(11, 3, hidden=32), known[0]
    truth = [hopper[row] for row in ROWS[:4]]
    norm = float(client.observe(truth[0]).flat_gradient().norm())
    mechanism = {"mechanism": "dp-sgd", "clip_norm": 0.01 * norm, "noise_std": 0.0}
    observations = released(client, truth, mechanism)
    layers = dense_layers(observations[0])
    assert layers is not None
    coordinates = Coordinates.of(observations[0], layers, prior)
    z = Transitions.cat(truth)
    rewards = coordinates.equivalent_rewards(observations[0], layers, z)
    deviation = coordinates.encode(z, rewards)[:, -1:]
    exact = torch.cat([standardised(z, prior), deviation], dim=1)
    step = GaussNewtonFeatures(observations[0], layers, coordinates)
    found = step(torch.stack([o.flat_gradient() for o in observations]), exact)
    assert float((found[:, 15:29] - exact[:, :14]).abs().max()) < 1e-3
    residuals = found[:, 30 : 30 + len(observations[0].gradient)]
    assert float(residuals.max()) < -6


def test_learned_answers_the_prior_mean_where_noise_hides_everything(
    hopper: Transitions, known: tuple[Prior, Reference]
) -> None:
    client = Client.build(11, 3, hidden=64)
    truth = [hopper[row] for row in ROWS]
    observations = released(client, truth, {"mechanism": "gaussian", "noise_std": 1e4})
    answers = get_attack("learned", **SMALL).reconstruct_many(observations, prior=known[0], seed=0)
    error, blind = nmse(answers, truth, known)
    assert error < 1.1 * blind
    found = torch.cat([a.transitions.state for a in answers])
    away = (found - known[0].state_mean) / known[0].state_std
    assert float(away.square().mean()) < 0.05


def test_an_answer_does_not_depend_on_its_companions(
    hopper: Transitions, known: tuple[Prior, Reference]
) -> None:
    client = Client.build(11, 3, hidden=32)
    observations = released(
        client, [hopper[r] for r in ROWS[:3]], {"mechanism": "quantize", "points": 3}
    )
    attack = get_attack("learned", samples=384, pilots=128)
    together = attack.reconstruct_many(observations, prior=known[0], seed=0)
    alone = attack.reconstruct(observations[1], prior=known[0], seed=0)
    torch.testing.assert_close(
        alone.transitions.state, together[1].transitions.state, rtol=1e-3, atol=1e-3
    )
    assert not torch.allclose(together[0].transitions.state, together[1].transitions.state)


@pytest.mark.parametrize(
    ("mechanism", "rows", "reason"),
    [
        ({"mechanism": "scramble"}, 1, "scramble"),
        ({"mechanism": "secagg", "clients": 2}, 1, "sum over clients"),
        ({"mechanism": "quantize", "points": 3}, 2, "mixes 2"),
    ],
)
def test_what_it_cannot_do_is_said(
    hopper: Transitions, mechanism: dict[str, object], rows: int, reason: str
) -> None:
    observation = Client.build(11, 3, hidden=16).observe(
        hopper[:rows], Channel.from_description([mechanism])
    )
    assert reason in get_attack("learned").unsupported(observation)


def test_simulated_records_have_the_prior_and_releases_repeat(
    hopper: Transitions, known: tuple[Prior, Reference]
) -> None:
    client = Client.build(11, 3, hidden=32)
    prior = known[0]
    channel = Channel.from_description([{"mechanism": "gaussian", "noise_std": 0.1}])
    observation = client.observe(hopper[0], channel)
    layers = dense_layers(observation)
    assert layers is not None
    coordinates = Coordinates.of(observation, layers, prior)
    draws = PriorDraws.of(observation, layers, coordinates, prior)
    generator = torch.Generator().manual_seed(0)
    many = draws.draw(20_000, generator)
    assert float(many.action.abs().max()) <= 1.0
    drift = (many.state.mean(dim=0) - prior.state_mean) / prior.state_std
    assert float(drift.abs().max()) < 0.05
    # Between the samples' deviations and the prior's, which are never zero.
    spread, raw = many.state.std(dim=0), prior.raw_std()[:11]
    assert bool((spread > 0.95 * torch.minimum(raw, prior.state_std)).all())
    assert bool((spread < 1.05 * torch.maximum(raw, prior.state_std)).all())
    simulated = SimulatedReleases.of(observation, layers, draws, 100, generator)
    first, second = torch.cat(list(simulated)), torch.cat(list(simulated))
    assert torch.equal(first, second)
    clean = record_gradients(observation, layers, simulated.records)
    one = observation.flat_gradient_at(simulated.records[70])
    torch.testing.assert_close(clean[70], one, rtol=1e-4, atol=1e-5)
    assert float((first - clean).std()) == pytest.approx(0.1, rel=0.02)


def test_regression_trusts_what_predicts_and_states_its_error() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2600, 12, generator=generator)
    noise = torch.randn(2600, 3, generator=generator)
    # Linear, smooth but not linear, and independent of the features.
    signal = torch.stack(
        [features[:, 0] - features[:, 1], features[:, 2].sin() * features[:, 3], noise[:, 2]], 1
    )
    outputs = signal + 0.1 * noise
    fitted = CrossFitted.fit(features[:1600], outputs[:1600], generator)
    fresh = fitted(features[1600:]) - outputs[1600:]
    measured = fresh.square().mean(dim=0) / outputs[1600:].var(dim=0)
    assert float(measured[0]) < 0.02
    assert float(measured[1]) < 0.35
    assert 0.9 < float(measured[2]) < 1.1
    # An average of several regressions errs a little less than each, whose error is stated.
    assert bool((measured < 1.15 * fitted.error).all())
    assert bool((measured > 0.6 * fitted.error).all())
