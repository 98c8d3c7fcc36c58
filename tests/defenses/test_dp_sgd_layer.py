"""Per-layer clipping against per-sample gradients from torch.func, and its noise."""

import math

import pytest
import torch
from scipy import stats

import defenses
from defenses import DefenseError


def clipped_by_tensor(problem, norm):
    parts = problem.layout.split(problem.per_sample_gradients())
    rows = []
    for part in parts.values():
        flat = part.flatten(1)
        norms = flat.norm(dim=1, keepdim=True)
        rows.append(flat * (norm / (norms + 1e-6)).clamp(max=1.0))
    return torch.cat(rows, dim=1)


@pytest.mark.parametrize("counts", [(8, 8, 8, 8), (3, 0, 9, 1)])
@pytest.mark.parametrize("clip", [0.05, 100.0])
def test_every_tensor_is_clipped_by_itself(new_problem, counts, clip):
    problem = new_problem(counts)
    expected = problem.sums(clipped_by_tensor(problem, clip)) / 8
    with problem.bind(defenses.parse(f"dp-sgd-layer=0@clip={clip}")) as session:
        releases = session.release(problem.losses, problem.owner)
        mean = session.mean_release(problem.losses, problem.owner)
    torch.testing.assert_close(releases, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(mean, expected.mean(0), atol=1e-6, rtol=1e-5)


def test_noise_is_for_the_joint_norm_of_all_tensors(problem):
    with problem.bind(defenses.parse("dp-sgd-layer=0@clip=0.5")) as session:
        clean = session.release(problem.losses, problem.owner)
    with problem.bind(defenses.parse("dp-sgd-layer=0.7@clip=0.5")) as session:
        (stated,) = session.describe()
        noise = (session.release(problem.losses, problem.owner) - clean).flatten()
        mean = session.mean_release(problem.losses, problem.owner) - clean.mean(0)
    tensors = len(problem.layout.names)
    assert stated["tensors"] == tensors
    assert stated["noise_std"] == pytest.approx(0.7 * 0.5 * math.sqrt(tensors) / 8)
    assert stats.kstest(noise.numpy(), stats.norm(0, stated["noise_std"]).cdf).pvalue > 0.01
    assert stats.kstest(mean.numpy(), stats.norm(0, stated["noise_std"] / 2).cdf).pvalue > 0.01


def test_samples_without_a_finite_gradient_count_as_zero(problem):
    problem.data[2][3] = float("inf")
    problem.data[0][20] = float("nan")
    gradients = clipped_by_tensor(problem, 1.0)
    gradients[[3, 20]] = 0.0
    expected = problem.sums(gradients) / 8
    with problem.bind(defenses.parse("dp-sgd-layer=0")) as session:
        releases = session.release(problem.losses, problem.owner)
        assert session.nonfinite_count == 2
    torch.testing.assert_close(releases, expected, atol=1e-6, rtol=1e-5)


def test_clip_must_be_positive():
    with pytest.raises(DefenseError, match="must be above 0"):
        defenses.parse("dp-sgd-layer=0@clip=0")
