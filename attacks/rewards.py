"""Completes reconstructed (s, a) with s' and r, and judges them by what of the gradient they leave.

A reward and a next state enter a temporal-difference gradient only through y = r + gamma V(s'),
which one release does not split. So s' is the prior's prediction f(s, a), and the rewards are those
that then explain the gradient. It is affine in each record's reward, so they are a linear
least-squares solution. After local training (``attacks.local_training``) a release is only nearly
affine in the rewards, through the weights of later steps, and they take several such solutions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.attack import Reconstruction
from attacks.observation import Observation, gradient_matching_error
from attacks.prior import Prior
from attacks.transitions import Transitions

CHORDS = 8
"""Corrections of the rewards after local training; each shrinks the error several times."""


@dataclass(frozen=True, eq=False)
class Explained:
    """Records with s' and r (NaN if not identifiable), and the share of the gradient unexplained.

    ``residual`` is the norm of what is left over that of the received gradient. It judges (s, a)
    also where the prior cannot predict s', for y absorbs whatever s' would say.
    """

    transitions: Transitions
    residual: float


def explain(observation: Observation, state: Tensor, action: Tensor, prior: Prior) -> Explained:
    """Next states and rewards of b records (s, a); ``terminated`` is answered as 0.

    With g_i(r) = g0_i + r g1_i of record i alone, fits the received gradient by the mean of
    c0 g0_i + c_i g1_i. The factor c0 is one; or free, if the channel may have rescaled the
    gradient, and one for each record if it may have rescaled records. Then r_i = c_i / c0.
    """
    predicted = prior.predict(state, action)
    next_state = state if predicted is None else predicted[0].to(state)
    zero = torch.zeros_like(state.reshape(len(state), -1)[:, 0])
    base = Transitions(state, action, zero, next_state, zero)
    fit = _rewards if observation.local is None else _rewards_by_chords
    reward, residual = fit(observation, base)
    if predicted is None:
        reward, next_state = reward * math.nan, torch.full_like(state, math.nan)
    return Explained(Transitions(state, action, reward, next_state, zero), residual)


def _rewards(observation: Observation, base: Transitions) -> tuple[Tensor, float]:
    """Rewards (b,) of records ``base``, whose own are 0, and the share left unexplained."""
    unit = _with_rewards(base, base.reward + 1)
    g0 = _record_gradients(observation, base)
    g1 = _record_gradients(observation, unit) - g0
    received = observation.flat_gradient().detach().cpu().double()
    factors, rewards = _fit(observation, g0, g1, received)
    left = received - g0.T @ factors - g1.T @ rewards
    residual = float(left.norm() / received.norm().clamp_min(1e-300))
    parallel = torch.cosine_similarity(g0, g1, dim=1).abs() > 1 - 1e-6
    hidden = parallel if observation.channel.scale_unknown else torch.zeros_like(parallel)
    if not _rescales_records(observation):
        hidden = hidden.all().expand_as(hidden)
    hidden = hidden | (factors <= 0)
    return torch.where(hidden, math.nan, rewards / factors).to(base.reward), residual


def _rewards_by_chords(observation: Observation, base: Transitions) -> tuple[Tensor, float]:
    """The same after local training: least squares along slopes that are taken once.

    The best iterate counts. If the channel may have rescaled the release, its scale is free.
    """

    def release(rewards: Tensor) -> Tensor:
        return observation.flat_gradient_at(_with_rewards(base, rewards)).cpu().double()

    received = observation.flat_gradient().detach().cpu().double()
    free = observation.channel.scale_unknown
    rewards = best = base.reward
    at = release(rewards)
    units = torch.eye(len(rewards), dtype=rewards.dtype, device=rewards.device)
    slopes = torch.stack([release(rewards + unit) - at for unit in units])
    least = math.inf
    for _ in range(CHORDS):
        factor = float(at @ received / (at @ at).clamp_min(1e-300)) if free else 1.0
        residual = float((received - factor * at).norm() / received.norm().clamp_min(1e-300))
        if not (math.isfinite(residual) and bool(slopes.isfinite().all())):
            break
        if residual < least:
            least, best = residual, rewards
        if free:
            scale, *steps = _least_squares(torch.cat([at[None], slopes]), received)
            step = torch.stack(steps) / scale
        else:
            step = _least_squares(slopes, received - at)
        rewards = rewards + step.to(rewards)
        at = release(rewards)
    told = torch.cosine_similarity(at[None], slopes, dim=1).abs() <= 1 - 1e-6
    hidden = (free and not bool(told.any())) or math.isinf(least)
    return (best * math.nan if hidden else best), least


def _with_rewards(z: Transitions, rewards: Tensor) -> Transitions:
    return Transitions(z.state, z.action, rewards, z.next_state, z.terminated)


def reconstruction(
    observation: Observation, explained: Explained, notes: Sequence[str]
) -> Reconstruction:
    """The answer of an attack that found (s, a), in its known ranges; ``terminated`` is unknown."""
    z = explained.transitions
    lines = ["next state predicted by the prior", *notes]
    if bool(z.next_state.isnan().any()):
        lines[0] = "next state unknown to the prior"
    gme = math.nan
    if bool(z.reward.isnan().any()):
        lines.append("some rewards not identifiable")
    else:
        gme = gradient_matching_error(observation, z)
    clamped = observation.template.clamp(z)
    unknown = torch.full_like(z.reward, math.nan)
    return Reconstruction(
        transitions=Transitions(
            clamped.state, clamped.action, clamped.reward, clamped.next_state, unknown
        ),
        objective=explained.residual,
        gme=gme,
        notes="; ".join(lines),
    )


def taken_actions(observation: Observation, state: Tensor, prior: Prior) -> tuple[Tensor, Tensor]:
    """Which discrete actions were taken in which of k known states.

    One state may occur several times in a batch, with different actions. The gradient is a sum of
    one known direction for each pair, so the pairs with weight are a least-squares solution.

    Returns:
        Indices of states (n,) and actions (n,) of 1 to ``batch_size`` pairs, the heaviest first.
    """
    count = observation.template.action_count
    assert count is not None
    index = torch.arange(len(state), device=state.device).repeat_interleave(count)
    action = torch.arange(count, device=state.device).repeat(len(state))
    states = state[index]
    predicted = prior.predict(states, action)
    next_state = states if predicted is None else predicted[0].to(states)
    zero = torch.zeros_like(states.reshape(len(states), -1)[:, 0])
    base = _record_gradients(observation, Transitions(states, action, zero, next_state, zero))
    unit = _record_gradients(observation, Transitions(states, action, zero + 1, next_state, zero))
    received = observation.flat_gradient().detach().cpu().double()
    directions = unit - base
    weight = _least_squares(directions, received).abs() * directions.norm(dim=1)
    floor = min(1e-5 * float(weight.max()) + 3 * observation.channel.noise_std, float(weight.max()))
    order = weight.argsort(descending=True)[: observation.batch_size]
    kept = order[weight[order] >= floor].to(state.device)
    return index[kept], action[kept]


def _fit(
    observation: Observation, g0: Tensor, g1: Tensor, received: Tensor
) -> tuple[Tensor, Tensor]:
    """Factors (b,) of g0 and of g1 (both (b, P)) that fit the received gradient best."""
    size = len(g0)
    if not observation.channel.scale_unknown:
        return torch.ones(size, dtype=g0.dtype), _least_squares(g1, received - g0.sum(dim=0))
    if _rescales_records(observation):
        both = _least_squares(torch.cat([g0, g1]), received)
        return both[:size], both[size:]
    both = _least_squares(torch.cat([g0.sum(dim=0)[None], g1]), received)
    return both[:1].expand(size), both[1:]


def _rescales_records(observation: Observation) -> bool:
    return any(m["mechanism"] == "dp-sgd" for m in observation.channel.mechanisms)


def _least_squares(rows: Tensor, target: Tensor) -> Tensor:
    """Coefficients (k,) of ``rows`` (k, P) nearest to ``target`` (P,), by Householder's QR."""
    size = rows.norm(dim=1).clamp_min(1e-300)
    scaled = (rows / size[:, None]).T
    return torch.linalg.lstsq(scaled, target[:, None], driver="gelsd").solution[:, 0] / size


def _record_gradients(observation: Observation, z: Transitions) -> Tensor:
    """(b, P) float64: what each record alone adds to the mean of the batch."""
    rows = [observation.flat_gradient_at(z[i]).cpu().double() for i in range(len(z))]
    return torch.stack(rows) / len(z)
