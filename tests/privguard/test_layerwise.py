"""``layerwise`` on real frames and the real Q-network: exact pixels, and what it declines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from attacks import Channel, Observation, Prior, Template, Transitions, get_attack
from attacks.pixels import search
from attacks.pixels.conv_chains import find_chain
from attacks.pixels.conv_equations import Inverted
from attacks.pixels.conv_features import hear_features
from attacks.pixels.descent import descend, sketch
from attacks.pixels.knowledge import PixelKnowledge
from attacks.pixels.problem import PixelProblem
from privguard.agents import Agent, make_agent
from privguard.environments import environment_spec, make_environment
from privguard.recipes import agent_settings

HELD = 60
"""Frames that the adversary holds; targets come later in the game."""


def played(game: str, steps: int) -> Transitions:
    """Transitions of a random policy."""
    env = make_environment(game)
    rng = np.random.default_rng(0)
    state, _ = env.reset(seed=0)
    rows = []
    for _ in range(steps):
        action = int(rng.integers(env.action_space.n))
        after, reward, terminated, truncated, _ = env.step(action)
        rows.append((np.array(state), action, np.float32(reward), np.array(after), terminated))
        state = env.reset()[0] if terminated or truncated else after
    env.close()
    columns = [torch.from_numpy(np.array(column)) for column in zip(*rows, strict=True)]
    return Transitions(*columns[:4], columns[4].float())


class Screen:
    """A game's transitions, an agent at initialisation, and a prior of the first frames."""

    def __init__(self, game: str) -> None:
        env = make_environment(game)
        settings = agent_settings(environment_spec(game), None)
        self.agent: Agent = make_agent(env, settings, 0.99, torch.Generator().manual_seed(0))
        self.z = played(game, 120)
        self.template: Template = self.z.template(action_count=int(env.action_space.n))
        self.prior = Prior.fit(self.z[torch.arange(HELD)], template=self.template)
        env.close()

    def observe(
        self, rows: list[int], noise_std: float = 0.0, channel: Channel | None = None
    ) -> Observation:
        agent, z = self.agent, self.z[torch.tensor(rows)]
        named = dict(agent.shared.named_parameters())
        gradient = torch.autograd.grad(agent.loss(agent.shared, z), list(named.values()))
        generator = torch.Generator().manual_seed(1)
        noised = [g + noise_std * torch.randn(g.shape, generator=generator) for g in gradient]
        return Observation(
            agent.shared,
            dict(zip(named, noised, strict=True)),
            agent.loss,
            len(rows),
            self.template,
            channel or Channel(noise_std=noise_std),
        )


@pytest.fixture(scope="module")
def pong() -> Screen:
    return Screen("pong")


def test_single_frames_are_exact_to_the_grey_level(pong: Screen) -> None:
    attack = get_attack("layerwise")
    rows = [80, 110]
    answers = attack.reconstruct_many([pong.observe([r]) for r in rows], prior=pong.prior, seed=0)
    for row, answer in zip(rows, answers, strict=True):
        assert torch.equal(answer.transitions.state[0].round(), pong.z.state[row].float())
        assert int(answer.transitions.action[0]) == int(pong.z.action[row])


def test_a_network_that_training_left_few_channels_is_inverted_too() -> None:
    """Dead channels, and channels that the background activates barely, as after training."""
    screen = Screen("pong")
    first = screen.agent.shared["q"][1]
    places = first(screen.z.state[80:81].float() / 255)[0].detach()
    with torch.no_grad():
        first.bias[:10] -= places[:10].amax(dim=(1, 2)) + 1
        background = places.flatten(1).median(dim=1).values
        first.bias[10:14] += 1e-6 * places.max() - background[10:14]
    answer = get_attack("layerwise").reconstruct(screen.observe([80]), prior=screen.prior, seed=0)
    assert torch.equal(answer.transitions.state[0].round(), screen.z.state[80].float())


def test_batches_are_exact_where_the_prior_has_seen_the_background(pong: Screen) -> None:
    rows = [70, 84, 98, 112]
    answer = get_attack("layerwise").reconstruct(pong.observe(rows), prior=pong.prior, seed=0)
    truth = pong.z.state[torch.tensor(rows)].float().flatten(1)
    found = answer.transitions.state.round().flatten(1)
    assert torch.equal(found[torch.cdist(truth, found).argmin(dim=1)], truth)


def test_a_faint_record_does_not_keep_its_batch_from_being_exact() -> None:
    screen, rows = Screen("pong"), [70, 84, 98]
    faint, agent = screen.z[torch.tensor(rows[:1])], screen.agent
    value = agent.shared["q"](faint.state).gather(1, faint.action[:, None])[0, 0].detach()
    screen.z.reward[rows[0]] -= 0.999 * (agent.td_target(faint)[0] - value)
    answer = get_attack("layerwise").reconstruct(screen.observe(rows), prior=screen.prior, seed=0)
    truth = screen.z.state[torch.tensor(rows[1:])].float().flatten(1)
    found = answer.transitions.state.round().flatten(1)
    assert torch.equal(found[torch.cdist(truth, found).argmin(dim=1)], truth)


def test_a_layer_solved_for_wrongly_is_noticed_and_the_one_above_searched_from(
    pong: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    observation = pong.observe([110])
    chain, _ = find_chain(observation)
    assert chain is not None
    problem = PixelProblem.of(observation, chain, pong.prior)
    heard = hear_features(observation, chain, problem.features[-1].flatten(1), seed=0)
    known = PixelKnowledge.of(problem, observation, heard)

    def descend_wrongly(start: PixelKnowledge) -> list[PixelKnowledge]:
        *path, last = descend(start)
        generator = torch.Generator().manual_seed(0)
        errors = torch.rand(last.outputs.shape, generator=generator)
        return [*path, replace(last, outputs=last.outputs * (1 + errors))]

    wrong = descend_wrongly(known)[-1]
    assert wrong.depth == 1
    gave_up = search._search(wrong, 1000)
    assert gave_up.contradicted
    assert not gave_up.explained
    assert gave_up.iterations == search.PASS
    monkeypatch.setattr(search, "descend", descend_wrongly)
    images, explained = search._settle(known, 1000)
    assert explained
    assert torch.equal(problem.states(images)[0], pong.z.state[110].float())


def test_inputs_that_are_known_roughly_make_a_sketch(pong: Screen) -> None:
    rows = [84, 110]
    observation = pong.observe(rows)
    chain, _ = find_chain(observation)
    assert chain is not None
    problem = PixelProblem.of(observation, chain, pong.prior)
    heard = hear_features(observation, chain, problem.features[-1].flatten(1), seed=0)
    known = PixelKnowledge.of(problem, observation, heard)
    above, below = descend(known)[-2:]
    blank = above.guessing(problem.average.expand_as(above.images))
    errors = torch.tensor([0.001, 0.005], dtype=torch.float64)
    noise = torch.randn(below.outputs.shape, generator=torch.Generator().manual_seed(0))
    size = errors[:, None, None, None] * below.outputs.amax()
    solved = Inverted(below.outputs + size / 3 * noise, errors, explained=True)
    mean, *drawn = problem.states(torch.cat([blank.images[:1], sketch(blank, solved)]))
    for row in rows:
        truth = pong.z.state[row].float()
        assert max(psnr(state, truth) for state in drawn) > psnr(mean, truth) + 6


def test_records_that_the_dense_layers_cannot_tell_apart_share_one_answer() -> None:
    screen, rows = Screen("pong"), [70, 71]
    dense = next(m for m in screen.agent.shared.modules() if isinstance(m, torch.nn.Linear))
    with torch.no_grad():
        # All units active: records with one action have parallel gradients at the dense layers.
        dense.bias += 10.0
    screen.z.action[rows] = 1
    answer = get_attack("layerwise", iterations=80).reconstruct(
        screen.observe(rows), prior=screen.prior, seed=0
    )
    assert "1 of 2 records told apart" in answer.notes
    assert answer.transitions.action.tolist() == [1, 1]
    found, other = answer.transitions.state
    assert torch.equal(found, other)
    blind = screen.prior.mean_transitions(1).state[0]
    for row in rows:
        truth = screen.z.state[row].float()
        error, usual = ((x - truth).square().mean() for x in (found, blind))
        assert float(error) < 0.5 * float(usual)


def test_clipping_hides_no_pixel(pong: Screen) -> None:
    observation = pong.observe([90])
    norm = torch.stack([g.norm() for g in observation.gradient.values()]).norm()
    clipped = {name: g * (0.1 / norm) for name, g in observation.gradient.items()}
    channel = Channel.from_description([{"mechanism": "clip", "norm": 0.1}])
    answer = get_attack("layerwise").reconstruct(
        Observation(observation.model, clipped, observation.loss, 1, observation.template, channel),
        prior=pong.prior,
        seed=0,
    )
    assert torch.equal(answer.transitions.state[0].round(), pong.z.state[90].float())


def psnr(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float(10 * torch.log10(255.0**2 / (found - truth).square().mean().clamp_min(1e-6)))


@pytest.mark.parametrize(("share", "least", "exact"), [(0.001, 65.0, 0.99), (0.01, 48.0, 0.8)])
def test_weak_noise_hides_no_frame(pong: Screen, share: float, least: float, exact: float) -> None:
    gradient = torch.cat([g.flatten() for g in pong.observe([100]).gradient.values()])
    noise_std = share * float(gradient.square().mean().sqrt())
    answer = get_attack("layerwise").reconstruct(
        pong.observe([100], noise_std=noise_std), prior=pong.prior, seed=0
    )
    truth = pong.z.state[100].float()
    found = answer.transitions.state[0].round()
    assert psnr(found, truth) > least
    assert psnr(pong.prior.mean_transitions(1).state[0].round(), truth) < least - 10
    assert float((found == truth).float().mean()) > exact


def test_under_noise_that_hides_everything_the_prior_is_left(pong: Screen) -> None:
    truth = pong.z.state[100].float()
    answer = get_attack("layerwise").reconstruct(
        pong.observe([100], noise_std=1e3), prior=pong.prior, seed=0
    )
    error = (answer.transitions.state[0] - truth).square().mean()
    blind = (pong.prior.mean_transitions(1).state[0] - truth).square().mean()
    assert float(error) <= 1.05 * float(blind)


def test_what_it_cannot_invert_is_said(pong: Screen) -> None:
    attack = get_attack("layerwise")
    sparse = Channel.from_description([{"mechanism": "topk", "fraction": 0.1}])
    assert "not sent" in attack.unsupported(pong.observe([90], channel=sparse))
    lake = make_environment("frozenlake")
    settings = agent_settings(environment_spec("frozenlake"), None)
    agent = make_agent(lake, settings, 0.95, torch.Generator().manual_seed(0))
    z = played("frozenlake", 20)
    named = dict(agent.shared.named_parameters())
    gradient = torch.autograd.grad(agent.loss(agent.shared, z[:1]), list(named.values()))
    dense = Observation(
        agent.shared,
        dict(zip(named, gradient, strict=True)),
        agent.loss,
        1,
        z.template(action_count=4),
    )
    assert "convolution" in attack.unsupported(dense)
