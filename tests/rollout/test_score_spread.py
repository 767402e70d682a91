"""A reward without spread is said, once, and none with it."""

from __future__ import annotations

import logging

import pytest
from support.tiny_task import make_agent

from agents.rollout.metrics import EpisodeRecord
from agents.rollout.spread import ENOUGH, ScoreSpread


def record(score: float, group: int | None = None) -> EpisodeRecord:
    return EpisodeRecord(0.0, 0.0, score, score, None, 3, True, group=group)


def said(caplog, *rollouts: list[EpisodeRecord], groups: bool = False) -> list[str]:
    caplog.clear()
    spread = ScoreSpread(groups)
    with caplog.at_level(logging.WARNING, "agents.rollout.spread"):
        for records in rollouts:
            spread.look(records)
    return [message.getMessage() for message in caplog.records]


def test_equal_scores_are_said_once_and_not_before_there_are_enough(caplog):
    few, more = [record(2.5)] * (ENOUGH - 1), [record(2.5)] * 5
    assert said(caplog, few) == []
    (message,) = said(caplog, few, more, more, more)
    assert f"the first {ENOUGH + 4} responses are all 2.5" in message
    assert "nothing but the KL penalty" in message


def test_one_other_score_is_enough(caplog):
    assert said(caplog, [record(0.0)] * 31 + [record(1.0)] + [record(0.0)] * 100) == []
    assert said(caplog, [record(1.0)] * 40 + [record(1.0 + 1e-9)]) != [], "rounding is no spread"


def test_of_groups_the_scores_must_vary_within_them(caplog):
    apart = [record(float(n // 4), n // 4) for n in range(48)]  # 12 groups of 4, one score each
    (message,) = said(caplog, apart, groups=True)
    assert "within every group of the first 48 responses" in message
    assert said(caplog, apart) == [], "without groups they vary"
    assert said(caplog, [*apart[:-1], record(99.0, 11)], groups=True) == []
    assert said(caplog, [record(1.0)] * 100, groups=True) == [], "of no group"


@pytest.mark.parametrize("scoring", ["deferred", "step"])
@pytest.mark.parametrize("estimator", ["gae", "rloo"])
def test_a_training_says_it(tiny_task_kwargs, caplog, scoring, estimator):
    groups = {"group_size": 4} if estimator == "rloo" else {}
    kwargs = {**tiny_task_kwargs, "scoring": scoring, **groups}
    buffer = {"advantage_estimator": estimator, **groups}
    if groups:
        buffer["cut"] = "carry"
    by_prompt = {**kwargs, "reward_model": _by_prompt if groups else _constant}
    model = make_agent(by_prompt, n_steps=64, rollout_buffer_kwargs=buffer)
    with caplog.at_level(logging.WARNING, "agents.rollout.spread"):
        model.learn(2 * model.n_steps * model.n_envs)
    found = [r.getMessage() for r in caplog.records if r.name == "agents.rollout.spread"]
    assert len(found) == 1 and ("within every group" in found[0]) == bool(groups)


def _constant(prompts, responses):
    return [1.5] * len(responses)


def _by_prompt(prompts, responses):
    """The same for all responses to a prompt."""
    return [float(len(prompt)) for prompt in prompts]
