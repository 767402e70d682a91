"""What the hostile suites share: how much of them runs, a limit of time, and what is an answer.

The fast tests take a sample that is the same every time; `make test-slow` runs all cases.
"""

from __future__ import annotations

import contextlib
import random
import signal
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import gymnasium as gym

Case = TypeVar("Case")

ESCAPES = "\x1b[31m\x9b2J\u202e"
"""A colour, C1's control sequence and a bidirectional mark."""

SURROGATE = "\udcff"
"""What Python makes of an argument that is no UTF-8."""


def sample(cases: Sequence[Case], count: int, seed: int = 0) -> list[Case]:
    """`count` of the cases, the same each time."""
    return random.Random(seed).sample(list(cases), count)


class Hang(BaseException):
    """A call took longer than any answer may."""


@contextlib.contextmanager
def time_limit(seconds: int = 180) -> Iterator[None]:
    """Raise `Hang` where what is inside takes longer."""

    def stop(*_: Any) -> None:
        raise Hang(f"no answer in {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def acting(text: str) -> set[str]:
    """The characters of `text` that a terminal would not simply show."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n"}


def is_an_answer(error: BaseException) -> bool:
    """Whether an error of the library is one that a user can act upon.

    A ValueError, a TypeError of a call's signature or Gymnasium's own error, with a sentence; never
    an OverflowError, an IndexError, an AttributeError, a RecursionError …
    """
    is_of_kind = isinstance(error, ValueError | TypeError | gym.error.Error | OSError)
    return is_of_kind and not isinstance(error, UnicodeError) and len(str(error)) >= 15
