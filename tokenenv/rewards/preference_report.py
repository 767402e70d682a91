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
        accuracy: share of pairs whose chosen response has the higher reward; a tie counts ½.
        loss: mean −log σ(r_w − r_l − margin).
        mean_margin: mean r_w − r_l.
        calibration_error: expected calibration error of σ(r_a − r_b) over ten bins, each pair in
            both orders.
    """

    pairs: int
    accuracy: float
    loss: float
    mean_margin: float
    calibration_error: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class HeldOutReport(PreferenceReport):
    """The report on held-out pairs after a training.

    Attributes:
        training_pairs: pairs that were trained on.
        selection_pairs: pairs whose loss chose the weights.
        chose_the_weights: whether the report is on those, for want of others.
    """

    training_pairs: int
    selection_pairs: int
    chose_the_weights: bool

    @property
    def notes(self) -> list[str]:
        """Caveats to read the numbers with."""
        notes = []
        if self.chose_the_weights:
            notes.append(
                f"measured on the {self.pairs:,} pairs whose loss chose the weights: optimistic. "
                "Hold out others (report_fraction), of at least three prompts in all."
            )
        if self.pairs < FEW_PAIRS:
            error = math.sqrt(max(self.accuracy * (1 - self.accuracy), 0.1) / self.pairs)
            notes.append(
                f"measured on {self.pairs:,} held-out pairs, fewer than {FEW_PAIRS}: the accuracy "
                f"is uncertain by ±{error:.2f} (a standard error) or more."
            )
        return notes

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "notes": self.notes}


def evaluate_preferences(
    chosen: np.ndarray, rejected: np.ndarray, margins: np.ndarray | float = 0.0
) -> PreferenceReport:
    """Accuracy, loss, margin and calibration of (B,) rewards of chosen and rejected responses."""
    difference = np.asarray(chosen, dtype=np.float64) - np.asarray(rejected, dtype=np.float64)
    loss = np.logaddexp(0.0, -(difference - margins)).mean()
    return PreferenceReport(
        pairs=len(difference),
        accuracy=float(np.mean((difference > 0) + 0.5 * (difference == 0))),
        loss=float(loss),
        mean_margin=float(difference.mean()),
        calibration_error=_calibration_error(difference),
    )


def _calibration_error(difference: np.ndarray, bins: int = 10) -> float:
    """Σ_bins share·|mean predicted − observed|; the pair (a, b) is also the pair (b, a)."""
    both = np.concatenate([difference, -difference])
    predicted = 0.5 * (1.0 + np.tanh(both / 2.0))
    won = np.repeat([1.0, 0.0], len(difference))
    which = np.minimum((predicted * bins).astype(int), bins - 1)
    gap = np.bincount(which, weights=predicted - won, minlength=bins)
    return float(np.abs(gap).sum() / len(both))
