from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attacks import Transitions
from attacks.transitions import flatten_state_action, unflatten_state_action
from tests.attacks.conftest import random_transitions


def test_a_single_row_keeps_its_batch_dimension() -> None:
    z = random_transitions(4)
    assert z[2].state.shape == (1, 5)
    assert torch.equal(z[-1].reward, z.reward[-1:])
    assert z[1:3].batch_size == 2
    assert torch.equal(z[[3, 0]].reward, z.reward[[3, 0]])
    with pytest.raises(IndexError):
        z[4]


def test_cat_undoes_splitting() -> None:
    z = random_transitions(5)
    joined = Transitions.cat([z[:2], z[2:]])
    assert torch.equal(joined.state, z.state)
    assert torch.equal(joined.terminated, z.terminated)


def test_boolean_terminated_can_be_subtracted() -> None:
    z = random_transitions(2)
    ended = Transitions(z.state, z.action, z.reward, z.next_state, torch.tensor([True, False]))
    assert (1 - ended.terminated).tolist() == [0.0, 1.0]


def test_template_reads_discrete_actions_and_pixels() -> None:
    frames = torch.zeros(3, 2, 4, 4, dtype=torch.uint8)
    z = Transitions(frames, torch.tensor([0, 2, 1]), torch.zeros(3), frames, torch.zeros(3))
    template = z.template(action_count=5)
    assert (template.state_low, template.state_high) == (0.0, 255.0)
    assert template.discrete
    assert template.action_size == 5
    with pytest.raises(ValueError, match="action 2 occurs"):
        z.template(action_count=2)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("state", torch.zeros(3, 5), "state must have 2 rows"),
        ("next_state", torch.zeros(2, 4), "next_state must have the shape"),
        ("reward", torch.zeros(2, 1), "reward must have shape"),
        ("terminated", torch.zeros(2, 1), "terminated must have shape"),
        ("action", torch.zeros(2, 1, dtype=torch.int64), "discrete action must have shape"),
    ],
)
def test_malformed_batches_are_refused(field: str, value: torch.Tensor, message: str) -> None:
    z = random_transitions(2)
    fields = {n: getattr(z, n) for n in ("state", "action", "reward", "next_state", "terminated")}
    with pytest.raises(ValueError, match=message):
        Transitions(**{**fields, field: value})


@given(st.integers(1, 6), st.integers(1, 4), st.booleans())
def test_flattening_is_undone(rows: int, actions: int, discrete: bool) -> None:
    z = random_transitions(rows, action=actions)
    if discrete:
        z = Transitions(z.state, torch.arange(rows) % actions, z.reward, z.next_state, z.terminated)
    template = z.template(action_count=actions) if discrete else z.template()
    state, action = unflatten_state_action(flatten_state_action(z, template), template)
    assert torch.equal(state, z.state)
    assert torch.equal(action, z.action)
