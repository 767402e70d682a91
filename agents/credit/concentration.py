"""How unequal the updates of tokens are: Lorenz curve, Gini coefficient, means by groups."""

from __future__ import annotations

import numpy as np

__all__ = ["by_decile", "by_position", "gini", "lorenz"]


def lorenz(strengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The Lorenz curve of update strengths: which share of them the weakest tokens have together.

    Args:
        strengths: (n,) ≥ 0.

    Returns:
        (n + 1,) shares of the tokens, weakest first, and (n + 1,) shares of the sum; both from 0 to
        1. Where all are 0, each has the same.

    Raises:
        ValueError: there are none, or one is negative or NaN.
    """
    values = _checked(strengths)
    ordered = np.sort(values)
    total = ordered.sum()
    cumulative = np.cumsum(ordered) / total if total > 0 else np.arange(1, len(ordered) + 1)
    if total <= 0:
        cumulative = cumulative / len(ordered)
    tokens = np.arange(len(ordered) + 1) / len(ordered)
    return tokens, np.concatenate([[0.0], cumulative])


def gini(strengths: np.ndarray) -> float:
    """The Gini coefficient: 0 where all tokens get the same, 1 − 1/n where one gets everything.

    Σ_i Σ_j |x_i − x_j| / (2·n²·mean), which is twice the area between diagonal and Lorenz curve.

    Args:
        strengths: (n,) ≥ 0.

    Raises:
        ValueError: there are none, or one is negative or NaN.
    """
    tokens, shares = lorenz(strengths)
    area = float(((shares[1:] + shares[:-1]) / 2 * np.diff(tokens)).sum())
    return 1.0 - 2.0 * area


def by_position(values: np.ndarray, positions: np.ndarray) -> dict[int, float]:
    """Mean of (n,) values at each of the (n,) positions; NaNs are left out."""
    return {
        int(p): float(np.mean(at))
        for p in np.unique(positions)
        if len(at := _finite(np.asarray(values)[np.asarray(positions) == p]))
    }


def by_decile(values: np.ndarray, keys: np.ndarray) -> list[float]:
    """(10,) means of (n,) values in the tenths of the tokens that (n,) keys order, least first.

    NaN for a tenth without tokens (n < 10).
    """
    order = np.argsort(np.asarray(keys), kind="stable")
    tenths = np.array_split(np.asarray(values)[order], 10)
    return [float(np.mean(part)) if len(part := _finite(t)) else float("nan") for t in tenths]


def _checked(strengths: np.ndarray) -> np.ndarray:
    values = np.asarray(strengths, dtype=np.float64)
    if values.ndim != 1 or not values.size or not (values >= 0).all():
        raise ValueError(
            f"strengths of shape {values.shape} with a minimum of "
            f"{values.min() if values.size else 'nothing'}: give one number ≥ 0 for each token."
        )
    return values


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]
