"""What a run remembers of each cell: validated records that reporting reads without torch.

One ``CellRecord`` is one trained (environment, defence, level, seed); one ``AttackRecord`` is one
attack on the releases that the cell captured. Nothing is dropped: a broken cell has a record too.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

CellState = Literal["ok", "failed", "diverged", "collapsed"]
"""``collapsed``: the policy ended at or below random. ``diverged``: weights became non-finite."""

ReleaseKind = Literal["probe", "deployed"]
"""``probe``: a batch of chosen size. ``deployed``: the minibatch that really trained the policy."""


class Record(BaseModel):
    """Base of all records: unknown fields are an error, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


class Evaluation(Record):
    """Greedy evaluation of the global policy at one moment of training."""

    round: int
    environment_steps: int
    """Steps of all clients together."""
    seconds: float
    """Training time until here, evaluation excluded."""
    returns: list[float]
    """Undiscounted return of each evaluation episode."""
    forward_returns: list[float]
    """The forward part of the reward, summed over each episode; empty where there is none."""
    lengths: list[int]


class Noise(Record):
    """Everything that defines the noise of a cell, so that no number stands without its scale."""

    gradient_norm: float
    """Mean L2 norm of the undefended probe gradients at the captures."""
    noise_norm: float
    """Root mean square of ||defended - undefended|| over the captured probes."""
    snr: float | None
    """gradient_norm^2 / noise_norm^2; None where the defence changes nothing."""
    noise_std: float | None
    """Standard deviation of Gaussian noise on each coordinate of one client's release."""


BLIND_CHANCE = 0.1
"""Of the guess that ``reconstruction_chance`` compares with."""


class PrivacyStatement(Record):
    """What may be claimed formally, and under which assumptions."""

    epsilon: float | None
    delta: float | None
    unit: str | None
    """Neighbouring relation, e.g. 'transition (add/remove), one client'."""
    accountant: str | None
    noise_multiplier: float | None = None
    clip_norm: float | None = None
    compositions: int | None = None
    reconstruction_chance: float | None = None
    """Largest chance to reconstruct a unit that a blind guess meets with ``BLIND_CHANCE``, from all
    that its client sent; under the same assumptions as epsilon. None where epsilon is None."""
    assumptions: list[str] = Field(default_factory=list)
    """What must hold for epsilon to be valid; where epsilon is None, why there is none."""


class CellRecord(Record):
    """One trained cell."""

    key: str
    """Hash of the cell's specification: the same key is the same computation."""
    env: str
    defense: str
    """The defence without its level, e.g. 'gaussian' or 'clip=1.0+quantize'."""
    level: float | None
    level_name: str | None
    """What the level means, e.g. 'variance'."""
    private_end: Literal["high", "low"] | None
    """Which end of the level's axis hides more."""
    seed: int
    budget: str
    state: CellState
    reason: str = ""
    """Why the state is not ok, in one line."""
    clients: int = 0
    batch_size: int = 0
    local_steps: int = 1
    """Gradient steps of a client in a round; 1 is FedSGD."""
    rounds: int = 0
    random_return: float = float("nan")
    zero_return: float = float("nan")
    """Return of the policy that always plays zero (or action 0)."""
    evaluations: list[Evaluation] = Field(default_factory=list)
    final_returns: list[float] = Field(default_factory=list)
    """Episode returns that make the cell's utility (last evaluations together)."""
    final_forward_returns: list[float] = Field(default_factory=list)
    noise: Noise | None = None
    privacy: PrivacyStatement | None = None
    void_rounds: int = 0
    """Rounds that taught nothing because too many clients dropped out to open any sum."""
    saturation_rate: float = 0.0
    """Share of coordinates beyond the range of the aggregation's encoding."""
    train_seconds: float = 0.0
    rounds_per_second: float = 0.0
    bytes_per_round: int = 0
    """Bytes that one client sends up in one round."""
    client_seconds: float | None = None
    """Seconds of all clients' gradients, defence and aggregation in one round: the median over the
    captured rounds. None if not recorded."""
    plain_client_seconds: float | None = None
    """Seconds of their plain gradients on the same minibatches."""
    versions: dict[str, str] = Field(default_factory=dict)
    machine: str = ""
    """Processor, operating system and Python; empty in records of earlier versions."""
    finished_at: str = ""
    """ISO 8601, UTC."""


class TargetScores(Record):
    """Scores of one target release (DESIGN: one definition each, in ``attacks.scores``)."""

    capture: int
    """Index of the capture point, 0 = earliest."""
    round: int
    client: int
    scores: dict[str, float | None]
    """ra, ra_prior, leakage, identified, nmse_state, ...; None where it is not defined."""


class AttackRecord(Record):
    """One attack on all captured releases of one kind of one cell."""

    cell_key: str
    attack: str
    release: ReleaseKind
    batch_size: int
    """Records behind one attacked release: minibatch times the clients in the sum, and for deployed
    releases times the local steps."""
    knowledge: str
    """What the adversary was granted, e.g. 'samples (0.3% of the training data)'."""
    prior_samples: int | None = None
    """How many transitions it held beforehand; None if not recorded."""
    targets: list[TargetScores] = Field(default_factory=list)
    skipped: str = ""
    """Why the attack did not run here, e.g. a missing capability; empty if it ran."""
    restarts: dict[str, float | None] = Field(default_factory=dict)
    """Consistency over random restarts: ed, ss, cd."""
    seconds_per_target: float = 0.0
