"""Named random generators: every stream of a cell is derived from its one seed and a name.

Two streams with different names are independent; the same seed and name give the same numbers on
every run, so a defended cell shares its environment, initialisation and exploration streams with
the undefended cell of the same seed. The global generators are never touched.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream ``names`` of ``seed``."""
    text = ":".join([str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """The NumPy generator of a named stream."""
    return np.random.default_rng(derive_seed(seed, *names))


def torch_generator(seed: int, *names: str | int) -> torch.Generator:
    """The CPU torch generator of a named stream."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))
