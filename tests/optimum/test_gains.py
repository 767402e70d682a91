"""The interval of how far J rose: the formula by hand, and how often it holds the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tokenenv.optimum import gain_interval
from tokenenv.optimum.gains import _t_quantile


def test_the_interval_is_students_of_the_prompts_differences():
    after = np.array([[1.0, 3.0], [2.0, 2.0], [0.0, 2.0]])  # means 2, 2, 1
    before = np.array([[1.0, 1.0], [0.0, 0.0], [1.0, 3.0]])  # means 1, 0, 2: differences 1, 2, −1
    # Mean 2/3; deviation over n − 1 is √((1/9 + 16/9 + 25/9)/2) = √(7/3); t with 2 degrees 4.303.
    half = 4.303 * math.sqrt(7 / 3) / math.sqrt(3)
    assert gain_interval(after, before) == pytest.approx((2 / 3 - half, 2 / 3 + half))


def test_of_one_prompt_its_responses_scatter_and_of_one_response_nothing_is_known():
    after, before = np.array([[1.0, 3.0]]), np.array([[0.0, 1.0]])
    # Variances 2 and ½ over 2 responses each: √(1 + ¼); t with 2 degrees of freedom.
    half = 4.303 * math.sqrt(1.25)
    assert gain_interval(after, before) == pytest.approx((1.5 - half, 1.5 + half))
    assert gain_interval(after[:, :1], before[:, :1]) is None


def test_students_quantiles_are_those_of_the_tables():
    tabulated = {1: 12.706, 5: 2.571, 6: 2.447, 10: 2.228, 30: 2.042, 63: 1.998, 10**6: 1.960}
    for freedom, quantile in tabulated.items():
        assert _t_quantile(freedom) == pytest.approx(quantile, abs=1.5e-3)


@pytest.mark.parametrize(("prompts", "responses"), [(64, 1), (64, 8), (6, 2)])
def test_a_difference_that_is_none_is_called_a_fall_in_one_of_forty(rng, prompts, responses):
    """Prompts differ among themselves; policies do not. 2.5 % lie below, by design."""
    falls = 0
    for _ in range(2000):
        level = rng.normal(size=(prompts, 1))
        after, before = (level + rng.normal(size=(prompts, responses)) for _ in range(2))
        interval = gain_interval(after, before)
        assert interval is not None
        falls += interval[1] < 0
    assert 0.015 < falls / 2000 < 0.038
