"""How well rewards agree with preferences: accuracy, loss, margin and calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tokenenv.rewards.preference_groups import (
    accuracy_interval,
    calibration_bins,
    distribution,
    grouped_accuracy,
    wins_of,
)

__all__ = [
    "HeldOutReport",
    "PairLengths",
    "PreferenceReport",
    "evaluate_preferences",
    "pair_details",
    "score_distributions",
]

FEW_PAIRS = 30
"""Held-out pairs below which a report says that it is a rough one: there the standard error of an
accuracy of ¾ is 0.08."""


@dataclass(frozen=True, slots=True)
class PreferenceReport:
    """How well rewards agree with preferences.

    Attributes:
        pairs: how many.
        accuracy: share of pairs whose chosen response has the higher reward, equal rewards count
            ½; of pairs labelled as ties there is none to count, and NaN where all are ties.
        loss: mean −p·log σ(d) − (1 − p)·log σ(−d), d = r_w − r_l − margin and p the preference.
        mean_margin: mean r_w − r_l.
        calibration_error: expected calibration error of σ(r_a − r_b) over ten bins, each pair in
            both orders.
        ties: pairs with a preference of ½.
        soft_label_agreement: mean probability, by labels that are neither 0 nor 1, that the
            response with the higher reward is the better one; ½ for ties. None without such labels.
    """

    pairs: int
    accuracy: float
    loss: float
    mean_margin: float
    calibration_error: float
    ties: int
    soft_label_agreement: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has null for NaN."""
        return {k: None if v != v else v for k, v in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class HeldOutReport(PreferenceReport):
    """The report on held-out pairs after a training.

    Attributes:
        training_pairs: pairs that were trained on.
        selection_pairs: pairs whose loss chose the weights.
        chose_the_weights: whether the report is on those, for want of others.
        held_out_by: `"prompt"`, or `"pair"` where there are no two different prompts.
        details: of `pair_details`, and `scores`, the distributions of the normalised rewards.
        training: the `TrainingRecord`; of an ensemble there is one for each member.
    """

    training_pairs: int
    selection_pairs: int
    chose_the_weights: bool
    held_out_by: str = "prompt"
    details: dict[str, Any] = field(default_factory=dict)
    training: Any = None

    @property
    def notes(self) -> list[str]:
        """Caveats to read the numbers with."""
        notes = []
        if self.chose_the_weights:
            notes.append(
                f"measured on the {self.pairs:,} pairs whose loss chose the weights: optimistic. "
                "Hold out others (report_fraction), of at least three prompts in all."
            )
        if self.held_out_by == "pair":
            notes.append(
                "the pairs have one prompt, or none: they were held out pair by pair, so that the "
                "report says nothing about other prompts."
            )
        if self.ties:
            notes.append(
                f"{self.ties:,} of the {self.pairs:,} held-out pairs are ties: the accuracy is "
                "that of the others."
            )
        if self.pairs < FEW_PAIRS and self.accuracy == self.accuracy:
            error = math.sqrt(max(self.accuracy * (1 - self.accuracy), 0.1) / self.pairs)
            notes.append(
                f"measured on {self.pairs:,} held-out pairs, fewer than {FEW_PAIRS}: the accuracy "
                f"is uncertain by ±{error:.2f} (a standard error) or more."
            )
        return notes

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**PreferenceReport.as_dict(self), "notes": self.notes}


def evaluate_preferences(
    chosen: np.ndarray,
    rejected: np.ndarray,
    margins: np.ndarray | float = 0.0,
    preferences: np.ndarray | float = 1.0,
) -> PreferenceReport:
    """Accuracy, loss, margin and calibration of (B,) rewards of chosen and rejected responses.

    Args:
        chosen: (B,) rewards.
        rejected: (B,) rewards.
        margins: how much better the chosen ones are at least.
        preferences: probabilities that the chosen ones are better.
    """
    difference = np.asarray(chosen, dtype=np.float64) - np.asarray(rejected, dtype=np.float64)
    label = np.broadcast_to(np.asarray(preferences, dtype=np.float64), difference.shape)
    logit = difference - margins
    with np.errstate(invalid="ignore"):  # of rewards that are not finite
        loss = (np.logaddexp(0.0, -logit) + (1.0 - label) * logit).mean()
    wins = wins_of(difference)
    agreement = label * wins + (1.0 - label) * (1.0 - wins)
    is_tie, is_soft = label == 0.5, (label > 0) & (label < 1)
    right = np.where(label > 0.5, wins, 1.0 - wins)[~is_tie]
    return PreferenceReport(
        pairs=len(difference),
        accuracy=float(right.mean()) if len(right) else math.nan,
        loss=float(loss),
        mean_margin=float(difference.mean()),
        calibration_error=calibration_bins(difference, label)[0],
        ties=int(is_tie.sum()),
        soft_label_agreement=float(agreement[is_soft].mean()) if is_soft.any() else None,
    )


@dataclass(frozen=True, slots=True)
class PairLengths:
    """What of a pair is no reward.

    Attributes:
        chosen: (B,) tokens of prompt and chosen response.
        rejected: (B,) tokens of prompt and rejected response.
        prompts: B names of prompts: pairs with the same one are no independent draws.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    prompts: Sequence[str]


def pair_details(
    chosen: np.ndarray,
    rejected: np.ndarray,
    lengths: PairLengths,
    margins: np.ndarray,
    preferences: np.ndarray,
) -> dict[str, Any]:
    """Where rewards agree with preferences, and what the lengths alone would say.

    Args:
        chosen: (B,) rewards.
        rejected: (B,) rewards.
        lengths: of the same pairs.
        margins: (B,) how much better the chosen ones are at least.
        preferences: (B,) probabilities that the chosen ones are better.

    Returns:
        For JSON: `accuracy_interval` (95 %), `shorter_wins` and `longer_wins` (accuracies of these
        rules, with intervals), `longer_scores_higher` (share of the pairs, by reward),
        `by_margin` (|r_w − r_l|), `by_labelled_margin` where labels have different ones,
        `by_length_difference` (tokens of the better response − those of the other),
        `calibration` and `soft_labels`.
    """
    difference = chosen - rejected
    is_pair = preferences != 0.5
    sign = np.where(preferences > 0.5, 1.0, -1.0)[is_pair]
    names = [name for name, is_one in zip(lengths.prompts, is_pair, strict=True) if is_one]
    right = wins_of(sign * difference[is_pair])
    longer_by = sign * (lengths.chosen - lengths.rejected)[is_pair]
    shorter = wins_of(-longer_by)
    margin = np.abs(difference[is_pair])
    is_longer = lengths.chosen != lengths.rejected
    direction = np.sign(lengths.chosen - lengths.rejected)[is_longer]
    prefers_longer = wins_of(direction * difference[is_longer])
    details: dict[str, Any] = {
        "accuracy_interval": list(accuracy_interval(right, names)),
        "shorter_wins": _rule(shorter, names),
        "longer_wins": _rule(1.0 - shorter, names),
        "longer_scores_higher": float(prefers_longer.mean()) if len(prefers_longer) else None,
        "by_margin": grouped_accuracy(margin, right, names),
        "by_length_difference": grouped_accuracy(longer_by, right, names),
        "calibration": calibration_bins(difference, preferences)[1],
        "soft_labels": _soft_labels(difference, preferences),
    }
    if len(np.unique(margins)) > 1:
        details["by_labelled_margin"] = grouped_accuracy(margins[is_pair], right, names)
    return details


def _rule(right: np.ndarray, names: Sequence[str]) -> dict[str, Any] | None:
    """Accuracy of a rule, with its interval."""
    if not len(right):
        return None
    return {"accuracy": float(right.mean()), "interval": list(accuracy_interval(right, names))}


def _soft_labels(difference: np.ndarray, label: np.ndarray) -> dict[str, Any] | None:
    """Labels that are probabilities: how far σ(d) is from them, and which way; None without any."""
    is_soft = (label > 0) & (label < 1)
    if not is_soft.any():
        return None
    predicted = 0.5 * (1.0 + np.tanh(difference[is_soft] / 2.0))
    wins, probability = wins_of(difference[is_soft]), label[is_soft]
    varies = min(predicted.std(), probability.std()) > 0
    return {
        "pairs": int(is_soft.sum()),
        "agreement": float((probability * wins + (1 - probability) * (1 - wins)).mean()),
        "best_agreement": float(np.maximum(probability, 1 - probability).mean()),
        "mean_absolute_error": float(np.abs(predicted - probability).mean()),
        "correlation": float(np.corrcoef(predicted, probability)[0, 1]) if varies else None,
    }


def score_distributions(
    chosen: np.ndarray, rejected: np.ndarray, reference: np.ndarray | None = None
) -> dict[str, Any]:
    """Distributions of scores of chosen and rejected responses, and of the reference's samples."""
    scores = {"chosen": chosen, "rejected": rejected}
    if reference is not None and len(reference):
        scores["reference"] = reference
    return {name: distribution(values) for name, values in scores.items()}
