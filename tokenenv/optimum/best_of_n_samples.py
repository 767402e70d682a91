"""Best-of-n from samples of the reference: unbiased for every n up to their number.

Of m samples to a prompt, the mean over all n-subsets of the score of the best is an unbiased
estimate of best-of-n's E[R], and uses every sample for every n. In the order of their scores, the
i-th lowest is the best of C(i − 1, n − 1) of the C(m, n) subsets. Samples of equal score are the
first drawn of the best equally often, so that each has the mean share of its block: the rule of
`best_of_n`. With the shares the gold reward of the response that is taken follows as its score
does. (For 0-1 scores this is pass@k: Chen et al. 2021, https://arxiv.org/abs/2107.03374.)

Axes: `X` prompts, `m` samples of the reference to each.
"""

from __future__ import annotations

import numpy as np

from tokenenv.ranges import COUNT, check_ranges

__all__ = ["check_size", "chosen_shares", "interval_over_prompts"]


def chosen_shares(scores: np.ndarray, n: int) -> np.ndarray:
    """(X, m) of all n-subsets, in how large a share each sample is the one that is taken.

    Args:
        scores: (X, m) R.
        n: samples that the best is taken of.

    Returns:
        Rows that sum to 1. The sum over a row of share·f is an unbiased estimate of best-of-n's
        E[f], for the score and for anything else that is known of each sample.

    Raises:
        ValueError: n is no whole number of at least 1, or exceeds the number of samples.
    """
    check_size(n, scores.shape[1])
    by_rank = _shares_by_rank(scores.shape[1], n)
    shares = np.empty(scores.shape)
    for row, of_prompt in zip(shares, scores, strict=True):
        _, block_of, counts = np.unique(of_prompt, return_inverse=True, return_counts=True)
        starts = np.cumsum(counts) - counts
        row[:] = (np.add.reduceat(by_rank, starts) / counts)[block_of]
    return shares


def check_size(n: int, samples: int) -> None:
    """Raise ValueError where there is no best of n among the samples of each prompt."""
    check_ranges({"n": n}, {"n": COUNT})
    if n > samples:
        raise ValueError(
            f"n={n} is more than the {samples} samples of each prompt: there is no best of {n} "
            f"among them. Take {n} samples or more, or a smaller n."
        )


def _shares_by_rank(m: int, n: int) -> np.ndarray:
    """(m,) C(i − 1, n − 1)/C(m, n) for i = 1 … m, each from the one above it."""
    i = np.arange(m - 1, 0, -1)
    steps = np.maximum(i + 1 - n, 0) / i
    return (n / m) * np.append(1.0, np.cumprod(steps))[::-1]


def interval_over_prompts(
    by_prompt: np.ndarray, seed: int, draws: int = 2000
) -> tuple[float, float] | None:
    """95 % bootstrap interval of a mean over prompts: percentiles of resampled prompts.

    Args:
        by_prompt: (X,) estimates.
        seed: of the resampling; the same one draws the same prompts.
        draws: resamples.

    Returns:
        The interval; None of a single prompt, of which the scatter is not known.
    """
    count = len(by_prompt)
    if count < 2:
        return None
    rows = np.random.default_rng(seed).integers(count, size=(draws, count))
    low, high = np.quantile(by_prompt[rows].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
