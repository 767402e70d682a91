"""The ranges that settings must lie in, for the command line's and `TokenPPO`'s alike."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["PPO_RANGES", "Range", "check_ranges"]


@dataclass(frozen=True, slots=True)
class Range:
    """Which numbers a setting may be.

    Attributes:
        words: the range as a message puts it.
        low: the least value.
        high: the greatest value.
        is_open: whether `low` itself is refused.
        is_optional: whether None is allowed.
        divisor: whole multiples of it only; None where the number need not be whole.
    """

    words: str
    low: float
    high: float = math.inf
    is_open: bool = False
    is_optional: bool = False
    divisor: int | None = None

    def holds(self, value: Any) -> bool:
        """Whether `value` lies in it."""
        if value is None:
            return self.is_optional
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            return False
        if self.divisor is not None and (
            not isinstance(value, numbers.Integral) or value % self.divisor
        ):
            return False
        number = float(value)
        return number <= self.high and (number > self.low if self.is_open else number >= self.low)


_FINITE = 1.7976931348623157e308

COUNT = Range("a whole number of at least 1", 1, divisor=1)
OPTIONAL_COUNT = Range(
    "a whole number of at least 1, or None (leave it out)", 1, is_optional=True, divisor=1
)
COUNT_OR_0 = Range("a whole number of at least 1, or 0 for none", 0, divisor=1)
SEED = Range("a whole number of 0 or more", 0, divisor=1)
PAIRED = (
    "an even number of at least 2: half of the responses are the policy's, half the reference's"
)
RESPONSES = Range(PAIRED, 2, divisor=2)
OPTIONAL_RESPONSES = Range(f"None (leave it out) or {PAIRED}", 2, is_optional=True, divisor=2)
POSITIVE = Range("a number greater than 0", 0, is_open=True)
OPTIONAL_POSITIVE = Range(
    "a number greater than 0, or None for none", 0, is_open=True, is_optional=True
)
WEIGHT = Range("0 or a positive, finite number", 0, _FINITE)
FRACTION = Range("a number from 0 to 1", 0, 1)

PPO_RANGES: dict[str, Range] = {
    "n_steps": COUNT,
    "batch_size": COUNT,
    "n_epochs": COUNT,
    "micro_batch_tokens": OPTIONAL_COUNT,
    "learning_rate": WEIGHT,
    "gamma": FRACTION,
    "gae_lambda": FRACTION,
    "clip_range": POSITIVE,
    "clip_range_vf": OPTIONAL_POSITIVE,
    "ent_coef": WEIGHT,
    "vf_coef": WEIGHT,
    "max_grad_norm": POSITIVE,
    "target_kl": OPTIONAL_POSITIVE,
}
"""Those of PPO's hyperparameters."""


def check_ranges(settings: Mapping[str, Any], ranges: Mapping[str, Range]) -> None:
    """Raise ValueError for the first setting that lies outside its range."""
    for name, allowed in ranges.items():
        if not allowed.holds(settings[name]):
            raise ValueError(f"{name}={settings[name]!r} must be {allowed.words}.")
