"""The optimum of a token MDP whose states can all be enumerated.

The KL-regularised objective J(π) = E[R] − β·KL(π ‖ π_ref) has the optimum
π*(y|x) ∝ π_ref(y|x)·exp(R(x, y)/β) (Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, eq. 3;
Korbak et al. 2022, https://arxiv.org/abs/2205.11275), which soft backward induction finds token by
token (Levine 2018, https://arxiv.org/abs/1805.00909). Everything is float64; nothing is sampled.

The gain over the reference, V* − V^ref, is computed separately, in sums that keep their digits at
any β (`log_sums`): as β grows it becomes a difference of nearly equal numbers.

Axes and levels are those of `prefix_tree`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokenenv.optimum.enumeration import enumerate_task
from tokenenv.optimum.log_sums import divergence, log_tilted_sum
from tokenenv.optimum.prefix_tree import Levels, PrefixTree, normalized
from tokenenv.settings import check_kl_coef

__all__ = [
    "RankedResponse",
    "Solution",
    "Solvable",
    "expectation",
    "sequence_divergence",
    "solve",
    "tree_and_kl_coef",
]


@dataclass(frozen=True, slots=True)
class RankedResponse:
    """A finished response with its probability under some policy.

    Attributes:
        text: decoded.
        tokens: (n,) token ids.
        probability: of the whole response.
    """

    text: str
    tokens: np.ndarray
    probability: float


@dataclass(frozen=True)
class Solution:
    """The optimum of the KL-regularised objective.

    Attributes:
        tree: the token MDP.
        kl_coef: β.
        optimum: J*, mean over prompts.
        objective_reference: J_ref = E[R] under π_ref, mean over prompts.
        gain: J* − J_ref, right to rounding of itself at any β.
        optimum_by_prompt: (X,) J*(x).
        gain_by_prompt: (X,) J*(x) − J_ref(x).
        log_policy: T levels (X, C^t, V) of log π*(a|s).
        q_values: T levels (X, C^t, V) of Q*(s, a) = R at the end, V*(s') before it.
        values: T levels (X, C^t) of V*(s) = β·log Σ_a π_ref(a|s)·exp(Q*(s, a)/β).
    """

    tree: PrefixTree
    kl_coef: float
    optimum: float
    objective_reference: float
    gain: float
    optimum_by_prompt: np.ndarray
    gain_by_prompt: np.ndarray
    log_policy: Levels
    q_values: Levels
    values: Levels

    @property
    def has_gain(self) -> bool:
        """Whether the scores of the responses to some prompt differ, by more than rounding."""
        scores = self.tree.finished(self.tree.scores)
        return bool((np.ptp(scores, axis=1) > 1e-12 * np.abs(scores).max(axis=1)).any())

    def most_likely(self, prompt: int, count: int = 5) -> list[RankedResponse]:
        """The `count` most likely responses of π* to the prompt with that index, in order."""
        return rank_responses(self.tree, self.log_policy, prompt, count)

    def policy_between(self, share: float) -> Levels:
        """The policy that lies `share` of the way from the reference (0) to π* (1).

        Log-linear at every state: π(a|s) ∝ π_ref(a|s)^(1 − share)·π*(a|s)^share.

        Returns:
            T levels (X, C^t, V) of log-probabilities.
        """
        pairs = zip(self.tree.ref_log_probs, self.log_policy, strict=True)
        return [normalized((1.0 - share) * ref + share * best) for ref, best in pairs]


def rank_responses(
    tree: PrefixTree, log_policy: Levels, prompt: int, count: int
) -> list[RankedResponse]:
    """The `count` most likely responses of a policy to the prompt with that index."""
    probabilities = np.exp(tree.response_log_probs(log_policy)[prompt])
    best = np.argsort(-probabilities, kind="stable")[:count]
    responses = tree.responses()
    decode = tree.language_model.decode
    return [
        RankedResponse(decode(responses[i]), responses[i], float(probabilities[i])) for i in best
    ]


Solvable = str | PrefixTree | Solution
"""A task's name, its tree from `enumerate_task`, or its solution; the latter two save the work."""


def tree_and_kl_coef(task: Solvable, kl_coef: float | None) -> tuple[PrefixTree, float]:
    """The tree of a task, and β ≥ 0: the argument, else that of the solution or the task.

    Raises:
        ValueError: `task` is none of these or too large to enumerate, or β is negative.
    """
    solution_kl_coef = None
    if isinstance(task, Solution):
        tree, solution_kl_coef = task.tree, task.kl_coef
    elif isinstance(task, PrefixTree):
        tree = task
    elif isinstance(task, str):
        tree = enumerate_task(task)
    else:
        raise ValueError(
            f"a {type(task).__name__} is no task: give its name, its tree (enumerate_task) or its "
            "solution (solve)."
        )
    if kl_coef is not None:
        return tree, check_kl_coef(kl_coef)
    return tree, tree.kl_coef if solution_kl_coef is None else solution_kl_coef


def solve(task: Solvable, kl_coef: float | None = None) -> Solution:
    """The optimal policy by soft backward induction over the tree of prefixes.

    Args:
        task: name of a task, or its tree from `enumerate_task`, which saves enumerating it again.
        kl_coef: β > 0; None: that of the task.

    Raises:
        ValueError: the task is too large to enumerate, β is 0 or negative, or so small that R/β
            overflows.
    """
    tree, kl_coef = tree_and_kl_coef(task, kl_coef)
    _refuse_limits(tree, kl_coef)
    q_values: Levels = []
    values: Levels = []
    log_policy: Levels = []
    reference: np.ndarray | None = None  # V^ref
    gain: np.ndarray | None = None  # V* − V^ref
    for t in reversed(range(tree.depth)):
        log_probs = tree.ref_log_probs[t]
        q = np.where(tree.ending(t), tree.scores[t], tree.after(t, reference))
        reference = expectation(log_probs, q)
        gain_after = tree.after(t, gain)
        # The expectation of the advantages under the reference is 0, whatever they round to.
        tilt = (q - reference[:, :, None] + gain_after) / kl_coef
        normalizer = log_tilted_sum(log_probs, tilt, expectation(log_probs, gain_after / kl_coef))
        gain = kl_coef * normalizer
        q_values.insert(0, q + gain_after)
        values.insert(0, reference + gain)
        log_policy.insert(0, log_probs + (tilt - normalizer[:, :, None]))
    assert reference is not None and gain is not None
    return Solution(
        tree=tree,
        kl_coef=kl_coef,
        optimum=float(values[0].mean()),
        objective_reference=float(reference.mean()),
        gain=float(gain.mean()),
        optimum_by_prompt=values[0][:, 0],
        gain_by_prompt=gain[:, 0],
        log_policy=log_policy,
        q_values=q_values,
        values=values,
    )


# Parts -------------------------------------------------------------------------------------------


def action_rewards(tree: PrefixTree, log_policy: Levels, t: int, kl_coef: float) -> np.ndarray:
    """(X, C^t, V) r(s, a) with the KL of the policy, k1 as in training."""
    shaping = kl_coef * (log_policy[t] - tree.ref_log_probs[t]) if kl_coef else 0.0
    return np.where(tree.ending(t), tree.scores[t], 0.0) - shaping


def expectation(log_policy: np.ndarray, of_actions: np.ndarray) -> np.ndarray:
    """Σ_a π(a|s)·f(s, a) over the last axis; actions of probability 0 add 0, even where f = ∞."""
    probabilities = np.exp(log_policy)
    with np.errstate(invalid="ignore"):  # 0·∞
        return np.where(probabilities > 0, probabilities * of_actions, 0.0).sum(axis=-1)


def sequence_divergence(tree: PrefixTree, log_policy: Levels, other: Levels) -> np.ndarray:
    """(X,) KL(π ‖ other) of whole responses: Σ_s d^π(s)·KL(π(·|s) ‖ other(·|s))."""
    total = np.zeros(len(tree.prompts))
    for t, state in enumerate(tree.state_log_probs(log_policy)):
        total += expectation(state, divergence(log_policy[t], other[t]))
    return total


def _refuse_limits(tree: PrefixTree, kl_coef: float) -> None:
    """Raise ValueError where β is 0, or next to it."""
    if kl_coef == 0:
        raise ValueError(
            "kl_coef=0 has no soft optimum: as β → 0 the best policy puts everything on the "
            "response of the greatest score, max_y R(x, y). Give a positive kl_coef, or take "
            "tokenenv.optimum.plain_returns, whose optimum at kl_coef=0 is that score."
        )
    with np.errstate(over="ignore"):
        greatest = float(np.abs(tree.finished(tree.scores)).max()) / kl_coef
    if not np.isfinite(greatest * kl_coef) or greatest > 1e300:
        raise ValueError(
            f"kl_coef={kl_coef} is too small: R/β overflows. Give a greater one, or take "
            "tokenenv.optimum.plain_returns at kl_coef=0, the limit."
        )
