"""Checks of the spaces, observations and vocabularies of `LMActorCriticPolicy`."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from tokenenv.episodes import NO_TOKEN

__all__ = ["as_token_ids", "check_spaces", "check_vocabulary"]


def check_vocabulary(model: Any, vocabulary_size: int, name: str) -> None:
    """Raise ValueError where the actor's vocabulary is not the environment's.

    Args:
        model: the actor.
        vocabulary_size: V of the environment.
        name: source of the actor.
    """
    actor_size = int(model.get_output_embeddings().weight.shape[0])
    if actor_size != vocabulary_size:
        raise ValueError(
            f"the actor {name!r} has a vocabulary of {actor_size} tokens, the environment's "
            f"reference one of {vocabulary_size}: actor and reference must share it. Pass the "
            "reference's model as policy_kwargs={'actor': …}, or the actor as the environment's "
            "reference."
        )


def check_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """Raise ValueError unless they are the token MDP's."""
    if not (
        isinstance(observation_space, spaces.Box)
        and len(observation_space.shape) == 1
        and np.issubdtype(observation_space.dtype, np.integer)
        and isinstance(action_space, spaces.Discrete)
        and observation_space.low.min() == NO_TOKEN
        and observation_space.high.max() == action_space.n - 1
    ):
        raise ValueError(
            "LMActorCriticPolicy reads token ids, Box(-1, V-1, (P+T,), int64) with Discrete(V); "
            f"got {observation_space} with {action_space}. Make 'TokenRLHF-v0' or "
            "'TokenRLHF-Exact-v0'; the ids with 'Features' or 'TopK' in their names, and the "
            "tokenenv.wrappers, are for MLPs. Take observation wrappers and normalisers off: "
            "scaled ids are no ids."
        )


def as_token_ids(obs: Any) -> np.ndarray:
    """(N, P+T) int64 token ids of an observation tensor; ValueError where it holds floats."""
    if obs.dtype.is_floating_point:
        raise ValueError(
            f"LMActorCriticPolicy got {obs.dtype} observations: an observation normaliser "
            "(VecNormalize) scales them. Take it off: scaled token ids are no ids."
        )
    return obs.cpu().numpy()
