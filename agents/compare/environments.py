"""The environments of a comparison, by kind: classic control, raw token ids, wrapped token ids."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env as make_classic_vec_env
from stable_baselines3.common.vec_env import VecEnv

import tokenenv
from agents.vec_env import make_vec_env as make_token_vec_env
from tokenenv.env import token_spaces
from tokenenv.mdp import TokenMDP

__all__ = [
    "CLASSIC",
    "RAW_TOKENS",
    "WRAPPED_TOKENS",
    "constant_actions",
    "is_text",
    "kind_of",
    "make_env",
    "make_training_env",
    "require_comparable",
    "token_mdp",
    "top_k",
]

CLASSIC, RAW_TOKENS, WRAPPED_TOKENS = "classic control", "raw token ids", "wrapped token ids"
"""Kinds of environments: they differ in scale, and in the policy of `token-ppo`."""


def make_env(env_id: str, split: str = "train", **token_kwargs: Any) -> gym.Env:
    """One environment.

    Args:
        env_id: registered in Gymnasium.
        split: of the prompts, where it is text.
        **token_kwargs: further arguments of `TokenEnv`, for text alone.

    Raises:
        ValueError: the id is unknown, or what it needs is not installed.
    """
    try:
        kwargs: dict[str, Any] = {"split": split, **token_kwargs} if is_text(env_id) else {}
        return gym.make(env_id, **kwargs)
    except gym.error.DependencyNotInstalled as error:
        raise ValueError(
            f"{env_id!r} needs what is not installed ({error}): install it, or leave {env_id!r} "
            "out of --envs."
        ) from error
    except (gym.error.Error, ImportError) as error:
        raise ValueError(
            f"envs: {env_id!r} can't be made ({error}): give an id of Gymnasium, or one of "
            f"{', '.join(tokenenv.ENV_IDS)}."
        ) from error


def token_mdp(env: gym.Env) -> TokenMDP | None:
    """The token MDP behind an environment, through any wrapper; None where there is none."""
    mdp = getattr(env.unwrapped, "mdp", None)
    return mdp if isinstance(mdp, TokenMDP) else None


def kind_of(env: gym.Env) -> str:
    """`CLASSIC`, `RAW_TOKENS` or `WRAPPED_TOKENS`."""
    mdp = token_mdp(env)
    if mdp is None:
        return CLASSIC
    is_raw = (env.observation_space, env.action_space) == token_spaces(mdp) and top_k(env) is None
    return RAW_TOKENS if is_raw else WRAPPED_TOKENS


def top_k(env: gym.Env) -> int | None:
    """The k of actions that rank the reference's tokens; None where actions are token ids."""
    is_ranked = token_mdp(env) is not None and env.has_wrapper_attr("k")
    return int(env.get_wrapper_attr("k")) if is_ranked else None


def require_comparable(env_id: str, env: gym.Env) -> None:
    """Raise ValueError where agents or the scale can do nothing with an environment."""
    if not isinstance(env.action_space, spaces.Discrete):
        raise ValueError(
            f"{env_id!r} has actions {env.action_space}, and the agents compared here choose from "
            "a finite number (Discrete): leave it out of --envs."
        )
    if not isinstance(env.observation_space, spaces.Box):
        raise ValueError(
            f"{env_id!r} has observations {env.observation_space}, and an MLP reads a Box: leave "
            "it out of --envs, or flatten it with gymnasium.wrappers.FlattenObservation under an "
            "new id."
        )
    if token_mdp(env) is None and _threshold(env) is None:
        raise ValueError(
            f"{env_id!r} has no known optimum: neither text of this package, nor a "
            "reward_threshold in its spec. Register it with one, or leave it out of --envs."
        )


def _threshold(env: gym.Env) -> float | None:
    return None if env.spec is None else env.spec.reward_threshold


def make_training_env(env_id: str, n_envs: int, seed: int, **token_kwargs: Any) -> VecEnv:
    """The vector environment that an agent learns in.

    Args:
        env_id: of `make_env`.
        n_envs: environments side by side.
        seed: of the first reset.
        **token_kwargs: further arguments of `TokenEnv`, for text alone.
    """
    if is_text(env_id):
        return make_token_vec_env(env_id, n_envs=n_envs, seed=seed, **token_kwargs)
    return make_classic_vec_env(env_id, n_envs=n_envs, seed=seed)


def is_text(env_id: str) -> bool:
    """Whether an id is one of this package."""
    return env_id.rpartition(":")[2] in tokenenv.ENV_IDS


def constant_actions(env: gym.Env) -> np.ndarray:
    """(n,) all actions of an environment, as it takes them."""
    assert isinstance(env.action_space, spaces.Discrete)
    return np.arange(env.action_space.n, dtype=np.int64) + int(env.action_space.start)
