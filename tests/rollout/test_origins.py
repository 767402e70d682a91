"""Columns and messages of an episode's prompt reach its reward, whoever asks and whenever."""

from __future__ import annotations

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv
from support.tiny_task import begin, collect, make_agent

from agents import LMActorCriticPolicy, TokenPPO
from agents.compare.best_response import search_best_responses
from agents.credit import UpdateSettings, rollout_table, table_of_texts
from agents.evaluation import HeldOut, evaluate, respond
from agents.rollout import RLHFCallback
from tokenenv.data import Prompt
from tokenenv.env import TokenEnv
from tokenenv.mdp import TokenMDP
from tokenenv.optimum import enumerate_mdp
from tokenenv.settings import EnvSettings

ROWS = [
    {"prompt": "w4 w6", "answer": 1.0},
    {"prompt": "w4 w6", "answer": 10.0},
    {"prompt": "w3", "answer": 100.0},
]


def pays_the_answer(prompts, responses, answer):
    return list(answer)


def pays_the_first_token_too(prompts, responses, answer):
    return [a + len(r) / 100 for a, r in zip(answer, responses, strict=True)]


@pytest.fixture
def kwargs(tiny_task_kwargs):
    more = {"prompts": ROWS, "reward_model": pays_the_answer, "kl_coef": 0.0}
    return {**tiny_task_kwargs, **more}


@pytest.mark.parametrize("cut", ["bootstrap", "carry"])
@pytest.mark.parametrize("group_size", [1, 3])
def test_deferred_rewards_are_those_of_the_rows_that_the_episodes_started_from(
    kwargs, cut, group_size
):
    """By steps the environment knows the row itself; both draw the same prompts and tokens."""
    paid = {}
    for scoring in ("step", "deferred"):
        environment = {**kwargs, "scoring": scoring, "group_size": group_size}
        model = make_agent(environment, n_envs=6, rollout_buffer_kwargs={"cut": cut})
        callback = begin(model)
        paid[scoring] = []
        for _ in range(3):  # episodes go over the ends of rollouts
            buffer = collect(model, callback)
            paid[scoring] += sorted(np.round(buffer.rewards[buffer.rewards > 0], 3).tolist())
    assert paid["step"] == paid["deferred"]
    assert set(paid["step"]) == {1.0, 10.0, 100.0}


def test_separate_environments_hand_on_their_rows(kwargs):
    env = DummyVecEnv([lambda: TokenEnv(**{**kwargs, "scoring": "deferred"})] * 3)
    model = TokenPPO(
        LMActorCriticPolicy, env, n_steps=24, policy_kwargs={"actor": kwargs["reference"]}, seed=0
    )
    callback = begin(model)
    buffer = collect(model, callback)
    finished = [s.score for s in buffer.records]
    assert finished and set(finished) <= {1.0, 10.0, 100.0}
    texts = {1.0: "w4 w6", 10.0: "w4 w6", 100.0: "w3"}
    for origin in buffer.origins:
        assert texts[origin.columns["answer"]] == origin.content


def test_vine_continues_an_episode_for_its_own_row(kwargs):
    """Every continuation pays the row's answer, so V̂ of every state is that number."""
    model = make_agent(
        {**kwargs, "scoring": "deferred"},
        rollout_buffer_kwargs={"cut": "carry", "advantage_estimator": "vine", "vine_samples": 2},
        gamma=1.0,
        vf_coef=0.0,
    )
    buffer = collect(model, begin(model))
    per_token = np.repeat([o.columns["answer"] for o in buffer.origins], buffer.lengths)
    np.testing.assert_allclose(buffer.values, per_token, atol=1e-4)


def test_held_out_evaluation_samples_and_tables_use_the_rows(kwargs):
    held_out = HeldOut.from_env_kwargs({**kwargs, "scoring": "deferred"}, 3)
    actor = held_out.scorer.reference.language_model.model
    assert [origin.columns["answer"] for origin in held_out.origins] == [1.0, 10.0, 100.0]
    assert evaluate(actor, held_out, 4, seed=0).score == pytest.approx(111 / 3)
    reports = respond(
        actor, held_out.scorer, held_out.texts, held_out.prompts, 8, 0, origins=held_out.origins
    )
    assert [report.score for report in reports] == [1.0, 10.0, 100.0]


def test_token_tables_know_the_rows_and_compare_responses_of_one_row(kwargs):
    model = make_agent(kwargs)
    settings = UpdateSettings(advantage_estimator="rloo", group_size=2, kl_coef=0.0)
    prompts = [row for row in ROWS[:2] for _ in range(2)]
    table = table_of_texts(model.policy, kwargs, prompts, settings=settings)
    assert [response["score"] for response in table.responses] == [1.0, 1.0, 10.0, 10.0]
    # Two rows of one text: each response is compared with the other of its row, which pays as much.
    for response in table.responses:
        assert response["uniform"]["rloo"] == pytest.approx(0.0, abs=1e-6)


def test_the_table_of_an_update_scores_its_episodes_again_with_their_rows(kwargs):
    model = make_agent({**kwargs, "scoring": "deferred"})
    tables = []
    scorer = TokenMDP(EnvSettings(**kwargs), 1).scorer
    model.on_updated = lambda update: tables.append(rollout_table(update, scorer, 50))
    model.learn(120, callback=RLHFCallback())
    finished = [r for r in tables[0].responses if r["finish_reason"] != "cut"]
    assert finished and {r["score"] for r in finished} <= {1.0, 10.0, 100.0}
    assert all((r["score"] == 100.0) == (r["prompt"] == "w3") for r in finished)


def test_the_search_for_the_best_response_and_an_enumeration_use_the_rows(kwargs):
    mdp = TokenMDP(EnvSettings(**{**kwargs, "reward_model": pays_the_first_token_too}), 1)
    found = search_best_responses(mdp, mdp.origins, rounds=3, width=4)
    assert [int(value) for value in found] == [1, 10, 100]
    small = TokenMDP(EnvSettings(**{**kwargs, "max_new_tokens": 1}), 1)
    tree = enumerate_mdp(small)
    assert [level[0, 0] for level in tree.scores[0]] == [1.0, 10.0, 100.0]


def test_prompts_of_text_alone_have_no_origin(kwargs):
    plain = {**kwargs, "prompts": ["w3", "w4"], "reward_model": lambda p, r: [1.0] * len(p)}
    model = make_agent({**plain, "scoring": "deferred"})
    buffer = collect(model, begin(model))
    assert buffer.origins == [None] * len(buffer.lengths)
    mdp = TokenMDP(EnvSettings(**plain), 1)
    assert mdp.origins == [Prompt("w3"), Prompt("w4")]
