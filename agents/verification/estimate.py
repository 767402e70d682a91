"""Checks of the sampled bound on J*, for policies whose true place is known."""

from __future__ import annotations

import numpy as np

from agents.verification.checks import Check, states
from tokenenv.optimum import Levels, Solution, compare, evaluate_exactly, sample_tree_mixture

__all__ = ["collapsed", "estimate_checks", "restricted"]

RESPONSES = 64 * 256
"""Of all prompts together, as many as `tokenrlhf evaluate` takes."""


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
    """π* given its first token."""
    first = np.full_like(solution.log_policy[0], -np.inf)
    first[..., token] = 0.0
    return [first, *solution.log_policy[1:]]


def estimate_checks(solution: Solution) -> list[Check]:
    """The sampled fraction is right or warns, and the bound is a bound."""
    tree = solution.tree
    per_prompt = 2 * (RESPONSES // len(tree.prompts) // 2)
    policies: dict[str, Levels] = {
        "nearly optimal": solution.policy_between(0.95),
        "half-trained": solution.policy_between(0.5),
        "collapsed to one response": collapsed(solution),
    }
    for token in tree.continuing[np.argsort(-solution.log_policy[0][0, 0][tree.continuing])][:2]:
        text = tree.language_model.decode([token])
        policies[f"π* given the first token {text!r}"] = restricted(solution, int(token))
    checks = []
    for name, policy in policies.items():
        exact = evaluate_exactly(policy, solution)
        found = compare(sample_tree_mixture(policy, tree, per_prompt, seed=0), solution.kl_coef)
        assert found.objective_fraction is not None and found.optimum_interval is not None
        assert exact.objective_fraction is not None
        off = abs(found.objective_fraction - exact.objective_fraction)
        said = f"{found.objective_fraction:.3f}" + ("" if found.is_reliable else ", warns")
        checks.append(
            states(
                f"sampled objective_fraction, {name}",
                f"{exact.objective_fraction:.3f} ± 0.1, or a warning",
                said,
                off <= 0.1 or not found.is_reliable,
            )
        )
        checks.append(
            states(
                f"sampled bound on J*, {name}: below the truth",
                f"lower end ≤ {solution.optimum:.3f}",
                f"{found.optimum_interval[0]:.3f} … {found.optimum_interval[1]:.3f}",
                found.optimum_interval[0] <= solution.optimum,
            )
        )
    return checks
