"""The columns of ``frontier.csv``: one (defence, level, attack, release, knowledge) a row."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from privguard.records import CellState, ReleaseKind
from privguard.reporting.returns import UNDEFENDED


class FrontierRow(BaseModel):
    """One row of ``frontier.csv``; the columns stand in this order.

    ``*_low`` and ``*_high`` bound the bootstrap 95% interval of the ``*_mean`` before them.
    Anything that could not be measured is None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    env: str
    defense: str
    level: float | None
    epsilon: float | None
    """Largest over seeds; None where there is no formal guarantee."""
    delta: float | None
    attack: str | None
    """None for a level whose cells have not been attacked (yet)."""
    release: ReleaseKind | None
    batch_size: int | None
    targets: int
    seeds: int
    """Seeds with attacked targets; without an attack, seeds with a return."""
    ra_mean: float | None
    ra_low: float | None
    ra_high: float | None
    ra_prior: float | None
    leakage_mean: float | None
    leakage_low: float | None
    leakage_high: float | None
    identified_mean: float | None
    nmse_mean: float | None
    floor_nmse: float | None
    return_mean: float | None
    return_low: float | None
    return_high: float | None
    normalized_return_mean: float | None
    normalized_return_low: float | None
    normalized_return_high: float | None
    snr: float | None
    """Median over seeds; None where the defence adds nothing."""

    efficiency: float | None
    """floor_nmse / nmse_mean: 1 for an attack that wastes nothing the noise left."""
    limit_ra: float | None
    """Accuracy of an attacker at the floor."""
    state: CellState
    """The worst state among the level's cells."""
    cells: int
    cells_not_ok: int
    forward_return_mean: float | None
    idle_return: float | None
    """The better of random and zero action: zero of the normalised return."""
    level_name: str | None
    private_end: str | None
    """Which end of the level's axis hides more: 'high' or 'low'."""
    knowledge: str
    """What the adversary was granted beforehand; chance lines and leakage are relative to it."""
    prior_samples: int | None
    """Transitions that it held; smallest over seeds."""
    reward_accuracy_mean: float | None
    reward_accuracy_prior: float | None
    identified_prior: float | None
    identified_low: float | None = None
    identified_high: float | None = None
    """Widened to what so few targets can show (``statistics.bootstrap_share``)."""
    nmse_low: float | None = None
    nmse_high: float | None = None
    gradient_norm: float | None
    noise_norm: float | None
    noise_std: float | None
    noise_multiplier: float | None
    clip_norm: float | None
    privacy_unit: str | None
    accountant: str | None
    clients: int
    train_batch_size: int
    bytes_per_round: int
    """Bytes that one client sends up in one round."""
    train_seconds: float | None
    client_seconds_per_round: float | None = None
    """Of one client: gradient, defence and its share of the aggregation, at the captured rounds."""
    client_seconds_ratio: float | None = None
    """The same relative to the plain gradients of the same minibatches."""
    psnr_mean: float | None = None
    """Of images, in dB; None elsewhere, as for the others below."""
    psnr_prior: float | None = None
    ssim_mean: float | None = None
    ssim_prior: float | None = None
    exact_pixels_mean: float | None = None
    """Share of pixels that are the true grey level after rounding."""
    exact_pixels_prior: float | None = None
    reconstruction_chance: float | None = None
    """Largest over seeds; see ``records.PrivacyStatement``."""

    @property
    def undefended(self) -> bool:
        """Whether this is the control without a defence."""
        return self.defense == UNDEFENDED

    @property
    def usable(self) -> bool:
        """Whether every cell of this level ended well: the others are never recommended."""
        return self.state == "ok"
