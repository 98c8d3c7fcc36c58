"""What a deployment allows, and how it is said in words."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict

MAX_LEAKAGE = 0.1
MAX_REWARD_LOSS = 0.05


class Limits(BaseModel):
    """Constraints on a level; None puts no constraint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_leakage: float = MAX_LEAKAGE
    """Largest worst-case leakage of a release, 0 to 1."""
    max_reward_loss: float = MAX_REWARD_LOSS
    """Largest share of the undefended policy's normalised return that may be lost, 0 to 1."""
    max_identified: float | None = None
    """Largest share of records picked out of 1,000 by their reconstruction, 0 to 1."""
    max_epsilon: float | None = None
    """Largest epsilon; a level without a formal guarantee does not keep it."""
    max_bytes: float | None = None
    """Largest number of bytes that one client may send up in one round."""

    @property
    def min_reward(self) -> float:
        """The normalised return that must be kept."""
        return 1 - self.max_reward_loss

    @property
    def text(self) -> str:
        """E.g. 'leakage ≤ 0.1, reward loss ≤ 0.05'."""
        parts = [f"leakage ≤ {self.max_leakage:g}", f"reward loss ≤ {self.max_reward_loss:g}"]
        if self.max_identified is not None:
            parts.append(f"identified ≤ {self.max_identified:g}")
        if self.max_epsilon is not None:
            parts.append(f"ε ≤ {self.max_epsilon:g}")
        if self.max_bytes is not None:
            parts.append(f"bytes up ≤ {self.max_bytes:,.0f} a round and client")
        return ", ".join(parts)

    def problem(self) -> str | None:
        """The first limit that cannot be meant, as 'max_leakage 2: must be from 0 to 1'."""
        for name in ("max_leakage", "max_reward_loss", "max_identified"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                return f"{name} {value:g}: must be from 0 to 1"
        for name in ("max_epsilon", "max_bytes"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                return f"{name} {value:g}: must be a finite number above 0"
        return None
