"""The agents of a comparison, and their settings.

Stable-Baselines3's agents have one set each, the same in every environment: its defaults where
nothing is said; what is said is RL Zoo's for CartPole
(https://github.com/DLR-RM/rl-baselines3-zoo), DQN's for 8 environments side by side. `token-ppo`
has three: those of `ppo` with an MLP, nearly those of `tokenrlhf train` for `reviews`, and those
of `tokenrlhf verify` for `exact`.
"""

from __future__ import annotations

from typing import Any

from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.utils import LinearSchedule

from agents.compare.environments import CLASSIC, RAW_TOKENS, make_training_env
from agents.policy import LMActorCriticPolicy
from agents.ppo import TokenPPO

__all__ = ["build_learner", "is_judged_by_objective", "learner_settings", "why_not"]

_PPO = {
    "learning_rate": 1e-3,  # decays linearly to 0, and so does the clip range
    "n_envs": 8,
    "n_steps": 32,
    "batch_size": 256,
    "n_epochs": 20,
    "gamma": 0.98,
    "gae_lambda": 0.8,
    "clip_range": 0.2,
}
_SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": _PPO,
    "a2c": {"n_envs": 8, "gamma": 0.99},
    "dqn": {
        "n_envs": 8,
        "learning_rate": 1e-3,
        "gamma": 0.99,
        "learning_starts": 1000,
        "batch_size": 64,
        "train_freq": 32,  # steps of all 8 environments: 256 transitions
        "gradient_steps": 128,
        "target_update_interval": 256,
        "buffer_size": 50_000,
        "exploration_fraction": 0.2,
    },
}

_TOKEN_PPO: dict[str, Any] = {
    "learning_rate": 5e-4,
    "n_envs": 64,
    "n_steps": 32,
    "batch_size": 512,
}
"""Those of `tokenrlhf train` but for the learning rate, which decays to 0 within fewer tokens here
and begins higher."""

_TOKEN_PPO_EXACT: dict[str, Any] = {
    "learning_rate": 3e-3,
    "n_envs": 128,
    "n_steps": 32,
    "batch_size": 1024,
    "clip_range_vf": None,
}
"""The settings of `tokenrlhf verify`: a model of another size and scores of another scale."""


def is_judged_by_objective(agent: str, kind: str) -> bool:
    """Whether an agent knows π and pays the whole KL, so that it is judged by J."""
    return agent == "token-ppo" and kind == RAW_TOKENS


def why_not(agent: str, kind: str) -> str | None:
    """Why an agent is left out in environments of a kind; None where it is not."""
    if agent == "token-ppo" and kind not in (CLASSIC, RAW_TOKENS):
        return "its language model reads token ids, and this environment shows and takes others"
    return None


def learner_settings(agent: str, env_id: str, kind: str) -> dict[str, Any]:
    """The settings of an agent as they go into its record; JSON only."""
    if is_judged_by_objective(agent, kind):
        is_exact = env_id.endswith("TokenRLHF-Exact-v0")
        return dict(_TOKEN_PPO_EXACT if is_exact else _TOKEN_PPO)
    return dict(_SETTINGS["ppo" if agent == "token-ppo" else agent])


def build_learner(agent: str, env_id: str, kind: str, seed: int) -> BaseAlgorithm:
    """An agent, ready to learn.

    Args:
        agent: one of `config.AGENTS`.
        env_id: of its environment.
        kind: of that.
        seed: of agent and environment.
    """
    settings = learner_settings(agent, env_id, kind)
    n_envs = settings.pop("n_envs")
    if is_judged_by_objective(agent, kind):
        env = make_training_env(env_id, n_envs, seed, scoring="deferred", device="cpu")
        return TokenPPO(LMActorCriticPolicy, env, seed=seed, device="cpu", **settings)
    env = make_training_env(env_id, n_envs, seed)
    common: dict[str, Any] = {"seed": seed, "device": "cpu"}
    if "clip_range" in settings:
        settings["clip_range"] = LinearSchedule(settings["clip_range"], 0.0, 1.0)
    if agent == "token-ppo":
        return TokenPPO(
            "MlpPolicy",
            env,
            rollout_buffer_class=RolloutBuffer,
            whiten_advantages=False,
            normalize_advantage=True,
            clip_range_vf=None,
            vf_coef=0.5,
            max_grad_norm=0.5,
            **settings,
            **common,
        )
    if agent == "ppo":
        settings["learning_rate"] = LinearSchedule(settings["learning_rate"], 0.0, 1.0)
    classes: dict[str, Any] = {"ppo": PPO, "a2c": A2C, "dqn": DQN}
    return classes[agent]("MlpPolicy", env, **settings, **common)
