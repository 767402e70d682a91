"""The token table: every number against what was paid, computed or enumerated elsewhere."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from support.tiny_task import PROMPTS, make_agent, task_kwargs

from agents import LMActorCriticPolicy, TokenPPO, make_vec_env
from agents.credit import (
    Truth,
    UpdateSettings,
    Whitening,
    clip_sides,
    rollout_table,
    table_of_texts,
    token_table,
)
from agents.credit.advantages import uniform_advantages
from agents.credit.columns import COLUMNS, WHOLE_COLUMNS
from agents.evaluation import HeldOut
from tokenenv.maths import generalized_advantages, token_rewards
from tokenenv.models import sample_responses
from tokenenv.optimum import true_advantages
from tokenenv.rewards import Episode


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


def trained(folder, updates: int = 2, tables: list[Any] | None = None, **kwargs: Any) -> Any:
    """An agent after some updates, with the rollout tables of each in `tables`."""
    agent_kwargs = {k: v for k, v in kwargs.items() if k not in ("scoring", "group_size")}
    env_kwargs = {k: v for k, v in kwargs.items() if k in ("scoring", "group_size")}
    if kwargs.get("kl_estimator", "k1") != "k1":
        env_kwargs["kl_shaping"] = "none"
    model = make_agent({**task_kwargs(folder, "llama"), **env_kwargs}, **agent_kwargs)
    if tables is not None:
        scorer = model.env.unwrapped.inner.scorer
        model.on_updated = lambda update: tables.append((update, rollout_table(update, scorer, 9)))
    model.learn(updates * model.n_steps * model.n_envs)
    return model


def episodes_of(model: Any, per_prompt: int = 2) -> list[Episode]:
    mdp = model.env.unwrapped.inner.mdp
    prompts = [mdp.encode_prompt(text) for text in PROMPTS for _ in range(per_prompt)]
    language_model = mdp.language_model
    sampled = sample_responses(
        model.policy.actor, language_model.eos_token_ids, prompts, mdp.max_new_tokens, seed=0
    )
    return [Episode(p, s.tokens, s.stopped) for p, s in zip(prompts, sampled, strict=True)]


def scorer_of(model: Any) -> Any:
    return model.env.unwrapped.inner.scorer


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "full"])
def test_held_out_numbers_are_those_of_the_pure_functions(folder, estimator):
    model = trained(folder, 1, kl_estimator=estimator, scoring="deferred")
    settings = UpdateSettings(gamma=0.9, gae_lambda=0.8, kl_coef=0.3, kl_estimator=estimator)
    episodes = episodes_of(model)
    table = token_table(model.policy, scorer_of(model), episodes, settings)
    scores = scorer_of(model).score(episodes)
    lengths = [len(e.response) for e in episodes]
    columns = [r["columns"] for r in table.responses]
    for i, column in enumerate(columns):
        paid = token_rewards(
            scores.score[i],
            np.array(column["log_prob"]),
            np.array(column["ref_log_prob"]),
            0.3,
            estimator,
            np.array(column["full_kl"]),
        )
        np.testing.assert_allclose(column["reward"], paid, atol=1e-9)
        rewards, values = np.array([column["reward"]]), np.array([column["value"]])
        expected = generalized_advantages(rewards, values, [lengths[i]], [0.0], 0.9, 0.8)[0]
        np.testing.assert_allclose(column["advantage"], expected, rtol=1e-5, atol=1e-6)
        following = np.append(column["value"][1:], 0.0)
        delta = rewards[0] + 0.9 * following - values[0]
        np.testing.assert_allclose(column["delta"], delta, atol=1e-9)
    parts = table.column("reward_kl") + table.column("reward_score")
    np.testing.assert_allclose(table.column("reward"), parts, atol=1e-12)
    halves = table.column("reward_reference") + table.column("reward_actor")
    if estimator == "k1":
        np.testing.assert_allclose(halves, table.column("reward_kl"), atol=1e-12)
    else:
        assert np.isnan(halves).all()
    whitened = table.column("whitened")
    assert whitened.mean() == pytest.approx(0, abs=1e-6)
    assert whitened.std(ddof=1) == pytest.approx(1, rel=1e-6)
    assert table.header["whitening"]["of"] == "these responses"
    assert set(columns[0]) == set(COLUMNS) | set(WHOLE_COLUMNS)


def test_log_probs_entropies_and_alternatives_are_the_policys(folder):
    model = trained(folder, 1)
    episodes = episodes_of(model, 1)
    settings = UpdateSettings(kl_coef=0.1)
    table = token_table(model.policy, scorer_of(model), episodes, settings)
    for episode, response in zip(episodes, table.responses, strict=True):
        columns = response["columns"]
        whole = np.concatenate([episode.prompt, episode.response])
        with torch.no_grad():
            logits = model.policy.actor(torch.as_tensor(whole)[None]).logits[0].double()
        log_probs = torch.log_softmax(logits[len(episode.prompt) - 1 : -1], -1).numpy()
        rows = np.arange(len(episode.response))
        np.testing.assert_allclose(
            columns["log_prob"], log_probs[rows, episode.response], atol=1e-5
        )
        entropies = -(np.exp(log_probs) * log_probs).sum(-1)
        np.testing.assert_allclose(columns["entropy"], entropies, atol=1e-5)
        assert columns["top_tokens"] == np.argsort(-log_probs, axis=1)[:, :5].tolist()


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"scoring": "deferred"},
        {"rollout_buffer_kwargs": {"cut": "carry"}},
        {"rollout_buffer_kwargs": {"whiten_rewards": True}},
        {"kl_estimator": "k3"},
        {"gamma": 0.9, "gae_lambda": 0.5},
    ],
    ids=str,
)
def test_a_rollouts_table_is_what_the_update_used(folder, kwargs):
    tables: list[Any] = []
    model = trained(folder, 2, tables, n_epochs=3, learning_rate=5e-3, **kwargs)
    _, table = tables[-1]
    buffer = model.rollout_buffer
    sample = np.unique(np.linspace(0, len(buffer.lengths) - 1, 9).round().astype(int))
    spans = [np.arange(buffer.offsets[i], buffer.offsets[i + 1]) for i in sample]
    tokens = np.concatenate(spans)
    np.testing.assert_array_equal(table.column("token"), buffer.actions[tokens])
    np.testing.assert_allclose(table.column("reward"), buffer.rewards[tokens], atol=1e-6)
    np.testing.assert_allclose(table.column("value"), buffer.values[tokens])
    np.testing.assert_allclose(table.column("return"), buffer.returns[tokens])
    np.testing.assert_allclose(table.column("whitened"), buffer.advantages[tokens], atol=1e-5)
    with torch.no_grad():
        samples = buffer.all_tokens()
        log_probs = model.policy.evaluate_actions(samples.observations, samples.actions)[1]
    ratios = np.exp(log_probs.numpy() - buffer.old_log_probs)[tokens]
    np.testing.assert_allclose(table.column("ratio"), ratios, rtol=1e-5)
    assert np.ptp(ratios) > 0.01
    scale = table.header["reward_scale"]
    for response in table.responses:
        columns = response["columns"]
        rewards = scale["factor"] * np.array([columns["reward"]]) + scale["shift"]
        advantages = generalized_advantages(
            rewards,
            np.array([columns["value"]]),
            [len(columns["value"])],
            [response["bootstrap_value"]],
            table.header["gamma"],
            table.header["gae_lambda"],
        )[0]
        np.testing.assert_allclose(columns["advantage"], advantages, rtol=1e-4, atol=1e-5)
    assert any(r["finish_reason"] == "cut" for r in table.responses) == (buffer.cut == "bootstrap")


@pytest.mark.parametrize("estimator", ["k1", "k2", "full"])
def test_parts_of_a_rollouts_reward_are_what_was_paid(folder, estimator):
    """Score at the end and nothing before it, to the rounding of float32.

    The full KL was that of the policy that sampled, which the update has changed.
    """
    tables: list[Any] = []
    trained(folder, 2, tables, scoring="step", kl_estimator=estimator, learning_rate=1e-2)
    _, table = tables[-1]
    for response in table.responses:
        paid = np.array(response["columns"]["reward_score"])
        np.testing.assert_allclose(paid[:-1], 0, atol=1e-6)
        if response["finish_reason"] == "cut":
            assert response["score"] is None and abs(paid[-1]) < 1e-6
        else:
            assert paid[-1] == pytest.approx(response["score"], abs=1e-6)


def test_a_segment_that_goes_on_begins_at_its_position(folder):
    tables: list[Any] = []
    trained(folder, 3, tables)
    positions = [r["columns"]["position"] for _, table in tables for r in table.responses]
    assert any(p[0] > 0 for p in positions)
    assert all(np.diff(p).tolist() == [1] * (len(p) - 1) for p in positions)


def test_uniform_credit_by_hand():
    """Returns 1 and 4 to one prompt, 10 to another; the mean of all is 5.

    rloo: 1 − 4 = −3, 4 − 1 = 3. group: the deviation of 1 and 4 over n − 1 is 3/√2, so that ∓1.5
    divided by it (and ε = 1e-4) is ∓1/√2.
    """
    one, other, alone = uniform_advantages(np.array([1.0, 4.0, 10.0]), [b"x", b"x", b"y"])
    assert (one["rloo"], other["rloo"], alone["rloo"]) == (-3, 3, None)
    assert one["group"] == pytest.approx(-1.5 / (3 / np.sqrt(2) + 1e-4))
    assert [u["reinforce"] for u in (one, other, alone)] == pytest.approx([-4, -1, 5])


@pytest.mark.parametrize("estimator", ["rloo", "group", "reinforce"])
def test_estimators_without_a_critic_give_a_response_one_number(folder, estimator):
    model = trained(
        folder,
        1,
        rollout_buffer_kwargs={"advantage_estimator": estimator, "cut": "carry", "group_size": 2},
        group_size=2,
        n_steps=24,
        normalize_returns=False,
    )
    settings = UpdateSettings(advantage_estimator=estimator, group_size=2, kl_coef=0.1, vf_coef=0)
    episodes = episodes_of(model)
    table = token_table(model.policy, scorer_of(model), episodes, settings)
    returns = [sum(r["columns"]["reward"]) for r in table.responses]
    for i, response in enumerate(table.responses):
        (advantage,) = set(response["columns"]["advantage"])
        other = returns[i ^ 1]
        if estimator == "rloo":
            assert advantage == pytest.approx(returns[i] - other, abs=1e-5)
        assert advantage == pytest.approx(response["uniform"][estimator], abs=1e-5)
        assert response["columns"]["value"] == [None] * len(response["columns"]["value"])
    with pytest.raises(ValueError, match=r"rloo.*have no other: give 2 or more"):
        token_table(
            model.policy,
            scorer_of(model),
            episodes[::2],
            UpdateSettings(advantage_estimator="rloo", kl_coef=0.1),
        )


def test_the_weight_is_the_surrogates_gradient():
    """A ratio out of range keeps its gradient where moving back raises the surrogate."""
    ratios = np.array([0.5, 0.5, 1.0, 1.0, 1.5, 1.5, 1.2, 0.8])
    advantages = np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    log_ratios = torch.tensor(np.log(ratios), requires_grad=True)
    ratio = log_ratios.exp()
    scale = torch.tensor(advantages)
    torch.minimum(scale * ratio, scale * ratio.clamp(0.8, 1.2)).sum().backward()
    sides = clip_sides(ratios, advantages, 0.2)
    assert sides.tolist()[:6] == ["", "low", "", "", "high", ""]
    weights = np.where(sides == "", advantages * ratios, 0.0)
    np.testing.assert_allclose(weights[:6], log_ratios.grad[:6])


def test_strength_is_weight_times_norm_and_0_where_clipped(folder):
    tables: list[Any] = []
    trained(folder, 2, tables, n_epochs=8, learning_rate=2e-2, whiten_advantages=True)
    _, table = tables[-1]
    sides = np.array(table.column("clip"), dtype=str)
    strengths, weights = table.column("strength"), table.column("weight")
    assert {"high", "low", ""} == set(sides)
    assert (strengths[sides != ""] == 0).all() and (weights[sides != ""] == 0).all()
    kept = sides == ""
    expected = table.column("whitened") * table.column("ratio")
    np.testing.assert_allclose(weights[kept], expected[kept])
    assert np.nansum(table.column("share")) == pytest.approx(1.0)


def test_what_cannot_be_a_table_is_refused(folder):
    model = trained(folder, 1)
    episodes = episodes_of(model, 1)
    with pytest.raises(ValueError, match="0 responses"):
        token_table(model.policy, scorer_of(model), [], UpdateSettings(kl_coef=0.1))
    empty = Episode(episodes[0].prompt, np.zeros(0, dtype=np.int64), False)
    with pytest.raises(ValueError, match="at least one token"):
        token_table(model.policy, scorer_of(model), [empty], UpdateSettings(kl_coef=0.1))
    with pytest.raises(ValueError, match="kl_coef=None"):
        token_table(model.policy, scorer_of(model), episodes, UpdateSettings())


def test_settings_come_back_from_a_header(folder):
    settings = UpdateSettings(
        gamma=0.9,
        gae_lambda=0.5,
        kl_coef=0.2,
        clip_range_vf=None,
        whitening=Whitening(0.1, 2.0, "the last rollout"),
        reward_factor=0.5,
        reward_shift=0.25,
        return_deviation=3.0,
    )
    assert UpdateSettings.from_header(settings.header()) == settings


def test_true_advantages_are_those_of_the_enumerated_tree():
    """On `exact`: at the end of a response, A = R − β·(log π − log π_ref) − V by hand."""
    held_out = HeldOut.from_env_kwargs({"task": "exact"}, 3)
    assert held_out.solution is not None
    env = make_vec_env(task="exact", n_envs=4, scoring="deferred", seed=0)
    model = TokenPPO(LMActorCriticPolicy, env, n_steps=8, learning_rate=3e-3, seed=0)
    model.learn(64)
    scorer, kl_coef = held_out.scorer, held_out.settings.kl_coef
    sampled = sample_responses(
        model.policy.actor,
        scorer.reference.language_model.eos_token_ids,
        held_out.prompts,
        held_out.max_new_tokens,
        seed=0,
    )
    episodes = [
        Episode(p, s.tokens, s.stopped) for p, s in zip(held_out.prompts, sampled, strict=True)
    ]
    settings = UpdateSettings(kl_coef=kl_coef)
    truth = Truth.of(model.policy, held_out.solution, kl_coef)
    table = token_table(model.policy, scorer, episodes, settings, truth=truth)
    values = true_advantages(model.policy.actor, held_out.solution, kl_coef).values
    tree = held_out.solution.tree
    for x, (episode, response) in enumerate(zip(episodes, table.responses, strict=True)):
        columns = response["columns"]
        last = len(episode.response) - 1
        value = values[last][x, tree.locate_state(episode.response[:-1])]
        expected = response["score"] - kl_coef * columns["kl"][-1] - value
        assert columns["true_advantage"][-1] == pytest.approx(expected, abs=1e-4)
    discounted = token_table(
        model.policy,
        scorer,
        episodes,
        UpdateSettings(kl_coef=kl_coef, gamma=0.9),
        truth=truth,
    )
    assert np.isnan(discounted.column("true_advantage")).all()


def test_policy_and_reference_must_have_one_temperature(folder):
    model = trained(folder, 1, policy_kwargs={"temperature": 1.0})
    model.policy.temperature = 0.7
    with pytest.raises(ValueError, match=r"temperature 0.7, the environment 1.0"):
        token_table(
            model.policy, scorer_of(model), episodes_of(model, 1), UpdateSettings(kl_coef=0.1)
        )


def test_advantages_that_are_normalised_per_minibatch_have_no_table(folder):
    tables: list[Any] = []
    with pytest.raises(ValueError, match=r"normalize_advantage=True.*use whiten_advantages"):
        trained(folder, 1, tables, normalize_advantage=True, whiten_advantages=False)


def test_a_buffer_that_was_refilled_is_refused(folder):
    tables: list[Any] = []
    model = trained(folder, 1, tables)
    model.rollout_buffer.reset()
    with pytest.raises(ValueError, match="before the next rollout"):
        rollout_table(tables[0][0], scorer_of(model), 4)


def test_copies_and_archives_leave_the_listener_behind(folder, tmp_path):
    tables: list[Any] = []
    model = trained(folder, 1, tables)
    assert copy.deepcopy(model).on_updated is None
    model.save(tmp_path / "model.zip")
    assert TokenPPO.load(tmp_path / "model.zip").on_updated is None
    assert model.on_updated is not None


def test_another_buffer_is_refused(folder):
    tables: list[Any] = []
    with pytest.raises(ValueError, match=r"EpisodeRolloutBuffer, and the model has a Rollout"):
        trained(folder, 1, tables, rollout_buffer_class=RolloutBuffer)


def test_texts_give_the_table_of_their_tokens(folder):
    model = trained(folder, 1)
    environment, settings = task_kwargs(folder, "llama"), UpdateSettings(kl_coef=0.1)
    episodes = episodes_of(model, 1)
    sampled = table_of_texts(model.policy, environment, PROMPTS, settings=settings)
    expected = token_table(model.policy, scorer_of(model), episodes, settings)
    assert sampled.header == expected.header | {"max_new_tokens": 8}
    for name in ("token", "reward", "advantage", "strength"):
        np.testing.assert_allclose(sampled.column(name), expected.column(name), rtol=1e-6)
    given = table_of_texts(model.policy, environment, ["w3", "w3"], ["w4 w6", "w7"])
    assert [r["columns"]["text"][-1] for r in given.responses] == ["</s>", "</s>"]
    assert given.header["kl_coef"] == environment["kl_coef"]
    with pytest.raises(ValueError, match="2 prompts and 1 responses"):
        table_of_texts(model.policy, environment, ["w3", "w4"], ["w4"])
