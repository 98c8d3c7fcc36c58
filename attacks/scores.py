"""How well a reconstruction names the true records: one definition of each score.

Only this module sees the ground truth. Errors are measured in sigma_j, the standard deviation of
coordinate j over reference transitions of the environment; coordinates with sigma_j < 1e-6 are left
out. A discrete action is one coordinate: right or wrong. Scores that are undefined are None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from attacks.attack import Reconstruction
from attacks.pixel_scores import pixel_scores
from attacks.prior import Prior, Simulator
from attacks.transitions import Template, Transitions, flatten_state

TOLERANCE = 0.1
"""A coordinate counts as reconstructed within this many sigma."""

PIXEL_TOLERANCE = 8.0
"""The same for uint8 states, in grey levels."""

Dynamics: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor] | None]
"""Like a ``Simulator``, but may not know."""

SIGMA_FLOOR = 1e-6
DECOYS = 999


@dataclass(frozen=True, eq=False)
class Reference:
    """Scale of an environment's transitions, and decoys to tell the true record from.

    Attributes:
        template: shapes, and whether actions are discrete.
        state, action, reward, next_state: sigma of each flattened coordinate, (S,), (A,), (1,),
            (S,). For discrete actions the single entry is the square root of the error rate of
            always guessing the commonest action, so that this guess has nmse one.
        decoys: other records of the environment, at least one.
    """

    template: Template
    state: Tensor
    action: Tensor
    reward: Tensor
    next_state: Tensor
    decoys: Transitions

    @cached_property
    def _decoy_fields(self) -> _Fields:
        """Of the decoys; converting hundreds of images takes longer than comparing with them."""
        return _Fields.of(self.decoys, self.template)

    @classmethod
    def fit(
        cls,
        transitions: Transitions,
        *,
        template: Template,
        decoys: Transitions | None = None,
        seed: int = 0,
    ) -> Reference:
        """Sigmas of ``transitions``; decoys are up to 999 of them, drawn from ``seed``.

        Neither should contain an attacked record, nor one that the prior was fitted from.
        """
        if transitions.batch_size < 2:
            raise ValueError("a reference needs at least two transitions")
        if decoys is None:
            generator = torch.Generator().manual_seed(seed)
            order = torch.randperm(transitions.batch_size, generator=generator)
            decoys = transitions[order[:DECOYS]]
        elif not decoys.batch_size:
            raise ValueError("a reference needs at least one decoy")
        flat = _Fields.of(transitions, template)
        if template.discrete:
            counts = flat.action.flatten().long().bincount()
            action = (1 - counts.max() / counts.sum()).double().sqrt()[None]
        else:
            action = flat.action.std(dim=0, correction=0)
        return cls(
            template=template,
            state=flat.state.std(dim=0, correction=0),
            action=action,
            reward=flat.reward.std(dim=0, correction=0),
            next_state=flat.next_state.std(dim=0, correction=0),
            decoys=decoys,
        )


def score(
    reconstruction: Reconstruction,
    truth: Transitions,
    prior: Prior,
    reference: Reference,
    *,
    simulator: Simulator | None = None,
) -> dict[str, float | None]:
    """All scores of one release, rows matched by optimal assignment.

    Keys: mse_* and nmse_* for state, action, reward, next_state; nmse (over state and action); ra,
    reward_accuracy, identified; te (under the adversary's model); gme; leakage; and ra_prior,
    reward_accuracy_prior, identified_prior, nmse_prior, te_prior, the same for the adversary that
    answers with the prior's mean. States that are images add psnr, ssim and exact_pixels (see
    ``pixel_scores``) and their *_prior. With a ``simulator`` also te_simulator and
    te_simulator_prior, the transition error under the real environment.

    Args:
        reconstruction: the attack's answer.
        truth: the records behind the release.
        prior: what the adversary was granted; the chance lines are relative to it.
        reference: scale and decoys.
        simulator: the real environment, whether or not the adversary has it.

    Raises:
        ValueError: if reconstruction and truth differ in shape.
    """
    answer = _score_transitions(reconstruction.transitions, truth, prior, reference)
    mean = prior.mean_transitions(truth.batch_size, reference.template)
    blind = _score_transitions(mean, truth, prior, reference)
    if reference.template.image:
        for z, suffix in ((reconstruction.transitions, ""), (mean, "_prior")):
            ordered = z.state[match_rows(z, truth, reference)]
            found = pixel_scores(ordered, truth.state)
            answer |= {f"{name}{suffix}": value for name, value in found.items()}
    answer["gme"] = reconstruction.gme if math.isfinite(reconstruction.gme) else None
    for key in ("ra", "reward_accuracy", "identified", "nmse", "te"):
        answer[f"{key}_prior"] = blind[key]
    answer["leakage"] = leakage(answer["ra"], answer["ra_prior"])
    if simulator is not None:
        # An answer is compared with itself here: its rows need no order.
        answer["te_simulator"] = _transition_error(reconstruction.transitions, simulator)
        answer["te_simulator_prior"] = _transition_error(mean, simulator)
    return answer


def leakage(ra: float | None, ra_prior: float | None) -> float | None:
    """max(0, (ra - ra_prior) / (1 - ra_prior)): the share that the gradient gave away.

    None if either is unknown or the prior alone reconstructs everything.
    """
    if ra is None or ra_prior is None or ra_prior >= 1:
        return None
    return max(0.0, (ra - ra_prior) / (1 - ra_prior))


def match_rows(guess: Transitions, truth: Transitions, reference: Reference) -> Tensor:
    """For each true row, the index of the reconstructed row assigned to it, (B,).

    Hungarian assignment on the mean squared (s, a) error in sigma. An unknown coordinate costs one
    sigma squared, as the prior's mean would on average.
    """
    ours, theirs = _Fields.of(guess, reference.template), _Fields.of(truth, reference.template)
    rows = [
        _state_action_error(ours.take(slice(i, i + 1)), theirs, reference)
        for i in range(len(truth))
    ]
    cost = torch.stack([e.square().nan_to_num(nan=1.0).mean(dim=1) for e in rows], dim=1)
    return torch.from_numpy(linear_sum_assignment(cost.numpy())[1])


def consistency(
    reconstructions: Sequence[Reconstruction], reference: Reference
) -> dict[str, float | None]:
    """Agreement of random restarts, over all targets: keys ed, ss, cd.

    Each restart is one vector of its known (s, a, r, s'), in sigma from the decoys' mean (else the
    offset of that mean would hide every difference of direction), rows aligned to the first's.
    ed and cd: mean pairwise Euclidean and cosine distance within a target, averaged over targets.
    ss: silhouette score with the target as cluster. RGIA (arXiv 2512.00303) reports these but not
    their formulas; the formulas are ours. None where fewer than two restarts, or for ss two
    targets, exist.
    """
    points, labels = [], []
    for label, reconstruction in enumerate(reconstructions):
        for restart in reconstruction.restarts:
            rows = match_rows(restart, reconstruction.restarts[0], reference)
            points.append(_known_vector(restart[rows], reference))
            labels.append(label)
    counts = np.bincount(labels) if labels else np.zeros(0, dtype=int)
    if len(counts) == 0 or counts[counts > 0].max() < 2:
        return {"ed": None, "ss": None, "cd": None}
    from scipy.spatial.distance import pdist

    x, y = torch.stack(points).numpy(), np.asarray(labels)
    groups = [x[y == label] for label in np.unique(y) if (y == label).sum() > 1]
    euclidean = [float(pdist(group).mean()) for group in groups]
    # A zero vector, every coordinate zero, has no direction: its distance is NaN and left out.
    cosine = [float(np.nanmean(pdist(group, "cosine"))) for group in groups]
    ss = None
    if 2 <= len(np.unique(y)) < len(y):
        from sklearn.metrics import silhouette_score

        ss = float(silhouette_score(x, y))
    return {"ed": float(np.mean(euclidean)), "ss": ss, "cd": _finite(float(np.mean(cosine)))}


@dataclass(frozen=True, eq=False)
class _Fields:
    """Transitions as float64 matrices; a discrete action is its number, (B, 1).

    Grey levels are float32, which holds them exactly: a thousand images take half the time.
    """

    state: Tensor
    action: Tensor
    reward: Tensor
    next_state: Tensor

    @classmethod
    def of(cls, z: Transitions, template: Template) -> _Fields:
        z = z.to(device="cpu")
        if template.discrete and z.action.is_floating_point() and z.action.dim() == 2:
            raise ValueError("scores need decided discrete actions, got relaxed weights")
        dtype = torch.float32 if template.state_dtype == torch.uint8 else torch.float64
        return cls(
            state=flatten_state(z.state, dtype).detach().to(dtype),
            action=z.action.reshape(len(z), -1).detach().double(),
            reward=z.reward[:, None].detach().double(),
            next_state=flatten_state(z.next_state, dtype).detach().to(dtype),
        )

    def take(self, rows: slice | Tensor) -> _Fields:
        return _Fields(
            self.state[rows], self.action[rows], self.reward[rows], self.next_state[rows]
        )


def _score_transitions(
    guess: Transitions, truth: Transitions, prior: Prior, reference: Reference
) -> dict[str, float | None]:
    if guess.state.shape != truth.state.shape or guess.action.shape != truth.action.shape:
        raise ValueError(
            f"reconstruction {tuple(guess.state.shape)}, {tuple(guess.action.shape)} and truth "
            f"{tuple(truth.state.shape)}, {tuple(truth.action.shape)} differ in shape"
        )
    guess = guess[match_rows(guess, truth, reference)]
    ours, theirs = _Fields.of(guess, reference.template), _Fields.of(truth, reference.template)
    scores: dict[str, float | None] = {}
    for name in ("state", "action", "reward", "next_state"):
        sigma = getattr(reference, name)
        error = getattr(ours, name) - getattr(theirs, name)
        if name == "action" and reference.template.discrete:
            error = (error != 0).double()
        keep = sigma >= SIGMA_FLOOR
        scores[f"mse_{name}"] = _mean(error.square())
        scores[f"nmse_{name}"] = _mean((error[:, keep] / sigma[keep]).square())
    error = _state_action_error(ours, theirs, reference)
    scores["nmse"] = _mean(error.square())
    scores["ra"] = _accuracy(error, _tolerances(reference))
    reward_error = (ours.reward - theirs.reward) / reference.reward.clamp_min(SIGMA_FLOOR)
    varies = bool((reference.reward >= SIGMA_FLOOR).all())
    scores["reward_accuracy"] = (
        _accuracy(reward_error, torch.tensor([TOLERANCE], dtype=torch.float64)) if varies else None
    )
    scores["identified"] = _identified(ours, theirs, reference)
    scores["te"] = _transition_error(guess, prior.predict)
    return scores


def _state_action_error(ours: _Fields, theirs: _Fields, reference: Reference) -> Tensor:
    """(B, K) errors of the varying (s, a) coordinates, in sigma; a wrong discrete action is one.

    The single row of ``ours`` may be compared with many of ``theirs``.
    """
    keep = reference.state >= SIGMA_FLOOR
    state = (ours.state[:, keep] - theirs.state[:, keep]) / reference.state[keep]
    if reference.template.discrete:
        return torch.cat([state, (ours.action != theirs.action).to(state)], dim=1)
    keep = reference.action >= SIGMA_FLOOR
    action = (ours.action[:, keep] - theirs.action[:, keep]) / reference.action[keep]
    return torch.cat([state, action], dim=1)


def _tolerances(reference: Reference) -> Tensor:
    """(K,) largest accepted error of each (s, a) coordinate, in sigma."""
    sigma = reference.state[reference.state >= SIGMA_FLOOR]
    state = torch.full_like(sigma, TOLERANCE)
    if reference.template.state_dtype == torch.uint8:
        state = PIXEL_TOLERANCE / sigma
    actions = 1 if reference.template.discrete else int((reference.action >= SIGMA_FLOOR).sum())
    return torch.cat([state, torch.full((actions,), TOLERANCE, dtype=sigma.dtype)])


def _accuracy(error: Tensor, tolerance: Tensor) -> float | None:
    """Share of coordinates within tolerance; unknown ones are missed, None if all are unknown."""
    if error.numel() == 0 or bool(error.isnan().all()):
        return None
    return float((error.abs() <= tolerance).double().mean())


def _identified(ours: _Fields, theirs: _Fields, reference: Reference) -> float | None:
    """Share of rows nearer to the true record than to every decoy, over the known coordinates."""
    decoys = reference._decoy_fields
    hits = []
    for i in range(len(ours.reward)):
        guess, true = ours.take(slice(i, i + 1)), theirs.take(slice(i, i + 1))
        if bool(_state_action_error(guess, true, reference).isnan().all()):
            return None
        own = _state_action_error(guess, true, reference).square().nansum(dim=1)
        others = _state_action_error(guess, decoys, reference).square().nansum(dim=1)
        hits.append(bool((own < others).all()))
    return sum(hits) / len(hits)


def _transition_error(z: Transitions, dynamics: Dynamics) -> float | None:
    """Mean over rows of ||f(s~, a~) - s~'||, f the adversary's model or the real environment."""
    predicted = dynamics(z.state, z.action)
    if predicted is None:
        return None
    return _mean((predicted[0] - z.next_state).reshape(len(z), -1).norm(dim=1))


def _known_vector(z: Transitions, reference: Reference) -> Tensor:
    """All varying numbers of a batch in sigma from the decoys' mean, flattened; unknown ones zero.

    A discrete action is one-hot.
    """
    fields = _Fields.of(z, reference.template)
    decoys = reference._decoy_fields
    parts = []
    for name in ("state", "action", "reward", "next_state"):
        value, sigma = getattr(fields, name), getattr(reference, name)
        if name == "action" and reference.template.action_count is not None:
            parts.append(
                torch.nn.functional.one_hot(z.action.cpu(), reference.template.action_count)
            )
            continue
        keep = sigma >= SIGMA_FLOOR
        centered = value[:, keep] - getattr(decoys, name).mean(dim=0)[keep]
        parts.append(centered / sigma[keep])
    return torch.cat(parts, dim=1).flatten().nan_to_num(nan=0.0)


def _mean(x: Tensor) -> float | None:
    return _finite(float(x.mean())) if x.numel() else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
