"""Any policy judged exactly: J, KL and the true advantages, by summation over all states.

Axes and levels are those of `prefix_tree`; everything is float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokenenv.optimum.exact import (
    Solution,
    Solvable,
    action_rewards,
    expectation,
    sequence_divergence,
    solve,
    tree_and_kl_coef,
)
from tokenenv.optimum.policies import Policy, policy_levels
from tokenenv.optimum.prefix_tree import Levels, PrefixTree

__all__ = [
    "ActionValues",
    "ExactEvaluation",
    "evaluate_exactly",
    "evaluate_levels",
    "true_advantages",
]


@dataclass(frozen=True, slots=True)
class ExactEvaluation:
    """The results of a policy, by summation over all responses; means over prompts.

    Attributes:
        objective: J(π) = E[R] − β·KL(π ‖ π_ref).
        objective_reference: J_ref, or J of another untrained actor.
        optimum: J*.
        objective_fraction: (J − J_ref)/(J* − J_ref); None where there is nothing to gain.
        score: E[R].
        kl: KL(π ‖ π_ref) per response, in nats.
        kl_to_optimum: KL(π ‖ π*) per response, in nats: (J* − J)/β.
        gold_reward: E[gold], or None.
        score_reference: E[R] under π_ref.
        gold_reward_reference: E[gold] under π_ref, or None.
        response_length: mean tokens.
        eos_rate: share of responses that end with EOS.
    """

    objective: float
    objective_reference: float
    optimum: float
    objective_fraction: float | None
    score: float
    kl: float
    kl_to_optimum: float
    gold_reward: float | None
    score_reference: float
    gold_reward_reference: float | None
    response_length: float
    eos_rate: float


def evaluate_exactly(
    policy: Policy,
    task: Solvable,
    kl_coef: float | None = None,
    starting_policy: Policy | None = None,
) -> ExactEvaluation:
    """J(π), E[R], KL(π ‖ π_ref) and KL(π ‖ π*) of a policy, by enumeration.

    Since J* − J(π) = β·KL(π ‖ π*), the fraction is 1 − KL(π ‖ π*)/KL(π_0 ‖ π*), which takes no
    difference of objectives; π_0 is the untrained actor.

    Args:
        policy: see `policy_levels`.
        task: name of a task, its tree, or its solution, which saves solving it again.
        kl_coef: β > 0; None: that of the solution or the task.
        starting_policy: the untrained actor, where it was not the reference.

    Raises:
        ValueError: `policy` is none, or as `solve`.
    """
    if isinstance(task, Solution) and kl_coef in (None, task.kl_coef):
        solution = task
    else:
        solution = solve(task, kl_coef)
    tree, kl_coef = solution.tree, solution.kl_coef
    log_policy = policy_levels(policy, tree)
    evaluation = evaluate_levels(tree, log_policy, kl_coef)
    reference = evaluate_levels(tree, tree.ref_log_probs, kl_coef)
    to_optimum = float(sequence_divergence(tree, log_policy, solution.log_policy).mean())
    worst, whole_way = solution.objective_reference, solution.gain / kl_coef
    if starting_policy is not None:
        start = policy_levels(starting_policy, tree)
        worst = float(evaluate_levels(tree, start, kl_coef).objective.mean())
        whole_way = float(sequence_divergence(tree, start, solution.log_policy).mean())
    # An actor that starts next to the optimum has nothing to gain but rounding.
    has_way = solution.has_gain and whole_way > 1e-9 * solution.gain / kl_coef
    return ExactEvaluation(
        objective=float(evaluation.objective.mean()),
        objective_reference=worst,
        optimum=solution.optimum,
        objective_fraction=1.0 - to_optimum / whole_way if has_way else None,
        score=float(evaluation.score.mean()),
        kl=float(evaluation.kl.mean()),
        kl_to_optimum=to_optimum,
        gold_reward=_mean(evaluation.gold_reward),
        score_reference=float(reference.score.mean()),
        gold_reward_reference=_mean(reference.gold_reward),
        response_length=float(evaluation.response_length.mean()),
        eos_rate=float(evaluation.eos_rate.mean()),
    )


@dataclass(frozen=True, slots=True)
class ActionValues:
    """Exact values of a policy, with its KL in the reward.

    Attributes:
        values: T levels (X, C^t) of V^π(s).
        q_values: T levels (X, C^t, V) of Q^π(s, a).
        advantages: T levels (X, C^t, V) of A^π(s, a) = Q^π(s, a) − V^π(s).
    """

    values: Levels
    q_values: Levels
    advantages: Levels


def true_advantages(policy: Policy, task: Solvable, kl_coef: float | None = None) -> ActionValues:
    """V^π, Q^π and A^π under r(s, a) = R at the end − β·(log π(a|s) − log π_ref(a|s)), γ = 1.

    An action that π never takes has Q^π = ∞ where β > 0: the first of its probability costs no KL.

    Args:
        policy: see `policy_levels`.
        task: name of a task, its tree or its solution.
        kl_coef: β ≥ 0; None: that of the solution or the task.

    Raises:
        ValueError: `policy` is none, the task is too large to enumerate, or β is negative.
    """
    tree, kl_coef = tree_and_kl_coef(task, kl_coef)
    log_policy = policy_levels(policy, tree)
    values: Levels = []
    q_values: Levels = []
    after: np.ndarray | None = None
    for t in reversed(range(tree.depth)):
        q = tree.after(t, after) + action_rewards(tree, log_policy, t, kl_coef)
        after = expectation(log_policy[t], q)
        q_values.insert(0, q)
        values.insert(0, after)
    advantages = [q - v[:, :, None] for q, v in zip(q_values, values, strict=True)]
    return ActionValues(values, q_values, advantages)


@dataclass(frozen=True, slots=True)
class _PerPrompt:
    """(X,) arrays by prompt; `ExactEvaluation` holds their means."""

    objective: np.ndarray
    score: np.ndarray
    kl: np.ndarray
    gold_reward: np.ndarray | None
    response_length: np.ndarray
    eos_rate: np.ndarray


def evaluate_levels(tree: PrefixTree, log_policy: Levels, kl_coef: float) -> _PerPrompt:
    """Expectations over all finished responses, per prompt."""
    log_probs = tree.response_log_probs(log_policy)
    score = expectation(log_probs, tree.finished(tree.scores))
    kl = sequence_divergence(tree, log_policy, tree.ref_log_probs)
    gold = tree.gold_rewards
    return _PerPrompt(
        objective=score - kl_coef * kl,
        score=score,
        kl=kl,
        gold_reward=None if gold is None else expectation(log_probs, tree.finished(gold)),
        response_length=expectation(log_probs, tree.response_lengths),
        eos_rate=expectation(log_probs, tree.response_stopped),
    )


def _mean(values: np.ndarray | None) -> float | None:
    return None if values is None else float(values.mean())
