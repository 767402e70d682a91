"""The ids for standard networks: features as observations, likely tokens as actions."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces
from gymnasium.vector.utils import batch_space

from tokenenv.env import TokenEnv
from tokenenv.vector_env import TokenVectorEnv
from tokenenv.wrappers import hidden_state, top_k, vector
from tokenenv.wrappers.checks import check_k

__all__ = [
    "TokenFeaturesEnv",
    "TokenFeaturesTopKEnv",
    "TokenFeaturesTopKVectorEnv",
    "TokenFeaturesVectorEnv",
]


class TokenFeaturesEnv(hidden_state.ObservesHiddenStates, TokenEnv):
    """`TokenRLHF-Features-v0`: `TokenEnv` under `tokenenv.wrappers.HiddenStateObservation`.

    ## Description
    The token MDP of `TokenEnv`, and all of its arguments. Only the observation differs: the last
    hidden state of the reference at s_t, which any MLP can read, instead of token ids.

    ## Action Space
    `Discrete(V)`: a token id.

    ## Observation Space
    `Box(-inf, inf, (h,), float32)`, h the width of the reference's last hidden state.

    ## Rewards, Starting State, Episode End, Info
    As in `TokenEnv`.

    Args:
        **settings: the arguments of `TokenEnv`.

    ## Version History
    * v0: initial version.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.observation_space = hidden_state.feature_space(self.mdp)


class TokenFeaturesTopKEnv(top_k.ActsOnTopTokens, TokenFeaturesEnv):
    """`TokenRLHF-Features-TopK-v0`: features as observations, the k likeliest tokens as actions.

    ## Description
    As small as a classic-control environment: a vector of floats in, one of a few actions out.

    ## Action Space
    `Discrete(k)`: action i is the token that is i-th in order of π_ref(·|s_t), of equals the
    smaller id first. Action 0 throughout is greedy decoding, so a policy has learned something only
    where it beats that.

    ## Observation Space
    `Box(-inf, inf, (h,), float32)`: the reference's last hidden state at s_t.

    ## Rewards, Starting State, Episode End
    As in `TokenEnv`, for the selected token.

    ## Info
    As in `TokenEnv`, and at every step `token`, the id, and `left_out_mass`, the probability
    under the reference of the tokens outside the k at s_t.

    Args:
        k: how many tokens; None: 16, or the whole vocabulary where that is less (see
            `tokenenv.wrappers.top_k.DEFAULT_K` for its effect).
        **settings: the arguments of `TokenEnv`.

    Raises:
        ValueError: k is larger than the vocabulary.

    ## Version History
    * v0: initial version.
    """

    def __init__(self, k: int | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.k = check_k(k, self.mdp.language_model.vocabulary_size, top_k.DEFAULT_K)
        self.action_space = spaces.Discrete(self.k)


class TokenFeaturesVectorEnv(vector.ObservesHiddenStates, TokenVectorEnv):
    """N rows of `TokenFeaturesEnv` in one batch.

    Args:
        **settings: the arguments of `TokenVectorEnv`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.single_observation_space = hidden_state.feature_space(self.mdp)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)


class TokenFeaturesTopKVectorEnv(vector.ActsOnTopTokens, TokenFeaturesVectorEnv):
    """N rows of `TokenFeaturesTopKEnv` in one batch.

    Args:
        k: how many tokens; None: 16, or the whole vocabulary where that is less.
        **settings: the arguments of `TokenVectorEnv`.

    Raises:
        ValueError: k is larger than the vocabulary.
    """

    def __init__(self, k: int | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.k = check_k(k, self.mdp.language_model.vocabulary_size, top_k.DEFAULT_K)
        self.single_action_space = spaces.Discrete(self.k)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
