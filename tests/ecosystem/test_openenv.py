"""OpenEnv's server and OpenEnv's client give step by step what `gym.make` gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from support.reward_servers import serving

import tokenenv

pytest.importorskip("openenv.core", reason="the extra `openenv` is not installed")

from openenv.core import GenericEnvClient

from tokenenv.serving.openenv import ClientEnv, TokenEnvironment, create_openenv_app

pytestmark = pytest.mark.ecosystem

SETTINGS: dict[str, dict[str, Any]] = {
    "TokenRLHF-v0": {"task": "exact"},
    "TokenRLHF-Exact-v0": {},
    "TokenRLHF-Features-v0": {"task": "exact"},
    "TokenRLHF-Features-TopK-v0": {"task": "exact", "k": 3},
}


@pytest.fixture(scope="module", params=SETTINGS)
def pair(request) -> Iterator[tuple[str, Any]]:
    """The address of a server, and the environment of the same id here."""
    kwargs = SETTINGS[request.param]
    with serving(create_openenv_app(request.param, **kwargs)) as url:
        yield url, gym.make(f"tokenenv:{request.param}", **kwargs)


def test_every_id_is_served():
    assert set(SETTINGS) == set(tokenenv.ENV_IDS)


def test_openenvs_own_client_gets_what_gym_make_gives(pair):
    """Observations, rewards, ends and infos of twenty episodes, to the last bit."""
    url, env = pair
    rng = np.random.default_rng(0)
    with GenericEnvClient(base_url=url).sync() as client:
        for episode in range(20):
            seed = episode if episode % 3 else None
            result = client.reset(**({} if seed is None else {"seed": seed}))
            prompt = result.observation["info"]["prompt"]
            observation, info = env.reset(seed=seed, options={"prompt": prompt})
            assert result.observation["observation"] == observation.tolist()
            assert result.observation["info"] == info and not result.done
            ended, steps = False, 0
            while not ended:
                action = int(rng.integers(env.action_space.n))
                result = client.step({"action": action})
                observation, reward, terminated, truncated, info = env.step(action)
                seen, ended, steps = result.observation, terminated or truncated, steps + 1
                assert seen["observation"] == observation.tolist()
                assert (result.reward, result.done) == (reward, ended)
                assert (seen["terminated"], seen["truncated"]) == (terminated, truncated)
                assert seen["info"] == info
            state = client.state()
            assert state["step_count"] == steps and state["episode_id"]


def test_seeds_draw_the_same_prompts_as_here(pair):
    url, env = pair
    with GenericEnvClient(base_url=url).sync() as client:
        for seed in range(10):
            found = client.reset(seed=seed).observation["info"]["prompt"]
            assert found == env.reset(seed=seed)[1]["prompt"]


def test_a_client_is_a_gymnasium_environment(pair):
    url, env = pair
    there = ClientEnv(url)
    try:
        check_env(there, skip_render_check=True)
        assert there.action_space == env.action_space
        assert there.observation_space.shape == env.observation_space.shape
        assert there.observation_space.dtype == env.observation_space.dtype
        with pytest.raises(Exception, match="reset"):
            there.client.reset(nonsense=1)
        there.reset(seed=0)
        with pytest.raises(Exception, match=str(int(env.action_space.n))):
            there.step(int(env.action_space.n))
    finally:
        there.close()


def test_sessions_do_not_meet():
    with serving(create_openenv_app("TokenRLHF-Exact-v0")) as url:
        first, second = ClientEnv(url), ClientEnv(url)
        try:
            one = first.reset(seed=1)[0]
            second.reset(seed=2)
            second.step(1)
            assert (first.step(2)[0] != one).sum() == 1
        finally:
            first.close()
            second.close()


def test_what_can_not_be_served_is_refused_at_once():
    with pytest.raises(ValueError, match="is none of 'TokenRLHF-v0'"):
        TokenEnvironment("CartPole-v1")
    with pytest.raises(ValueError, match="scoring='deferred'"):
        create_openenv_app(scoring="deferred")
