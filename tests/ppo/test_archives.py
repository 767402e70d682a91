"""Archives that were saved before modules moved into rooms still load, and give what they gave."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from agents import EpisodeRolloutBuffer, LMActorCriticPolicy, TokenPPO
from agents.settings import LATER_SETTINGS

FOLDER = Path(__file__).parent / "archives"
"""Saved at commit e522796, on the task of `tiny_task`, after one rollout."""


@pytest.mark.parametrize(("name", "agent"), [("token_ppo", TokenPPO), ("stock_ppo", PPO)])
def test_an_archive_of_older_paths_loads(name, agent):
    expected = json.loads((FOLDER / f"{name}.json").read_text())
    model = agent.load(FOLDER / f"{name}.zip", device="cpu")
    assert type(model) is agent and type(model.policy) is LMActorCriticPolicy
    assert model.rollout_buffer_class is EpisodeRolloutBuffer
    assert model.num_timesteps == expected["num_timesteps"]
    assert getattr(model, "kl_coef", None) == expected["kl_coef"]
    observations = torch.as_tensor(np.array(expected["observations"]))
    with torch.no_grad():
        values, log_probs, _ = model.policy.evaluate_actions(
            observations, torch.as_tensor(expected["actions"])
        )
    torch.testing.assert_close(
        values.flatten(), torch.tensor(expected["values"]), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(log_probs, torch.tensor(expected["log_probs"]), atol=1e-5, rtol=1e-5)


def test_settings_that_an_archive_lacks_are_off():
    model = TokenPPO.load(FOLDER / "token_ppo.zip", device="cpu")
    parameters = inspect.signature(TokenPPO).parameters
    for name, default in LATER_SETTINGS.items():
        assert getattr(model, name) == default == parameters[name].default, name
