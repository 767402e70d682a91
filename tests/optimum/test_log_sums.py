"""J*, what is gained over the reference, and KL, where they are next to 0 or next to overflow.

Expected values are computed with 60 digits from the same float64 inputs.
"""

from __future__ import annotations

import dataclasses

import mpmath
import numpy as np
import pytest

from tokenenv.optimum import MixtureSamples, compare, evaluate_exactly, solve
from tokenenv.optimum.greedy_baselines import fractions_by_prompt
from tokenenv.optimum.log_sums import divergence, log_expm1, log_tilted_sum
from tokenenv.optimum.prefix_tree import normalized

RELATIVE = 1e-12
KL_COEFS = (1e-4, 1e-2, 1.1, 1e3, 1e5, 1e7, 1e9, 1e12)


@pytest.fixture(autouse=True)
def sixty_digits():
    with mpmath.workdps(60):
        yield


def exact(values):
    return [mpmath.mpf(float(value)) for value in np.ravel(values)]


def probabilities(log_probs):
    """The distribution that float64 log-probabilities stand for: normalised to the last digit."""
    weights = [mpmath.exp(value) for value in exact(log_probs)]
    total = mpmath.fsum(weights)
    return [weight / total for weight in weights]


def distribution(rng, count=12, scale=2.0):
    return normalized(rng.normal(size=count) * scale)


@pytest.mark.parametrize("scale", [1e-12, 1e-7, 1e-2, 0.9, 1.1, 30.0, 500.0, 700.0, 1e5])
def test_tilted_sums_keep_their_digits(rng, scale):
    log_probs, tilt = distribution(rng), rng.normal(size=12) * scale
    p = probabilities(log_probs)
    mean = float(mpmath.fsum(q * w for q, w in zip(p, exact(tilt), strict=True)))
    tilt, mean = tilt - mean + scale / 3, scale / 3  # as in the solver: a mean that is known
    w = exact(tilt)
    drift = mpmath.fsum(q * v for q, v in zip(p, w, strict=True)) - mpmath.mpf(mean)
    expected = mpmath.log(mpmath.fsum(q * mpmath.exp(v - drift) for q, v in zip(p, w, strict=True)))
    found = log_tilted_sum(log_probs, tilt, np.array(mean))
    assert float(abs(found - expected) / expected) <= RELATIVE


@pytest.mark.parametrize("scale", [1e-13, 1e-8, 1e-3, 0.5, 2.0, 20.0])
def test_divergences_keep_their_digits_and_are_never_negative(rng, scale):
    q = np.array([distribution(rng) for _ in range(20)])
    p = normalized(q + rng.normal(size=q.shape) * scale)
    found = divergence(p, q)
    for one, row, other in zip(found, p, q, strict=True):
        terms = zip(probabilities(row), probabilities(other), strict=True)
        expected = mpmath.fsum(a * mpmath.log(a / b) for a, b in terms)
        # The float64 inputs hold ρ = log p − log q to 1e-16·|log p|, and KL is of second order.
        assert float(abs(one - expected) / expected) <= RELATIVE + 1e-14 / scale
    assert (divergence(q, q) == 0).all() and (found > 0).all()


def test_divergences_where_something_is_never_done():
    with np.errstate(divide="ignore"):
        half, one, third = (np.log(np.array(v)) for v in ([0.5, 0.5, 0], [1, 0, 0], [1 / 3] * 3))
    assert divergence(one, half) == pytest.approx(np.log(2.0), rel=1e-15)
    assert divergence(half, third) == pytest.approx(np.log(1.5), rel=1e-15)
    assert divergence(half, one) == np.inf
    assert divergence(one, one) == 0.0


def test_log_expm1_from_nothing_to_beyond_overflow():
    x = np.array([1e-300, 1e-12, 0.3, 1.0, 40.0, 800.0])
    expected = [float(mpmath.log(mpmath.expm1(v))) for v in exact(x)]
    np.testing.assert_allclose(log_expm1(x), expected, rtol=1e-15, atol=1e-16)
    assert log_expm1(np.array(0.0)) == -np.inf and log_expm1(np.array(np.inf)) == np.inf


# On a tree ----------------------------------------------------------------------------------------


def small(tree):
    """The first three tokens of the exact task after one prompt, with random scores."""
    rng = np.random.default_rng(0)
    levels = [normalized(level[:1]) for level in tree.ref_log_probs[:3]]
    return dataclasses.replace(
        tree,
        settings=dataclasses.replace(tree.settings, max_new_tokens=3),
        prompts=tree.prompts[:1],
        prompt_tokens=tree.prompt_tokens[:1],
        ref_log_probs=levels,
        scores=[rng.normal(size=level.shape) for level in levels],
        gold_rewards=None,
    )


def by_hand(tree, kl_coef):
    """J*, J_ref and J* − J_ref of its one prompt, by soft backward induction in 60 digits."""
    kl_coef = mpmath.mpf(kl_coef)
    soft = plain = None
    for t in reversed(range(tree.depth)):
        ends, states = tree.ending(t), tree.shape(t)[1]
        level_soft, level_plain = [], []
        for state in range(states):
            p = probabilities(tree.ref_log_probs[t][0, state])
            values = [[mpmath.mpf(0)] * len(p) for _ in range(2)]
            child = state * len(tree.continuing)
            for action in range(len(p)):
                if ends[action]:
                    score = mpmath.mpf(float(tree.scores[t][0, state, action]))
                    values[0][action] = values[1][action] = score
            if soft is not None:
                for c, action in enumerate(tree.continuing):
                    values[0][action], values[1][action] = soft[child + c], plain[child + c]
            level_soft.append(
                kl_coef
                * mpmath.log(
                    mpmath.fsum(
                        a * mpmath.exp(v / kl_coef) for a, v in zip(p, values[0], strict=True)
                    )
                )
            )
            level_plain.append(mpmath.fsum(a * v for a, v in zip(p, values[1], strict=True)))
        soft, plain = level_soft, level_plain
    return soft[0], plain[0], soft[0] - plain[0]


@pytest.mark.parametrize("kl_coef", KL_COEFS)
def test_the_optimum_and_the_gain_keep_their_digits_at_any_kl_coef(exact_tree, kl_coef):
    tree = small(exact_tree)
    best, reference, gain = by_hand(tree, kl_coef)
    found = solve(tree, kl_coef)
    assert float(abs(found.optimum - best)) <= RELATIVE * float(abs(best)) + 1e-14
    assert float(abs(found.objective_reference - reference)) <= 1e-14
    assert float(abs(found.gain - gain) / gain) <= RELATIVE
    assert found.gain_by_prompt.tolist() == [found.gain]


@pytest.mark.parametrize("kl_coef", [1e3, 1e7, 1e9])
def test_fractions_mean_the_same_however_great_the_kl_coef(exact_tree, kl_coef):
    """Halfway to π* in the log-policy, R being small beside β: J is quadratic, so 1 − ¼ is gained.

    What limits it is that log π = log π_ref + O(1/β) is held in float64: some 1e-16·β of the tilt.
    """
    solution = solve(exact_tree, kl_coef)
    atol = 20 / kl_coef + 1e-15 * kl_coef
    for share, expected in ((0.0, 0.0), (0.5, 0.75), (1.0, 1.0), (2.0, 0.0)):
        found = evaluate_exactly(solution.policy_between(share), solution)
        assert found.objective_fraction == pytest.approx(expected, abs=atol)
        by_prompt = fractions_by_prompt(solution.policy_between(share), solution)
        np.testing.assert_allclose(by_prompt, expected, rtol=0, atol=atol)
    assert found.kl >= 0 and found.kl_to_optimum >= 0


def test_variance_over_twice_beta_is_gained_where_beta_is_great(exact_tree):
    """J* − J_ref = Var_ref(R)/2β + O(1/β²)."""
    probs = np.exp(exact_tree.response_log_probs(exact_tree.ref_log_probs))
    scores = exact_tree.finished(exact_tree.scores)
    mean = (probs * scores).sum(axis=1, keepdims=True)
    variance = (probs * np.square(scores - mean)).sum(axis=1).mean()
    for kl_coef in (1e7, 1e9, 1e12):
        assert solve(exact_tree, kl_coef).gain * 2 * kl_coef == pytest.approx(variance, rel=3e-6)


def test_another_start_is_0_and_the_optimum_1(exact_solution):
    start = exact_solution.policy_between(0.5)
    at = {
        share: evaluate_exactly(
            exact_solution.policy_between(share), exact_solution, starting_policy=start
        )
        for share in (0.5, 0.8, 1.0)
    }
    assert at[0.5].objective_fraction == 0.0
    assert at[1.0].objective_fraction == pytest.approx(1.0, abs=1e-12)
    found = at[0.8]
    expected = (found.objective - found.objective_reference) / (
        found.optimum - found.objective_reference
    )
    assert found.objective_reference == pytest.approx(at[0.5].objective, abs=1e-12)
    assert found.objective_fraction == pytest.approx(expected, abs=1e-9)
    nothing_left = evaluate_exactly(
        start, exact_solution, starting_policy=exact_solution.log_policy
    )
    assert nothing_left.objective_fraction is None


# The bound from samples ---------------------------------------------------------------------------


def drawn(rng, kl_coef, prompts=4, n=64):
    """Samples of an actor that is not the reference, with scores of size 1."""
    ref_log_probs = rng.normal(size=(2, prompts, n)) * 2 - 20
    log_probs = ref_log_probs + rng.normal(size=ref_log_probs.shape)
    ones = np.ones(ref_log_probs.shape)
    return MixtureSamples(
        log_probs, ref_log_probs, rng.normal(size=ones.shape), None, ones, ones.astype(bool)
    )


@pytest.mark.parametrize("kl_coef", KL_COEFS)
def test_the_bound_is_its_formula_at_any_kl_coef(rng, kl_coef):
    samples = drawn(rng, kl_coef)
    beta, expected = mpmath.mpf(kl_coef), []
    for row in range(samples.scores.shape[1]):
        scores = exact(samples.scores[:, row])
        pairs = zip(
            exact(samples.log_probs[:, row]), exact(samples.ref_log_probs[:, row]), strict=True
        )
        ratios = [2 / (1 + mpmath.exp(own - ref)) for own, ref in pairs]
        least = min(scores)
        terms = [r * mpmath.expm1((s - least) / beta) for r, s in zip(ratios, scores, strict=True)]
        expected.append(least + beta * mpmath.log1p(mpmath.fsum(terms) / len(terms)))
    mean = mpmath.fsum(expected) / len(expected)
    found = compare(samples, kl_coef, bootstrap=5).optimum_lower_bound
    assert float(abs(found - mean)) <= RELATIVE * max(1.0, float(abs(mean)))


def test_at_a_great_kl_coef_the_bound_is_the_reference_and_not_the_noise_of_its_weights(rng):
    """The mean of π_ref/q is 1 ± 0.03 here: times β = 1e9 that would be ±3e7."""
    found = compare(drawn(rng, 1e9), 1e9, bootstrap=50)
    assert abs(found.optimum_lower_bound) < 1.0
    low, high = found.optimum_interval
    assert high - low < 1.0
