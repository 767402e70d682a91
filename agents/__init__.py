"""PPO on language models in the token MDP, on Stable-Baselines3.

    from agents import LMActorCriticPolicy, TokenPPO, make_vec_env
    env = make_vec_env("TokenRLHF-v0", n_envs=64, scoring="deferred")
    TokenPPO(LMActorCriticPolicy, env).learn(100_000)

The names are loaded when they are asked for, so that the command line answers `--help` at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.policy import LMActorCriticPolicy
    from agents.ppo import TokenPPO
    from agents.rollout import EpisodeRolloutBuffer, RLHFCallback
    from agents.runs.saving import CheckpointCallback
    from agents.vec_env import TokenVecEnv, make_vec_env

__all__ = [
    "CheckpointCallback",
    "EpisodeRolloutBuffer",
    "LMActorCriticPolicy",
    "RLHFCallback",
    "TokenPPO",
    "TokenVecEnv",
    "make_vec_env",
]

_HOMES = {
    "CheckpointCallback": "agents.runs.saving",
    "EpisodeRolloutBuffer": "agents.rollout.buffer",
    "LMActorCriticPolicy": "agents.policy",
    "RLHFCallback": "agents.rollout.callback",
    "TokenPPO": "agents.ppo",
    "TokenVecEnv": "agents.vec_env",
    "make_vec_env": "agents.vec_env",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'agents' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
