"""Attacks by name. A new attack is a new file in this folder with a ``@register_attack`` class."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from attacks.attack import Attack

AttackType = TypeVar("AttackType", bound="type[Attack]")

_attacks: dict[str, type[Attack]] = {}


class UnknownAttack(ValueError):  # noqa: N818 - reads as the answer to a wrong name
    """No attack has this name."""


def register_attack(
    name: str,
    *,
    summary: str,
    needs: tuple[str, ...] = (),
    instead_of: str = "",
    ensemble: bool = False,
) -> Callable[[AttackType], AttackType]:
    """Class decorator that makes an attack available under ``name``.

    Write literal arguments: tools list the attacks by reading the decorators without importing.

    Args:
        name: what users type.
        summary: one line.
        needs: knowledge the attack cannot do without, out of "samples" and "simulator".
        ensemble: it runs other attacks that ship, so a sweep of all attacks leaves it out.
        instead_of: the attack whose place this one takes where that lacks the knowledge it needs.
    """

    def register(cls: AttackType) -> AttackType:
        taken = _attacks.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (
            cls.__module__,
            cls.__qualname__,
        ):
            raise ValueError(f"attack {name!r} exists already, in {taken.__module__}")
        cls.name, cls.summary, cls.needs, cls.instead_of = name, summary, needs, instead_of
        cls.ensemble = ensemble
        _attacks[name] = cls
        return cls

    return register


def available_attacks() -> dict[str, type[Attack]]:
    """All registered attacks by name, in alphabetical order."""
    import attacks

    for module in pkgutil.iter_modules(attacks.__path__):
        importlib.import_module(f"attacks.{module.name}")
    return dict(sorted(_attacks.items()))


def get_attack(name: str, **hyperparameters: Any) -> Attack:
    """The attack ``name``; hyper-parameters override its defaults.

    ``package.module:NAME`` imports the module first, so that it can register NAME.

    Raises:
        UnknownAttack: no such name; the message suggests the nearest ones.
        ValueError: the attack has no such hyper-parameter.
        ModuleNotFoundError: the module of ``package.module:NAME`` does not exist.
    """
    module, _, short = name.rpartition(":")
    if module:
        importlib.import_module(module)
    known = available_attacks()
    if short not in known:
        near = difflib.get_close_matches(short, known, n=2, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"
        raise UnknownAttack(f"unknown attack {short!r}; {hint}")
    cls = known[short]
    fields = [f.name for f in dataclasses.fields(cls)]
    for key in hyperparameters:
        if key not in fields:
            raise ValueError(f"attack {short!r} has no {key!r}; it has: {', '.join(fields) or '-'}")
    return cls(**hyperparameters)
