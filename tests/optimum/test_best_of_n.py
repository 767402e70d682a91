"""Best-of-n: its closed form by all n-tuples, the bound of its KL, the optimum of equal KL."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest

from tokenenv.optimum import enumerate_task, evaluate_exactly, solve
from tokenenv.optimum.best_of_n import (
    ScoredResponses,
    best_of_n,
    best_of_n_log_probs,
    kl_coef_of_equal_kl,
    kl_upper_bound,
    optimum,
    tilted_log_probs,
    tilted_optimum,
)
from tokenenv.optimum.best_of_n_samples import chosen_shares, interval_over_prompts

SIZES = (1, 2, 3, 4, 7, 64, 1000, 10**6, 10**9)


def random_responses(rng, count, prompts=1, levels=None):
    """Responses with random probabilities; with few levels of scores, so with ties, if asked."""
    log_probs = rng.normal(size=(prompts, count)) * 2.0
    log_probs -= np.logaddexp.reduce(log_probs, axis=1, keepdims=True)
    scores = rng.normal(size=(prompts, count))
    if levels is not None:
        scores = rng.integers(levels, size=(prompts, count)).astype(float)
    return ScoredResponses(log_probs, scores, rng.normal(size=(prompts, count)))


def by_all_tuples(log_probs, scores, n):
    """(N,) how likely each response is the first of the best in n draws: all N^n of them."""
    q = np.zeros(len(scores))
    for draws in itertools.product(range(len(scores)), repeat=n):
        taken = max(draws, key=lambda i: scores[i])  # of equal ones max takes the first
        q[taken] += math.exp(sum(log_probs[i] for i in draws))
    return q


# Closed form --------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [1, 2, 3, None])
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_the_closed_form_is_that_of_all_tuples_ties_included(rng, count, levels):
    responses = random_responses(rng, count, levels=levels)
    (log_probs,), (scores,), (gold,) = (
        responses.log_probs,
        responses.scores,
        responses.gold_rewards,
    )
    for n in (1, 2, 3, 4):
        q = by_all_tuples(log_probs, scores, n)
        found = best_of_n(responses, n)
        assert np.abs(np.exp(best_of_n_log_probs(responses, n)[0]) - q).max() <= 1e-10
        assert found.kl == pytest.approx(q @ (np.log(q) - log_probs), abs=1e-10)
        assert found.score == pytest.approx(q @ scores, abs=1e-10)
        assert found.gold_reward == pytest.approx(q @ gold, abs=1e-10)


def test_by_hand():
    """π_ref = (½, ¼, ¼) with scores (0, 1, 1), n = 2: ¼ stays on the first, ¾ is shared alike.

    KL = ¼·log(¼/½) + ¾·log(¾/½).
    """
    responses = ScoredResponses(np.log([[0.5, 0.25, 0.25]]), np.array([[0.0, 1.0, 1.0]]))
    q = np.exp(best_of_n_log_probs(responses, 2))
    np.testing.assert_allclose(q, [[0.25, 0.375, 0.375]], rtol=0, atol=1e-15)
    found = best_of_n(responses, 2)
    assert found.kl == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), abs=1e-15)
    assert found.score == pytest.approx(0.75, abs=1e-15) and found.gold_reward is None
    assert found.objective(2.0) == pytest.approx(0.75 - 2.0 * found.kl, abs=1e-15)


@pytest.mark.parametrize("n", [2, 10**3, 10**6, 10**9])
def test_probabilities_keep_their_digits_for_any_n(n):
    """Beside 60 digits, with masses down to e^-800 below, amid and above the others."""
    log_probs = np.array([-800.0, -1.0, -40.0, -800.0, -9.0, -3.0, -25.0, -750.0, -760.0])
    log_probs -= np.logaddexp.reduce(log_probs)
    responses = ScoredResponses(log_probs[None], np.arange(9.0)[None])
    with mpmath.workdps(60):
        masses = [mpmath.exp(mpmath.mpf(float(p))) for p in responses.log_probs[0]]
        total = mpmath.fsum(masses)
        masses = [mass / total for mass in masses]
        # 1 − F from above, since F itself would take 350 digits
        above = [mpmath.fsum(masses[i + 1 :]) for i in range(9)]
        with mpmath.workdps(800):
            q = [
                (1 - above[i]) ** n - (1 - above[i] - masses[i]) ** n if i else masses[0] ** n
                for i in range(9)
            ]
            expected = np.array([float(mpmath.log(value)) for value in q])
            kl = float(mpmath.fsum(v * mpmath.log(v / m) for v, m in zip(q, masses, strict=True)))
    found = best_of_n_log_probs(responses, n)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)
    assert best_of_n(responses, n).kl == pytest.approx(kl, rel=1e-10)


def test_a_response_that_never_comes_is_never_taken():
    log_probs = np.log(np.array([[0.5, 0.5, 1.0, 1.0]]))
    log_probs[0, 2:] = -np.inf
    responses = ScoredResponses(log_probs, np.array([[0.0, 2.0, 1.0, 3.0]]))
    np.testing.assert_allclose(
        np.exp(best_of_n_log_probs(responses, 3)), [[1 / 8, 7 / 8, 0, 0]], rtol=0, atol=1e-15
    )
    assert best_of_n(responses, 10**6).kl == pytest.approx(math.log(2.0), abs=1e-12)
    assert kl_coef_of_equal_kl(responses, 5.0) == 0.0


@pytest.mark.parametrize("levels", [2, 5, None])
def test_kl_stays_below_the_bound_and_everything_grows_with_n(rng, levels):
    for count in (1, 2, 8, 40):
        responses = random_responses(rng, count, prompts=3, levels=levels)
        points = [best_of_n(responses, n) for n in SIZES]
        assert points[0].kl == 0.0
        for n, point in zip(SIZES, points, strict=True):
            assert point.kl <= kl_upper_bound(n) + 1e-12
        for name in ("kl", "score"):
            values = [getattr(point, name) for point in points]
            assert min(np.diff(values)) >= -1e-12, name


@pytest.mark.parametrize("n", [2, 16, 64])
def test_the_bound_is_the_limit_of_many_equally_likely_responses(n):
    errors = []
    for count in (500, 5000, 50_000):
        log_probs = np.full((1, count), -math.log(count))
        kl = best_of_n(ScoredResponses(log_probs, np.arange(float(count))[None]), n).kl
        errors.append(kl_upper_bound(n) - kl)
    assert errors[0] > errors[1] > errors[2] > 0  # never reached
    assert errors[2] < n / 50_000


def test_mistakes_are_refused_by_name(rng):
    responses = random_responses(rng, 4)
    for wrong in (0, -1, 1.5, 2.0, True, None, 10**9 + 1):
        with pytest.raises(ValueError, match=r"n=.* must be a whole number of at least 1"):
            best_of_n(responses, wrong)
        with pytest.raises(ValueError, match="n="):
            chosen_shares(responses.scores, wrong)
    with pytest.raises(ValueError, match=r"sum to 0\.5, not 1"):
        ScoredResponses(np.log([[0.25, 0.25]]), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="not finite"):
        ScoredResponses(np.log([[0.5, 0.5]]), np.array([[0.0, np.nan]]))
    with pytest.raises(ValueError, match="shapes"):
        ScoredResponses(np.log([[0.5, 0.5]]), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="kl=-1"):
        kl_coef_of_equal_kl(responses, -1.0)
    with pytest.raises(ValueError, match="n=5 is more than the 4 samples"):
        chosen_shares(responses.scores, 5)


# The tilted optimum -------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [1, 3, None])
def test_the_tilted_optimum_of_equal_kl_has_as_much_score_and_more(rng, levels):
    responses = random_responses(rng, 12, prompts=4, levels=levels)
    for n in SIZES:
        point = best_of_n(responses, n)
        tilted = tilted_optimum(responses, kl_coef_of_equal_kl(responses, point.kl))
        assert tilted.kl == pytest.approx(point.kl, abs=1e-10)
        assert tilted.score >= point.score - 1e-10
        if levels is None and 1 < n < 1000:
            assert tilted.score > point.score


def test_the_tilted_optimum_is_that_of_the_solver(settings):
    tree = enumerate_task("reviews", **{**settings, "max_new_tokens": 2})
    responses = ScoredResponses.of_tree(tree)
    assert responses.scores.shape == (3, tree.num_responses // 3)
    for kl_coef in (0.2, 5.0):
        solution = solve(tree, kl_coef)
        expected = evaluate_exactly(solution.log_policy, solution)
        found = tilted_optimum(responses, kl_coef)
        assert found.kl == pytest.approx(expected.kl, abs=1e-9)
        assert found.score == pytest.approx(expected.score, abs=1e-9)
        assert optimum(responses, kl_coef) == pytest.approx(solution.optimum, abs=1e-9)
        assert kl_coef_of_equal_kl(responses, found.kl) == pytest.approx(kl_coef, rel=1e-9)


def test_the_ends_of_the_tilted_optima(rng):
    responses = random_responses(rng, 6, prompts=2, levels=3)
    reference, limit = tilted_optimum(responses, math.inf), tilted_optimum(responses, 0.0)
    assert reference.kl == pytest.approx(0.0, abs=1e-15)
    assert reference.score == pytest.approx(best_of_n(responses, 1).score, abs=1e-12)
    highest = responses.scores.max(1, keepdims=True)
    masses = (np.exp(responses.log_probs) * (responses.scores == highest)).sum(1)
    assert limit.kl == pytest.approx(-np.log(masses).mean(), abs=1e-12)
    assert limit.score == pytest.approx(highest.mean(), abs=1e-12) == optimum(responses, 0.0)
    assert kl_coef_of_equal_kl(responses, 0.0) == math.inf
    assert kl_coef_of_equal_kl(responses, limit.kl) == 0.0
    assert kl_coef_of_equal_kl(responses, limit.kl + 1.0) == 0.0
    assert 0.0 < kl_coef_of_equal_kl(responses, 0.999 * limit.kl) < 1.0
    np.testing.assert_allclose(np.exp(tilted_log_probs(responses, 1e-300)).sum(1), 1.0, atol=1e-12)


def test_no_policy_has_more_score_at_that_kl(rng):
    """Random policies between the reference and anything, at their own KL."""
    responses = random_responses(rng, 10, prompts=2)
    for _ in range(50):
        logits = responses.log_probs + rng.normal(size=responses.scores.shape) * rng.uniform(0, 3)
        log_policy = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        policy = np.exp(log_policy)
        kl = float((policy * (log_policy - responses.log_probs)).sum(1).mean())
        tilted = tilted_optimum(responses, kl_coef_of_equal_kl(responses, kl))
        assert tilted.score >= (policy * responses.scores).sum(1).mean() - 1e-9


# Samples ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_shares_are_those_of_all_subsets_in_every_order(n):
    scores = np.array([[2.0, 1.0, 2.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0], [3.0, 1, 2, 5, 4]])
    for row, shares in zip(scores, chosen_shares(scores, n), strict=True):
        counts = np.zeros(5)
        orders = list(itertools.permutations(range(5), n))
        for order in orders:
            counts[max(order, key=lambda i: row[i])] += 1
        np.testing.assert_allclose(shares, counts / len(orders), rtol=0, atol=1e-14)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_estimate_is_unbiased_for_score_and_gold(n):
    """Over all 3⁴ samples that there are, each with its probability: the closed form itself."""
    probabilities, scores = np.array([0.2, 0.5, 0.3]), np.array([0.0, 1.0, 1.0])
    gold = np.array([0.3, -1.0, 2.0])
    exact = best_of_n(ScoredResponses(np.log(probabilities)[None], scores[None], gold[None]), n)
    draws = np.array(list(itertools.product(range(3), repeat=4)))
    weights = probabilities[draws].prod(axis=1)
    shares = chosen_shares(scores[draws], n)
    assert weights @ (shares * scores[draws]).sum(1) == pytest.approx(exact.score, abs=1e-12)
    assert weights @ (shares * gold[draws]).sum(1) == pytest.approx(exact.gold_reward, abs=1e-12)


def test_shares_of_many_samples_sum_to_one(rng):
    scores = rng.normal(size=(2, 5000))
    for n in (1, 2, 64, 4999, 5000):
        np.testing.assert_allclose(chosen_shares(scores, n).sum(1), 1.0, rtol=0, atol=1e-11)
    np.testing.assert_array_equal(chosen_shares(scores, 5000).argmax(1), scores.argmax(1))


def test_the_tilted_optimum_of_samples_lies_below_in_expectation(rng):
    responses = random_responses(rng, 30, prompts=4)
    kl = best_of_n(responses, 8).kl
    truth = tilted_optimum(responses, kl_coef_of_equal_kl(responses, kl)).score
    found = []
    for _ in range(200):
        draws = np.stack([rng.choice(30, 32, p=np.exp(row)) for row in responses.log_probs])
        scores = np.take_along_axis(responses.scores, draws, axis=1)
        of_samples = ScoredResponses.of_samples(scores)
        found.append(tilted_optimum(of_samples, kl_coef_of_equal_kl(of_samples, kl)).score)
    error = np.std(found) / math.sqrt(len(found))
    assert np.mean(found) < truth + 2 * error


def test_intervals_over_prompts_cover_about_as_often_as_they_say(rng):
    covered = 0
    for seed in range(200):
        low, high = interval_over_prompts(rng.normal(1.0, 2.0, size=40), seed, draws=400)
        covered += low < 1.0 < high
    assert 175 <= covered <= 199
    assert interval_over_prompts(np.array([1.0]), 0) is None
