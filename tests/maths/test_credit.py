"""Advantages with a critic and without, against independent implementations and closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from tokenenv.maths.advantages import (
    batch_baseline_advantages,
    generalized_advantages,
    group_advantages,
    leave_one_out_advantages,
    length_adaptive_lambdas,
    token_advantages,
    whiten_rewards,
)


def naive_advantages(rewards, values, bootstrap, gamma, lam):
    """One sequence, eq. 16 as it is printed: A_t = Σ_l (γλ)^l·δ_{t+l}, summed forwards."""
    steps = len(rewards)
    following = [*values[1:], bootstrap]
    deltas = [rewards[t] + gamma * following[t] - values[t] for t in range(steps)]
    return [
        sum((gamma * lam) ** (later - t) * deltas[later] for later in range(t, steps))
        for t in range(steps)
    ]


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.99, 0.9), (0.9, 0.0), (1.0, 1.0)])
def test_equals_a_naive_float64_implementation_on_ragged_rows(rng, gamma, lam, ended):
    batch, steps = 17, 11
    rewards, values = rng.normal(size=(2, batch, steps))
    lengths = rng.integers(1, steps + 1, size=batch)
    lengths[:2] = 1, steps
    bootstrap = np.zeros(batch) if ended else rng.normal(size=batch)
    found = generalized_advantages(rewards, values, lengths, bootstrap, gamma, lam)
    assert found.dtype == np.float64 and found.shape == (batch, steps)
    for row, length in enumerate(lengths):
        expected = naive_advantages(
            rewards[row, :length].tolist(),
            values[row, :length].tolist(),
            bootstrap[row],
            gamma,
            lam,
        )
        np.testing.assert_allclose(found[row, :length], expected, rtol=0, atol=1e-12)
        assert np.all(found[row, length:] == 0.0)


def test_mixed_cut_and_ended_rows_keep_their_own_bootstrap():
    rewards = np.array([[1.0, 2.0], [1.0, 2.0]])
    values = np.array([[0.5, 0.25], [0.5, 0.25]])
    found = generalized_advantages(
        rewards, values, np.array([2, 2]), np.array([0.0, 4.0]), 1.0, 1.0
    )
    # lambda = 1, gamma = 1: the sum of rewards to come, plus the bootstrap, minus V.
    np.testing.assert_allclose(found, [[2.5, 1.75], [6.5, 5.75]], rtol=0, atol=1e-15)


def test_worked_example():
    """δ_4 = 1 − .8 = .2; δ_3 = .99·.8 − .5 = .292; A_3 = .292 + .9405·.2 = .4801; and so on."""
    found = generalized_advantages(
        np.array([[0.0, 0.0, 0.0, 0.0, 1.0]]),
        np.array([[0.1, 0.2, 0.3, 0.5, 0.8]]),
        np.array([5]),
        np.array([0.0]),
        0.99,
        0.95,
    )
    expected = [[0.76111389, 0.70506527, 0.64653405, 0.4801, 0.2]]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)


def test_lambda_zero_is_one_step_td_and_one_is_monte_carlo_minus_v(rng):
    rewards, values = rng.normal(size=(2, 4, 6))
    lengths, bootstrap, gamma = np.full(4, 6), rng.normal(size=4), 0.97
    next_values = np.concatenate([values[:, 1:], bootstrap[:, None]], axis=1)
    np.testing.assert_allclose(
        generalized_advantages(rewards, values, lengths, bootstrap, gamma, 0.0),
        rewards + gamma * next_values - values,
        rtol=0,
        atol=1e-13,
    )
    discounts = gamma ** np.arange(7)
    padded = np.concatenate([rewards, bootstrap[:, None]], axis=1)
    returns = np.stack([padded[:, t:] @ discounts[: 7 - t] for t in range(6)], axis=1)
    np.testing.assert_allclose(
        generalized_advantages(rewards, values, lengths, bootstrap, gamma, 1.0),
        returns - values,
        rtol=0,
        atol=1e-13,
    )


def test_nothing_leaks_across_rows_or_from_the_padding(rng):
    rewards, values = rng.normal(size=(2, 3, 5))
    lengths, bootstrap = np.array([2, 5, 3]), rng.normal(size=3)
    before = generalized_advantages(rewards, values, lengths, bootstrap, 0.99, 0.95)
    rewards[1], values[1], bootstrap[1] = 1e6, -1e6, 1e6  # another row
    rewards[0, 2:], values[0, 2:] = np.nan, np.inf  # what stands behind the end of a row
    after = generalized_advantages(rewards, values, lengths, bootstrap, 0.99, 0.95)
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])


# Two values of λ, and one that depends on the length --------------------------------------------


def test_the_critics_lambda_by_hand():
    """Rewards 0 and 1, V = 0.5 and 0.25: δ_1 = 0.25 − 0.5 = −0.25, δ_2 = 1 − 0.25 = 0.75."""
    given = np.array([0.0, 1.0]), np.array([0.5, 0.25]), np.array([2]), np.zeros(1), 1.0
    for value_lambda, expected in (
        (None, [0.625, 1.0]),  # that of the advantages: 0.125 + 0.5, 0.75 + 0.25
        (0.5, [0.625, 1.0]),
        (1.0, [1.0, 1.0]),  # the rewards to come
        (0.0, [0.25, 1.0]),  # r + V of the next state
    ):
        advantages, returns = token_advantages("gae", *given, 0.5, 1, value_lambda)
        assert advantages.tolist() == [0.125, 0.75], "−0.25 + 0.5·0.75, whatever the critic's λ"
        assert returns.tolist() == expected
    for estimator, expected in (("monte-carlo", [0.5, 0.75]), ("td", [-0.25, 0.75])):
        advantages, returns = token_advantages(estimator, *given, 0.95, 1, 1.0)
        assert advantages.tolist() == expected and returns.tolist() == [1.0, 1.0]


def test_length_adaptive_lambdas_by_hand():
    # 1 − 1/(0.05·l): l = 40 has 1 − 1/2, l = 200 has 1 − 1/10; up to 20 there is nothing left.
    found = length_adaptive_lambdas(np.array([1, 10, 20, 40, 200]), 0.05)
    np.testing.assert_allclose(found, [0.0, 0.0, 0.0, 0.5, 0.9], rtol=0, atol=1e-15)
    # 1 − 1/(2·l)
    found = length_adaptive_lambdas(np.array([1, 2, 4]), 2.0)
    np.testing.assert_allclose(found, [0.5, 0.75, 0.875], rtol=0, atol=1e-15)


@pytest.mark.parametrize("alpha", [1e-300, 1e-9, 0.05, 3.0, 1e9, 1e300])
def test_length_adaptive_lambdas_are_values_of_lambda(alpha):
    found = length_adaptive_lambdas(np.arange(1, 2000), alpha)
    assert found.min() >= 0.0 and found.max() <= 1.0 and np.all(np.diff(found) >= 0.0)


def test_every_sequence_has_the_lambda_of_its_own_length(rng):
    lengths = np.array([3, 30, 1, 60])
    rewards, values = rng.normal(size=(2, lengths.sum()))
    lambdas = length_adaptive_lambdas(lengths, 0.05)
    assert len(set(lambdas)) == 3
    found, returns = token_advantages("gae", rewards, values, lengths, np.zeros(4), 1.0, lambdas, 1)
    start = 0
    for length, lam in zip(lengths, lambdas, strict=True):
        own = slice(start, start + length)
        expected = naive_advantages(rewards[own].tolist(), values[own].tolist(), 0.0, 1.0, lam)
        np.testing.assert_allclose(found[own], expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(returns[own], expected + values[own], rtol=0, atol=1e-5)
        start += length


# Without a critic ---------------------------------------------------------------------------------


def test_leave_one_out_by_hand():
    # The others of 1, 2 and 6 have the means 4, 3.5 and 1.5; of 5, 5 and 8: 6.5, 6.5 and 5.
    found = leave_one_out_advantages(np.array([[1, 2, 6], [5, 5, 8]]))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [[-3, -1.5, 4.5], [-1.5, -1.5, 3]], rtol=0, atol=1e-15)


def test_group_advantages_by_hand():
    # Mean 3, deviations −2, −1, 3, whose squares sum to 14: variance 14/2 = 7 (14/3 with ddof=0).
    found = group_advantages(np.array([[1, 2, 6]]))
    assert found.dtype == np.float64
    expected = np.array([[-2, -1, 3]]) / (7**0.5 + 1e-4)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)


def test_batch_baseline_by_hand():
    found = batch_baseline_advantages(np.array([1, 2, 6]))  # mean 3
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [-2, -1, 3])
    assert batch_baseline_advantages(np.zeros(0)).shape == (0,)


def test_vine_advantages_by_hand():
    """A_t = r_t + V̂(s_{t+1}) − V̂(s_t), 0 after the end; they add up to the return less V̂(s_0)."""
    rewards, values = np.array([-0.1, 0.2, 1.0, 3.0]), np.array([0.5, 0.75, 0.25, 2.0])
    advantages, returns = token_advantages(
        "vine", rewards, values, np.array([3, 1]), np.zeros(2), 1.0, 0.95, 1
    )
    # −0.1 + 0.75 − 0.5; 0.2 + 0.25 − 0.75; 1 − 0.25; and a response of its own: 3 − 2.
    np.testing.assert_allclose(advantages, [0.15, -0.3, 0.75, 1.0], rtol=0, atol=1e-7)
    np.testing.assert_allclose(returns, [1.1, 1.2, 1.0, 3.0], rtol=0, atol=1e-6)
    assert advantages[:3].sum() == pytest.approx(1.1 - 0.5, abs=1e-6)


@pytest.mark.parametrize("k", [2, 3, 8])
def test_leave_one_out_is_the_centred_return_times_k_over_k_minus_1(rng, k):
    returns = rng.normal(size=(50, k))
    centred = returns - returns.mean(axis=1, keepdims=True)
    found = leave_one_out_advantages(returns)
    np.testing.assert_allclose(found, k / (k - 1) * centred, rtol=0, atol=1e-14)
    np.testing.assert_allclose(found.mean(axis=1), np.zeros(50), rtol=0, atol=1e-14)


def test_a_baseline_takes_out_what_all_responses_to_a_prompt_have_in_common(rng):
    returns, shift = rng.normal(size=(20, 4)), rng.normal(scale=10, size=(20, 1))
    for advantages in (leave_one_out_advantages, group_advantages):
        np.testing.assert_allclose(
            advantages(returns + shift), advantages(returns), rtol=0, atol=1e-13
        )
    flat = returns.reshape(-1)
    np.testing.assert_allclose(
        batch_baseline_advantages(flat + 7.5), batch_baseline_advantages(flat), rtol=0, atol=1e-13
    )


def test_the_scale_of_the_rewards_leaves_group_advantages_as_they_are_and_scales_the_others(rng):
    returns = rng.normal(size=(20, 4))
    scaled, own = (group_advantages(x, epsilon=0.0) for x in (250 * returns, returns))
    np.testing.assert_allclose(scaled, own, rtol=0, atol=1e-13)
    np.testing.assert_allclose(own.std(axis=1, ddof=1), np.ones(20), rtol=0, atol=1e-13)
    np.testing.assert_allclose(
        leave_one_out_advantages(250 * returns),
        250 * leave_one_out_advantages(returns),
        rtol=0,
        atol=1e-11,
    )


@pytest.mark.parametrize("epsilon", [1e-4, 0.0])
def test_a_group_of_equal_returns_has_no_advantages(epsilon):
    # The mean of three times 0.1 is not 0.1 in floating point, and 0/0 is none either.
    returns = np.array([[0.1, 0.1, 0.1], [1.0, 2.0, 3.0]])
    found = group_advantages(returns, epsilon)
    assert np.all(found[0] == 0.0) and found[1, 0] < found[1, 1] == 0.0 < found[1, 2]
    assert np.all(leave_one_out_advantages(returns)[0] == 0.0)


def test_rounding_of_float32_is_no_difference_between_responses():
    returns = np.array([[3.0, np.nextafter(np.float32(3.0), np.float32(4.0))]], dtype=np.float32)
    assert np.abs(group_advantages(returns)).max() < 2e-3  # 2.4e-7/2 over 1e-4


@pytest.mark.parametrize("advantages", [leave_one_out_advantages, group_advantages])
@pytest.mark.parametrize("shape", [(4,), (4, 1), (2, 2, 2)])
def test_a_response_without_others_is_refused(advantages, shape):
    with pytest.raises(ValueError, match="at least 2 responses per group"):
        advantages(np.ones(shape))


def test_batch_baseline_wants_one_return_per_response():
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        batch_baseline_advantages(np.ones((2, 2)))


# Whitening of rewards -----------------------------------------------------------------------------


def test_whitened_rewards_by_hand():
    # Mean 1; squared deviations 1 + 1 + 1 + 9 = 12, over 3: variance 4, standard deviation 2.
    found = whiten_rewards(np.array([0, 0, 0, 4]))
    np.testing.assert_allclose(found, [0.5, 0.5, 0.5, 2.5], rtol=0, atol=1e-8)


def test_whitening_sets_the_spread_and_keeps_the_mean(rng):
    rewards = rng.normal(3.0, 0.2, size=400)
    found = whiten_rewards(rewards)
    assert abs(found.mean() - rewards.mean()) <= 1e-12
    assert abs(found.std(ddof=1) - 1) <= 1e-6  # 1e-8 beside a variance of 0.04


def test_whitening_pays_every_token_for_being_there():
    """The side effect: a sum over n tokens is sum/s + n·mean·(1 − 1/s)."""
    rewards = np.array([1.0, 0.0, 0.0, 0.0, 1.0])  # two responses that are worth 1, of 4 and 1
    mean, s = 0.4, np.sqrt(0.3 + 1e-8)  # (2·0.36 + 3·0.16)/4 = 0.3
    found = whiten_rewards(rewards)
    longer, shorter = found[:4].sum(), found[4:].sum()
    assert longer == pytest.approx(1 / s + 4 * mean * (1 - 1 / s), abs=1e-12)
    assert shorter == pytest.approx(1 / s + mean * (1 - 1 / s), abs=1e-12)
    assert shorter - longer == pytest.approx(0.9908902, abs=1e-6)  # 3·0.4·(1/0.5477226 − 1)


def test_rewards_without_a_spread_stay():
    np.testing.assert_array_equal(whiten_rewards(np.array([2.0])), [2.0])
    np.testing.assert_array_equal(whiten_rewards(np.full(5, 2.0)), np.full(5, 2.0))
    assert whiten_rewards(np.zeros(0)).shape == (0,)
