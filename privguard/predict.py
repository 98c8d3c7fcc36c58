"""``privguard predict``: the limits of a clean capture, without training a defended policy.

The Fisher information of Gaussian noise is that of unit noise divided by the variance, so one
linearisation of clean gradients gives the floor of every noise level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.optimize import brentq

from attacks.bounds import RecordInformation
from attacks.channel import Channel
from attacks.scores import leakage
from privguard.audit.captures import CellCaptures
from privguard.auditing import Audit
from privguard.budgets import budget
from privguard.errors import BadInput
from privguard.knowledge import Knowledge
from privguard.recipes import agent_settings
from privguard.run_files import RunFiles
from privguard.spec import CellSpec
from privguard.training import CellTraining

NOISE = tuple(float(x) for x in 10.0 ** np.arange(-4, 3.01, 0.5))
"""Standard deviations of the noise on each coordinate of one client's gradient."""

PROBES = 8
"""Probe batches of each client behind a prediction at initialisation."""


class Point(BaseModel):
    """The limits at one noise level; means over the captured probes."""

    model_config = ConfigDict(frozen=True)

    noise_std: float
    floor_nmse: float
    """Least mean squared error of (s, a), in prior variances."""
    accuracy: float
    """Share of coordinates within 0.1 sigma for an attacker at the floor."""
    leakage: float


class Prediction(BaseModel):
    """Curves of Gaussian noise, without and with clipping, and where they cross a wanted floor."""

    model_config = ConfigDict(frozen=True)

    env: str
    networks: str
    batch_size: int
    releases: int
    """How many releases of the same record the server puts together."""
    probes: int
    gradient_norm: float
    """Median norm of the probes' clean gradients."""
    share: float
    gaussian: list[Point]
    gaussian_std: float | None
    """Noise at which the floor is ``share`` of the prior's variance; None outside the curve."""
    clip_norm: float
    clipped: list[Point]
    """The same on gradients whose records are clipped to ``clip_norm``, as dp-sgd does."""
    noise_multiplier: float | None
    """dp-sgd's noise multiplier at which the floor is ``share``, for probes of this size."""


def fresh_captures(
    env: str, observation: str, probe_batch_size: int, seed: int
) -> tuple[CellSpec, CellCaptures]:
    """Probes of an undefended federation at initialisation, on random experience; seconds."""
    from privguard.environments import environment_spec

    smoke = budget("smoke", env, observation).model_copy(
        update={
            "rounds": 1,
            "warmup_steps": 1000,
            "evaluations": 1,
            "captures": (0.0,),
            "probe_draws": PROBES,
        }
    )
    cell = CellSpec(
        env=env,
        observation=observation,
        seed=seed,
        probe_batch_size=probe_batch_size,
        budget=smoke,
        agent=agent_settings(environment_spec(env), None, observation=observation),
    )
    training = CellTraining(cell)
    training.run()
    training.close()
    return cell, training.captures


def run_captures(directory: Path, cells: Sequence[CellSpec]) -> list[tuple[CellSpec, CellCaptures]]:
    """Captures of a run's undefended cells.

    Raises:
        BadInput: the run has none.
    """
    files = RunFiles(directory)
    found = [
        (cell, CellCaptures.unpack(*files.load_captures(cell.key)))
        for cell in cells
        if cell.defense == "none" and files.has_captures(cell.key)
    ]
    if not found:
        raise BadInput(f"--run {directory}: holds no captures of an undefended cell")
    return found


def predict(
    captured: Sequence[tuple[CellSpec, CellCaptures]],
    *,
    share: float,
    clip_norm: float,
    networks: str,
    releases: int = 1,
) -> Prediction:
    """The limits under Gaussian noise of any size on these clean captures.

    Args:
        captured: cells and their captures, as of ``fresh_captures`` or ``run_captures``.
        share: the floor that is asked for, in prior variances, between 0 and 1.
        clip_norm: of dp-sgd, above 0.
        networks: what to call the networks.
        releases: rounds in which a record takes part. Information of independent noise adds up, so
            this is the noise of one release divided by its root.

    Raises:
        BadInput: the environment has discrete actions or layers that are not dense.
    """
    audits = [Audit.prepare(cell, captures, Knowledge()) for cell, captures in captured]
    cell = captured[0][0]
    plain = _information(audits, Channel(noise_std=1.0))
    if not plain:
        raise BadInput(
            f"--env {cell.env}: no floor for discrete actions, networks that are not dense, or "
            "sums over local steps"
        )
    dp_sgd = {"mechanism": "dp-sgd", "clip_norm": clip_norm, "noise_std": 1.0}
    clipped = _information(audits, Channel.from_description([dp_sgd]))
    prior = float(np.mean([_blind_accuracy(audit) for audit in audits]))
    norms = [
        float(probe.undefended.norm())
        for audit in audits
        for capture in audit.captures.captures
        for probe in capture.releases["probe"]
    ]
    together = math.sqrt(releases)
    clipped_std = _crossing(clipped, share, together)
    return Prediction(
        env=cell.env,
        networks=networks,
        batch_size=cell.probe_batch_size,
        releases=releases,
        probes=len(norms),
        gradient_norm=float(np.median(norms)),
        share=share,
        gaussian=[_point(plain, std, prior, together) for std in NOISE],
        gaussian_std=_crossing(plain, share, together),
        clip_norm=clip_norm,
        clipped=[_point(clipped, std, prior, together) for std in NOISE],
        noise_multiplier=(
            None if clipped_std is None else clipped_std * cell.probe_batch_size / clip_norm
        ),
    )


def render(prediction: Prediction) -> str:
    """The prediction as text for a terminal."""
    lines = [
        f"{prediction.env}, {prediction.networks}: {prediction.probes} clean probes of batch "
        f"{prediction.batch_size}, gradient norm {prediction.gradient_norm:.3g}"
        + (f"; each in {prediction.releases} releases" if prediction.releases > 1 else ""),
        "",
        f"{'':>10}{'Gaussian noise':^30}{f'clipped to {prediction.clip_norm:g}, then noise':^30}",
        f"{'noise std':>10}" + f"{'floor':>10}{'accuracy':>10}{'leakage':>10}" * 2,
    ]
    for plain, clipped in zip(prediction.gaussian, prediction.clipped, strict=True):
        lines.append(
            f"{plain.noise_std:>10.2g}"
            + "".join(
                f"{p.floor_nmse:>10.2g}{p.accuracy:>10.2f}{p.leakage:>10.2f}"
                for p in (plain, clipped)
            )
        )
    wanted = f"no attacker's error can be below {prediction.share:.0%} of the prior's variance"
    lines.append("")
    if prediction.gaussian_std is None:
        lines.append(f"Gaussian: no noise of this table makes sure that {wanted}.")
    else:
        std = prediction.gaussian_std
        lines.append(f"Gaussian: from std {std:.2g} (gaussian={std**2:.2g}) on, {wanted}.")
    if prediction.noise_multiplier is not None:
        lines.append(
            f"dp-sgd@clip={prediction.clip_norm:g}: the same from noise multiplier "
            f"{prediction.noise_multiplier:.2g} on."
        )
    lines.append(
        "floor: mean squared error of (s, a) in prior variances, local Bayesian Cramer-Rao bound "
        "with the best Gaussian prior."
    )
    return "\n".join(lines)


def _information(audits: Sequence[Audit], channel: Channel) -> list[RecordInformation]:
    return [
        information
        for audit in audits
        for index in range(len(audit.captures.captures))
        for information in audit.information(index, channel=channel)
        if information is not None
    ]


def _blind_accuracy(audit: Audit) -> float:
    """Reconstruction accuracy of the prior's mean on the captured probes."""
    from attacks.attack import Reconstruction
    from attacks.scores import score

    scores = []
    for capture in audit.captures.captures:
        for probe in capture.releases["probe"]:
            mean = audit.prior.mean_transitions(probe.truth.batch_size, audit.template)
            blind = Reconstruction(mean, 0.0, 1.0)
            scores.append(score(blind, probe.truth, audit.prior, audit.reference)["ra_prior"] or 0)
    return float(np.mean(scores))


def _floor(information: Sequence[RecordInformation], std: float) -> float:
    return float(np.mean(np.concatenate([i.floor(1 / std**2).numpy() for i in information])))


def _point(
    information: Sequence[RecordInformation], std: float, prior: float, together: float
) -> Point:
    """At noise ``std`` on each release, of as many as make it ``together`` times smaller."""
    releases = (together / std) ** 2
    accuracy = float(
        np.mean(
            np.concatenate([i.expected_accuracy(releases=releases).numpy() for i in information])
        )
    )
    return Point(
        noise_std=std,
        floor_nmse=_floor(information, std / together),
        accuracy=accuracy,
        leakage=leakage(accuracy, prior) or 0.0,
    )


def _crossing(
    information: Sequence[RecordInformation], share: float, together: float
) -> float | None:
    """The noise at which the mean floor is ``share`` of the prior's variance."""

    def excess(log_std: float) -> float:
        return _floor(information, float(np.exp(log_std)) / together) - share

    low, high = np.log(NOISE[0]), np.log(NOISE[-1])
    if excess(low) > 0 or excess(high) < 0:
        return None
    return float(np.exp(brentq(excess, low, high, xtol=1e-3)))
