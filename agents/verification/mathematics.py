"""Checks of the mathematics on the exact task: every number two ways, nothing sampled."""

from __future__ import annotations

import itertools

import numpy as np

from agents.verification.checks import Check, at_least, at_most, near, states
from tokenenv.maths import (
    AdaptiveKL,
    DualKL,
    full_kl,
    generalized_advantages,
    group_advantages,
    k1,
    k2,
    k3,
    leave_one_out_advantages,
)
from tokenenv.optimum import (
    Levels,
    PrefixTree,
    Solution,
    evaluate_exactly,
    plain_returns,
    solve,
    true_advantages,
)
from tokenenv.optimum.bias_variance import measure_advantages
from tokenenv.optimum.exact import action_rewards, expectation
from tokenenv.optimum.gradients import (
    directional_derivative,
    inner_product,
    loss_gradient,
    reward_gradient,
)
from tokenenv.optimum.greedy_baselines import half_mass_probabilities, one_step_policies
from tokenenv.optimum.prefix_tree import normalized

__all__ = ["advantage_checks", "controller_checks", "kl_checks", "optimum_checks", "task_checks"]


def random_policy(tree: PrefixTree, rng: np.random.Generator, scale: float = 1.0) -> Levels:
    """Log-probabilities near the reference's, with noise of deviation `scale` on the logits."""
    logits = [level + scale * rng.standard_normal(level.shape) for level in tree.ref_log_probs]
    return [normalized(level) for level in logits]


def task_checks(solution: Solution) -> list[Check]:
    """The exact task is hard enough to mean something, and not so hard that it means nothing."""
    tree = solution.tree
    half = half_mass_probabilities(solution)
    fractions = {
        name: evaluate_exactly(policy, solution).objective_fraction or 0.0
        for name, policy in one_step_policies(tree, solution.kl_coef).items()
    }
    margins = []
    for row in range(len(tree.prompts)):
        best = [response.probability for response in solution.most_likely(row, 5)]
        margins += [one / other for one, other in itertools.pairwise(best)]
    return [
        states(
            "π_ref of the responses that hold half of π*'s mass, least and greatest prompt",
            "0.001 … 0.01",
            f"{half.min():.4f} … {half.max():.4f}",
            half.min() >= 1e-3 and half.max() <= 1e-2,
        ),
        at_least("the five likeliest responses of π* differ by a factor of", min(margins), 1.2),
        *(
            at_most(
                f"looks one step ahead and fails: {name.replace('_', ' ')}",
                fraction,
                0.5,
            )
            for name, fraction in fractions.items()
        ),
    ]


def optimum_checks(solution: Solution) -> list[Check]:
    """J*, π*, and what other policies are worth."""
    tree, kl_coef = solution.tree, solution.kl_coef
    reference = tree.response_log_probs(tree.ref_log_probs)
    scores = tree.finished(tree.scores)
    tilted = reference + scores / kl_coef
    partition = np.logaddexp.reduce(tilted, axis=1)
    log_ratio = tree.response_log_probs(solution.log_policy) - (tilted - partition[:, None])
    rng = np.random.default_rng(0)
    errors = []
    for scale in (0.3, 1.0, 3.0):
        evaluation = evaluate_exactly(random_policy(tree, rng, scale), solution)
        errors.append(
            abs(evaluation.optimum - evaluation.objective - kl_coef * evaluation.kl_to_optimum)
        )
    wide, narrow = solve(tree, 1e6), solve(tree, 1e-4)
    plain = plain_returns(solution)
    order = (plain.uniform, plain.reference, plain.rlhf_optimum or 0.0, plain.optimum)
    return [
        near(
            f"probabilities of all {tree.num_responses:,} responses sum to 1 per prompt",
            float(np.exp(reference).sum(axis=1).mean()),
            1.0,
            1e-10,
        ),
        near(
            "J* by soft backward induction = β·log Σ π_ref·exp(R/β), all responses",
            solution.optimum,
            float(kl_coef * partition.mean()),
            1e-10,
        ),
        at_most(
            "π* by induction = π_ref·exp(R/β)/Z, largest difference in log π*",
            float(np.abs(log_ratio).max()),
            1e-9,
        ),
        at_most("β → ∞ gives the reference: KL(π* ‖ π_ref) at β = 10⁶", _kl(wide), 1e-8),
        near(
            "β → 0 gives the best score: J* at β = 10⁻⁴",
            narrow.optimum,
            float(scores.max(axis=1).mean()),
            2e-3,
        ),
        at_most("J* − J = β·KL(π ‖ π*), random policies", max(errors), 1e-8),
        states(
            "plain return: uniform < reference < π* < its own optimum",
            "in this order",
            " < ".join(f"{value:.2f}" for value in order),
            list(order) == sorted(order),
        ),
    ]


def _kl(solution: Solution) -> float:
    return evaluate_exactly(solution.log_policy, solution).kl


def kl_checks(solution: Solution) -> list[Check]:
    """Means and gradients of the KL estimators."""
    tree, reference = solution.tree, solution.tree.ref_log_probs
    policy = solution.policy_between(0.5)
    log_ratio = [p - r for p, r in zip(policy, reference, strict=True)]
    # Over whole responses here, over states and actions below.
    log_probs, ref_log_probs = (tree.response_log_probs(levels) for levels in (policy, reference))
    exact = float(expectation(log_probs, log_probs - ref_log_probs).mean())
    full = [
        np.repeat(full_kl(p, r)[:, :, None], tree.vocabulary_size, axis=2)
        for p, r in zip(policy, reference, strict=True)
    ]

    def mean(per_token: Levels) -> float:
        visits = [np.exp(level) for level in tree.state_log_probs(policy)]
        parts = zip(visits, policy, per_token, strict=True)
        return sum(float((d * expectation(p, f)).sum()) for d, p, f in parts) / len(tree.prompts)

    checks = [
        near(f"E[Σ {name}] = KL(π ‖ π_ref) by enumeration", mean(levels), exact, 1e-10)
        for name, levels in (
            ("k1", [k1(r) for r in log_ratio]),
            ("k3", [k3(r) for r in log_ratio]),
            ("full", full),
        )
    ]
    checks.append(
        at_least(
            "E[Σ k2] is not the KL: its bias, in nats",
            abs(mean([k2(r) for r in log_ratio]) - exact),
            0.01,
        )
    )
    return [*checks, *_kl_gradient_checks(solution, policy, log_ratio, full)]


def _kl_gradient_checks(
    solution: Solution, policy: Levels, log_ratio: Levels, full: Levels
) -> list[Check]:
    """Which estimator moves the policy along the gradient of the sequence's KL, and where."""
    tree = solution.tree
    rng = np.random.default_rng(2)
    direction = [rng.standard_normal(level.shape) for level in policy]
    truth = directional_derivative(
        lambda levels: evaluate_exactly(levels, solution).kl, policy, direction
    )
    objective = directional_derivative(
        lambda levels: evaluate_exactly(levels, solution).objective, policy, direction
    )
    rewards = [action_rewards(tree, policy, t, solution.kl_coef) for t in range(tree.depth)]
    in_reward = {
        name: inner_product(reward_gradient(tree, policy, levels), direction)
        for name, levels in (
            ("k1", [k1(r) for r in log_ratio]),
            ("k3", [k3(r) for r in log_ratio]),
            ("full", full),
        )
    }
    # Slopes by log π: of ½ρ² it is ρ, of exp(−ρ) − 1 + ρ it is 1 − exp(−ρ).
    as_loss = {
        "k2": inner_product(loss_gradient(tree, policy, log_ratio), direction),
        "k3": inner_product(
            loss_gradient(tree, policy, [1 - np.exp(-r) for r in log_ratio]), direction
        ),
    }
    tolerance = 1e-6
    return [
        near(
            "policy gradient theorem: Σ d·π·A^π along a direction = dJ by differences",
            inner_product(reward_gradient(tree, policy, rewards), direction),
            objective,
            tolerance,
        ),
        near("k1 in the reward has the KL's gradient", in_reward["k1"], truth, tolerance),
        near(
            "full in the reward + k2 (= full) as a loss have it together",
            in_reward["full"] + as_loss["k2"],
            truth,
            tolerance,
        ),
        at_least(
            "k3 in the reward has not: relative error of its gradient",
            abs(in_reward["k3"] / truth - 1),
            0.01,
        ),
        at_least(
            "k3 as a loss has not that of KL(π ‖ π_ref): relative difference",
            abs(as_loss["k3"] / as_loss["k2"] - 1),
            0.01,
        ),
    ]


def advantage_checks(solution: Solution) -> list[Check]:
    """Advantage estimates against the true advantage, and worked examples."""
    tree, policy = solution.tree, solution.policy_between(0.5)
    best = true_advantages(solution.log_policy, tree, solution.kl_coef)
    lambdas = tuple(np.linspace(0, 1, 11).tolist())
    errors = (0.0, 0.5, 1.0, 4.0)
    rows = measure_advantages(
        policy, tree, solution.kl_coef, errors, gammas=(1.0,), lambdas=lambdas
    )
    by = {(row.critic_error, row.gae_lambda): row for row in rows}
    optimal = [min(lambdas, key=lambda lam: by[e, lam].total_error) for e in errors]
    return [
        at_most(
            "at π* every action is worth the same: largest |A| in the first state",
            float(np.abs(best.advantages[0]).max()),
            1e-8,
        ),
        at_most(
            "a perfect critic leaves no λ biased: largest bias",
            max(by[0.0, lam].raw_bias for lam in lambdas),
            1e-8,
        ),
        at_most(
            "λ = 1 has no gradient bias, whatever the critic's error",
            max(by[e, 1.0].gradient_bias for e in errors),
            1e-8,
        ),
        states(
            "variance rises with λ, for critic errors up to 1",
            "rising from 0",
            f"{by[0.5, 0.0].variance:.3g} … {by[0.5, 1.0].variance:.3g}",
            all(
                by[e, 0.0].variance == 0.0
                and np.all(np.diff([by[e, lam].variance for lam in lambdas]) >= 0)
                for e in errors
                if e <= 1
            ),
        ),
        near(
            "at λ = 1 the critic's error adds no variance: error 4 against none",
            by[4.0, 1.0].variance,
            by[0.0, 1.0].variance,
            1e-9,
        ),
        states(
            f"the best λ rises with the critic's error ({', '.join(f'{e:g}' for e in errors)})",
            "rising from 0",
            ", ".join(f"{lam:.1f}" for lam in optimal),
            optimal == sorted(optimal) and optimal[0] == 0.0 < optimal[-1],
        ),
        *_worked_examples(),
    ]


def _worked_examples() -> list[Check]:
    """Advantage estimators, worked by hand."""
    worked = generalized_advantages(
        np.array([[0.0, 0.0, 1.0]]),
        np.array([[0.3, 0.5, 0.8]]),
        np.array([3]),
        np.zeros(1),
        0.99,
        0.95,
    )
    group = np.array([[1.0, 2.0, 3.0, 6.0]])
    leave_one_out = leave_one_out_advantages(group)[0]
    expected = np.array([1 - 11 / 3, 2 - 10 / 3, 3 - 9 / 3, 6 - 6 / 3])
    return [
        # δ₃ = .2; δ₂ = .99·.8 − .5 = .292; A₂ = .292 + .9405·.2 = .4801;
        # δ₁ = .99·.5 − .3 = .195; A₁ = .195 + .9405·.4801 = .64653405.
        near("GAE(0.99, 0.95), a worked example", float(worked[0, 0]), 0.64653405, 1e-9),
        at_most(
            "RLOO of returns 1, 2, 3, 6: each minus the mean of the others",
            float(np.abs(leave_one_out - expected).max()),
            1e-12,
        ),
        near(
            "group (GRPO) of the same: standardised, sums to",
            float(group_advantages(group).sum()),
            0.0,
            1e-9,
        ),
    ]


def controller_checks() -> list[Check]:
    """KL controllers, worked by hand."""
    adaptive, dual = AdaptiveKL(target=6.0, horizon=1000), DualKL(target=6.0, rate=0.1)
    return [
        # error (6.6 − 6)/6 = 0.1; 0.05·(1 + 0.1·100/1000) = 0.0505
        near("adaptive KL: 0.05 → β", adaptive.update(0.05, 6.6, 100, 0.05), 0.0505, 1e-12),
        # error clipped from 9 to 0.2; 0.05·(1 + 0.2·100/1000) = 0.051
        near(
            "adaptive KL, error clipped: 0.05 → β",
            adaptive.update(0.05, 60.0, 100, 0.05),
            0.051,
            1e-9,
        ),
        # 0.05·exp(0.1·0.1)
        near("dual KL: 0.05 → β", dual.update(0.05, 6.6, 100, 0.05), 0.0505025083542084, 1e-12),
        # 0.05·exp(0.1·(−1)), of no KL at all
        near(
            "dual KL, too little KL: 0.05 → β",
            dual.update(0.05, 0, 1, 0.05),
            0.0452418709017980,
            1e-12,
        ),
    ]
