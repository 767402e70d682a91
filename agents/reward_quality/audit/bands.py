"""Intervals by a bootstrap over prompts, wide enough for all of an audit's numbers together.

Responses to one prompt are not independent, so whole prompts are drawn (the cluster bootstrap:
Davison and Hinkley 1997, *Bootstrap Methods and their Application*, section 3.8). An audit asks a
dozen questions, and one of twenty 95 % intervals misses by chance: the intervals are one band,
which misses *any* of the K true values in 5 % of audits. It is the sup-t band,

    θ_k ± c · se_k,    c = the 95 % quantile over resamples b of max_k |θ_k^b − θ_k| / se_k,

with se_k the deviation of θ_k^b over resamples (Montiel Olea and Plagborg-Møller 2019,
"Simultaneous confidence bands: theory, implementation, and an application to SVARs"). Unlike
Bonferroni's correction it does not pay twice for length in words and length in characters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["LEVEL", "Band", "Clusters", "simultaneous_bands", "weighted_midranks"]

LEVEL = 0.95
"""Of the intervals, all of one audit together."""

_CHUNK = 250
"""Resamples that are computed at once, for memory."""

_NOTHING = 1e-9
"""Deviation of a number below which it is the same in every resample."""


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


def simultaneous_bands(
    values: np.ndarray, replicates: np.ndarray, level: float = LEVEL
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends, (K,) each, of the sup-t band of the module's text.

    A number that is the same in every resample has no width.

    Args:
        values: (K,) numbers.
        replicates: (R, K) the same of every resample; NaN where one has none.
        level: of the band.
    """
    error = np.zeros(len(values))
    known = np.isfinite(replicates).any(axis=0)
    error[known] = np.nanstd(replicates[:, known], axis=0)
    varies = error > _NOTHING
    if not varies.any():
        return values.copy(), values.copy()
    deviations = np.abs(replicates[:, varies] - values[varies]) / error[varies]
    factor = np.quantile(np.nan_to_num(deviations).max(axis=1), level)
    return values - factor * error, values + factor * error


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
