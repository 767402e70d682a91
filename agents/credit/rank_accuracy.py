"""How often a critic orders two alternative next tokens as the true Q does."""

from __future__ import annotations

import numpy as np

__all__ = ["rank_accuracy"]


def rank_accuracy(
    estimates: np.ndarray,
    truth: np.ndarray,
    probabilities: np.ndarray | None = None,
    visits: np.ndarray | None = None,
) -> float:
    """The share of pairs of alternatives that estimates put in the order of the truth.

    A critic may explain much of the returns' variance, which lies between prompts and between early
    and late states, and yet not know which of two next tokens is better: what VinePPO ranks values
    by (Kazemnejad et al. 2024, https://arxiv.org/abs/2410.01679). A constant has ½, since equal
    estimates count half. Pairs whose truths are equal don't count.

    Args:
        estimates: (n, k) Q̂(s, a) = r(s, a) + γ·V̂(s') of k next tokens in each of n states; NaN
            leaves one out.
        truth: (n, k) Q(s, a).
        probabilities: (n, k) π(a|s): a pair weighs as often as two draws give it; None: all alike.
        visits: (n,) weights of the states; None: all alike.

    Returns:
        0 … 1; NaN where no two alternatives differ.

    Raises:
        ValueError: the shapes don't agree, or a weight is negative.
    """
    estimates, truth = np.asarray(estimates, np.float64), np.asarray(truth, np.float64)
    weights = np.ones(truth.shape) if probabilities is None else np.asarray(probabilities)
    of_states = np.ones(truth.shape[:1]) if visits is None else np.asarray(visits)
    shapes = (estimates.shape, weights.shape, of_states.shape)
    if truth.ndim != 2 or shapes != (truth.shape, truth.shape, truth.shape[:1]):
        raise ValueError(
            f"estimates, probabilities and visits of shapes {shapes} for a truth of shape "
            f"{truth.shape}: give (states, alternatives) each, and one visit for each state."
        )
    if (weights < 0).any() or (of_states < 0).any():
        raise ValueError("a weight is negative: give probabilities and visits of at least 0.")
    right = total = 0.0
    for a in range(truth.shape[1]):
        for b in range(a):
            true_difference = truth[:, a] - truth[:, b]
            difference = estimates[:, a] - estimates[:, b]
            counts = np.isfinite(true_difference) & np.isfinite(difference) & (true_difference != 0)
            pair = (of_states * weights[:, a] * weights[:, b])[counts]
            agrees = np.sign(difference[counts]) * np.sign(true_difference[counts])  # −1, 0, 1
            right += float((pair * (1 + agrees) / 2).sum())
            total += float(pair.sum())
    return right / total if total > 0 else float("nan")
