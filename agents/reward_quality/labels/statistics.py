"""Means over few seeds with intervals, and rank correlation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

__all__ = ["mean_interval", "rank_correlation"]


def mean_interval(values: Sequence[float] | np.ndarray) -> tuple[float, tuple[float, float] | None]:
    """The mean of some values and Student's 95 % interval of it; None with fewer than two."""
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, None
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return mean, (mean - half, mean + half)


def rank_correlation(
    x: Sequence[float] | np.ndarray,
    y: Sequence[float] | np.ndarray,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, tuple[float, float]]:
    """Spearman's rank correlation and its 95 % bootstrap interval, NaN where one does not vary.

    Args:
        x: (B,) values of B independent things.
        y: (B,) other values of the same.
        resamples: of the things, with replacement.
        seed: of the resampling.

    Raises:
        ValueError: there are fewer than three.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(x) != len(y) or len(x) < 3:
        raise ValueError(f"{len(x)} and {len(y)} values: give as many of both, three or more.")
    draws = np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))
    found = _spearman(x[draws], y[draws])
    finite = found[np.isfinite(found)]
    if not len(finite):
        return math.nan, (math.nan, math.nan)
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(_spearman(x[None], y[None])[0]), (float(low), float(high))


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(R,) correlations of the ranks in each row, equal values having their mean rank."""
    ranks = [stats.rankdata(values, axis=1) for values in (x, y)]
    a, b = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    with np.errstate(invalid="ignore"):  # 0/0 where one does not vary
        return np.asarray((a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1)))
