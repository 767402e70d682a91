"""Every judgement sentence of the reviews grammar, by expanding it in full."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tokenenv.tasks.reviews.grammar import JUDGEMENTS, sentiment_of
from tokenenv.tasks.reviews.nodes import expansions, text_of


@dataclass(frozen=True)
class GrammarSentence:
    """One judgement sentence; `probability` is given its aspect, `sentiment` lies in [-1, 1]."""

    text: str
    aspect: str
    sentiment: float
    probability: float


def enumerate_sentences(aspect: str) -> Iterator[GrammarSentence]:
    """Every judgement sentence about one aspect."""
    for probability, leaves in expansions(JUDGEMENTS[aspect]):
        yield GrammarSentence(text_of(leaves) + ".", aspect, sentiment_of(leaves), probability)
