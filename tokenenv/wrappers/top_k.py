"""A few likely tokens as the actions, for agents that can't tell thousands apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from tokenenv.wrappers.checks import check_k, check_kind, check_token_actions, layers, mdp_of

__all__ = ["DEFAULT_K", "ActsOnTopTokens", "TopKActions", "chosen_tokens", "refuse_masks_below"]

if TYPE_CHECKING:  # the type of the next class in line
    _Base = gym.Env[Any, Any]
else:
    _Base = object

DEFAULT_K = 16
"""On `reviews`, the 16 likeliest of 486 tokens hold 98.5 % of the reference's mass at a state, and
the best policy that chooses among them comes 97 % of the way from the reference to J* (from 9,600
samples of the reference); with 8 it is 91.8 % and 67 %. `exact` has only six tokens."""


def chosen_tokens(candidates: np.ndarray, actions: Any, rows: np.ndarray) -> np.ndarray:
    """The tokens that actions 0 … k−1 stand for.

    Args:
        candidates: (N, k) token ids.
        actions: (N,) integers.
        rows: (n,) the rows whose action counts; the others get any token.

    Raises:
        ValueError: an action of `rows` is no integer in 0 … k−1.
    """
    indices = np.asarray(actions)
    count, k = candidates.shape
    if indices.shape != (count,) or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(
            f"actions have shape {indices.shape} and dtype {indices.dtype}; TopKActions takes "
            f"{count} integers in 0 … {k - 1}, one per environment."
        )
    outside = rows[(indices[rows] < 0) | (indices[rows] >= k)]
    if len(outside):
        raise ValueError(
            f"action {indices[outside[0]]} of environment {outside[0]} is outside 0 … {k - 1}: "
            f"with TopKActions(k={k}) action i is the i-th most likely token, no token id."
        )
    tokens = np.zeros(count, dtype=np.int64)
    tokens[rows] = candidates[rows, indices[rows]]
    return tokens


def refuse_masks_below(env: Any) -> None:
    """Raise ValueError where a mask over token ids would be shown for actions that are none."""
    for layer in layers(env):
        if hasattr(layer, "action_masks"):
            raise ValueError(
                f"{type(layer).__name__} stands below TopKActions: its masks are over token ids, "
                "the actions outside are others. Put TopKActions first and ActionMask around it."
            )


class ActsOnTopTokens(_Base):
    """Hands the token that an action stands for to `step` of the next class."""

    k: int

    def action_tokens(self) -> np.ndarray:
        """(k,) int64: the tokens that actions 0 … k−1 stand for at s_t."""
        mdp = mdp_of(self)
        return mdp.reference_decoder.top_tokens(mdp.episodes.observations, self.k)[0][0]

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Append the `action`-th most likely token to the response.

        Raises:
            gymnasium.error.ResetNeeded: there is no running episode.
            ValueError: `action` is no integer in 0 … k−1.
        """
        mdp = mdp_of(self)
        is_running = mdp.episodes.running
        candidates, excluded_probability = mdp.reference_decoder.top_tokens(
            mdp.episodes.observations, self.k
        )
        tokens = chosen_tokens(candidates, np.reshape(action, -1), np.flatnonzero(is_running))
        token_info = {"token": int(tokens[0]), "left_out_mass": float(excluded_probability[0])}
        if not is_running[0]:  # the environment refuses the step, or `Autoreset` makes it a reset
            token_info = {}
        observation, reward, terminated, truncated, info = super().step(tokens[0])
        return observation, reward, terminated, truncated, {**info, **token_info}


class TopKActions(ActsOnTopTokens, gym.Wrapper, RecordConstructorArgs):
    """Choose among the k most likely tokens of the reference: `Discrete(k)`.

    Action i is the token that is i-th in order of π_ref(·|s_t), 0 the likeliest; of equally likely
    tokens the one with the smaller id comes first. So always taking action 0 is greedy decoding.
    The reward is that of the token. `info` gains at every step `token`, the id, and
    `left_out_mass`, the probability under the reference of the tokens outside the k at s_t: a
    policy here has a part of the support of π_ref, and the best one may be worse by that. EOS may
    be among the excluded tokens. `TokenRLHF-Features-TopK-v0` combines this with
    `HiddenStateObservation`.

    Args:
        env: an environment over a token MDP, its actions unchanged; observations may be anything.
        k: how many tokens; None: 16, or the whole vocabulary where that is less.

    Raises:
        ValueError: k is larger than the vocabulary, or the environment below doesn't fit.
    """

    def __init__(self, env: gym.Env, k: int | None = None) -> None:
        check_kind("TopKActions", env, vector=False)
        check_token_actions("TopKActions", env)
        refuse_masks_below(env)
        RecordConstructorArgs.__init__(self, k=k)
        gym.Wrapper.__init__(self, env)
        self.k = check_k(k, mdp_of(env).language_model.vocabulary_size, DEFAULT_K)
        self.action_space = spaces.Discrete(self.k)
