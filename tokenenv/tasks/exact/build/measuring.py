"""Measurements on the models of `exact` for their card, all by enumeration."""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenenv.optimum import Levels, PrefixTree, evaluate_exactly, rank_responses, solve
from tokenenv.optimum.exact import expectation
from tokenenv.optimum.greedy_baselines import (
    fractions_by_prompt,
    half_mass_probabilities,
    one_step_policies,
)
from tokenenv.tasks.exact.gold import gold_breakdown
from tokenenv.tasks.exact.grammar import melody_log_prob

__all__ = [
    "cadence_probability",
    "measure_optimum",
    "measure_reference",
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
    stopped = tree.response_stopped.tolist()
    grammar = np.array(
        [
            [melody_log_prob([call, *text], end) for text, end in zip(texts, stopped, strict=True)]
            for call in tree.prompts
        ]
    )
    model = tree.response_log_probs(tree.ref_log_probs)
    entropy = float(-expectation(grammar, np.maximum(grammar, -1e9)).mean())
    cross_entropy = float(-expectation(grammar, model).mean())
    return {
        "cross_entropy_per_response": cross_entropy,
        "grammar_entropy_per_response": entropy,
        "cross_entropy_over_entropy": cross_entropy / entropy,
        "tokens_per_response": float(expectation(model, tree.response_lengths).mean()),
        "eos_rate": float(expectation(model, tree.response_stopped).mean()),
        "responses": tree.num_responses,
    }


def cadence_probability(tree: PrefixTree, log_policy: Levels) -> float:
    """How likely an answer of a policy ends in the full cadence and stops, mean over prompts."""
    decode = tree.language_model.decode
    texts = [decode(response) for response in tree.responses()]
    stopped = tree.response_stopped.tolist()
    is_cadence = np.array(
        [
            [
                gold_breakdown(c, text, end).cadence > 0
                for text, end in zip(texts, stopped, strict=True)
            ]
            for c in tree.prompts
        ]
    )
    return float(expectation(tree.response_log_probs(log_policy), is_cadence).mean())


def measure_optimum(tree: PrefixTree) -> dict[str, Any]:
    """The exact optimum at the β of the task, and how far below it one-step policies stay."""
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
        "reference_cadence_probability": cadence_probability(tree, tree.ref_log_probs),
        "optimum_cadence_probability": cadence_probability(tree, solution.log_policy),
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
