"""Intervals by a bootstrap over prompts, wide enough for all of an audit's numbers together.

Responses to one prompt are not independent, so whole prompts are drawn (the cluster bootstrap:
Davison and Hinkley 1997, *Bootstrap Methods and their Application*, section 3.8). An audit asks a
dozen questions, and one of twenty 95 % intervals misses by chance: here *all* of them hold in 95 %
of audits. With θ_k the K numbers, se_k their errors from the spread over prompts, and θ_k^b, se_k^b
the same of resample b, they are balanced intervals (Beran 1988, "Balanced simultaneous confidence
sets", JASA 83) by the bootstrap t (Efron and Tibshirani 1993, *An Introduction to the Bootstrap*,
chapter 12):

    t_k^b = |θ_k^b − θ_k| / se_k^b,        θ_k ± c_k · se_k,

where c_k is the same quantile of t_k for every k, the one that all of t_1 … t_K keep to in 95 % of
the resamples. Unlike Bonferroni's correction that does not pay twice for length in words and length
in characters; unlike percentiles it is right for features that few texts have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "LEVEL",
    "Band",
    "Clusters",
    "Estimates",
    "ratio_estimates",
    "simultaneous_bands",
    "weighted_midranks",
]

LEVEL = 0.95
"""Of the intervals, all of one audit together."""

_CHUNK = 250
"""Resamples that are computed at once, for memory."""

_NOTHING = 1e-9
"""Error of a number below which it has none."""


@dataclass(frozen=True, slots=True)
class Band:
    """A number with its interval, which holds together with those of the other numbers.

    Attributes:
        value: the number.
        low: the lower end.
        high: the upper end.
    """

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0

    def as_json(self) -> dict[str, float]:
        """Its parts by name."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Clusters:
    """Texts by prompt, and the resamples of prompts.

    Attributes:
        of_text: (n,) int64 number of each text's prompt, 0 … G − 1, in ascending order.
        resamples: how many.
        seed: of the drawing.
    """

    of_text: np.ndarray
    resamples: int
    seed: int

    @property
    def count(self) -> int:
        """G, the number of prompts."""
        return int(self.of_text[-1]) + 1 if len(self.of_text) else 0

    @property
    def starts(self) -> np.ndarray:
        """(G,) place of each prompt's first text."""
        return np.searchsorted(self.of_text, np.arange(self.count))

    def sums(self, values: np.ndarray) -> np.ndarray:
        """(…, G) sums over each prompt of (…, n) values."""
        return np.add.reduceat(values, self.starts, axis=-1)

    @property
    def sizes(self) -> np.ndarray:
        """(G,) number of each prompt's texts."""
        return np.bincount(self.of_text, minlength=self.count)

    def whole(self) -> np.ndarray:
        """(1, n) weights of the texts as they are: all 1."""
        return np.ones((1, len(self.of_text)))

    def weights(self) -> Iterator[np.ndarray]:
        """(r, n) weights of the texts in some resamples after others: how often each is drawn."""
        rng = np.random.default_rng((self.seed, 1))
        for start in range(0, self.resamples, _CHUNK):
            number = min(_CHUNK, self.resamples - start)
            drawn = rng.multinomial(self.count, np.full(self.count, 1 / self.count), size=number)
            yield drawn[:, self.of_text].astype(np.float64)


@dataclass(frozen=True, slots=True)
class Estimates:
    """K numbers and their errors, in R resamples.

    Attributes:
        values: (R, K).
        errors: (R, K) standard errors from the spread over prompts; 0 for a number without one.
    """

    values: np.ndarray
    errors: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[Estimates], axis: int) -> Estimates:
        """Several as one: of other resamples (axis 0) or of other numbers (axis 1)."""
        return cls(
            np.concatenate([part.values for part in parts], axis=axis),
            np.concatenate([part.errors for part in parts], axis=axis),
        )


def ratio_estimates(
    numerators: np.ndarray, denominators: np.ndarray, weights: np.ndarray
) -> Estimates:
    """Weighted ratios of sums over prompts, with their errors by the delta method.

    Args:
        numerators: (G, K) sum over each prompt.
        denominators: (G, K) likewise, 0 or above.
        weights: (R, G) how often each prompt is in a resample.

    Returns:
        (R, K) ratios, NaN where a resample has none.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        total = weights @ denominators
        ratio = weights @ numerators / total
        # Σ w (a − θ b)² = Σ w a² − 2 θ Σ w a b + θ² Σ w b²
        squares = (
            weights @ numerators**2
            - 2 * ratio * (weights @ (numerators * denominators))
            + ratio**2 * (weights @ denominators**2)
        )
        return Estimates(ratio, np.sqrt(np.maximum(squares, 0)) / total)


def simultaneous_bands(
    estimates: Estimates, resampled: Estimates, level: float = LEVEL
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends, (K,) each, of the intervals of the module's text.

    A number without an error has no width.

    Args:
        estimates: (1, K) the numbers.
        resampled: (R, K) the same of every resample; NaN where one has none.
        level: at which all intervals hold together.
    """
    values, errors = estimates.values[0], estimates.errors[0]
    varies = errors > _NOTHING
    if not varies.any():
        return values.copy(), values.copy()
    error = resampled.errors[:, varies]
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(resampled.values[:, varies] - values[varies]) / error
    t = np.where(error > _NOTHING, np.nan_to_num(t), 0.0)
    place = np.argsort(np.argsort(t, axis=0), axis=0) / len(t)  # of each t among its own kind
    quantile = float(np.quantile(place.max(axis=1), level))
    half = np.zeros(len(values))
    half[varies] = np.quantile(t, quantile, axis=0) * errors[varies]
    return values - half, values + half


def weighted_midranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R, n) ranks of n values in R resamples, as shares of the resample, from −½ to ½.

    Values that tie have their mean rank. Up to scale and place these are the ranks of the resample
    that is written out, with each value as often as its weight says.

    Args:
        values: (n,) numbers.
        weights: (R, n) how often each is in a resample.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    is_first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    group = np.empty(len(values), dtype=np.int64)
    group[order] = np.cumsum(is_first) - 1
    in_group = np.add.reduceat(weights[:, order], np.flatnonzero(is_first), axis=1)
    before = np.cumsum(in_group, axis=1) - in_group
    ranks = (before + in_group / 2) / in_group.sum(axis=1, keepdims=True) - 0.5
    return ranks[:, group]
