"""Lengths of texts in tokens or characters, and their percentiles."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tokenenv.data import Turns

__all__ = ["PERCENTILES", "Counter", "Lengths", "character_counts", "text_of", "token_counts"]

PERCENTILES = (5, 50, 95, 99)

Counter = Callable[[Sequence[str]], list[int]]
"""Texts → their lengths."""


def text_of(turns: Turns) -> str:
    """A text; of messages, what they say, without what a chat template writes around it."""
    return turns if isinstance(turns, str) else "\n".join(m["content"] for m in turns)


def character_counts(texts: Sequence[str]) -> list[int]:
    """Lengths in characters."""
    return [len(text) for text in texts]


def token_counts(tokenizer: Any) -> Counter:
    """What counts the tokens of a tokenizer, without those that it puts around a text."""

    def count(texts: Sequence[str]) -> list[int]:
        if not texts:
            return []
        encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)
        return [len(ids) for ids in encoded["input_ids"]]

    return count


class Lengths:
    """Lengths by the part of a row that has them: four bytes each."""

    def __init__(self, parts: Sequence[str]) -> None:
        self.parts = {part: array("I") for part in parts}

    def add(self, part: str, lengths: Sequence[int]) -> None:
        """Note some more."""
        self.parts[part].extend(lengths)

    def summary(self) -> dict[str, dict[str, float]]:
        """Part → mean, some percentiles and the greatest; of parts that there are any of."""
        found = {}
        for part, values in self.parts.items():
            if len(values):
                numbers = np.frombuffer(values, dtype=np.uint32)
                marks = np.percentile(numbers, PERCENTILES, method="inverted_cdf")
                found[part] = {
                    "mean": float(numbers.mean()),
                    **{f"p{p}": int(mark) for p, mark in zip(PERCENTILES, marks, strict=True)},
                    "max": int(numbers.max()),
                }
        return found
