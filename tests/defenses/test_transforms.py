"""Laws of the transforms of a client's mean gradient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from defenses.adaptive_gaussian import AdaptiveGaussian
from defenses.clipping import Clip
from defenses.gaussian import Gaussian
from defenses.laplace import Laplace
from defenses.layer_clipping import LayerClip
from defenses.layout import Layout
from defenses.quantization import Quantize
from defenses.random_sparsification import RandK
from defenses.sparsification import TopK
from defenses.stages import Payload

LAYOUT = Layout(("w", "b"), (torch.Size([20, 10]), torch.Size([20])))


def gradients(generator, clients=3, scale=1.0):
    return scale * torch.randn(clients, LAYOUT.size, generator=generator)


def test_gaussian_noise_has_the_stated_scale(new_generator):
    stage = Gaussian(0.04)
    zeros = torch.zeros(4, 5000)
    noise = stage.apply(zeros, LAYOUT, new_generator(1), None)
    mean = stage.apply_to_mean(zeros[0], 4, new_generator(2))
    for sample, scale in [(noise.flatten(), 0.2), (mean, 0.1)]:
        assert stats.kstest(sample.numpy(), stats.norm(0, scale).cdf).pvalue > 0.01
        for wrong in (2 / 3, 3 / 2):
            assert stats.kstest(sample.numpy(), stats.norm(0, wrong * scale).cdf).pvalue < 1e-6
    assert stage.describe(1)["noise_std"] == pytest.approx(0.2)


def test_laplace_noise_has_the_stated_scale(new_generator):
    stage = Laplace(0.2)
    zeros = torch.zeros(4, 5000)
    noise = stage.apply(zeros, LAYOUT, new_generator(1), None).flatten().numpy()
    assert stats.kstest(noise, stats.laplace(0, 0.2).cdf).pvalue > 0.01
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(noise, stats.laplace(0, wrong * 0.2).cdf).pvalue < 1e-6
    assert stats.kstest(noise, stats.norm(0, stage.noise_std).cdf).pvalue < 1e-6
    assert stage.describe(1)["noise_std"] == pytest.approx(noise.std(), rel=0.02)


def test_the_mean_of_laplace_noises_is_that_of_clients(new_generator):
    stage = Laplace(0.2)
    mean = stage.apply_to_mean(torch.zeros(20_000), 4, new_generator(2))
    noises = stage.apply(torch.zeros(4, 20_000), LAYOUT, new_generator(3), None).mean(0)
    assert stats.ks_2samp(mean.numpy(), noises.numpy()).pvalue > 0.01
    assert mean.std() == pytest.approx(stage.noise_std / 2, rel=0.02)


def test_adaptive_noise_follows_each_norm(new_generator):
    stage = AdaptiveGaussian(3.0)
    g = torch.stack([torch.ones(20_000), 100 * torch.ones(20_000), torch.zeros(20_000)])
    noise = stage.apply(g, LAYOUT, new_generator(1), None) - g
    for row, scale in ((0, 3.0), (1, 300.0)):
        assert stats.kstest(noise[row].numpy(), stats.norm(0, scale).cdf).pvalue > 0.01
        for wrong in (2 / 3, 3 / 2):
            law = stats.norm(0, wrong * scale)
            assert stats.kstest(noise[row].numpy(), law.cdf).pvalue < 1e-6
    assert not noise[2].any()


def test_adaptive_noise_gives_the_norm_away(new_generator):
    g = torch.randn(1, 100_000, generator=new_generator(0))
    sent = AdaptiveGaussian(10.0).apply(g, LAYOUT, new_generator(1), None)
    assert sent.norm() / math.sqrt(1 + 10.0**2) == pytest.approx(float(g.norm()), rel=0.01)


def test_layer_clip_bounds_every_tensor_and_keeps_its_direction(new_generator):
    g = gradients(new_generator(0), scale=10.0)
    g[1] *= 1e-4
    g[2] = 0
    out = LayerClip(2.0).apply(g, LAYOUT, new_generator(0), None)
    for name, part in LAYOUT.split(out).items():
        before = LAYOUT.split(g)[name][0].flatten()
        assert part[0].norm() == pytest.approx(2.0, rel=1e-5)
        assert torch.cosine_similarity(part[0].flatten(), before, dim=0) == pytest.approx(1.0)
    torch.testing.assert_close(out[1:], g[1:])


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 1.0])
def test_randk_is_unbiased_and_keeps_coordinates_uniformly(new_generator, fraction):
    g = gradients(new_generator(0), clients=1)
    stage, draws = RandK(fraction), 4000
    sent = stage.apply(g.expand(draws, -1), LAYOUT, new_generator(1), None)
    kept = math.ceil(fraction * LAYOUT.size)
    gain = LAYOUT.size / kept
    assert ((sent != 0).sum(1) == kept).all()
    torch.testing.assert_close(sent, torch.where(sent != 0, gain * g, 0.0))
    counts = (sent != 0).sum(0).numpy()
    if fraction < 1:
        assert stats.chisquare(counts).pvalue > 0.001
    error = (sent.double().mean(0) - g[0].double()).abs()
    assert (error <= 5 * g[0].abs() * math.sqrt(max(gain - 1, 0) / draws) + 1e-6).all()


def test_randk_draws_for_every_client_and_round(new_generator):
    rng = new_generator(0)
    g = torch.ones(2, LAYOUT.size)
    first, second = (RandK(0.3).apply(g, LAYOUT, rng, None) for _ in range(2))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)


def test_clip_bounds_the_norm_and_keeps_direction(new_generator):
    g = gradients(new_generator(0), scale=10.0)
    g[1] *= 1e-4
    g[2] = 0
    out = Clip(2.0).apply(g, LAYOUT, new_generator(0), None)
    assert out[0].norm() == pytest.approx(2.0, rel=1e-5)
    assert torch.cosine_similarity(out[0], g[0], dim=0) == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(out[1:], g[1:])


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_quantize_is_unbiased_and_on_its_grid(new_generator, bits):
    g = gradients(new_generator(0), clients=1)
    rng = new_generator(1)
    stage = Quantize(bits)
    draws = torch.cat([stage.apply(g, LAYOUT, rng, None) for _ in range(2000)])
    for name, part in LAYOUT.split(draws).items():
        truth = LAYOUT.split(g)[name]
        scale = truth.abs().max()
        step = 2 * scale / stage.steps
        codes = (part + scale) / step
        assert (codes - codes.round()).abs().max() < 2e-2
        assert part.abs().max() <= scale * (1 + 1e-6)
        assert (part - truth).abs().max() <= step * (1 + 1e-3)
        error = (part.double().mean(0) - truth[0].double()).abs()
        assert error.max() < 5 * step / 2 / math.sqrt(2000)
    assert len(draws[:, 0].unique()) == 2


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_quantize_keeps_zeros(new_generator, bits):
    g = gradients(new_generator(0))
    g[:, ::2] = 0
    out = Quantize(bits).apply(g, LAYOUT, new_generator(1), None)
    assert not out[:, ::2].any()


def test_quantize_sends_a_zero_tensor_as_zero(new_generator):
    zeros = torch.zeros(2, LAYOUT.size)
    for bits in (1, 8):
        assert not Quantize(bits).apply(zeros, LAYOUT, new_generator(0), None).any()


@given(fraction=st.floats(0.001, 1.0), rounds=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_topk_loses_nothing_over_rounds(fraction, rounds, seed):
    rng = torch.Generator().manual_seed(seed)
    memory = torch.zeros(3, LAYOUT.size)
    stage = TopK(fraction)
    for _ in range(rounds):
        g, old = gradients(rng), memory.clone()
        sent = stage.apply(g, LAYOUT, rng, memory)
        assert torch.equal(sent + memory, g + old)
        assert not (sent * memory).any()
        kept = math.ceil(fraction * LAYOUT.size)
        assert (sent != 0).sum(1).tolist() == [kept] * 3
        smallest = torch.where(sent == 0, math.inf, sent.abs()).amin(1)
        assert (memory.abs().amax(1) <= smallest).all()


def test_topk_without_memory_drops_the_rest(new_generator):
    g = gradients(new_generator(0))
    sent = TopK(0.1).apply(g, LAYOUT, new_generator(0), None)
    assert torch.equal(sent[sent != 0], g[sent != 0])


def test_transforms_leave_their_input_alone(new_generator):
    for stage in (
        Gaussian(1.0),
        Laplace(1.0),
        AdaptiveGaussian(1.0),
        Clip(0.1),
        LayerClip(0.1),
        Quantize(4),
        TopK(0.1),
        RandK(0.1),
    ):
        g = gradients(new_generator(0))
        before = g.clone()
        stage.apply(g, LAYOUT, new_generator(0), torch.zeros_like(g))
        assert torch.equal(g, before)


def test_payload_rounds_up_to_bytes():
    assert Payload(3, bits=1).bytes == 1
    assert Payload(9, bits=1, header=4).bytes == 6
    assert Payload(10, bits=8, index_bits=32).bytes == 50
