"""What the wrappers ask of the environment that they stand on, and refuse, with the reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium import wrappers as single_wrappers
from gymnasium.vector import VectorEnv, VectorRewardWrapper
from gymnasium.wrappers import vector as vector_wrappers

from tokenenv.env import token_spaces
from tokenenv.token_mdp import TokenMDP

__all__ = [
    "check_k",
    "check_kind",
    "check_plain_rewards",
    "check_token_actions",
    "check_token_observations",
    "layers",
    "mdp_of",
]

_CHANGE_REWARDS = (
    gym.RewardWrapper,
    VectorRewardWrapper,
    single_wrappers.NormalizeReward,
    vector_wrappers.NormalizeReward,
)


def layers(env: Any) -> Iterator[Any]:
    """`env` and everything below it, wrapper by wrapper."""
    yield env
    while hasattr(env, "env"):
        env = env.env
        yield env


def mdp_of(env: Any) -> TokenMDP:
    """The token MDP behind an environment.

    Raises:
        ValueError: there is none.
    """
    found = getattr(env.unwrapped, "mdp", None)
    if isinstance(found, TokenMDP):
        return found
    bottom = type(env.unwrapped).__name__
    if isinstance(env, VectorEnv):
        raise ValueError(
            f"{bottom} has no token MDP of its own, its rows are environments in themselves: wrap "
            "each of them with the class of this name in tokenenv.wrappers, or make one batch of "
            "them with gym.make_vec('tokenenv:TokenRLHF-v0')."
        )
    raise ValueError(
        f"{bottom} is no token MDP: this wrapper reads the reference's mind, so it needs "
        "gym.make('tokenenv:TokenRLHF-v0') or another of tokenenv.ENV_IDS below it."
    )


def check_kind(name: str, env: Any, vector: bool) -> None:
    """Raise ValueError where a single wrapper is given a vector environment, or the reverse."""
    if isinstance(env, VectorEnv) is not vector:
        right = "tokenenv.wrappers" if vector else "tokenenv.wrappers.vector"
        kind = "single" if vector else "vector"
        raise ValueError(f"this {name} can't wrap a {kind} environment: use {right}.{name}.")


def check_token_observations(env: Any) -> None:
    """Raise ValueError unless the observations below are the token MDP's own."""
    expected, _ = token_spaces(mdp_of(env))
    found = _single_space(env, "observation_space")
    if found != expected:
        raise ValueError(
            "HiddenStateObservation replaces the token ids by features, but the observations below "
            f"it are {found}, no longer the token ids {expected}: something changed them already "
            "(another observation wrapper, or an id with 'Features' in its name). Put it first, "
            "right on the token MDP, and other observation wrappers around it."
        )


def check_token_actions(name: str, env: Any) -> None:
    """Raise ValueError unless the actions below are token ids."""
    _, expected = token_spaces(mdp_of(env))
    found = _single_space(env, "action_space")
    if found != expected:
        raise ValueError(
            f"{name} chooses among all token ids, {expected}, but the actions below it are {found}:"
            " something changed them already (TopKActions, an id with 'TopK' in its name, another "
            "action wrapper). Put it below that wrapper, or leave one of the two out."
        )


def check_plain_rewards(env: Any) -> None:
    """Raise ValueError where a wrapper below changes rewards."""
    for layer in layers(env):
        if isinstance(layer, _CHANGE_REWARDS):
            raise ValueError(
                f"{type(layer).__name__} stands below LogProbShaping: a changed reward is no "
                "longer score and KL, and −β·log π would not fit it. Put LogProbShaping right on "
                f"the token MDP and {type(layer).__name__} around it."
            )


def check_k(k: int | None, vocabulary_size: int, default: int) -> int:
    """K as an int; None: `default`, or V where that is less.

    Raises:
        ValueError: k is no whole number in 1 … V.
    """
    if k is None:
        return min(default, vocabulary_size)
    is_whole = isinstance(k, int | np.integer) and not isinstance(k, bool)
    if not is_whole or not 1 <= k <= vocabulary_size:
        raise ValueError(
            f"k={k!r} must be a whole number from 1 to {vocabulary_size}, the reference's "
            f"vocabulary; k={vocabulary_size} leaves nothing out."
        )
    return int(k)


def _single_space(env: Any, name: str) -> spaces.Space:
    return getattr(env, f"single_{name}" if isinstance(env, VectorEnv) else name)
