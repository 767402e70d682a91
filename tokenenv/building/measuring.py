"""Measurements on the reward model of every bundled task."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tokenenv.building.parts import LabelledPairs
from tokenenv.rewards import Episode, EpisodeScorer, LearnedReward, evaluate_preferences

__all__ = ["measure_reward_model"]


def measure_reward_model(
    scorer: EpisodeScorer, pairs: LabelledPairs, episodes: Sequence[Episode]
) -> dict[str, float]:
    """Accuracy on held-out pairs against the best possible, and agreement with the gold reward."""
    assert isinstance(scorer.reward, LearnedReward)
    reward_model = scorer.reward.reward_model
    chosen, rejected = (
        reward_model.raw_rewards([getattr(pair, side) for pair in pairs.pairs])
        for side in ("chosen", "rejected")
    )
    report = evaluate_preferences(chosen, rejected)
    accuracy, bayes = report.accuracy, pairs.bayes_accuracy
    agreement = np.where(chosen > rejected, pairs.probabilities, 1 - pairs.probabilities)
    scores = scorer.score(episodes)
    assert scores.gold_reward is not None
    return {
        "held_out_pairs": report.pairs,
        "accuracy": accuracy,
        "accuracy_standard_error": math.sqrt(accuracy * (1 - accuracy) / report.pairs),
        "expected_accuracy": float(agreement.mean()),
        "bayes_accuracy": bayes,
        "accuracy_over_bayes": (accuracy - 0.5) / (bayes - 0.5),
        "loss": report.loss,
        "calibration_error": report.calibration_error,
        "reward_mean": reward_model.mean,
        "reward_std": reward_model.std,
        "correlation_with_gold": float(np.corrcoef(scores.score, scores.gold_reward)[0, 1]),
        "reference_gold_mean": float(scores.gold_reward.mean()),
        "reference_gold_std": float(scores.gold_reward.std()),
        "reference_score_std": float(scores.score.std()),
    }
