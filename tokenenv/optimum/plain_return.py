"""The other scale: the plain return E[Σ r_t] of the environment, for agents that know nothing of π.

The environment's reward r_t = β·log π_ref(a_t|s_t) + [t is last]·R(x, y) is a function of state and
action alone, so the best policy of an agent without an entropy or KL term is deterministic; hard
backward induction finds it. It is another policy than π*: π* keeps much of the reference's
randomness, which costs plain return, so a perfect RLHF policy is *not* optimal here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokenenv.optimum.exact import Solvable, expectation, solve, tree_and_kl_coef
from tokenenv.optimum.mixture import objective_fraction
from tokenenv.optimum.policies import Policy, policy_levels
from tokenenv.optimum.prefix_tree import Levels, PrefixTree

__all__ = ["PlainReturns", "plain_return", "plain_returns"]


@dataclass(frozen=True)
class PlainReturns:
    """Landmarks on the scale of the plain return, means over prompts.

    Attributes:
        optimum: max over all policies of E[Σ r_t]; 1 on the scale.
        reference: of sampling from the reference; 0 on the scale.
        uniform: of the uniform policy.
        constant_action: of always taking the same token, the best one.
        constant_token: that token's id.
        rlhf_optimum: of π*, the optimum of J; None at β = 0, where it is the same policy.
        best_actions: T levels (X, C^t), the optimal token id in each state.
    """

    optimum: float
    reference: float
    uniform: float
    constant_action: float
    constant_token: int
    rlhf_optimum: float | None
    best_actions: Levels

    def fraction(self, plain_return: float) -> float | None:
        """Where a plain return lies between the reference (0) and the optimum (1).

        None where the reference is optimal already.
        """
        return objective_fraction(plain_return, self.reference, self.optimum)


def plain_returns(task: Solvable, kl_coef: float | None = None) -> PlainReturns:
    """The plain-return optimum, and other policies on that scale.

    Args:
        task: name of a task, its tree or its solution.
        kl_coef: β ≥ 0 of the environment; None: that of the solution or the task.

    Raises:
        ValueError: the task is too large to enumerate, or β is negative.
    """
    tree, kl_coef = tree_and_kl_coef(task, kl_coef)
    best_actions: Levels = []
    after: np.ndarray | None = None
    for t in reversed(range(tree.depth)):
        q = _rewards(tree, t, kl_coef) + tree.after(t, after)
        after = q.max(axis=-1)
        best_actions.insert(0, q.argmax(axis=-1))
    assert after is not None
    uniform = [np.full(tree.shape(t), -np.log(tree.vocabulary_size)) for t in range(tree.depth)]
    constant = [_mean_return(tree, _always(tree, a), kl_coef) for a in range(tree.vocabulary_size)]
    return PlainReturns(
        optimum=float(after.mean()),
        reference=_mean_return(tree, tree.ref_log_probs, kl_coef),
        uniform=_mean_return(tree, uniform, kl_coef),
        constant_action=max(constant),
        constant_token=int(np.argmax(constant)),
        rlhf_optimum=_mean_return(tree, solve(tree, kl_coef).log_policy, kl_coef)
        if kl_coef
        else None,
        best_actions=best_actions,
    )


def plain_return(policy: Policy, task: Solvable, kl_coef: float | None = None) -> float:
    """E[Σ r_t] of a policy under the reward of the environment, by enumeration; mean over prompts.

    Args:
        policy: see `policy_levels`.
        task: name of a task, its tree or its solution.
        kl_coef: β ≥ 0; None: that of the solution or the task.

    Raises:
        ValueError: `policy` is none, the task is too large to enumerate, or β is negative.
    """
    tree, kl_coef = tree_and_kl_coef(task, kl_coef)
    return _mean_return(tree, policy_levels(policy, tree), kl_coef)


def _rewards(tree: PrefixTree, t: int, kl_coef: float) -> np.ndarray:
    """(X, C^t, V) r(s, a) of the environment."""
    paid = np.where(tree.ending(t), tree.scores[t], 0.0)
    return paid + (kl_coef * tree.ref_log_probs[t] if tree.settings.kl_shaping == "k1" else 0.0)


def _mean_return(tree: PrefixTree, log_policy: Levels, kl_coef: float) -> float:
    states = tree.state_log_probs(log_policy)
    total = 0.0
    for t, state in enumerate(states):
        rewards = expectation(log_policy[t], _rewards(tree, t, kl_coef))
        total += float(expectation(state, rewards).mean())
    return total


def _always(tree: PrefixTree, action: int) -> Levels:
    """The policy that takes one token whatever the state."""
    row = np.full(tree.vocabulary_size, -np.inf)
    row[action] = 0.0
    return [np.broadcast_to(row, tree.shape(t)) for t in range(tree.depth)]
