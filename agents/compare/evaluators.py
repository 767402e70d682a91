"""Evaluation of an agent during training and after it: by the plain return, or by J."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import FlattenObservation, FrameStackObservation
from stable_baselines3.common.callbacks import BaseCallback

from agents.compare.environments import is_text, make_env
from agents.compare.rollouts import plain_returns_side_by_side
from agents.evaluation import HeldOut, evaluate
from agents.rollout import RLHFCallback

__all__ = ["LearningCurve", "ObjectiveEvaluator", "ReturnEvaluator"]

EVALUATION_SEED = 20_000
"""Seed of the episodes that agents are evaluated on; training uses small seeds."""

SIDE_BY_SIDE = 20
"""Episodes of classic control that are played at once: one call of the policy serves them all."""

J_RESPONSES = 128
"""Responses per held-out prompt for a sampled J: half of them are the policy's."""


class ReturnEvaluator:
    """Evaluates by the plain return of the greedy policy, on separate episodes.

    Observations come to the agent as in its training: stacked, or normalised by the statistics that
    `VecNormalize` has gathered there until now, which stay as they are.

    Args:
        env_id: of the environment.
        count: episodes of the last evaluation; on text, held-out prompts at most.
        few: the same during training.
        env_kwargs: further arguments of the environment, on text.
        frame_stack: observations that the agent sees at once.
    """

    measure = "plain return"

    def __init__(
        self,
        env_id: str,
        count: int,
        few: int,
        env_kwargs: dict[str, Any] | None = None,
        frame_stack: int = 1,
    ) -> None:
        self.count, self.few = count, few
        # Text has one environment; elsewhere as many episodes as it may be are played side by side.
        number = 1 if is_text(env_id) else min(few, SIDE_BY_SIDE)
        self.envs = [make_env(env_id, "eval", **(env_kwargs or {})) for _ in range(number)]
        if frame_stack > 1:
            self.envs = [_stacked(env, frame_stack) for env in self.envs]

    def now(self, model: Any) -> float | None:
        """The mean over a few episodes, for the curve."""
        return float(self._returns(model, self.few).mean())

    def final(self, model: Any) -> dict[str, Any]:
        """The mean over all episodes."""
        returns = self._returns(model, self.count)
        for env in self.envs:
            env.close()
        return {
            "measure": self.measure,
            "value": float(returns.mean()),
            "standard_deviation": float(returns.std()),
            "episodes": len(returns),
        }

    def _returns(self, model: Any, count: int) -> np.ndarray:
        statistics = model.get_vec_normalize_env()

        def choose(observations: np.ndarray) -> np.ndarray:
            if statistics is not None:
                observations = statistics.normalize_obs(observations)
            return model.predict(observations, deterministic=True)[0]

        return plain_returns_side_by_side(self.envs, choose, count, EVALUATION_SEED)


def _stacked(env: gym.Env, count: int) -> gym.Env:
    """The last `count` observations in one row, zeros before the first, as `VecFrameStack` has."""
    return FlattenObservation(FrameStackObservation(env, count, padding_type="zero"))


class ObjectiveEvaluator:
    """Evaluates by J = E[R] − β·KL on held-out prompts: exactly where that is possible.

    Args:
        env_id: of the environment, with raw token ids.
        prompts: held-out ones, at most.

    Attributes:
        metrics: to be called back in training; it knows J of the training samples.
    """

    measure = "J"

    def __init__(self, env_id: str, prompts: int) -> None:
        env_kwargs = gym.spec(env_id.rpartition(":")[2]).kwargs
        self.held_out = HeldOut.from_env_kwargs({**env_kwargs, "device": "cpu"}, prompts)
        self.metrics = RLHFCallback()

    def now(self, model: Any) -> float | None:
        """J, exactly or over the last rollout; None before there was one."""
        if self.held_out.solution is not None:
            return float(evaluate(model.policy.actor, self.held_out, 2, 0).objective)
        return self.metrics.metrics.get("objective")

    def final(self, model: Any) -> dict[str, Any]:
        """J beside J of the reference and J*, or a lower bound on it."""
        evaluation: Any = evaluate(model.policy.actor, self.held_out, J_RESPONSES, EVALUATION_SEED)
        is_exact = self.held_out.solution is not None
        return {
            "measure": self.measure,
            "value": evaluation.objective,
            "baseline": evaluation.objective_reference,
            "top": evaluation.optimum if is_exact else evaluation.optimum_lower_bound,
            "is_lower_bound": not is_exact,
            "episodes": len(self.held_out.texts),
            "kl": evaluation.kl,
        }


class LearningCurve(BaseCallback):
    """Evaluates at equal intervals, the untrained agent first, and measures the time it takes.

    Args:
        evaluator: what evaluates.
        steps: of the run.
        evaluations: how often.
        on_steps: called with the number of steps since the last call.

    Attributes:
        points: [steps, value] of each evaluation.
        cpu_at: seconds of the processor that training had taken by each of them.
        seconds: that they took.
        cpu_seconds: of the processor that they took.
    """

    def __init__(
        self,
        evaluator: ReturnEvaluator | ObjectiveEvaluator,
        steps: int,
        evaluations: int,
        on_steps: Callable[[int], None],
    ) -> None:
        super().__init__()
        self.evaluator, self.on_steps = evaluator, on_steps
        self.points: list[list[float]] = []
        self.cpu_at: list[float] = []
        self.seconds, self.cpu_seconds = 0.0, 0.0
        self._interval = steps / evaluations
        self._next, self._reported = 0.0, 0

    def _on_training_start(self) -> None:
        self._begun = time.process_time()

    def cpu_until_now(self) -> float:
        """Seconds of the processor that training has taken, without the evaluations."""
        return time.process_time() - self._begun - self.cpu_seconds

    def _on_rollout_start(self) -> None:
        """After an update; off-policy algorithms have many short rollouts."""
        if self.num_timesteps >= self._next:
            self._next = (self.num_timesteps // self._interval + 1) * self._interval
            taken = self.cpu_until_now()
            start, cpu = time.perf_counter(), time.process_time()
            value = self.evaluator.now(self.model)
            if value is not None:
                self.points.append([self.num_timesteps, value])
                self.cpu_at.append(taken)
            self.seconds += time.perf_counter() - start
            self.cpu_seconds += time.process_time() - cpu

    def _on_step(self) -> bool:
        if self.num_timesteps - self._reported >= self._interval / 10:
            self.on_steps(self.num_timesteps - self._reported)
            self._reported = self.num_timesteps
        return True

    def _on_training_end(self) -> None:
        self.on_steps(self.num_timesteps - self._reported)
