"""Laws of the transforms of a client's mean gradient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from defenses.clipping import Clip
from defenses.gaussian import Gaussian
from defenses.layout import Layout
from defenses.quantization import Quantize
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
    for stage in (Gaussian(1.0), Clip(0.1), Quantize(4), TopK(0.1)):
        g = gradients(new_generator(0))
        before = g.clone()
        stage.apply(g, LAYOUT, new_generator(0), torch.zeros_like(g))
        assert torch.equal(g, before)


def test_payload_rounds_up_to_bytes():
    assert Payload(3, bits=1).bytes == 1
    assert Payload(9, bits=1, header=4).bytes == 6
    assert Payload(10, bits=8, index_bits=32).bytes == 50
