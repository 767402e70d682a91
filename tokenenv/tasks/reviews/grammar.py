"""A seeded, unambiguous probabilistic grammar of short film reviews.

A review is one neutral opening sentence and one to three judgement sentences, each about another
side of the film (story, players, sound and picture):

    ``We watched an old western at home. The cast was rather dull but great. I liked the songs.``

The grammar is a tree of nodes (`nodes.py`), built once from the data tables below. Because no
string has two derivations, the entropy of the text equals the entropy of the choices, so both are
known exactly. The way back, from text to sentences, is in `parsing.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from tokenenv.tasks.reviews.nodes import (
    Choice,
    Node,
    Word,
    choice,
    count_derivations,
    expansions,
    node_entropy,
    sample_text,
    seq,
    text_of,
    uniform,
    words,
)

__all__ = [
    "ASPECTS",
    "ASPECT_GROUPS",
    "CONTRAST",
    "GROUP_OF",
    "JUDGEMENTS",
    "LENGTHS",
    "MAX_SENTENCES",
    "NEGATION",
    "SENTIMENT_WORDS",
    "SLOTS",
    "aspect_log_prob",
    "count_reviews",
    "enumerate_openings",
    "review_entropy",
    "sample_review",
    "sentiment_of",
    "vocabulary",
]

# ---------------------------------------------------------------------------------------------
# The data: every word, weight and sentiment of the grammar
# ---------------------------------------------------------------------------------------------

NEGATION = -0.5
"""Factor of ``not`` on the sentiment it governs."""
CONTRAST = (0.3, 0.7)
"""Weights of the two sides of ``... but ...``."""

_SENTENCE_COUNT = ((1, 0.35), (2, 0.45), (3, 0.20))

ASPECT_GROUPS: tuple[tuple[str, ...], ...] = (
    ("plot", "pace", "jokes"),
    ("acting", "cast", "actors"),
    ("music", "songs", "scenes"),
)
"""Aspects by side of the film. A review judges a side at most once: the side is uniform over those
that are left, the aspect over those of its side."""

ASPECTS: tuple[str, ...] = tuple(aspect for group in ASPECT_GROUPS for aspect in group)
"""The subjects of judgements."""

GROUP_OF: dict[str, int] = {
    aspect: index for index, group in enumerate(ASPECT_GROUPS) for aspect in group
}
"""The side of the film that an aspect belongs to."""

_PLURAL = ("jokes", "actors", "songs", "scenes")

# word, sentiment, weight within its class
_POSITIVE = (
    ("good", 0.5, 0.26),
    ("fun", 0.6, 0.20),
    ("nice", 0.4, 0.16),
    ("fresh", 0.5, 0.13),
    ("great", 0.8, 0.18),
    ("superb", 1.0, 0.07),
)
_NEGATIVE = (
    ("bad", -0.5, 0.24),
    ("dull", -0.6, 0.22),
    ("weak", -0.4, 0.17),
    ("flat", -0.5, 0.13),
    ("poor", -0.7, 0.15),
    ("awful", -1.0, 0.09),
)
_NEUTRAL = (
    ("simple", 0.0, 0.4),
    ("quiet", 0.0, 0.3),
    ("modern", 0.0, 0.2),
    ("plain", 0.0, 0.1),
)
_CLASS_WEIGHTS = (0.32, 0.56, 0.12)  # positive, negative, neutral

# word, factor, probability; no intensifier has the rest
_INTENSIFIERS = (
    ("very", 1.3, 0.13),
    ("really", 1.3, 0.07),
    ("truly", 1.3, 0.04),
    ("rather", 0.6, 0.06),
    ("fairly", 0.6, 0.05),
)
_NOT_PROBABILITY = 0.15
_CONTRAST_PROBABILITY = 0.15

# past, base form, sentiment, weight
_VERBS = (
    ("loved", "love", 0.9, 0.10),
    ("liked", "like", 0.5, 0.22),
    ("enjoyed", "enjoy", 0.6, 0.12),
    ("noticed", "notice", 0.0, 0.10),
    ("disliked", "dislike", -0.5, 0.28),
    ("hated", "hate", -0.9, 0.18),
)


def _opening_node() -> Choice:
    verb = uniform("saw", "watched")
    film = seq(
        choice((0.4, "this"), (0.35, "the new"), (0.25, "an old")),
        uniform("film", "comedy", "drama", "thriller", "western"),
    )
    when = uniform("last night", "on Sunday", "at home", "with friends", "today")
    when_first = uniform("Last night", "On Sunday", "Today")
    return choice(
        (0.65, seq(uniform("I", "We"), verb, film, when)),
        (0.35, seq(when_first, uniform("I", "we"), verb, film)),
    )


def _adjectives(table: tuple[tuple[str, float, float], ...]) -> Choice:
    return choice(*((weight, Word(word, "adjective", value)) for word, value, weight in table))


_NOT = Word("not", "not")
_POS, _NEG, _NEU = _adjectives(_POSITIVE), _adjectives(_NEGATIVE), _adjectives(_NEUTRAL)
_ADJECTIVE = choice(*zip(_CLASS_WEIGHTS, (_POS, _NEG, _NEU), strict=True))


def _graded(adjective: Node) -> Choice:
    """[intensifier] adjective."""
    bare = 1.0 - math.fsum(probability for _, _, probability in _INTENSIFIERS)
    return choice(
        (bare, adjective),
        *(
            (probability, seq(Word(word, "intensifier", factor), adjective))
            for word, factor, probability in _INTENSIFIERS
        ),
    )


_SIMPLE = choice(
    (1.0 - _NOT_PROBABILITY, _graded(_ADJECTIVE)),
    (_NOT_PROBABILITY, seq(_NOT, _graded(_ADJECTIVE))),
)
# The two sides of a contrast have opposite polarity by construction.
_POS_SIDE, _NEG_SIDE = _graded(_POS), _graded(_NEG)
_ADJP = choice(
    (1.0 - _CONTRAST_PROBABILITY, _SIMPLE),
    (
        _CONTRAST_PROBABILITY,
        uniform(seq(_POS_SIDE, "but", _NEG_SIDE), seq(_NEG_SIDE, "but", _POS_SIDE)),
    ),
)
SLOTS: tuple[Choice, ...] = (_ADJP, _SIMPLE)


def _judgement_node(aspect: str) -> Choice:
    """All judgement sentences about one aspect."""
    plural = aspect in _PLURAL
    be = choice((0.35, "are"), (0.65, "were")) if plural else choice((0.35, "is"), (0.65, "was"))
    noun = Word(aspect, "aspect")
    past = choice(*((weight, Word(word, "verb", value)) for word, _, value, weight in _VERBS))
    base = choice(*((weight, Word(word, "verb", value)) for _, word, value, weight in _VERBS))
    frames: list[tuple[float, Node]] = [
        (0.38, seq("The", noun, be, _ADJP)),
        (0.15, seq("I found the", noun, _ADJP)),
        (0.13, seq("I thought the", noun, "were" if plural else "was", _SIMPLE)),
        (0.08, seq("My friends called the", noun, _SIMPLE)),
        (0.18, seq("I", past, "the", noun)),
        (0.08, seq("I did", _NOT, base, "the", noun)),
    ]
    if plural:
        frames.append((0.20, seq("It has", _graded(_ADJECTIVE), noun)))
    return choice(*frames)


_OPENING = _opening_node()
LENGTHS = dict(_SENTENCE_COUNT)
MAX_SENTENCES = max(LENGTHS)
"""The most judgement sentences a grammatical review can have."""
JUDGEMENTS: dict[str, Choice] = {aspect: _judgement_node(aspect) for aspect in ASPECTS}

SENTIMENT_WORDS: frozenset[str] = frozenset(
    word.text
    for node in JUDGEMENTS.values()
    for word in words(node)
    if word.role in ("adjective", "verb", "intensifier", "not")
)
"""Every word that sets or changes the sentiment of a judgement (neutral ones included)."""


def sentiment_of(leaves: Sequence[Node]) -> float:
    """Sentiment in [-1, 1] of the leaves of one judgement sentence or adjective phrase."""
    values: list[float] = []
    factor, negated = 1.0, False
    for leaf in leaves:
        if not isinstance(leaf, Word):
            continue
        if leaf.role == "not":
            negated = True
        elif leaf.role == "intensifier":
            factor = leaf.value
        elif leaf.role in ("adjective", "verb"):
            value = max(-1.0, min(1.0, factor * leaf.value))
            values.append(NEGATION * value if negated else value)
            factor, negated = 1.0, False
    if len(values) == 2:
        return CONTRAST[0] * values[0] + CONTRAST[1] * values[1]
    return values[0] if values else 0.0


# ---------------------------------------------------------------------------------------------
# Sampling and enumeration
# ---------------------------------------------------------------------------------------------


def sample_review(rng: np.random.Generator) -> str:
    """Draws one review from the grammar.

    Args:
        rng: Source of randomness; the same state gives the same review.

    Returns:
        The opening and one to three judgement sentences, separated by single spaces.
    """
    sentences = [sample_text(_OPENING, rng) + "."]
    rest = rng.random()
    count = MAX_SENTENCES
    for number, probability in _SENTENCE_COUNT:
        rest -= probability
        if rest < 0.0:
            count = number
            break
    remaining = list(ASPECT_GROUPS)
    for _ in range(count):
        group = remaining.pop(int(rng.random() * len(remaining)))
        aspect = group[int(rng.random() * len(group))]
        sentences.append(sample_text(JUDGEMENTS[aspect], rng) + ".")
    return " ".join(sentences)


def enumerate_openings() -> Iterator[tuple[str, float]]:
    """Yields every opening sentence with its probability."""
    for probability, leaves in expansions(_OPENING):
        yield text_of(leaves) + ".", probability


@functools.cache
def vocabulary() -> frozenset[str]:
    """Returns every distinct word of the grammar (case matters, full stops are left out)."""
    nodes = (_OPENING, *JUDGEMENTS.values())
    return frozenset(
        part for node in nodes for word in words(node) for part in word.text.split(" ")
    )


# ---------------------------------------------------------------------------------------------
# Exact facts
# ---------------------------------------------------------------------------------------------


def aspect_log_prob(index: int) -> float:
    """Log probability of any allowed aspect in the judgement of this number, from 0."""
    return -math.log(len(ASPECTS) * (len(ASPECT_GROUPS) - index) / len(ASPECT_GROUPS))


@functools.cache
def review_entropy() -> float:
    """Entropy of a review in nats, summed over the choices of the grammar.

    The aspect of every judgement is uniform over all aspects when seen alone, so each
    sentence adds the entropy of the draw of its aspect and the mean over aspects of the entropy of
    a sentence about that aspect.
    """
    sentence = math.fsum(node_entropy(node) for node in JUDGEMENTS.values()) / len(ASPECTS)
    total = node_entropy(_OPENING)
    for number, probability in _SENTENCE_COUNT:
        aspects = -math.fsum(aspect_log_prob(index) for index in range(number))
        total += probability * (aspects + number * sentence - math.log(probability))
    return total


def count_reviews(aspects: Sequence[str] = ASPECTS) -> int:
    """Exact number of distinct reviews.

    Args:
        aspects: Count only reviews whose judgements are all about these aspects.

    Returns:
        The number of different strings that the grammar generates.
    """
    # symmetric[k]: sum over all sets of k groups of the product of their sentence counts
    symmetric = [1] + [0] * MAX_SENTENCES
    for group in ASPECT_GROUPS:
        ways = sum(count_derivations(JUDGEMENTS[aspect]) for aspect in group if aspect in aspects)
        for size in range(MAX_SENTENCES, 0, -1):
            symmetric[size] += ways * symmetric[size - 1]
    judgements = sum(math.factorial(number) * symmetric[number] for number in LENGTHS)
    return count_derivations(_OPENING) * judgements
