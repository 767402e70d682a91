"""Agents on the exact task, evaluated by enumeration: what they reach, after how many tokens."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule

from agents.policy import LMActorCriticPolicy
from agents.ppo import TokenPPO
from agents.rollout import EpisodeRolloutBuffer, RLHFCallback
from agents.runs.agent import build_agent
from agents.vec_env import make_vec_env
from agents.verification.checks import Check, at_least, at_most
from agents.zoo import train_settings
from tokenenv.optimum import ExactEvaluation, Solution, evaluate_exactly, policy_levels

__all__ = ["AGENTS", "ENV_ID", "ExactCurve", "TopFive", "exact_agent", "learning_checks"]

ENV_ID = "TokenRLHF-Exact-v0"

SETTINGS = train_settings("exact")
"""The zoo's: `tokenrlhf train --config zoo:exact` is `TokenPPO` here."""

TOKENS = SETTINGS.total_tokens
"""Response tokens of a run; the same for each agent."""

LARGEST_KL = 0.015
"""KL(π ‖ π*) in nats after a run; the worst over seeds and kernels of docs/exact.md is 0.0082."""

LARGEST_MISORDERED_FACTOR = 2.0
"""Largest factor between two of π*'s five likeliest that may be ranked wrongly (`TopFive`)."""

AGENTS = ("TokenPPO", "PPO", "rloo", "group", "reinforce")
"""TokenPPO with GAE, stock Stable-Baselines3 PPO, and TokenPPO without a critic."""


def exact_agent(name: str, seed: int, total_tokens: int = TOKENS) -> PPO:
    """The agent called `name` of `AGENTS`, ready to learn `total_tokens` with `RLHFCallback`."""
    group_size = 4 if name in ("rloo", "group") else 1
    env = make_vec_env(
        ENV_ID,
        n_envs=SETTINGS.n_envs,
        seed=seed,
        scoring="deferred",
        group_size=group_size,
        device="cpu",
    )
    config = dataclasses.replace(SETTINGS, seed=seed, device="cpu")
    if name == "TokenPPO":
        return build_agent(config, env)
    common: dict[str, Any] = {
        "n_steps": config.n_steps,
        "batch_size": config.batch_size,
        "n_epochs": config.n_epochs,
        "seed": seed,
        "device": "cpu",
    }
    if name == "PPO":
        return PPO(
            LMActorCriticPolicy,
            env,
            learning_rate=LinearSchedule(config.learning_rate, 0.0, 1.0),
            policy_kwargs={"actor": "exact"},
            gamma=config.gamma,
            vf_coef=0.1 if config.vf_coef is None else config.vf_coef,
            max_grad_norm=config.max_grad_norm,
            rollout_buffer_class=EpisodeRolloutBuffer,
            **common,
        )
    return TokenPPO(
        LMActorCriticPolicy,
        env,
        learning_rate=config.learning_rate,
        clip_range_vf=config.clip_range_vf,
        rollout_buffer_kwargs={
            "advantage_estimator": name,
            "group_size": group_size,
            "cut": "carry",
        },
        **common,
    )


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One exact evaluation during training."""

    tokens: int
    objective_fraction: float
    kl_to_optimum: float


class ExactCurve(BaseCallback):
    """Evaluates the policy exactly after every few rollouts.

    Args:
        solution: of the task.
        every: rollouts between two evaluations.

    Attributes:
        points: the evaluations so far.
        seconds: that they took.
    """

    def __init__(self, solution: Solution, every: int = 1) -> None:
        super().__init__()
        self.solution, self.every = solution, every
        self.points: list[CurvePoint] = []
        self.seconds = 0.0
        self._rollouts = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        """The policy that the last update left behind, before it samples."""
        if self._rollouts % self.every == 0:
            self.measure()
        self._rollouts += 1

    def measure(self) -> ExactEvaluation:
        """Evaluate now."""
        start = time.perf_counter()
        evaluation = evaluate_exactly(self.model.policy, self.solution)
        self.seconds += time.perf_counter() - start
        assert evaluation.objective_fraction is not None
        self.points.append(
            CurvePoint(self.num_timesteps, evaluation.objective_fraction, evaluation.kl_to_optimum)
        )
        return evaluation

    def tokens_to(self, objective_fraction: float) -> int | None:
        """Tokens after which the curve first reached that fraction; None where it never did."""
        reached = (p.tokens for p in self.points if p.objective_fraction >= objective_fraction)
        return next(reached, None)


@dataclass(frozen=True, slots=True)
class TopFive:
    """The five likeliest responses of π* to each prompt, and a policy's probabilities of them.

    An objective within 0.2 % of the optimum says little about a response that π* gives once in a
    hundred answers: the error of its probability, and which of two such responses is likelier,
    depend on the seed and on the processor's rounding. So their order is judged with tolerance.

    Attributes:
        log_optimal: (X, 5) log π*(y|x), likeliest first.
        log_probs: (X, 5) log π(y|x) of the policy.
    """

    log_optimal: np.ndarray
    log_probs: np.ndarray

    @classmethod
    def of(cls, policy: Any, solution: Solution) -> TopFive:
        """The five of a policy as `tokenenv.optimum.policy_levels` takes it."""
        tree = solution.tree
        optimal = tree.response_log_probs(solution.log_policy)
        best = np.argsort(-optimal, axis=1, kind="stable")[:, :5]
        log_probs = tree.response_log_probs(policy_levels(policy, tree))
        return cls(np.take_along_axis(optimal, best, 1), np.take_along_axis(log_probs, best, 1))

    @property
    def largest_factor(self) -> float:
        """The largest factor between π(y|x) and π*(y|x), either way; 1 where all are equal."""
        return float(np.exp(np.abs(self.log_probs - self.log_optimal).max()))

    @property
    def in_order(self) -> int:
        """Prompts whose five the policy ranks as π* does."""
        return int((np.diff(self.log_probs, axis=1) < 0).all(axis=1).sum())

    @property
    def largest_misordered_factor(self) -> float:
        """The largest π*(y|x)/π*(y′|x) of a pair that π ranks the other way; 1 where none is."""
        gaps = self.log_optimal[:, :, None] - self.log_optimal[:, None, :]
        is_other_way = self.log_probs[:, :, None] <= self.log_probs[:, None, :]
        return float(np.exp(np.where(is_other_way, gaps, 0.0).max()))


def learning_checks(solution: Solution, seed: int = 0) -> list[Check]:
    """TokenPPO and stock PPO reach the optimum."""
    checks = []
    for name, goal in (("TokenPPO", 0.995), ("PPO", 0.99)):
        model = exact_agent(name, seed)
        model.learn(TOKENS, callback=RLHFCallback())
        evaluation = evaluate_exactly(model.policy, solution)
        assert evaluation.objective_fraction is not None
        title = "stock SB3 PPO" if name == "PPO" else name
        five = TopFive.of(model.policy, solution)
        checks += [
            at_least(f"{title}: objective_fraction, exact", evaluation.objective_fraction, goal),
            at_most(f"{title}: KL(π ‖ π*), nats", evaluation.kl_to_optimum, LARGEST_KL),
            at_most(
                f"{title}: π* of two of its likeliest five over one another, where π ranks them "
                "the other way",
                five.largest_misordered_factor,
                LARGEST_MISORDERED_FACTOR,
            ),
        ]
    return checks
