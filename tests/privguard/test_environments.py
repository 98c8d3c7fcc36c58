from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from privguard.environments import ENVIRONMENTS, environment_spec, make_environment
from privguard.errors import BadInput


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_environment_is_sound_and_gives_vectors_or_frames(name: str) -> None:
    env = make_environment(name)
    check_env(env.unwrapped, skip_render_check=True)
    state, _ = env.reset(seed=0)
    pixels = environment_spec(name).pixels("default")
    assert state.dtype == (np.uint8 if pixels else np.float32)
    assert state.ndim == (3 if pixels else 1)
    assert env.observation_space.contains(state)
    env.close()


@pytest.mark.parametrize("name", ["ant", "hopper", "walker2d", "halfcheetah"])
def test_locomotion_states_the_forward_part_of_its_reward(name: str) -> None:
    env = make_environment(name)
    env.reset(seed=0)
    assert isinstance(env.action_space, gym.spaces.Box)
    _, reward, *_, info = env.step(np.zeros(env.action_space.shape, np.float32))
    key = environment_spec(name).forward_key
    assert key is not None
    assert np.isfinite(info[key])
    assert np.isfinite(float(reward))
    env.close()


def test_ant_has_27_numbers_and_105_on_request() -> None:
    assert make_environment("ant").observation_space.shape == (27,)
    assert make_environment("ant", "contact").observation_space.shape == (105,)


def test_unknown_names_are_one_line_with_a_hint() -> None:
    with pytest.raises(BadInput, match="did you mean 'hopper'") as caught:
        environment_spec("hoper")
    assert "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="allowed: default"):
        make_environment("hopper", "contact")


def test_mujoco_leaves_no_log_behind(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    make_environment("halfcheetah").close()
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("observation", ["default", "contact"])
def test_ants_public_scale_keeps_its_numbers_alike(observation: str) -> None:
    env = make_environment("ant", observation)
    rng = np.random.default_rng(0)
    states = [env.reset(seed=0)[0]]
    for _ in range(500):
        action = rng.uniform(-1, 1, 8).astype(np.float32)
        state, _, terminated, truncated, _ = env.step(action)
        states.append(env.reset()[0] if terminated or truncated else state)
    spread = np.std(states, axis=0)[:27]
    assert spread.min() > 0.2
    assert spread.max() < 2.5
    assert env.observation_space.contains(states[-1])
    env.close()
