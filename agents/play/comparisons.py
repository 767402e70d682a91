"""What others get for the same prompt: the reference, a run's policy, the optimum."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.evaluation import exact_solution, respond
from tokenenv.data import Prompt
from tokenenv.mdp import TokenMDP
from tokenenv.optimum import Solution, evaluate_exactly, plain_returns

__all__ = ["Comparisons", "Result"]

SAMPLES = 32
"""Responses that a mean is taken of where the exact value is not known."""


@dataclass(frozen=True, slots=True)
class Result:
    """What somebody gets for a prompt.

    Attributes:
        who: the name.
        score: R(x, y), or its mean.
        kl: KL to the reference per response, in nats.
        objective: score − β·KL.
        gold_reward: the task's true reward, or None.
        note: how the numbers came about, or which response it is.
    """

    who: str
    score: float
    kl: float
    objective: float
    gold_reward: float | None = None
    note: str = ""


class Comparisons:
    """What the others get, computed once per prompt.

    Args:
        mdp: the token MDP.
        policy: the causal LM of a run; or None.
        seed: of the sampling.
    """

    def __init__(self, mdp: TokenMDP, policy: Any, seed: int) -> None:
        self.mdp, self.policy, self.seed = mdp, policy, seed
        self._known: dict[tuple[str, str], list[Result]] = {}

    def of(self, prompt: str, origin: Prompt | None = None) -> list[Result]:
        """The reference, the policy, and where all responses can be listed the optimum.

        The last one is then the best single response: what a person can get at most.
        """
        key = prompt, "" if origin is None else json.dumps(dict(origin.columns), default=repr)
        if key not in self._known:
            solution = exact_solution(self.mdp, [origin or prompt])
            results = self._exact(solution) if solution else self._sampled(prompt, origin)
            self._known[key] = list(results)
        return self._known[key]

    def _exact(self, solution: Solution) -> Iterator[Result]:
        actors = {
            "reference": solution.tree.ref_log_probs,
            "policy": self.policy,
            "optimum π*": solution.log_policy,
        }
        for who, actor in actors.items():
            if actor is not None:
                exact = evaluate_exactly(actor, solution)
                parts = exact.score, exact.kl, exact.objective, exact.gold_reward
                yield Result(who, *parts, note="exact mean")
        yield best_response(solution)

    def _sampled(self, prompt: str, origin: Prompt | None) -> Iterator[Result]:
        mdp = self.mdp
        actors = {"reference": mdp.language_model.model, "policy": self.policy}
        for who, actor in actors.items():
            if actor is None:
                continue
            reports = respond(
                actor,
                mdp.scorer,
                [prompt] * SAMPLES,
                [mdp.encode_prompt(prompt)] * SAMPLES,
                mdp.max_new_tokens,
                self.seed,
                origins=[origin] * SAMPLES,
            )
            score = float(np.mean([report.score for report in reports]))
            # The reference's is known: each of its log-ratios is 0 but for rounding.
            kl = float(np.mean([r.kl for r in reports])) if actor is self.policy else 0.0
            gold = [r.gold_reward for r in reports if r.gold_reward is not None]
            yield Result(
                who,
                score,
                kl,
                score - mdp.kl_coef * kl,
                float(np.mean(gold)) if gold else None,
                note=f"mean of {SAMPLES} samples",
            )


def best_response(solution: Solution) -> Result:
    """The response with the greatest R(x, y) + β·log π_ref(y|x), for the solution's one prompt."""
    tree = solution.tree
    best_actions = plain_returns(solution).best_actions
    response: list[int] = []
    log_prob = 0.0
    while True:
        depth, state = len(response), tree.locate_state(response)
        action = int(best_actions[depth][0, state])
        log_prob += float(tree.ref_log_probs[depth][0, state, action])
        response.append(action)
        if tree.ending(depth)[action]:
            break
    score = float(tree.scores[depth][0, state, action])
    gold = tree.gold_rewards
    return Result(
        "best response",
        score,
        -log_prob,
        score + solution.kl_coef * log_prob,
        None if gold is None else float(gold[depth][0, state, action]),
        repr(tree.language_model.decode(response)),
    )
