"""How far apart two computations of one floating-point number may be.

Processors differ in their kernels, and kernels in the order in which they add: SSE adds four
products at a time, AVX-512 sixteen, AMX a whole tile; a batch of another size may go through
another kernel too. Where two results are the same mathematics by different kernels, only rounding
may lie between them, and rounding follows the magnitude and the dtype:

- a sum of n terms, each rounded to u = ε/2 of the running sum, errs by at most n·u and, since the
  signs of the errors vary, typically by √n·u times the sum of the terms' magnitudes (N. J. Higham
  and T. Mary, "A New Approach to Probabilistic Rounding Error Analysis", 2019);
- two such sums are apart by at most twice that: √n·ε·magnitude.

The magnitude is the largest of the whole array, since a log-probability of −0.1 is the difference
of a logit and a log-sum-exp that may both be 8, and never below 1, the size of normalised hidden
states. So √n·ε·max(1, max |expected|) is allowed: in float32 and for n = 64, the widest sums in the
models of these tests, 9.5e-7 of the magnitude. A wrong mask, position or token moves
log-probabilities by 10⁻² and more; nothing of that passes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

__all__ = ["assert_close", "rounding"]

TERMS = 64
"""Of the widest sums in the tests' models: widths 32 to 48, vocabularies of 40 tokens."""

_EPSILON = {
    "float32": float(torch.finfo(torch.float32).eps),
    "float64": float(torch.finfo(torch.float64).eps),
    "bfloat16": float(torch.finfo(torch.bfloat16).eps),
    "float16": float(torch.finfo(torch.float16).eps),
}


def rounding(expected: Any, terms: int = TERMS, dtype: str = "float32") -> float:
    """What rounding may put between `expected` and the same numbers by another kernel.

    Args:
        expected: array, tensor, or number; its largest magnitude counts.
        terms: n of the sums that it went through; where several stand one after another, of all.
        dtype: the least precise that the computation went through, not that of the result.
    """
    found = np.abs(_float64(expected))
    largest = float(found[np.isfinite(found)].max(initial=1.0))
    return math.sqrt(terms) * _EPSILON[dtype] * largest


def assert_close(
    found: Any, expected: Any, terms: int = TERMS, dtype: str = "float32", message: str = ""
) -> None:
    """`found` is `expected` up to `rounding`; infinities and NaN are where they were."""
    np.testing.assert_allclose(
        _float64(found),
        _float64(expected),
        rtol=0,
        atol=rounding(expected, terms, dtype),
        err_msg=message,
    )


def _float64(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().double().cpu().numpy()
    return np.asarray(values, dtype=np.float64)
