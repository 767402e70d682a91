"""Vector wrappers and vector ids equal single ones row by row, in all autoreset modes."""

from __future__ import annotations

import itertools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper
from support.comparing import assert_equal

import tokenenv
from tokenenv import wrappers
from tokenenv.env import TokenEnv
from tokenenv.vector_env import TokenVectorEnv
from tokenenv.wrappers import vector

EOS, V, H, N = 2, 40, 32, 4
MODES = ["NextStep", "SameStep", "Disabled"]


@pytest.fixture(scope="module")
def settings(reference_folder, reward_folder):
    return {
        "reference": reference_folder,
        "reward_model": reward_folder,
        "prompts": ["w4 w5 w6", "w7", "w8 w9 w10 w11", "w12 w13"],
        "max_prompt_tokens": 6,
        "max_new_tokens": 5,
        "kl_coef": 0.2,
        "device": "cpu",
    }


STACKS = {
    "features": lambda w, env: w.HiddenStateObservation(env),
    "top-k": lambda w, env: w.TopKActions(env, k=7),
    "both": lambda w, env: w.TopKActions(w.HiddenStateObservation(env), k=7),
    "both-reversed": lambda w, env: w.HiddenStateObservation(w.TopKActions(env, k=7)),
    "mask": lambda w, env: w.ActionMask(env, top_p=0.7, forbid=[5], force={1: 9}),
    "mask-on-top-k": lambda w, env: w.ActionMask(
        w.TopKActions(w.HiddenStateObservation(env), k=7), top_p=0.7, forbid=[5]
    ),
}


def run_side_by_side(singles, batch, mode, draw, steps=50):
    """Step both alike; in DISABLED mode, reset rows that ended, and some that did not."""
    assert batch.single_observation_space == singles.single_observation_space
    assert batch.single_action_space == singles.single_action_space
    assert batch.observation_space == singles.observation_space
    assert batch.action_space == singles.action_space
    assert batch.metadata["autoreset_mode"] is AutoresetMode(mode)
    assert_equal(singles.reset(seed=11), batch.reset(seed=11))
    ends = 0
    for step in range(steps):
        actions = draw(batch)
        expected, found = singles.step(actions), batch.step(actions)
        assert_equal(expected, found, f"step {step}")
        assert found[0] in batch.observation_space
        ends += int(found[2].sum())
        if mode == "Disabled":
            mask = found[2].copy()
            if step % 7 == 3:
                mask[step % N] = True
            if mask.any():
                expected = singles.reset(options={"reset_mask": mask.copy()})
                assert_equal(expected, batch.reset(options={"reset_mask": mask}), f"reset {step}")
    assert ends > 10


def drawing(rng):
    def draw(env):
        count = int(env.single_action_space.n)
        actions = rng.integers(count, size=N)
        if count == V:
            actions[rng.random(N) < 0.25] = EOS
        return actions

    return draw


def cases():
    """Each stack in one mode and one way of scoring, one of them in all; the rest are slow."""
    for stack, scoring, mode in itertools.product(STACKS, ["step", "deferred"], MODES):
        is_fast = stack == "both" or (scoring, mode) == ("step", "SameStep")
        yield pytest.param(stack, scoring, mode, marks=[] if is_fast else pytest.mark.slow)


@pytest.mark.parametrize(("stack", "scoring", "mode"), list(cases()))
def test_rows_equal_single_wrappers_stepped_beside_them(settings, mode, scoring, stack, rng):
    own = {**settings, "scoring": scoring}
    wrap = STACKS[stack]
    singles = SyncVectorEnv(
        [lambda: wrap(wrappers, TokenEnv(**own))] * N, autoreset_mode=AutoresetMode(mode)
    )
    batch = wrap(vector, TokenVectorEnv(N, autoreset_mode=mode, **own))
    assert isinstance(batch, VectorWrapper)
    singles.call("leave_scoring_to_caller")
    batch.unwrapped.leave_scoring_to_caller()
    run_side_by_side(singles, batch, mode, drawing(rng))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("env_id", ["TokenRLHF-Features-v0", "TokenRLHF-Features-TopK-v0"])
def test_vector_ids_equal_rows_of_single_ids(settings, mode, env_id, rng):
    own = {**settings, "k": 7} if "TopK" in env_id else settings
    singles = SyncVectorEnv(
        [lambda: gym.make(env_id, **own)] * N, autoreset_mode=AutoresetMode(mode)
    )
    batch = gym.make_vec(env_id, num_envs=N, autoreset_mode=mode, **own)
    assert batch.unwrapped is batch
    run_side_by_side(singles, batch, mode, drawing(rng))


@pytest.mark.parametrize("env_id", tokenenv.ENV_IDS)
@pytest.mark.parametrize("mode", [None, "sync", "vector_entry_point"])
def test_make_vec_makes_every_id(env_id, mode):
    env = gym.make_vec(env_id, num_envs=2, vectorization_mode=mode)
    observations, _ = env.reset(seed=0)
    assert observations in env.observation_space
    step = env.step(env.action_space.sample())
    assert step[0] in env.observation_space and step[1].shape == (2,)
    env.close()


def test_rows_that_were_never_started_have_features_of_zeros(settings):
    env = vector.HiddenStateObservation(TokenVectorEnv(3, autoreset_mode="Disabled", **settings))
    observations, _ = env.reset(options={"reset_mask": np.array([False, True, False])})
    assert (observations[[0, 2]] == 0.0).all() and np.abs(observations[1]).max() > 0.1


def test_the_reference_runs_once_per_state_of_all_rows(settings):
    """One forward for the next token of all rows, one for the prompts that start."""
    env = vector.TopKActions(
        vector.HiddenStateObservation(TokenVectorEnv(N, autoreset_mode="SameStep", **settings)), 9
    )
    env.reset(seed=0)
    forwards, resets = 1, 0
    reader = env.unwrapped.mdp.reference_decoder
    assert reader.forwards == 1
    for step in range(25):
        ended = env.step(np.full(N, step % 9))[2]
        resets += bool(ended.any())
        forwards += 1 + bool(ended.any())
        assert reader.forwards == forwards
    assert resets >= 4


def test_given_observations_are_not_overwritten(settings):
    env = gym.make_vec("TokenRLHF-Features-v0", num_envs=2, **settings)
    first, _ = env.reset(seed=0)
    kept = first.copy()
    env.step(np.array([9, 12]))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("mode", MODES)
def test_log_prob_shaping_pays_running_rows_only(settings, mode, rng):
    plain = TokenVectorEnv(N, autoreset_mode=mode, **settings)
    shaped = vector.LogProbShaping(TokenVectorEnv(N, autoreset_mode=mode, **settings))
    for env in (plain, shaped):
        env.reset(seed=2)
    ended = np.zeros(N, dtype=bool)
    resets = 0
    for _ in range(20):
        actions = np.where(rng.random(N) < 0.3, EOS, 9)
        log_probs = -rng.random(N)
        waits = ended & (mode == "NextStep")
        resets += int(waits.sum())
        shaped.set_log_probs(np.where(waits, np.nan, log_probs))
        expected, found = plain.step(actions), shaped.step(actions)
        owed = np.where(waits, 0.0, -0.2 * log_probs)
        np.testing.assert_allclose(found[1], expected[1] + owed, rtol=0, atol=1e-9)
        ended = found[2]
        if mode == "Disabled" and ended.any():
            for env in (plain, shaped):
                env.reset(options={"reset_mask": ended.copy()})
    assert (resets > 3) == (mode == "NextStep")


def test_log_probs_are_used_once_and_by_all_rows(settings):
    env = vector.LogProbShaping(TokenVectorEnv(2, **settings))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"step\(\) without log π"):
        env.step(np.array([9, 9]))
    with pytest.raises(ValueError, match="1 log-probabilities were given for 2 environments"):
        env.set_log_probs([-1.0])
    with pytest.raises(ValueError, match="nan is no log-probability"):
        env.set_log_probs([-1.0, np.nan])
    env.set_log_probs([-1.0, -1.0])
    env.step(np.array([9, 9]))
    with pytest.raises(ValueError, match=r"step\(\) without log π"):
        env.step(np.array([9, 9]))


def test_a_waiting_row_is_refused_as_below(settings):
    env = vector.TopKActions(TokenVectorEnv(2, autoreset_mode="Disabled", **settings), k=V)
    env.reset(seed=0)
    eos = [np.flatnonzero(row == EOS)[0] for row in env.action_tokens()]
    assert env.step(np.array([eos[0], 0 if eos[1] else 1]))[2].tolist() == [True, False]
    with pytest.raises(ResetNeeded, match="environment 0 has ended"):
        env.step(np.array([0, 0]))


@pytest.mark.parametrize("actions", [[0, 7], [0], [0.0, 1.0], [-1, 0]], ids=str)
def test_actions_outside_the_k_are_refused(settings, actions):
    env = vector.TopKActions(TokenVectorEnv(2, **settings), k=7)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="0 … 6"):
        env.step(np.array(actions))


@pytest.mark.parametrize("name", ["HiddenStateObservation", "TopKActions", "ActionMask"])
def test_what_can_not_be_wrapped_says_what_can(settings, name):
    wrapper = getattr(vector, name)
    rows = SyncVectorEnv([lambda: TokenEnv(**settings)] * 2)
    with pytest.raises(ValueError, match=r"SyncVectorEnv has no token MDP, its rows.*make_vec"):
        wrapper(rows)
    with pytest.raises(ValueError, match=rf"use tokenenv\.wrappers\.{name}\."):
        wrapper(TokenEnv(**settings))


def test_orders_that_cannot_work_are_refused(settings):
    def plain():
        return TokenVectorEnv(2, **settings)

    with pytest.raises(ValueError, match="Put it first"):
        vector.HiddenStateObservation(vector.HiddenStateObservation(plain()))
    with pytest.raises(ValueError, match="chooses among all token ids"):
        vector.TopKActions(vector.TopKActions(plain(), k=4), k=4)
    with pytest.raises(ValueError, match="ActionMask stands below TopKActions"):
        vector.TopKActions(vector.ActionMask(plain()), k=4)
    with pytest.raises(ValueError, match="NormalizeReward stands below LogProbShaping"):
        vector.LogProbShaping(gym.wrappers.vector.NormalizeReward(plain()))
    with pytest.raises(ValueError, match="must be a whole number from 1 to 40"):
        vector.TopKActions(plain(), k=41)
