"""Deferred rewards that nobody will score: refused at the first episode that ends."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from support.tiny_task import EOS, begin, collect, make_agent

from agents import RLHFCallback, make_vec_env
from tokenenv.env import TokenEnv
from tokenenv.vector_env import TokenVectorEnv

UNSCORED = r"no reward.*scoring='step'"


@pytest.fixture
def deferred(tiny_task_kwargs):
    return {**tiny_task_kwargs, "scoring": "deferred"}


def ends_an_episode(env) -> None:
    """One step that does not end it, and one that does, in all rows."""
    env.reset()
    rows = getattr(env, "num_envs", None)
    for token in (3, EOS[0]):
        env.step(token if rows is None else np.full(rows, token))


FACES = {
    "gym.make": lambda kwargs: gym.make("tokenenv:TokenRLHF-v0", **kwargs),
    "TokenEnv": lambda kwargs: TokenEnv(**kwargs),
    "Monitor": lambda kwargs: Monitor(TokenEnv(**kwargs)),
    "RecordEpisodeStatistics": lambda kwargs: wrappers.RecordEpisodeStatistics(TokenEnv(**kwargs)),
    "SyncVectorEnv": lambda kwargs: SyncVectorEnv([lambda: TokenEnv(**kwargs)] * 2),
    "TokenVectorEnv": lambda kwargs: TokenVectorEnv(2, **kwargs),
    "vector statistics": lambda kwargs: wrappers.vector.RecordEpisodeStatistics(
        TokenVectorEnv(2, **kwargs)
    ),
    "DummyVecEnv": lambda kwargs: DummyVecEnv([lambda: TokenEnv(**kwargs)] * 2),
    "TokenVecEnv": lambda kwargs: make_vec_env(n_envs=2, **kwargs),
    "VecMonitor": lambda kwargs: VecMonitor(make_vec_env(n_envs=2, **kwargs)),
    "features": lambda kwargs: gym.make("tokenenv:TokenRLHF-Features-v0", **kwargs),
    "top k": lambda kwargs: gym.make("tokenenv:TokenRLHF-Features-TopK-v0", k=40, **kwargs),
}


@pytest.mark.parametrize("face", FACES)
def test_an_episode_that_nobody_scores_is_refused_where_it_ends(deferred, face):
    env = FACES[face](deferred)
    with pytest.raises(ValueError, match=UNSCORED):
        for _ in range(3):  # among the top k, EOS may have another rank
            ends_an_episode(env)
            for rank in range(40):
                env.step(rank if getattr(env, "num_envs", None) is None else np.full(2, rank))


@pytest.mark.parametrize("face", ["gym.make", "TokenVectorEnv", "TokenVecEnv", "DummyVecEnv"])
def test_who_scores_by_himself_says_so(deferred, face):
    env = FACES[face](deferred)
    declare = getattr(env, "env_method", None)
    if declare is None:
        env.unwrapped.leave_scoring_to_caller()
    else:
        declare("leave_scoring_to_caller")
    ends_an_episode(env)
    if declare is None:
        env.unwrapped.leave_scoring_to_caller(False)
    else:
        declare("leave_scoring_to_caller", False)
    with pytest.raises(ValueError, match=UNSCORED):
        ends_an_episode(env)


@pytest.mark.slow
def test_in_other_processes_too(deferred):
    env = AsyncVectorEnv([lambda: TokenEnv(**deferred)] * 2)
    try:
        with pytest.raises(ValueError, match=UNSCORED):
            ends_an_episode(env)
    finally:
        env.close(terminate=True)


def test_evaluations_on_a_deferred_environment_are_refused(deferred):
    model = make_agent(deferred)
    other = make_vec_env(n_envs=2, **deferred)
    with pytest.raises(ValueError, match=UNSCORED):
        evaluate_policy(model, other, 4, warn=False)
    with pytest.raises(ValueError, match=UNSCORED):
        model.learn(120, callback=EvalCallback(other, eval_freq=5, verbose=0, warn=False))
    with pytest.raises(ValueError, match=UNSCORED):  # inside of a rollout of the same environment
        model.learn(120, callback=EvalCallback(model.env, eval_freq=5, verbose=0, warn=False))
    with pytest.raises(ValueError, match=UNSCORED):  # after the rollouts
        model.learn(120)
        evaluate_policy(model, model.get_env(), 4, warn=False)


def test_training_scores_what_it_collects_and_nothing_else(deferred):
    model = make_agent(deferred)
    callback = begin(model)
    assert collect(model, callback).records
    with pytest.raises(ValueError, match=UNSCORED):
        ends_an_episode(model.env)
    assert collect(model, callback).records, "it goes on after that"


def test_the_stepwise_environment_of_an_evaluation_is_paid(tiny_task_kwargs, deferred):
    model = make_agent(deferred)
    evaluation = EvalCallback(
        make_vec_env(n_envs=2, **tiny_task_kwargs), eval_freq=10, verbose=0, warn=False
    )
    model.learn(120, callback=evaluation)
    assert evaluation.last_mean_reward != 0.0


def test_recorders_of_returns_are_refused_in_deferred_training(deferred, tmp_path):
    statistics = wrappers.vector.RecordEpisodeStatistics
    envs = {
        "VecMonitor": VecMonitor(make_vec_env(n_envs=2, **deferred), str(tmp_path / "vec")),
        "Monitor": DummyVecEnv([lambda: Monitor(TokenEnv(**deferred), str(tmp_path / "one"))] * 2),
        "RecordEpisodeStatistics": make_vec_env(n_envs=2, wrapper_class=statistics, **deferred),
    }
    for name, env in envs.items():
        model = make_agent(deferred, n_envs=2)
        model.set_env(env)
        with pytest.raises(ValueError, match=rf"{name} would record returns of 0"):
            model.learn(1)
        env.close()


class Steps(BaseCallback):
    def _on_step(self) -> bool:
        return True


def test_a_trainer_without_our_buffer_is_refused(deferred):
    model = make_agent(deferred, PPO)
    with pytest.raises(ValueError, match="can't score"):
        model.learn(1, callback=RLHFCallback())
    with pytest.raises(ValueError, match=UNSCORED):  # not even the callback
        model.learn(300, callback=Steps())
