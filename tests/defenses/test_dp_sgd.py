"""DP-SGD against per-sample gradients from torch.func, and its noise against the stated scale."""

import copy
import pickle

import pytest
import torch
from scipy import stats
from torch import nn

import defenses
from defenses import DefenseError
from defenses.ghost_clipping import GhostClipping


def clipped(gradients, norm):
    norms = gradients.norm(dim=1, keepdim=True)
    return gradients * (norm / (norms + 1e-6)).clamp(max=1.0)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("clip", [0.3, 1.0, 100.0])
@pytest.mark.parametrize("counts", [(8, 8, 8, 8), (3, 0, 9, 1)])
def test_clipped_sums_equal_the_oracle(new_problem, counts, clip, affine):
    problem = new_problem(counts, affine=affine)
    expected = problem.sums(clipped(problem.per_sample_gradients(), clip)) / 8
    with problem.bind(defenses.parse(f"dp-sgd=0@clip={clip}")) as session:
        releases = session.release(problem.losses, problem.owner)
        mean = session.mean_release(problem.losses, problem.owner)
    torch.testing.assert_close(releases, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(mean, expected.mean(0), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("counts", [(8, 8, 8, 8), (3, 0, 9, 1)])
def test_one_pass_gives_what_two_passes_of_opacus_give(new_problem, new_generator, counts):
    released, norms = [], []
    for by_opacus in (False, True):
        problem = new_problem(counts)
        clipping = GhostClipping(
            problem.module,
            problem.layout,
            len(counts),
            new_generator(0),
            clip_norm=0.5,
            noise_multiplier=0.1,
        )
        if by_opacus:
            clipping._passes._layers = None
        for _ in range(2):  # the first call compares itself with autograd
            release = clipping.per_client(problem.losses, problem.owner, 8)
        released.append(release)
        norms.append(clipping.sample_norms)
        clipping.close()
    torch.testing.assert_close(*released, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(*norms)


def test_convolutions_equal_the_oracle(new_problem):
    problem = new_problem()
    torch.manual_seed(0)
    problem.module = nn.Sequential(
        nn.Unflatten(1, (1, 1, 5)),
        nn.Conv2d(1, 3, (1, 3)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(9, 1),
        nn.Flatten(0),
    )
    problem.data = (problem.data[0],)
    expected = problem.sums(clipped(problem.per_sample_gradients(), 0.5)) / 8
    with problem.bind(defenses.parse("dp-sgd=0@clip=0.5")) as session:
        releases = session.release(problem.losses, problem.owner)
    torch.testing.assert_close(releases, expected, atol=1e-6, rtol=1e-5)


def test_one_record_changes_a_release_by_at_most_the_sensitivity(new_problem):
    problem = new_problem((8,))
    with problem.bind(defenses.parse("dp-sgd=0@clip=0.5")) as session:
        full = session.release(problem.losses, problem.owner)
        for left_out in range(8):
            rest = torch.tensor([row for row in range(8) if row != left_out])
            without = session.release(
                lambda r, rest=rest: problem.losses(rest[r]), problem.owner[1:]
            )
            assert (full - without).norm() <= 0.5 / 8 + 1e-6


def test_noise_has_the_stated_scale(problem):
    defense = defenses.parse("dp-sgd=0.7@clip=2.0")
    std = defense.describe(batch_size=8)[0]["noise_std"]
    assert std == pytest.approx(0.7 * 2.0 / 8)
    with problem.bind(defenses.parse("dp-sgd=0@clip=2.0")) as session:
        clean = session.release(problem.losses, problem.owner)
    with problem.bind(defense) as session:
        noise = session.release(problem.losses, problem.owner) - clean
        means = [session.mean_release(problem.losses, problem.owner) for _ in range(4)]
        mean_noise = torch.stack(means) - clean.mean(0)
    for sample, scale in [(noise.flatten(), std), (mean_noise.flatten(), std / 2)]:
        assert stats.kstest(sample.numpy(), stats.norm(0, scale).cdf).pvalue > 0.01
        for wrong in (2 / 3, 3 / 2):
            assert stats.kstest(sample.numpy(), stats.norm(0, wrong * scale).cdf).pvalue < 1e-6
    # Each client draws its own noise.
    correlation = torch.corrcoef(noise) - torch.eye(4)
    assert correlation.abs().max() < 5 / noise.shape[1] ** 0.5


def test_without_rows_a_release_is_pure_noise(problem):
    defense = defenses.parse("dp-sgd=1.0")
    empty = problem.owner[:0]
    with problem.bind(defense) as session:
        releases = session.release(problem.losses, empty)
        mean = session.mean_release(problem.losses, empty)
    assert stats.kstest(releases.flatten().numpy(), stats.norm(0, 1 / 8).cdf).pvalue > 0.01
    assert stats.kstest(mean.numpy(), stats.norm(0, 1 / 16).cdf).pvalue > 0.01


def test_another_batch_size_on_release(problem):
    with problem.bind(defenses.parse("dp-sgd=0"), batch_size=8) as session:
        for call in (session.release, session.mean_release, session.undefended):
            usual = call(problem.losses, problem.owner)
            torch.testing.assert_close(call(problem.losses, problem.owner, batch_size=1), 8 * usual)
        with pytest.raises(DefenseError, match="at least 1"):
            session.release(problem.losses, problem.owner, batch_size=0)


def test_samples_without_a_finite_gradient_are_dropped_and_counted(problem):
    problem.data[2][3] = float("inf")  # the loss is not finite
    problem.data[0][20] = float("nan")

    def losses(rows):
        values = problem.losses(rows)
        # Row 9: a finite loss with a gradient that is not.
        kinked = torch.arange(32)[rows] == 9
        kink = (values[kinked] - values[kinked].detach()).abs().sqrt()
        return values.masked_scatter(kinked, values[kinked] + kink)

    keep = torch.tensor([row for row in range(32) if row not in (3, 9, 20)])
    bad = problem.per_sample_gradients()
    expected = clipped(bad[keep], 1.0)
    problem.owner, owner = problem.owner[keep], problem.owner
    with problem.bind(defenses.parse("dp-sgd=0")) as session:
        releases = session.release(losses, owner)
        assert session.nonfinite_count == 3
        mean = session.mean_release(losses, owner)
        assert session.nonfinite_count == 6
    torch.testing.assert_close(releases, problem.sums(expected) / 8, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(mean, problem.sums(expected).mean(0) / 8, atol=1e-6, rtol=1e-5)


def test_a_network_that_sits_out_a_round_adds_nothing_to_the_norms(problem):
    def critic_only(rows):
        state, action, target = (x[rows] for x in problem.data)
        return problem.module.critic_loss(torch.cat([state, action], -1), target)

    gradients = problem.per_sample_gradients()
    actor = problem.layout.split(torch.ones(problem.layout.size))
    mask = torch.cat(
        [
            torch.zeros_like(v).flatten() if n.startswith("actor") else v.flatten()
            for n, v in actor.items()
        ]
    )
    expected = problem.sums(clipped(gradients * mask, 1.0)) / 8
    with problem.bind(defenses.parse("dp-sgd=0")) as session:
        session.release(problem.losses, problem.owner)  # leaves norms of the actor behind
        releases = session.release(critic_only, problem.owner)
    torch.testing.assert_close(releases, expected, atol=1e-6, rtol=1e-5)
    with problem.bind(defenses.parse("dp-sgd=1.0")) as session:
        noised = session.mean_release(critic_only, problem.owner)
    assert (noised != 0).all()  # the absent actor's coordinates are noised as well


def test_other_forward_passes_do_not_disturb_a_session(problem):
    with problem.bind(defenses.parse("dp-sgd=0")) as session:
        before = session.release(problem.losses, problem.owner)
        with torch.no_grad():
            problem.losses(slice(0, 5))
        problem.losses(slice(None)).sum().backward()
        problem.losses(slice(0, 3))
        assert all(p.grad is not None for p in problem.module.parameters())
        after = session.release(problem.losses, problem.owner)
        problem.module.zero_grad()
    torch.testing.assert_close(before, after, atol=0, rtol=0)


def test_a_failing_loss_leaves_the_session_usable(problem):
    def broken(rows):
        problem.losses(rows)
        raise RuntimeError("boom")

    with problem.bind(defenses.parse("dp-sgd=0")) as session:
        before = session.release(problem.losses, problem.owner)
        with pytest.raises(RuntimeError, match="boom"):
            session.release(broken, problem.owner)
        assert all(p.grad is None for p in problem.module.parameters())
        torch.testing.assert_close(session.release(problem.losses, problem.owner), before)


def test_close_leaves_an_ordinary_module(problem):
    session = problem.bind(defenses.parse("dp-sgd=0.5"))
    session.mean_release(problem.losses, problem.owner)
    with pytest.raises(DefenseError, match="already bound"):
        problem.bind(defenses.parse("dp-sgd=0.5"))
    session.close()
    twin = copy.deepcopy(problem.module)
    assert pickle.dumps(twin)  # no hook or optimiser of ours is left in it
    for p in twin.parameters():
        assert p.grad is None
        assert not vars(p)
    with problem.bind(defenses.parse("dp-sgd=0.5")) as again:
        again.release(problem.losses, problem.owner)


def test_uses_that_would_break_the_guarantee_are_refused(problem):
    weight = problem.module.q1[0].weight
    with problem.bind(defenses.parse("dp-sgd=1.0")) as session:
        problem.module.eval()
        with pytest.raises(DefenseError, match="train mode"):
            session.release(problem.losses, problem.owner)
        problem.module.train()
        with pytest.raises(DefenseError, match=r"'q1\.0\.weight'.*outside the forward"):
            session.release(lambda rows: problem.data[2][rows] * weight.sum(), problem.owner)
        with pytest.raises(DefenseError, match="shape"):
            session.release(lambda rows: problem.losses(rows).mean(), problem.owner)


def test_batch_norm_is_refused(problem):
    problem.module.norm = nn.BatchNorm1d(3)
    with pytest.raises(DefenseError, match="does not support"):
        problem.bind(defenses.parse("dp-sgd=1.0"))


@pytest.mark.parametrize("clip", ["0", "-1", "inf", "nan"])
def test_clip_must_be_positive(clip):
    with pytest.raises(DefenseError, match="must be above 0"):
        defenses.parse(f"dp-sgd=1.0@clip={clip}")


def test_the_unit_must_be_known():
    with pytest.raises(DefenseError, match="must be transition or trajectory"):
        defenses.parse("dp-sgd=1.0@unit=episode")
    defense = defenses.parse("dp-sgd=1.0@unit=trajectory")
    assert defense.sampling == "poisson-trajectories"
    assert defense.describe()[0]["unit"] == "trajectory (add/remove), one client"
