"""Which pairs to label: disagreement of members, diversity, limits per prompt."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from agents.reward_quality.labels import diversity
from agents.reward_quality.labels.disagreement import (
    bald,
    member_probabilities,
    probability_variance,
)
from agents.reward_quality.labels.diversity import most_disputed, select_diverse
from tokenenv.rewards import TokenPair


def test_disagreement_by_hand():
    """Members sure of opposite orders: H(½) − 0 = log 2. Both unsure: nothing. Both sure: nothing.

    0.9 and 0.7: H(0.8) − (H(0.9) + H(0.7))/2 = 0.50040 − (0.32508 + 0.61086)/2 = 0.03243.
    """
    probabilities = np.array([[1.0, 0.5, 1.0, 0.9], [0.0, 0.5, 1.0, 0.7]])
    assert bald(probabilities) == pytest.approx([math.log(2), 0, 0, 0.03243], abs=1e-5)
    assert probability_variance(probabilities) == pytest.approx([0.25, 0, 0, 0.01])


def test_the_order_of_the_responses_changes_no_disagreement():
    probabilities = np.random.default_rng(0).random((3, 20))
    for measure in (bald, probability_variance):
        assert measure(1 - probabilities) == pytest.approx(measure(probabilities))


class Rewards:
    """A reward model whose raw reward is a multiple of the last token."""

    def __init__(self, factor: float) -> None:
        self.factor, self.name = factor, "made up"

    def raw_rewards(self, sequences):
        return np.array([self.factor * float(sequence[-1]) for sequence in sequences])


def pair(a: int, b: int) -> TokenPair:
    return TokenPair(np.array([1, a]), np.array([1, b]), "p")


def test_pairs_whose_order_members_contradict_come_first():
    """Members r = ±x contradict each other about every difference, the more the larger it is."""
    pairs = [pair(3, 3), pair(4, 3), pair(9, 3)]
    probabilities = member_probabilities([Rewards(1.0), Rewards(-1.0)], [pairs, pairs])
    assert probabilities[0] == pytest.approx(1 / (1 + np.exp([0.0, -1.0, -6.0])))
    assert probabilities[0] + probabilities[1] == pytest.approx(np.ones(3))
    assert most_disputed(bald(probabilities), 2) == [2, 1]
    agreeing = member_probabilities([Rewards(1.0), Rewards(1.0)], [pairs, pairs])
    assert bald(agreeing) == pytest.approx(np.zeros(3), abs=1e-12)
    with pytest.raises(ValueError, match=r"made up.*not finite"):
        member_probabilities([Rewards(math.inf)], [pairs])


@pytest.fixture
def clusters(rng):
    """Four directions with ten pairs around each; the first has the most disagreement."""
    centres = np.eye(8)[:4]
    features = np.repeat(centres, 10, axis=0) + 0.05 * rng.normal(size=(40, 8))
    features *= rng.choice([-1, 1], size=(40, 1))  # a and b are in any order
    return features, np.repeat([0.6, 0.5, 0.5, 0.5], 10) + 0.001 * rng.random(40)


def test_a_selection_spreads_over_clusters(clusters):
    features, disagreement = clusters
    selected = select_diverse(features, disagreement, 4)
    assert {index // 10 for index in selected} == {0, 1, 2, 3} and selected[0] // 10 == 0
    assert {index // 10 for index in most_disputed(disagreement, 4)} == {0}


def test_no_pair_is_taken_twice_even_where_nothing_new_is_left(clusters):
    features, disagreement = clusters
    repeated = np.repeat(features[::10], 10, axis=0)  # four different ones alone
    for x in (features, repeated, np.zeros_like(features)):
        selected = select_diverse(x, disagreement, 40)
        assert sorted(selected) == list(range(40))
    assert {index // 10 for index in select_diverse(repeated, disagreement, 4)} == {0, 1, 2, 3}


def test_a_greedy_selection_is_that_of_the_determinant(rng):
    """Two ways: the incremental factor, and the determinant of every larger set."""
    features, q = rng.normal(size=(9, 3)), rng.random(9) + 0.1
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    kernel = np.outer(q, q) * (unit @ unit.T) ** 2
    expected: list[int] = []
    for _ in range(4):
        gains = {
            i: np.linalg.det(kernel[np.ix_([*expected, i], [*expected, i])])
            for i in set(range(9)) - set(expected)
        }
        expected.append(max(gains, key=gains.__getitem__))
    assert select_diverse(features, q, 4) == expected


@pytest.mark.parametrize("is_diverse", [True, False])
def test_a_prompt_has_at_most_as_many_pairs_as_it_may(clusters, monkeypatch, is_diverse):
    features, disagreement = clusters
    pairs = [pair(index, 40) for index in range(40)]  # the last token says which features
    of_token = np.concatenate([features, np.zeros((1, 8))])
    monkeypatch.setattr(
        diversity,
        "pooled_features",
        lambda factor, sequences: (factor * of_token[[s[-1] for s in sequences]], None),
    )
    prompts = [f"p{index % 5}" for index in range(40)]
    arguments = (disagreement, 1.0, pairs)
    selected = diversity.choose(*arguments, 10, is_diverse, prompts, 2)
    assert len(set(selected)) == 10
    assert Counter(prompts[index] for index in selected) == {f"p{n}": 2 for n in range(5)}
    assert len(diversity.choose(*arguments, 10, is_diverse, prompts, 1)) == 5
    assert len(set(diversity.choose(*arguments, 40, is_diverse))) == 40
