"""The wrappers for `TokenVectorEnv`: one batch, partial resets, all autoreset modes.

Row by row they equal the single wrappers of the same names in a `SyncVectorEnv`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from tokenenv.maths import actor_half
from tokenenv.wrappers.action_mask import MaskSource
from tokenenv.wrappers.checks import (
    check_k,
    check_kind,
    check_token_actions,
    check_token_observations,
    mdp_of,
)
from tokenenv.wrappers.hidden_state import feature_space
from tokenenv.wrappers.log_prob_shaping import check_can_shape, checked_log_probs, refuse_stale
from tokenenv.wrappers.mask_rules import checked_positions, checked_tokens
from tokenenv.wrappers.top_k import DEFAULT_K, chosen_tokens, refuse_masks_below

__all__ = [
    "ActionMask",
    "ActsOnTopTokens",
    "HiddenStateObservation",
    "LogProbShaping",
    "ObservesHiddenStates",
    "TopKActions",
]

if TYPE_CHECKING:  # the type of the next class in line
    _Base = VectorEnv[Any, Any, Any]
else:
    _Base = object

_Seed = int | Sequence[int | None] | None
_StepReturn = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]


def add_step_info(
    env: VectorEnv, infos: dict[str, Any], key: str, values: np.ndarray, ended: np.ndarray
) -> None:
    """Put (N, …) values of the steps that were taken into `infos`, as Gymnasium shapes them.

    Args:
        env: whose autoreset mode says where the info of a last step belongs.
        infos: of the step; changed in place.
        key: their name in `infos`.
        values: (N, …); rows that took no step are masked.
        ended: (N,) bool, the rows whose episode ended with this step.
    """
    stepped = ~infos["_prompt"] if "_prompt" in infos else np.ones(env.num_envs, dtype=bool)
    if env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP:
        _set(infos, key, values, ~ended)
        if ended.any():
            _set(infos["final_info"], key, values, ended)
    else:  # a row that starts an episode in a step is one that waited for its reset
        _set(infos, key, values, stepped)


def _set(infos: dict[str, Any], key: str, values: np.ndarray, rows: np.ndarray) -> None:
    if rows.any():
        masked = np.zeros_like(values)
        masked[rows] = values[rows]
        infos[key], infos[f"_{key}"] = masked, rows


# Observations -------------------------------------------------------------------------------------


class ObservesHiddenStates(_Base):
    """Turns the token ids that `reset` and `step` of the next class give into hidden states."""

    def reset(
        self, *, seed: _Seed = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start episodes; the observations are (N, h) hidden states."""
        observations, infos = super().reset(seed=seed, options=options)  # type: ignore[arg-type]
        return mdp_of(self).reference_decoder.features(observations), infos

    def step(self, actions: np.ndarray) -> _StepReturn:
        """Step; observations, and those in `final_obs`, are hidden states."""
        observations, rewards, terminations, truncations, infos = super().step(actions)
        decoder = mdp_of(self).reference_decoder
        if "final_obs" in infos:
            rows = np.flatnonzero(infos["_final_obs"])
            last = observations.copy()
            last[rows] = np.stack(list(infos["final_obs"][rows]))
            # Before the new states: the decoder continues from the last states.
            features, final_obs = decoder.features(last), np.full(self.num_envs, None, dtype=object)
            for row in rows.tolist():
                final_obs[row] = features[row].copy()
            infos["final_obs"] = final_obs
        return decoder.features(observations), rewards, terminations, truncations, infos


class HiddenStateObservation(ObservesHiddenStates, VectorWrapper):
    """`tokenenv.wrappers.HiddenStateObservation` of N rows: (N, h) float32.

    Args:
        env: a `TokenVectorEnv`, or a vector wrapper around one that left its observations alone.

    Raises:
        ValueError: there is no token MDP below, or its observations were changed already.
    """

    def __init__(self, env: VectorEnv) -> None:
        check_kind("HiddenStateObservation", env, vector=True)
        check_token_observations(env)
        VectorWrapper.__init__(self, env)
        self.single_observation_space = feature_space(mdp_of(env))
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)


# Actions ------------------------------------------------------------------------------------------


class ActsOnTopTokens(_Base):
    """Hands the tokens that actions stand for to `step` of the next class."""

    k: int

    def action_tokens(self) -> np.ndarray:
        """(N, k) int64: the tokens that actions 0 … k−1 stand for at each row's s_t."""
        mdp = mdp_of(self)
        return mdp.reference_decoder.top_tokens(mdp.episodes.observations, self.k)[0]

    def step(self, actions: np.ndarray) -> _StepReturn:
        """Append in every row the token that its action stands for.

        Raises:
            gymnasium.error.ResetNeeded: a row has no running episode.
            ValueError: an action is no integer in 0 … k−1.
        """
        mdp = mdp_of(self)
        running = np.flatnonzero(mdp.episodes.running)
        candidates, excluded_probability = mdp.reference_decoder.top_tokens(
            mdp.episodes.observations, self.k
        )
        tokens = chosen_tokens(candidates, actions, running)
        observations, rewards, terminations, truncations, infos = super().step(tokens)
        ended = terminations | truncations
        add_step_info(self, infos, "token", tokens, ended)
        add_step_info(self, infos, "left_out_mass", excluded_probability, ended)
        return observations, rewards, terminations, truncations, infos


class TopKActions(ActsOnTopTokens, VectorWrapper):
    """`tokenenv.wrappers.TopKActions` of N rows: `MultiDiscrete` of N actions 0 … k−1.

    Args:
        env: a `TokenVectorEnv`, or a vector wrapper around one that left its actions alone.
        k: how many tokens; None: 16, or the whole vocabulary where that is less.

    Raises:
        ValueError: k is larger than the vocabulary, or the environment below doesn't fit.
    """

    def __init__(self, env: VectorEnv, k: int | None = None) -> None:
        check_kind("TopKActions", env, vector=True)
        check_token_actions("TopKActions", env)
        refuse_masks_below(env)
        VectorWrapper.__init__(self, env)
        self.k = check_k(k, mdp_of(env).language_model.vocabulary_size, DEFAULT_K)
        self.single_action_space = spaces.Discrete(self.k)
        self.action_space = batch_space(self.single_action_space, env.num_envs)


class ActionMask(VectorWrapper):
    """`tokenenv.wrappers.ActionMask` of N rows: masks are (N, V), or (N, k) on `TopKActions`.

    Args:
        env: a `TokenVectorEnv`, or a vector wrapper around one.
        top_p: as for the single wrapper, like all that follow.
        forbid: token ids.
        force: response position → token id.
        grammar: follow the grammar of the task.

    Raises:
        ValueError: a rule can't be used, or could leave nothing.
    """

    def __init__(
        self,
        env: VectorEnv,
        top_p: float = 1.0,
        forbid: Iterable[int] = (),
        force: Mapping[int, int] | None = None,
        grammar: bool = False,
    ) -> None:
        check_kind("ActionMask", env, vector=True)
        VectorWrapper.__init__(self, env)
        rules = {
            "top_p": top_p,
            "forbid": checked_tokens(forbid),
            "force": checked_positions(force),
            "grammar": grammar,
        }
        self._source = MaskSource(env, **rules)

    def action_masks(self) -> np.ndarray:
        """(N, V) or (N, k) bool: the actions that are allowed at each row's s_t."""
        return self._source(self)

    def reset(
        self, *, seed: _Seed = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start episodes; `infos` gain the masks of the rows that start."""
        observations, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        _set(infos, "action_mask", self.action_masks().astype(np.int8), infos["_prompt"].copy())
        return observations, infos

    def step(self, actions: np.ndarray) -> _StepReturn:
        """Step; `infos` gain the masks of the states that were reached."""
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        masks = self.action_masks().astype(np.int8)
        _set(infos, "action_mask", masks, np.ones(self.num_envs, dtype=bool))
        if "final_info" in infos:  # where an episode has ended, no action counts
            _set(infos["final_info"], "action_mask", np.ones_like(masks), infos["_final_info"])
        return observations, rewards, terminations, truncations, infos


# Rewards ------------------------------------------------------------------------------------------


class LogProbShaping(VectorWrapper):
    """`tokenenv.wrappers.LogProbShaping` of N rows.

    Call `set_log_probs` with the (N,) log-probabilities of the actions before every `step`. Numbers
    of rows that a `NEXT_STEP` environment is about to reset are not looked at.

    Args:
        env: a `TokenVectorEnv` with stepwise scoring, or a vector wrapper around one that left its
            rewards alone.

    Raises:
        ValueError: the rewards below can't be completed so, or would be twice.
    """

    def __init__(self, env: VectorEnv) -> None:
        check_kind("LogProbShaping", env, vector=True)
        check_can_shape(env)
        VectorWrapper.__init__(self, env)
        self._log_probs: np.ndarray | None = None

    def set_log_probs(self, log_probs: Any) -> None:
        """Give log π(a_t|s_t) of the actions that the next `step` takes.

        Args:
            log_probs: (N,) in nats; an array or a tensor.

        Raises:
            ValueError: they are not N, or a running row's is no log-probability.
        """
        running = np.flatnonzero(mdp_of(self).episodes.running)
        self._log_probs = checked_log_probs(log_probs, self.num_envs, running)

    def reset(
        self, *, seed: _Seed = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start episodes; log-probabilities that no step has used are forgotten."""
        self._log_probs = None
        return self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]

    def step(self, actions: np.ndarray) -> _StepReturn:
        """Step, and complete the reward of every row that took one.

        Raises:
            ValueError: `set_log_probs` was not called since the last step.
        """
        log_probs, self._log_probs = refuse_stale(self._log_probs), None
        mdp = mdp_of(self)
        owed = np.zeros(self.num_envs)
        running = mdp.episodes.running.copy()
        owed[running] = actor_half(log_probs[running], mdp.kl_coef)
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        return observations, rewards + owed, terminations, truncations, infos
