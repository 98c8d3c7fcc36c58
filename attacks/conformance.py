"""One suite that every attack passes, third-party ones too: ``check_attack("package:NAME")``.

It runs on small real problems: a linear control system, a four-state chain and a small screen,
each with critics that were not trained; and on the sum of two local gradients of one record. An
attack that supports none of it has nothing checked but its refusals.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from attacks.attack import Attack, Reconstruction
from attacks.conformance_problems import SEED, Problem, box_problem, chain_problem, screen_problem
from attacks.observation import Observation
from attacks.prior import Prior
from attacks.registry import get_attack
from attacks.transitions import Template, Transitions, bound_tensor


def check_attack(name: str) -> list[str]:
    """Checks the attack ``name``, with its default hyper-parameters.

    Returns:
        Findings, one line each; empty if the attack conforms.

    Raises:
        UnknownAttack: no attack has this name.
    """
    attack = get_attack(name)
    findings = [] if attack.summary.strip() else ["summary is empty"]
    box, chain, screen = box_problem(), chain_problem(), screen_problem()
    for problem, batch_size, local_steps in (
        (box, 1, 1),
        (box, 3, 1),
        (chain, 1, 1),
        (chain, 3, 1),
        (screen, 1, 1),
        (box, 1, 2),
    ):
        where = f"{problem.name}, batch {batch_size}, local steps {local_steps}"
        found = _check_case(attack, problem, batch_size, local_steps)
        findings += [f"{where}: {finding}" for finding in found]
    return findings


def _check_case(
    attack: Attack, problem: Problem, batch_size: int, local_steps: int
) -> Iterator[str]:
    observations = [
        problem.observe(list(range(k * batch_size, (k + 1) * batch_size)), local_steps)
        for k in (0, 1)
    ]
    reason = attack.unsupported(observations[0])
    if reason:
        if "\n" in reason:
            yield "the reason for not supporting it has several lines"
        if not _refuses(attack, observations[0], Prior.fit(problem.transitions[100:])):
            yield "unsupported() gives a reason, but reconstruct() does not raise ValueError"
        return
    prior = Prior.fit(problem.transitions[100:], template=problem.template)
    before = _snapshot(problem.model)
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state()  # noqa: NPY002 - the global state is what is checked
    answers = attack.reconstruct_many(observations, prior=prior, seed=SEED)
    if not torch.equal(torch_state, torch.get_rng_state()):
        yield "uses torch's global random state"
    after_state = np.random.get_state()  # noqa: NPY002
    if not all(np.array_equal(a, b) for a, b in zip(numpy_state, after_state, strict=True)):
        yield "uses NumPy's global random state"
    yield from _changes(before, problem.model)
    if len(answers) != len(observations):
        yield f"returns {len(answers)} answers to {len(observations)} observations"
        return
    for answer in answers:
        yield from _shape_findings(answer, problem.template, batch_size)
    swapped = attack.reconstruct_many(observations[::-1], prior=prior, seed=SEED)
    if not _same(answers[0], swapped[1]) or not _same(answers[1], swapped[0]):
        yield "another order of the observations, with the same seed, gives other answers"
    yield from _objective_findings(answers, observations, prior)


def _refuses(attack: Attack, observation: Observation, prior: Prior) -> bool:
    try:
        attack.reconstruct(observation, prior=prior, seed=SEED)
    except ValueError:
        return True
    return False


def _snapshot(model: nn.Module) -> tuple[dict[str, Tensor], list[tuple[bool, bool]]]:
    flags = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    return copy.deepcopy(model.state_dict()), flags


def _changes(
    before: tuple[dict[str, Tensor], list[tuple[bool, bool]]], model: nn.Module
) -> Iterator[str]:
    weights, flags = before
    if any(not torch.equal(v, weights[k]) for k, v in model.state_dict().items()):
        yield "changes the model's weights"
    if flags != [(p.requires_grad, p.grad is None) for p in model.parameters()]:
        yield "changes requires_grad or leaves gradients on the model"
    if any(m._forward_hooks for m in model.modules()):
        yield "leaves hooks on the model"


def _shape_findings(answer: Reconstruction, template: Template, batch_size: int) -> Iterator[str]:
    for z in [answer.transitions, *answer.restarts]:
        if z.state.shape != (batch_size, *template.state_shape):
            yield f"state has shape {tuple(z.state.shape)}"
        if z.action.shape != (batch_size, *template.action_shape):
            yield f"action has shape {tuple(z.action.shape)}"
            return
        if template.discrete == z.action.is_floating_point():
            yield f"action has dtype {z.action.dtype}"
        ranges = [("state", z.state), ("next_state", z.next_state)]
        if template.action_count is None:
            ranges.append(("action", z.action))
        elif bool(((z.action < 0) | (z.action >= template.action_count)).any()):
            yield "an action is none of the template's choices"
        for field, value in ranges:
            low, high = (
                bound_tensor(getattr(template, f"{field.removeprefix('next_')}_{end}"), value)
                for end in ("low", "high")
            )
            if bool(((value < low) | (value > high)).any()):
                yield f"{field} leaves its known range"
            if bool(value.isinf().any()):
                yield f"{field} is infinite"


def _same(a: Reconstruction, b: Reconstruction) -> bool:
    """Equal up to the rounding of sums in another batch order, after many iterations of it."""
    fields = ("state", "action", "reward", "next_state")
    return all(
        torch.allclose(
            getattr(a.transitions, f).double(),
            getattr(b.transitions, f).double(),
            rtol=1e-4,
            atol=1e-4,
            equal_nan=True,
        )
        for f in fields
    )


def _objective_findings(
    answers: list[Reconstruction], observations: list[Observation], prior: Prior
) -> Iterator[str]:
    if any(math.isnan(answer.objective) for answer in answers):
        yield "the objective is NaN"
    blind = prior.mean_transitions(observations[0].batch_size, observations[0].template)
    for answer, observation in zip(answers, observations, strict=True):
        z = answer.transitions
        if any(bool(x.isnan().any()) for x in (z.state, z.reward, z.next_state)):
            continue
        ours, theirs = _angle(observation, z), _angle(observation, blind)
        if ours > theirs + 1e-3:
            yield f"explains the gradient worse ({ours:.2g}) than the prior's mean ({theirs:.2g})"


def _angle(observation: Observation, z: Transitions) -> float:
    """1 - |cos| between the gradient of ``z`` and the received one: blind to scale and sign.

    Attacks that match directions only, or decide a relaxed action at the end, may miss the scale.
    """
    z = Transitions(z.state, z.action, z.reward, z.next_state, torch.zeros_like(z.reward))
    gradient, received = observation.flat_gradient_at(z), observation.flat_gradient()
    return 1 - float(torch.cosine_similarity(gradient, received, dim=0).abs())
