"""Per-client gradients, layout and what a session leaves behind."""

import pytest
import torch
from torch import nn

import defenses
from defenses import DefenseError
from defenses.client_gradients import ClientGradients
from defenses.layout import Layout

NONE = defenses.parse("none")


@pytest.mark.parametrize("counts", [(8, 8, 8, 8), (3, 0, 9, 1), (1,), (0, 0)])
def test_closed_form_equals_autograd_and_the_oracle(new_problem, counts):
    problem = new_problem(counts)
    closed = ClientGradients(problem.module, problem.layout, problem.clients)
    general = ClientGradients(problem.module, problem.layout, problem.clients)
    general._passes._layers = None
    for _ in range(2):  # the first call verifies itself against autograd
        one = closed.per_client(problem.losses, problem.owner, 8)
        two = general.per_client(problem.losses, problem.owner, 8)
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(
            closed.mean(problem.losses, problem.owner, 8), two.mean(0), atol=1e-6, rtol=1e-5
        )
    assert closed._passes._layers is not None
    if len(problem.owner):
        expected = problem.sums(problem.per_sample_gradients()) / 8
        torch.testing.assert_close(one, expected, atol=1e-6, rtol=1e-5)
    assert not one.requires_grad


def reused(module, data):
    """The same layer twice in one forward pass."""
    return lambda rows: (
        (module.q1(torch.cat([data[0], data[1]], -1)[rows]) * 2).squeeze(-1)
        + (module.q1(torch.cat([data[0], -data[1]], -1)[rows]).squeeze(-1))
    )


def sequence(module, data):
    """Inputs with a time dimension."""
    return lambda rows: module.actor(data[0][rows].unsqueeze(1).expand(-1, 3, -1)).sum((1, 2))


def penalised(module, data):
    """A weight used outside its layer's forward."""
    return lambda rows: module.actor(data[0][rows]).sum(1) + module.actor[0].weight.square().sum()


def nested(module, data):
    """Rows that meet a layer stacked with others."""
    return lambda rows: module.actor(torch.cat([data[0][rows]] * 2)).view(2, -1, 2).sum((0, 2))


@pytest.mark.parametrize("form", [reused, sequence, penalised, nested])
def test_unusual_losses_fall_back_to_autograd(problem, form):
    losses = form(problem.module, problem.data)
    general = ClientGradients(problem.module, problem.layout, problem.clients)
    general._passes._layers = None
    expected = general.per_client(losses, problem.owner, 8)
    with problem.bind(NONE) as session:
        for _ in range(2):
            releases = session.release(losses, problem.owner)
            torch.testing.assert_close(releases, expected, atol=1e-5, rtol=1e-5)


def test_modules_with_other_layers_and_frozen_parameters(new_generator):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(6, 4), nn.Linear(4, 1))
    module[2].weight.requires_grad_(False)
    x, owner = torch.randn(6, 1, 5), torch.tensor([0, 0, 0, 1, 1, 1])
    session = NONE.bind(module, clients=2, batch_size=3, generator=new_generator(0))
    releases = session.release(lambda rows: module(x[rows]).squeeze(-1), owner)
    for client in range(2):
        module.zero_grad()
        module(x[owner == client]).sum().backward()
        flat = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
        torch.testing.assert_close(releases[client], flat / 3)
    assert "2.weight" not in session.layout.names


def test_layout_splits_by_name(problem):
    layout = problem.layout
    vector = torch.arange(2 * layout.size, dtype=torch.float32).view(2, -1)
    parts = layout.split(vector)
    parameters = dict(problem.module.named_parameters())
    assert list(parts) == list(parameters)
    for name, offset in zip(layout.names, layout.offsets, strict=True):
        assert parts[name].shape == (2, *parameters[name].shape)
        assert parts[name].flatten()[0] == offset
    assert torch.equal(layout.flatten(list(layout.split(vector[0]).values())), vector[0])


def test_memory_is_updated_in_place(problem):
    with problem.bind(defenses.parse("topk=0.1")) as session:
        memory = session.new_memory()
        raw = session.undefended(problem.losses, problem.owner)
        sent = session.release(problem.losses, problem.owner, memory)
        torch.testing.assert_close(sent + memory, raw, atol=0, rtol=0)
    with problem.bind(NONE) as session:
        assert session.new_memory() is None


def test_transforms_act_in_the_order_written(problem):
    with problem.bind(defenses.parse("topk=0.1+clip=0.01")) as session:
        first = session.release(problem.losses, problem.owner)
    assert (first != 0).sum(1).tolist() == [-(-problem.layout.size // 10)] * 4
    torch.testing.assert_close(first.norm(dim=1), torch.full((4,), 0.01))


def test_float64_modules_release_float64(problem):
    problem.module.double()
    problem.module.frozen[0].double()
    problem.data = tuple(x.double() for x in problem.data)
    for text in ("none", "dp-sgd=0.1+gaussian=0.1", "clip=1.0+topk=0.5+quantize=8+secagg=2"):
        with problem.bind(defenses.parse(text)) as session:
            releases = session.release(problem.losses, problem.owner)
            assert releases.dtype == session.aggregate(releases).mean.dtype == torch.float64


def test_what_cannot_be_bound(problem):
    with pytest.raises(DefenseError, match="at least 1"):
        problem.bind(NONE, batch_size=0)
    problem.module.requires_grad_(False)
    with pytest.raises(DefenseError, match="no parameter"):
        problem.bind(NONE)
    assert Layout.of(problem.module).size == 0


def test_a_loss_that_is_already_averaged_is_refused(problem):
    with problem.bind(NONE) as session, pytest.raises(DefenseError, match="shape"):
        session.release(lambda rows: problem.losses(rows).mean(), problem.owner)


@pytest.mark.parametrize("text", ["none", "clip=0.1+gaussian=0.01", "topk=0.25"])
def test_an_update_is_defended_like_a_gradient(new_problem, text):
    problem = new_problem((8, 8))
    releases = []
    for of_updates in (False, True):
        generator = torch.Generator().manual_seed(3)
        bound = defenses.parse(text).bind(
            problem.module, clients=2, batch_size=8, generator=generator
        )
        with bound as session:
            memory = session.new_memory()
            for _ in range(2):  # the second round sends what error feedback kept
                if of_updates:
                    updates = session.undefended(problem.losses, problem.owner)
                    sent = session.release_updates(updates, memory)
                else:
                    sent = session.release(problem.losses, problem.owner, memory)
            releases.append(sent)
    torch.testing.assert_close(releases[0], releases[1], rtol=0.0, atol=0.0)


def test_a_per_sample_stage_refuses_updates(problem):
    bound = defenses.parse("dp-sgd=1").bind(
        problem.module, clients=problem.clients, batch_size=8, generator=torch.Generator()
    )
    with bound as session, pytest.raises(DefenseError, match="each sample's gradient"):
        session.release_updates(torch.zeros(problem.clients, problem.layout.size))
