"""Gymnasium's own wrappers keep what they promise on single and vector environments.

On vector environments they are also stepped beside the same wrapper over Gymnasium's own
`SyncVectorEnv`, in every autoreset mode. `RecordVideo` needs a library more and is in
`tests/ecosystem`.
"""

from __future__ import annotations

import copy
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import vector as vector_wrappers
from support.comparing import assert_equal

import tokenenv

IDS = ["TokenRLHF-Exact-v0", "TokenRLHF-Features-TopK-v0"]
MODES = ["NextStep", "SameStep", "Disabled"]
N, T, EOS = 3, 6, 5


def make(env_id: str = IDS[0], **kwargs) -> gym.Env:
    return gym.make(env_id, task="exact", **kwargs)


def make_vector(env_id: str = IDS[0], mode: str = "NextStep", **kwargs) -> gym.vector.VectorEnv:
    return gym.make_vec(env_id, num_envs=N, autoreset_mode=mode, task="exact", **kwargs)


def episode(env: gym.Env, seed: int = 0) -> list[tuple]:
    """What `reset` gave, then the steps of one seeded episode of seeded actions."""
    env.action_space.seed(seed)
    trace: list[tuple] = [env.reset(seed=seed)]
    while len(trace) == 1 or not (trace[-1][2] or trace[-1][3]):
        trace.append(env.step(env.action_space.sample()))
    return trace


def longest(env_id: str = IDS[0]) -> int:
    """A seed whose random episode has at least four steps."""
    return next(seed for seed in range(50) if len(episode(make(env_id), seed)) >= 5)


def steps_of(env: gym.vector.VectorEnv, mode: str, count: int = 24) -> list[tuple]:
    """Seeded random steps; in DISABLED mode rows that ended are reset behind each of them."""
    env.action_space.seed(0)
    env.reset(seed=0)
    found = []
    for _ in range(count):
        step = env.step(env.action_space.sample())
        found.append(copy.deepcopy(step))  # resets write into what some wrappers gave
        done = step[2] | step[3]
        if mode == "Disabled" and done.any():
            env.reset(options={"reset_mask": done})
    assert sum(int(step[2].sum()) for step in found) >= 8
    return found


def takes_part(steps: list[tuple], mode: str) -> list[np.ndarray]:
    """(N,) bool for each step: the rows that took one, and not the reset of NEXT_STEP."""
    ended = [np.zeros(N, dtype=bool), *(step[2] for step in steps[:-1])]
    return [~e if mode == "NextStep" else np.ones(N, dtype=bool) for e in ended]


# Vector wrappers over our batch and over rows of Gymnasium's own ----------------------------------


def turned_around(observations: np.ndarray) -> np.ndarray:
    """Other observations in the same space."""
    return observations[..., ::-1]


VECTOR_WRAPPERS = {
    "RecordEpisodeStatistics": vector_wrappers.RecordEpisodeStatistics,
    "NormalizeReward": vector_wrappers.NormalizeReward,
    "FlattenObservation": vector_wrappers.FlattenObservation,
    "VectorizeTransformObservation": lambda env: vector_wrappers.VectorizeTransformObservation(
        env, wrappers.TransformObservation, func=turned_around, observation_space=None
    ),
    "TransformObservation": lambda env: vector_wrappers.TransformObservation(env, turned_around),
}
CHANGE_OBSERVATIONS = [name for name in VECTOR_WRAPPERS if "Observation" in name]


def without_times(infos):
    """`t` of the statistics is wall time; the rest of `infos` is the same in every run."""
    if isinstance(infos, dict) and "episode" in infos:
        kept = {key: value for key, value in infos["episode"].items() if key != "t"}
        return {**infos, "episode": kept}
    return infos


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        (name, mode)
        for name in VECTOR_WRAPPERS
        for mode in MODES
        # Rows of Gymnasium pop `reset_mask`, so that the statistics of all rows start anew there.
        if (name, mode) != ("RecordEpisodeStatistics", "Disabled")
        if (name in CHANGE_OBSERVATIONS, mode) != (True, "SameStep")
    ],
)
def test_a_vector_wrapper_sees_in_our_batch_what_it_sees_in_rows(name, mode):
    """The wrappers assume what Gymnasium's own vector environments do with ends and infos."""
    rows = SyncVectorEnv([make] * N, autoreset_mode=AutoresetMode(mode))
    envs = [VECTOR_WRAPPERS[name](env) for env in (rows, make_vector(mode=mode))]
    assert envs[0].observation_space == envs[1].observation_space
    expected, found = (steps_of(env, mode) for env in envs)
    for one, other in zip(expected, found, strict=True):
        assert_equal((*one[:4], without_times(one[4])), (*other[:4], without_times(other[4])))
        assert other[0] in envs[1].observation_space


@pytest.mark.parametrize("name", CHANGE_OBSERVATIONS)
def test_gymnasium_refuses_changed_observations_where_rows_reset_in_the_same_step(name):
    with pytest.raises(ValueError, match="Expected autoreset_mode to be NEXT_STEP or DISABLED"):
        VECTOR_WRAPPERS[name](make_vector(mode="SameStep"))


# Statistics ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", IDS)
def test_record_episode_statistics_sums_the_rewards(env_id):
    env = wrappers.RecordEpisodeStatistics(make(env_id))
    for seed in range(3):
        plain, found = episode(make(env_id), seed), episode(env, seed)
        assert [step[1] for step in found[1:]] == [step[1] for step in plain[1:]]
        assert all("episode" not in step[4] for step in found[1:-1])
        assert found[-1][4]["episode"]["r"] == pytest.approx(sum(s[1] for s in plain[1:]), abs=1e-9)
        assert found[-1][4]["episode"]["l"] == len(plain) - 1
    assert len(env.return_queue) == 3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("env_id", IDS)
def test_vector_record_episode_statistics_sums_the_rewards(env_id, mode):
    env = vector_wrappers.RecordEpisodeStatistics(make_vector(env_id, mode))
    steps = steps_of(env, mode)
    returns, lengths = np.zeros(N), np.zeros(N, dtype=int)
    for (_, reward, terminated, _, infos), is_step in zip(
        steps, takes_part(steps, mode), strict=True
    ):
        returns += reward
        lengths += is_step
        assert ("episode" in infos) == terminated.any()
        if terminated.any():
            np.testing.assert_array_equal(infos["_episode"], terminated)
            found = infos["episode"]
            np.testing.assert_allclose(found["r"], np.where(terminated, returns, 0), atol=1e-9)
            np.testing.assert_array_equal(found["l"], np.where(terminated, lengths, 0))
        returns[terminated], lengths[terminated] = 0.0, 0
    assert env.episode_count == sum(int(step[2].sum()) for step in steps)


# Limits -------------------------------------------------------------------------------------------


def test_a_time_limit_truncates_at_its_step_and_never_above_the_own_limit():
    seed = longest()
    plain = episode(make(), seed)
    for limit in (2, T + 1):
        found = episode(wrappers.TimeLimit(make(), max_episode_steps=limit), seed)
        ends = [(step[2], step[3]) for step in found[1:]]
        if limit == 2:
            assert ends == [(False, False), (False, True)]
            assert "score" not in found[-1][4], "a truncated response has no score"
        else:
            assert ends == [(step[2], False) for step in plain[1:]]


def test_a_time_limit_on_vector_environments():
    with pytest.raises(ValueError, match=r"max_episode_steps=2 .*lower max_new_tokens instead"):
        make_vector(max_episode_steps=2)
    assert make_vector(max_episode_steps=T).reset(seed=0)[0].shape == (N, T + 2)
    rows = gym.make_vec(
        IDS[0], num_envs=N, vectorization_mode="sync", task="exact", max_episode_steps=2
    )
    rows.reset(seed=0)
    assert not np.any(rows.step(np.zeros(N, dtype=int))[2:4])
    _, _, terminated, truncated, _ = rows.step(np.array([0, 1, EOS]))
    assert terminated.tolist() == [False, False, True] and truncated.tolist() == [True] * N


# Rewards ------------------------------------------------------------------------------------------


def scale(returns: list[float]) -> float:
    """√(variance + 1e-8) of all discounted returns so far, in closed form.

    Gymnasium starts its running variance from 1e-4 samples of mean 0 and variance 1.
    """
    count = len(returns) + 1e-4
    mean = np.sum(returns) / count
    return np.sqrt((1e-4 + np.square(returns).sum()) / count - mean**2 + 1e-8)


@pytest.mark.parametrize("env_id", IDS)
def test_normalize_reward_divides_by_the_spread_of_the_returns(env_id):
    env, plain = wrappers.NormalizeReward(make(env_id), gamma=0.9), make(env_id)
    returns, discounted = [], 0.0
    for seed in range(4):
        for found, (_, reward, terminated, _, _) in zip(
            episode(env, seed)[1:], episode(plain, seed)[1:], strict=True
        ):
            discounted = 0.9 * discounted * (1 - terminated) + reward
            returns.append(discounted)
            assert found[1] == pytest.approx(reward / scale(returns), rel=1e-6)


@pytest.mark.parametrize("mode", MODES[:2])
@pytest.mark.parametrize("env_id", IDS)
def test_vector_normalize_reward_divides_by_the_spread_of_the_returns(env_id, mode):
    normalized = steps_of(vector_wrappers.NormalizeReward(make_vector(env_id, mode), 0.9), mode)
    plain = steps_of(make_vector(env_id, mode), mode)
    returns, discounted = [], np.zeros(N, dtype=np.float32)
    for found, (_, reward, terminated, _, _), is_step in zip(
        normalized, plain, takes_part(plain, mode), strict=True
    ):
        own = 0.9 * discounted * (1 - terminated) + reward
        discounted = np.where(is_step, own, discounted).astype(np.float32)
        returns += discounted[is_step].tolist()
        np.testing.assert_allclose(found[1], reward / scale(returns), rtol=1e-4, atol=1e-9)
        assert (found[1][~is_step] == 0.0).all()
        if mode == "SameStep":
            discounted[terminated] = 0.0


# Observations -------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", IDS)
def test_observation_wrappers_give_what_they_say(env_id):
    seed = longest(env_id)
    plain, own = episode(make(env_id), seed), make(env_id).observation_space
    half = gym.spaces.Box(own.low[:2], own.high[:2], dtype=own.dtype)
    flat = wrappers.FlattenObservation(make(env_id))
    cut = wrappers.TransformObservation(make(env_id), lambda o: o[:2], half)
    stacked = wrappers.FrameStackObservation(make(env_id), 3)
    assert flat.observation_space == own and stacked.observation_space.shape == (3, *own.shape)
    traces = {env: episode(env, seed) for env in (flat, cut, stacked)}
    seen = [plain[0][0]] * 2
    for number, expected in enumerate(plain):
        seen.append(expected[0])
        np.testing.assert_array_equal(traces[flat][number][0], expected[0])
        np.testing.assert_array_equal(traces[cut][number][0], expected[0][:2])
        np.testing.assert_array_equal(traces[stacked][number][0], np.stack(seen[-3:]))
        for env, trace in traces.items():
            assert trace[number][0] in env.observation_space
            assert trace[number][1:] == expected[1:]  # reward, ends and info


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_vector_observation_wrappers_give_what_they_say(env_id, mode):
    plain = steps_of(make_vector(env_id, mode), mode)
    flat = steps_of(vector_wrappers.FlattenObservation(make_vector(env_id, mode)), mode)
    turned = steps_of(
        vector_wrappers.TransformObservation(make_vector(env_id, mode), turned_around), mode
    )
    for expected, one, other in zip(plain, flat, turned, strict=True):
        np.testing.assert_array_equal(one[0], expected[0])
        np.testing.assert_array_equal(other[0], turned_around(expected[0]))
        assert_equal(expected[1:4], one[1:4])
        assert_equal(expected[1:4], other[1:4])


# Resets and checks --------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", IDS)
def test_autoreset_makes_a_row_of_the_vector_environment(env_id):
    """Gymnasium's NEXT_STEP, made in two ways: step by step the same, infos included."""
    single = wrappers.Autoreset(make(env_id))
    row = gym.make_vec(env_id, num_envs=1, autoreset_mode="NextStep", task="exact")
    single.action_space.seed(0)
    single.reset(seed=0)
    row.reset(seed=0)
    ends, was_end = 0, False
    for _ in range(40):
        action = int(single.action_space.sample())
        observation, reward, terminated, truncated, info = single.step(action)
        found = row.step(np.array([action]))
        np.testing.assert_allclose(found[0][0], observation, rtol=0, atol=1e-5)
        assert found[1][0] == pytest.approx(reward, abs=1e-5)
        assert found[2][0] == terminated and not truncated
        assert {key for key in found[4] if not key.startswith("_")} == set(info)
        assert ("prompt" in info) == was_end and (reward == 0.0 or not was_end)
        ends, was_end = ends + terminated, terminated
    assert ends >= 6


@pytest.mark.parametrize("env_id", tokenenv.ENV_IDS)
def test_order_enforcing_and_the_passive_checker_have_nothing_to_say(env_id):
    env = gym.make(env_id, task="exact", render_mode="ansi")
    kinds, layer = set(), env
    while isinstance(layer, gym.Wrapper):
        kinds.add(type(layer))
        layer = layer.env
    assert kinds == {wrappers.OrderEnforcing, wrappers.common.PassiveEnvChecker}
    for too_early in (lambda: env.step(0), env.render):
        with pytest.raises(ResetNeeded, match=r"before calling .?env\.reset"):
            too_early()
    level, gym.logger.min_level = gym.logger.min_level, gym.logger.WARN
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # CartPole's velocities have no bounds either, and the same remark.
            warnings.filterwarnings("ignore", message=".*infinity. This is probably too.*")
            found = episode(env)
            env.render()
    finally:
        gym.logger.min_level = level
    unchecked = gym.make(env_id, task="exact", disable_env_checker=True)
    for one, other in zip(found, episode(unchecked), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        assert one[1:] == other[1:]
    with pytest.raises(ResetNeeded):
        env.step(0)
