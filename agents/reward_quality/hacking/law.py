"""The law of over-optimisation: a reward over d = √KL(π ‖ π_ref), fitted to what was measured.

Gao et al. 2022 (https://arxiv.org/abs/2210.10760, section 3.1) find for policies trained by PPO

    R(d) = R₀ + d·(α − β·log d),

with R₀ the reward of the policy that training started from, 0 in the paper by normalisation, and
here either known (`start_of`) or fitted as well. For
the gold reward β > 0: it rises, is greatest at d* = exp(α/β − 1), where it is R₀ + β·d*, and falls.
This β is the law's own, and not the KL coefficient. The law is linear in R₀, α and β, so that the
fit is one of least squares.

Axes: `n` points of one run, `S` runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["FEWEST_POINTS", "Law", "fit_law", "start_of"]

FEWEST_POINTS = 4
"""Points with different KL below which nothing is fitted: one more than the law has numbers."""


@dataclass(frozen=True)
class Law:
    """R(d) = R₀ + d(α − β·log d), as fitted.

    Attributes:
        start: R₀.
        alpha: α, per √nat.
        beta: β, per √nat.
        start_error: standard error of R₀; 0 where it was given, NaN where it is not known.
        alpha_error: of α.
        beta_error: of β.
        residual: root mean square of what the law leaves unexplained, in the reward's unit.
        points: how many there were.
        runs: S.
        largest: the greatest d that there was: beyond it the law is a guess.
    """

    start: float
    alpha: float
    beta: float
    start_error: float
    alpha_error: float
    beta_error: float
    residual: float
    points: int
    runs: int
    largest: float

    def __call__(self, distance: np.ndarray | float) -> np.ndarray:
        """(…) R at distances d = √KL ≥ 0 of any shape."""
        columns = _columns(np.asarray(distance, dtype=np.float64))
        return columns @ np.array([self.start, self.alpha, self.beta])

    @property
    def peak(self) -> tuple[float, float] | None:
        """(d*, R(d*)), where the law is greatest; None where it has no greatest value.

        It is where nothing was measured if d* is greater than `largest`.
        """
        if self.beta <= 0 or self.alpha / self.beta > 100:  # exp(99) nats: never
            return None
        distance = math.exp(self.alpha / self.beta - 1)
        return distance, self.start + self.beta * distance

    def words(self, name: str) -> str:
        """The law as a sentence.

        Args:
            name: what the reward is called.
        """
        said = (
            f"{name} = {self.start:.3g} + d·({_with_error(self.alpha, self.alpha_error)} − "
            f"{_with_error(self.beta, self.beta_error)}·log d), ± {self.residual:.2g}"
        )
        if self.peak is None or self.peak[0] > self.largest:
            return f"{said}; no greatest value up to d = {self.largest:.3g}"
        return f"{said}; greatest at d = {self.peak[0]:.3g}, {self.peak[1]:.3g}"


def _with_error(value: float, error: float) -> str:
    return f"({value:.3g} ± {error:.1g})" if math.isfinite(error) else f"{value:.3g}"


def start_of(distances: Sequence[np.ndarray], rewards: Sequence[np.ndarray]) -> float:
    """R₀ as it was measured: the mean over runs of the reward at the least distance of each.

    Args:
        distances: S arrays (n,).
        rewards: S arrays (n,); one point at least in one of them.
    """
    nearest = [
        float(r[int(np.argmin(d))]) for d, r in zip(distances, rewards, strict=True) if len(d)
    ]
    return float(np.mean(nearest))


def fit_law(
    distances: Sequence[np.ndarray], rewards: Sequence[np.ndarray], start: float | None = None
) -> Law | None:
    """Fit the law to the points of several runs together.

    The errors are of the numbers over runs like these, by the jackknife (each run left out once),
    where there are three runs or more. For fewer they come from the scatter about the law, as if
    the points were independent: points of one run are not quite, as they lie on one path, so that
    these are lower ones.

    Args:
        distances: S arrays (n,), d = √KL ≥ 0.
        rewards: S arrays (n,), of the same policies.
        start: R₀, where it is known; None: it is fitted, and the law need not begin where the
            policies did.

    Returns:
        The law, or None where there are too few points with different KL.

    Raises:
        ValueError: there are not as many rewards as distances, or a number is negative or not
            finite.
    """
    _check(distances, rewards)
    d = np.concatenate([np.asarray(one, dtype=np.float64) for one in distances] or [np.zeros(0)])
    r = np.concatenate([np.asarray(one, dtype=np.float64) for one in rewards] or [np.zeros(0)])
    if len(np.unique(d)) < FEWEST_POINTS:
        return None
    numbers = _solve(d, r, start)
    left = r - _columns(d) @ numbers
    runs = sum(len(one) > 0 for one in distances)
    errors = _jackknife(distances, rewards, start) if runs >= 3 else _scatter(d, left, start)
    fitted_start, alpha, beta = map(float, numbers)
    start_error, alpha_error, beta_error = map(float, errors)
    return Law(
        fitted_start,
        alpha,
        beta,
        start_error,
        alpha_error,
        beta_error,
        residual=float(np.sqrt(np.mean(left**2))),
        points=len(d),
        runs=runs,
        largest=float(d.max()),
    )


def _check(distances: Sequence[np.ndarray], rewards: Sequence[np.ndarray]) -> None:
    lengths = [len(one) for one in distances], [len(one) for one in rewards]
    if lengths[0] != lengths[1]:
        raise ValueError(
            f"distances and rewards have {lengths[0]} and {lengths[1]} points: give one reward for "
            "each distance, run by run."
        )
    for name, arrays, lowest in (("distances", distances, 0.0), ("rewards", rewards, -math.inf)):
        for one in arrays:
            bad = [v for v in np.asarray(one).tolist() if not (math.isfinite(v) and v >= lowest)]
            if bad:
                what = "numbers of 0 or more" if lowest == 0.0 else "finite numbers"
                raise ValueError(f"{name} holds {bad[0]!r}: give {what}, and leave others out.")


def _columns(d: np.ndarray) -> np.ndarray:
    """(…, 3): what R₀, α and β are multiplied by; d·log d is 0 at 0."""
    logs = np.log(np.where(d > 0, d, 1.0))
    return np.stack([np.ones_like(d), d, -d * logs], axis=-1)


def _solve(d: np.ndarray, r: np.ndarray, start: float | None) -> np.ndarray:
    """(3,) R₀, α and β."""
    columns = _columns(d)
    if start is None:
        return np.linalg.lstsq(columns, r, rcond=None)[0]
    return np.array([start, *np.linalg.lstsq(columns[:, 1:], r - start, rcond=None)[0]])


def _scatter(d: np.ndarray, left: np.ndarray, start: float | None) -> np.ndarray:
    """(3,) standard errors of ordinary least squares; NaN without a point to spare."""
    columns = _columns(d)[:, 0 if start is None else 1 :]
    spare = len(d) - columns.shape[1]
    if spare <= 0:
        return np.full(3, math.nan)
    covariance = np.linalg.pinv(columns.T @ columns) * (left @ left) / spare
    return np.array([*([] if start is None else [0.0]), *np.sqrt(np.diag(covariance))])


def _jackknife(
    distances: Sequence[np.ndarray], rewards: Sequence[np.ndarray], start: float | None
) -> np.ndarray:
    """Standard errors over runs: √((S−1)/S·Σ(θ₋ᵢ − θ̄)²), Efron & Stein 1981."""
    runs = [(d, r) for d, r in zip(distances, rewards, strict=True) if len(d)]
    without = []
    for i in range(len(runs)):
        d, r = (np.concatenate([run[k] for j, run in enumerate(runs) if j != i]) for k in (0, 1))
        without.append(_solve(np.asarray(d, np.float64), np.asarray(r, np.float64), start))
    count = len(without)
    spread = np.array(without) - np.mean(without, axis=0)
    return np.sqrt((count - 1) / count * (spread**2).sum(axis=0))
