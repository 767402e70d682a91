"""How well rewards agree with preferences: accuracy, loss, margin and calibration."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["HeldOutReport", "PreferenceReport", "evaluate_preferences"]

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
    """

    training_pairs: int
    selection_pairs: int
    chose_the_weights: bool
    held_out_by: str = "prompt"

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
    loss = (np.logaddexp(0.0, -logit) + (1.0 - label) * logit).mean()
    wins = (difference > 0) + 0.5 * (difference == 0)
    agreement = label * wins + (1.0 - label) * (1.0 - wins)
    is_tie, is_soft = label == 0.5, (label > 0) & (label < 1)
    right = np.where(label > 0.5, wins, 1.0 - wins)[~is_tie]
    return PreferenceReport(
        pairs=len(difference),
        accuracy=float(right.mean()) if len(right) else math.nan,
        loss=float(loss),
        mean_margin=float(difference.mean()),
        calibration_error=_calibration_error(difference, label),
        ties=int(is_tie.sum()),
        soft_label_agreement=float(agreement[is_soft].mean()) if is_soft.any() else None,
    )


def _calibration_error(difference: np.ndarray, label: np.ndarray, bins: int = 10) -> float:
    """Σ_bins share·|mean predicted − observed|; the pair (a, b) is also the pair (b, a)."""
    both = np.concatenate([difference, -difference])
    predicted = 0.5 * (1.0 + np.tanh(both / 2.0))
    won = np.concatenate([label, 1.0 - label])
    which = np.minimum((predicted * bins).astype(int), bins - 1)
    gap = np.bincount(which, weights=predicted - won, minlength=bins)
    return float(np.abs(gap).sum() / len(both))
