"""What clients and server send each other, and when too few answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from defenses.aggregation import ThresholdError

Step = Literal["advertise", "share", "upload", "unmask"]
"""What a client does in each of the four rounds of one execution, in this order."""

STEPS: tuple[Step, ...] = get_args(Step)

_DONE = {
    "advertise": "advertised keys",
    "share": "shared their secrets",
    "upload": "uploaded",
    "unmask": "answered the unmasking",
}


@dataclass(frozen=True)
class Advertisement:
    """A client's public keys."""

    client: int
    channel: bytes
    """For messages from client to client."""
    mask: bytes
    """For pairwise masks."""


@dataclass(frozen=True)
class Unmasking:
    """The shares that one client hands over, by their owner: never both kinds of one owner."""

    client: int
    self_seeds: dict[int, bytes]
    """Of clients whose upload arrived."""
    mask_keys: dict[int, bytes]
    """Of clients that shared their secrets but did not upload."""


def require(step: Step, answers: int, clients: int, threshold: int) -> None:
    """Ends the execution if too few clients answered in a step.

    Raises:
        ThresholdError: fewer than ``threshold``.
    """
    if answers < threshold:
        raise ThresholdError(
            f"secure aggregation: {answers} of {clients} clients {_DONE[step]}, "
            f"{threshold} are needed, so the sum stays closed"
        )
