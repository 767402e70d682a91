"""A rollout's log-probabilities are compared with a full forward before the update's first step."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from stable_baselines3 import A2C, PPO
from support.tiny_task import make_agent

from agents import RLHFCallback, TokenPPO
from agents.ppo.update import Update
from agents.rollout.sampling_check import KL_OF_ROUNDING
from tokenenv.models.slot_decoder import SlotDecoder

MESSAGE = "before any step of the update"

AGENTS: dict[str, tuple[type, dict[str, Any]]] = {
    "TokenPPO": (TokenPPO, {}),
    "TokenPPO-carry": (TokenPPO, {"rollout_buffer_kwargs": {"cut": "carry"}}),
    "TokenPPO-bfloat16": (TokenPPO, {"precision": "bfloat16"}),
    "PPO": (PPO, {}),
    "A2C": (A2C, {}),
}


@pytest.fixture
def shifted(monkeypatch) -> None:
    """A decoder whose states are off by a little: the log-probabilities then are, by about 0.1."""
    own = SlotDecoder.hidden_states

    def hidden_states(self: Any, *args: Any) -> torch.Tensor:
        return own(self, *args) * 1.1

    monkeypatch.setattr(SlotDecoder, "hidden_states", hidden_states)


def learn(kwargs: dict[str, Any], name: str, rollouts: int) -> RLHFCallback:
    kind, settings = AGENTS[name]
    model = make_agent(kwargs, kind, learning_rate=3e-3, **settings)
    callback = RLHFCallback()
    model.learn(rollouts * model.n_steps * model.n_envs, callback=callback)
    return callback


@pytest.mark.parametrize("name", AGENTS)
def test_sampling_and_full_forwards_agree_through_training(name, tiny_task_kwargs):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=MESSAGE)
        callback = learn(tiny_task_kwargs, name, 3)
    # Carried tokens, whose ratios are not 1 any more, are no part of it.
    assert abs(callback._sampling.approx_kl) <= 1e-9


@pytest.mark.parametrize("name", AGENTS)
def test_where_they_do_not_one_warning_says_so(name, tiny_task_kwargs, shifted):
    with pytest.warns(UserWarning, match=MESSAGE) as caught:
        callback = learn(tiny_task_kwargs, name, 2)
    assert sum(MESSAGE in str(w.message) for w in caught) == 1
    assert callback._sampling.approx_kl > KL_OF_ROUNDING


def test_the_number_is_the_approximate_kl_of_the_rollout(tiny_task_kwargs, shifted, monkeypatch):
    """With 6 x 20 tokens all of them are kept: what the update logs first is the same number."""
    first: list[float] = []

    accumulate = Update.accumulate_gradients

    def recording(update: Update, batch: Any) -> dict[str, Any]:
        losses = accumulate(update, batch)
        first.append(float(losses["approx_kl"]))
        return losses

    monkeypatch.setattr(Update, "accumulate_gradients", recording)
    model = make_agent(tiny_task_kwargs, batch_size=10**6, n_epochs=1)
    callback = RLHFCallback()
    with pytest.warns(UserWarning, match=MESSAGE):
        model.learn(1, callback=callback)
    assert math.isclose(callback._sampling.approx_kl, first[0], rel_tol=1e-3)
    assert first[0] > KL_OF_ROUNDING
