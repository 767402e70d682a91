"""Generalised advantage estimation, against an independent implementation and closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from tokenenv.credit import generalized_advantages


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
