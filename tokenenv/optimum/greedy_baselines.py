"""The difficulty of a task: results of short-sighted policies, and probabilities of best responses.

A task on which they come near the optimum needs no planning and proves little about an agent.
"""

from __future__ import annotations

import numpy as np

from tokenenv.optimum.exact import Solution, expectation, sequence_divergence
from tokenenv.optimum.prefix_tree import Levels, PrefixTree, normalized

__all__ = ["fractions_by_prompt", "greedy_levels", "half_mass_probabilities", "one_step_policies"]


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
    improved = [normalized(level) for level in tilted]
    return {
        "greedy_reference": greedy_levels(tree.ref_log_probs),
        "greedy_value": greedy_levels(q_values),
        "one_step_improvement": improved,
    }


def fractions_by_prompt(policy: Levels, solution: Solution) -> np.ndarray:
    """(X,) (J − J_ref)/(J* − J_ref) of a policy for each prompt alone."""
    to_optimum = sequence_divergence(solution.tree, policy, solution.log_policy)
    return 1.0 - solution.kl_coef * to_optimum / solution.gain_by_prompt


def half_mass_probabilities(solution: Solution) -> np.ndarray:
    """(X,) π_ref of the smallest set of responses that holds half of π*'s mass, by prompt."""
    tree = solution.tree
    best = np.exp(tree.response_log_probs(solution.log_policy))
    reference = np.exp(tree.response_log_probs(tree.ref_log_probs))
    ref_probabilities = []
    for optimal, ref in zip(best, reference, strict=True):
        order = np.argsort(-optimal)
        count = int(np.searchsorted(np.cumsum(optimal[order]), 0.5)) + 1
        ref_probabilities.append(ref[order[:count]].sum())
    return np.array(ref_probabilities)
