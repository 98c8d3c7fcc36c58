"""Row spaces must tell real, correlated records apart, with any activation, and say when not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from attacks import Channel, Observation, Prior, Transitions, get_attack
from attacks.batches.row_spaces import RowSpace, mixing_layers
from attacks.conformance_problems import box_problem
from attacks.gradients.layer_calls import LayerCalls
from attacks.reference import Reference
from attacks.scores import score
from tests.attacks.conftest import Client, errors, observe_quantiles


def split(z: Transitions, batch: int) -> tuple[Transitions, Prior, Reference]:
    """A batch, a prior of 300 other records, and the scale of the others, none in two of them."""
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(1))
    template = z.template(action_low=-1.0, action_high=1.0)
    prior = Prior.fit(z[order[batch : batch + 300]], template=template)
    return z[order[:batch]], prior, Reference.fit(z[order[batch + 300 :]], template=template)


def noisy(observation: Observation, std: float) -> Observation:
    generator = torch.Generator().manual_seed(2)
    received = {
        name: g + std * torch.randn(g.shape, generator=generator)
        for name, g in observation.gradient.items()
    }
    return replace(observation, gradient=received, channel=Channel(noise_std=std))


@pytest.mark.parametrize("layer_norm", [False, True])
def test_batches_are_exact_without_noise(hopper: Transitions, layer_norm: bool) -> None:
    truth, prior, _ = split(hopper, 6)
    client = Client.build(11, 3, layer_norm=layer_norm)
    answer = get_attack("cocktail").reconstruct(client.observe(truth), prior=prior, seed=0)
    assert float(errors(answer, truth).max()) < 1e-3
    assert answer.objective < 1e-4
    assert "told apart" not in answer.notes


def test_smooth_activations_and_several_outputs_a_record(hopper: Transitions) -> None:
    """No unit is silent, and no head is scalar: output gradients have no known form."""
    truth, prior, _ = split(hopper, 6)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(14, 96), nn.LayerNorm(96), nn.SiLU(), nn.Linear(96, 96), nn.Tanh(),
            nn.Linear(96, 5),
        )  # fmt: skip
    observation = observe_quantiles(model, truth, prior.template)
    assert get_attack("spear").unsupported(observation)
    answer = get_attack("cocktail").reconstruct(observation, prior=prior, seed=0)
    assert float(errors(answer, truth).max()) < 1e-2


def test_noise_takes_accuracy_gradually(hopper: Transitions) -> None:
    truth, prior, reference = split(hopper, 4)
    clean = Client.build(11, 3).observe(truth)
    rms = float(clean.flat_gradient().square().mean().sqrt())
    errors = []
    for share in (0.01, 0.1, 100.0):
        observation = noisy(clean, share * rms)
        attack = get_attack("cocktail", rounds=2, starts=24)
        answer = attack.reconstruct(observation, prior=prior, seed=0)
        scores = score(answer, truth, prior, reference)
        assert scores["nmse"] is not None
        assert scores["nmse_prior"] is not None
        errors.append(scores["nmse"] / scores["nmse_prior"])
    assert errors[0] < 0.05
    assert errors[0] < errors[1] < 0.9
    assert errors[2] == pytest.approx(1.0)  # drowned: nothing but the prior's mean is claimed
    assert "0 of 4 records told apart" in answer.notes


def test_true_inputs_lie_in_the_row_spaces(hopper: Transitions) -> None:
    """What noise moves them by is as large as ``misfit`` says."""
    truth, _, _ = split(hopper, 3)
    client = Client.build(11, 3)
    observation = client.observe(truth)
    observation = noisy(
        observation, 0.01 * float(observation.flat_gradient().square().mean()) ** 0.5
    )
    layers = mixing_layers(observation)
    with LayerCalls([layer.module for layer in layers]) as hooks:
        client.loss(client.model, truth)
    seen = {module: x.detach() for module, x, _ in hooks.calls}
    tested = 0
    for layer in layers:
        space = RowSpace.of(observation, layer, seen[layer.module])
        assert space is not None
        if space.basis.shape[1] == 3 and space.room > 50:
            share = space.misfit(seen[layer.module].double()) / space.room
            assert bool(((share > 0.4) & (share < 2.5)).all())
            tested += 1
    assert tested >= 2


def test_order_of_records_does_not_matter_and_seeds_decide(hopper: Transitions) -> None:
    truth, prior, _ = split(hopper, 3)
    client = Client.build(11, 3)
    attack = get_attack("cocktail", starts=24)
    first, again = (
        attack.reconstruct(client.observe(truth), prior=prior, seed=0).transitions for _ in range(2)
    )
    assert torch.equal(first.state, again.state)
    flipped = attack.reconstruct(client.observe(truth[[2, 1, 0]]), prior=prior, seed=0)
    assert float(errors(flipped, truth).max()) < 1e-3


def test_it_says_why_it_cannot(hopper: Transitions) -> None:
    attack = get_attack("cocktail")
    client = Client.build(11, 3, hidden=32)
    assert "not mixed" in attack.unsupported(client.observe(hopper[:1]))
    assert "at least 40 outputs" in attack.unsupported(client.observe(hopper[:40]))
    assert "equations for the 14 coordinates" in attack.unsupported(client.observe(hopper[:30]))
    sparse = replace(
        client.observe(hopper[:4]),
        channel=Channel.from_description([{"mechanism": "topk", "fraction": 0.1}]),
    )
    assert "not sent" in attack.unsupported(sparse)
    # A head of one output mixes no records, and the first layer alone leaves too much room.
    assert "equations" in attack.unsupported(box_problem().observe([0, 1, 2]))
