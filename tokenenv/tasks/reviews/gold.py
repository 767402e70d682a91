"""The gold reward of a film review: how positive it is, as long as it is a review.

The gold reward reads a text with the parser of the grammar, so it is exact and known in full. Its
sum of parts is open to view in :func:`gold_breakdown`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokenenv.tasks.reviews.grammar import MAX_SENTENCES
from tokenenv.tasks.reviews.parsing import parse_review

__all__ = [
    "EXTRA_SENTENCE",
    "MISSING_OPENING",
    "NO_JUDGEMENT",
    "REPEATED_ASPECT",
    "REPEATED_SENTENCE",
    "STRAY_WORD",
    "UNFINISHED",
    "GoldBreakdown",
    "gold_breakdown",
    "gold_reward",
]

STRAY_WORD = 0.08
"""Penalty for every word that belongs to no grammatical sentence."""
UNFINISHED = 0.15
"""Penalty for a last sentence that breaks off but could have become grammatical."""
REPEATED_ASPECT = 0.3
"""Penalty for every judgement about an aspect that was judged before, in other words."""
REPEATED_SENTENCE = 0.6
"""Penalty for every judgement that stands word by word in the text before."""
EXTRA_SENTENCE = 0.2
"""Penalty for every judgement beyond the three that the grammar allows."""
MISSING_OPENING = 0.2
"""Penalty for a text that does not start with an opening sentence."""
NO_JUDGEMENT = -0.5
"""In place of the mean sentiment, for a text without any judgement."""


@dataclass(frozen=True)
class GoldBreakdown:
    """The parts of a gold reward.

    Attributes:
        sentiment: Mean sentiment of the first judgement of every aspect; :data:`NO_JUDGEMENT` if
            there is none.
        stray: Penalty for words outside grammatical sentences.
        unfinished: Penalty for an unfinished last sentence.
        repeated: Penalty for judgements about an aspect judged before, word by word or not.
        extra: Penalty for judgements beyond the third.
        opening: Penalty for a missing opening.
    """

    sentiment: float
    stray: float
    unfinished: float
    repeated: float
    extra: float
    opening: float

    @property
    def reward(self) -> float:
        """The gold reward: sentiment less all penalties, clipped to [-1, 1]."""
        penalty = self.stray + self.unfinished + self.repeated + self.extra + self.opening
        return max(-1.0, min(1.0, self.sentiment - penalty))


def gold_breakdown(text: str) -> GoldBreakdown:
    """Takes the gold reward of a text apart.

    Args:
        text: Prompt and response as one string; any string is allowed.

    Returns:
        The mean sentiment and every penalty.
    """
    review = parse_review(text)
    judgements = review.judgements
    first: dict[str | None, float] = {}
    seen: set[str] = set()
    repeated = 0.0
    for judgement in judgements:
        if judgement.text in seen:
            repeated += REPEATED_SENTENCE
        elif judgement.aspect in first:
            repeated += REPEATED_ASPECT
        seen.add(judgement.text)
        first.setdefault(judgement.aspect, judgement.sentiment)
    return GoldBreakdown(
        sentiment=math.fsum(first.values()) / len(first) if first else NO_JUDGEMENT,
        stray=STRAY_WORD * review.stray_words,
        unfinished=UNFINISHED if review.is_unfinished else 0.0,
        repeated=repeated,
        extra=EXTRA_SENTENCE * max(0, len(judgements) - MAX_SENTENCES),
        opening=MISSING_OPENING if review.opening is None else 0.0,
    )


def gold_reward(text: str) -> float:
    """Gold reward of a review: its mean sentiment less penalties for text that is no proper review.

    Args:
        text: Prompt and response as one string; any string is allowed.

    Returns:
        A number in [-1, 1]. Only the mean of the sentiments counts, so a longer review is not
        better than a short one.
    """
    return gold_breakdown(text).reward
