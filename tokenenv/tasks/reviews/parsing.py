"""Parsing: the sentences of the reviews grammar in any text, and the probability of a review."""

from __future__ import annotations

import functools
import math
from bisect import bisect_left
from dataclasses import dataclass

from tokenenv.tasks.reviews.grammar import (
    GROUP_OF,
    JUDGEMENTS,
    LENGTHS,
    MAX_SENTENCES,
    SLOTS,
    aspect_log_prob,
    enumerate_openings,
    sentiment_of,
)
from tokenenv.tasks.reviews.nodes import Word, expansions, text_of

__all__ = [
    "ParsedReview",
    "ParsedSentence",
    "begins_review",
    "parse_review",
    "review_log_prob",
]


@dataclass(frozen=True)
class ParsedSentence:
    """A judgement sentence of a text, or the unfinished last sentence.

    Attributes:
        text: The sentence as it stands in the text, without surrounding spaces.
        aspect: Its subject; None in an unfinished sentence that names no aspect yet.
        sentiment: Its sentiment in [-1, 1]; 0 for an unfinished sentence.
        is_complete: False for a last sentence that breaks off before its full stop.
        log_prob: Natural log probability given its aspect; -inf for an unfinished sentence.
    """

    text: str
    aspect: str | None
    sentiment: float
    is_complete: bool
    log_prob: float


@dataclass(frozen=True)
class ParsedReview:
    """The parse of a text.

    Attributes:
        opening: The opening sentence, None if the text does not start with one.
        sentences: Judgement sentences in order; only the last one can be unfinished.
        stray_words: Number of words that belong to no grammatical sentence; a full stop with no
            sentence before it counts as one word.
        is_grammatical: Whether the whole text is a review of the grammar, spacing included.
    """

    opening: str | None
    sentences: tuple[ParsedSentence, ...]
    stray_words: int
    is_grammatical: bool

    @property
    def judgements(self) -> tuple[ParsedSentence, ...]:
        """The complete judgement sentences."""
        return tuple(sentence for sentence in self.sentences if sentence.is_complete)

    @property
    def is_unfinished(self) -> bool:
        """Whether the text breaks off within a sentence that could still become grammatical."""
        return bool(self.sentences) and not self.sentences[-1].is_complete


@dataclass(frozen=True)
class _Tables:
    """Look-up tables of the parser; keys carry no full stop.

    Every judgement is either a key of ``whole`` or a key of ``heads`` (frame and aspect), a space
    and a key of the phrase table of the head.
    """

    openings: dict[str, float]  # -> log probability
    whole: dict[str, tuple[str, float, float]]  # -> aspect, sentiment, log probability
    heads: dict[str, tuple[str, int, float]]  # -> aspect, phrase table, log probability
    phrases: tuple[dict[str, tuple[float, float]], ...]  # -> sentiment, log probability
    head_lengths: frozenset[int]  # in words
    sorted_starts: list[str]  # openings, whole sentences and heads
    sorted_phrases: tuple[list[str], ...]
    sorted_openings: list[str]
    sorted_starts_of: dict[str, list[str]]  # aspect -> whole sentences and heads


@functools.cache
def _tables() -> _Tables:
    whole: dict[str, tuple[str, float, float]] = {}
    heads: dict[str, tuple[str, int, float]] = {}
    for aspect, node in JUDGEMENTS.items():
        for probability, leaves in expansions(node, opaque=SLOTS):
            text, log_prob, last = text_of(leaves), math.log(probability), leaves[-1]
            if isinstance(last, Word):
                whole[text] = (aspect, sentiment_of(leaves), log_prob)
            else:
                slot = next(i for i, slot in enumerate(SLOTS) if slot is last)
                heads[text] = (aspect, slot, log_prob)
    phrases = tuple(
        {text_of(leaves): (sentiment_of(leaves), math.log(p)) for p, leaves in expansions(slot)}
        for slot in SLOTS
    )
    openings = {text[:-1]: math.log(probability) for text, probability in enumerate_openings()}
    return _Tables(
        openings=openings,
        whole=whole,
        heads=heads,
        phrases=phrases,
        head_lengths=frozenset(head.count(" ") + 1 for head in heads),
        sorted_starts=sorted([*openings, *whole, *heads]),
        sorted_phrases=tuple(sorted(table) for table in phrases),
        sorted_openings=sorted(openings),
        sorted_starts_of={
            aspect: sorted(
                text for text, entry in (*whole.items(), *heads.items()) if entry[0] == aspect
            )
            for aspect in JUDGEMENTS
        },
    )


def _split_head(body: str, tables: _Tables) -> tuple[str, str] | None:
    """Splits a sentence body into a known head and the text after its space."""
    cut = -1
    for length in range(1, max(tables.head_lengths) + 1):
        cut = body.find(" ", cut + 1)
        if cut < 0:
            return None
        if length in tables.head_lengths and body[:cut] in tables.heads:
            return body[:cut], body[cut + 1 :]
    return None


def _parse_judgement(body: str, tables: _Tables) -> ParsedSentence | None:
    """Parses one judgement sentence, given without its full stop."""
    sentence = tables.whole.get(body)
    if sentence is not None:
        aspect, sentiment, log_prob = sentence
        return ParsedSentence(body + ".", aspect, sentiment, True, log_prob)
    split = _split_head(body, tables)
    if split is None:
        return None
    aspect, slot, head_log_prob = tables.heads[split[0]]
    phrase = tables.phrases[slot].get(split[1])
    if phrase is None:
        return None
    return ParsedSentence(body + ".", aspect, phrase[0], True, head_log_prob + phrase[1])


def _is_prefix(stub: str, ordered: list[str]) -> bool:
    """Whether some string of a sorted list starts with ``stub``."""
    place = bisect_left(ordered, stub)
    return place < len(ordered) and ordered[place].startswith(stub)


def _parse_stub(stub: str, tables: _Tables) -> ParsedSentence | None:
    """Parses an unfinished last sentence; None if no sentence of the grammar starts so."""
    if not _is_prefix(stub, tables.sorted_starts):
        split = _split_head(stub, tables)
        if split is None:
            return None
        slot = tables.heads[split[0]][1]
        if not _is_prefix(split[1], tables.sorted_phrases[slot]):
            return None
    aspect = next((word for word in stub.split(" ") if word in JUDGEMENTS), None)
    return ParsedSentence(stub, aspect, 0.0, False, -math.inf)


def _count_stray(piece: str) -> int:
    return max(1, len(piece.split()))


def parse_review(text: str) -> ParsedReview:
    """Finds the sentences of the grammar in any text; never raises on a string.

    A sentence counts only when it is spelled and spaced exactly as in the grammar. A text that
    lacks the opening is still searched for judgements, so that it can be scored.

    Args:
        text: Any string.

    Returns:
        The opening, the judgement sentences and the number of words outside them.
    """
    tables = _tables()
    opening: str | None = None
    sentences: list[ParsedSentence] = []
    stray = 0
    *finished, last = text.split(".")
    for index, piece in enumerate(finished):
        if index == 0:
            body = piece
            if body in tables.openings:
                opening = body + "."
                continue
        elif piece.startswith(" "):
            body = piece[1:]
        else:
            body = ""
        sentence = _parse_judgement(body, tables)
        if sentence is None:
            stray += _count_stray(piece)
        else:
            sentences.append(sentence)
    if last:
        spaced = not finished or last.startswith(" ")
        stub = _parse_stub(last[1:] if finished else last, tables) if spaced else None
        if stub is None:
            stray += _count_stray(last)
        else:
            sentences.append(stub)
    groups = {GROUP_OF[sentence.aspect] for sentence in sentences if sentence.aspect is not None}
    is_grammatical = (
        opening is not None
        and stray == 0
        and last == ""
        and len(sentences) in LENGTHS
        and len(groups) == len(sentences)
    )
    return ParsedReview(opening, tuple(sentences), stray, is_grammatical)


def begins_review(text: str) -> bool:
    """Whether some review of the grammar starts with this text, which may break off anywhere.

    Args:
        text: Any string.
    """
    tables = _tables()
    *finished, last = text.split(".")
    if not finished:
        return _is_prefix(last, tables.sorted_openings)
    opening, *pieces = finished
    sentences = [_parse_judgement(p[1:], tables) if p.startswith(" ") else None for p in pieces]
    groups = {GROUP_OF[s.aspect] for s in sentences if s is not None and s.aspect is not None}
    if opening not in tables.openings or len(groups) < len(pieces) or len(pieces) > MAX_SENTENCES:
        return False
    if last == "":
        return True
    return (
        len(pieces) < MAX_SENTENCES
        and last.startswith(" ")
        and any(
            _begins_judgement(last[1:], aspect, tables)
            for aspect in JUDGEMENTS
            if GROUP_OF[aspect] not in groups
        )
    )


def _begins_judgement(stub: str, aspect: str, tables: _Tables) -> bool:
    """Whether a judgement about `aspect` starts with `stub`."""
    if _is_prefix(stub, tables.sorted_starts_of[aspect]):
        return True
    split = _split_head(stub, tables)
    if split is None or tables.heads[split[0]][0] != aspect:
        return False
    return _is_prefix(split[1], tables.sorted_phrases[tables.heads[split[0]][1]])


def review_log_prob(text: str) -> float:
    """Natural log probability of a text under the grammar.

    Args:
        text: Any string.

    Returns:
        The log probability, -inf for a text that the grammar does not generate.
    """
    review = parse_review(text)
    if not review.is_grammatical or review.opening is None:
        return -math.inf
    log_prob = _tables().openings[review.opening[:-1]] + math.log(LENGTHS[len(review.sentences)])
    for index, sentence in enumerate(review.sentences):
        log_prob += sentence.log_prob + aspect_log_prob(index)
    return log_prob
