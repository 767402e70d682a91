"""What the responses that finish in a rollout look like: means of text features, and their spread.

Axes: `n` responses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from agents.reward_quality.text_features import WordLists, text_features

__all__ = ["MOST_TEXTS", "Spread", "TextTracker", "drift", "pooled"]

MOST_TEXTS = 512
"""Texts of a rollout that are looked at: of more, so many that lie evenly among them."""


@dataclass(frozen=True)
class Spread:
    """A number of n responses.

    Attributes:
        count: n.
        mean: its mean.
        square: its mean square.
    """

    count: int
    mean: float
    square: float

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Spread:
        """Of (n,) values, one at least."""
        numbers = np.asarray(values, dtype=np.float64)
        return cls(len(numbers), float(numbers.mean()), float((numbers**2).mean()))

    @property
    def deviation(self) -> float:
        """Standard deviation over the responses, by n − 1; 0 for a single one."""
        variance = max(0.0, self.square - self.mean**2)
        return math.sqrt(variance * self.count / max(1, self.count - 1))


def pooled(spreads: Sequence[Spread]) -> Spread:
    """The same number of all of their responses together; of one spread at least."""
    count = sum(one.count for one in spreads)
    mean, square = (
        sum(one.count * value for one, value in zip(spreads, values, strict=True)) / count
        for values in ([one.mean for one in spreads], [one.square for one in spreads])
    )
    return Spread(count, mean, square)


def drift(start: Spread, now: Spread) -> float:
    """How far the mean has moved, in deviations of the responses at the start.

    A number that hardly varied at the start, such as a mark that no response had, has a deviation
    of at least what it would be if 3/n of those responses had been like those of now: so many can
    be missed among n with a probability of 5 % (the rule of three).
    """
    difference = now.mean - start.mean
    from_start = max(0.0, now.square - 2 * now.mean * start.mean + start.mean**2)
    unseen = math.sqrt(from_start * min(1.0, 3 / start.count))
    deviation = max(start.deviation, unseen)
    return difference / deviation if deviation > 0 else 0.0


@dataclass
class TextTracker:
    """Collects the texts of a rollout and computes their features at its end.

    Attributes:
        word_lists: whose words are counted; None: those of the package.
    """

    word_lists: WordLists | None = None
    _texts: list[str] = field(default_factory=list)
    _lengths: list[int] = field(default_factory=list)

    def add(self, text: str, tokens: int) -> None:
        """A response that has just finished, and its length in tokens."""
        self._texts.append(text)
        self._lengths.append(tokens)

    def end_rollout(self) -> Mapping[str, Spread]:
        """Feature → its spread over the texts since the last call; empty without any."""
        texts, lengths = self._texts, self._lengths
        self._texts, self._lengths = [], []
        if not texts:
            return {}
        if len(texts) > MOST_TEXTS:
            rows = np.linspace(0, len(texts) - 1, MOST_TEXTS).round().astype(int)
            texts, lengths = [texts[i] for i in rows], [lengths[i] for i in rows]
        features = text_features(texts, lengths, self.word_lists)
        return {name: Spread.of(values) for name, values in features.items()}
