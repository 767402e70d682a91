"""Exact policy gradients over the tree, for a policy whose logits are free at every state.

With one logit per state and action, ∂ log π(a'|s)/∂ logit(s,a) = [a = a'] − π(a|s), and the policy
gradient theorem (Sutton et al. 2000) gives d^π(s)·π(a|s)·(Q(s,a) − V(s)) for any reward that is
held fixed. So the effect of a reward or a loss on the policy can be computed without sampling.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tokenenv.optimum.exact import expectation
from tokenenv.optimum.prefix_tree import Levels, PrefixTree, normalized

__all__ = ["directional_derivative", "inner_product", "loss_gradient", "reward_gradient"]


def reward_gradient(tree: PrefixTree, log_policy: Levels, rewards: Levels) -> Levels:
    """∂E[Σ_t r(s_t, a_t)]/∂logit(s, a) with rewards held fixed, as REINFORCE estimates it.

    Args:
        tree: of the token MDP.
        log_policy: T levels (X, C^t, V).
        rewards: T levels (X, C^t, V), finite.

    Returns:
        T levels (X, C^t, V), of the mean over prompts.
    """
    gradient: Levels = []
    visits = [np.exp(level) / len(tree.prompts) for level in tree.state_log_probs(log_policy)]
    after: np.ndarray | None = None
    for t in reversed(range(tree.depth)):
        q = rewards[t] + tree.after(t, after)
        after = expectation(log_policy[t], q)
        gradient.insert(0, visits[t][:, :, None] * np.exp(log_policy[t]) * (q - after[:, :, None]))
    return gradient


def loss_gradient(tree: PrefixTree, log_policy: Levels, slopes: Levels) -> Levels:
    """E[Σ_t ∂f(log π(a_t|s_t))/∂logit(s, a)]: the mean gradient of a loss over sampled tokens.

    The states are held fixed, as for a loss on a batch.

    Args:
        tree: of the token MDP.
        log_policy: T levels (X, C^t, V).
        slopes: T levels (X, C^t, V) of f′, the loss's derivative by log π(a|s).

    Returns:
        T levels (X, C^t, V), of the mean over prompts.
    """
    visits = [np.exp(level) / len(tree.prompts) for level in tree.state_log_probs(log_policy)]
    return [
        d[:, :, None] * np.exp(p) * (slope - expectation(p, slope)[:, :, None])
        for d, p, slope in zip(visits, log_policy, slopes, strict=True)
    ]


def inner_product(one: Levels, other: Levels) -> float:
    """Over all states and actions."""
    return sum(float((a * b).sum()) for a, b in zip(one, other, strict=True))


def directional_derivative(
    function: Callable[[Levels], float], log_policy: Levels, direction: Levels, step: float = 1e-5
) -> float:
    """d/dε of a function of the policy as its logits move by ε·direction, by central difference.

    Args:
        function: of T levels of log-probabilities.
        log_policy: T levels (X, C^t, V), where.
        direction: T levels (X, C^t, V), of the logits.
        step: ε.
    """
    ahead, behind = (
        function([normalized(p + side * d) for p, d in zip(log_policy, direction, strict=True)])
        for side in (step, -step)
    )
    return (ahead - behind) / (2 * step)
