"""Gymnasium's own wrappers around single and vector environments: they keep what they promise."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.wrappers import vector as vector_wrappers

pytestmark = pytest.mark.ecosystem

IDS = ["TokenRLHF-Exact-v0", "TokenRLHF-Features-TopK-v0"]


def make(env_id: str, **kwargs) -> gym.Env:
    return gym.make(f"tokenenv:{env_id}", task="exact", **kwargs)


def make_vector(env_id: str, num_envs: int = 3, **kwargs) -> gym.vector.VectorEnv:
    return gym.make_vec(f"tokenenv:{env_id}", num_envs=num_envs, task="exact", **kwargs)


def episode(env: gym.Env, seed: int = 0) -> list[tuple]:
    """The steps of one seeded episode of seeded actions."""
    steps, ended = [], False
    env.action_space.seed(seed)
    env.reset(seed=seed)
    while not ended:
        steps.append(env.step(env.action_space.sample()))
        ended = steps[-1][2] or steps[-1][3]
    return steps


def rewards(steps: list[tuple]) -> np.ndarray:
    return np.array([step[1] for step in steps])


@pytest.mark.parametrize("env_id", IDS)
def test_record_episode_statistics_sums_the_rewards(env_id):
    plain, steps = episode(make(env_id)), episode(wrappers.RecordEpisodeStatistics(make(env_id)))
    found = steps[-1][-1]["episode"]
    assert found["r"] == pytest.approx(rewards(plain).sum()) and found["l"] == len(plain)


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_vector_record_episode_statistics_sums_the_rewards(env_id, mode):
    env = vector_wrappers.RecordEpisodeStatistics(make_vector(env_id, autoreset_mode=mode))
    env.reset(seed=0)
    env.action_space.seed(0)
    running, seen, is_reset = np.zeros(3), 0, np.zeros(3, dtype=bool)
    for _ in range(30):
        _, reward, terminated, _, infos = env.step(env.action_space.sample())
        running = np.where(is_reset, 0.0, running) + reward
        found = infos.get("episode", infos.get("final_info", {}).get("episode"))
        for row in np.flatnonzero(terminated):
            assert found["r"][row] == pytest.approx(running[row], abs=1e-4)
            seen += 1
        running = np.where(terminated & (mode == "SameStep"), 0.0, running)
        is_reset = terminated & (mode == "NextStep")
    assert seen >= 10


def test_a_time_limit_truncates_and_only_then():
    never_stops = wrappers.TimeLimit(make("TokenRLHF-Exact-v0"), max_episode_steps=6)
    assert not any(step[3] for step in episode(never_stops))
    env = wrappers.TimeLimit(make("TokenRLHF-Exact-v0"), max_episode_steps=2)
    env.reset(seed=0)
    assert env.step(0)[2:4] == (False, False) and env.step(0)[2:4] == (False, True)
    with pytest.raises(ValueError, match="max_new_tokens"):
        make_vector("TokenRLHF-Exact-v0", max_episode_steps=2)


@pytest.mark.parametrize("env_id", IDS)
def test_normalize_reward_only_scales(env_id):
    plain = rewards(episode(make(env_id)))
    scaled = rewards(episode(wrappers.NormalizeReward(make(env_id))))
    assert np.sign(scaled).tolist() == np.sign(plain).tolist()
    env = vector_wrappers.NormalizeReward(make_vector(env_id, num_envs=16))
    env.reset(seed=0)
    env.action_space.seed(0)
    many = np.concatenate([env.step(env.action_space.sample())[1] for _ in range(60)])
    assert 0.05 < many.std() < 2.0


@pytest.mark.parametrize("env_id", IDS)
def test_observation_wrappers_give_what_they_say(env_id):
    width = make(env_id).observation_space.shape[0]
    cases = [
        (lambda e: wrappers.FlattenObservation(e), (width,)),
        (lambda e: wrappers.FrameStackObservation(e, 3), (3, width)),
        (lambda e: wrappers.TransformObservation(e, lambda o: o[:2], None), (2,)),
    ]
    plain = episode(make(env_id))
    for wrap, shape in cases:
        env = wrap(make(env_id))
        if isinstance(env, wrappers.TransformObservation) and shape == (2,):
            low = make(env_id).observation_space
            env.observation_space = gym.spaces.Box(low.low[:2], low.high[:2], dtype=low.dtype)
        steps = episode(env)
        assert [step[1] for step in steps] == [step[1] for step in plain]
        for found, expected in zip(steps, plain, strict=True):
            assert found[0].shape == shape and found[0] in env.observation_space
            last = found[0][-1] if len(shape) == 2 else found[0]
            np.testing.assert_array_equal(last, expected[0][: last.shape[0]])


@pytest.mark.parametrize("env_id", IDS)
def test_vector_observation_wrappers_give_what_they_say(env_id):
    plain, width = make_vector(env_id), make(env_id).observation_space.shape[0]
    flat = vector_wrappers.FlattenObservation(make_vector(env_id))
    single, batch = plain.single_observation_space, plain.observation_space
    negated = vector_wrappers.TransformObservation(make_vector(env_id), lambda o: -o, single, batch)
    for env in (plain, flat, negated):
        env.action_space.seed(1)
        env.reset(seed=1)
    for _ in range(20):
        actions = plain.action_space.sample()
        a, b, c = (env.step(actions)[0] for env in (plain, flat, negated))
        assert a.shape == (3, width)
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, -c)


@pytest.mark.parametrize("env_id", IDS)
def test_autoreset_starts_the_next_episode_by_itself(env_id):
    env = wrappers.Autoreset(make(env_id))
    env.reset(seed=0)
    ends, prompts = 0, 0
    for _ in range(60):
        _, reward, terminated, _, info = env.step(env.action_space.sample())
        if "prompt" in info:
            prompts += 1
            assert reward == 0 and not terminated
        ends += terminated
    assert ends >= 8 and prompts in (ends, ends - 1)


@pytest.mark.parametrize("env_id", IDS)
def test_order_enforcing_and_the_passive_checker_agree_with_the_environment(env_id):
    env = gym.make(f"tokenenv:{env_id}", task="exact")
    kinds, layer = set(), env
    while isinstance(layer, gym.Wrapper):
        kinds.add(type(layer))
        layer = layer.env
    assert {wrappers.OrderEnforcing, wrappers.PassiveEnvChecker} <= kinds
    with pytest.raises(gym.error.ResetNeeded):
        env.step(0)
    assert len(episode(env)) >= 1


@pytest.mark.parametrize("env_id", IDS)
def test_record_video_makes_a_film_of_an_episode(env_id, tmp_path):
    pytest.importorskip("moviepy")
    env = wrappers.RecordVideo(
        make(env_id, render_mode="rgb_array"), str(tmp_path), episode_trigger=lambda _: True
    )
    steps = episode(env)
    assert len(env.recorded_frames) == len(steps) + 1 or not env.recording
    env.close()
    films = list(tmp_path.glob("*.mp4"))
    assert films and films[0].stat().st_size > 1000


def test_vector_record_video_makes_a_film(tmp_path):
    pytest.importorskip("moviepy")
    env = vector_wrappers.RecordVideo(
        make_vector("TokenRLHF-Exact-v0", render_mode="rgb_array"),
        str(tmp_path),
        video_aspect_ratio=(1, 1),
        record_first_only=True,
        video_length=6,
    )
    env.reset(seed=0)
    for _ in range(8):
        env.step(env.action_space.sample())
    env.close()
    assert [p.stat().st_size > 1000 for p in tmp_path.glob("*.mp4")]
