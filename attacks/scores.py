"""How well a reconstruction names the true records: one definition of each score.

Only scores see the ground truth. Errors are measured as ``reference`` says. Scores that are
undefined are None.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from attacks.attack import Reconstruction
from attacks.pixel_scores import pixel_scores
from attacks.prior import Prior, Simulator
from attacks.reference import SIGMA_FLOOR, Fields, Reference, match_rows, state_action_error
from attacks.transitions import Transitions

TOLERANCE = 0.1
"""A coordinate counts as reconstructed within this many sigma."""

PIXEL_TOLERANCE = 8.0
"""The same for uint8 states, in grey levels."""

Dynamics: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor] | None]
"""Like a ``Simulator``, but may not know."""


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


def _score_transitions(
    guess: Transitions, truth: Transitions, prior: Prior, reference: Reference
) -> dict[str, float | None]:
    if guess.state.shape != truth.state.shape or guess.action.shape != truth.action.shape:
        raise ValueError(
            f"reconstruction {tuple(guess.state.shape)}, {tuple(guess.action.shape)} and truth "
            f"{tuple(truth.state.shape)}, {tuple(truth.action.shape)} differ in shape"
        )
    guess = guess[match_rows(guess, truth, reference)]
    ours, theirs = Fields.of(guess, reference.template), Fields.of(truth, reference.template)
    scores: dict[str, float | None] = {}
    for name in ("state", "action", "reward", "next_state"):
        sigma = getattr(reference, name)
        error = getattr(ours, name) - getattr(theirs, name)
        if name == "action" and reference.template.discrete:
            error = (error != 0).double()
        keep = sigma >= SIGMA_FLOOR
        scores[f"mse_{name}"] = _mean(error.square())
        scores[f"nmse_{name}"] = _mean((error[:, keep] / sigma[keep]).square())
    error = state_action_error(ours, theirs, reference)
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


def _identified(ours: Fields, theirs: Fields, reference: Reference) -> float | None:
    """Share of rows nearer to the true record than to every decoy, over the known coordinates."""
    decoys = reference.decoy_fields
    hits = []
    for i in range(len(ours.reward)):
        guess, true = ours.take(slice(i, i + 1)), theirs.take(slice(i, i + 1))
        if bool(state_action_error(guess, true, reference).isnan().all()):
            return None
        own = state_action_error(guess, true, reference).square().nansum(dim=1)
        others = state_action_error(guess, decoys, reference).square().nansum(dim=1)
        hits.append(bool((own < others).all()))
    return sum(hits) / len(hits)


def _transition_error(z: Transitions, dynamics: Dynamics) -> float | None:
    """Mean over rows of ||f(s~, a~) - s~'||, f the adversary's model or the real environment."""
    predicted = dynamics(z.state, z.action)
    if predicted is None:
        return None
    return _mean((predicted[0] - z.next_state).reshape(len(z), -1).norm(dim=1))


def _mean(x: Tensor) -> float | None:
    return _finite(float(x.mean())) if x.numel() else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
