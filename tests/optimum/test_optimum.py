"""The bound on the optimum, on a problem small enough to know everything about it.

One "response" is one of K = 50 outcomes, so π, π_ref and R are vectors and
J* = β·log Σ π_ref·exp(R/β) is a sum.
"""

from __future__ import annotations

import dataclasses

import gymnasium as gym
import numpy as np
import pytest

import tokenenv  # noqa: F401  (registers the ids)
from tokenenv.optimum import MixtureSamples, compare, log_mean_exp, rescaled, sample_mixture

OUTCOMES, BETA = 50, 0.5


@pytest.fixture
def problem(rng):
    """(log π_ref, R), each (K,)."""
    logits = rng.normal(size=OUTCOMES)
    return logits - np.log(np.exp(logits).sum()), rng.normal(size=OUTCOMES)


def log_softmax(logits):
    return logits - log_mean_exp(logits[None])[0] - np.log(len(logits))


def optimum(log_ref, scores, kl_coef=BETA):
    return kl_coef * np.log(np.sum(np.exp(log_ref + scores / kl_coef)))


def sample(rng, log_policy, log_ref, scores, prompts=16, n=256):
    """What `sample_mixture` would find: n outcomes of each kind for every prompt."""
    drawn = np.stack(
        [rng.choice(OUTCOMES, size=(prompts, n), p=np.exp(p)) for p in (log_policy, log_ref)]
    )
    ones = np.ones(drawn.shape, dtype=int)
    return MixtureSamples(
        log_policy[drawn], log_ref[drawn], scores[drawn], None, ones, ones.astype(bool)
    )


def test_log_mean_exp_by_hand_and_without_overflow():
    values = np.array([[0.0, np.log(3.0)], [1000.0, 1000.0], [-1e5, -1e5 + np.log(3.0)]])
    expected = [np.log(2.0), 1000.0, -1e5 + np.log(2.0)]
    np.testing.assert_allclose(log_mean_exp(values), expected, rtol=0, atol=1e-10)


def test_weights_are_r_over_beta_plus_log_ref_minus_log_mixture():
    one = np.ones((2, 1, 1))
    samples = MixtureSamples(
        np.log(np.array([[[0.5]], [[0.1]]])),
        np.log(np.array([[[0.2]], [[0.3]]])),
        np.array([[[1.0]], [[2.0]]]),
        None,
        one,
        one,
    )
    # from π: 1/.5 + log .2 − log((.5 + .2)/2); from π_ref: 2/.5 + log .3 − log((.1 + .3)/2)
    expected = [[2 + np.log(0.2 / 0.35), 4 + np.log(0.3 / 0.2)]]
    np.testing.assert_allclose(samples.log_weights(0.5), expected, rtol=0, atol=1e-12)


def test_the_bound_is_exact_when_every_outcome_comes_as_often_as_it_should():
    """Four outcomes, both policies uniform: the mean over them is the sum itself."""
    scores = np.array([0.3, -1.0, 2.0, 0.0])
    log_uniform = np.full((2, 1, 4), -np.log(4.0))
    both = np.stack([scores, scores])[:, None]
    samples = MixtureSamples(log_uniform, log_uniform, both, None, both, both)
    found = compare(samples, BETA, bootstrap=20)
    expected = BETA * np.log(np.mean(np.exp(scores / BETA)))
    assert found.optimum_lower_bound == pytest.approx(expected, abs=1e-12)
    assert found.kl == 0.0 and found.objective == pytest.approx(scores.mean(), abs=1e-12)
    assert found.objective_fraction == 0.0


def test_the_bound_is_below_the_optimum_and_close_to_it(problem, rng):
    log_ref, scores = problem
    halfway = log_softmax(log_ref + 0.5 * scores / BETA)  # an actor on its way to π*
    best = optimum(log_ref, scores)
    bounds = [
        compare(sample(rng, halfway, log_ref, scores, n=32), BETA, bootstrap=1).optimum_lower_bound
        for _ in range(200)
    ]
    error = np.std(bounds) / np.sqrt(len(bounds))
    assert np.mean(bounds) < best  # log of a mean: below in expectation (Jensen)
    assert best - np.mean(bounds) > 2 * error  # and seen to be
    assert best - np.mean(bounds) < 0.02
    many = compare(sample(rng, halfway, log_ref, scores, n=20_000), BETA, bootstrap=1)
    assert many.optimum_lower_bound == pytest.approx(best, abs=0.002)


def test_the_optimal_policy_reaches_the_optimum_and_the_reference_its_own(problem, rng):
    log_ref, scores = problem
    best_policy = log_softmax(log_ref + scores / BETA)
    found = compare(sample(rng, best_policy, log_ref, scores, n=2048), BETA, bootstrap=50)
    best, start = optimum(log_ref, scores), np.exp(log_ref) @ scores
    # R − β·log π*/π_ref is the constant J*: no noise at all.
    assert found.objective == pytest.approx(best, abs=1e-9)
    assert found.objective_reference == pytest.approx(start, abs=0.03)
    assert found.objective_fraction == pytest.approx(1.0, abs=0.01)
    kl = np.exp(best_policy) @ (best_policy - log_ref)
    assert found.kl == pytest.approx(kl, abs=0.03)
    assert found.is_reliable and found.optimum_interval[0] < best < found.optimum_interval[1]
    unmoved = compare(sample(rng, log_ref, log_ref, scores, n=2048), BETA, bootstrap=50)
    assert unmoved.kl == 0.0
    assert unmoved.objective_fraction == pytest.approx(0.0, abs=0.05)
    low, high = unmoved.fraction_interval
    assert low < 0.0 < high


def test_a_collapsed_policy_is_seen_by_the_mixture(problem, rng):
    """All its mass on one outcome: as its own only proposal it would look optimal."""
    log_ref, scores = problem
    favourite = int(np.argsort(scores)[-10])
    collapsed = np.full(OUTCOMES, -60.0)
    collapsed[favourite] = 0.0
    samples = sample(rng, log_softmax(collapsed), log_ref, scores, n=512)
    found = compare(samples, BETA, bootstrap=20)
    best, start = optimum(log_ref, scores), np.exp(log_ref) @ scores
    true_objective = scores[favourite] + BETA * log_ref[favourite]
    assert found.objective == pytest.approx(true_objective, abs=1e-6)
    assert found.objective_fraction < 0.7
    assert found.objective_fraction == pytest.approx(
        (true_objective - start) / (best - start), abs=0.05
    )
    own = samples.scores[0] / BETA + samples.ref_log_probs[0] - samples.log_probs[0]
    self_consistent = BETA * log_mean_exp(own).mean()
    assert self_consistent == pytest.approx(true_objective, abs=1e-6)  # it would have scored 1.000


def test_a_known_optimum_counts_where_it_is_the_larger(problem, rng):
    log_ref, scores = problem
    samples = sample(rng, log_ref, log_ref, scores)
    own = compare(samples, BETA, bootstrap=20)
    larger = compare(samples, BETA, known_optimum=own.optimum_lower_bound + 1.0, bootstrap=20)
    smaller = compare(samples, BETA, known_optimum=own.optimum_lower_bound - 1.0, bootstrap=20)
    assert larger.optimum_lower_bound == own.optimum_lower_bound + 1.0
    assert smaller.optimum_lower_bound == own.optimum_lower_bound
    gained = own.objective - own.objective_reference
    assert larger.objective_fraction == pytest.approx(
        gained / (own.optimum_lower_bound + 1.0 - own.objective_reference), abs=1e-12
    )
    assert smaller.objective_fraction == own.objective_fraction


def test_without_a_kl_penalty_there_is_no_such_optimum(problem, rng):
    log_ref, scores = problem
    found = compare(sample(rng, log_ref, log_ref, scores), 0.0, bootstrap=5)
    assert found.optimum_lower_bound is found.optimum_interval is None
    assert found.objective_fraction is found.fraction_interval is None
    assert found.effective_sample_size is None and not found.is_reliable
    assert found.objective == found.score


def test_a_constant_reward_leaves_nothing_to_gain(problem, rng):
    log_ref, _ = problem
    found = compare(sample(rng, log_ref, log_ref, np.full(OUTCOMES, 0.7)), BETA, bootstrap=20)
    assert found.optimum_lower_bound == pytest.approx(0.7, abs=1e-12)
    assert found.objective_fraction is None and found.fraction_interval is None


def test_few_effective_samples_are_unreliable(problem, rng):
    """At β = 0.01 one outcome holds nearly all the weight, whatever π_ref thinks of it."""
    log_ref, scores = problem
    rare = scores.copy()
    rare[int(np.argmin(log_ref))] = 20.0
    samples = sample(rng, log_ref, log_ref, rare, n=512)
    assert not compare(samples, 0.01, bootstrap=1).is_reliable
    assert compare(samples, 100.0, bootstrap=1).is_reliable


@pytest.mark.slow
def test_the_interval_covers_what_repeated_sampling_finds(problem, rng):
    log_ref, scores = problem
    halfway = log_softmax(log_ref + 0.5 * scores / BETA)
    true_objective = np.exp(halfway) @ (scores - BETA * (halfway - log_ref))
    start, best = np.exp(log_ref) @ scores, optimum(log_ref, scores)
    fraction = (true_objective - start) / (best - start)
    covered = 0
    for _ in range(40):
        found = compare(sample(rng, halfway, log_ref, scores, prompts=8), BETA, bootstrap=200)
        low, high = found.fraction_interval
        covered += low <= fraction <= high
    assert covered >= 33  # 95 % of 40 is 38; fewer than 33 has probability 0.0007


@pytest.mark.parametrize("spread", [0.5, 2.0, 5.0, 20.0])
@pytest.mark.parametrize("prompts", [1, 8])
def test_bound_and_fraction_lie_in_their_own_intervals_whatever_carries_them(rng, spread, prompts):
    """Log-normal weights: at a spread of 20 one sample in 128 carries each prompt."""
    for seed in range(10):
        scores = rng.normal(size=(2, prompts, 64)) * spread
        moved = rng.normal(size=scores.shape)
        ones = np.ones(scores.shape)
        samples = MixtureSamples(moved - 20, np.full_like(ones, -20), scores, None, ones, ones > 0)
        found = compare(samples, 1.0, bootstrap=100, seed=seed)
        low, high = found.optimum_interval
        assert low <= found.optimum_lower_bound <= high
        if found.objective_fraction is not None:
            low, high = found.fraction_interval
            assert low <= found.objective_fraction <= high
    if spread == 20:
        assert found.least_effective_sample_size < 0.05 and not found.is_reliable


def test_a_bound_from_elsewhere_has_no_interval_of_these_samples(problem, rng):
    log_ref, scores = problem
    samples = sample(rng, log_ref, log_ref, scores)
    own = compare(samples, BETA, bootstrap=50)
    less, more = (own.optimum_lower_bound + by for by in (-0.5, 0.5))
    assert compare(samples, BETA, less, bootstrap=50).optimum_interval == own.optimum_interval
    other = compare(samples, BETA, more, bootstrap=50)
    assert other.optimum_lower_bound == more and other.optimum_interval is None
    low, high = other.fraction_interval
    assert low <= other.objective_fraction <= high


def test_beside_another_start_the_interval_is_that_of_the_bound_that_is_shown(problem, rng):
    log_ref, scores = problem
    best_policy = log_softmax(log_ref + scores / BETA)
    halfway = log_softmax(log_ref + 0.5 * scores / BETA)
    found, start = (
        compare(sample(rng, policy, log_ref, scores, n=64), BETA, bootstrap=50)
        for policy in (best_policy, halfway)
    )
    for one, other in ((found, start), (start, found)):
        shown = rescaled(one, other)
        larger = max((one, other), key=lambda c: c.optimum_lower_bound)
        assert shown.optimum_lower_bound == larger.optimum_lower_bound
        assert shown.optimum_interval == larger.optimum_interval
        assert shown.objective == one.objective and shown.fraction_interval is None
        assert shown.objective_reference == other.objective
        assert shown.objective_fraction == pytest.approx(
            (one.objective - other.objective) / (larger.optimum_lower_bound - other.objective)
        )
    nowhere = compare(sample(rng, log_ref, log_ref, scores), 0.0, bootstrap=5)
    assert rescaled(nowhere, nowhere).optimum_lower_bound is None


def test_the_interval_of_the_bound_covers_the_mean_of_repeated_bounds(problem, rng):
    log_ref, scores = problem
    found = [
        compare(sample(rng, log_ref, log_ref, scores, prompts=4), BETA, bootstrap=100)
        for _ in range(60)
    ]
    mean = np.mean([one.optimum_lower_bound for one in found])
    covered = [low <= mean <= high for low, high in (one.optimum_interval for one in found)]
    assert sum(covered) >= 50  # 95 % of 60 is 57; fewer than 50 has probability 4e-5


def test_samples_of_real_models_are_consistent_with_themselves():
    """The reference as its own actor: KL exactly 0, J = E[R] up to sampling, seeded."""
    env = gym.make("TokenRLHF-v0", split="eval", device="cpu").unwrapped
    prompts = [env.mdp.encode_prompt(prompt) for prompt in env.mdp.prompts[:4]]
    actor = env.mdp.language_model.model
    progress = []
    samples = sample_mixture(
        actor, env.scorer, prompts, 12, 16, seed=3, on_progress=lambda *done: progress.append(done)
    )
    assert samples.scores.shape == samples.lengths.shape == (2, 4, 8)
    assert progress[-1] == (64, 64)
    np.testing.assert_allclose(samples.log_probs, samples.ref_log_probs, rtol=0, atol=1e-6)
    assert samples.lengths.max() <= 12 and samples.stopped.dtype == bool
    assert (samples.lengths[~samples.stopped] == 12).all()
    assert not np.array_equal(samples.scores[0], samples.scores[1])  # two streams of one seed
    again = sample_mixture(actor, env.scorer, prompts, 12, 16, seed=3)
    for field in dataclasses.fields(samples):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(samples, field.name))
