"""Bias and variance of advantage estimates on the exact task: the recursion, the known story."""

from __future__ import annotations

import numpy as np
import pytest

from agents.verification.estimate import collapsed
from tokenenv.maths.advantages import generalized_advantages
from tokenenv.optimum import true_advantages
from tokenenv.optimum.bias_variance import LAMBDAS, advantage_moments, measure_advantages

ERRORS = (0.0, 0.25, 0.5, 1.0)


@pytest.fixture(scope="module")
def policy(exact_solution):
    """Halfway to the optimum, so that its KL is in the reward."""
    return exact_solution.policy_between(0.5)


@pytest.fixture(scope="module")
def measured(exact_solution, policy):
    """(critic error, γ, λ) → `AdvantageError`."""
    rows = measure_advantages(policy, exact_solution.tree, critic_errors=ERRORS)
    return {(r.critic_error, r.gamma, r.gae_lambda): r for r in rows}


def wrong_critic(tree, policy, seed=3):
    rng = np.random.default_rng(seed)
    truth = true_advantages(policy, tree)
    return [v + 0.5 * rng.standard_normal(v.shape) for v in truth.values]


def sample_episodes(tree, policy, values, first, count, rng):
    """`count` episodes of prompt 0 whose first action is given: padded rewards, values, lengths."""
    depth, index = tree.depth, np.full(tree.vocabulary_size, -1)
    index[tree.continuing] = np.arange(len(tree.continuing))
    rewards, estimates = np.zeros((2, count, depth))
    lengths = np.zeros(count, dtype=int)
    state, running = np.zeros(count, dtype=int), np.ones(count, dtype=bool)
    for t in range(depth):
        rows = np.flatnonzero(running)
        log_probs = policy[t][0, state[rows]]
        cumulative = np.exp(log_probs).cumsum(axis=1)
        drawn = (rng.random((len(rows), 1)) > cumulative / cumulative[:, -1:]).sum(axis=1)
        actions = np.full(len(rows), first) if t == 0 else drawn
        chosen = np.arange(len(rows)), actions
        ends = tree.ending(t)[actions]
        paid = np.where(ends, tree.scores[t][0, state[rows], actions], 0.0)
        ref = tree.ref_log_probs[t][0, state[rows]]
        rewards[rows, t] = paid - tree.kl_coef * (log_probs[chosen] - ref[chosen])
        estimates[rows, t] = values[t][0, state[rows]]
        lengths[rows] = t + 1
        state[rows] = state[rows] * len(tree.continuing) + index[actions]
        running[rows] = ~ends
    return rewards, estimates, lengths


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.0), (1.0, 0.9), (0.99, 0.95), (1.0, 1.0)])
def test_moments_are_those_of_the_trainers_own_estimates(exact_tree, policy, rng, gamma, lam):
    """Mean and variance of `generalized_advantages` over sampled episodes, per first action."""
    tree, count = exact_tree, 20_000
    values = wrong_critic(tree, policy)
    means, variances = advantage_moments(policy, values, tree, tree.kl_coef, gamma, lam)
    for action in range(tree.vocabulary_size):
        rewards, estimates, lengths = sample_episodes(tree, policy, values, action, count, rng)
        found = generalized_advantages(rewards, estimates, lengths, np.zeros(count), gamma, lam)[
            :, 0
        ]
        mean, variance = means[0][0, 0, action], variances[0][0, 0, action]
        assert abs(found.mean() - mean) <= 5 * np.sqrt(variance / count) + 1e-9
        squares = np.square(found - mean)
        assert abs(squares.mean() - variance) <= 5 * squares.std() / np.sqrt(count) + 1e-9


def test_with_a_perfect_critic_no_lambda_is_biased(measured):
    for lam in LAMBDAS:
        found = measured[0.0, 1.0, lam]
        assert found.raw_bias == pytest.approx(0.0, abs=1e-10)
        assert found.gradient_bias == pytest.approx(0.0, abs=1e-10)


@pytest.mark.parametrize("error", ERRORS[1:])
def test_lambda_1_has_the_raw_bias_of_the_error_and_no_bias_of_the_gradient(measured, error):
    found = measured[error, 1.0, 1.0]
    assert found.gradient_bias == pytest.approx(0.0, abs=1e-10)
    # The raw bias is −e(s), whose deviation is `error` times that of V^π.
    assert found.raw_bias / measured[ERRORS[1], 1.0, 1.0].raw_bias == pytest.approx(
        error / ERRORS[1], abs=1e-9
    )
    assert found.raw_bias > 0.05


def test_the_raw_bias_at_lambda_1_is_the_critics_error(exact_tree, policy):
    values = wrong_critic(exact_tree, policy)
    truth = true_advantages(policy, exact_tree)
    means, _ = advantage_moments(policy, values, exact_tree, exact_tree.kl_coef, 1.0, 1.0)
    for mean, advantage, own, value in zip(
        means, truth.advantages, values, truth.values, strict=True
    ):
        expected = np.broadcast_to((value - own)[:, :, None], mean.shape)
        np.testing.assert_allclose(mean - advantage, expected, rtol=0, atol=1e-10)


def test_the_bias_at_lambda_0_is_the_error_at_the_next_state(exact_tree, policy):
    """E[Â|s,a] − A = e(s') − e(s); its part that depends on the action is e(s')."""
    tree, values = exact_tree, wrong_critic(exact_tree, policy)
    truth = true_advantages(policy, tree)
    error = [own - true for own, true in zip(values, truth.values, strict=True)]
    means, variances = advantage_moments(policy, values, tree, tree.kl_coef, 1.0, 0.0)
    following = tree.after(2, error[3]) - error[2][:, :, None]
    np.testing.assert_allclose(means[2] - truth.advantages[2], following, rtol=0, atol=1e-10)
    assert all(np.all(level == 0.0) for level in variances)


@pytest.mark.parametrize("gamma", [1.0, 0.99])
@pytest.mark.parametrize("error", ERRORS)
def test_variance_rises_with_lambda(measured, error, gamma):
    rows = [measured[error, gamma, lam] for lam in LAMBDAS]
    variances = [row.variance for row in rows]
    assert variances == sorted(variances) and variances[0] == 0.0 < variances[1]


@pytest.mark.parametrize("error", ERRORS[1:])
def test_bias_falls_with_lambda(measured, error):
    biases = [measured[error, 1.0, lam].gradient_bias for lam in LAMBDAS]
    assert biases == sorted(biases, reverse=True) and biases[0] > 1.5 * biases[1]
    # A discount leaves a bias of its own, which no λ removes.
    discounted = [measured[error, 0.99, lam].gradient_bias for lam in LAMBDAS]
    assert discounted[0] > 1.5 * discounted[1] and min(discounted) > 1e-3


def test_the_best_lambda_rises_with_the_critics_error(exact_solution, policy):
    """The least total error moves from λ = 0, for a perfect critic, over values in between."""
    errors = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
    lambdas = tuple(np.linspace(0.0, 1.0, 21).tolist())
    rows = measure_advantages(
        policy, exact_solution.tree, critic_errors=errors, gammas=(1.0,), lambdas=lambdas
    )
    best = [
        min((r for r in rows if r.critic_error == error), key=lambda r: r.total_error).gae_lambda
        for error in errors
    ]
    assert best == sorted(best) and best[0] == 0.0
    assert any(0.0 < lam < 1.0 for lam in best)
    assert best[-1] > best[1]


def test_the_error_of_a_very_wrong_critic_adds_variance_in_between(exact_solution, policy):
    """At λ = 0 there is none, and at λ = γ = 1 the errors of successive states cancel."""
    rows = measure_advantages(
        policy, exact_solution, critic_errors=(0.0, 4.0), gammas=(1.0,), lambdas=(0.0, 0.6, 1.0)
    )
    perfect, wrong = (
        {row.gae_lambda: row.variance for row in rows if row.critic_error == error}
        for error in (0.0, 4.0)
    )
    assert perfect[0.0] == wrong[0.0] == 0.0
    assert wrong[1.0] == pytest.approx(perfect[1.0], rel=1e-9)
    assert wrong[0.6] > wrong[1.0] > perfect[0.6]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"gammas": (2.0,)}, "gammas"),
        ({"lambdas": (0.5, -0.1)}, "lambdas"),
        ({"critic_errors": (-1.0,)}, "critic_errors"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(exact_solution, policy, wrong, said):
    with pytest.raises(ValueError, match=said):
        measure_advantages(policy, exact_solution, **wrong)


def test_a_policy_that_never_takes_a_token_is_refused(exact_solution):
    with pytest.raises(ValueError, match="full support"):
        measure_advantages(collapsed(exact_solution), exact_solution)


def test_a_discount_biases_even_a_perfect_critic(measured):
    for lam in LAMBDAS:
        assert measured[0.0, 0.99, lam].gradient_bias > 1e-4
        assert measured[0.0, 0.99, lam].variance <= measured[0.0, 1.0, lam].variance
