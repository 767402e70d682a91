"""How far J rose from that of the untrained model, with the interval of that difference.

Axes: `X` prompts, `n` responses to each.
"""

from __future__ import annotations

import math

import numpy as np

from tokenenv.optimum.mixture_samples import MixtureSamples

__all__ = ["gain_interval", "objectives_of"]


def objectives_of(samples: MixtureSamples, kl_coef: float) -> np.ndarray:
    """(X, n) R − β·log(π/π_ref) of the policy's responses, of which J is the mean.

    Args:
        samples: of the policy and the reference.
        kl_coef: β.
    """
    return samples.scores[0] - kl_coef * (samples.log_probs[0] - samples.ref_log_probs[0])


def gain_interval(after: np.ndarray, before: np.ndarray) -> tuple[float, float] | None:
    """95 % interval of how far J rose, from the prompts' differences (Student's t, paired).

    The scatter between prompts is in it, so that it is one for other prompts of their kind as well;
    it needs no more than one response of each policy to a prompt. Of a single prompt, the scatter
    is that of its responses.

    Args:
        after: (X, n) what J is the mean of, for the policy's responses.
        before: (X, m) the same for those of the untrained model.

    Returns:
        The interval, or None: of one response nothing is known of the scatter.
    """
    differences = after.mean(axis=1) - before.mean(axis=1)  # (X,)
    gain = float(differences.mean())
    if len(differences) > 1:
        freedom = len(differences) - 1
        error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    else:
        freedom = after.size + before.size - 2
        if min(after.size, before.size) < 2:
            return None
        error = math.sqrt(sum(float(np.var(one, ddof=1)) / one.size for one in (after, before)))
    half = _t_quantile(freedom) * error
    return gain - half, gain + half


_T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571)
"""97.5 % quantiles of Student's t with 1 to 5 degrees of freedom."""


def _t_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, to 3 digits (Abramowitz and Stegun 1964, 26.7.5)."""
    if freedom <= len(_T_QUANTILES):
        return _T_QUANTILES[freedom - 1]
    z = 1.959964
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
