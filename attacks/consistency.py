"""Whether an attack's random restarts agree: what RGIA reports where the truth is unknown."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from attacks.attack import Reconstruction
from attacks.reference import SIGMA_FLOOR, Fields, Reference, match_rows
from attacks.transitions import Transitions


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
    cd = float(np.mean(cosine))
    return {"ed": float(np.mean(euclidean)), "ss": ss, "cd": cd if math.isfinite(cd) else None}


def _known_vector(z: Transitions, reference: Reference) -> Tensor:
    """All varying numbers of a batch in sigma from the decoys' mean, flattened; unknown ones zero.

    A discrete action is one-hot.
    """
    fields = Fields.of(z, reference.template)
    decoys = reference.decoy_fields
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
