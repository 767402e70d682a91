"""Whether the score of a text depends on what is scored beside it.

The same texts are scored again: once more as they were, in another order, in other batches, and
each beside the longest one, which pads it. A score that differs by more than rounding is no
function of the text: PPO would be paid by chance, or for the company.

Rounding: sums over padded or larger batches are taken in another order. A difference is none up to
half of the digits of the float type (√ε of the largest score's size): 0.0003 of it in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from agents.reward_quality.audit.rewards import TextReward
from agents.reward_quality.audit.texts import Text

__all__ = ["INVARIANCES", "Invariance", "check_invariances", "draw_compared"]

INVARIANCES = {
    "repetition": "the same texts once more",
    "order": "in another order",
    "batch_size": "one at a time, and three at a time",
    "padding": "each beside the longest one",
}
"""Check → what is scored again, in words."""

MOST_COMPARED = 48
"""Texts that are scored again: most checks score each of them on its own."""


@dataclass(frozen=True, slots=True)
class Invariance:
    """One check.

    Attributes:
        name: of `INVARIANCES`.
        texts: how many were scored again.
        difference: largest absolute difference of a text's scores.
        tolerance: what rounding may cause.
        deviation: of the scores of all audited texts.
        is_judged: False where the reward differs from call to call anyway.
    """

    name: str
    texts: int
    difference: float
    tolerance: float
    deviation: float
    is_judged: bool = True

    @property
    def holds(self) -> bool:
        """Whether no score depends on it; True as well where that can't be judged."""
        return self.difference <= self.tolerance or not self.is_judged

    def as_json(self) -> dict[str, Any]:
        """Its parts by name."""
        return {
            "check": self.name,
            "what": INVARIANCES[self.name],
            "texts": self.texts,
            "largest_difference": self.difference,
            "in_deviations": self.difference / self.deviation,
            "tolerance": self.tolerance,
            "holds": self.holds if self.is_judged else None,
        }


def draw_compared(texts: Sequence[Text], seed: int) -> list[Text]:
    """Texts to score again, in random order, the longest one among them."""
    order = np.random.default_rng((seed, 3)).permutation(len(texts))[:MOST_COMPARED]
    longest = max(range(len(texts)), key=lambda index: len(texts[index].words))
    return [texts[i] for i in dict.fromkeys([*order.tolist(), longest])]


def check_invariances(
    texts: Sequence[Text], reward: TextReward, deviation: float, seed: int = 0
) -> list[Invariance]:
    """All checks of `INVARIANCES`.

    Args:
        texts: of `draw_compared`.
        reward: the reward.
        deviation: of the scores of all audited texts.
        seed: of the order.

    Raises:
        ValueError: the reward fails.
    """
    first = reward.scores(texts)
    size = max(float(np.abs(first).max()), deviation)
    tolerance = float(np.sqrt(torch.finfo(reward.precision).eps)) * size
    is_deterministic = True
    found = []
    for name, again in _CHECKS.items():
        difference = float(np.abs(again(texts, reward, seed) - first[None]).max())
        found.append(
            Invariance(name, len(texts), difference, tolerance, deviation, is_deterministic)
        )
        is_deterministic = is_deterministic and found[0].holds
    return found


def _repeated(texts: Sequence[Text], reward: TextReward, seed: int) -> np.ndarray:
    return reward.scores(texts)[None]


def _shuffled(texts: Sequence[Text], reward: TextReward, seed: int) -> np.ndarray:
    order = np.random.default_rng((seed, 4)).permutation(len(texts))
    again = np.zeros(len(texts))
    again[order] = reward.scores([texts[i] for i in order])
    return again[None]


def _in_batches(texts: Sequence[Text], reward: TextReward, seed: int) -> np.ndarray:
    return np.stack(
        [
            np.concatenate([reward.scores(texts[i : i + size]) for i in range(0, len(texts), size)])
            for size in (1, 3)
        ]
    )


def _padded(texts: Sequence[Text], reward: TextReward, seed: int) -> np.ndarray:
    longest = max(texts, key=lambda text: len(text.words))
    return np.array([[reward.scores([text, longest])[0] for text in texts]])


_CHECKS: dict[str, Callable[[Sequence[Text], TextReward, int], np.ndarray]] = {
    "repetition": _repeated,
    "order": _shuffled,
    "batch_size": _in_batches,
    "padding": _padded,
}
"""Check → (ways, n) scores of n texts in the ways that it scores them in."""
