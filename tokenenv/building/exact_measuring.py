"""What is measured on the models of `exact` for their card: all of it by enumeration."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenenv.optimum import (
    Levels,
    PrefixTree,
    Solution,
    evaluate_exactly,
    rank_responses,
    solve,
)
from tokenenv.optimum.exact import expectation
from tokenenv.tasks.exact.grammar import melody_log_prob

__all__ = [
    "fractions_by_prompt",
    "greedy_levels",
    "half_mass_probabilities",
    "measure_optimum",
    "measure_reference",
    "one_step_policies",
    "reference_moments",
]

TOP = 5
"""Responses of π* that the card lists for every prompt."""


def reference_moments(tree: PrefixTree) -> tuple[float, float]:
    """Mean and standard deviation of the score under the reference, prompts drawn uniformly."""
    probabilities = np.exp(tree.response_log_probs(tree.ref_log_probs)) / len(tree.prompts)
    scores = tree.finished(tree.scores)
    mean = float((probabilities * scores).sum())
    return mean, float(np.sqrt((probabilities * np.square(scores - mean)).sum()))


def measure_reference(tree: PrefixTree) -> dict[str, float]:
    """Cross-entropy of the reference on the grammar's answers against their entropy, exactly."""
    decode = tree.language_model.decode
    texts = [decode(response).split() for response in tree.responses()]
    stopped = [bool(np.isin(response[-1], tree.eos)) for response in tree.responses()]
    grammar = np.array(
        [
            [melody_log_prob([call, *text], end) for text, end in zip(texts, stopped, strict=True)]
            for call in tree.prompts
        ]
    )
    model = tree.response_log_probs(tree.ref_log_probs)
    entropy = float(-expectation(grammar, np.maximum(grammar, -1e9)).mean())
    cross_entropy = float(-expectation(grammar, model).mean())
    lengths = np.array([len(response) for response in tree.responses()])
    return {
        "cross_entropy_per_response": cross_entropy,
        "grammar_entropy_per_response": entropy,
        "cross_entropy_over_entropy": cross_entropy / entropy,
        "tokens_per_response": float(expectation(model, lengths).mean()),
        "eos_rate": float(expectation(model, np.array(stopped, dtype=float)).mean()),
        "responses": tree.num_responses,
    }


def greedy_levels(of_actions: Levels) -> Levels:
    """The policy that always takes the action of the greatest value, as log-probabilities."""
    return [
        np.where(np.arange(level.shape[-1]) == level.argmax(-1)[..., None], 0.0, -np.inf)
        for level in of_actions
    ]


def reference_values(tree: PrefixTree) -> Levels:
    """T levels (X, C^t, V) of Q^ref(s, a) = E[R | s, a] where the reference goes on."""
    q_values: Levels = []
    after: np.ndarray | None = None
    for t in reversed(range(tree.depth)):
        q = np.where(tree.ending(t), tree.scores[t], tree.after(t, after))
        after = expectation(tree.ref_log_probs[t], q)
        q_values.insert(0, q)
    return q_values


def one_step_policies(tree: PrefixTree, kl_coef: float) -> dict[str, Levels]:
    """Policies that look at most one step ahead, by name.

    Args:
        tree: of the task.
        kl_coef: β.

    Returns:
        `greedy_reference`: greedy decoding of the reference; `greedy_value`: the greatest
        Q^ref(s, a); `one_step_improvement`: π₁(a|s) ∝ π_ref(a|s)·exp(Q^ref(s, a)/β).
    """
    q_values = reference_values(tree)
    tilted = [
        log_probs + q / kl_coef for log_probs, q in zip(tree.ref_log_probs, q_values, strict=True)
    ]
    improved = [level - np.logaddexp.reduce(level, axis=-1)[..., None] for level in tilted]
    return {
        "greedy_reference": greedy_levels(tree.ref_log_probs),
        "greedy_value": greedy_levels(q_values),
        "one_step_improvement": improved,
    }


def fractions_by_prompt(policy: Levels, solution: Solution) -> np.ndarray:
    """(X,) (J − J_ref)/(J* − J_ref) of a policy for each prompt alone."""
    tree, kl_coef = solution.tree, solution.kl_coef
    scores = tree.finished(tree.scores)
    reference = tree.response_log_probs(tree.ref_log_probs)
    own = tree.response_log_probs(policy)
    with np.errstate(invalid="ignore"):  # −∞ − −∞
        objective = expectation(own, scores - kl_coef * (own - reference))
    worst = expectation(reference, scores)
    return (objective - worst) / (solution.optimum_by_prompt - worst)


def half_mass_probabilities(solution: Solution) -> np.ndarray:
    """(X,) π_ref of the smallest set of responses that holds half of π*'s mass, by prompt."""
    tree = solution.tree
    best = np.exp(tree.response_log_probs(solution.log_policy))
    reference = np.exp(tree.response_log_probs(tree.ref_log_probs))
    found = []
    for own, other in zip(best, reference, strict=True):
        order = np.argsort(-own)
        count = int(np.searchsorted(np.cumsum(own[order]), 0.5)) + 1
        found.append(other[order[:count]].sum())
    return np.array(found)


def measure_optimum(tree: PrefixTree) -> dict[str, Any]:
    """The exact optimum at the task's own β, and how far below it one-step policies stay."""
    solution = solve(tree)
    at_best = evaluate_exactly(solution.log_policy, solution)
    one_step = one_step_policies(tree, solution.kl_coef)
    prompts = range(len(tree.prompts))
    return {
        "kl_coef": solution.kl_coef,
        "prompts": len(tree.prompts),
        "optimum": solution.optimum,
        "optimum_lower_bound": solution.optimum,
        "objective": at_best.objective,
        "objective_reference": solution.objective_reference,
        "optimum_by_prompt": dict(
            zip(tree.prompts, solution.optimum_by_prompt.tolist(), strict=True)
        ),
        "kl": at_best.kl,
        "score": at_best.score,
        "optimum_gold": at_best.gold_reward,
        "reference_gold": at_best.gold_reward_reference,
        "half_mass_reference_probability": dict(
            zip(tree.prompts, half_mass_probabilities(solution).tolist(), strict=True)
        ),
        "most_likely": {
            tree.prompts[i]: {
                ranked.text: ranked.probability
                for ranked in rank_responses(tree, solution.log_policy, i, TOP)
            }
            for i in prompts
        },
        "objective_fractions": {
            name: fractions_by_prompt(policy, solution).tolist()
            for name, policy in one_step.items()
        },
    }
