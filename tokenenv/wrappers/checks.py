"""Checks of the environment below a wrapper; errors give the reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from gymnasium import wrappers as single_wrappers
from gymnasium.vector import (
    AsyncVectorEnv,
    SyncVectorEnv,
    VectorActionWrapper,
    VectorEnv,
    VectorObservationWrapper,
    VectorRewardWrapper,
)
from gymnasium.wrappers import vector as vector_wrappers

from tokenenv.env import token_spaces
from tokenenv.mdp import TokenMDP
from tokenenv.ranges import Range, check_ranges

__all__ = [
    "check_k",
    "check_kind",
    "check_plain_rewards",
    "check_same_actions",
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
_CHANGE_OBSERVATIONS = (gym.ObservationWrapper, VectorObservationWrapper)
_CHANGE_ACTIONS = (gym.ActionWrapper, VectorActionWrapper)


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
    mdp = getattr(env.unwrapped, "mdp", None)
    if isinstance(mdp, TokenMDP):
        return mdp
    bottom = type(env.unwrapped).__name__
    if isinstance(env.unwrapped, SyncVectorEnv | AsyncVectorEnv):
        raise ValueError(
            f"{bottom} has no token MDP, its rows are separate environments: wrap "
            "each of them with the class of this name in tokenenv.wrappers, or make one batch of "
            "them with gym.make_vec('tokenenv:TokenRLHF-v0')."
        )
    make = "make_vec" if isinstance(env, VectorEnv) else "make"
    raise ValueError(
        f"{bottom} is no token MDP: this wrapper uses the reference model, so it needs "
        f"gym.{make}('tokenenv:TokenRLHF-v0') or another of tokenenv.ENV_IDS below it."
    )


def check_kind(name: str, env: Any, vector: bool) -> None:
    """Raise ValueError where a single wrapper is given a vector environment, or the reverse."""
    if not isinstance(env, gym.Env | VectorEnv):
        raise ValueError(
            f"{name} wraps an environment of Gymnasium, and a {type(env).__name__} is none: put it "
            "around gym.make('tokenenv:TokenRLHF-v0') or gym.make_vec of it, before a library "
            "converts it. For Stable-Baselines3, call "
            f"agents.make_vec_env(…, wrapper_class=tokenenv.wrappers.vector.{name})."
        )
    if isinstance(env, VectorEnv) is not vector:
        right = "tokenenv.wrappers" if vector else "tokenenv.wrappers.vector"
        kind = "single" if vector else "vector"
        raise ValueError(f"this {name} can't wrap a {kind} environment: use {right}.{name}.")


def check_token_observations(env: Any) -> None:
    """Raise ValueError unless the observations below are those of the token MDP."""
    expected, _ = token_spaces(mdp_of(env))
    space = _single_space(env, "observation_space")
    changes = _first(env, _CHANGE_OBSERVATIONS)
    if space != expected or changes is not None:
        raise ValueError(
            "HiddenStateObservation replaces the token ids by features, but the observations below "
            f"it are {space}{_by(changes)}, no longer the token ids {expected}: something changed "
            "them already (another observation wrapper, or an id with 'Features' in its name). Put "
            "it first, right on the token MDP, and other observation wrappers around it."
        )


def check_token_actions(name: str, env: Any) -> None:
    """Raise ValueError unless the actions below are token ids."""
    _, expected = token_spaces(mdp_of(env))
    space = _single_space(env, "action_space")
    changes = _first(env, _CHANGE_ACTIONS)
    if space != expected or changes is not None:
        raise ValueError(
            f"{name} chooses among all token ids, {expected}, but the actions below it are "
            f"{space}{_by(changes)}: something changed them already (TopKActions, an id with "
            "'TopK' in its name, another action wrapper). Put it below that wrapper, or leave one "
            "of the two out."
        )


def check_same_actions(name: str, env: Any) -> None:
    """Raise ValueError where a wrapper gives the actions another meaning."""
    changes = _first(env, _CHANGE_ACTIONS)
    if changes is not None:
        raise ValueError(
            f"{changes} stands below {name} and gives the actions another meaning than the one that"
            f" {name} knows. Put {changes} around {name}."
        )


def _first(env: Any, kinds: tuple[type, ...]) -> str | None:
    """The name of the first layer of these kinds."""
    return next((type(layer).__name__ for layer in layers(env) if isinstance(layer, kinds)), None)


def _by(changes: str | None) -> str:
    return "" if changes is None else f" through {changes}"


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
    words = (
        f"a whole number from 1 to {vocabulary_size}, the reference's vocabulary; "
        f"k={vocabulary_size} leaves nothing out"
    )
    check_ranges({"k": k}, {"k": Range(words, 1, vocabulary_size, divisor=1)})
    return int(k)


def _single_space(env: Any, name: str) -> spaces.Space:
    return getattr(env, f"single_{name}" if isinstance(env, VectorEnv) else name)
