"""Environments by short name: the Gymnasium id behind each, its agent and its discount."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from privguard.catalogue import nearest
from privguard.errors import BadInput

if TYPE_CHECKING:
    import gymnasium as gym
    import numpy as np

AgentName = Literal["td3", "dqn"]
Family = Literal["gymnasium", "atari", "car racing"]
"""How an environment is made: by Gymnasium alone, or with frames that we prepare."""


@dataclass(frozen=True)
class EnvironmentSpec:
    """What the trainer must know of an environment before it makes one."""

    name: str
    gym_id: str
    agent: AgentName
    summary: str
    forward_key: str | None = None
    """The entry of a step's ``info`` that holds the forward part of the reward."""
    discount: float = 0.99
    family: Family = "gymnasium"
    ram: tuple[int, ...] = ()
    """Atari: the RAM bytes that ``--obs ram`` shows, public knowledge of the game; () for all."""
    fire: int | None = None
    """Atari: the action that starts each life."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of ``gymnasium.make``."""
    observations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Other observations on offer: name -> keyword arguments that replace ``options``."""
    grids: Mapping[str, str] = field(default_factory=dict)
    """What a defence's bare name stands for in a sweep, where its own grid does not suit the
    gradients: levels, and public constants such as dp-sgd's clipping norm."""
    frame_grids: Mapping[str, str] = field(default_factory=dict)
    """The same for the gradients of convolutional networks."""
    one_hot: bool = False
    """Discrete observations become one-hot vectors (float32)."""
    centre: tuple[float, ...] = ()
    """Subtracted from the first numbers of an observation; the rest is left as it is."""
    unit: tuple[float, ...] = ()
    """What the first numbers are divided by. Both are public constants, the mean and the spread
    under random actions: nothing of a client is in them."""

    def pixels(self, observation: str) -> bool:
        """Whether states are stacked grey frames."""
        return self.family != "gymnasium" and observation == "default"

    def sweep_grids(self, observation: str) -> Mapping[str, str]:
        """What bare names of defences stand for in a sweep with this observation."""
        return self.frame_grids if self.pixels(observation) else self.grids


# 1.7 million coordinates share a norm of 0.01 to 1, and so are hundreds of times smaller than those
# of the dense networks that the defences' own grids are for. In a sweep of Pong their root mean
# square was 1e-5 to 8e-5, and noise as large as that, a variance of 1e-9, hid every frame; at a
# thousandth of it they are read nearly to the last pixel.
_ATARI_GRIDS = {
    "gaussian": "gaussian=1e-14,1e-12,1e-10,1e-8,1e-5",
    "dp-sgd": "dp-sgd=1e-7,1e-5,1e-3,0.1",
}


def _atari(
    name: str, gym_id: str, summary: str, ram: tuple[int, ...] = (), fire: int | None = None
) -> EnvironmentSpec:
    return EnvironmentSpec(
        name,
        gym_id,
        "dqn",
        f"Atari, {summary}; 84x84x4 grey frames, or --obs ram",
        family="atari",
        observations={"ram": {}},
        frame_grids=_ATARI_GRIDS,
        ram=ram,
        fire=fire,
    )


ENVIRONMENTS: dict[str, EnvironmentSpec] = {
    spec.name: spec
    for spec in (
        EnvironmentSpec(
            "ant",
            "Ant-v5",
            "td3",
            "MuJoCo quadruped; 27 numbers, or all 105 with --obs contact",
            "reward_forward",
            options={"include_cfrc_ext_in_observation": False},
            observations={"contact": {"include_cfrc_ext_in_observation": True}},
            # Rare large TD errors, such as those of a fall, must keep their weight; the last of
            # these levels leaves neither leakage nor gait.
            grids={"dp-sgd": "dp-sgd=0.0003,0.001,0.003,0.03@clip=1000"},
            # Height, orientation, hips and ankles; then their velocities.
            centre=(0.46, 0, 0, 0, 0, 0, 0.87, 0, -0.87, 0, -0.87, 0, 0.87),
            unit=(0.22, *[0.44] * 4, *[0.41, 0.28] * 4, *[0.64] * 3, *[1.5] * 3, *[4.3] * 8),
        ),
        EnvironmentSpec("halfcheetah", "HalfCheetah-v5", "td3", "MuJoCo runner", "reward_forward"),
        EnvironmentSpec("hopper", "Hopper-v5", "td3", "MuJoCo one-legged hopper", "reward_forward"),
        EnvironmentSpec("walker2d", "Walker2d-v5", "td3", "MuJoCo biped", "reward_forward"),
        EnvironmentSpec(
            "frozenlake",
            "FrozenLake-v1",
            "dqn",
            "4x4 grid with one-hot states; tiny, for tests and pseudo-solutions",
            discount=0.95,
            options={"is_slippery": False},
            one_hot=True,
        ),
        # Ball and rackets: x and y of the ball, y of the opponent's racket and of the own.
        _atari("pong", "ALE/Pong-v5", "table tennis", ram=(49, 54, 50, 51)),
        _atari("qbert", "ALE/Qbert-v5", "hops on a pyramid"),
        # x of the paddle, x and y of the ball.
        _atari("breakout", "ALE/Breakout-v5", "bat, ball and bricks", ram=(72, 99, 101), fire=1),
        _atari("seaquest", "ALE/Seaquest-v5", "submarine"),
        EnvironmentSpec(
            "carracing",
            "CarRacing-v3",
            "dqn",
            "Box2D racing, five actions, 84x84x4 grey frames",
            family="car racing",
            # Single records' gradients have norms of 4 to 22 once it drives: 30 hardly clips.
            frame_grids={
                "gaussian": "gaussian=1e-10,1e-8,1e-6,1e-4,1e-2",
                "dp-sgd": "dp-sgd=1e-6,1e-5,1e-4,1e-3@clip=30",
            },
        ),
    )
}


def environment_spec(name: str) -> EnvironmentSpec:
    """The specification of ``name``.

    Raises:
        BadInput: no such environment; the message suggests the nearest name.
    """
    if name not in ENVIRONMENTS:
        raise BadInput(
            f"--env {name}: unknown environment{nearest(name, list(ENVIRONMENTS))} "
            f"(allowed: {', '.join(ENVIRONMENTS)})"
        )
    return ENVIRONMENTS[name]


def make_environment(name: str, observation: str = "default") -> gym.Env:
    """One Gymnasium environment: float32 vectors, or stacked grey frames (4, 84, 84) as uint8.

    Raises:
        BadInput: unknown environment, or an observation that it does not offer.
    """
    import gymnasium as gym
    import numpy as np

    spec = environment_spec(name)
    options = dict(spec.options)
    if observation != "default":
        if observation not in spec.observations:
            allowed = ", ".join(["default", *spec.observations])
            raise BadInput(
                f"--obs {observation}: {name} has no such observation (allowed: {allowed})"
            )
        options = dict(spec.observations[observation])
    if spec.family == "atari":
        from privguard.worlds.atari import make_atari

        return make_atari(spec.gym_id, observation, spec.ram, spec.fire)
    if spec.family == "car racing":
        from privguard.worlds.car_racing import make_car_racing

        return make_car_racing()
    if spec.agent == "td3":
        _silence_mujoco()
    # The checker re-validates every step; our tests do that once per environment.
    env = gym.make(spec.gym_id, disable_env_checker=True, **options)
    if spec.one_hot:
        env = gym.wrappers.FlattenObservation(env)
    space = env.observation_space
    if isinstance(space, gym.spaces.Box) and space.dtype in (np.float64, np.int64):
        centre, unit = observation_scale(spec, space.shape)
        single = gym.spaces.Box(
            ((space.low - centre) / unit).astype(np.float32),
            ((space.high - centre) / unit).astype(np.float32),
            space.shape,
            np.float32,
        )
        return gym.wrappers.TransformObservation(
            env, lambda x: ((x - centre) / unit).astype(np.float32), single
        )
    return env


def make_learning_environment(name: str, observation: str = "default") -> gym.Env:
    """The same with the rewards that clients learn from: of games clipped to [-1, 1].

    As in Mnih et al. 2015, so that one learning rate serves every game. Evaluation sees the score.
    """
    import gymnasium as gym

    env = make_environment(name, observation)
    if environment_spec(name).family == "gymnasium":
        return env
    return gym.wrappers.ClipReward(env, -1.0, 1.0)


def observation_scale(
    spec: EnvironmentSpec, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """What is subtracted from an observation of this shape, and what it is then divided by."""
    import numpy as np

    centre, unit = np.zeros(shape), np.ones(shape)
    centre[: len(spec.centre)] = spec.centre
    unit[: len(spec.unit)] = spec.unit
    return centre, unit


def _silence_mujoco() -> None:
    """Keeps MuJoCo's notices off the terminal and its MUJOCO_LOG.TXT out of the user's directory.

    Without a handler of ours its C code writes both, the first at every HalfCheetah.
    """
    import mujoco

    mujoco.set_mju_user_warning(lambda message: None)
