"""Intervals, groups, calibration, rules of length by hand; ensembles; the reference's scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.pairs import separable_pairs

from tokenenv.models import load_frozen
from tokenenv.rewards import (
    RewardTrainingSettings,
    accuracy_interval,
    as_token_pair,
    distribution,
    ensemble_report,
    held_out_scores,
    new_reward_model,
    reference_rewards,
    split_pairs,
    train_reward_model,
)
from tokenenv.rewards.preference_groups import calibration_bins, grouped_accuracy
from tokenenv.rewards.preference_report import PairLengths, evaluate_preferences, pair_details


def test_wilsons_interval_by_hand():
    """8 of 10, z = 1.96: centre (.8 + .19207)/1.38415, half .28675/1.38415·…: .4902 to .9433."""
    low, high = accuracy_interval(np.array([1.0] * 8 + [0.0] * 2))
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    low, high = accuracy_interval(np.ones(10))  # 1/(1 + z²/10)
    assert low == pytest.approx(1 / (1 + 1.959964**2 / 10)) and high == pytest.approx(1.0)
    assert all(math.isnan(end) for end in accuracy_interval(np.zeros(0)))


def test_pairs_of_one_prompt_narrow_the_interval_by_what_they_add(rng):
    right = (rng.random(50) < 0.7).astype(float)
    names = [str(i) for i in range(50)]
    once = accuracy_interval(right, names)
    assert once == pytest.approx(accuracy_interval(right))
    # The same pair four times is one draw.
    assert accuracy_interval(np.repeat(right, 4), np.repeat(names, 4).tolist()) == pytest.approx(
        once
    )
    assert accuracy_interval(np.ones(40), ["a", "b"] * 20) == accuracy_interval(np.ones(2))


def test_groups_hold_all_pairs_in_the_order_of_the_number():
    values = np.array([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])
    right = np.array([1.0, 0.0, 0.5, 1.0, 1.0, 1.0])
    rows = grouped_accuracy(values, right, list("abcdef"), parts=3)
    assert [(r["low"], r["high"], r["pairs"], r["accuracy"]) for r in rows] == [
        *((1.0, 2.0, 2, 0.25), (3.0, 4.0, 2, 1.0), (5.0, 6.0, 2, 1.0)),
    ]
    (only,) = grouped_accuracy(np.zeros(4), np.array([1.0, 1.0, 0.0, 1.0]), list("abcd"))
    assert only["pairs"] == 4 and only["accuracy"] == 0.75
    assert grouped_accuracy(np.zeros(0), np.zeros(0), []) == []


def test_bins_of_calibration_add_up_to_the_error(rng):
    difference, label = rng.normal(size=200), (rng.random(200) < 0.7).astype(float)
    error, rows = calibration_bins(difference, label)
    assert sum(row["pairs"] for row in rows) == 400
    gaps = [row["pairs"] * abs(row["predicted"] - row["observed"]) for row in rows]
    assert error == pytest.approx(sum(gaps) / 400)
    report = evaluate_preferences(difference, np.zeros(200), 0.0, label)
    assert report.calibration_error == error


def test_rules_of_length_and_soft_labels_by_hand():
    """Five pairs, the last a tie. The shorter is the better one in 1 and 4, equal in 3.

    In pair 2 the label is 0.2: the rejected response, which is the shorter one, is the better. So
    the rule is right in 1, 2 and 4, and half in 3: 3.5 of 4. The rewards prefer the chosen side in
    all five: right in 1, 3 and 4. Of those of different length the longer one scores higher in 2
    and 5.
    """
    details = pair_details(
        np.ones(5),
        np.zeros(5),
        PairLengths(np.array([3, 9, 5, 4, 8]), np.array([7, 2, 5, 6, 3]), list("abcde")),
        np.array([0.0, 0.0, 1.0, 1.0, 0.0]),
        np.array([1.0, 0.2, 1.0, 1.0, 0.5]),
    )
    assert details["shorter_wins"]["accuracy"] == 3.5 / 4
    assert details["longer_wins"]["accuracy"] == 0.5 / 4
    assert details["longer_scores_higher"] == 0.5
    assert details["accuracy_interval"] == list(accuracy_interval(np.array([1.0, 0, 1, 1])))
    # better − other: −4, −7, 0, −2
    assert [row["low"] for row in details["by_length_difference"]] == [-7, -4, -2, 0]
    assert [row["accuracy"] for row in details["by_length_difference"]] == [0, 1, 1, 1]
    assert sum(row["pairs"] for row in details["by_labelled_margin"]) == 4
    soft, sigma = details["soft_labels"], 1 / (1 + math.exp(-1))
    assert soft["pairs"] == 2 and soft["agreement"] == pytest.approx((0.2 + 0.5) / 2)
    assert soft["best_agreement"] == pytest.approx((0.8 + 0.5) / 2)
    error = (abs(sigma - 0.2) + abs(sigma - 0.5)) / 2
    assert soft["mean_absolute_error"] == pytest.approx(error) and soft["correlation"] is None
    assert pair_details(
        np.ones(1), np.zeros(1), PairLengths(np.ones(1), np.ones(1), ["a"]), np.zeros(1), np.ones(1)
    )["soft_labels"] is None  # fmt: skip


def test_distributions_have_their_percentiles():
    found = distribution(np.arange(101.0))
    assert found["samples"] == 101 and found["mean"] == 50
    assert found["percentiles"] == {str(p): float(p) for p in (0, 5, 25, 50, 75, 95, 100)}


@pytest.fixture(scope="module")
def ensemble(reference_folder):
    """Pairs, settings, two members and their reports."""
    pairs = separable_pairs(np.random.default_rng(3), 80)
    settings = RewardTrainingSettings(epochs=1, batch_size=16, learning_rate=3e-3, seed=4)
    members = [new_reward_model(reference_folder, seed=4 + k) for k in range(2)]
    reports = [
        train_reward_model(pairs, member, settings, order_seed=k or None)
        for k, member in enumerate(members)
    ]
    return pairs, settings, members, reports


def test_members_share_the_split_and_differ_in_the_rest(ensemble, reference_folder):
    pairs, settings, members, reports = ensemble
    assert reports[0].pairs == reports[1].pairs and reports[0].loss != reports[1].loss
    alone = new_reward_model(reference_folder, seed=4)
    assert train_reward_model(pairs, alone, settings) == reports[0]
    assert torch.equal(alone.model.score.weight, members[0].model.score.weight)
    other_order = new_reward_model(reference_folder, seed=4)
    train_reward_model(pairs, other_order, settings, order_seed=1)
    assert not torch.equal(other_order.model.score.weight, alone.model.score.weight)


def test_an_ensemble_is_the_mean_of_normalised_rewards(ensemble):
    pairs, settings, members, reports = ensemble
    report = ensemble_report(pairs, members, reports, settings)
    tokens = [as_token_pair(pair, members[0]) for pair in pairs]
    judged = split_pairs(tokens, settings, np.random.default_rng(settings.seed)).judged
    scores = np.array(
        [
            [m.normalize(m.raw_rewards([side])) for side in (p.chosen, p.rejected)]
            for m in members
            for p in judged
        ]
    ).reshape(2, len(judged), 2)
    mean = scores.mean(axis=0)
    assert report.accuracy == pytest.approx((mean[:, 0] > mean[:, 1]).mean())
    scale = (members[0].std + members[1].std) / 2
    expected = evaluate_preferences(*(scale * mean.T)).loss
    assert report.loss == pytest.approx(expected, abs=1e-5)
    assert [m["accuracy"] for m in report.details["members"]] == [r.accuracy for r in reports]
    gap = scores[..., 0] - scores[..., 1]
    agreed = (np.sign(gap[0]) == np.sign(gap[1])).mean()
    assert report.details["agreement"]["all_agree"] == pytest.approx(agreed)
    shown = held_out_scores(
        members, split_pairs(tokens, settings, np.random.default_rng(settings.seed))
    )
    np.testing.assert_allclose(shown["chosen"], mean[:, 0], atol=1e-5)
    assert report.details["scores"]["chosen"]["mean"] == pytest.approx(mean[:, 0].mean(), abs=1e-5)


def test_samples_of_the_reference_are_scored_as_episodes_are(ensemble, reference_folder, tmp_path):
    pairs, _, members, _ = ensemble
    tokens = [as_token_pair(pair, members[0]) for pair in pairs]
    reference = load_frozen(reference_folder)
    found = reference_rewards(members, reference, tokens, samples=5, seed=1)
    assert found.shape == (5,) and np.isfinite(found).all()
    assert np.array_equal(found, reference_rewards(members, reference, tokens, 5, seed=1))
    one, other = (reference_rewards([m], reference, tokens, 5, seed=1) for m in members)
    np.testing.assert_allclose(found, (one + other) / 2, atol=1e-6)
    from support.models import save_language_model, word_tokenizer

    folder = save_language_model(tmp_path)
    word_tokenizer(reverse=True).save_pretrained(folder)
    with pytest.raises(ValueError, match="have different tokenizers"):
        reference_rewards(members, load_frozen(folder), tokens, 5)
