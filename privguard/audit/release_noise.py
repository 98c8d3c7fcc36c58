"""How much a defence changes a gradient, measured on the probes."""

from __future__ import annotations

import numpy as np

from privguard.audit.captures import CellCaptures
from privguard.audit.observing import described
from privguard.records import Noise
from privguard.spec import CellSpec


def measure_noise(cell: CellSpec, captures: CellCaptures) -> Noise | None:
    """Norm of the probes' undefended gradients and of what the defence changes in them."""
    probes = [release for capture in captures.captures for release in capture.releases["probe"]]
    if not probes:
        return None
    norms = np.array([float(release.undefended.norm()) for release in probes])
    noise = np.array([float((r.gradient - r.undefended).norm()) for r in probes])
    noise_norm = float(np.sqrt(np.mean(noise**2)))
    last = captures.captures[-1].defense.get("probe")
    description = last or described(cell, cell.probe_batch_size)
    stds = [entry["noise_std"] for entry in description if "noise_std" in entry]
    return Noise(
        gradient_norm=float(norms.mean()),
        noise_norm=noise_norm,
        snr=float(np.mean(norms**2)) / noise_norm**2 if noise_norm > 0 else None,
        noise_std=float(np.sqrt(np.sum(np.square(stds)))) if stds else None,
    )
