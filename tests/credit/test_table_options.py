"""The token table under the options of the update: clip-higher, values of λ, aggregation, vine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_task import PROMPTS, T, make_agent, task_kwargs

from agents.credit import UpdateSettings, clip_sides, rollout_table, token_table
from agents.credit.checks import check_header
from agents.rollout import VineValues
from agents.settings import KLPenalty
from tokenenv.maths import generalized_advantages
from tokenenv.models import sample_responses
from tokenenv.rewards import Episode, build_scorer


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Any:
    """An agent that has made one update with all the options that go together."""
    made = make_agent(
        task_kwargs(tmp_path_factory.mktemp("tiny"), "llama"),
        clip_range_high=0.4,
        loss_aggregation="sequence",
        rollout_buffer_kwargs={"cut": "carry", "gae_lambda_alpha": 0.4, "gae_lambda_value": 1.0},
    )
    made.learn(1)
    return made


@pytest.fixture(scope="module")
def scorer(model) -> Any:
    return build_scorer(model.env.unwrapped.inner.settings)


@pytest.fixture(scope="module")
def episodes(model) -> list[Episode]:
    mdp = model.env.unwrapped.inner.mdp
    prompts = [mdp.encode_prompt(text) for text in PROMPTS for _ in range(2)]
    eos = mdp.language_model.eos_token_ids
    sampled = sample_responses(model.policy.actor, eos, prompts, T, seed=0)
    return [Episode(p, s.tokens, s.stopped) for p, s in zip(prompts, sampled, strict=True)]


def test_clip_sides_with_clip_higher_by_hand():
    ratios, advantages = np.array([1.3, 1.5, 1.5, 0.7, 0.7]), np.array([1.0, 1.0, -1.0, -1.0, 1.0])
    found = clip_sides(ratios, advantages, 0.2, 0.4)
    assert found.tolist() == ["", "high", "", "low", ""]
    assert clip_sides(ratios, advantages, 0.2).tolist() == ["high", "high", "", "low", ""]


def test_settings_of_a_model_are_in_the_header_and_come_back(model):
    settings = UpdateSettings.of_model(model)
    assert (settings.clip_range_high, settings.loss_aggregation) == (0.4, "sequence")
    assert (settings.gae_lambda_alpha, settings.gae_lambda_value) == (0.4, 1.0)
    assert settings.max_new_tokens == T and settings.loss_divisor is None
    header = settings.header()
    assert UpdateSettings.from_header(header) == replace(settings, whiten_advantages=False)
    for name in ("clip_range_high", "loss_aggregation", "max_new_tokens"):
        del header[name]
    assert UpdateSettings.from_header(header).loss_aggregation == "token"
    whole = {
        **{"schema": 1, "kind": "tokens", "step": 0, "update": 0, "task": "x", "temperature": 1.0},
        **settings.header(),
    }
    with pytest.raises(
        ValueError, match=r"'loss_aggregation' is 'mean', it must be one of 'token'"
    ):
        check_header({**whole, "loss_aggregation": "mean"}, "here")


def test_advantages_and_returns_have_the_lambdas_of_the_agent(model, scorer, episodes):
    settings = UpdateSettings(kl_coef=0.1, gae_lambda_alpha=0.2, gae_lambda_value=1.0)
    table = token_table(model.policy, scorer, episodes, settings)
    lengths = {len(episode.response) for episode in episodes}
    assert min(lengths) <= 5 < max(lengths), "λ is 0 for some, and not for others"
    for response in table.responses:
        columns = response["columns"]
        rewards, values = np.array([columns["reward"]]), np.array([columns["value"]])
        length = rewards.shape[1]
        expected = generalized_advantages(
            rewards, values, [length], [0.0], 1.0, max(0.0, 1 - 1 / (0.2 * length))
        )[0]
        np.testing.assert_allclose(columns["advantage"], expected, rtol=1e-5, atol=1e-6)
        to_come = np.cumsum(rewards[0][::-1])[::-1]
        np.testing.assert_allclose(columns["return"], to_come, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "divisor"),
    [
        ({"loss_aggregation": "sequence"}, None),
        ({"loss_aggregation": "constant", "max_new_tokens": T}, T),
        ({"loss_aggregation": "constant", "max_new_tokens": T, "loss_divisor": 3}, 3),
    ],
)
def test_a_weight_holds_what_the_token_counts_in_the_loss(model, scorer, episodes, given, divisor):
    by_token = token_table(model.policy, scorer, episodes, UpdateSettings(kl_coef=0.1))
    table = token_table(model.policy, scorer, episodes, UpdateSettings(kl_coef=0.1, **given))
    lengths = np.array([len(episode.response) for episode in episodes])
    divisors = lengths if divisor is None else np.full(len(lengths), divisor)
    expected = lengths.mean() / np.repeat(divisors, lengths)
    np.testing.assert_allclose(
        table.column("weight"), by_token.column("weight") * expected, rtol=1e-9
    )
    np.testing.assert_allclose(
        table.column("strength"), by_token.column("strength") * expected, rtol=1e-9
    )
    assert table.column("share").sum() == pytest.approx(1.0, abs=1e-6)
    if divisor is None:  # every sequence counts the same
        sums = [sum(w) for w in np.split(expected, np.cumsum(lengths)[:-1])]
        assert np.ptp(sums) <= 1e-9
    with pytest.raises(ValueError, match="divides by loss_divisor or max_new_tokens"):
        UpdateSettings(loss_aggregation="constant").token_weights(lengths)


def test_held_out_responses_are_valued_by_continuations_of_their_own(model, scorer, episodes):
    settings = UpdateSettings(
        advantage_estimator="vine", kl_coef=0.1, vine_samples=3, max_new_tokens=T
    )
    state = torch.get_rng_state()
    table = token_table(model.policy, scorer, episodes, settings)
    assert torch.equal(torch.get_rng_state(), state), "training draws what it would have drawn"
    values = VineValues(model.policy.actor, scorer, T, KLPenalty(), 3, seed=0)
    expected, _ = values.of_responses([(e.prompt, e.response) for e in episodes], 0.1)
    for response, own in zip(table.responses, expected, strict=True):
        columns = response["columns"]
        np.testing.assert_allclose(columns["value"], own, rtol=1e-6)
        advantages = np.array(columns["reward"]) + np.append(own[1:], 0.0) - own
        np.testing.assert_allclose(columns["advantage"], advantages, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(columns["delta"], columns["advantage"], rtol=1e-5, atol=1e-5)
        assert set(response["uniform"]) == {"rloo", "group", "reinforce"}
    assert not table.header["has_critic"] and np.isnan(table.column("value_loss")).all()
    with pytest.raises(ValueError, match="max_new_tokens=None with advantage_estimator='vine'"):
        token_table(
            model.policy, scorer, episodes, UpdateSettings(advantage_estimator="vine", kl_coef=0.1)
        )


def test_a_rollouts_table_holds_the_values_of_its_continuations(tmp_path):
    made = make_agent(
        task_kwargs(tmp_path, "llama"),
        n_steps=T,
        n_envs=4,
        rollout_buffer_kwargs={"cut": "carry", "advantage_estimator": "vine", "vine_samples": 1},
    )
    tables = []
    made.on_updated = lambda update: tables.append(
        rollout_table(update, made.env.unwrapped.inner.scorer, 10**6)
    )
    made.learn(1)
    (table,) = tables
    buffer = made.rollout_buffer
    np.testing.assert_allclose(table.column("value"), buffer.values)
    np.testing.assert_allclose(table.column("advantage"), table.column("delta"), atol=1e-5)
    np.testing.assert_allclose(table.column("whitened"), buffer.advantages, atol=1e-5)
    for response in table.responses:
        assert set(response["uniform"]) == {"rloo", "group", "reinforce"}
        assert set(response["uniform"].values()) == {None}
