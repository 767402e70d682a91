"""The laboratory for bias and variance: an advantage estimate against the true advantage.

On a task whose states can all be enumerated, mean and variance of GAE(γ, λ) given state and action
follow from the tree by recursion, so nothing here is sampled: transitions are deterministic, hence

    E[Â|s,a]   = δ(s,a) + γλ·Σ_a' π(a'|s')·E[Â|s',a']
    Var[Â|s,a] = (γλ)²·Var_{a' ~ π(·|s')}(E[Â|s',a']) + (γλ)²·E_{a' ~ π(·|s')}[Var[Â|s',a']]

with δ(s,a) = r(s,a) + γ·V̂(s') − V̂(s) (Schulman et al. 2015, https://arxiv.org/abs/1506.02438).
The critic is V̂(s) = V^π(s) + e(s) with an error e of a set size. The reference is the true A^π of
the undiscounted objective, with the policy's KL in the reward.

Two kinds of bias: the raw one, E[Â|s,a] − A^π(s,a), and the one that reaches the policy gradient.
A term of the state alone moves all its actions alike and cancels in Σ_a ∇π(a|s)·Â, so the
second is of E[Â|s,a] minus its mean over a ~ π. At λ = γ = 1 the raw bias is −e(s), that of the
gradient 0.

The error adds variance too, but neither at λ = 0 nor, at γ = 1, at λ = 1, where it telescopes away.
So the variance rises with λ for a critic that is right or nearly so; for a very wrong one it is
greatest at some λ in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenenv.optimum.exact import Solvable, action_rewards, expectation, tree_and_kl_coef
from tokenenv.optimum.exact_evaluation import true_advantages
from tokenenv.optimum.policies import Policy, policy_levels
from tokenenv.optimum.prefix_tree import Levels, PrefixTree
from tokenenv.ranges import FRACTION, WEIGHT, check_ranges

__all__ = [
    "CRITIC_ERRORS",
    "GAMMAS",
    "LAMBDAS",
    "AdvantageError",
    "advantage_moments",
    "measure_advantages",
]

LAMBDAS = (0.0, 0.5, 0.9, 0.95, 0.99, 1.0)
GAMMAS = (1.0, 0.99)
CRITIC_ERRORS = (0.0, 0.1, 0.3, 1.0)


@dataclass(frozen=True, slots=True)
class AdvantageError:
    """How far GAE is from the true advantage, over the tokens that the policy generates.

    Attributes:
        critic_error: standard deviation of e(s), in standard deviations of V^π over tokens.
        gamma: γ.
        gae_lambda: λ.
        raw_bias: root mean square of E[Â|s,a] − A^π(s,a).
        gradient_bias: the same after subtracting the mean over a ~ π: the bias of the gradient.
        variance: mean of Var[Â|s,a].
    """

    critic_error: float
    gamma: float
    gae_lambda: float
    raw_bias: float
    gradient_bias: float
    variance: float

    @property
    def total_error(self) -> float:
        """Mean squared error on the gradient's scale: gradient_bias² + variance."""
        return self.gradient_bias**2 + self.variance


def advantage_moments(
    log_policy: Levels,
    values: Levels,
    tree: PrefixTree,
    kl_coef: float,
    gamma: float,
    gae_lambda: float,
) -> tuple[Levels, Levels]:
    """E[Â|s,a] and Var[Â|s,a] of GAE(γ, λ) with a critic, exactly.

    Args:
        log_policy: T levels (X, C^t, V), π, which samples the following tokens.
        values: T levels (X, C^t), the critic's V̂(s).
        tree: of the token MDP.
        kl_coef: β.
        gamma: γ.
        gae_lambda: λ.

    Returns:
        T levels (X, C^t, V) of means, and as many of variances.
    """
    means: Levels = []
    variances: Levels = []
    mean_after = variance_after = value_after = None
    decay = gamma * gae_lambda
    for t in reversed(range(tree.depth)):
        rewards = action_rewards(tree, log_policy, t, kl_coef)
        delta = rewards + gamma * tree.after(t, value_after) - values[t][:, :, None]
        mean = delta + decay * tree.after(t, mean_after)
        variance = decay**2 * tree.after(t, variance_after)
        means.insert(0, mean)
        variances.insert(0, variance)
        mean_after = expectation(log_policy[t], mean)
        variance_of_means = expectation(log_policy[t], np.square(mean - mean_after[:, :, None]))
        variance_after = variance_of_means + expectation(log_policy[t], variance)
        value_after = values[t]
    return means, variances


def measure_advantages(
    policy: Policy,
    task: Solvable,
    kl_coef: float | None = None,
    critic_errors: Sequence[float] = CRITIC_ERRORS,
    gammas: Sequence[float] = GAMMAS,
    lambdas: Sequence[float] = LAMBDAS,
    seed: int = 0,
) -> list[AdvantageError]:
    """Bias and variance of GAE for critics of several qualities, for each γ and λ.

    Args:
        policy: see `policy_levels`; it must give every token some probability.
        task: name of a task, its tree or its solution.
        kl_coef: β ≥ 0; None: that of the solution or the task.
        critic_errors: standard deviations of e(s), in those of V^π over the tokens of the policy.
        gammas: γ.
        lambdas: λ.
        seed: of e(s), which is one draw from N(0, 1) per state, the same for all of them.

    Raises:
        ValueError: the policy never takes some token, so that its true advantage is infinite; γ or
            λ lies outside 0 … 1; a critic's error is negative; or as `solve`.
    """
    _check_ranges(critic_errors, gammas, lambdas)
    tree, kl_coef = tree_and_kl_coef(task, kl_coef)
    log_policy = policy_levels(policy, tree)
    if not all(np.isfinite(level).all() for level in log_policy):
        raise ValueError(
            "the policy gives some token no probability: its true advantage has no finite value "
            "there. Take a policy with full support, such as Solution.policy_between(0.5)."
        )
    truth = true_advantages(log_policy, tree, kl_coef)
    tokens = _Tokens(tree, log_policy)
    scale = np.sqrt(tokens.mean([np.square(v) for v in _centred(truth.values, tokens)]))
    rng = np.random.default_rng(seed)
    draws = [rng.standard_normal(value.shape) for value in truth.values]
    errors = []
    for size in critic_errors:
        values = [v + size * scale * e for v, e in zip(truth.values, draws, strict=True)]
        for gamma in gammas:
            for gae_lambda in lambdas:
                moments = advantage_moments(log_policy, values, tree, kl_coef, gamma, gae_lambda)
                bias, gradient_bias, variance = _sizes(moments, truth.advantages, tokens)
                error = AdvantageError(size, gamma, gae_lambda, bias, gradient_bias, variance)
                errors.append(error)
    return errors


def _check_ranges(
    critic_errors: Sequence[float], gammas: Sequence[float], lambdas: Sequence[float]
) -> None:
    listed = (
        ("gammas", gammas, FRACTION),
        ("lambdas", lambdas, FRACTION),
        ("critic_errors", critic_errors, WEIGHT),
    )
    for name, values, allowed in listed:
        for i, value in enumerate(values):
            check_ranges({f"{name}[{i}]": value}, {f"{name}[{i}]": allowed})


def _sizes(
    moments: tuple[Levels, Levels], advantages: Levels, tokens: _Tokens
) -> tuple[float, float, float]:
    """Bias, bias that the gradient sees, variance: of (mean, variance) per state and action."""
    means, variances = moments
    bias = [mean - advantage for mean, advantage in zip(means, advantages, strict=True)]
    gradient_bias = [
        b - expectation(log_probs, b)[:, :, None]
        for b, log_probs in zip(bias, tokens.log_policy, strict=True)
    ]
    raw, seen = (
        float(np.sqrt(tokens.mean_over_actions([np.square(level) for level in levels])))
        for levels in (bias, gradient_bias)
    )
    return raw, seen, float(tokens.mean_over_actions(variances))


class _Tokens:
    """Means over the tokens that a policy generates, prompts drawn uniformly."""

    def __init__(self, tree: PrefixTree, log_policy: Levels) -> None:
        self.log_policy = log_policy
        self.visits = [np.exp(level) for level in tree.state_log_probs(log_policy)]
        self.count = sum(float(level.sum()) for level in self.visits)

    def mean(self, of_states: Levels) -> float:
        """Mean over states of T levels (X, C^t)."""
        pairs = zip(self.visits, of_states, strict=True)
        return sum(float((visits * level).sum()) for visits, level in pairs) / self.count

    def mean_over_actions(self, of_actions: Levels) -> float:
        """Mean over states and a ~ π of T levels (X, C^t, V)."""
        pairs = zip(self.log_policy, of_actions, strict=True)
        return self.mean([expectation(log_probs, level) for log_probs, level in pairs])


def _centred(values: Levels, tokens: _Tokens) -> Levels:
    mean = tokens.mean(values)
    return [level - mean for level in values]
