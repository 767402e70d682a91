"""The energy distance and its permutation test: by hand, false alarms, power, invariances."""

from __future__ import annotations

import numpy as np
import pytest

from agents.reward_quality.two_sample import energy_distance, energy_test, pooled_scale

DRAWS, LEVEL, PERMUTATIONS = 600, 0.05, 99
# Alarms are binomial(600, 0.05): mean 30, deviation 5.3; 4 deviations to either side.
FEWEST, MOST = 9, 51


def alarms(sample, draws=DRAWS, **options):
    """In how many of some draws from `sample(rng)` the p-value is at most 5 %."""
    rng = np.random.default_rng(1)
    return sum(
        energy_test(*sample(rng), permutations=PERMUTATIONS, seed=seed, **options).p_value <= LEVEL
        for seed in range(draws)
    )


def test_the_energy_distance_by_hand():
    # X = {0, 2}, Y = {1}: 2·1 − (0 + 2 + 2 + 0)/4 − 0.
    assert energy_distance(np.array([[0.0], [2.0]]), np.array([[1.0]])) == pytest.approx(1.0)
    # In the plane, X twice (0, 0) and Y twice (3, 4): 2·5 − 0 − 0.
    zeros, others = np.zeros((2, 2)), np.array([[3.0, 4.0], [3.0, 4.0]])
    assert energy_distance(zeros, others) == pytest.approx(10.0)
    assert energy_distance(zeros, zeros) == 0.0


def test_all_permutations_by_hand():
    """Of 2 + 2 points on a line, a third of the labellings are as far apart as {0, 1}, {10, 11}."""
    first, second = np.array([[0.0], [1.0]]), np.array([[10.0], [11.0]])
    test = energy_test(first, second, permutations=100_000)
    assert test.p_value == pytest.approx(1 / 3, abs=0.006)
    # {0,1},{10,11}: 2·10 − ½ − ½ = 19. {0,10},{1,11}: 2·(1+11+9+1)/4 − 5 − 5 = 1.
    # {0,11},{1,10}: 2·(1+10+10+1)/4 − 11/2 − 9/2 = 1. Mean 7, deviation √72.
    assert test.distance == pytest.approx(19)
    assert test.standardized == pytest.approx(12 / np.sqrt(72), abs=0.02)
    paired = energy_test(first, second, is_paired=True, permutations=100_000)
    # Swaps within {0, 10} and {1, 11}: 19 twice, {10,1},{0,11} = 1 twice.
    assert paired.p_value == pytest.approx(1 / 2, abs=0.006)
    assert paired.standardized == pytest.approx(1, abs=0.02)


def test_the_rate_of_false_alarms_is_what_it_says():
    def unequal(rng):
        return rng.gamma(1.0, size=(12, 3)), rng.gamma(1.0, size=(20, 3))

    assert FEWEST <= alarms(unequal) <= MOST

    def paired(rng):  # rows with means of their own, and two draws around each
        means = 5.0 * rng.normal(size=(16, 3))
        return means + rng.normal(size=(16, 3)), means + rng.normal(size=(16, 3))

    assert FEWEST <= alarms(paired, is_paired=True) <= MOST


def test_the_p_value_is_uniform_under_the_null_hypothesis():
    rng = np.random.default_rng(2)
    values = [
        energy_test(
            rng.normal(size=(10, 2)), rng.normal(size=(10, 2)), permutations=99, seed=seed
        ).p_value
        for seed in range(DRAWS)
    ]
    for level in (0.2, 0.5, 0.8):  # 4 binomial deviations
        rate = np.mean(np.array(values) <= level)
        assert abs(rate - level) < 4 * np.sqrt(level * (1 - level) / DRAWS)
    assert min(values) >= 1 / 100, "a p-value by 99 permutations is never 0"


def test_a_shifted_mean_is_found():
    def shifted(rng):
        return rng.normal(size=(30, 3)), rng.normal([1.0, 0.0, 0.0], size=(30, 3))

    assert alarms(shifted, draws=40) >= 32
    rng = np.random.default_rng(0)
    sizes = [0.0, 0.5, 1.0, 2.0]
    first, second = rng.normal(size=(2, 60, 2))
    found = [energy_test(first, second + size).standardized for size in sizes]
    assert abs(found[0]) < 3 < found[2] < found[3] and found == sorted(found)


def test_pairs_see_what_differences_of_the_rows_hide():
    """A shift of 1.5 between rows that are 20 apart: seen within pairs, and not without them."""

    def hidden(rng):
        means = 20.0 * rng.normal(size=(20, 2))
        return means + rng.normal(size=(20, 2)), means + rng.normal(size=(20, 2)) + 1.5

    assert alarms(hidden, draws=40, is_paired=True) >= 36
    assert alarms(hidden, draws=40) <= 2


def test_other_shapes_than_means_are_found():
    rng = np.random.default_rng(4)
    assert energy_test(rng.normal(size=(80, 2)), 2.5 * rng.normal(size=(80, 2))).p_value < 0.01


@pytest.mark.parametrize("is_paired", [False, True])
def test_the_order_of_rows_does_not_matter(is_paired):
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(20, 4)), rng.normal(size=(20, 4)) + 0.2
    order = rng.permutation(20)
    other = order if is_paired else rng.permutation(20)
    before = energy_test(first, second, is_paired)
    after = energy_test(first[order], second[other], is_paired)
    assert before == after, "to the bit"
    assert energy_distance(first, second) == pytest.approx(energy_distance(second, first))


def test_the_common_scale_knows_no_labels():
    rng = np.random.default_rng(5)
    first, second = rng.normal(size=(6, 3)) * [1, 100, 0], rng.normal(size=(4, 3)) * [1, 100, 0]
    first[:, 2] = second[:, 2] = 7.0
    both = np.concatenate(pooled_scale(first, second))
    np.testing.assert_allclose(both.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(both.std(axis=0), [1, 1, 0], atol=1e-12)
    mixed = np.concatenate(pooled_scale(second, first))
    np.testing.assert_allclose(np.sort(mixed, axis=0), np.sort(both, axis=0), atol=1e-12)


def test_samples_that_do_not_vary_are_no_shift():
    test = energy_test(np.ones((5, 2)), np.ones((7, 2)))
    assert (test.distance, test.standardized, test.p_value) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("first", "second", "options", "said"),
    [
        (np.ones((1, 2)), np.ones((5, 2)), {}, r"\(1, 2\) and \(5, 2\) can't be compared"),
        (np.ones((5, 2)), np.ones((5, 3)), {}, "can't be compared"),
        (np.ones(5), np.ones(5), {}, "can't be compared"),
        (np.ones((5, 2)), np.ones((6, 2)), {"is_paired": True}, "as many rows on both sides"),
        (np.full((5, 2), np.nan), np.ones((5, 2)), {}, "NaN or ∞"),
        (np.ones((5, 2)), np.ones((5, 2)), {"permutations": 0}, "permutations=0 must be"),
    ],
)
def test_what_can_not_be_compared_is_refused(first, second, options, said):
    with pytest.raises(ValueError, match=said):
        energy_test(first, second, **options)
