"""Lorenz curve, Gini coefficient and means by groups, against arithmetic by hand."""

from __future__ import annotations

import numpy as np
import pytest

from agents.credit import by_decile, by_position, gini, lorenz


def test_the_lorenz_curve_of_four_tokens():
    """Of 1, 2, 3, 4 the weakest has 1/10 of the sum, the two weakest 3/10, three 6/10."""
    tokens, shares = lorenz(np.array([4.0, 1.0, 3.0, 2.0]))
    np.testing.assert_allclose(tokens, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(shares, [0, 0.1, 0.3, 0.6, 1])


def test_gini_is_the_mean_difference_over_twice_the_mean():
    values = np.random.default_rng(0).exponential(size=50)
    differences = np.abs(values[:, None] - values[None, :]).mean()
    assert gini(values) == pytest.approx(differences / (2 * values.mean()), rel=1e-12)


@pytest.mark.parametrize(
    ("values", "expected"), [([2.0] * 7, 0.0), ([0.0, 0.0, 0.0, 5.0], 0.75), ([0.0, 0.0], 0.0)]
)
def test_gini_at_its_ends(values, expected):
    assert gini(np.array(values)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("values", [[], [1.0, -1.0], [np.nan], [[1.0]]])
def test_no_strengths_are_refused(values):
    with pytest.raises(ValueError, match="one number ≥ 0 for each token"):
        gini(np.array(values))


def test_means_by_position_and_by_tenth():
    assert by_position(np.array([1.0, 3.0, np.nan, 5.0]), np.array([0, 0, 1, 2])) == {
        0: 2.0,
        2: 5.0,
    }
    keys = np.arange(20)[::-1]
    assert by_decile(np.arange(20.0), keys) == [18.5 - 2 * i for i in range(10)]
    assert np.isnan(by_decile(np.ones(3), np.ones(3))).sum() == 7
