"""Text to defence: ``"clip=1.0+quantize=8+secagg=4"`` to checked stages in order."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import nn

from defenses.accounting import Accountant
from defenses.client_accounting import ClientAccountant
from defenses.quantization import Quantize
from defenses.random_sparsification import RandK
from defenses.registry import DefenseError, DefenseInfo, get_defense_info
from defenses.session import Session
from defenses.sparsification import TopK
from defenses.stages import (
    AdditiveTransform,
    Aggregation,
    Payload,
    PerSample,
    Sampling,
    Transform,
)

_ORDER = ("per-sample", "transform", "aggregation")
_NOISES = ("gaussian", "laplace", "adaptive-gaussian")


@dataclass(frozen=True)
class Defense:
    """A pipeline: per-sample stage, transforms of the mean gradient, aggregation; all optional."""

    text: str
    """Canonical: equal texts are equal defences."""
    per_sample: PerSample | None = None
    transforms: tuple[Transform, ...] = ()
    aggregation: Aggregation | None = None
    """None: plain, the server sees every release."""

    @property
    def sampling(self) -> Sampling:
        """How a client must draw its minibatch."""
        return "uniform" if self.per_sample is None else self.per_sample.sampling

    @cached_property
    def additive(self) -> bool:
        """Whether the clients' mean can be drawn from the summed gradient alone."""
        return self.aggregation is None and all(
            isinstance(transform, AdditiveTransform) for transform in self.transforms
        )

    def describe(self, batch_size: int = 1, clients: int | None = None) -> list[dict[str, Any]]:
        """Plain, JSON-serialisable data of every stage in order; empty for ``none``.

        Args:
            batch_size: The constant that divides a client's sum of gradients; it sets the noise of
                a per-sample stage on the mean gradient.
            clients: How many clients there are, on which an aggregation's description may depend.
        """
        stages = [self.per_sample, *self.transforms]
        described = [stage.describe(batch_size) for stage in stages if stage is not None]
        if self.aggregation is not None:
            described.append(self.aggregation.describe(batch_size, clients))
        return described

    def accountant(self) -> Accountant | ClientAccountant | None:
        """A fresh accountant of one client; None without a formal guarantee."""
        stages = (self.per_sample, self.aggregation)
        accountants = [stage.accountant() for stage in stages if stage is not None]
        return next((accountant for accountant in accountants if accountant is not None), None)

    def upload_bytes(self, parameters: int, tensors: int = 1) -> int:
        """Bytes that one client sends in a round.

        Args:
            parameters: P, entries of a release.
            tensors: Parameters tensors, each of which may need a scale of its own.
        """
        payload = Payload(parameters)
        for stage in [*self.transforms, self.aggregation]:
            if stage is not None:
                payload = stage.payload(payload, parameters, tensors)
        return payload.bytes

    def bind(
        self, module: nn.Module, *, clients: int, batch_size: int, generator: torch.Generator
    ) -> Session:
        """Attaches the defence to ``module``; close the session (or use ``with``) to detach it.

        Args:
            module: Any module; per-sample stages need its layers in train mode.
            clients: How many clients share it.
            batch_size: The public constant that divides each client's sum of gradients.
            generator: The source of all randomness, on the module's device.

        Raises:
            DefenseError: the module or the number of clients does not suit the defence.
        """
        return Session(self, module, clients, batch_size, generator)


def parse(text: str) -> Defense:
    """The defence written in ``text``.

    The form is ``name=level`` or ``name=level@option=value``, joined by ``+``, in the order of the
    stages: per-sample, transforms, aggregation. ``none`` is the empty pipeline. A name
    ``package.module:name`` imports that module first.

    Raises:
        DefenseError: one line that says what is wrong and what is allowed.
    """
    if text.strip() == "none":
        return Defense("none")
    if not text.strip():
        raise DefenseError("empty defence; write 'none' for no defence")
    infos: list[DefenseInfo] = []
    stages: list[Any] = []
    texts: list[str] = []
    # "1e+2" is a number, so only a plus before a name separates.
    for part in re.split(r"\+(?=\s*[A-Za-z_])", text):
        if part.strip() == "none":
            raise DefenseError(f"{text!r}: 'none' stands alone")
        info, stage, canonical = _parse_stage(part.strip())
        infos.append(info)
        stages.append(stage)
        texts.append(canonical)
    _check_composition(text, infos, stages)

    def of(kind: str) -> list[Any]:
        return [stage for info, stage in zip(infos, stages, strict=True) if info.stage == kind]

    return Defense(
        text="+".join(texts),
        per_sample=cast("PerSample | None", next(iter(of("per-sample")), None)),
        transforms=tuple(of("transform")),
        aggregation=cast("Aggregation | None", next(iter(of("aggregation")), None)),
    )


def _parse_stage(part: str) -> tuple[DefenseInfo, Any, str]:
    """One ``name=level@option=value``: its entry, its stage and its canonical text."""
    head, *options = part.split("@")
    name, equals, level = head.partition("=")
    info = get_defense_info(name.strip())
    if equals and info.level is None:
        raise DefenseError(f"{part}: {info.name} has no level")
    if not equals and info.level is not None and not info.optional_level:
        example = f"{info.name}={_written(info.grid[0], integer=info.integer)}"
        raise DefenseError(f"{info.name} needs a level ({info.level}), e.g. {example}")
    arguments: dict[str, Any] = {}
    fields = [field for field in dataclasses.fields(info.cls) if field.init]
    if info.level is not None:
        level_field, *fields = fields
        if equals:
            arguments[level_field.name] = info.check_level(level.strip())
    for option in options:
        key, value = _parse_option(part, info, fields, option)
        if key in arguments:
            raise DefenseError(f"{part}: option {key!r} is given twice")
        arguments[key] = value
    written = [name.strip()]
    if equals:
        written.append(f"={_written(info.check_level(level.strip()), integer=info.integer)}")
    written += [
        f"@{field.name}={arguments[field.name]!r}"
        for field in fields
        if field.name in arguments and arguments[field.name] != field.default
    ]
    return info, info.cls(**arguments), "".join(written)


def _parse_option(part: str, info: DefenseInfo, fields: list[Any], option: str) -> tuple[str, Any]:
    """One ``option=value``, converted to the type of the option's default."""
    key, equals, value = option.partition("=")
    defaults = {field.name: field.default for field in fields}
    if key not in defaults or not equals:
        known = ", ".join(f"@{name}={default}" for name, default in defaults.items())
        raise DefenseError(f"{part}: {info.name} takes {known or 'no options'}, not '@{option}'")
    kind = type(defaults[key])
    try:
        return key, kind(value)
    except ValueError:
        raise DefenseError(
            f"{part}: option {key!r} must be of type {kind.__name__}, not {value!r}"
        ) from None


def _check_composition(text: str, infos: list[DefenseInfo], stages: list[Any]) -> None:
    """Order of the stages, and combinations that make no sense."""
    names = [info.name for info in infos]
    order = [_ORDER.index(info.stage) for info in infos]
    for stage in ("per-sample", "aggregation"):
        same = [info.name for info in infos if info.stage == stage]
        if len(same) > 1:
            raise DefenseError(
                f"{text}: at most one {stage} stage, not {len(same)} ({', '.join(same)})"
            )
    if order != sorted(order):
        right = "+".join(name for _, name in sorted(zip(order, names, strict=True), key=_first))
        raise DefenseError(
            f"{text}: the order is per-sample, transforms, aggregation; write {right}"
        )
    for name in names:
        if names.count(name) > 1:
            raise DefenseError(f"{text}: {name} appears more than once")
    accounted = [
        info.name
        for info, stage in zip(infos, stages, strict=True)
        if info.stage != "transform" and stage.accountant() is not None
    ]
    if len(accounted) > 1:
        raise DefenseError(
            f"{text}: at most one stage with an accountant, not {' and '.join(accounted)}, whose "
            "units of privacy differ"
        )
    if sum(getattr(stage, "uses_memory", False) for stage in stages) > 1:
        raise DefenseError(f"{text}: at most one stage may keep error feedback")
    kinds = [type(stage) for stage in stages]
    for kind, name in ((TopK, "topk"), (RandK, "randk")):
        if Quantize(1) in stages and kind in kinds[: stages.index(Quantize(1))]:
            raise DefenseError(
                f"{text}: 1-bit codes have no zero for what {name} leaves out; use quantize=2 or "
                "more"
            )
    if RandK in kinds:
        late = [name for name in names[names.index("randk") :] if name in _NOISES]
        if late:
            raise DefenseError(
                f"{text}: noise after randk would fall on what is not sent; write {late[0]} before "
                "randk"
            )


def _first(pair: tuple[int, str]) -> int:
    return pair[0]


def _written(value: float, *, integer: bool) -> str:
    return str(int(value)) if integer else repr(float(value))
