"""The reference's last hidden state as the observation, for networks that take vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from tokenenv.mdp import TokenMDP
from tokenenv.wrappers.checks import check_kind, check_token_observations, mdp_of

__all__ = ["HiddenStateObservation", "ObservesHiddenStates", "feature_space"]

if TYPE_CHECKING:  # the type of the next class in line
    _Base = gym.Env[Any, Any]
else:
    _Base = object


def feature_space(mdp: TokenMDP) -> spaces.Box:
    """`Box(-inf, inf, (h,), float32)`, h the width of the reference's last hidden state."""
    return spaces.Box(-np.inf, np.inf, (mdp.reference_decoder.hidden_size,), np.float32)


class ObservesHiddenStates(_Base):
    """Turns the token ids that `reset` and `step` of the next class give into hidden states."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; the observation is the hidden state of the prompt."""
        observation, info = super().reset(seed=seed, options=options)
        return self._features(observation), info

    def step(self, action: Any) -> tuple[np.ndarray, Any, bool, bool, dict[str, Any]]:
        """Step; the observation is the hidden state of the state that was reached."""
        observation, reward, terminated, truncated, info = super().step(action)
        return self._features(observation), reward, terminated, truncated, info

    def _features(self, observation: np.ndarray) -> np.ndarray:
        return mdp_of(self).reference_decoder.features(observation[None])[0]


class HiddenStateObservation(ObservesHiddenStates, gym.Wrapper, RecordConstructorArgs):
    """Observe the reference's last hidden state at s_t, `Box(-inf, inf, (h,), float32)`.

    It is the input of the reference's output layer: the logits of log π_ref are linear in it. The
    environment computes it for the rewards anyway; with deferred scoring it is computed for the
    observation. The state at an episode's end has one too. `TokenRLHF-Features-v0` needs no
    wrapping.

    Facts that don't matter to the reference may be faint in it: where the reward depends on them,
    a policy on features sees only a part of the state.

    Args:
        env: an environment over a token MDP, its observations unchanged.

    Raises:
        ValueError: there is no token MDP below, or its observations were changed already.
    """

    def __init__(self, env: gym.Env) -> None:
        check_kind("HiddenStateObservation", env, vector=False)
        check_token_observations(env)
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self.observation_space = feature_space(mdp_of(env))
