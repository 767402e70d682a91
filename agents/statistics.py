"""Scores of few runs without fooling oneself: interquartile means, bootstrap, profiles.

The method is that of Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the
Statistical Precipice", https://arxiv.org/abs/2108.13264: aggregate by the interquartile mean, give
intervals by a bootstrap that is stratified by environment, and show whole distributions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

__all__ = [
    "bootstrap_interval",
    "interquartile_mean",
    "performance_profile",
    "steps_to_reach",
]

RESAMPLES = 2000
"""Bootstrap resamples; the figures of the paper use 2,000 to 50,000."""


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """The mean of the middle half: ⌊n/4⌋ values are dropped at each end.

    Args:
        values: (…, n).

    Returns:
        (…) means over the last axis.

    Raises:
        ValueError: there is no value.
    """
    values = np.sort(np.asarray(values, dtype=np.float64), axis=-1)
    count = values.shape[-1]
    if not count:
        raise ValueError("the mean of no values is not known: give at least one.")
    dropped = count // 4
    return values[..., dropped : count - dropped].mean(axis=-1)


def resample(strata: Sequence[np.ndarray], resamples: int, seed: int) -> np.ndarray:
    """(resamples, n) draws with replacement, stratum by stratum; n values over all strata."""
    rng = np.random.default_rng(seed)
    drawn = []
    for stratum in strata:
        values = np.asarray(stratum, dtype=np.float64)
        drawn.append(values[rng.integers(len(values), size=(resamples, len(values)))])
    return np.concatenate(drawn, axis=1)


def bootstrap_interval(
    strata: Sequence[np.ndarray],
    statistic: Callable[[np.ndarray], np.ndarray] = interquartile_mean,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of a statistic of runs, resampled within each stratum.

    Args:
        strata: one array of scores per environment; all runs of one are exchangeable, runs of two
            are not.
        statistic: (…, n) scores of all strata, one after another → (…) values or (…, k).
        level: of the interval.
        resamples: bootstrap resamples.
        seed: of the resampling.

    Returns:
        Lower and upper end, as the statistic's shape without its leading axis.

    Raises:
        ValueError: there is no stratum, or an empty one.
    """
    if not strata or not all(len(stratum) for stratum in strata):
        raise ValueError("an interval needs at least one value in every stratum.")
    replicates = statistic(resample(strata, resamples, seed))
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(replicates, [tail, 100.0 - tail], axis=0)
    return low, high


def performance_profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The share of runs that score above each threshold, 1 − F(τ).

    Args:
        scores: (…, n).
        thresholds: (k,) τ.

    Returns:
        (…, k).
    """
    return (np.asarray(scores)[..., None] > np.asarray(thresholds)).mean(axis=-2)


def steps_to_reach(curve: Iterable[Sequence[float]], goal: float) -> int | None:
    """The first step of (steps, score) pairs whose score is at least `goal`; None where none is."""
    return next((int(steps) for steps, score in curve if score >= goal), None)
