"""Features, likely tokens and log-prob shaping on single environments, and the ids made of them."""

from __future__ import annotations

import copy
import itertools
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import SyncVectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from transformers import AutoModelForCausalLM

import tokenenv
from agents import EpisodeRolloutBuffer, LMActorCriticPolicy, RLHFCallback, make_vec_env
from tokenenv.models.reference_decoder import top_tokens
from tokenenv.wrappers import ActionMask, HiddenStateObservation, LogProbShaping, TopKActions

EOS, V, H = 2, 40, 32
FEATURES, TOP_K = "TokenRLHF-Features-v0", "TokenRLHF-Features-TopK-v0"


def make(settings, env_id="TokenRLHF-v0", **changes):
    return gym.make(env_id, **{**settings, **changes})


def full_forward(folder, ids):
    """Last hidden state and log π of the next token, by one plain transformers forward."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    return out.hidden_states[-1][0, -1].numpy(), torch.log_softmax(out.logits[0, -1], -1).numpy()


def rollout(env, seed, steps=40):
    """A seeded run of sampled actions."""
    env.unwrapped.leave_scoring_to_caller()
    observation, info = env.reset(seed=seed)
    env.action_space.seed(seed)
    trace = [(observation, info)]
    for _ in range(steps):
        step = env.step(env.action_space.sample())
        trace.append(step)
        if step[2]:
            trace.append(env.reset())
    return trace


def allowed_by_gymnasium(caught):
    """Features have no bounds, which `check_env` remarks on and CartPole's velocities share."""
    return [w for w in caught if "infinity. This is probably too" not in str(w.message)]


# Ids ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", tokenenv.ENV_IDS)
def test_check_env_has_nothing_to_say(env_id, capsys):
    level = gym.logger.min_level
    gym.logger.min_level = gym.logger.WARN
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            env = gym.make(env_id)
            check_env(env.unwrapped)
            sb3_check_env(env.unwrapped, warn=True)
    finally:
        gym.logger.min_level = level
    assert allowed_by_gymnasium(caught) == []


@pytest.mark.parametrize("env_id", tokenenv.ENV_IDS)
def test_every_id_has_its_own_spaces_at_the_bottom_and_a_json_spec(env_id):
    kwargs = {"task": "exact", "kl_coef": 0.5, **({"k": 3} if env_id == TOP_K else {})}
    env = gym.make(env_id, **kwargs)
    assert env.unwrapped.observation_space == env.observation_space
    assert env.unwrapped.action_space == env.action_space
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.unwrapped.kl_coef == 0.5 and again.action_space == env.action_space
    assert data_equivalence(rollout(env, 3), rollout(again, 3), exact=True)


@pytest.mark.parametrize("scoring", ["step", "deferred"])
def test_ids_equal_wrappers_on_the_plain_id(settings, scoring):
    wrapped = HiddenStateObservation(make(settings, scoring=scoring))
    assert data_equivalence(
        rollout(make(settings, FEATURES, scoring=scoring), 5), rollout(wrapped, 5), exact=True
    )
    both = TopKActions(HiddenStateObservation(make(settings, scoring=scoring)), k=7)
    other_order = HiddenStateObservation(TopKActions(make(settings, scoring=scoring), k=7))
    found = rollout(make(settings, TOP_K, scoring=scoring, k=7), 5)
    assert data_equivalence(found, rollout(both, 5), exact=True)
    assert data_equivalence(found, rollout(other_order, 5), exact=True)


@pytest.mark.parametrize(
    "wrap",
    [
        HiddenStateObservation,
        lambda env: TopKActions(env, k=5),
        lambda env: ActionMask(env, top_p=0.5, forbid=[3, 4], force={-1: EOS}),
        lambda env: ActionMask(env, forbid=np.array([3, 4]), force={np.int64(0): np.int64(5)}),
        lambda env: ActionMask(TopKActions(HiddenStateObservation(env)), top_p=0.9),
    ],
)
def test_specs_of_wrapped_environments_survive_json(settings, wrap):
    env = wrap(make(settings))
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert type(again) is type(env)
    assert data_equivalence(rollout(env, 3), rollout(again, 3), exact=True)


@pytest.mark.parametrize(
    "twin_of", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["copy", "pickle"]
)
def test_copies_continue_alike_and_carry_no_model(settings, twin_of):
    env = make(settings, TOP_K, k=6).unwrapped
    env.reset(seed=1)
    env.step(1)
    assert len(pickle.dumps(env)) < 10_000
    twin = twin_of(env)
    for action in (3, 0, 5):
        expected, found = env.step(action), twin.step(action)
        np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-5)
        assert found[4]["token"] == expected[4]["token"]
        if expected[2]:
            break


# Hidden states ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scoring", ["step", "deferred"])
def test_features_are_the_last_hidden_state_of_a_full_forward(settings, scoring):
    env = make(settings, FEATURES, scoring=scoring)
    env.unwrapped.leave_scoring_to_caller()
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (H,), np.float32)
    observation, _ = env.reset(options={"prompt": "w4 w5"})
    ids = [1, 4, 5]
    for token in (9, 12, EOS):
        expected, _ = full_forward(settings["reference"], ids)
        np.testing.assert_allclose(observation, expected, rtol=0, atol=1e-5)
        assert observation.dtype == np.float32
        observation, _, terminated, _, _ = env.step(token)
        ids.append(token)
    assert terminated
    expected, _ = full_forward(settings["reference"], ids)
    np.testing.assert_allclose(observation, expected, rtol=0, atol=1e-5)


def test_rewards_do_not_change_and_the_reference_runs_once_per_state(settings):
    plain, features = make(settings), make(settings, FEATURES)
    for env in (plain, features):
        env.reset(options={"prompt": "w4 w5"})
    for token in (9, 12, 30, 8, 6):
        expected, found = plain.step(token), features.step(token)
        assert found[1] == expected[1] and found[2:] == expected[2:]
    # The prompt and five tokens; rewards alone need no hidden state of the last state.
    assert plain.unwrapped.mdp.reference_decoder.forwards == 5
    assert features.unwrapped.mdp.reference_decoder.forwards == 6


def test_likely_tokens_and_masks_read_the_same_states(settings):
    env = ActionMask(make(settings, TOP_K, k=9), top_p=0.8)
    env.reset(options={"prompt": "w4 w5"})
    steps = 0
    while True:
        steps += 1
        env.action_masks()
        env.get_wrapper_attr("action_tokens")()
        if env.step(int(np.flatnonzero(env.action_masks())[-1]))[2]:
            break
    assert env.unwrapped.mdp.reference_decoder.forwards == steps + 1


@pytest.mark.slow
def test_every_state_of_the_exact_task_has_finite_features_of_its_own():
    """All 19,530 states of `exact` with fewer than T tokens, against plain full forwards."""
    mdp = gym.make(FEATURES, task="exact").unwrapped.mdp
    model = mdp.language_model.model
    states = [
        [call, *answer]
        for length in range(6)
        for call in range(5)
        for answer in itertools.product(range(5), repeat=length)
    ]
    assert len(states) == 19_530
    with torch.no_grad():
        features = np.concatenate(
            [
                model.base_model(input_ids=torch.tensor(list(group))).last_hidden_state[:, -1]
                for _, group in itertools.groupby(states, key=len)
            ]
        )
    assert np.isfinite(features).all()
    # Distinct: points that lie within 5e-4 of each other lie close along any line, too.
    direction = np.random.default_rng(0).normal(size=features.shape[1])
    line = features @ direction
    order, reach = np.argsort(line), 5e-4 * np.abs(direction).sum()
    ahead, compared = 1, 0
    while (near := np.flatnonzero(line[order[ahead:]] - line[order[:-ahead]] <= reach)).size:
        gaps = np.abs(features[order[near + ahead]] - features[order[near]]).max(axis=1)
        assert gaps.min() > 5e-4  # 50 times what forwards differ by
        ahead, compared = ahead + 1, compared + near.size
    assert compared > 10_000
    env, picks = gym.make(FEATURES, task="exact"), np.random.default_rng(1)
    for index in picks.choice(len(states), size=60, replace=False):
        call, *answer = states[index]
        found, _ = env.reset(options={"prompt": ["do", "re", "mi", "fa", "sol"][call]})
        for token in answer:
            found = env.step(token)[0]
        np.testing.assert_allclose(found, features[index], rtol=0, atol=1e-5)


# Likely tokens ------------------------------------------------------------------------------------


def test_action_i_is_the_ith_most_likely_token_and_the_rest_is_logged(settings):
    plain, env = make(settings, kl_coef=0.3), TopKActions(make(settings, kl_coef=0.3), k=6)
    assert env.action_space == gym.spaces.Discrete(6)
    for e in (plain, env):
        e.reset(options={"prompt": "w4 w5"})
    ids = [1, 4, 5]
    for action in (3, 0, 5):
        _, log_probs = full_forward(settings["reference"], ids)
        order = np.argsort(-log_probs, kind="stable")
        np.testing.assert_array_equal(env.action_tokens(), order[:6])
        token = int(order[action])
        expected, found = plain.step(token), env.step(action)
        assert found[1] == expected[1]
        left_out = 1.0 - np.exp(log_probs[order[:6]]).sum()
        assert found[4]["left_out_mass"] == pytest.approx(left_out, abs=1e-5)
        assert found[4]["token"] == token
        assert {**found[4], **expected[4]} == found[4]
        ids.append(token)
        if found[2]:
            break


def test_ties_go_to_the_smaller_id_and_all_tokens_leave_nothing_out():
    probs = torch.tensor([[0.1, 0.3, 0.1, 0.3, 0.1, 0.1], [0.2, 0.2, 0.2, 0.2, 0.1, 0.1]])
    tokens, left_out = top_tokens(probs.log(), 4)
    assert tokens.tolist() == [[1, 3, 0, 2], [0, 1, 2, 3]]
    torch.testing.assert_close(left_out, torch.tensor([0.2, 0.2]))
    tokens, left_out = top_tokens(probs.log(), 6)
    assert tokens.tolist() == [[1, 3, 0, 2, 4, 5], [0, 1, 2, 3, 4, 5]]
    assert left_out.tolist() == [0.0, 0.0]


def test_the_temperature_of_the_reference_moves_the_mass_and_not_the_order(settings):
    hot = TopKActions(make(settings, temperature=3.0), k=6)
    cold = TopKActions(make(settings, temperature=0.5), k=6)
    for env in (hot, cold):
        env.reset(options={"prompt": "w4 w5"})
    np.testing.assert_array_equal(hot.action_tokens(), cold.action_tokens())
    assert hot.step(0)[4]["left_out_mass"] > cold.step(0)[4]["left_out_mass"] + 0.1


@pytest.mark.slow
def test_default_k_is_16_or_the_whole_vocabulary_and_keeps_what_its_docstring_says():
    env = gym.make(TOP_K)
    assert env.action_space.n == 16 and gym.make(TOP_K, task="exact").action_space.n == 6
    rng, masses = np.random.default_rng(0), []
    env.reset(seed=0)
    reader, episodes = env.unwrapped.mdp.reference_decoder, env.unwrapped.mdp.episodes
    for _ in range(300):
        probs = reader.log_probs(episodes.observations)[0].double().exp().numpy()
        top = env.unwrapped.action_tokens()
        action = int(rng.choice(16, p=probs[top] / probs[top].sum()))
        _, _, terminated, _, info = env.step(action)
        masses.append(info["left_out_mass"])
        if terminated:
            env.reset()
    assert 0.005 < np.mean(masses) < 0.025  # 1.5 %


@pytest.mark.parametrize("k", [0, 41, 2.0, True, "8"])
def test_a_k_that_the_vocabulary_does_not_have_is_refused(settings, k):
    with pytest.raises(ValueError, match=r"must be a whole number from 1 to 40.*leaves nothing"):
        TopKActions(make(settings), k=k)
    with pytest.raises(ValueError, match=r"must be a whole number from 1 to 40"):
        make(settings, TOP_K, k=k)


@pytest.mark.parametrize("action", [6, -1, 1.0])
def test_actions_outside_the_k_are_refused(settings, action):
    env = TopKActions(make(settings, disable_env_checker=True).unwrapped, k=6)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="0 … 5"):
        env.step(action)


def test_steps_without_an_episode_need_a_reset_and_autoreset_is_no_step(settings):
    env = TopKActions(make(settings).unwrapped, k=6)
    with pytest.raises(ResetNeeded):
        env.step(0)
    env = LogProbShaping(TopKActions(gym.wrappers.Autoreset(make(settings)), k=40))
    env.reset(seed=0)
    eos = int(np.flatnonzero(env.get_wrapper_attr("action_tokens")() == EOS)[0])
    env.set_log_probs(-1.0)
    assert env.step(eos)[2]
    env.set_log_probs(-1.0)
    _, reward, terminated, _, info = env.step(0)
    assert reward == 0.0 and not terminated and set(info) == {"prompt"}


# Log-prob shaping ---------------------------------------------------------------------------------


def test_the_two_halves_sum_to_k1(settings):
    env, plain = LogProbShaping(make(settings)), make(settings)
    for e in (env, plain):
        e.reset(options={"prompt": "w4 w5"})
    env.unwrapped.set_kl_coef(0.7)
    plain.unwrapped.set_kl_coef(0.7)
    given = (-0.25, torch.tensor([-3.5], requires_grad=True), np.float32(-1.5))
    for token, log_prob, value in zip((9, 12, EOS), given, (-0.25, -3.5, -1.5), strict=True):
        env.set_log_probs(log_prob)
        found, expected = env.step(token), plain.step(token)
        log_ratio = value - expected[4]["ref_logprob"]
        score = expected[4].get("score", 0.0)
        assert found[1] == pytest.approx(score - 0.7 * log_ratio, abs=1e-6)
        assert isinstance(found[1], float)


def test_every_log_prob_is_used_once_and_a_reset_forgets_it(settings):
    env = LogProbShaping(make(settings))
    env.reset(seed=0)
    message = r"step\(\) without log π.*set_log_probs.*before step\(\)"
    with pytest.raises(ValueError, match=message):
        env.step(9)
    env.set_log_probs(-1.0)
    assert env.log_prob == -1.0
    env.step(9)
    assert env.log_prob is None
    with pytest.raises(ValueError, match=message):
        env.step(9)
    env.set_log_probs(-1.0)
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.step(9)


@pytest.mark.parametrize("wrong", [0.5, float("nan"), -float("inf")])
def test_what_is_no_log_probability_is_refused(settings, wrong):
    env = LogProbShaping(make(settings))
    env.reset(seed=0)
    with pytest.raises(ValueError, match="is no log-probability"):
        env.set_log_probs(wrong)
    with pytest.raises(ValueError, match="2 log-probabilities were given for 1 environment:"):
        env.set_log_probs([-1.0, -2.0])


def test_rows_of_a_sync_vector_env_get_their_log_probs_by_set_attr(settings):
    plain = SyncVectorEnv([lambda: make(settings)] * 2)
    shaped = SyncVectorEnv(
        [lambda: gym.wrappers.RecordEpisodeStatistics(LogProbShaping(make(settings)))] * 2
    )
    for env in (plain, shaped):
        env.reset(seed=3)
    shaped.set_attr("log_prob", [-1.0, -2.0])
    expected, found = plain.step(np.array([9, 12]))[1], shaped.step(np.array([9, 12]))[1]
    np.testing.assert_allclose(found, expected + 0.2 * np.array([1.0, 2.0]), atol=1e-6)


# Orders that cannot work, and spaces that agents can't use ----------------------------------------


def test_wrappers_in_an_order_that_cannot_work_are_refused(settings):
    def plain(**changes):
        return make(settings, **changes)

    stacked = gym.wrappers.FrameStackObservation(plain(), 2)
    for env in (stacked, make(settings, FEATURES), HiddenStateObservation(plain())):
        with pytest.raises(ValueError, match=r"no longer the token ids.*Put it first"):
            HiddenStateObservation(env)
    for env in (TopKActions(plain(), k=4), make(settings, TOP_K)):
        with pytest.raises(ValueError, match=r"TopKActions chooses among all token ids"):
            TopKActions(env, k=4)
    with pytest.raises(ValueError, match=r"ActionMask stands below TopKActions.*around it"):
        TopKActions(ActionMask(plain()), k=4)
    shifted = gym.wrappers.TransformAction(
        TopKActions(plain(), k=4), lambda a: a - 1, gym.spaces.Discrete(4, start=1)
    )
    with pytest.raises(ValueError, match="ActionMask chooses among all token ids"):
        ActionMask(shifted)
    for changed in (
        gym.wrappers.NormalizeReward(plain()),
        gym.wrappers.TransformReward(plain(), lambda r: 2 * r),
    ):
        with pytest.raises(ValueError, match=r"stands below LogProbShaping.*right on the token"):
            LogProbShaping(changed)
    with pytest.raises(ValueError, match="paid twice"):
        LogProbShaping(gym.wrappers.TimeLimit(LogProbShaping(plain()), 9))
    with pytest.raises(ValueError, match=r"kl_shaping='none' pays no"):
        LogProbShaping(plain(kl_shaping="none"))
    with pytest.raises(ValueError, match=r"scoring='deferred' pays nothing"):
        LogProbShaping(plain(scoring="deferred"))


@pytest.mark.parametrize("wrapper", [HiddenStateObservation, TopKActions, ActionMask])
def test_environments_without_a_token_mdp_are_refused(settings, wrapper):
    with pytest.raises(ValueError, match=r"CartPoleEnv is no token MDP.*TokenRLHF-v0"):
        wrapper(gym.make("CartPole-v1"))
    vector = gym.make_vec("TokenRLHF-v0", num_envs=2, **settings)
    with pytest.raises(ValueError, match=rf"use tokenenv\.wrappers\.vector\.{wrapper.__name__}"):
        wrapper(vector)


def test_a_policy_for_token_ids_is_told_which_id_has_them(tiny_task_kwargs):
    env = make_vec_env(FEATURES, n_envs=2, **tiny_task_kwargs)
    with pytest.raises(ValueError, match=r"reads token ids.*Make 'TokenRLHF-v0'.*Features"):
        PPO(LMActorCriticPolicy, env)
    model = PPO(
        "MlpPolicy", env, n_steps=8, batch_size=8, rollout_buffer_class=EpisodeRolloutBuffer
    )
    with pytest.raises(ValueError, match=r"EpisodeRolloutBuffer.*read token ids.*MlpPolicy"):
        model.learn(16, callback=RLHFCallback())


@pytest.mark.parametrize("env_id", [FEATURES, TOP_K])
def test_the_callback_completes_the_kl_of_an_mlp_on_features(tiny_task_kwargs, env_id):
    env = make_vec_env(env_id, n_envs=2, seed=0, **tiny_task_kwargs)
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, seed=0)
    callback = RLHFCallback()
    model.learn(64, callback=callback)
    assert len(callback.records) > 2 and np.isfinite(callback.metrics["kl"])
    assert callback.metrics["kl"] > 0.0  # an untrained MLP is no reference
