"""The registry: one defence, one file, one decorator.

The decorator's arguments must be literals, so that a listing can read names, levels and grids from
the source with ``ast`` and never import torch.
"""

from __future__ import annotations

import difflib
import importlib
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

Stage = Literal["per-sample", "transform", "aggregation"]


class DefenseError(ValueError):
    """A defence that cannot be built or used as asked; the message is one line for the user."""


@dataclass(frozen=True)
class DefenseInfo:
    """What a registered defence says about itself, as passed to :func:`register_defense`."""

    name: str
    stage: Stage
    level: str | None
    """Meaning of the level, e.g. ``"variance"``; None for a defence without a level."""
    grid: tuple[float, ...]
    minimum: float | None
    maximum: float | None
    exclusive_minimum: bool
    integer: bool
    optional_level: bool
    private_end: Literal["high", "low"] | None
    summary: str
    guarantee: str
    in_default_sweep: bool
    cls: type

    @property
    def allowed(self) -> str:
        """The levels allowed, in words, e.g. ``"a whole number from 1 to 16"``."""
        words = "a whole number" if self.integer else "a finite number"
        bounds = []
        if self.minimum is not None:
            bounds.append(f"{'above' if self.exclusive_minimum else 'from'} {self.minimum:g}")
        if self.maximum is not None:
            bounds.append(f"{'up to' if self.exclusive_minimum else 'to'} {self.maximum:g}")
        elif bounds and not self.exclusive_minimum:
            bounds.append("up")
        return " ".join([words, *bounds])

    def check_level(self, text: str) -> float:
        """The level written in ``text``.

        Raises:
            DefenseError: it is no finite number, or out of range.
        """
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        too_low = self.minimum is not None and (
            value <= self.minimum if self.exclusive_minimum else value < self.minimum
        )
        too_high = self.maximum is not None and value > self.maximum
        fractional = self.integer and math.isfinite(value) and not value.is_integer()
        if not math.isfinite(value) or too_low or too_high or fractional:
            raise DefenseError(
                f"{self.name}={text}: the {self.level} must be {self.allowed}, "
                f"e.g. {self.name}={_number(self.grid[0], integer=self.integer)}"
            )
        return int(value) if self.integer else value


_REGISTRY: dict[str, DefenseInfo] = {}

T = TypeVar("T", bound=type)


def register_defense(
    name: str,
    *,
    stage: Stage,
    level: str | None = None,
    grid: tuple[float, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    exclusive_minimum: bool = False,
    integer: bool = False,
    optional_level: bool = False,
    private_end: Literal["high", "low"] | None = None,
    summary: str,
    guarantee: str,
    in_default_sweep: bool = True,
) -> Callable[[T], T]:
    """Registers a dataclass as the defence ``name``.

    The class's first field is the level (absent if ``level`` is None); its other fields, each with
    a default, are the options of ``name=level@option=value``. It implements the protocol of its
    stage in ``defenses.stages``. Pass literals only.

    Args:
        name: The name in a pipeline's text, e.g. ``"gaussian"``.
        stage: Where in the pipeline it acts.
        level: What the level means, e.g. ``"variance"``; None if there is no level.
        grid: The levels of a default sweep, weakest protection first.
        minimum: Smallest allowed level (excluded if ``exclusive_minimum``).
        maximum: Largest allowed level.
        exclusive_minimum: Whether ``minimum`` itself is not allowed.
        integer: Whether the level is a whole number.
        optional_level: Whether the level may be left out; the first field then needs a default.
        private_end: Which end of the level's axis hides more.
        summary: One line for listings.
        guarantee: The formal guarantee in one line, or ``"no formal guarantee"``.
        in_default_sweep: Whether a sweep that names no defence visits it: one of a kind is enough,
            every level costs minutes of training.

    Raises:
        DefenseError: another class already has that name.
    """

    def register(cls: T) -> T:
        known = _REGISTRY.get(name)
        if known is not None and known.cls.__module__ != cls.__module__:
            raise DefenseError(f"defence {name!r} is already registered by {known.cls.__module__}")
        _REGISTRY[name] = DefenseInfo(
            name=name,
            stage=stage,
            level=level,
            grid=grid,
            minimum=minimum,
            maximum=maximum,
            exclusive_minimum=exclusive_minimum,
            integer=integer,
            optional_level=optional_level,
            private_end=private_end,
            summary=summary,
            guarantee=guarantee,
            in_default_sweep=in_default_sweep,
            cls=cls,
        )
        return cls

    return register


def available_defenses() -> dict[str, DefenseInfo]:
    """All registered defences by name, sorted. Imports every module of this package."""
    package = importlib.import_module("defenses")
    for module in pkgutil.iter_modules(package.__path__, "defenses."):
        importlib.import_module(module.name)
    return dict(sorted(_REGISTRY.items()))


def get_defense_info(name: str) -> DefenseInfo:
    """The entry of ``name``; ``"package.module:name"`` imports that module first.

    Raises:
        DefenseError: no such module, or no such defence (the nearest name is suggested).
    """
    module, _, plain = name.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise DefenseError(f"cannot import {module!r} for defence {name!r}: {error}") from error
    available = available_defenses()
    if plain not in available:
        near = difflib.get_close_matches(plain, [*available, "none"], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: none, {', '.join(available)}"
        raise DefenseError(f"unknown defence {plain!r}; {hint}")
    return available[plain]


def get_defense_class(name: str) -> type:
    """The class registered as ``name`` (see :func:`get_defense_info` for names and errors)."""
    return get_defense_info(name).cls


def _number(value: float, *, integer: bool) -> str:
    return str(int(value)) if integer else repr(float(value))
