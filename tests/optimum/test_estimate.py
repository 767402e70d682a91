"""The sampled bound on J*, where the truth is known: the exact task."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from agents.verification.estimate import RESPONSES, collapsed, restricted
from tokenenv.optimum import (
    compare,
    evaluate_exactly,
    plain_returns,
    sample_mixture,
    sample_tree_mixture,
    solve,
)

SEEDS = range(12)


def policies(solution):
    tree = solution.tree
    found = {
        "reference": tree.ref_log_probs,
        "half-trained": solution.policy_between(0.5),
        "nearly trained": solution.policy_between(0.9),
        "optimal": solution.log_policy,
        "collapsed": collapsed(solution),
    }
    for token in tree.continuing.tolist():
        found[f"only token {token} first"] = restricted(solution, token)
    return found


@pytest.fixture(scope="module")
def estimates(exact_solution):
    """Name of a policy → its exact evaluation and estimates by sampling, one per seed."""
    tree = exact_solution.tree
    n = 2 * (RESPONSES // len(tree.prompts) // 2)
    return {
        name: (
            evaluate_exactly(policy, exact_solution),
            [
                compare(
                    sample_tree_mixture(policy, tree, n, seed),
                    exact_solution.kl_coef,
                    bootstrap=150,
                )
                for seed in SEEDS
            ],
        )
        for name, policy in policies(exact_solution).items()
    }


def test_the_policies_are_what_they_are_called(exact_solution):
    tree = exact_solution.tree
    found = policies(exact_solution)
    log_probs = tree.response_log_probs(found["collapsed"])
    assert (np.sort(np.exp(log_probs), axis=1)[:, -1] == 1.0).all()
    best = tree.response_log_probs(exact_solution.log_policy).argmax(axis=1)
    np.testing.assert_array_equal(log_probs.argmax(axis=1), best)
    token = int(tree.continuing[1])
    begins = np.array([r[0] == token for r in tree.responses()])
    log_optimum = tree.response_log_probs(exact_solution.log_policy)[:, begins]
    expected = log_optimum - np.log(np.exp(log_optimum).sum(axis=1, keepdims=True))
    own = tree.response_log_probs(found[f"only token {token} first"])[:, begins]
    np.testing.assert_allclose(own, expected, rtol=0, atol=1e-9)


def test_the_fraction_is_right_within_a_tenth_or_the_warning_fires(estimates):
    wrong = [
        (name, seed, found.objective_fraction, exact.objective_fraction)
        for name, (exact, tries) in estimates.items()
        for seed, found in enumerate(tries)
        if abs(found.objective_fraction - exact.objective_fraction) > 0.1 and found.is_reliable
    ]
    assert wrong == []


def test_the_warning_fires_for_a_missing_mode_and_not_for_a_trained_policy(estimates):
    for name in ("optimal", "nearly trained"):
        assert all(found.is_reliable for found in estimates[name][1]), name
    assert not any(found.is_reliable for found in estimates["collapsed"][1])
    for name in ("optimal", "nearly trained", "half-trained"):
        exact, tries = estimates[name]
        for found in tries:
            assert abs(found.objective_fraction - exact.objective_fraction) <= 0.05, name


def test_too_few_samples_of_the_reference_always_warn(exact_solution):
    """What was never sampled shows in no weight: 64 responses can look perfect and be wrong."""
    tree, policy = exact_solution.tree, collapsed(exact_solution)
    found = [
        compare(sample_tree_mixture(policy, tree, 64, seed), exact_solution.kl_coef)
        for seed in SEEDS
    ]
    assert any(f.least_effective_sample_size > 0.05 for f in found)
    assert not any(f.is_reliable for f in found)


def test_a_constant_reward_has_no_fraction(exact_tree):
    flat = dataclasses.replace(
        exact_tree, scores=[np.where(np.isnan(s), s, 1.0) for s in exact_tree.scores]
    )
    policy = solve(exact_tree).policy_between(0.3)
    found = compare(sample_tree_mixture(policy, flat, 200, seed=0), exact_tree.kl_coef)
    assert found.objective_fraction is None and found.fraction_interval is None
    assert evaluate_exactly(policy, flat).objective_fraction is None
    assert plain_returns(dataclasses.replace(flat), 0.0).fraction(0.0) is None


def test_the_bound_is_never_above_the_truth_beyond_its_interval(estimates, exact_solution):
    """The lower end of a 95 % interval may lie above the truth in one case of forty.

    Asked is at most one in twenty, and none by more than four of its own standard errors.
    """
    found = [found for _, tries in estimates.values() for found in tries]
    low, high = np.array([f.optimum_interval for f in found]).T
    bounds = np.array([f.optimum_lower_bound for f in found])
    standard_errors = (high - low) / (2 * 1.96)
    assert np.mean(low > exact_solution.optimum) <= 0.05
    assert ((bounds - exact_solution.optimum) / standard_errors).max() <= 4


def test_the_bound_lies_below_the_truth_in_the_mean(estimates, exact_solution):
    """Jensen: E[log of a mean] ≤ log of the expectation."""
    for _, tries in estimates.values():
        bounds = np.array([found.optimum_lower_bound for found in tries])
        error = bounds.std(ddof=1) / np.sqrt(len(bounds))
        assert bounds.mean() <= exact_solution.optimum + 3 * error


def test_samples_of_the_tree_are_samples_of_the_models(exact_tree, exact_solution):
    """The same estimate from the real sampler and scorer, with the reference as the actor."""
    from tokenenv.mdp.token_mdp import TokenMDP
    from tokenenv.settings import EnvSettings

    mdp = TokenMDP(EnvSettings(task="exact", split="eval"), 1)
    model = exact_tree.language_model.model
    samples = sample_mixture(model, mdp.scorer, exact_tree.prompt_tokens, exact_tree.depth, 800, 0)
    written = sample_tree_mixture(exact_tree.ref_log_probs, exact_tree, 800, 0)
    assert samples.scores.shape == written.scores.shape == (2, len(exact_tree.prompts), 400)
    for name in ("scores", "ref_log_probs", "lengths", "stopped", "gold_rewards"):
        one, other = (np.asarray(getattr(s, name), dtype=float) for s in (samples, written))
        error = np.sqrt((one.var() + other.var()) / one.size)
        assert abs(one.mean() - other.mean()) <= 5 * error, name
    np.testing.assert_allclose(samples.log_probs, samples.ref_log_probs, rtol=0, atol=1e-4)
    np.testing.assert_allclose(written.log_probs, written.ref_log_probs, rtol=0, atol=1e-12)
