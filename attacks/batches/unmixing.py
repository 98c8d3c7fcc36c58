"""Separates the records mixed in the gradient of a stack of dense ReLU layers.

The last hidden layer's gradient is [dW | dc] = D^T [H | 1] for b records: rank b. Its output
gradients are known up to one number e_i a record and the pattern p_i of active units,

    d_i = e_i (w * p_i),    w the head's weights,

so the columns of D^T are the vectors of the form w * (zeros and ones) in the column space of the
gradient: a far smaller set than the sparse ones that SPEAR (arXiv 2403.03945) looks for.

LayerNorm before the ReLU makes D dense, yet of known form. With s_i = w * gain * p_i and xhat_i the
normalised outputs,

    d_i = (e_i / sigma_i) (s_i - mean(s_i) 1 - mean(s_i * xhat_i) xhat_i),

and xhat_i lies in the span of 1 and of [W | c] times the gradient's row space. So s_i lies in a
known subspace of 2 b + 1 dimensions: the same search, a little larger.

From D of one layer its inputs follow by least squares, [H | 1] = (D^T)^+ [dW | dc]; these are the
activations of the layer below, whose D then follows by backpropagation; and so down to the records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.batches.dense_stacks import Hidden, Stack
from attacks.batches.head_patterns import SEARCHES, Deltas, find_deltas, read_inputs
from attacks.batches.low_rank import LowRank
from attacks.batches.sparse_factors import sparse_vectors, with_zeros
from attacks.observation import Observation

CHOICES = 8
"""Rounds of replacing sparse vectors by sparser ones, at most."""

REFITS = 4
"""Rounds of correcting which units a record activates, at most."""

SETTLING = 12
"""Rounds of correcting a layer's inputs and its output gradients by each other, at most."""


@dataclass(frozen=True, eq=False)
class Unmixed:
    """Records separated from one gradient.

    Attributes:
        rows: (k, n) inputs of the first layer; not finite where a record could not be told.
        outputs: (k,) index of the head's output that the record used; None if that is not known.
        accepted: how many of them the noise explains; the others are the best guesses.
    """

    rows: Tensor
    outputs: Tensor | None
    accepted: int


def noise_floor(observation: Observation, gradient: Tensor) -> float:
    """Standard deviation of a received coordinate: the channel's noise, or else rounding."""
    like = next(iter(observation.parameters.values()))
    # Sums over a batch round several times; four units in the last place bound what was measured.
    rounding = 4 * torch.finfo(like.dtype).eps * float(gradient.square().mean().sqrt())
    return max(observation.channel.noise_std, rounding)


def capacity(stack: Stack) -> int:
    """Records that a stack's gradients can determine: the subspace must leave room around it.

    The search finds them up to about three quarters of that.
    """
    units, inputs = stack.hidden[-1].layer.module.weight.shape
    room = units - 1 if stack.hidden[-1].norm is None else (units - 2) // 2
    return min(room, inputs + 1)


def unmix(
    observation: Observation, stack: Stack, *, generator: torch.Generator, iterations: int
) -> Unmixed:
    """At most ``batch_size`` records; fewer if some are alike or drowned in noise."""
    last = stack.hidden[-1]
    gradient = last.received(observation)
    low = LowRank.of(gradient, observation.batch_size, noise_floor(observation, gradient))
    low = low.measured(gradient)
    nothing = Unmixed(gradient.new_zeros(0, len(stack.columns)), torch.zeros(0).long(), 0)
    if not low.rank:
        return nothing
    searches = 1 if observation.channel.noise_std > 0 else SEARCHES
    found = find_deltas(
        low, stack, gradient, generator=generator, iterations=iterations, searches=searches
    )
    if not len(found.heads):
        return nothing
    inputs, deltas = _settle_last(last, stack.head[found.heads], found, gradient)
    for level in reversed(range(len(stack.hidden) - 1)):
        upstream = deltas @ stack.hidden[level + 1].weight[:, :-1]
        hidden = stack.hidden[level]
        gradient = hidden.received(observation)
        inputs = _invert_activations(hidden, inputs, gradient, observation)
        inputs, deltas = _settle(hidden, inputs, upstream, gradient)
    return Unmixed(inputs, found.heads, int(found.accepted.sum()))


def unmix_sparse(
    observation: Observation, layers: Sequence[Hidden], *, generator: torch.Generator
) -> Unmixed:
    """Records from the sparsity of first layers' output gradients; all ``layers`` read the same.

    A combination of two records' gradients may be sparse too. Chosen in place of one of them it
    takes up that record's input, which tells: the units that this leaves inactive are the zeros of
    a sparser vector. So such vectors compete as well.
    """
    gradient = torch.cat([layer.received(observation) for layer in layers])
    weight = torch.cat([layer.weight for layer in layers])
    low = LowRank.of(gradient, observation.batch_size, noise_floor(observation, gradient))
    if not low.rank:
        return Unmixed(gradient.new_zeros(0, gradient.shape[1] - 1), None, 0)
    std = low.noise_std / low.singular
    found = sparse_vectors(low.left, std, generator=generator)
    for _ in range(CHOICES):
        # D^T = left Q, so [X | 1] = Q^-1 diag(singular) right^T.
        rows = torch.linalg.lstsq(
            found.coefficients.T, low.singular[:, None] * low.right.T, driver="gelsd"
        ).solution
        inputs = rows[:, :-1] / rows[:, -1:]
        inactive = inputs @ weight[:, :-1].T + weight[:, -1] <= 0
        improved = with_zeros(found, inactive, low.left, std)
        if torch.equal(improved.zeros, found.zeros):
            break
        found = improved
    return Unmixed(inputs, None, int(found.accepted.sum()))


def sparse_capacity(observation: Observation, layers: Sequence[Hidden]) -> int:
    """Records that ``layers`` determine by sparsity: one an input, or any number of a few alike."""
    gradient = torch.cat([layer.received(observation) for layer in layers])
    most = min(gradient.shape[1], len(gradient) // 2)
    low = LowRank.of(gradient, most, noise_floor(observation, gradient))
    return most if low.rank == most else max(most, observation.batch_size)


def _invert_activations(
    hidden: Hidden, activations: Tensor, gradient: Tensor, observation: Observation
) -> Tensor:
    """Inputs (k, n) of a layer from its activations (k, m), record by record.

    Active units are linear equations: W x + c = h, or under a LayerNorm W x + c - mu 1 - sigma
    (h - shift) / gain = 0 with mu and sigma unknown. x is sought in the gradient's row space, which
    matters where the layer has more inputs than active units.
    """
    limit = min(observation.batch_size, *gradient.shape)
    low = LowRank.of(gradient, limit, noise_floor(observation, gradient))
    reach = hidden.weight @ low.right
    return torch.stack([_invert_record(hidden, h, reach, low.right) for h in activations])


def _invert_record(hidden: Hidden, h: Tensor, reach: Tensor, right: Tensor) -> Tensor:
    """Input (n,) of one record from its activations (m,); ``reach`` is [W | c] right."""
    # Activations below zero are errors, and tell how large errors are.
    noise = float(h.clamp_max(0.0).square().mean().sqrt())
    active = h > max(4 * noise, 1e-3 * float(h.max()))
    last = right[-1]  # of [x | 1]: must come out as one
    for _ in range(REFITS):
        target = ((h - hidden.shift) / hidden.gain)[active]
        design = reach[active]
        if hidden.norm is not None:
            design = torch.cat([design, -torch.ones_like(target)[:, None], -target[:, None]], dim=1)
            target = torch.zeros_like(target)
        heavy = 10.0 * float(design.norm())
        one = torch.cat([last, last.new_zeros(design.shape[1] - len(last))])
        design = torch.cat([design, heavy * one[None]])
        target = torch.cat([target, target.new_tensor([heavy])])
        solved = torch.linalg.lstsq(design, target[:, None], driver="gelsd").solution[:, 0]
        outputs = (reach @ solved[: len(last)]) / (last @ solved[: len(last)])
        again = hidden.normalise(outputs[None])[0] > 0
        if torch.equal(again, active):
            break
        active = again
    x = right @ solved[: len(last)]
    return x[:-1] / x[-1]


def _settle_last(
    hidden: Hidden, weight: Tensor, found: Deltas, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Inputs (k, n) and deltas (k, m) of the last hidden layer, whose active units are known.

    The directions found lie in the noisy gradient's column space; backpropagation through the known
    units, with normalised outputs from the inputs, needs no such projection.
    """
    inputs, scale, best = read_inputs(found.directions, gradient)
    deltas = scale[:, None] * found.directions
    for _ in range(SETTLING):
        directions = hidden.backward(inputs, weight, found.active)
        moved, scale, misfit = read_inputs(directions, gradient)
        if not misfit < best * (1 - 1e-3):
            break
        best, inputs, deltas = misfit, moved, scale[:, None] * directions
    return inputs, deltas


def _settle(
    hidden: Hidden, inputs: Tensor, upstream: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Makes a layer's inputs and deltas agree, given the gradients at its activations.

    Inputs give D by backpropagation, D gives inputs by least squares. Each is exact where the other
    is, and errors shrink because only units near zero change sides.
    """
    best = float("inf")
    chosen = inputs, hidden.backward(inputs, upstream)
    for _ in range(SETTLING):
        deltas = hidden.backward(inputs, upstream)
        ones = torch.ones_like(inputs[:, :1])
        misfit = float((gradient - deltas.T @ torch.cat([inputs, ones], dim=1)).norm())
        if not misfit < best * (1 - 1e-3):
            break
        best, chosen = misfit, (inputs, deltas)
        inputs = read_inputs(deltas, gradient)[0]
    return chosen
