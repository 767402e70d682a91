"""Logs of sums of exp that keep their digits where the logs are next to 0, or next to overflow.

As β grows, J* − J_ref falls like 1/β, while β·log Σ π_ref·exp(R/β) rounds at β times the last digit
of 1. All of it is therefore written in sums of terms of one sign that are as small as the result:

    log Σ p·exp(w)   = log1p(Σ p·(exp(w) − 1 − w) + Σ p·w)           Σ p = 1
    KL(p ‖ q)        = Σ q·(ρ·exp(ρ) − exp(ρ) + 1)                   ρ = log p − log q, Σ p = Σ q
    β·log mean r·e^u = β·log1p(mean r·(exp(u) − 1))                  where r has the mean 1
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["divergence", "log_expm1", "log_mean_exp", "log_tilted_sum"]

TERMS = 20
"""Terms of a series, used for |x| ≤ 1: the first omitted one is below 1e-19."""

LARGEST = 600.0
"""Exponents above it are summed in log space: exp overflows at 709."""


def log_mean_exp(log_weights: np.ndarray) -> np.ndarray:
    """Log of the mean of exp over the last axis, without overflow."""
    return np.logaddexp.reduce(log_weights, axis=-1) - np.log(log_weights.shape[-1])


def log_expm1(x: np.ndarray) -> np.ndarray:
    """log(exp(x) − 1) of x ≥ 0, without overflow; −∞ at 0."""
    with np.errstate(divide="ignore"):
        return x + np.log(-np.expm1(-x))


def _series(x: np.ndarray, coefficient: list[float]) -> np.ndarray:
    """Σ_k coefficient[k]·x^(k+2) by Horner's rule."""
    total = np.zeros_like(x)
    for c in reversed(coefficient):
        total = total * x + c
    return total * np.square(x)


_REST = [1.0 / math.factorial(k) for k in range(2, TERMS)]
_ENTROPY = [(k - 1) / math.factorial(k) for k in range(2, TERMS)]


def _exp_rest(x: np.ndarray) -> np.ndarray:
    """exp(x) − 1 − x, all digits right; x ≤ `LARGEST`."""
    small = np.clip(x, -1.0, 1.0)
    return np.where(np.abs(x) <= 1.0, _series(small, _REST), np.expm1(x) - x)


def log_tilted_sum(log_probs: np.ndarray, tilt: np.ndarray, mean_tilt: np.ndarray) -> np.ndarray:
    """Log Σ_a p(a)·exp(w(a)) over the last axis.

    Args:
        log_probs: (…, V) log p, normalised.
        tilt: (…, V) w, finite.
        mean_tilt: (…) Σ_a p(a)·w(a), at least 0, computed more precisely than by a sum of terms of
            both signs.
    """
    is_large = tilt.max(axis=-1) > LARGEST
    rest = (np.exp(log_probs) * _exp_rest(np.minimum(tilt, LARGEST))).sum(axis=-1)
    if not is_large.any():
        return np.log1p(rest + mean_tilt)
    in_logs = np.logaddexp.reduce(log_probs + tilt, axis=-1)
    return np.where(is_large, in_logs, np.log1p(rest + np.where(is_large, 0.0, mean_tilt)))


def divergence(log_probs: np.ndarray, other: np.ndarray) -> np.ndarray:
    """KL(p ‖ q) = Σ_a p(a)·(log p(a) − log q(a)) over the last axis, in nats, never below 0.

    Args:
        log_probs: (…, V) log p, normalised; −∞ where p is 0.
        other: (…, V) log q, normalised.

    Returns:
        (…); ∞ where q is 0 and p is not.
    """
    p, q = np.exp(log_probs), np.exp(other)
    with np.errstate(invalid="ignore"):  # −∞ − −∞, 0·∞
        ratio = log_probs - other
        near = q * _series(np.clip(np.nan_to_num(ratio), -1.0, 1.0), _ENTROPY)
        far = np.where(p > 0, p * ratio, 0.0) - p + q
    return np.where(np.abs(ratio) <= 1.0, near, far).sum(axis=-1)
