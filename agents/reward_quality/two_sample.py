"""Are two samples from one distribution? The energy distance, with a p-value by permutation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist

from tokenenv.ranges import check_ranges, count

__all__ = ["TwoSampleTest", "energy_distance", "energy_test", "pooled_scale"]


@dataclass(frozen=True, slots=True)
class TwoSampleTest:
    """The result of a two-sample test.

    Attributes:
        distance: the energy distance of the samples, 0 or greater.
        standardized: (distance − mean)/deviation over the permutations: about 0 where both samples
            are from one distribution, and 1 a standard deviation above that. It grows with the
            samples; 0 where the permutations do not vary.
        p_value: of the hypothesis that they are.
    """

    distance: float
    standardized: float
    p_value: float


def energy_distance(first: np.ndarray, second: np.ndarray) -> float:
    """2·E‖X−Y‖ − E‖X−X'‖ − E‖Y−Y'‖ over all pairs of points, a point with itself included.

    0 or greater, and of distributions 0 only if they are equal. Székely and Rizzo 2013, "Energy
    statistics: a class of statistics based on distances", Journal of Statistical Planning and
    Inference 143.

    Args:
        first: (n, d).
        second: (m, d).
    """
    distances, weights = _pooled(first, second)
    return max(0.0, float(-weights @ distances @ weights))


def energy_test(
    first: np.ndarray,
    second: np.ndarray,
    is_paired: bool = False,
    permutations: int = 999,
    seed: int = 0,
) -> TwoSampleTest:
    """Test whether two samples are from one distribution.

    The energy distance is the maximum mean discrepancy with the kernel −‖x−y‖ (Sejdinovic et al.
    2013, https://arxiv.org/abs/1207.6076): unlike a Gaussian kernel it has no width to be chosen,
    and it sees every difference of two distributions. Its null distribution depends on theirs, so
    the p-value is that of a permutation test: how many of the B permutations of the labels give a
    distance that is at least as large, p = (1 + #)/(1 + B) (Phipson and Smyth 2010,
    https://arxiv.org/abs/1603.05766). Then P(p ≤ α) ≤ α for every α and every sample size: with
    independent draws it is the false-alarm rate, and equal to α where α·(1 + B) is whole and no
    distances tie.

    Args:
        first: (n, d) independent draws.
        second: (m, d), likewise.
        is_paired: whether row i of both has something in common, such as the prompt that was
            answered. Then m = n, and labels are only swapped within a pair: the hypothesis is that
            both have one distribution given what they have in common, and how that differs from
            row to row does not blur the difference of the samples.
        permutations: B.
        seed: of the permutations. The rows of a sample (of pairs, both together) may be in any
            order: the result is the same.

    Raises:
        ValueError: there are fewer than two rows, or shapes or numbers that can't be compared.
    """
    check_ranges({"permutations": permutations}, {"permutations": count(high=10**6)})
    first, second = _checked(first, second, is_paired)
    first, second = _in_order(first, second, is_paired)
    distances, weights = _pooled(first, second)
    rng = np.random.default_rng(seed)
    if is_paired:
        signs = rng.choice([-1.0, 1.0], (permutations, len(first)))
        draws = np.concatenate([signs, signs], axis=1) * weights
    else:
        draws = rng.permuted(np.tile(weights, (permutations, 1)), axis=1)
    null = -((draws @ distances) * draws).sum(axis=1)
    observed = float(-weights @ distances @ weights)
    # Permutations that are the samples again have this distance up to rounding.
    rounding = 1e-10 * float(distances.max(initial=0.0))
    p_value = (1 + int((null >= observed - rounding).sum())) / (1 + permutations)
    deviation = float(null.std())
    is_varying = deviation > rounding
    standardized = (observed - float(null.mean())) / deviation if is_varying else 0.0
    return TwoSampleTest(max(0.0, observed), standardized, p_value)


def pooled_scale(
    first: np.ndarray, second: np.ndarray, least: float = 1e-9
) -> tuple[np.ndarray, np.ndarray]:
    """Two samples with every column at mean 0 and deviation 1 over both together.

    Over both, so that a permutation of the labels changes nothing and the test stays exact. Columns
    that do not vary become 0.

    Args:
        first: (n, d).
        second: (m, d).
        least: relative to a column's size, the deviation below which it does not vary.
    """
    both = np.concatenate([first, second]).astype(np.float64)
    deviation = both.std(axis=0)
    varies = deviation > least * np.abs(both).max(axis=0, initial=0.0)
    both = np.where(varies, (both - both.mean(axis=0)) / np.where(varies, deviation, 1.0), 0.0)
    return both[: len(first)], both[len(first) :]


def _pooled(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n+m, n+m) distances, and the weights w of which −wᵀDw is the energy distance."""
    both = np.concatenate([first, second])
    weights = np.repeat([1 / len(first), -1 / len(second)], [len(first), len(second)])
    return cdist(both, both), weights


def _in_order(
    first: np.ndarray, second: np.ndarray, is_paired: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Rows in an order of their own, so that the draws meet the same rows however they came."""
    if is_paired:
        order = np.lexsort(np.concatenate([first, second], axis=1).T[::-1])
        return first[order], second[order]
    return first[np.lexsort(first.T[::-1])], second[np.lexsort(second.T[::-1])]


def _checked(
    first: np.ndarray, second: np.ndarray, is_paired: bool
) -> tuple[np.ndarray, np.ndarray]:
    samples = [np.asarray(sample, dtype=np.float64) for sample in (first, second)]
    shapes = " and ".join(str(sample.shape) for sample in samples)
    is_comparable = all(sample.ndim == 2 and sample.shape[1] > 0 for sample in samples) and (
        samples[0].shape[1] == samples[1].shape[1]
    )
    if not is_comparable or min(map(len, samples)) < 2:
        raise ValueError(
            f"samples of the shapes {shapes} can't be compared: give (n, d) and (m, d) numbers, "
            "with 2 rows or more of each."
        )
    if is_paired and len(samples[0]) != len(samples[1]):
        raise ValueError(f"pairs have as many rows on both sides, these have the shapes {shapes}.")
    if not all(np.isfinite(sample).all() for sample in samples):
        raise ValueError("samples with NaN or ∞ can't be compared: leave these rows out.")
    return samples[0], samples[1]
