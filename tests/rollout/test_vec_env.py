"""`TokenVecEnv` keeps SB3's contract and equals single environments row by row."""

from __future__ import annotations

import copy
import pickle
import sys
import types
from collections.abc import Callable
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecEnv,
    VecMonitor,
    VecVideoRecorder,
)
from support.tiny_task import EOS, PROMPTS, P, T, V

from agents import TokenVecEnv, make_vec_env
from tokenenv import wrappers
from tokenenv.vector_env import TokenVectorEnv
from tokenenv.wrappers import vector as vector_wrappers

FEATURES = ("terminal_observation", "left_out_mass")


def actions_for(rng: np.random.Generator, count: int) -> np.ndarray:
    actions = rng.integers(0, V, size=count)
    actions[rng.random(count) < 0.15] = EOS[0]
    return actions


def assert_same_infos(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert type(found[key]) is type(value), key
        if isinstance(value, float):
            assert abs(found[key] - value) <= 1e-5, key
        else:
            assert (
                np.allclose(found[key], value, atol=1e-5)
                if key in FEATURES
                else np.array_equal(found[key], value)
            ), key


def assert_same_steps(ours: VecEnv, single: VecEnv, draw: Callable[[], np.ndarray]) -> None:
    """Two environments answer the same, steps after steps."""
    assert ours.observation_space == single.observation_space
    assert ours.action_space == single.action_space
    assert np.allclose(ours.reset(), single.reset(), atol=1e-5)
    for info, other in zip(ours.reset_infos, single.reset_infos, strict=True):
        assert_same_infos(info, other)
    for env in (ours, single):
        env.env_method("leave_scoring_to_caller")
    ends = 0
    for _ in range(4 * T):
        actions = draw()
        found, expected = ours.step(actions), single.step(actions)
        assert np.allclose(found[0], expected[0], atol=1e-5)
        assert found[0].dtype == expected[0].dtype
        assert found[1].dtype == expected[1].dtype == np.float32
        assert np.abs(found[1] - expected[1]).max() <= 1e-5
        assert np.array_equal(found[2], expected[2])
        ends += found[2].sum()
        for info, other in zip(found[3], expected[3], strict=True):
            assert_same_infos(info, other)
        for info, other in zip(ours.reset_infos, single.reset_infos, strict=True):
            assert_same_infos(info, other)
    assert ends > 10


@pytest.mark.parametrize("scoring", ["step", "deferred"])
def test_equals_dummy_vec_env_over_single_environments(tiny_task_kwargs, scoring, rng):
    kwargs = {**tiny_task_kwargs, "scoring": scoring}
    ours = make_vec_env(n_envs=5, seed=3, **kwargs)
    single = DummyVecEnv([lambda: gym.make("TokenRLHF-v0", **kwargs)] * 5)
    single.seed(3)
    assert_same_steps(ours, single, lambda: actions_for(rng, 5))


@pytest.mark.parametrize("name", ["ActionMask", "HiddenStateObservation", "TopKActions"])
def test_wrapped_it_equals_dummy_vec_env_over_wrapped_environments(tiny_task_kwargs, name, rng):
    wrap = {"ActionMask": {"top_p": 0.9}, "TopKActions": {"k": 5}}.get(name, {})
    ours = make_vec_env(
        n_envs=5,
        seed=3,
        wrapper_class=getattr(vector_wrappers, name),
        wrapper_kwargs=wrap,
        **tiny_task_kwargs,
    )

    def make() -> gym.Env:
        return getattr(wrappers, name)(gym.make("TokenRLHF-v0", **tiny_task_kwargs), **wrap)

    single = DummyVecEnv([make] * 5)
    single.seed(3)
    draw = {"TopKActions": lambda: rng.integers(0, 5, size=5)}.get(
        name, lambda: actions_for(rng, 5)
    )
    assert_same_steps(ours, single, draw)
    if name == "ActionMask":
        found, expected = (np.stack(env.env_method("action_masks")) for env in (ours, single))
        assert found.shape == (5, V) and np.array_equal(found, expected)


def stacked(env: gym.vector.VectorEnv) -> gym.vector.VectorEnv:
    env = vector_wrappers.TopKActions(vector_wrappers.HiddenStateObservation(env), 5)
    return vector_wrappers.ActionMask(env, top_p=0.8)


def test_wrappers_around_each_other_equal_those_of_single_environments(tiny_task_kwargs, rng):
    def make() -> gym.Env:
        env = gym.make("TokenRLHF-v0", **tiny_task_kwargs)
        env = wrappers.TopKActions(wrappers.HiddenStateObservation(env), 5)
        return wrappers.ActionMask(env, top_p=0.8)

    ours = make_vec_env(n_envs=5, seed=3, wrapper_class=stacked, **tiny_task_kwargs)
    single = DummyVecEnv([make] * 5)
    single.seed(3)
    assert_same_steps(ours, single, lambda: rng.integers(0, 5, size=5))
    for method in ("action_masks", "action_tokens"):
        found = ours.env_method(method)
        for row, env in zip(found, single.envs, strict=True):
            assert np.array_equal(row, np.ravel(env.get_wrapper_attr(method)()))
        assert np.array_equal(ours.env_method(method, indices=[3])[0], found[3])


def test_record_episode_statistics_reports_as_a_monitor_does(tiny_task_kwargs, rng):
    ours = make_vec_env(
        n_envs=3,
        seed=0,
        wrapper_class=gym.wrappers.vector.RecordEpisodeStatistics,
        **tiny_task_kwargs,
    )
    monitored = VecMonitor(make_vec_env(n_envs=3, seed=0, **tiny_task_kwargs))
    ours.reset()
    monitored.reset()
    ends = 0
    for _ in range(4 * T):
        actions = actions_for(rng, 3)
        infos, expected = ours.step(actions)[3], monitored.step(actions)[3]
        for info, other in zip(infos, expected, strict=True):
            assert ("episode" in info) == ("episode" in other)
            if "episode" in info:
                ends += 1
                assert info["episode"]["r"] == pytest.approx(other["episode"]["r"], abs=1e-4)
                assert info["episode"]["l"] == other["episode"]["l"]
        assert not any("episode" in info for info in ours.reset_infos)
    assert ends > 5


def test_attributes_are_set_where_they_are_read(tiny_task_kwargs):
    env = make_vec_env(
        n_envs=2, wrapper_class=gym.wrappers.vector.NormalizeReward, **tiny_task_kwargs
    )
    env.set_attr("update_running_mean", False)
    assert env.get_attr("update_running_mean") == [False, False]
    env.set_attr("nobody_has_it", 3)
    assert env.inner.nobody_has_it == 3 and env.get_attr("nobody_has_it") == [3, 3]
    assert env.env_is_wrapped(gym.wrappers.vector.NormalizeReward) == [True, True]
    assert env.env_is_wrapped(vector_wrappers.ActionMask) == [False, False]


class WithMean(gym.vector.VectorWrapper):
    """Says something about no row in particular, and cuts episodes short where asked."""

    cuts = False

    def step(self, actions):
        *found, truncations, infos = self.env.step(actions)
        truncations = truncations | self.cuts
        return *found, truncations, {**infos, "mean": np.float64(0.5)}


def test_infos_of_no_row_are_left_out_and_truncations_refused(tiny_task_kwargs):
    env = make_vec_env(n_envs=2, wrapper_class=WithMean, **tiny_task_kwargs)
    env.reset()
    assert "mean" not in env.step(np.full(2, 3))[3][0]
    env.set_attr("cuts", True)
    with pytest.raises(ValueError, match="set max_new_tokens"):
        env.step(np.full(2, 3))


def test_wrappers_that_can_not_stand_there_are_refused(tiny_task_kwargs):
    around = gym.wrappers.vector
    for wrapper, message in [
        (around.NormalizeObservation, r"same step.*VecNormalize"),
        (around.DictInfoToList, "leave DictInfoToList off"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_vec_env(n_envs=2, wrapper_class=wrapper, **tiny_task_kwargs)
    with pytest.raises(ValueError, match="belong to no wrapper"):
        make_vec_env(n_envs=2, wrapper_kwargs={"k": 3}, **tiny_task_kwargs)
    with pytest.raises(ValueError, match="no TokenVectorEnv"):
        TokenVecEnv(gym.make_vec("CartPole-v1", 2))
    with pytest.raises(ValueError, match=r"wrapper_class=tokenenv\.wrappers\.vector\.ActionMask"):
        make_vec_env(n_envs=2, **tiny_task_kwargs).env_method("action_masks")


def test_feature_ids_say_at_each_step_which_token_an_action_was(tiny_task_kwargs):
    env = make_vec_env("TokenRLHF-Features-TopK-v0", n_envs=3, seed=0, k=2, **tiny_task_kwargs)
    env.reset()
    chosen = env.get_attr("action_tokens")[0]()[:, 1]
    infos = env.step(np.ones(3, dtype=int))[3]
    assert [info["token"] for info in infos] == chosen.tolist()
    assert all(0 <= info["left_out_mass"] < 1 for info in infos)


def test_methods_reach_through_the_wrappers(tiny_task_kwargs):
    env = make_vec_env(
        n_envs=2, wrapper_class=vector_wrappers.HiddenStateObservation, **tiny_task_kwargs
    )
    env.env_method("set_kl_coef", 0.375)
    assert env.inner.kl_coef == 0.375 == env.get_attr("kl_coef")[0]
    env.reset()
    assert env.step(np.full(2, 3))[3][0]["kl_coef"] == 0.375


def test_a_wrapper_of_single_environments_is_refused(tiny_task_kwargs):
    with pytest.raises(ValueError, match=r"tokenenv\.wrappers\.vector"):
        make_vec_env(n_envs=2, wrapper_class=wrappers.ActionMask, **tiny_task_kwargs)
    with pytest.raises(ValueError, match=r"no vector environment: .*tokenenv\.wrappers\.vector"):
        make_vec_env(n_envs=2, wrapper_class=lambda env: "nothing", **tiny_task_kwargs)


def test_arrays_are_fresh_and_writable(tiny_task_kwargs, rng):
    env = make_vec_env(n_envs=3, seed=0, **tiny_task_kwargs)
    first = env.reset()
    kept = first.copy()
    observations, rewards, dones, infos = env.step(np.full(3, 3))
    assert np.array_equal(first, kept), "an observation that was given is not overwritten"
    for array in (observations, rewards, dones):
        assert isinstance(array, np.ndarray) and array.flags.writeable
    rewards[:] = 99.0
    _, after, _, other = env.step(np.full(3, 3))
    assert (after != 99.0).all()
    assert all(a is not b for a, b in zip(infos, other, strict=True))


def test_terminal_observations_hold_the_whole_response(tiny_task_kwargs):
    env = make_vec_env(n_envs=2, seed=0, **tiny_task_kwargs)
    observations = env.reset()
    for step in range(T):
        before = observations
        observations, _, dones, infos = env.step(np.array([3, 3 if step < 2 else 2]))
        for row in np.flatnonzero(dones):
            expected = before[row].copy()
            expected[P + infos[row]["response_length"] - 1] = 3 if row == 0 else 2
            assert np.array_equal(infos[row]["terminal_observation"], expected)
            assert infos[row]["TimeLimit.truncated"] is False
            assert (observations[row, P:] == -1).all(), "the next episode has begun"
            assert env.reset_infos[row]["prompt"] in PROMPTS
        assert all("terminal_observation" not in infos[row] for row in np.flatnonzero(~dones))
    assert dones[0] and infos[0]["finish_reason"] == "length"


def test_seeds_and_options_are_used_once(tiny_task_kwargs):
    env = make_vec_env(n_envs=6, **tiny_task_kwargs)
    env.seed(8)
    first = env.reset()
    assert env._seeds == [None] * 6
    second = env.reset()
    env.seed(8)
    assert np.array_equal(env.reset(), first)
    assert np.array_equal(env.reset(), second)
    assert not np.array_equal(first, second), "an unseeded reset goes on with its generators"
    env.set_options([{"prompt": PROMPTS[i % 3]} for i in range(6)])
    env.reset()
    assert [info["prompt"] for info in env.reset_infos] == [PROMPTS[i % 3] for i in range(6)]
    env.set_options({"prompt": "w7 w8"})
    env.reset()
    assert [info["prompt"] for info in env.reset_infos] == ["w7 w8"] * 6
    drawn = set()
    for _ in range(3):
        env.reset()
        drawn |= {info["prompt"] for info in env.reset_infos}
    assert drawn <= set(PROMPTS) and len(drawn) > 1


def test_a_monitor_on_top_counts_the_returns(tiny_task_kwargs, rng):
    env = VecMonitor(make_vec_env(n_envs=3, seed=0, **tiny_task_kwargs))
    env.reset()
    returns, episodes = np.zeros(3), 0
    for _ in range(3 * T):
        _, rewards, dones, infos = env.step(actions_for(rng, 3))
        returns += rewards
        for row in np.flatnonzero(dones):
            episode = infos[row]["episode"]
            assert abs(episode["r"] - returns[row]) <= 1e-4
            assert episode["l"] == infos[row]["response_length"]
            returns[row] = 0.0
            episodes += 1
    assert episodes > 3


def test_attributes_and_methods_are_those_of_the_one_environment(tiny_task_kwargs):
    env = make_vec_env(n_envs=3, **tiny_task_kwargs)
    assert env.get_attr("kl_coef") == [0.1] * 3
    assert env.get_attr("kl_coef", indices=[0, 2]) == [0.1] * 2
    assert env.env_method("set_kl_coef", 0.4) == [None] * 3
    assert env.get_attr("kl_coef") == [0.4] * 3
    env.set_attr("spec", None)
    assert env.env_is_wrapped(gym.wrappers.TimeLimit) == [False] * 3
    with pytest.raises(ValueError, match=r"\[1\] only.*call it for all"):
        env.set_attr("spec", None, indices=1)
    with pytest.raises(ValueError, match=r"\[0, 1\] only.*call it for all"):
        env.env_method("set_kl_coef", 0.4, indices=[0, 1])
    with pytest.raises(AttributeError):
        env.get_attr("no_such_attribute")


def test_ids_of_other_environments_are_refused():
    for env_id in ("CartPole-v1", "MountainCar-v0"):
        with pytest.raises(ValueError, match=f"{env_id}.*TokenRLHF-v0"):
            make_vec_env(env_id, n_envs=2)


def test_the_module_qualified_id_works(tiny_task_kwargs):
    assert make_vec_env("tokenenv:TokenRLHF-v0", n_envs=2, **tiny_task_kwargs).num_envs == 2


def test_another_autoreset_mode_is_refused(tiny_task_kwargs):
    env = TokenVectorEnv(2, autoreset_mode=AutoresetMode.NEXT_STEP, **tiny_task_kwargs)
    with pytest.raises(ValueError, match="SameStep"):
        TokenVecEnv(env)


def test_a_time_limit_below_the_response_budget_is_refused(tiny_task_kwargs):
    with pytest.raises(ValueError, match=f"max_episode_steps={T - 1} is below max_new_tokens={T}"):
        make_vec_env(n_envs=2, max_episode_steps=T - 1, **tiny_task_kwargs)


# The surface that SB3's own tests go through ------------------------------------------------------


class Film:
    """Stands for MoviePy's, which writes the file."""

    made: ClassVar[list[tuple[list[np.ndarray], float]]] = []

    def __init__(self, frames: list[np.ndarray], fps: float) -> None:
        self.made.append((frames, fps))

    def write_videofile(self, path: str) -> None:
        assert path.endswith(".mp4")


def test_pictures_and_videos_as_sb3_takes_them(tiny_task_kwargs, tmp_path, monkeypatch):
    env = make_vec_env(n_envs=3, render_mode="rgb_array", **tiny_task_kwargs)
    env.reset()
    images = env.get_images()
    assert len(images) == 3 and all(image.dtype == np.uint8 for image in images)
    height, width, channels = images[0].shape
    tiled = env.render()  # 2 × 2, one of them black
    assert tiled.shape == (2 * height, 2 * width, channels)
    assert np.array_equal(env.render(mode="rgb_array"), tiled)
    module = types.ModuleType("moviepy.video.io.ImageSequenceClip")
    module.ImageSequenceClip = Film
    for name in ("moviepy", "moviepy.video", "moviepy.video.io", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    video = VecVideoRecorder(env, str(tmp_path), lambda step: step == 0, video_length=3)
    video.reset()
    for _ in range(4):
        video.step(np.full(3, 3))
    video.close()
    ((frames, fps),) = Film.made
    assert fps == env.inner.metadata["render_fps"] == 4
    assert len(frames) == 4 and all(frame.shape == tiled.shape for frame in frames)
    assert not np.array_equal(frames[0], frames[-1])


def test_without_pictures_it_says_how_to_make_them(tiny_task_kwargs):
    env = make_vec_env(n_envs=2, **tiny_task_kwargs)
    env.reset()
    with pytest.raises(ValueError, match=r"render_mode=None.*make the environment with"):
        env.get_images()
    with pytest.warns(UserWarning, match="no `render_mode` was passed"):
        assert env.render() is None
    assert env.metadata["render_modes"] == []


@pytest.mark.parametrize("indices", [None, 1, np.int64(1), -1, [0, 2], range(2), np.array([2, 0])])
def test_indices_of_every_kind(tiny_task_kwargs, indices):
    """As SB3's `DummyVecEnv` takes them, and Numpy's integers."""
    env = make_vec_env(n_envs=3, **tiny_task_kwargs)
    chosen = np.atleast_1d(np.arange(3)[indices] if indices is not None else np.arange(3))
    assert len(env.get_attr("kl_coef", indices)) == len(chosen)
    assert env.env_is_wrapped(gym.vector.VectorWrapper, indices) == [False] * len(chosen)


@pytest.mark.parametrize("indices", [3, -4, [0, 7]])
def test_an_index_out_of_range_is_refused(tiny_task_kwargs, indices):
    env = make_vec_env(n_envs=3, **tiny_task_kwargs)
    for call in (
        lambda: env.get_attr("kl_coef", indices),
        lambda: env.set_attr("render_mode", None, indices),
        lambda: env.env_method("set_kl_coef", 0.1, indices=indices),
        lambda: env.env_is_wrapped(gym.Wrapper, indices),
    ):
        with pytest.raises(ValueError, match=r"there is no environment"):
            call()


def test_attributes_that_are_not_there_are_no_attributes(tiny_task_kwargs):
    env = make_vec_env(n_envs=2, **tiny_task_kwargs)
    assert env.has_attr("kl_coef") and env.has_attr("settings") and env.has_attr("render_mode")
    assert not env.has_attr("action_masks") and not env.has_attr("no_such_thing")
    with pytest.raises(AttributeError):
        env.get_attr("no_such_thing")
    with pytest.raises(AttributeError):
        env.env_method("no_such_thing")
    with pytest.raises(ValueError, match="has no action masks"):
        env.env_method("action_masks")
    wrapped = VecMonitor(VecCheckNan(env))
    assert wrapped.getattr_depth_check("inner", already_found=False) is None
    assert wrapped.inner is env.inner and wrapped.unwrapped is env
    assert wrapped.num_envs == 2 and wrapped.env_method("set_kl_coef", 0.3) == [None, None]
    assert wrapped.get_attr("kl_coef") == [0.3, 0.3]


def test_closing_twice_and_infos_of_a_reset(tiny_task_kwargs):
    env = make_vec_env(n_envs=2, **tiny_task_kwargs)
    assert env.reset_infos == [{}, {}]
    env.reset()
    assert all(info.keys() == {"prompt"} for info in env.reset_infos)
    env.close()
    env.close()


def test_options_that_nobody_knows_are_refused_by_name(tiny_task_kwargs):
    env = make_vec_env(n_envs=2, **tiny_task_kwargs)
    for options, words in (
        ({"promt": "w3"}, r"no option 'promt'.*'prompt'"),
        ([{"prompt": "w3"}, {"seed": 3}], "no option 'seed'"),
        ([{"prompt": "w3"}], "1 dicts for 2 environments"),
        ([None, "w3"], "is a str"),
        ({"prompt": 3}, "it must be text"),
    ):
        env.set_options(options)
        with pytest.raises(ValueError, match=words):
            env.reset()
    env.set_options([{"prompt": "w3"}, {}])
    env.reset()
    assert env.reset_infos[0]["prompt"] == "w3"


def test_a_copied_environment_goes_on_alike(tiny_task_kwargs):
    env = make_vec_env(n_envs=3, seed=1, **tiny_task_kwargs)
    env.reset()
    env.step(np.array([3, 4, 6]))
    twin = pickle.loads(pickle.dumps(env))
    other = copy.deepcopy(env)
    for actions in ([7, 8, 10], [2, 3, 2]):
        found = [one.step(np.array(actions)) for one in (env, twin, other)]
        for part in range(3):
            assert all(np.allclose(f[part], found[0][part], atol=1e-5) for f in found)
