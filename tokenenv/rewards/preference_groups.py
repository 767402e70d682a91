"""Where rewards agree with preferences: intervals, groups of pairs, calibration, distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = [
    "accuracy_interval",
    "calibration_bins",
    "distribution",
    "grouped_accuracy",
    "wins_of",
]

Z = 1.959964
"""Standard deviations of a 95 % interval."""

LEVELS = (0, 5, 25, 50, 75, 95, 100)


def wins_of(difference: np.ndarray) -> np.ndarray:
    """(B,) 1 where a difference is above 0, ½ where it is 0, else 0."""
    return (difference > 0) + 0.5 * (difference == 0)


def accuracy_interval(
    right: np.ndarray, groups: Sequence[str] | None = None
) -> tuple[float, float]:
    """A 95 % interval of an accuracy (Wilson 1927), NaN without pairs.

    Pairs of one prompt are no independent draws: the number of pairs is divided by the design
    effect, the variance of the mean by prompts over that by pairs, where it is above 1 (Kish 1965);
    without any variance there are as many draws as prompts.

    Args:
        right: (B,) 1, ½ or 0.
        groups: B prompts; None: every pair is of another one.
    """
    count = len(right)
    if not count:
        return math.nan, math.nan
    mean = float(right.mean())
    draws = float(count)
    if groups is not None:
        _, of_pair = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
        prompts = int(of_pair.max()) + 1
        by_pair = float(((right - mean) ** 2).sum())
        by_prompt = float((np.bincount(of_pair, weights=right - mean) ** 2).sum())
        draws = count / max(1.0, by_prompt / by_pair) if by_pair else float(prompts)
    centre = (mean + Z**2 / (2 * draws)) / (1 + Z**2 / draws)
    half = Z * math.sqrt(mean * (1 - mean) / draws + Z**2 / (4 * draws**2)) / (1 + Z**2 / draws)
    return max(0.0, centre - half), min(1.0, centre + half)


def grouped_accuracy(
    values: np.ndarray, right: np.ndarray, groups: Sequence[str], parts: int = 5
) -> list[dict[str, Any]]:
    """Accuracy and its interval in parts of about as many pairs each, by a number of the pairs.

    Args:
        values: (B,) what the pairs are sorted by.
        right: (B,) 1, ½ or 0.
        groups: B prompts.
        parts: how many; fewer where many values are equal.

    Returns:
        Rows with `low` and `high` (values, both included), `pairs`, `accuracy`, `interval`;
        none where a value is not finite.
    """
    if not len(values) or not np.isfinite(values).all():
        return []
    edges = np.unique(np.quantile(values, np.linspace(0, 1, parts + 1)[1:-1]))
    which = np.searchsorted(edges, values, side="left")
    rows = []
    for part in np.unique(which):
        members = np.flatnonzero(which == part)
        names = [groups[int(i)] for i in members]
        rows.append(
            {
                "low": float(values[members].min()),
                "high": float(values[members].max()),
                "pairs": len(members),
                "accuracy": float(right[members].mean()),
                "interval": list(accuracy_interval(right[members], names)),
            }
        )
    return rows


def calibration_bins(
    difference: np.ndarray, label: np.ndarray, bins: int = 10
) -> tuple[float, list[dict[str, Any]]]:
    """Σ_bins share·|mean predicted − observed|, and the bins; the pair (a, b) is also (b, a).

    Args:
        difference: (B,) r_a − r_b.
        label: (B,) probabilities that a is the better one.
        bins: of equal width, over the probabilities σ(r_a − r_b) from 0 to 1.

    Returns:
        The expected calibration error (Naeini et al. 2015), and rows with `predicted`, `observed`
        and `pairs` (each counts in both orders) of the bins that are not empty; NaN and no rows
        where a reward is not finite.
    """
    if not np.isfinite(difference).all():
        return math.nan, []
    both = np.concatenate([difference, -difference])
    predicted = 0.5 * (1.0 + np.tanh(both / 2.0))
    won = np.concatenate([label, 1.0 - label])
    which = np.minimum((predicted * bins).astype(int), bins - 1)
    gap = np.bincount(which, weights=predicted - won, minlength=bins)
    counts = np.bincount(which, minlength=bins)
    rows = [
        {
            "predicted": float(predicted[which == number].mean()),
            "observed": float(won[which == number].mean()),
            "pairs": int(counts[number]),
        }
        for number in np.flatnonzero(counts)
    ]
    return float(np.abs(gap).sum() / max(1, len(both))), rows


def distribution(scores: np.ndarray) -> dict[str, Any]:
    """Mean, deviation and percentiles of scores, with their number."""
    return {
        "samples": len(scores),
        "mean": float(scores.mean()),
        "std": float(scores.std()),
        "percentiles": {
            str(level): float(value)
            for level, value in zip(LEVELS, np.percentile(scores, LEVELS), strict=True)
        },
    }
