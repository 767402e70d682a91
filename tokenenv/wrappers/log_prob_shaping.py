"""The agent's half of the KL penalty, for libraries without a hook between step and buffer."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from tokenenv.maths import actor_half
from tokenenv.wrappers.checks import check_kind, check_plain_rewards, layers, mdp_of

__all__ = ["LogProbShaping", "check_can_shape", "checked_log_probs", "refuse_stale"]

_MAX_LOG_PROB = 1e-4
"""Rounding may lift the log-probability of a certain action above 0 by so much."""


def check_can_shape(env: Any) -> None:
    """Raise ValueError where −β·log π would not complete the reward of the environment below."""
    settings = mdp_of(env).settings
    if settings.kl_shaping != "k1":
        raise ValueError(
            f"kl_shaping={settings.kl_shaping!r} pays no β·log π_ref, which LogProbShaping would "
            "complete: make the environment with kl_shaping='k1'."
        )
    if settings.scoring != "step":
        raise ValueError(
            f"scoring={settings.scoring!r} pays nothing at a step, so there is no reward to "
            "complete: make the environment with scoring='step'."
        )
    if any(hasattr(layer, "set_log_probs") for layer in layers(env)):
        raise ValueError(
            "LogProbShaping stands on LogProbShaping: the agent's half of the KL would be paid "
            "twice. Take one of them off."
        )
    check_plain_rewards(env)


def checked_log_probs(log_probs: Any, count: int, rows: np.ndarray) -> np.ndarray:
    """(N,) float64 of log π(a_t|s_t).

    Args:
        log_probs: numbers, an array or a tensor.
        count: N.
        rows: (n,) the rows whose number counts.

    Raises:
        ValueError: they are not N, or one of `rows` is no log-probability.
    """
    if hasattr(log_probs, "detach"):
        log_probs = log_probs.detach().cpu()
    values = np.asarray(log_probs, dtype=np.float64).reshape(-1)
    if values.shape != (count,):
        raise ValueError(
            f"{values.size} log-probabilities were given for {count} "
            f"environment{'s' if count > 1 else ''}: one per environment, summed over nothing."
        )
    wrong = rows[~(np.isfinite(values[rows]) & (values[rows] <= _MAX_LOG_PROB))]
    if len(wrong):
        raise ValueError(
            f"log π(a_t|s_t)={values[wrong[0]]} is no log-probability of a token: it must be "
            "finite and at most 0, in nats. Give the log of the probability that the action was "
            "sampled with."
        )
    return values


def refuse_stale(log_probs: np.ndarray | None) -> np.ndarray:
    """The log-probabilities set since the last step; ValueError where there are none.

    A missing one is no detail: without −β·log π every step pays β·log π_ref alone, which rewards
    the reference's favourite tokens instead of staying near the reference.
    """
    if log_probs is None:
        raise ValueError(
            "step() without log π of its action: LogProbShaping completes the reward of every step "
            "by −β·log π(a_t|s_t), and each is used once. Call set_log_probs(log π(a_t|s_t)) after "
            "the action is sampled and before step(). For an agent that doesn't know π, or one "
            "with agents.RLHFCallback, which pays that half itself, take LogProbShaping off."
        )
    return log_probs


class LogProbShaping(gym.Wrapper, RecordConstructorArgs):
    """Complete the reward by the agent's half of the KL penalty, r_t − β·log π(a_t|s_t).

    The environment pays β·log π_ref(a_t|s_t) and the score; the two halves sum to Schulman's k1.
    For agents that know π in libraries without a hook (with Stable-Baselines3, use
    `agents.RLHFCallback`):

        action, log_prob = agent.act(observation)
        env.get_wrapper_attr("set_log_probs")(log_prob)
        observation, reward, *_ = env.step(action)

    In `SyncVectorEnv` and `AsyncVectorEnv`, `envs.set_attr("log_prob", log_probs)` sets one value
    per row. β is that of the environment at the time of the step.

    Args:
        env: an environment over a token MDP with stepwise scoring, its rewards unchanged.

    Raises:
        ValueError: the rewards below can't be completed so, or would be twice.
    """

    def __init__(self, env: gym.Env) -> None:
        check_kind("LogProbShaping", env, vector=False)
        check_can_shape(env)
        RecordConstructorArgs.__init__(self)
        gym.Wrapper.__init__(self, env)
        self._log_probs: np.ndarray | None = None

    def set_log_probs(self, log_probs: Any) -> None:
        """Give log π(a_t|s_t) of the action that the next `step` takes.

        Args:
            log_probs: one number, in nats; an array or tensor of one will do.

        Raises:
            ValueError: it is no log-probability.
        """
        self._log_probs = checked_log_probs(log_probs, 1, np.zeros(1, dtype=np.int64))

    @property
    def log_prob(self) -> float | None:
        """The value set since the last step; setting it calls `set_log_probs`."""
        return None if self._log_probs is None else float(self._log_probs[0])

    @log_prob.setter
    def log_prob(self, log_prob: Any) -> None:
        self.set_log_probs(log_prob)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; a log-probability that no step has used is forgotten."""
        self._log_probs = None
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, and complete the reward.

        Raises:
            ValueError: `set_log_probs` was not called since the last step.
        """
        log_probs, self._log_probs = refuse_stale(self._log_probs), None
        mdp = mdp_of(self)
        # Where no episode runs, `Autoreset` below makes the step a reset: no token, no pay.
        owed = actor_half(log_probs, mdp.kl_coef) * mdp.episodes.running
        observation, reward, terminated, truncated, info = self.env.step(action)
        completed = float(reward) + float(owed[0])
        return observation, completed, terminated, truncated, info
