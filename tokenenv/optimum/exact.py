"""The optimum of a token MDP whose states can all be enumerated, and any policy judged exactly.

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
from tokenenv.optimum.policies import Policy, policy_levels
from tokenenv.optimum.prefix_tree import Levels, PrefixTree, normalized
from tokenenv.settings import check_kl_coef

__all__ = [
    "ActionValues",
    "ExactEvaluation",
    "RankedResponse",
    "Solution",
    "Solvable",
    "evaluate_exactly",
    "expectation",
    "sequence_divergence",
    "solve",
    "tree_and_kl_coef",
    "true_advantages",
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


def sequence_divergence(tree: PrefixTree, log_policy: Levels, other: Levels) -> np.ndarray:
    """(X,) KL(π ‖ other) of whole responses: Σ_s d^π(s)·KL(π(·|s) ‖ other(·|s))."""
    total = np.zeros(len(tree.prompts))
    for t, state in enumerate(tree.state_log_probs(log_policy)):
        total += expectation(state, divergence(log_policy[t], other[t]))
    return total


def _mean(values: np.ndarray | None) -> float | None:
    return None if values is None else float(values.mean())


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
