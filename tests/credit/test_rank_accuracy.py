"""Rank accuracy, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from agents.credit import rank_accuracy


def test_pairs_are_counted_by_hand():
    """First state: 1 < 2 < 3 said as 1 < 3 < 2: two of three pairs. Second: one pair, wrong."""
    truth = np.array([[1.0, 2.0, 3.0], [0.0, 1.0, np.nan]])
    estimates = np.array([[1.0, 3.0, 2.0], [1.0, 0.0, 7.0]])
    assert rank_accuracy(estimates, truth) == pytest.approx(2 / 4)


def test_pairs_weigh_by_their_probability_and_states_by_their_visits():
    """Pairs of the state above: right with ½·¼ and ½·¼, wrong with ¼·¼: (⅛ + ⅛)/(⅛ + ⅛ + 1/16)."""
    truth = np.array([[1.0, 2.0, 3.0], [0.0, 1.0, np.nan]])
    estimates = np.array([[1.0, 3.0, 2.0], [1.0, 0.0, 7.0]])
    probabilities = np.array([[0.5, 0.25, 0.25], [0.5, 0.5, 0.0]])
    seldom = rank_accuracy(estimates, truth, probabilities, np.array([1.0, 0.0]))
    assert seldom == pytest.approx(0.25 / 0.3125)
    often = rank_accuracy(estimates, truth, probabilities, np.array([1.0, 3.0]))
    assert often == pytest.approx(0.25 / (0.3125 + 3 * 0.25))


def test_the_truth_has_1_its_negative_0_and_a_constant_a_half():
    truth = np.random.default_rng(0).normal(size=(20, 4))
    assert rank_accuracy(truth, truth) == 1.0
    assert rank_accuracy(-truth, truth) == 0.0
    assert rank_accuracy(0 * truth, truth) == 0.5
    assert np.isnan(rank_accuracy(truth, 0 * truth))


def test_what_does_not_fit_is_refused():
    truth = np.zeros((2, 3))
    with pytest.raises(ValueError, match=r"for a truth of shape \(2, 3\): give"):
        rank_accuracy(np.zeros((3, 2)), truth)
    with pytest.raises(ValueError, match="a weight is negative"):
        rank_accuracy(truth, truth, truth - 1)
