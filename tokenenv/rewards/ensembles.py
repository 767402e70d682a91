"""Several reward models as one: the mean of their normalised rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tokenenv.rewards.pair_split import PairSplit, split_pairs
from tokenenv.rewards.pairs import PreferencePair, TokenPair, as_token_pair
from tokenenv.rewards.preference_groups import wins_of
from tokenenv.rewards.preference_report import HeldOutReport, score_distributions
from tokenenv.rewards.preferences import JudgedPairs, judge_rewards, judged_pairs
from tokenenv.rewards.reward_model import RewardModel
from tokenenv.rewards.training_settings import RewardTrainingSettings

__all__ = ["ensemble_report", "held_out_scores"]


def ensemble_report(
    pairs: Sequence[PreferencePair | TokenPair],
    members: Sequence[RewardModel],
    reports: Sequence[HeldOutReport],
    settings: RewardTrainingSettings,
) -> HeldOutReport:
    """The report on an ensemble's reward, on the held-out pairs of its members.

    The reward is what equal weights make of the members (Coste et al. 2023,
    https://arxiv.org/abs/2310.02743, mean optimisation): the mean of their normalised rewards. For
    loss and calibration it is scaled by the mean of their deviations, to be in the units in which
    each of them predicts.

    Args:
        pairs: that all members were trained on by `train_reward_model`.
        members: K trained models.
        reports: theirs.
        settings: theirs; the seed is that of the split.

    Returns:
        A report with `details["members"]` (accuracy and loss of each) and
        `details["agreement"]`: the share of the pairs on which all members prefer the same
        response, the accuracy on these and on the others, and the mean deviation of the members'
        normalised rewards of a response.
    """
    tokens = [as_token_pair(pair, members[0]) for pair in pairs]
    split = split_pairs(tokens, settings, np.random.default_rng(settings.seed))
    scores = _member_scores(members, split)  # (K, 2, B)
    scale = float(np.mean([member.std for member in members]))
    mean = scores.mean(axis=0)  # (2, B)
    together = JudgedPairs(split.judged, mean[0] * scale, mean[1] * scale)
    records = [report.training for report in reports]
    report = judge_rewards(together, split, None, records)
    details: dict[str, Any] = {
        **report.details,
        "scores": score_distributions(*mean),
        "members": [
            {"accuracy": one.accuracy, "loss": one.loss, **_interval(one)} for one in reports
        ],
        "agreement": _agreement(scores, split.judged),
    }
    return replace(report, details=details)


def held_out_scores(members: Sequence[RewardModel], split: PairSplit) -> dict[str, np.ndarray]:
    """`"chosen"`, `"rejected"` → (B,) mean normalised rewards of the report's pairs.

    Args:
        members: one model, or those of an ensemble.
        split: whose `judged` pairs are meant.
    """
    chosen, rejected = _member_scores(members, split).mean(axis=0)
    return {"chosen": chosen, "rejected": rejected}


def _member_scores(members: Sequence[RewardModel], split: PairSplit) -> np.ndarray:
    """(K, 2, B) normalised rewards of the chosen and the rejected sides."""
    judged = [judged_pairs(member, split.judged) for member in members]
    return np.stack(
        [
            np.stack([member.normalize(one.chosen), member.normalize(one.rejected)])
            for member, one in zip(members, judged, strict=True)
        ]
    )


def _interval(report: HeldOutReport) -> dict[str, Any]:
    return {"accuracy_interval": report.details["accuracy_interval"]}


def _agreement(scores: np.ndarray, pairs: Sequence[TokenPair]) -> dict[str, Any]:
    """Where (K, 2, B) members' scores of the two sides point the same way."""
    preferences = np.array([pair.preference for pair in pairs])
    difference = scores[:, 0] - scores[:, 1]  # (K, B)
    is_agreed = (difference > 0).all(axis=0) | (difference < 0).all(axis=0)
    wins = wins_of(difference.mean(axis=0))
    right = np.where(preferences > 0.5, wins, 1.0 - wins)
    is_pair = preferences != 0.5

    def accuracy(where: np.ndarray) -> float | None:
        return float(right[where].mean()) if where.any() else None

    return {
        "all_agree": float(is_agreed.mean()),
        "accuracy_where_they_agree": accuracy(is_agreed & is_pair),
        "accuracy_elsewhere": accuracy(~is_agreed & is_pair),
        "deviation": float(scores.std(axis=0).mean()),
    }
