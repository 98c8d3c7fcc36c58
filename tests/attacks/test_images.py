"""Attacks on convolutional networks: gradients, priors and scores of states that are images."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from attacks import Observation, Prior, Reconstruction, Transitions, available_attacks, get_attack
from attacks.channel import Channel
from attacks.conformance_problems import Problem, screen_problem
from attacks.gradients.choice import choose_gradients
from attacks.gradients.convolutional import ConvGradients, convolutional_layers
from attacks.gradients.dense import LoopGradients
from attacks.knowledge.frame_model import FrameModel
from attacks.pixel_scores import LARGEST_PSNR, pixel_scores
from attacks.prior import MODEL_LIMIT
from attacks.reference import Reference
from attacks.scores import score

SPARSE = Channel.from_description([{"mechanism": "topk", "fraction": 0.5}])


@pytest.fixture(scope="module")
def screen() -> Problem:
    return screen_problem()


@pytest.fixture(scope="module")
def atari() -> Problem:
    """A bright square that moves to the right by two pixels a step, 84x84x4, on a grey wall."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randint(4, 60, (40,), generator=generator)
    top = torch.randint(4, 70, (40,), generator=generator)
    wall = torch.randint(60, 90, (84, 84), generator=generator, dtype=torch.uint8)
    frames = wall.repeat(40, 5, 1, 1)
    for i in range(40):
        for k in range(5):
            x, y = int(left[i]) + 2 * k, int(top[i])
            frames[i, k, y : y + 6, x : x + 6] = 220
    z = Transitions(
        frames[:, :4],
        torch.randint(3, (40,), generator=generator),
        torch.randn(40, generator=generator),
        frames[:, 1:],
        torch.zeros(40),
    )

    def network() -> nn.Sequential:
        layers = [
            nn.utils.skip_init(nn.Conv2d, 4, 8, 8, 4),
            nn.ReLU(),
            nn.Flatten(),
            nn.utils.skip_init(nn.Linear, 3200, 3),
        ]
        with torch.no_grad():
            for layer in layers:
                for parameter in layer.parameters():
                    parameter.uniform_(-0.05, 0.05, generator=generator)
        return nn.Sequential(Scaled(), *layers)

    target = network().requires_grad_(False)
    return Problem("atari", network(), z.template(action_count=3), z, target)


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / 255


@pytest.mark.parametrize("channel", [Channel(), SPARSE])
@pytest.mark.parametrize("size", [1, 2])
def test_convolutional_gradients_agree_with_double_backpropagation(
    screen: Problem, channel: Channel, size: int
) -> None:
    observations = [
        dataclasses.replace(screen.observe(list(range(k, k + size))), channel=channel)
        for k in (0, 10)
    ]
    if channel.zeroed:
        for observation in observations:
            for gradient in observation.gradient.values():
                gradient[gradient.abs() < gradient.abs().mean()] = 0.0
    fakes = screen.transitions[list(range(20, 20 + 4 * size))]
    actions = torch.rand(len(fakes), 2, dtype=torch.float64, generator=torch.Generator())
    results = []
    for gradients in (LoopGradients(observations, 2), choose_gradients(observations, 2)):
        state = fakes.state.double().requires_grad_()
        relaxed = actions.clone().requires_grad_()
        z = Transitions(
            state, relaxed, fakes.reward, fakes.next_state.double(), fakes.terminated * 0
        )
        with gradients:
            dot, square = gradients.terms(z)
            value = (square - 2 * dot + gradients.target_square).sum()
            results.append([dot, square, *torch.autograd.grad(value, [state, relaxed])])
    assert isinstance(gradients, ConvGradients)
    for slow, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-8, atol=1e-10)


def test_networks_that_are_no_stack_of_layers_are_left_to_autograd(screen: Problem) -> None:
    class Shared(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) + self.inner(x.flip(-1))

    model = Shared(screen_problem().model)
    names = dict(model.named_parameters())
    gradient = {name: torch.zeros_like(p) for name, p in names.items()}
    observation = Observation(model, gradient, screen.loss, 1, screen.template)
    assert convolutional_layers(observation) is None


@pytest.mark.parametrize("name", available_attacks())
def test_no_attack_crashes_on_frames(atari: Problem, name: str) -> None:
    observation = atari.observe([0])
    prior = Prior.fit(atari.transitions[10:], template=atari.template)
    attack = get_attack(name)
    reason = attack.unsupported(observation)
    if reason:
        assert "\n" not in reason
        return
    answer = attack.reconstruct(observation, prior=prior, seed=0)
    assert answer.transitions.state.shape == (1, 4, 84, 84)
    assert float(answer.transitions.state.min()) >= 0
    assert float(answer.transitions.state.max()) <= 255


def test_a_prior_of_images_has_deviations_but_no_covariance(atari: Problem) -> None:
    prior = Prior.fit(atari.transitions, template=atari.template)
    assert atari.template.state_size > MODEL_LIMIT
    assert prior.state_std.shape == (28224,)
    with pytest.raises(ValueError, match="no covariance"):
        prior.joint_covariance()
    nothing = Prior.none(atari.template)
    assert float(nothing.state_mean.mean()) == 127.5
    assert float(nothing.state_std[0]) == pytest.approx(255 / 12**0.5)


def test_frames_are_predicted_better_than_by_standing_still(atari: Problem) -> None:
    prior = Prior.fit(atari.transitions[8:], template=atari.template)
    fresh = atari.transitions[:8]
    predicted, reward = prior.predict(fresh.state, fresh.action) or (None, None)
    assert predicted is not None
    assert torch.equal(predicted[:, :3], fresh.state[:, 1:].float())
    error = (predicted[:, 3] - fresh.next_state[:, 3]).square().mean()
    still = (fresh.state[:, 3].float() - fresh.next_state[:, 3]).square().mean()
    assert error < 0.5 * still
    assert reward is not None
    assert reward.shape == (8,)


def test_what_cannot_be_predicted_stands_still(atari: Problem) -> None:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(256, (30, 5, 20, 20), generator=generator).float()
    model = FrameModel(noise[:, :4], noise[:, 1:], 0.0, 255.0)
    held = noise[4::5]
    error = (model(held[:, :4])[:, 3] - held[:, 4]).square().mean()
    assert error <= (held[:, 3] - held[:, 4]).square().mean()
    assert not FrameModel.fits(noise[:, :4], noise[:, :4])


def test_pixel_scores_know_the_exact_image_and_count_grey_levels() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(256, (2, 4, 84, 84), generator=generator, dtype=torch.uint8)
    exact = pixel_scores(truth.float() + 0.3, truth)
    assert exact["exact_pixels"] == 1
    assert exact["ssim"] == pytest.approx(1, abs=1e-3)
    assert pixel_scores(truth, truth)["psnr"] == LARGEST_PSNR
    off = truth.float()
    off[:, :, :42] += 10
    scores = pixel_scores(off, truth)
    assert scores["psnr"] == pytest.approx(10 * math.log10(255**2 / 50), abs=1e-4)
    assert scores["exact_pixels"] == 0.5
    assert pixel_scores(off * float("nan"), truth)["psnr"] is None


def test_scores_of_frames_are_in_grey_levels_and_an_action_is_right_or_wrong(
    atari: Problem,
) -> None:
    z = atari.transitions
    prior = Prior.fit(z[10:], template=atari.template)
    reference = Reference.fit(z[2:], template=atari.template)
    truth = z[:2]
    wrong = Transitions(
        truth.state.float() + 7.9,
        torch.stack([truth.action[0], (truth.action[1] + 1) % 3]),
        truth.reward,
        truth.next_state.float(),
        truth.terminated,
    )
    scores = score(Reconstruction(wrong, 0.0, 0.0), truth, prior, reference)
    pixels = int((reference.state >= 1e-6).sum())
    assert scores["ra"] == pytest.approx((pixels + 0.5) / (pixels + 1))
    assert scores["exact_pixels"] == 0
    assert scores["identified"] == 1
    assert scores["psnr"] is not None
    assert scores["psnr_prior"] is not None
    assert scores["psnr"] > scores["psnr_prior"]
    worse = dataclasses.replace(wrong, state=wrong.state + 0.2)
    assert (score(Reconstruction(worse, 0.0, 0.0), truth, prior, reference)["ra"] or 0) < 0.01
