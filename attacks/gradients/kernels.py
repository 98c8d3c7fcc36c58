"""What a replay has to know of torch's operators: which it can repeat, skip or make cheaper."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

aten = torch.ops.aten

UNREPEATABLE = {
    torch.Tag.nondeterministic_seeded,
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
}

FILLING = {
    aten.empty_like.default,
    aten.full_like.default,
    aten.new_empty.default,
    aten.new_full.default,
    aten.new_ones.default,
    aten.new_zeros.default,
    aten.ones_like.default,
    aten.zeros_like.default,
}

# Python's own functions: the same kernels as the operators', at half the overhead.
BINDINGS: Mapping[OpOverload, Callable[..., Tensor]] = {
    aten.add.Tensor: torch.add,
    aten.addmm.default: torch.addmm,
    aten.baddbmm.default: torch.baddbmm,
    aten.bmm.default: torch.bmm,
    aten.cat.default: torch.cat,
    aten.div.Scalar: torch.div,
    aten.div.Tensor: torch.div,
    aten.minimum.default: torch.minimum,
    aten.mm.default: torch.mm,
    aten.mul.Scalar: torch.mul,
    aten.mul.Tensor: torch.mul,
    aten.neg.default: torch.neg,
    aten.sign.default: torch.sign,
    aten.pow.Tensor_Scalar: torch.pow,
    aten.sub.Tensor: torch.sub,
    aten.sum.dim_IntList: torch.sum,
    aten.tanh.default: torch.tanh,
}
IN_PLACE: Mapping[OpOverload, Callable[..., Tensor]] = {
    aten.add_.Tensor: torch.add,
    aten.div_.Scalar: torch.div,
    aten.div_.Tensor: torch.div,
    aten.mul_.Scalar: torch.mul,
    aten.mul_.Tensor: torch.mul,
    aten.sub_.Tensor: torch.sub,
}
SCALING = (torch.mul, torch.div)
PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default)


@functools.cache
def repeatable(operator: OpOverload) -> bool:
    """Whether calling it again does the same: no random numbers, nothing decided by numbers."""
    return not UNREPEATABLE & set(operator.tags)


def reads_numbers(operator: OpOverload, args: Sequence[Any]) -> bool:
    """Whether results depend on the arguments' numbers, and not on their shapes alone."""
    return operator not in FILLING and not (operator is aten.pow.Tensor_Scalar and args[1] == 0)


@functools.cache
def written_arguments(operator: OpOverload) -> tuple[tuple[int, str], ...]:
    """Positions and names of the arguments that the operator writes to."""
    arguments = enumerate(operator._schema.arguments)
    return tuple(
        (i, a.name) for i, a in arguments if a.alias_info is not None and a.alias_info.is_write
    )


def unchanged_argument(
    operator: OpOverload, args: Sequence[Any], constant: Callable[[Tensor], bool]
) -> Tensor | None:
    """The argument whose numbers, row by row, are the result's, for a call without keywords.

    Provided that the result has as many numbers as the argument, which is left to the caller.
    """
    if operator in (aten.clone.default, aten.sum.dim_IntList):
        return args[0]
    if operator in (aten.pow.Tensor_Scalar, aten.mul.Scalar, aten.div.Scalar):
        return args[0] if args[1] == 1 else None
    neutral = {aten.mul.Tensor: 1, aten.add.Tensor: 0}.get(operator)
    if neutral is not None and all(isinstance(a, Tensor) for a in args):
        for one, other in (args, args[::-1]):
            if constant(other) and bool((other == neutral).all()):
                return one
    return None


def kernel(
    operator: OpOverload,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    results: Sequence[Tensor],
    constant: Callable[[Tensor], bool],
) -> Callable[[], object]:
    """The call as a function of nothing that writes to ``results``, or in place if there are none.

    Python numbers become tensors where torch would make them so in each call. One row is
    multiplied twice as fast by a matrix in row-major order, so constant ones are copied into it.
    """
    if operator in PRODUCTS and args[-2].shape[-2] == 1 and constant(args[-1]):
        args = [*args[:-1], args[-1].contiguous()]
    if operator is aten.relu.default:
        return functools.partial(torch.clamp_min, args[0], 0, out=results[0])
    if operator is aten.pow.Tensor_Scalar and args[1] == 2:
        return functools.partial(torch.mul, args[0], args[0], out=results[0])
    binding = BINDINGS.get(operator) or IN_PLACE.get(operator)
    if binding is not None:
        out = (results or args)[0]
        if binding in SCALING and not isinstance(args[1], Tensor):
            args = [args[0], torch.tensor(args[1], dtype=out.dtype, device=out.device)]
        return functools.partial(binding, *args, **kwargs, out=out)
    if not results:
        return functools.partial(operator, *args, **kwargs)
    writing, names = _writing(operator)
    if writing is not None and len(names) == len(results):
        out = dict(zip(names, results, strict=True))
        return functools.partial(writing, *args, **kwargs, **out)
    return functools.partial(_copy, operator, args, kwargs, results)


def _copy(
    operator: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], results: Sequence[Tensor]
) -> None:
    found = operator(*args, **kwargs)
    listed = [found] if isinstance(found, Tensor) else [t for t in found if t is not None]
    for result, new in zip(results, listed, strict=True):
        result.copy_(new)


def rectifier_slopes(
    operator: OpOverload, args: Sequence[Any], rectified: Callable[[Tensor], bool]
) -> Tensor | None:
    """The 0 and 1 with which a ReLU's backward pass multiplies slopes; None for other calls.

    Made once for each of ``rectified`` outputs, they take half the time of comparing each time.
    """
    if operator is aten.threshold_backward.default and args[2] == 0 and rectified(args[1]):
        return torch.sign(args[1])
    return None


@functools.cache
def _writing(operator: OpOverload) -> tuple[OpOverload | None, tuple[str, ...]]:
    """The operator's form that writes to given results, and the names of these."""
    plain = [(a.name, str(a.type)) for a in operator._schema.arguments]
    for name in operator.overloadpacket.overloads():
        candidate = getattr(operator.overloadpacket, name)
        arguments = candidate._schema.arguments
        given = [(a.name, str(a.type)) for a in arguments if not a.is_out]
        if given == plain and len(given) < len(arguments):
            return candidate, tuple(a.name for a in arguments if a.is_out)
    return None, ()
