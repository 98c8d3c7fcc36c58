"""What happens to a client's gradient before the server sees it.

Works on any torch module and any per-sample loss::

    defense = defenses.parse("dp-sgd=1.0+secagg")
    with defense.bind(module, clients=4, batch_size=32, generator=generator) as session:
        releases = session.release(losses, owner)      # (clients, P)
        aggregate = session.aggregate(releases)        # what the server sees

A pipeline has three stages, each optional: one **per-sample** stage (``dp-sgd``), any number of
**transforms** of a client's mean gradient (``gaussian``, ``laplace``, ``clip``, ``layer-clip``,
``quantize``, ``topk``, ``randk``, ...) and one **aggregation** (plain, ``secagg``,
``distributed-dp`` or ``he``). Importing this package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from defenses.registry import (
    DefenseError,
    DefenseInfo,
    available_defenses,
    get_defense_class,
    register_defense,
)

if TYPE_CHECKING:
    from defenses.accounting import Accountant
    from defenses.aggregation import Aggregate, ThresholdError, View
    from defenses.client_accounting import ClientAccountant
    from defenses.conformance import ConformanceError, check_defense
    from defenses.layout import Layout
    from defenses.pipeline import Defense, parse
    from defenses.session import Session

__all__ = [
    "Accountant",
    "Aggregate",
    "ClientAccountant",
    "ConformanceError",
    "Defense",
    "DefenseError",
    "DefenseInfo",
    "Layout",
    "Session",
    "ThresholdError",
    "View",
    "available_defenses",
    "check_defense",
    "get_defense_class",
    "parse",
    "register_defense",
]

_LAZY = {
    "Accountant": "accounting",
    "Aggregate": "aggregation",
    "ThresholdError": "aggregation",
    "ClientAccountant": "client_accounting",
    "View": "aggregation",
    "ConformanceError": "conformance",
    "check_defense": "conformance",
    "Layout": "layout",
    "Defense": "pipeline",
    "parse": "pipeline",
    "Session": "session",
}


def __getattr__(name: str) -> Any:
    """Imports the modules that need torch at first use (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module 'defenses' has no attribute {name!r}")
    return getattr(importlib.import_module(f"defenses.{_LAZY[name]}"), name)
