"""One suite that every defence must pass, ours and third-party: ``check_defense("name=level")``."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from defenses.aggregation import Aggregate, ThresholdError
from defenses.conformance_case import BATCH_SIZE, CLIENTS, bound_to, example_case
from defenses.pipeline import Defense, parse
from defenses.registry import get_defense_info
from defenses.session import Session

REPEATS = 100
"""Draws behind the comparison of two distributions."""


class ConformanceError(AssertionError):
    """What a defence does wrong."""

    def __init__(self, failures: list[str]) -> None:
        """Keeps ``failures``, one line each; the message lists them all."""
        super().__init__("\n".join(failures))
        self.failures = failures


def check_defense(text: str) -> None:
    """Binds the defence ``text`` to a small network and checks what every defence must keep.

    A bare name stands for every level of the defence's default grid.

    Checked: plain-data description; shapes and finiteness; reproducibility from the generator and
    no use of the global one; an untouched module; the memory of error feedback; empty minibatches;
    ``mean_release`` against ``release`` if additive; aggregation, in full and as a mean alone; a
    clean close.

    Raises:
        DefenseError: the text is no defence.
        ConformanceError: a check failed; the message lists all failures.
    """
    failures = [failure for defense in _meant_by(text) for failure in _failures(defense)]
    if failures:
        raise ConformanceError(failures)


def _meant_by(text: str) -> list[Defense]:
    if text == "none" or "=" in text or "+" in text:
        return [parse(text)]
    info = get_defense_info(text)
    levels = [f"{text}={level}" for level in info.grid]
    if info.level is None or info.optional_level:
        levels.append(text)
    return [parse(level) for level in levels]


def _failures(defense: Defense) -> Iterator[str]:
    for name, check in _CHECKS.items():
        try:
            for failure in check(defense):
                yield f"{defense.text}: {name}: {failure}"
        except Exception as error:  # noqa: BLE001  (reported with the other failures)
            yield f"{defense.text}: {name}: raised {type(error).__name__}: {error}"


def _describes_itself(defense: Defense) -> Iterator[str]:
    described = defense.describe(batch_size=BATCH_SIZE, clients=CLIENTS)
    if json.loads(json.dumps(described, allow_nan=False)) != described:
        yield "describe() is not plain data that survives JSON"
    for entry in described:
        for key in ("mechanism", "stage", "formal_guarantee"):
            if key not in entry:
                yield f"describe() lacks {key!r}: {entry}"
    if parse(defense.text).text != defense.text or parse(defense.text) != defense:
        yield "text does not parse back to the same defence"
    if (defense.accountant() is None) and any(e.get("formal_guarantee") for e in described):
        yield "claims a formal guarantee without an accountant"
    if defense.upload_bytes(1000) <= 0:
        yield "upload_bytes is not positive"


def _releases_are_sound(defense: Defense) -> Iterator[str]:
    case = example_case()
    with bound_to(defense, case) as session:
        releases = session.release(case.losses, case.owner, session.new_memory())
        if releases.shape != (CLIENTS, session.layout.size):
            yield f"release has shape {tuple(releases.shape)}"
        if not releases.isfinite().all():
            yield "release is not finite"
        if releases.requires_grad:
            yield "release carries a graph"
        empty = session.release(
            lambda rows: case.losses(torch.arange(0)), case.owner[:0], session.new_memory()
        )
        if empty.shape != releases.shape or not empty.isfinite().all():
            yield "release of an empty minibatch is not finite (clients, P)"


def _is_reproducible(defense: Defense) -> Iterator[str]:
    def draw(seed: int) -> Tensor:
        case = example_case()
        with bound_to(defense, case, seed) as session:
            aggregate = _opened(session, session.release(case.losses, case.owner))
            return torch.zeros(0) if aggregate is None else aggregate.mean

    before = torch.get_rng_state()
    first, second = draw(0), draw(0)
    if not torch.equal(first, second):
        yield "two releases from equally seeded generators differ"
    if not torch.equal(before, torch.get_rng_state()):
        yield "the global random generator was used"


def _leaves_module_alone(defense: Defense) -> Iterator[str]:
    case = example_case()
    before = copy.deepcopy(case.module)
    marked = next(case.module.parameters())
    marked.grad = torch.ones_like(marked)
    session = bound_to(defense, case)
    session.release(case.losses, case.owner)
    if defense.additive:
        session.mean_release(case.losses, case.owner)
    session.undefended(case.losses, case.owner)
    case.losses(slice(None))  # a forward pass of someone else
    session.release(case.losses, case.owner)
    session.close()
    for (name, old), new in zip(before.named_parameters(), case.module.parameters(), strict=True):
        if not torch.equal(old, new) or old.requires_grad != new.requires_grad:
            yield f"parameter {name!r} changed"
        expected = torch.ones_like(new) if new is marked else None
        if (new.grad is None) != (expected is None):
            yield f".grad of {name!r} changed"
        if set(vars(new)) != set(vars(old)):
            yield f"attributes left on parameter {name!r}: {sorted(vars(new))}"
    if marked.grad is None or not torch.equal(marked.grad, torch.ones_like(marked)):
        yield ".grad of the caller was overwritten"
    for name, layer in case.module.named_modules():
        if layer._forward_hooks or layer._backward_hooks:
            yield f"hooks left on module {name!r} after close()"
    marked.grad = None
    copy.deepcopy(case.module)


def _keeps_memory(defense: Defense) -> Iterator[str]:
    case = example_case()
    with bound_to(defense, case) as session:
        memory = session.new_memory()
        if any(transform.uses_memory for transform in defense.transforms) != (memory is not None):
            yield "new_memory() does not match the transforms"
        if memory is None:
            return
        if memory.shape != (CLIENTS, session.layout.size) or memory.any():
            yield "new_memory() is not (clients, P) of zeros"
        session.release(case.losses, case.owner)
        if memory.any():
            yield "release without memory changed a memory"


def _mean_matches_releases(defense: Defense) -> Iterator[str]:
    case = example_case()
    with bound_to(defense, case) as session:
        if not defense.additive:
            try:
                session.mean_release(case.losses, case.owner)
            except ValueError:
                return
            yield "mean_release did not refuse although not additive"
            return
        means = torch.stack([session.mean_release(case.losses, case.owner) for _ in range(REPEATS)])
        singles = torch.stack(
            [session.release(case.losses, case.owner).mean(0) for _ in range(REPEATS)]
        )
    if means.shape[1:] != (session.layout.size,):
        yield f"mean_release has shape {tuple(means.shape[1:])}"
    # Averages over draws may differ by 6 standard errors, or by rounding without any noise.
    spread = singles.std(0).mean().item()
    gap = (means.mean(0) - singles.mean(0)).abs().max().item()
    if gap > 6 * spread * math.sqrt(2 / REPEATS) + 1e-6 * singles.abs().max().item() + 1e-7:
        yield f"mean_release and release.mean(0) differ in the mean by {gap:.3g}"
    ratio = means.std(0).mean().item() / spread if spread > 1e-7 else 1.0
    if not 0.95 < ratio < 1.05:
        yield f"mean_release has {ratio:.3f} times the standard deviation of release.mean(0)"


def _aggregates(defense: Defense) -> Iterator[str]:
    stated = {} if defense.aggregation is None else defense.describe(clients=CLIENTS)[-1]
    case = example_case()
    with bound_to(defense, case) as session:
        releases = session.release(case.losses, case.owner)
        # Within the norm that the aggregation clips to, so that clipping changes nothing.
        longest = torch.linalg.vector_norm(releases, dim=1).max().item()
        releases *= min(1.0, 0.99 * stated.get("clip_norm", math.inf) / longest)
        aggregate = _opened(session, releases)
        bound = session.error_bound
    if aggregate is None:
        yield f"no sum opened in {REPEATS} rounds"
        return
    rounding = 1e-6 * releases.abs().max().item() + 1e-7

    def too_far(mean: Tensor, expected: Tensor, members: int) -> bool:
        noise = 6 * stated.get("noise_std", 0.0) / math.sqrt(members)
        return not torch.allclose(mean, expected, rtol=0, atol=rounding + bound + noise)

    members = sorted(member for view in aggregate.views for member in view.members)
    if not set(members) <= set(range(CLIENTS)) or len(set(members)) < len(members):
        yield f"views cover the clients {members}"
    if len(members) < CLIENTS and not stated.get("dropout"):
        yield f"views cover the clients {members} only, though none drops out"
    if too_far(aggregate.mean, releases[members].mean(0), len(members)):
        yield "the aggregate's mean is not the mean of the releases"
    for view in aggregate.views:
        if too_far(view.mean, releases[list(view.members)].mean(0), len(view.members)):
            yield f"the view of clients {view.members} is not their mean"


def _opened(session: Session, releases: Tensor) -> Aggregate | None:
    """The first aggregate of a round in which enough clients answer."""
    for _ in range(REPEATS):
        try:
            return session.aggregate(releases)
        except ThresholdError:
            continue
    return None


def _mean_is_the_aggregates(defense: Defense) -> Iterator[str]:
    def rounds(mean_of: Callable[[Session, Tensor], Tensor]) -> list[Tensor | None]:
        case = example_case()
        with bound_to(defense, case) as session:
            releases = session.release(case.losses, case.owner)
            means: list[Tensor | None] = []
            for _ in range(5):
                try:
                    means.append(mean_of(session, releases))
                except ThresholdError:
                    means.append(None)
        return means

    full = rounds(lambda session, releases: session.aggregate(releases).mean)
    alone = rounds(lambda session, releases: session.aggregate_mean(releases))
    for one, other in zip(full, alone, strict=True):
        if (one is None) != (other is None):
            yield "aggregate and aggregate_mean do not fail in the same rounds"
        elif one is not None and other is not None and not torch.equal(one, other):
            yield "aggregate_mean differs from aggregate(...).mean"


_CHECKS: dict[str, Callable[[Defense], Iterator[str]]] = {
    "description": _describes_itself,
    "release": _releases_are_sound,
    "reproducibility": _is_reproducible,
    "module": _leaves_module_alone,
    "memory": _keeps_memory,
    "mean_release": _mean_matches_releases,
    "aggregation": _aggregates,
    "aggregate_mean": _mean_is_the_aggregates,
}
