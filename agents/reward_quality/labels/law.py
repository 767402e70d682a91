"""The law accuracy(n) = a − b·n^(−c) of learning curves, and what the next point costs.

Power laws with a limit describe the errors of classifiers and language models over their data
(Cortes et al. 1993; Hestness et al. 2017, https://arxiv.org/abs/1712.00409).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit

__all__ = [
    "FEWEST_SIZES",
    "PowerLaw",
    "bootstrap_laws",
    "fit_power_law",
    "interval_of",
    "pairs_for",
]

FEWEST_SIZES = 4
"""Sizes that a law of three numbers is fitted to at least."""

EXPONENTS = (0.05, 3.0)
"""Bounds of c; below, a curve is one of log n, and its limit means nothing."""

GRID = 400
"""Exponents that are tried: each is 1 % more than the one before."""


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """accuracy(n) = a − b·n^(−c).

    Attributes:
        limit: a, the accuracy with any number of pairs, at most 1.
        scale: b, 0 or more.
        exponent: c, in `EXPONENTS`.
        error: root of the mean squared difference between the law and what it was fitted to.
    """

    limit: float
    scale: float
    exponent: float
    error: float = 0.0

    def __call__(self, pairs: np.ndarray | float) -> np.ndarray:
        """The accuracy after a number of pairs."""
        n = np.asarray(pairs, dtype=np.float64)
        return np.asarray(self.limit - self.scale * n**-self.exponent)

    @property
    def is_at_a_bound(self) -> bool:
        """Whether the fit wanted an exponent or a limit beyond what is allowed."""
        ends = [*(abs(self.exponent - end) < 1e-6 for end in EXPONENTS), self.limit > 1 - 1e-6]
        return any(ends) or self.scale == 0


def fit_power_law(
    sizes: Sequence[int] | np.ndarray, accuracies: Sequence[float] | np.ndarray
) -> PowerLaw:
    """The law nearest to accuracies, by least squares within 0 ≤ a ≤ 1, 0 ≤ b and `EXPONENTS`.

    Args:
        sizes: (K,) numbers of pairs, of which `FEWEST_SIZES` or more differ.
        accuracies: (K,) accuracies, means over seeds for instance.

    Raises:
        ValueError: there are too few sizes, or an accuracy is not finite.
    """
    n, y = _checked(sizes, accuracies)
    largest = float(n.max())
    share = n / largest

    # In units of the largest size all three numbers are of order 1: d is what is left to gain.
    def law(x: np.ndarray, a: float, d: float, c: float) -> np.ndarray:
        return a - d * x**-c

    def slopes(x: np.ndarray, a: float, d: float, c: float) -> np.ndarray:
        power = x**-c
        return np.stack([np.ones_like(x), -power, d * power * np.log(x)], axis=1)

    start = np.concatenate(_profiled(share, y[None]))
    low, high = (0.0, 0.0, EXPONENTS[0]), (1.0, np.inf, EXPONENTS[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)  # of a covariance that nobody reads
        try:
            found, _ = curve_fit(
                law, share, y, start, bounds=(low, high), jac=slopes, xtol=1e-12, ftol=1e-12
            )
        except RuntimeError:  # no convergence: the start is the best of a grid
            found = start
    a, d, c = (
        float(value) for value in min((start, found), key=lambda z: _error(law, share, y, z))
    )
    return PowerLaw(a, _scale(d, c, largest), c, _error(law, share, y, (a, d, c)))


def _checked(sizes: Any, accuracies: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64; ValueError where no law can be fitted to them."""
    n, y = np.asarray(sizes, dtype=np.float64), np.asarray(accuracies, dtype=np.float64)
    different = len(np.unique(n))
    if different < FEWEST_SIZES:
        raise ValueError(
            f"{different} sizes: a law of three numbers is fitted to {FEWEST_SIZES} or more."
        )
    if not np.isfinite(y).all():
        raise ValueError("an accuracy is not finite: leave its size out.")
    return n, y


def _error(law: Any, share: np.ndarray, y: np.ndarray, numbers: Any) -> float:
    return float(np.sqrt(np.mean((law(share, *numbers) - y) ** 2)))


def _scale(d: float, c: float, largest: float) -> float:
    """The number b, from what is left to gain at the largest size."""
    return d * largest**c if d > 1e-9 else 0.0


def _profiled(share: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(R,) a, d and c nearest to (R, K) accuracies, c on a grid.

    With c fixed the law is a line in x = share^(−c), whose best a and d have a closed form; where
    one of them is beyond its bound, the best is on that bound.
    """
    grid = np.geomspace(*EXPONENTS, GRID)
    x = share[None] ** -grid[:, None]  # (G, K)
    centred = x - x.mean(axis=1, keepdims=True)
    slope = (y @ centred.T) / (centred**2).sum(axis=1)  # (R, G)
    d = np.maximum(-slope, 0.0)
    a = y.mean(axis=1, keepdims=True) + d * x.mean(axis=1)
    is_above = a > 1
    a = np.where(is_above, 1.0, a)
    d = np.where(is_above, np.maximum((1.0 - y) @ x.T / (x**2).sum(axis=1), 0.0), d)
    squares = ((y[:, None] - a[..., None] + d[..., None] * x) ** 2).sum(axis=-1)  # (R, G)
    rows, best = np.arange(len(y)), squares.argmin(axis=1)
    return a[rows, best], d[rows, best], grid[best]


def pairs_for(law: PowerLaw, pairs: int, gain: float = 0.01) -> float:
    """How many more pairs raise a law's accuracy by `gain`; ∞ where its limit is below that.

    a − b·n^(−c) = accuracy + gain is solved by n = (b / (a − accuracy − gain))^(1/c).

    Args:
        law: the law.
        pairs: how many there are.
        gain: how much accuracy is to be won.
    """
    left = law.limit - float(law(pairs)) - gain
    if left <= 0 or law.scale == 0:
        return math.inf
    exponent = math.log(law.scale / left) / law.exponent
    return math.exp(exponent) - pairs if exponent < 700 else math.inf


def bootstrap_laws(
    sizes: Sequence[int] | np.ndarray, accuracies: np.ndarray, resamples: int = 1000, seed: int = 0
) -> list[PowerLaw]:
    """Laws fitted to means over seeds that are drawn with replacement.

    Args:
        sizes: (K,) numbers of pairs.
        accuracies: (S, K), a row for each seed: its accuracies belong together, since its sets of
            pairs are parts of each other and its held-out prompts the same.
        resamples: how many laws.
        seed: of the drawing.

    Returns:
        The laws; none with fewer than two seeds.
    """
    if len(accuracies) < 2:
        return []
    n, y = _checked(sizes, accuracies)
    draws = np.random.default_rng(seed).integers(len(y), size=(resamples, len(y)))
    largest = float(n.max())
    numbers = zip(*_profiled(n / largest, y[draws].mean(axis=1)), strict=True)
    return [PowerLaw(float(a), _scale(d, c, largest), float(c)) for a, d, c in numbers]


def interval_of(values: Sequence[float] | np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentiles of values of which some may be ∞: an end is one of the values."""
    tail = (1.0 - level) / 2.0
    low = np.quantile(values, tail, method="inverted_cdf")
    return float(low), float(np.quantile(values, 1.0 - tail, method="inverted_cdf"))
