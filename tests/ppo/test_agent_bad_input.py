"""An agent or a wrapper that needs another space is told which id, wrapper or argument has it."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env as make_plain_vec_env
from stable_baselines3.common.vec_env import VecFrameStack

from agents import EpisodeRolloutBuffer, LMActorCriticPolicy, RLHFCallback, TokenPPO, make_vec_env
from tokenenv import wrappers
from tokenenv.wrappers import vector

RAW = "TokenRLHF-Exact-v0"
FEATURES, TOP_K = "TokenRLHF-Features-v0", "TokenRLHF-Features-TopK-v0"
NAMES = ["HiddenStateObservation", "TopKActions", "ActionMask", "LogProbShaping"]
SMALL = {"n_steps": 8, "batch_size": 8, "device": "cpu"}


def single(env_id=RAW, **kwargs):
    return gym.make(env_id, task="exact", **kwargs)


def batch(env_id=RAW, **kwargs):
    return gym.make_vec(env_id, num_envs=2, task="exact", **kwargs)


def for_sb3(env_id=RAW, **kwargs):
    return make_vec_env(env_id, n_envs=2, seed=0, task="exact", **kwargs)


# The language model's policy ----------------------------------------------------------------------

OTHER_SPACES = {
    "features": lambda: for_sb3(FEATURES),
    "features of one environment": lambda: single(FEATURES),
    "likely tokens": lambda: for_sb3(TOP_K),
    "TopKActions": lambda: for_sb3(wrapper_class=vector.TopKActions, wrapper_kwargs={"k": 3}),
    "HiddenStateObservation": lambda: wrappers.HiddenStateObservation(single()),
    "stacked frames": lambda: gym.wrappers.FrameStackObservation(single(), 2),
    "floats": lambda: gym.wrappers.DtypeObservation(single(), np.float32),
    "CartPole": lambda: gym.make("CartPole-v1"),
    "continuous actions": lambda: gym.make("Pendulum-v1"),
}


@pytest.mark.parametrize("algorithm", [PPO, TokenPPO])
@pytest.mark.parametrize("case", OTHER_SPACES)
def test_the_language_models_policy_says_which_ids_have_its_space(case, algorithm):
    env = OTHER_SPACES[case]()
    with pytest.raises(ValueError, match=r"reads token ids, Box\(-1, V-1.*Make 'TokenRLHF-v0'"):
        algorithm(LMActorCriticPolicy, env, policy_kwargs={"actor": "exact"}, **SMALL)


def test_stacked_frames_of_stable_baselines3_are_refused_by_their_width(tiny_task_kwargs):
    env = VecFrameStack(make_vec_env(n_envs=2, **tiny_task_kwargs), 2)
    actor = {"actor": tiny_task_kwargs["reference"]}
    model = PPO(LMActorCriticPolicy, env, policy_kwargs=actor, **SMALL)
    with pytest.raises(ValueError, match=r"have shape \(26,\).*are \(13,\).*frame stacking"):
        model.learn(16, callback=RLHFCallback())


# Buffer and callback ------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", [FEATURES, TOP_K])
def test_an_mlp_on_features_is_told_to_take_the_buffer_of_time_steps(env_id):
    model = TokenPPO("MlpPolicy", for_sb3(env_id), **SMALL)
    message = r"EpisodeRolloutBuffer and .* read token ids.*train an MlpPolicy with SB3's buffer"
    with pytest.raises(ValueError, match=message):
        model.learn(16)
    TokenPPO("MlpPolicy", for_sb3(env_id), rollout_buffer_class=RolloutBuffer, **SMALL).learn(16)


def test_an_mlp_on_classic_control_is_told_so_too():
    with pytest.raises(ValueError, match=r"pass rollout_buffer_class=RolloutBuffer \(stable_b"):
        TokenPPO("MlpPolicy", "CartPole-v1", **SMALL).learn(16)
    with pytest.raises(ValueError, match=r"leave it at 'k1'"):
        TokenPPO(
            "MlpPolicy",
            "CartPole-v1",
            rollout_buffer_class=RolloutBuffer,
            kl_estimator="k3",
            **SMALL,
        ).learn(16)


@pytest.mark.parametrize("buffer", [RolloutBuffer, EpisodeRolloutBuffer])
def test_the_callback_says_which_environments_have_a_kl(buffer):
    model = PPO("MlpPolicy", "CartPole-v1", rollout_buffer_class=buffer, **SMALL)
    with pytest.raises(ValueError, match=r"no token MDP behind.*agents\.make_vec_env.*gym\.make"):
        model.learn(16, callback=RLHFCallback())


def test_the_callback_and_log_prob_shaping_would_pay_the_same_half():
    env = for_sb3(TOP_K, wrapper_class=vector.LogProbShaping)
    model = PPO("MlpPolicy", env, **SMALL)
    with pytest.raises(ValueError, match=r"or one with agents\.RLHFCallback.*LogProbShaping off"):
        model.learn(16, callback=RLHFCallback())


def test_an_mlp_can_not_read_packed_sequences():
    for wrapper in (None, vector.TopKActions):
        env = for_sb3(wrapper_class=wrapper)
        model = TokenPPO("MlpPolicy", env, n_steps=8, device="cpu")
        with pytest.raises(ValueError, match=r"ActorCriticPolicy reads.*=RolloutBuffer"):
            model.learn(16)


def test_a_language_model_has_no_q_values():
    with pytest.raises(ValueError, match=r"no Q-values.*PPO, A2C.*TokenRLHF-Features-TopK-v0"):
        DQN(LMActorCriticPolicy, for_sb3(), policy_kwargs={"actor": "exact"}, device="cpu")


def test_off_policy_agents_have_no_use_for_the_callback():
    model = DQN("MlpPolicy", for_sb3(TOP_K), device="cpu")
    with pytest.raises(ValueError, match=r"DQN keeps no log-probabilities.*PPO, A2C"):
        model.learn(16, callback=RLHFCallback())


def test_make_vec_env_says_what_there_is():
    with pytest.raises(ValueError, match=r"'CartPole-v1' is no token MDP.*TokenRLHF-Features-v0"):
        make_vec_env("CartPole-v1")
    with pytest.raises(ValueError, match=r"k=99 must be a whole number from 1 to 6"):
        for_sb3(TOP_K, k=99)


# Wrappers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_each_kind_of_wrapper_names_the_other(name):
    with pytest.raises(
        ValueError, match=rf"vector environment: use tokenenv\.wrappers.vector.{name}"
    ):
        getattr(wrappers, name)(batch())
    with pytest.raises(ValueError, match=rf"single env.*: use tokenenv\.wrappers\.{name}\."):
        getattr(vector, name)(single())


@pytest.mark.parametrize("kind", [wrappers, vector], ids=["single", "vector"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_environment_of_gymnasium_is_refused(name, kind):
    for given in (for_sb3(), make_plain_vec_env(single, 1), RAW, None):
        found = type(given).__name__
        message = rf"{name} wraps an environment of Gymnasium, and a {found} is none.*wrapper_class"
        with pytest.raises(ValueError, match=message):
            getattr(kind, name)(given)


@pytest.mark.parametrize("name", NAMES)
def test_environments_of_others_are_refused(name):
    with pytest.raises(ValueError, match=r"CartPoleEnv is no token MDP.*gym\.make\('tokenenv:"):
        getattr(wrappers, name)(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match=r"CartPoleVectorEnv is no token MDP.*gym\.make_vec\("):
        getattr(vector, name)(
            gym.make_vec("CartPole-v1", 2, vectorization_mode="vector_entry_point")
        )
    with pytest.raises(ValueError, match=r"SyncVectorEnv has no token MDP, its rows.*make_vec"):
        getattr(vector, name)(SyncVectorEnv([single]))


def test_wrappers_that_change_what_passes_are_refused_in_the_same_space_too():
    """A permutation of the ids has their space: what stood above it would mean other tokens."""

    def turned(env):
        return gym.wrappers.TransformObservation(env, lambda ids: ids[::-1], None)

    def turned_rows(env):
        return gym.wrappers.vector.TransformObservation(env, lambda ids: ids[:, ::-1])

    def moved(env):
        return gym.wrappers.TransformAction(env, lambda action: (action + 1) % 6, None)

    def moved_rows(env):
        return gym.wrappers.vector.TransformAction(env, lambda actions: (actions + 1) % 6)

    for kind, observe, act, env in (
        (wrappers, turned, moved, single),
        (vector, turned_rows, moved_rows, batch),
    ):
        with pytest.raises(ValueError, match=r"through TransformObservation.*Put it first"):
            kind.HiddenStateObservation(observe(env()))
        for wrap in (kind.TopKActions, kind.ActionMask):
            with pytest.raises(ValueError, match=r"through TransformAction.*Put it below"):
                wrap(act(env()))
        with pytest.raises(ValueError, match=r"TransformAction stands below ActionMask.*Put Trans"):
            kind.ActionMask(act(kind.TopKActions(env(), k=6)))
        assert observe(kind.HiddenStateObservation(env())).reset(seed=0)
        assert act(kind.ActionMask(env())).reset(seed=0)


@pytest.mark.parametrize("k", [0, 7, 2.0, True, "3"])
def test_a_k_that_there_is_not_is_refused(k):
    message = r"must be a whole number from 1 to 6, the reference's vocabulary"
    for made in (
        lambda: wrappers.TopKActions(single(), k=k),
        lambda: vector.TopKActions(batch(), k=k),
        lambda: single(TOP_K, k=k),
        lambda: batch(TOP_K, k=k),
    ):
        with pytest.raises(ValueError, match=message):
            made()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"forbid": 3}, r"forbid=3 must be a list of token ids"),
        ({"forbid": "sol"}, r"forbid='sol' must be a list of token ids"),
        ({"force": [3]}, r"force=\[3\] must be a dict from positions"),
        ({"force": {"first": 3}}, r"force has position 'first': allowed are 0 … 5"),
        ({"force": {0.5: 3}}, r"force has position 0.5: allowed are 0 … 5"),
        ({"force": {np.float32(0.5): 3}}, r"force has position .*0.5.*: allowed are 0 … 5"),
        ({"forbid": np.array(3)}, r"forbid=array\(3\) must be a list of token ids"),
    ],
    ids=str,
)
def test_rules_of_another_type_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        wrappers.ActionMask(single(), **rules)
    with pytest.raises(ValueError, match=message):
        vector.ActionMask(batch(), **rules)
