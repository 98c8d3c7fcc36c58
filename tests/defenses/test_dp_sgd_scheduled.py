"""Falling noise: what each round adds, and that every round is accounted for at its own noise."""

import pytest
import torch
from opacus.accountants import RDPAccountant
from scipy import stats

import defenses
from defenses import DefenseError
from defenses.accounting import Accountant


def test_the_noise_falls_by_gamma_every_round_as_stated(problem):
    with problem.bind(defenses.parse("dp-sgd=0@clip=2.0")) as session:
        clean = session.release(problem.losses, problem.owner)
    with problem.bind(defenses.parse("dp-sgd-scheduled=0.8@gamma=0.5@clip=2.0")) as session:
        for round_ in range(3):
            stated = session.describe()[0]["noise_std"]
            assert stated == pytest.approx(0.8 * 0.5**round_ * 2.0 / 8)
            noise = (session.release(problem.losses, problem.owner) - clean).flatten()
            assert stats.kstest(noise.numpy(), stats.norm(0, stated).cdf).pvalue > 0.01
            mean = session.mean_release(problem.losses, problem.owner) - clean.mean(0)
            assert stats.kstest(mean.numpy(), stats.norm(0, stated / 2).cdf).pvalue > 0.01
            session.end_round()
        saved = session.state()
    with problem.bind(defenses.parse("dp-sgd-scheduled=0.8@gamma=0.5@clip=2.0")) as session:
        session.load_state(saved)
        assert session.describe()[0]["noise_std"] == pytest.approx(0.8 * 0.5**3 * 2.0 / 8)


def test_the_noise_falls_in_steps_and_a_checkpoint_keeps_their_place(problem):
    defense = defenses.parse("dp-sgd-scheduled=0.8@gamma=0.5@every=3@clip=2.0")
    stated, states = [], []
    with problem.bind(defense) as session:
        for _ in range(7):
            stated.append(session.describe()[0]["noise_std"])
            states.append(session.state())
            session.end_round()
    expected = [0.8 * 0.5 ** (round_ // 3) * 2.0 / 8 for round_ in range(7)]
    assert stated == pytest.approx(expected)
    with problem.bind(defense) as session:
        session.load_state(states[2])
        session.end_round()
        assert session.describe()[0]["noise_std"] == pytest.approx(expected[3])
    accountant = defense.accountant()
    assert accountant is not None
    for _ in range(7):
        accountant.step(0.1)
    noises = [noise for noise, _, count in accountant.state()["history"] for _ in range(count)]
    assert noises == pytest.approx([0.8] * 3 + [0.4] * 3 + [0.2], rel=0.02)
    assert all(noise <= 0.8 * 0.5 ** (i // 3) for i, noise in enumerate(noises)), "rounded down"


@pytest.mark.filterwarnings("ignore:Optimal order is the")
def test_every_round_counts_at_its_own_noise():
    accountant = Accountant(2.0, 0.999)
    exact = RDPAccountant()
    for round_ in range(400):
        accountant.step(0.05)
        exact.history.append((2.0 * 0.999**round_, 0.05, 1))
    expected = exact.get_epsilon(1e-5)
    assert expected <= accountant.epsilon(1e-5) <= 1.05 * expected
    assert len(accountant.state()["history"]) < 50
    constant = Accountant(2.0)
    for _ in range(400):
        constant.step(0.05)
    assert constant.epsilon(1e-5) < accountant.epsilon(1e-5)


def test_a_schedule_continues_from_a_checkpoint():
    one, other = Accountant(1.0, 0.99), Accountant(1.0, 0.99)
    for _ in range(10):
        one.step(0.1)
    other.load_state(one.state())
    one.step(0.1)
    other.step(0.1)
    assert torch.tensor(one.state()["history"]).equal(torch.tensor(other.state()["history"]))


@pytest.mark.parametrize("gamma", ["0", "1.1", "nan"])
def test_gamma_out_of_range_is_one_line(gamma):
    with pytest.raises(DefenseError, match="above 0 and up to 1"):
        defenses.parse(f"dp-sgd-scheduled=1@gamma={gamma}")


def test_falls_must_be_rounds_apart():
    with pytest.raises(DefenseError, match="at least 1"):
        defenses.parse("dp-sgd-scheduled=1@every=0")
