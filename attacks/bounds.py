"""What no attack can beat: floors on reconstruction error and ceilings on its success.

The gradient's sensitivity J to a record z = (s, a, y) and the covariance S of the channel's
Gaussian noise give the Fisher information J^T S^-1 J of one release. With the prior's covariance
this bounds any estimator's mean squared error (van Trees 1968; Gill and Levit 1995):

    E ||z^ - z||^2 >= tr[(J^T S^-1 J + Sigma_prior^-1)^-1].

Of other noise only the Fisher information 1 / s^2 about a coordinate matters: Laplace noise of
scale s counts as much as Gaussian noise of standard deviation s, half its variance.

Information of independent releases of the same record adds up. Everything here is in units of the
reference standard deviation sigma_j of each coordinate, so that the prior alone gives a floor of
about one and the numbers compare with the score ``nmse``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from scipy.linalg.lapack import dtrtri
from scipy.stats import norm
from torch import Tensor

from attacks.bayes.misfits import Received
from attacks.bayes.normal_equations import MOST_UNKNOWNS, Decode, NormalEquations
from attacks.bayes.posterior import Coordinates, received_by
from attacks.gradients.linear_layers import LinearLayer, dense_layers
from attacks.observation import Observation
from attacks.prior import Prior
from attacks.reference import SIGMA_FLOOR
from attacks.transitions import Transitions, flatten_state_action, unflatten_state_action

LOSS_STEP = 1e-3
"""Of the grid that privacy losses are composed on."""

NEARLY_CERTAIN = 1 - 1e-6
"""A chance to reconstruct beyond which it is not worth composing losses for."""


@dataclass(frozen=True, eq=False)
class RecordInformation:
    """Fisher information of one release about its b records, and the prior's.

    Attributes:
        release: (T, b K, b K) information that each of T releases gives.
        prior: (K, K) information of the prior about one record.
        count: K - 1, the number of (s, a) coordinates; the last coordinate is the target y.
    """

    release: Tensor
    prior: Tensor
    count: int
    _variances: dict[float, Tensor] = field(default_factory=dict, repr=False)

    def __getitem__(self, index: int) -> RecordInformation:
        """What one of the releases gives."""
        return RecordInformation(self.release[index : index + 1], self.prior, self.count)

    def posterior_variance(self, releases: float = 1.0) -> Tensor:
        """(T, b, K): error variances that no estimator beats, after ``releases`` alike."""
        if releases not in self._variances:
            size = self.release.shape[-1] // len(self.prior)
            blocks = torch.block_diag(*[self.prior] * size)
            diagonal = _diagonal_of_inverse(releases * self.release + blocks)
            self._variances[releases] = diagonal.unflatten(1, (size, -1))
        return self._variances[releases]

    def floor(self, releases: float = 1.0) -> Tensor:
        """(T,): local Bayesian floor, mean squared error of (s, a) in sigma^2 per coordinate.

        Evaluated at each true record; its mean over records bounds the ``nmse`` of an attacker
        whose prior is Gaussian. A prior with more structure can know more.
        """
        return self.posterior_variance(releases)[..., : self.count].flatten(1).mean(dim=1)

    def strict_floor(self, releases: float = 1.0) -> float:
        """The van Trees bound itself: the information is averaged over records before inverting.

        Never above the mean of :meth:`floor` (Jensen), and a bound without linearisation.
        """
        pooled = RecordInformation(self.release.mean(dim=0, keepdim=True), self.prior, self.count)
        return float(pooled.floor(releases))

    def leakage(self) -> Tensor:
        """(T,) Fisher information leakage: sqrt of the largest eigenvalue, 1 / sigma units.

        Hannun, Guo and van der Maaten, UAI 2021 (arXiv 2102.11673): an unbiased estimator of the
        best-seen direction has a standard deviation of at least one over this.
        """
        return torch.linalg.eigvalsh(self.release)[:, -1].clamp_min(0).sqrt()

    def expected_accuracy(self, tolerance: float = 0.1, releases: float = 1.0) -> Tensor:
        """(T,): share of (s, a) coordinates that a Gaussian posterior puts within ``tolerance``.

        What an attacker at the floor reaches as reconstruction accuracy, in sigma.
        """
        kept = self.posterior_variance(releases)[..., : self.count].clamp_min(0).sqrt()
        share = 2 * norm.cdf(tolerance / kept.clamp_min(1e-12).numpy()) - 1
        return torch.from_numpy(share).flatten(1).mean(dim=1)


def _diagonal_of_inverse(information: Tensor) -> Tensor:
    """(T, n) of symmetric (T, n, n)."""
    factor, failed = torch.linalg.cholesky_ex(information)
    if bool(failed.any()):
        # Rounding leaves the information of a nearly exact release indefinite.
        return torch.linalg.inv(information).diagonal(dim1=1, dim2=2)
    # LAPACK's inverse of a triangle takes about half the time of solving for every unit vector.
    inverses = [torch.from_numpy(dtrtri(one.numpy(), lower=True)[0]) for one in factor]
    return torch.stack([inverse.square().sum(dim=0) for inverse in inverses])


def record_information(
    observations: Sequence[Observation], truth: Sequence[Transitions], population: Prior
) -> RecordInformation | None:
    """The information of each release about its true records.

    Args:
        observations: T releases that share model, loss, batch size, template and channel.
        truth: their true records; this is for the scorer, never for an attack.
        population: a prior fitted on many transitions: the best Gaussian knowledge of (s, a) and of
            the target y that any adversary could hold. Its deviations are the sigma units.

    Returns:
        None where the records have more than ``MOST_UNKNOWNS`` coordinates together, where the
        channel has no Fisher information to bound it by (``Channel.bounding``:
        releases rounded or sparse without noise before), where actions are discrete, or where a
        layer is not dense: no floor is claimed there.
    """
    channel = observations[0].channel.bounding()
    layers = dense_layers(observations[0])
    if layers is None or channel is None or observations[0].template.discrete:
        return None
    observations = [replace(o, channel=channel) for o in observations]
    first = observations[0]
    coordinates = Coordinates.of(first, layers, population)
    if first.batch_size * coordinates.width > MOST_UNKNOWNS:
        return None
    like = coordinates.mean
    sigma = population.raw_std().to(like)
    kept = sigma >= SIGMA_FLOOR
    records = Transitions.cat(list(truth)).to(dtype=like.dtype, device=like.device)
    base = flatten_state_action(records, first.template)
    rewards = coordinates.equivalent_rewards(first, layers, records)
    scale = torch.where(kept, sigma, torch.zeros_like(sigma))

    def decode(rows: Tensor, record: Tensor) -> Transitions:
        flat = base[record] + scale * rows[:, :-1]
        state, action = unflatten_state_action(flat, first.template)
        fixed = population.transition(records.state[record], records.action[record])
        reward = rewards[record] + coordinates.reward_std * rows[:, -1]
        return Transitions(state, action, reward, fixed, torch.zeros_like(reward))

    points = like.new_zeros(len(observations), first.batch_size, len(base[0]) + 1)
    received = received_by(observations, channel.information_std)
    release = NormalEquations(first, layers, received, decode).at(points).hessian.double()
    if channel.noise_to_signal > 0:
        release = release + _scale_information(first, layers, received, decode, points)
    keep = torch.cat([kept, torch.ones_like(kept[:1])])
    every = keep.repeat(first.batch_size)
    release = release[:, every][:, :, every]
    return RecordInformation(release, _prior_information(population, kept, sigma), int(kept.sum()))


def _scale_information(
    observation: Observation,
    layers: list[LinearLayer],
    received: Received,
    decode: Decode,
    points: Tensor,
) -> Tensor:
    """(T, b K, b K) that the size of the noise gives away where it follows the gradient's norm.

    N(g, s^2 I) in n coordinates has the information J^T J / s^2 + 2 n v v^T with v = grad log s,
    which is J^T g / ||g||^2 for s in proportion to ||g||.
    """
    zero = {name: torch.zeros_like(value) for name, value in received.gradient.items()}
    equations = NormalEquations(
        observation, layers, replace(received, gradient=zero, sent=None), decode
    )
    # The misfit to nothing is precision ||g||^2 / 2, and its gradient precision J^T g.
    square = 2 * equations.value(points).double().clamp_min(1e-300)
    slope = equations.at(points).gradient.double() / square[:, None]
    sent = received.sent or {name: torch.ones_like(value) for name, value in zero.items()}
    count = torch.stack([value.flatten(1).sum(dim=1) for value in sent.values()]).sum(dim=0)
    return 2 * count.double()[:, None, None] * slope[:, :, None] * slope[:, None, :]


def _prior_information(population: Prior, kept: Tensor, sigma: Tensor) -> Tensor:
    """(K, K) in sigma units; the target y has unit variance and is independent of (s, a)."""
    scale = sigma[kept].double()
    covariance = population.joint_covariance().double()[kept][:, kept]
    correlation = covariance / scale[:, None] / scale[None, :]
    return torch.block_diag(torch.linalg.inv(correlation), torch.ones(1, 1).double())


def guo_bound(epsilon: float, diameter: float = 1.0) -> float:
    """Least mean squared error per coordinate against (2, epsilon)-Renyi-DP.

    Guo, Karrer, Chaudhuri and van der Maaten, ICML 2022 (arXiv 2201.12383), theorem 1:
    ``diameter``^2 / (4 (e^epsilon - 1)), for coordinates that span ``diameter``.

    Raises:
        ValueError: epsilon is not above zero.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon must be above 0, got {epsilon}")
    return diameter**2 / (4 * math.expm1(epsilon)) if epsilon < 700 else 0.0


def reconstruction_robustness(kappa: float, rounds: Sequence[tuple[float, float, int]]) -> float:
    """Largest chance gamma to reconstruct a record that a blind guess meets with chance kappa.

    From everything that was sent in all rounds together: one minus their composed trade-off curve
    (Hayes, Mahloujifar and Balle 2023, arXiv 2302.07225; Kaissis et al. 2023, arXiv 2307.03928).
    Where every record takes part in every round that is Phi(Phi^-1(kappa) + sqrt(sum T / sigma^2));
    under Poisson sampling ``riskcal`` composes privacy loss distributions (Kulynych et al. 2024,
    arXiv 2407.02191), rounded so that gamma is overstated. Where that would be near one, gamma is
    bounded by the chance that the record took part at all.

    Args:
        kappa: in (0, 1].
        rounds: (noise multiplier, sampling rate in (0, 1], number of rounds) of each kind of round.

    Raises:
        ValueError: one of them is out of range.
    """
    for sigma, rate, count in rounds:
        if not (sigma > 0 and 0 < rate <= 1 and count >= 1):
            raise ValueError(
                "need noise_multiplier > 0, 0 < sample_rate <= 1, count >= 1, got "
                f"{sigma}, {rate}, {count}"
            )
    if not 0 < kappa <= 1:
        raise ValueError(f"need 0 < kappa <= 1, got {kappa}")
    if kappa == 1 or not rounds:
        return kappa
    if all(rate == 1 for _, rate, _ in rounds):
        separation = math.sqrt(sum(count / sigma**2 for sigma, _, count in rounds))
        return float(norm.cdf(norm.ppf(kappa) + separation))
    absent = math.prod((1 - rate) ** count for _, rate, count in rounds)
    certain = kappa + (1 - kappa) * (1 - absent)
    # The separation of the Gaussians that a long composition tends to (Dong, Roth and Su 2022); no
    # round tells more than one without sampling.
    separation = math.sqrt(
        sum(
            count * min(rate**2 * math.expm1(min(sigma**-2, 700)), sigma**-2)
            for sigma, rate, count in rounds
        )
    )
    if norm.cdf(norm.ppf(kappa) + separation) > NEARLY_CERTAIN:
        return certain
    # Takes a second to import.
    from riskcal.accountants import CTDAccountant

    accountant = CTDAccountant()
    history = [(sigma, rate, count) for sigma, rate, count in rounds]
    accountant.load_state_dict({"history": history, "mechanism": accountant.mechanism()})
    missed = float(accountant.get_beta(alpha=kappa, grid_step=LOSS_STEP))
    return min(1 - missed, certain)
