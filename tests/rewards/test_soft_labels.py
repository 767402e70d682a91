"""Ties and probabilities as labels; pairs without prompts to hold out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support.pairs import separable_pairs

from tokenenv.data import PreferencePair
from tokenenv.rewards import (
    RewardTrainingSettings,
    evaluate_preferences,
    new_reward_model,
    split_pairs,
    train_reward_model,
)
from tokenenv.rewards.preferences import preference_loss

QUICK = RewardTrainingSettings(epochs=1, batch_size=16)


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_the_loss_of_a_soft_label_by_hand():
    """With p = ¾ and a difference of 2.

    −¾·log σ(2) − ¼·log σ(−2) = ¾·.126928 + ¼·2.126928 = .626928.
    """
    loss = preference_loss(float64(2.0), float64(0.0), preferences=float64(0.75))
    expected = 0.75 * math.log1p(math.exp(-2)) + 0.25 * math.log1p(math.exp(2))
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    assert expected == pytest.approx(0.626928, abs=1e-6)
    report = evaluate_preferences(np.array([2.0]), np.array([0.0]), 0.0, np.array([0.75]))
    assert report.loss == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("label", [0.0, 0.3, 0.5, 1.0])
def test_the_loss_is_least_where_the_reward_says_the_label(label):
    """σ(d) = p there, so that its gradient σ(d) − p is 0; for p of 0 or 1 it falls for ever."""
    difference = torch.tensor([0.4], dtype=torch.float64, requires_grad=True)
    preference_loss(difference, float64(0.0), preferences=float64(label)).backward()
    sigma = 1 / (1 + math.exp(-0.4))
    assert difference.grad.item() == pytest.approx(sigma - label, abs=1e-12)


def test_a_plain_label_costs_what_it_did():
    chosen, rejected, margin = (
        float64(1.0, -0.5, 700.0),
        float64(0.3, 2.0, -700.0),
        float64(0, 1, 0),
    )
    one = preference_loss(chosen, rejected, margin, 0.1)
    assert torch.equal(one, preference_loss(chosen, rejected, margin, 0.1, float64(1, 1, 1)))
    turned = preference_loss(rejected, chosen, -margin, 0.1, float64(0, 0, 0))
    assert turned.item() == pytest.approx(one.item(), abs=1e-9)


def test_the_report_of_soft_labels_by_hand():
    """Differences 1, −1, 1, 1 with p = 1, 0.8, 0.5, 0.2.

    Accuracy counts three pairs, the tie is none: right, wrong, wrong. Of the soft ones the model
    agrees with 0.2 (it prefers the one that 0.8 reject), 0.5 and 0.2 of the labels: 0.3.
    """
    chosen = np.array([1.0, 0.0, 1.0, 1.0])
    labels = np.array([1.0, 0.8, 0.5, 0.2])
    report = evaluate_preferences(chosen, 1 - chosen, 0.0, labels)
    assert report.accuracy == pytest.approx(1 / 3)
    assert report.soft_label_agreement == pytest.approx(0.3)
    assert report.ties == 1
    # σ(1) = .731059 in the bin [.7, .8): three as given, won 1 + .5 + .2, and the second turned
    # round, won .2; its mirror has the same gap.
    gap = abs(4 / (1 + math.exp(-1)) - (1 + 0.5 + 0.2 + 0.2))
    assert report.calibration_error == pytest.approx(2 * gap / 8, abs=1e-12)
    plain = evaluate_preferences(chosen, 1 - chosen)
    assert (plain.ties, plain.soft_label_agreement, plain.accuracy) == (0, None, 0.75)


def test_ties_alone_have_no_accuracy_and_json_has_null():
    report = evaluate_preferences(np.ones(3), np.zeros(3), 0.0, 0.5)
    assert math.isnan(report.accuracy) and report.as_dict()["accuracy"] is None
    assert report.soft_label_agreement == 0.5


def test_ties_hold_rewards_together_in_training(reference_folder, rng):
    """The same pairs, once with plain labels and once as ties: the differences stay small."""
    pairs = separable_pairs(rng, count=120)
    ties = [PreferencePair(p.prompt, p.chosen, p.rejected, preference=0.5) for p in pairs]
    margins = []
    settings = RewardTrainingSettings(epochs=3, batch_size=32, learning_rate=3e-3)
    for labelled in (pairs, ties):
        report = train_reward_model(labelled, new_reward_model(reference_folder), settings)
        margins.append(report.mean_margin)
    assert margins[0] > 1 > 0.3 > abs(margins[1])
    assert report.ties == report.pairs and "are ties" in report.notes[0]


@pytest.mark.parametrize("prompt", ["", "w4 w5"])
def test_pairs_of_one_prompt_are_held_out_pair_by_pair(reference_folder, rng, prompt):
    pairs = [PreferencePair(prompt, p.chosen, p.rejected) for p in separable_pairs(rng, count=60)]
    pairs += pairs[:10]  # equal pairs stay together
    report = train_reward_model(pairs, new_reward_model(reference_folder), QUICK)
    assert report.held_out_by == "pair" and "held out pair by pair" in report.notes[0]
    assert report.training_pairs + report.selection_pairs + report.pairs == 70
    assert report.selection_pairs >= 6 and report.pairs >= 6


def test_equal_pairs_are_never_on_two_sides(reference_folder, rng):
    from tokenenv.rewards.pairs import as_token_pair

    model = new_reward_model(reference_folder)
    pairs = [PreferencePair("", p.chosen, p.rejected) for p in separable_pairs(rng, count=20)] * 3
    read = [as_token_pair(pair, model) for pair in pairs]
    split = split_pairs(read, QUICK, rng)
    parts = [split.training, split.selection, split.reported]
    keys = [{(p.chosen.tobytes(), p.rejected.tobytes()) for p in part} for part in parts]
    assert all(parts) and sum(map(len, parts)) == 60
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]


def test_pairs_without_a_prompt_among_others_count_one_by_one(reference_folder, rng):
    from tokenenv.rewards.pairs import as_token_pair

    model = new_reward_model(reference_folder)
    mixed = [
        PreferencePair("" if i < 30 else p.prompt, p.chosen, p.rejected)
        for i, p in enumerate(separable_pairs(rng, count=60))
    ]
    split = split_pairs([as_token_pair(p, model) for p in mixed], QUICK, rng)
    parts = [split.training, split.selection, split.reported]
    assert sum("" in {p.prompt for p in part} for part in parts) >= 2
    named = [{p.prompt for p in part} - {""} for part in parts]
    assert not named[0] & named[1] and not named[0] & named[2]


@pytest.mark.parametrize("preference", [1.5, -0.1, math.nan])
def test_a_label_that_is_no_probability_is_refused(reference_folder, preference):
    pairs = [PreferencePair("w4", "w5", "w6"), PreferencePair("w5", "w6", "w7", 0.0, preference)]
    with pytest.raises(ValueError, match=r"preference=.*: it must be a probability"):
        train_reward_model(pairs, new_reward_model(reference_folder))
