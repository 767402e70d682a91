"""One line of the table that `tokenrlhf verify` prints."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Check", "at_least", "at_most", "near", "states"]


@dataclass(frozen=True, slots=True)
class Check:
    """A fact that holds on a sound installation.

    Attributes:
        name: what is checked.
        expected: the expected result, in words or numbers.
        found: the actual result.
        passed: whether they agree.
    """

    name: str
    expected: str
    found: str
    passed: bool


def near(name: str, value: float, expected: float, tolerance: float) -> Check:
    """`value` lies within `tolerance` of `expected`."""
    return Check(
        name,
        f"{expected:.6g} ± {tolerance:.0e}",
        f"{value:.6g}, off by {abs(value - expected):.1e}",
        abs(value - expected) <= tolerance,
    )


def at_most(name: str, value: float, limit: float) -> Check:
    """`value` ≤ `limit`; NaN fails."""
    return Check(name, f"≤ {limit:.4g}", f"{value:.4g}", value <= limit)


def at_least(name: str, value: float, limit: float) -> Check:
    """`value` ≥ `limit`; NaN fails."""
    return Check(name, f"≥ {limit:.4g}", f"{value:.4g}", value >= limit)


def states(name: str, expected: str, value: object, passed: bool) -> Check:
    """A check of something other than a single number."""
    return Check(name, expected, str(value), bool(passed))
