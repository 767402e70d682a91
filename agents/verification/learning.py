"""Agents on the exact task, judged by enumeration: what each reaches, and after how many tokens."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule

from agents.buffer import EpisodeRolloutBuffer
from agents.callbacks import RLHFCallback
from agents.policy import LMActorCriticPolicy
from agents.ppo import TokenPPO
from agents.vec_env import make_vec_env
from agents.verification.checks import Check, at_least, states
from tokenenv.optimum import (
    ExactEvaluation,
    Solution,
    evaluate_exactly,
    policy_levels,
    rank_responses,
)

__all__ = ["AGENTS", "ENV_ID", "ExactCurve", "exact_agent", "learning_checks", "top_five_in_order"]

ENV_ID = "TokenRLHF-Exact-v0"

TOKENS = 300_000
"""Response tokens of a run; the same for each agent."""

LEARNING_RATE = 3e-3
"""At the start; it decays linearly."""

AGENTS = ("TokenPPO", "PPO", "rloo", "group", "reinforce")
"""TokenPPO with GAE, stock Stable-Baselines3 PPO, and TokenPPO without a critic."""


def exact_agent(name: str, seed: int, total_tokens: int = TOKENS) -> PPO:
    """The agent called `name` of `AGENTS`, ready to learn `total_tokens` with `RLHFCallback`."""
    group_size = 4 if name in ("rloo", "group") else 1
    env = make_vec_env(
        ENV_ID, n_envs=128, seed=seed, scoring="deferred", group_size=group_size, device="cpu"
    )
    common: dict[str, Any] = {
        "n_steps": 32,
        "batch_size": 1024,
        "n_epochs": 4,
        "seed": seed,
        "device": "cpu",
    }
    if name == "PPO":
        return PPO(
            LMActorCriticPolicy,
            env,
            learning_rate=LinearSchedule(LEARNING_RATE, 0.0, 1.0),
            policy_kwargs={"actor": "exact"},
            gamma=1.0,
            vf_coef=0.1,
            max_grad_norm=1.0,
            rollout_buffer_class=EpisodeRolloutBuffer,
            **common,
        )
    estimator = "gae" if name == "TokenPPO" else name
    cut = "bootstrap" if name == "TokenPPO" else "carry"
    return TokenPPO(
        LMActorCriticPolicy,
        env,
        learning_rate=LEARNING_RATE,
        clip_range_vf=None,  # scores reach 9: the values have far to go
        rollout_buffer_kwargs={
            "advantage_estimator": estimator,
            "group_size": group_size,
            "cut": cut,
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
        found = evaluate_exactly(self.model.policy, self.solution)
        self.seconds += time.perf_counter() - start
        assert found.objective_fraction is not None
        self.points.append(
            CurvePoint(self.num_timesteps, found.objective_fraction, found.kl_to_optimum)
        )
        return found

    def tokens_to(self, objective_fraction: float) -> int | None:
        """Tokens after which the curve first reached that fraction; None where it never did."""
        reached = (p.tokens for p in self.points if p.objective_fraction >= objective_fraction)
        return next(reached, None)


def top_five_in_order(policy: Any, solution: Solution) -> bool:
    """Whether the policy ranks the five likeliest responses of π* as π* does, for each prompt."""
    levels = policy_levels(policy, solution.tree)
    for prompt in range(len(solution.tree.prompts)):
        best = [r.text for r in solution.most_likely(prompt, 5)]
        own = [r.text for r in rank_responses(solution.tree, levels, prompt, 20)]
        if [text for text in own if text in best] != best:
            return False
    return True


def learning_checks(solution: Solution, seed: int = 0) -> list[Check]:
    """TokenPPO and stock PPO reach the optimum."""
    checks = []
    for name, goal in (("TokenPPO", 0.995), ("PPO", 0.99)):
        model = exact_agent(name, seed)
        model.learn(TOKENS, callback=RLHFCallback())
        found = evaluate_exactly(model.policy, solution)
        assert found.objective_fraction is not None
        title = "stock SB3 PPO" if name == "PPO" else name
        in_order = top_five_in_order(model.policy, solution)
        checks += [
            at_least(f"{title}: objective_fraction, exact", found.objective_fraction, goal),
            states(
                f"{title}: the five likeliest responses of π* in its order",
                "yes, for each prompt",
                f"{'yes' if in_order else 'no'}, KL(π ‖ π*) = {found.kl_to_optimum:.4f}",
                in_order,
            ),
        ]
    return checks
