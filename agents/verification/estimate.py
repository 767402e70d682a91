"""Checks of the sampled bound on J*, for policies whose true fraction is known."""

from __future__ import annotations

import numpy as np

from agents.verification.checks import Check, states
from tokenenv.optimum import (
    Comparison,
    Levels,
    Solution,
    compare,
    evaluate_exactly,
    sample_tree_mixture,
)

__all__ = ["collapsed", "estimate_checks", "restricted"]

RESPONSES = 64 * 256
"""Responses to all prompts together, as many as `tokenrlhf evaluate` samples."""


def collapsed(solution: Solution) -> Levels:
    """The policy that knows one response to each prompt: the most likely one of π*."""
    tree = solution.tree
    levels = [np.full(tree.shape(t), -np.inf) for t in range(tree.depth)]
    for level in levels:
        level[..., tree.eos[0]] = 0.0  # where it never comes
    for row in range(len(tree.prompts)):
        tokens = solution.most_likely(row, 1)[0].tokens
        for t, token in enumerate(tokens):
            state = tree.locate_state(tokens[:t])
            levels[t][row, state] = -np.inf
            levels[t][row, state, token] = 0.0
    return levels


def restricted(solution: Solution, token: int) -> Levels:
    """π* conditioned on its first token."""
    first = np.full_like(solution.log_policy[0], -np.inf)
    first[..., token] = 0.0
    return [first, *solution.log_policy[1:]]


def estimate_checks(solution: Solution) -> list[Check]:
    """The sampled fraction is right where it does not warn, and the bound is a bound."""
    tree = solution.tree
    likely = tree.continuing[np.argsort(-solution.log_policy[0][0, 0][tree.continuing])]
    decode = tree.language_model.decode
    branches = {f"π* after {decode([a])!r}": restricted(solution, int(a)) for a in likely[:2]}
    checks: list[Check] = []
    for name, policy in {
        "nearly optimal": solution.policy_between(0.95),
        "half-trained": solution.policy_between(0.5),
    }.items():
        checks += _of_a_broad_policy(name, policy, solution)
    checks.append(_of_a_narrow_policy("one response", collapsed(solution), solution, True))
    checks += [
        _of_a_narrow_policy(name, branch, solution, False) for name, branch in branches.items()
    ]
    return checks


def _estimate(policy: Levels, solution: Solution) -> tuple[float, Comparison]:
    """The true fraction, and what is estimated from samples."""
    per_prompt = 2 * (RESPONSES // len(solution.tree.prompts) // 2)
    samples = sample_tree_mixture(policy, solution.tree, per_prompt, seed=0)
    exact = evaluate_exactly(policy, solution).objective_fraction
    assert exact is not None
    return exact, compare(samples, solution.kl_coef)


def _said(comparison: Comparison) -> str:
    return f"{comparison.objective_fraction:.3f}" + ("" if comparison.is_reliable else ", warns")


def _of_a_broad_policy(name: str, policy: Levels, solution: Solution) -> list[Check]:
    """It has all of the optimum's modes: the estimate must be right, and say so."""
    exact, comparison = _estimate(policy, solution)
    assert comparison.objective_fraction is not None and comparison.optimum_lower_bound is not None
    assert comparison.optimum_interval is not None
    low, high = comparison.optimum_interval
    near_below = solution.optimum - 0.05 * (solution.optimum - solution.objective_reference)
    return [
        states(
            f"sampled fraction, {name}",
            f"{exact:.3f} ± 0.05, no warning",
            _said(comparison),
            abs(comparison.objective_fraction - exact) <= 0.05 and comparison.is_reliable,
        ),
        states(
            f"sampled bound on J*, {name}",
            f"≥ {near_below:.3f}; its interval's low end ≤ {solution.optimum:.3f}",
            f"{comparison.optimum_lower_bound:.3f} ({low:.3f} … {high:.3f})",
            comparison.optimum_lower_bound >= near_below and low <= solution.optimum,
        ),
    ]


def _of_a_narrow_policy(name: str, policy: Levels, solution: Solution, must_warn: bool) -> Check:
    """It lacks modes: the estimate warns, or happens to be right."""
    exact, comparison = _estimate(policy, solution)
    assert comparison.objective_fraction is not None and comparison.optimum_interval is not None
    is_bound = comparison.optimum_interval[0] <= solution.optimum
    is_right = abs(comparison.objective_fraction - exact) <= 0.1 and not must_warn
    return states(
        f"sampled fraction, {name}",
        "a warning" if must_warn else f"{exact:.3f} ± 0.1, or a warning",
        _said(comparison),
        is_bound and (is_right or not comparison.is_reliable),
    )
