"""The records of one client from its releases of many rounds.

One release hides r and s' behind a single number (``target_equations``). A client draws from its
replay again and again, and its replay is a set of trajectories, so a server that keeps what it
receives can

1. reconstruct each release alone, with ``spear`` or another attack that is exact on batches,
2. link the same (s, a) in different rounds,
3. stitch: the s' of a record is the s of another, the one that implies the same reward each time,
4. learn the dynamics from what is stitched, and stitch again with the better expectation,
5. and pin r and s' of the others down with the equations that there are.

This is the multi-round threat (the server keeps every release), which no defence of one round
answers: an attack for ``Observation`` after ``Observation``, not one of the registry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch import Tensor

from attacks.attack import Attack, Reconstruction
from attacks.observation import Observation
from attacks.prior import Prior
from attacks.spear import Spear
from attacks.target_equations import Expectation, Uses, pin_down
from attacks.transitions import Transitions, flatten_state, flatten_state_action

EXPLAINED = 1e-3
"""Relative error of the gradient below which an answer is trusted."""

SAME = 1e-2
"""Mean deviation of a coordinate, in the prior's standard deviations, between equal records."""

TARGET_ERROR = 10.0
"""Relative error of a reconstructed target, in relative errors of its release's gradient."""

CANDIDATES = 8
"""Nearest successors that are tried."""

SURPRISE = 3.0
"""A successor may lie this many standard deviations from what the dynamics let expect."""


@dataclass(frozen=True, eq=False)
class History:
    """What the server holds of a client after some rounds.

    Attributes:
        transitions: n different records; ``terminated`` is 1 where only an end explains them.
        uses: (n,) releases that each was found in.
        stitched: (n,) whether s' is another record's state (or the end), so that r and s' are
            exact; the others' are estimates.
        explained: releases that an attack could explain, out of those given.
    """

    transitions: Transitions
    uses: Tensor
    stitched: Tensor
    explained: int


def reconstruct_history(
    observations: Sequence[Observation],
    *,
    prior: Prior,
    seed: int,
    attack: Attack | None = None,
    passes: int = 3,
) -> History:
    """All records that the releases of one client give away.

    Args:
        observations: the client's releases, each with the model and loss of its round.
        prior: knowledge beforehand, samples at least.
        seed: of the attack on each release.
        attack: on each release; ``spear`` unless given.
        passes: of stitching, at least one; each learns the dynamics from the one before.

    Raises:
        ValueError: the prior holds no samples, or no release could be explained.
    """
    if prior.known is None:
        raise ValueError("stitching needs a prior with samples")
    attack = attack or Spear()
    answers = [attack.reconstruct(o, prior=prior, seed=seed) for o in observations]
    found = [
        (o, answer)
        for o, answer in zip(observations, answers, strict=True)
        if answer.gme <= EXPLAINED
    ]
    if not found:
        raise ValueError("no release could be explained")
    linked = _link(found, prior)
    history = _stitch(linked, prior, len(found))
    for _ in range(passes - 1):
        history = _stitch(linked, _relearn(prior, history), len(found))
    return history


def _link(found: Sequence[tuple[Observation, Reconstruction]], prior: Prior) -> list[Uses]:
    """Appearances of equal (s, a), grouped."""
    everything = Transitions.cat([answer.transitions for _, answer in found])
    everything = replace(everything, terminated=torch.zeros_like(everything.reward))
    rounds = [o for o, answer in found for _ in range(len(answer.transitions))]
    exactness = torch.cat(
        [torch.full((len(answer.transitions),), max(answer.gme, 1e-7)) for _, answer in found]
    )
    errors = TARGET_ERROR * exactness.double() * (1 + everything.reward.abs().double())
    rows = (flatten_state_action(everything, prior.template) / prior.joint_std).double()
    radius = SAME * rows.shape[1] ** 0.5
    pairs = cKDTree(rows.numpy()).query_pairs(radius, output_type="ndarray")
    size = len(rows)
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(size, size))
    count, labels = connected_components(graph, directed=False)
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(labels, minlength=count))[:-1])
    return [
        Uses([rounds[i] for i in group], everything[index], errors[index])
        for group in groups
        for index in [torch.from_numpy(group)]
    ]


def _stitch(linked: Sequence[Uses], prior: Prior, explained: int) -> History:
    """One pass over all records, with the dynamics as ``prior`` knows them."""
    heads = Transitions.cat([uses.records[:1] for uses in linked])
    expected = _expectations(heads, prior)
    options = _nearest_states(heads.state, expected)
    successors = [
        _successor(uses, heads.state[rows], expectation)
        for uses, rows, expectation in zip(linked, options, expected, strict=True)
    ]
    answers = [
        _estimate(uses, expectation) if successor is None else successor
        for uses, expectation, successor in zip(linked, expected, successors, strict=True)
    ]
    return History(
        transitions=Transitions.cat(answers),
        uses=torch.tensor([len(uses.records) for uses in linked]),
        stitched=torch.tensor([successor is not None for successor in successors]),
        explained=explained,
    )


def _expectations(z: Transitions, prior: Prior) -> list[Expectation]:
    """What the prior's dynamics say of each record, as far off as on the known transitions."""
    known = prior.known
    assert known is not None
    seen, said = prior.predict(known.state, known.action), prior.predict(z.state, z.action)
    assert seen is not None
    assert said is not None
    misses = flatten_state(seen[0] - known.next_state, torch.float64)
    # The model was fitted on these: half as much again for records that it has not seen.
    deviation = 1.5 * misses.square().mean(dim=0).sqrt().clamp_min(1e-6)
    reward_std = max(1.5 * float((seen[1] - known.reward).square().mean().sqrt()), 1e-6)
    return [
        Expectation(said[0][i : i + 1], deviation, float(said[1][i]), reward_std)
        for i in range(len(z))
    ]


def _nearest_states(states: Tensor, expected: Sequence[Expectation]) -> Tensor:
    """(n, c) rows of ``states`` nearest to each expectation, in its standard deviations."""
    deviation = expected[0].deviation
    tree = cKDTree((flatten_state(states, torch.float64) / deviation).numpy())
    wanted = torch.cat([flatten_state(e.state, torch.float64) / deviation for e in expected])
    count = min(CANDIDATES, len(states))
    _, rows = tree.query(wanted.numpy(), list(range(1, count + 1)))
    return torch.from_numpy(rows)


def _successor(uses: Uses, options: Tensor, expected: Expectation) -> Transitions | None:
    """The record with the successor, or the end, that its targets agree on; None without one.

    One target is not enough: every V(s') is explained by some reward.
    """
    if len(uses.records) == 1:
        return None
    end = expected.state
    next_state = torch.cat([options, end])
    terminated = torch.zeros(len(next_state), dtype=end.dtype)
    terminated[-1] = 1
    implied = uses.implied_rewards(next_state, terminated).detach().double()
    weight = 1 / uses.errors.square()
    reward = implied @ weight / weight.sum()
    disagreement = ((implied - reward[:, None]) / uses.errors).square().mean(dim=1).sqrt()
    away = flatten_state(next_state - expected.state, torch.float64) / expected.deviation
    surprise = away.square().mean(dim=1).sqrt()
    odd = ((reward - expected.reward) / expected.reward_std).abs()
    fits = (disagreement <= SURPRISE) & (surprise <= SURPRISE) & (odd <= SURPRISE)
    if not bool(fits.any()):
        return None
    cost = disagreement.square() * len(uses.records) + surprise.square() * away.shape[1] + odd**2
    best = int(torch.where(fits, cost, torch.inf).argmin())
    own = uses.records[:1]
    return Transitions(
        own.state,
        own.action,
        reward[best : best + 1].to(own.reward),
        next_state[best : best + 1],
        terminated[best : best + 1],
    )


def _estimate(uses: Uses, expected: Expectation) -> Transitions:
    state, reward = pin_down(uses, expected)
    own = uses.records[:1]
    return Transitions(
        own.state, own.action, torch.full_like(own.reward, reward), state, own.terminated
    )


def _relearn(prior: Prior, history: History) -> Prior:
    """The prior with dynamics that also know what was stitched and did not end."""
    sure = history.stitched & (history.transitions.terminated == 0)
    assert prior.known is not None
    if not bool(sure.any()):
        return prior
    known = Transitions.cat([prior.known, history.transitions[sure.nonzero().flatten()]])
    return Prior.fit(known, template=prior.template, simulator=prior.simulator)
