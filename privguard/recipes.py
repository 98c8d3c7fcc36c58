"""How an agent learns: the settings of each algorithm, and each environment's recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from privguard.environments import EnvironmentSpec
from privguard.specification import Positive, Specification


class TD3Settings(Specification):
    """How the continuous-control agent learns."""

    kind: Literal["td3"] = "td3"
    hidden: tuple[Positive, ...] = (128, 128)
    layer_norm: bool = True
    critic_learning_rate: float = 1e-3
    actor_learning_rate: float = 5e-4
    decay_from: float = Field(default=0.6, ge=0, lt=1)
    """Share of the rounds after which the learning rates fall, linearly, to nothing."""
    max_gradient_norm: float | None = Field(default=None, gt=0)
    """The server scales the gradient that it steps along down to this norm; None: as it is."""
    tau: float = 0.005
    """Share of the way that target networks move each round."""
    smoothing: float = 0.2
    """Standard deviation of the target-smoothing noise, in half widths of the action box."""
    smoothing_limit: float = 0.5
    """The smoothing noise is clipped to this."""
    exploration: float = 0.2
    """Standard deviation of the exploration noise, in half widths of the action box."""
    exploration_correlation: float = 0.9
    """Correlation of one step's exploration noise with the step before (AR(1))."""
    steps_per_round: Positive = 1
    """Environment steps of each client between two releases."""
    batch_size: Positive = 64
    local_steps: Positive = 1
    """Gradient steps of a client in a round, each on a minibatch; 1 is FedSGD, more FedAvg."""
    local_critic_learning_rate: float = Field(default=1e-4, ge=0)
    """Of the client's plain gradient steps, public; small, since plain steps diverge where the loss
    is steep."""
    local_actor_learning_rate: float = Field(default=1e-3, ge=0)


class DQNSettings(Specification):
    """How the discrete-action agent learns."""

    kind: Literal["dqn"] = "dqn"
    hidden: tuple[Positive, ...] = (64, 64)
    layer_norm: bool = False
    learning_rate: float = 1e-3
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """Of the server's Adam: gradients of coordinates far below it move their weights little."""
    decay_from: float = Field(default=0.6, ge=0, lt=1)
    max_gradient_norm: float | None = Field(default=None, gt=0)
    """As for TD3."""
    tau: float = 0.01
    exploration: float = 0.2
    """Probability of a random action."""
    steps_per_round: Positive = 1
    batch_size: Positive = 32
    local_steps: Positive = 1
    local_learning_rate: float = Field(default=0.05, ge=0)


LOCAL_TRAINING = {
    "local_steps",
    "local_critic_learning_rate",
    "local_actor_learning_rate",
    "local_learning_rate",
}
"""Settings that change nothing in FedSGD."""

_RECIPES: dict[str, TD3Settings | DQNSettings] = {
    # An early fall of the rates: Ant's gait needs many rounds, then calm. In the same time, 60,000
    # rounds on minibatches of 32 end lower and 36,000 on 128 no higher.
    # Mean gradients have norms from 9 to over 200; nearly all are scaled to the same one. Of a few
    # seeds each, undefended trainings ended higher with it, those under noise of its size lower.
    "ant": TD3Settings(decay_from=0.3, max_gradient_norm=10.0),
}
"""Recipes that differ from their agent's own."""

# Mnih et al. 2015: a dense layer of 512 behind the convolutions; Adam's epsilon as in Hessel et al.
# 2018 (arXiv 1710.02298). With Adam's own, the first rounds' tiny gradients move every weight by
# the whole rate, and after a thousand rounds of Pong two of the first layer's 32 channels are left.
_PIXELS = DQNSettings(
    hidden=(512,), learning_rate=1e-4, adam_epsilon=1.5e-4, exploration=0.1, batch_size=8
)
_RAM = DQNSettings(
    hidden=(128, 128),
    layer_norm=True,
    learning_rate=5e-4,
    tau=0.005,
    exploration=0.1,
    batch_size=64,
)


def agent_settings(
    env: EnvironmentSpec,
    batch_size: int | None,
    local_steps: int = 1,
    observation: str = "default",
) -> TD3Settings | DQNSettings:
    """The environment's learning recipe, with another minibatch size if one is given."""
    if env.pixels(observation):
        settings: TD3Settings | DQNSettings = _PIXELS
    elif observation == "ram":
        settings = _RAM
    else:
        agents: dict[str, TD3Settings | DQNSettings] = {"td3": TD3Settings(), "dqn": DQNSettings()}
        settings = _RECIPES.get(env.name, agents[env.agent])
    changes = {"local_steps": local_steps}
    if batch_size is not None:
        changes["batch_size"] = batch_size
    return settings.model_copy(update=changes)
