"""Exact inversion of batches from the gradients of dense ReLU layers (SPEAR, and beyond it).

Dimitrov et al., NeurIPS 2024 (arXiv 2403.03945) un-mix a batch by the sparsity of a ReLU layer's
output gradients, about 2^b samples for b records. Three things are different here.

- Where each record uses one output of a linear head, as in critics and Q-networks, the last hidden
  layer's output gradients are known factors times zeros and ones: ``batches.unmixing`` looks for
  those.
- The search is Douglas-Rachford splitting (``batches.binary_factors``, ``batches.sparse_factors``),
  not sampling: ``tests/benchmarks/spear_batches.py`` prints how fast and how exact it is by batch
  size.
- LayerNorm before the ReLU makes output gradients dense, and is no defence: they stay in a known
  subspace of 2 b + 1 dimensions. The limit is about b = m / 4 records for m units with LayerNorm
  and b = 3 m / 8 without.

Where no such head is found, first layers that rectify their outputs are un-mixed by sparsity, all
that read the same columns at once; this needs b of at most the number of inputs plus one.

Next states and rewards are completed as in ``rewards``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.attack import Attack, Reconstruction
from attacks.batches.dense_stacks import Hidden, Stack, dense_stacks, rectified_layers
from attacks.batches.unmixing import Unmixed, capacity, sparse_capacity, unmix, unmix_sparse
from attacks.observation import Observation
from attacks.prior import Prior
from attacks.registry import register_attack
from attacks.rewards import Explained, explain, reconstruction, taken_actions
from attacks.transitions import Transitions, unflatten_state_action

EXACT = 1e-3
"""Relative residual of the gradient that a noiseless answer counts as exact below."""


@register_attack("spear", summary="exact inversion of batches from dense ReLU layers (SPEAR)")
@dataclass(frozen=True)
class Spear(Attack):
    """Un-mixes the records of a batch. Needs no prior for states and actions.

    Attributes:
        iterations: of the search for the units that each record activates, at most.
        attempts: searches with fresh random starts until the answer explains the gradient.
    """

    iterations: int = 4000
    attempts: int = 2

    def unsupported(self, observation: Observation) -> str:
        """Needs dense ReLU layers from the records on, all sent, wide enough for the batch."""
        if observation.local is not None:
            return "the release sums local steps, which un-mixing takes for a single gradient"
        if observation.channel.zeroed:
            return "coordinates that were not sent leave the layer's gradient without its low rank"
        ways = _ways(observation)
        if not ways:
            return "no released dense layer with bias reads the records and feeds a ReLU"
        size = observation.batch_size
        most = max(_capacity(way, observation) for way in ways)
        if size > most:
            return f"{size} records do not fit layers that determine at most {most}"
        return ""

    def solve(
        self, observations: Sequence[Observation], *, prior: Prior, seed: int
    ) -> list[Reconstruction]:
        """Each observation alone, from the same random starts."""
        ways = _ways(observations[0])
        return [self._solve(observation, ways, prior, seed) for observation in observations]

    def _solve(
        self, observation: Observation, ways: Sequence[_Way], prior: Prior, seed: int
    ) -> Reconstruction:
        answers: list[_Answer] = []
        for unmixed, columns in self._search(observation, ways, seed):
            state, action, told = _records(observation, unmixed, columns, prior)
            explained = explain(observation, state, action, prior)
            answers.append(_Answer(explained, min(told, unmixed.accepted)))
            if _is_done(observation, answers[-1]):
                break
        else:
            blind = prior.mean_transitions(observation.batch_size, observation.template)
            like = next(iter(observation.parameters.values()))
            blind = blind.to(device=like.device, dtype=like.dtype)
            answers.append(_Answer(explain(observation, blind.state, blind.action, prior), 0))
        best = min(answers, key=lambda answer: answer.explained.residual)
        return _reconstruction(observation, best)

    def _search(
        self, observation: Observation, ways: Sequence[_Way], seed: int
    ) -> Iterator[tuple[Unmixed, Tensor]]:
        """Answers of all ways, attempt by attempt, each as the caller asks for it."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(self.attempts):
            for way in ways:
                if observation.batch_size > _capacity(way, observation):
                    continue
                if isinstance(way, Stack):
                    found = unmix(observation, way, generator=generator, iterations=self.iterations)
                    yield found, way.columns
                else:
                    yield unmix_sparse(observation, way.layers, generator=generator), way.columns


@dataclass(frozen=True, eq=False)
class _FirstLayers:
    """First layers that read the same columns and rectify their outputs."""

    columns: Tensor
    layers: tuple[Hidden, ...]


_Way = Stack | _FirstLayers


@dataclass(frozen=True, eq=False)
class _Answer:
    """A completed batch, and how many of its records were told apart beyond doubt."""

    explained: Explained
    accepted: int


def _ways(observation: Observation) -> list[_Way]:
    """Stacks, then groups of first layers; only those that determine all of a record."""
    template = observation.template
    needed = template.state_size + (0 if template.discrete else template.action_size)
    groups: dict[tuple[int, ...], list[Hidden]] = {}
    for columns, layer in rectified_layers(observation):
        groups.setdefault(tuple(columns.tolist()), []).append(layer)
    ways: list[_Way] = list(dense_stacks(observation))
    ways += [_FirstLayers(torch.tensor(key), tuple(layers)) for key, layers in groups.items()]
    return [w for w in ways if set(range(needed)) <= set(w.columns.tolist())]


def _capacity(way: _Way, observation: Observation) -> int:
    """Largest batch that a way can un-mix."""
    if isinstance(way, Stack):
        return capacity(way)
    return sparse_capacity(observation, way.layers)


def _is_done(observation: Observation, answer: _Answer) -> bool:
    """Whether another search could not do better.

    Without noise the true records leave nothing of the gradient. With noise the answer's own errors
    leave several times more than the noise does, so that this cannot be asked for.
    """
    if answer.explained.residual <= EXACT:
        return True
    return observation.channel.noise_std > 0 and answer.accepted == observation.batch_size


def _records(
    observation: Observation, unmixed: Unmixed, columns: Tensor, prior: Prior
) -> tuple[Tensor, Tensor, int]:
    """States and actions of a whole batch, and how many records of it were told apart.

    Records like one another come out once and are repeated; what could not be told is the prior's
    mean.
    """
    like = next(iter(observation.parameters.values()))
    template = observation.template
    told = unmixed.rows.isfinite().all(dim=1)
    rows = unmixed.rows[told]
    size = observation.batch_size
    if not len(rows):
        blind = prior.mean_transitions(size, template).to(device=like.device, dtype=like.dtype)
        return blind.state, blind.action, 0
    full = rows.new_zeros(len(rows), template.state_size + template.action_size)
    full[:, columns] = rows
    state, action = unflatten_state_action(full.to(like), template)
    zero = torch.zeros_like(full[:, 0]).to(like)
    if template.discrete and int(columns.max()) < template.state_size:
        state = template.clamp(Transitions(state, zero, zero, state, zero)).state
        if unmixed.outputs is None:
            index, action = taken_actions(observation, state, prior)
            state, zero = state[index], zero[index]
        else:
            action = unmixed.outputs[told].to(like.device)
    inside = template.clamp(Transitions(state, action, zero, state, zero))
    repeated = torch.arange(size, device=like.device) % len(inside)
    return inside.state[repeated], inside.action[repeated], len(inside)


def _reconstruction(observation: Observation, answer: _Answer) -> Reconstruction:
    size, notes = observation.batch_size, []
    if observation.channel.noise_std > 0:
        notes.append("exactness is lost to noise")
    if answer.accepted < size:
        notes.append(f"{answer.accepted} of {size} records told apart")
    if not _is_done(observation, answer):
        notes.append("the answer does not explain the gradient")
    return reconstruction(observation, answer.explained, notes)
