"""Gradient inversion attacks: what a curious server can learn from one client's release.

Works on any torch model and any loss. Names are imported on first use, so that ``import attacks``
does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attacks.attack import Attack, Reconstruction
    from attacks.channel import Channel
    from attacks.conformance import check_attack
    from attacks.local_training import LocalTraining
    from attacks.observation import Observation
    from attacks.prior import Prior
    from attacks.registry import available_attacks, get_attack, register_attack
    from attacks.transitions import Template, Transitions

_HOME = {
    "Attack": "attack",
    "Channel": "channel",
    "LocalTraining": "local_training",
    "Observation": "observation",
    "Prior": "prior",
    "Reconstruction": "attack",
    "Template": "transitions",
    "Transitions": "transitions",
    "available_attacks": "registry",
    "check_attack": "conformance",
    "get_attack": "registry",
    "register_attack": "registry",
}

__all__ = [
    "Attack",
    "Channel",
    "LocalTraining",
    "Observation",
    "Prior",
    "Reconstruction",
    "Template",
    "Transitions",
    "available_attacks",
    "check_attack",
    "get_attack",
    "register_attack",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'attacks' has no attribute {name!r}")
    return getattr(importlib.import_module(f"attacks.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
