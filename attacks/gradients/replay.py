"""Replays a recorded computation: the same kernels on the same memory, without autograd.

Gradient matching evaluates one function of small tensors hundreds of times, and there modules,
autograd and allocation cost many times the arithmetic. ``record`` evaluates the function once and
notes each kernel call below autograd, those of (double) backpropagation included. Of these the
replay keeps what the outputs need and the input changes. It drops repetitions and operations that
change nothing, such as factors of one, so its numbers are those of the function itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attacks.gradients.kernels import (
    aten,
    kernel,
    reads_numbers,
    rectifier_slopes,
    repeatable,
    unchanged_argument,
    written_arguments,
)

LARGEST = 2**26
"""Bytes of results from which on arithmetic outweighs the rest, and keeping all is a burden."""

Function = Callable[[Tensor], Sequence[Tensor]]


class Replay:
    """A recorded function. Calling it updates ``outputs`` to what the input's memory now holds.

    To be called in inference mode.
    """

    def __init__(self, outputs: Sequence[Tensor], program: Sequence[Callable[[], object]]) -> None:
        self.outputs = tuple(outputs)
        self._program = tuple(program)

    def __call__(self) -> tuple[Tensor, ...]:
        """The outputs, in memory that the next call overwrites."""
        for step in self._program:
            step()
        return self.outputs

    def __len__(self) -> int:
        return len(self._program)


def record(function: Function, x: Tensor, elsewhere: Tensor) -> Replay | None:
    """The replay of ``function`` at the memory of ``x``, which stays as it is.

    None if there is none: if the function is random, branches on numbers, changes anything, is too
    large to gain, or if the replay at the point ``elsewhere`` (like ``x``) differs from it, as
    where numbers take a way outside torch.
    """
    with _Recorder() as recorder:
        outputs = [out.detach() for out in function(x)]
    if not recorder.valid:
        return None
    memory = x.detach()
    program = _Program(recorder.calls, memory, outputs)
    if not program.valid:
        return None
    replay = Replay([program.current(out) for out in outputs], list(program.steps()))
    here = memory.clone()
    memory.copy_(elsewhere)
    with torch.inference_mode():
        replay()
    same = all(map(_near, replay.outputs, function(x)))
    memory.copy_(here)
    return replay if same else None


@dataclass(frozen=True, eq=False)
class _Call:
    """One kernel call and its results."""

    operator: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[Tensor]

    @functools.cached_property
    def inputs(self) -> list[Tensor]:
        """The tensors among the arguments."""
        return _tensors([self.args, *self.kwargs.values()])

    @functools.cached_property
    def reads(self) -> set[int]:
        """Addresses of the arguments."""
        return {_address(t) for t in self.inputs}

    @functools.cached_property
    def changed(self) -> set[int]:
        """Addresses of the arguments that the call writes to."""
        targets = [
            self.kwargs[name] if name in self.kwargs else self.args[position]
            for position, name in written_arguments(self.operator)
        ]
        return {_address(t) for t in _tensors(targets)}

    @functools.cached_property
    def writes(self) -> set[int]:
        """Addresses that the call writes to; none for a view."""
        return self.changed or {_address(t) for t in self.results} - self.reads

    @functools.cached_property
    def depends(self) -> set[int]:
        """Addresses whose numbers the results depend on."""
        return self.reads if reads_numbers(self.operator, self.args) else set()


class _Recorder(TorchDispatchMode):
    """Notes kernel calls while they are small and repeatable."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, which takes a second

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.valid = True
        self._bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        results = _tensors(out)
        self._bytes += sum(t.numel() * t.element_size() for t in results)
        self.valid = self.valid and self._bytes < LARGEST and repeatable(func)
        if self.valid:
            self.calls.append(_Call(func, args, kwargs or {}, results))
        else:
            self.calls.clear()
        return out


class _Program:
    """The calls that a replay needs, and where what they dropped is to be found instead."""

    def __init__(self, calls: Sequence[_Call], x: Tensor, outputs: Sequence[Tensor]) -> None:
        self._moved: dict[int, Tensor] = {}
        self._unstable = set().union(*(c.changed for c in calls)) if calls else set()
        produced = set().union(*(c.writes for c in calls if not c.changed)) if calls else set()
        self.valid = self._unstable <= produced
        calls = _with_slopes(calls)
        self._varying = varying = _varying(calls, _address(x))
        self._calls = self._without_repetitions([c for c in calls if c.writes & varying], varying)
        needed = {_address(self.current(out)) for out in outputs}
        kept = []
        for call in reversed(self._calls):
            if call.writes & needed:
                kept.append(call)
                needed |= {_address(self.current(t)) for t in call.inputs}
        self._calls = kept[::-1]

    def steps(self) -> Iterator[Callable[[], object]]:
        """The calls, each with its final arguments."""
        for call in self._calls:
            yield kernel(
                call.operator,
                self._placed(call.args),
                {k: self._placed(v) for k, v in call.kwargs.items()},
                [t.detach() for t in call.results] if not call.changed else [],
                lambda t: _address(t) not in self._varying,
            )

    def current(self, t: Tensor) -> Tensor:
        """The tensor (any view) where a replay computes it."""
        base = self._moved.get(_address(t))
        if base is None:
            return t.detach()
        return base.as_strided(t.shape, t.stride(), base.storage_offset() + t.storage_offset())

    def _placed(self, argument: Any) -> Any:
        if isinstance(argument, Tensor):
            return self.current(argument)
        if isinstance(argument, list | tuple):
            return type(argument)(self._placed(a) for a in argument)
        return argument

    def _without_repetitions(self, calls: Sequence[_Call], varying: set[int]) -> list[_Call]:
        """Moves results that equal earlier ones to these."""
        kept: list[_Call] = []
        earlier: dict[object, Tensor] = {}
        for call in calls:
            known = None
            if len(call.results) == 1 and not (call.reads | call.writes) & self._unstable:
                args, result = self._placed(call.args), call.results[0]
                if not call.kwargs:
                    known = unchanged_argument(
                        call.operator, args, lambda t: _address(t) not in varying
                    )
                if known is None or not _same_layout(known, result):
                    key = (call.operator, _key(args), _key(sorted(call.kwargs.items())))
                    known = earlier.setdefault(key, result)
                if known is result:
                    known = None
            if known is None:
                kept.append(call)
            else:
                self._moved[_address(result)] = known.detach()
        return kept


def _with_slopes(calls: Sequence[_Call]) -> list[_Call]:
    """The calls with backward passes of ReLUs as products with their slopes."""
    rectified = {_address(t) for c in calls if c.operator is aten.relu.default for t in c.results}
    found = []
    for call in calls:
        slopes = rectifier_slopes(call.operator, call.args, lambda t: _address(t) in rectified)
        if slopes is None:
            found.append(call)
        else:
            found.append(_Call(aten.sign.default, (call.args[1],), {}, [slopes]))
            found.append(_Call(aten.mul.Tensor, (call.args[0], slopes), {}, call.results))
    return found


def _varying(calls: Sequence[_Call], start: int) -> set[int]:
    """Addresses whose content depends on the input's."""
    varying = {start}
    while True:
        before = len(varying)
        for call in calls:
            if call.depends & varying:
                varying |= call.writes
        if len(varying) == before:
            return varying


def _same_layout(a: Tensor, b: Tensor) -> bool:
    return a.numel() == b.numel() and a.dtype == b.dtype and a.is_contiguous() and b.is_contiguous()


def _tensors(nested: Any) -> list[Tensor]:
    if isinstance(nested, Tensor):
        return [nested]
    if isinstance(nested, list | tuple):
        return [t for part in nested for t in _tensors(part)]
    return []


def _address(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


def _key(nested: Any) -> object:
    if isinstance(nested, Tensor):
        return (_address(nested), nested.storage_offset(), nested.shape, nested.stride())
    if isinstance(nested, list | tuple):
        return tuple(_key(part) for part in nested)
    return (type(nested), nested)


def _near(a: Tensor, b: Tensor) -> bool:
    scale = float(b.detach().abs().max())
    tolerance = torch.finfo(b.dtype).eps ** 0.5 * scale
    return torch.allclose(a, b.detach(), rtol=0.0, atol=tolerance, equal_nan=True)
