"""Ranges of the numbers in settings: environments, reward models, agents, command line."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "COUNT",
    "COUNT_OR_0",
    "FINITE",
    "FRACTION",
    "MOST",
    "OPTIONAL_COUNT",
    "OPTIONAL_FRACTION",
    "OPTIONAL_POSITIVE",
    "OPTIONAL_POSITIVE_FINITE",
    "OPTIONAL_RESPONSES",
    "OPTIONAL_RESPONSES_OR_0",
    "OPTIONAL_WEIGHT",
    "POSITIVE",
    "POSITIVE_FINITE",
    "RESPONSES",
    "SEED",
    "WEIGHT",
    "Range",
    "check_ranges",
    "check_reward_weights",
    "count",
]


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that a setting may have.

    Attributes:
        words: the range in the words of a message.
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
        """Whether `value` lies in it. True and False are no numbers."""
        if value is None:
            return self.is_optional
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            return False
        if self.divisor is not None and (
            not isinstance(value, numbers.Integral) or value % self.divisor
        ):
            return False
        number: Any = value  # not as a float: whole numbers of any length compare exactly
        is_above = number > self.low if self.is_open else number >= self.low
        return bool(is_above and number <= self.high)


_FINITE = 1.7976931348623157e308

MOST = 10**9
"""Limit of every count: larger ones are typing errors, and would fit no memory."""


def count(low: int = 1, high: int = MOST, or_what: str = "", is_optional: bool = False) -> Range:
    """The whole numbers from `low` to `high`.

    Args:
        low: the least.
        high: the greatest.
        or_what: other allowed values, in the words of a message: ", or None (leave it out)".
        is_optional: whether None is allowed.
    """
    words = f"a whole number of at least {low} and at most {high:,}{or_what}"
    return Range(words, low, high, is_optional=is_optional, divisor=1)


COUNT = count()
OPTIONAL_COUNT = count(or_what=", or None (leave it out)", is_optional=True)
COUNT_OR_0 = Range(
    f"a whole number of at least 1 and at most {MOST:,}, or 0 for none", 0, MOST, divisor=1
)
SEED = Range("a whole number of 0 or more and at most 4,294,967,295", 0, 2**32 - 1, divisor=1)
PAIRED = (
    f"an even number of at least 2 and at most {MOST:,}: half of the responses are the policy's, "
    "half the reference's"
)
RESPONSES = Range(PAIRED, 2, MOST, divisor=2)
OPTIONAL_RESPONSES = Range(f"None (leave it out) or {PAIRED}", 2, MOST, is_optional=True, divisor=2)
OPTIONAL_RESPONSES_OR_0 = Range(
    f"None (leave it out), 0 for no evaluation, or {PAIRED}", 0, MOST, is_optional=True, divisor=2
)
POSITIVE = Range("a positive number, greater than 0", 0, is_open=True)
OPTIONAL_POSITIVE = Range(
    "a number greater than 0, or None for none", 0, is_open=True, is_optional=True
)
POSITIVE_FINITE = Range("a positive, finite number", 0, _FINITE, is_open=True)
OPTIONAL_POSITIVE_FINITE = Range(
    "a positive, finite number, or None (leave it out)", 0, _FINITE, is_open=True, is_optional=True
)
FINITE = Range("a finite number", -_FINITE, _FINITE)
WEIGHT = Range("0 or a positive, finite number", 0, _FINITE)
OPTIONAL_WEIGHT = Range(
    "0 or a positive, finite number, or None (leave it out)", 0, _FINITE, is_optional=True
)
FRACTION = Range("a number from 0 to 1", 0, 1)
OPTIONAL_FRACTION = Range("a number from 0 to 1, or None (leave it out)", 0, 1, is_optional=True)


def check_ranges(settings: Mapping[str, Any], ranges: Mapping[str, Range]) -> None:
    """Raise ValueError for the first setting that lies outside its range."""
    for name, allowed in ranges.items():
        if not allowed.holds(settings[name]):
            raise ValueError(f"{name}={settings[name]!r} must be {allowed.words}.")


def check_reward_weights(reward_model: Any, weights: Any) -> None:
    """Check a list of rewards, and the weights of its rewards.

    Raises:
        ValueError: the list is empty, or there are not as many finite numbers as rewards.
    """
    is_list = isinstance(reward_model, list | tuple)
    if is_list and not reward_model:
        raise ValueError(
            f"reward_model={reward_model!r} is an empty list: give one reward or more."
        )
    if weights is None:
        return
    count = len(reward_model) if is_list else int(reward_model is not None)
    is_numbers = isinstance(weights, list | tuple) and all(map(FINITE.holds, weights))
    if not is_numbers or not weights or len(weights) != count:
        raise ValueError(
            f"reward_weights={weights!r:.80} must be a list of finite numbers, one for each of the "
            f"{count} rewards that reward_model names, or None for 1 each."
        )
