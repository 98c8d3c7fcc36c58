"""What the adversary knew before it saw a gradient: a choice of the audit, not of the training.

The same captured releases can be attacked under several knowledges; their records stand side by
side. A capture keeps at most ``LARGEST_FRACTION`` of the training data for the adversary, so larger
priors would need a new training.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from privguard.catalogue import nearest
from privguard.errors import BadInput

KnowledgeName = Literal["none", "samples", "simulator"]
"""``none``: shapes and ranges. ``samples``: transitions of the same training as well.
``simulator``: the environment itself, to step from any state, besides the samples."""

DEFAULT_FRACTION = 0.003
"""Share of the training data that the adversary holds, as in RGIA (arXiv 2512.00303)."""
LARGEST_FRACTION = 0.03
FEWEST_SAMPLES = 64
"""0.3% of a very short run would be no prior at all."""


class Knowledge(BaseModel):
    """One kind of adversary. Its ``label`` names it in records and tables."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: KnowledgeName = "samples"
    prior_fraction: Annotated[float, Field(gt=0, le=LARGEST_FRACTION)] = DEFAULT_FRACTION

    @property
    def label(self) -> str:
        """E.g. "samples (0.3% of the training data)"; equal for equal knowledge alone."""
        if self.kind == "none":
            return "none"
        samples = f"samples ({format_share(self.prior_fraction)} of the training data)"
        return samples if self.kind == "samples" else f"simulator, {samples}"

    @property
    def grants(self) -> frozenset[str]:
        """What attacks may ask for, of "samples" and "simulator"; as ``Prior.grants``."""
        return {
            "none": frozenset[str](),
            "samples": frozenset({"samples"}),
            "simulator": frozenset({"samples", "simulator"}),
        }[self.kind]

    def samples(self, population: int, held: int) -> int:
        """Transitions granted out of a training with ``population``, of which captures hold some.

        Raises:
            BadInput: more than the ``held``.
        """
        if self.kind == "none":
            return 0
        wanted = sample_count(self.prior_fraction, population)
        if wanted > held:
            raise BadInput(
                f"--prior-fraction {self.prior_fraction:g}: needs {wanted} transitions, the "
                f"captures hold {held} of {population} for the adversary "
                f"(allowed: up to {math.floor(1e5 * held / population) / 1e5:g})"
            )
        return wanted


def sample_count(fraction: float, population: int) -> int:
    """Transitions that a share of the training data comes to, and at least a few."""
    return max(FEWEST_SAMPLES, round(fraction * population))


def format_share(share: float) -> str:
    """E.g. "0.3%"."""
    return f"{100 * share:g}%"


def chosen_knowledge(kind: str, prior_fraction: float | None) -> Knowledge:
    """The knowledge that the options name.

    Raises:
        BadInput: unknown kind, a share out of range, or samples for an adversary without any.
    """
    allowed = get_args(KnowledgeName)
    if kind not in allowed:
        raise BadInput(
            f"--knowledge {kind}: unknown{nearest(kind, list(allowed))} "
            f"(allowed: {', '.join(allowed)})"
        )
    if prior_fraction is None:
        return Knowledge.model_validate({"kind": kind})
    if kind == "none":
        raise BadInput(f"--prior-fraction {prior_fraction:g}: --knowledge none grants no samples")
    if not 0 < prior_fraction <= LARGEST_FRACTION:
        raise BadInput(
            f"--prior-fraction {prior_fraction:g}: must be above 0 and at most "
            f"{LARGEST_FRACTION:g}, the share that captures keep for the adversary"
        )
    return Knowledge.model_validate({"kind": kind, "prior_fraction": prior_fraction})
